"""RewardWriter: predictions as JSON Lines, one object per response, and one per comparison where there are any."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import lightning as L
from torch import Tensor

from pluralign.datamodules.batch import Labels, PreferenceBatch, RewardOutput

__all__ = ["RewardWriter"]

LABELS = {
    "probs": "label_probs",
    "expected": "expected_reward",
    "std": "reward_std",
    "sets": "label_set_probs",
    "alpha": "alpha",
    "beta": "beta",
}
"""Parts of labels, and what the files call them."""


class RewardWriter(L.Callback):
    """Write what ``predict`` finds: everything that the module says of a response or of a comparison.

    A line is ``{"id": "q-17", "response": 1, "reward": 0.37}``: the record's id, the response's place in it, and every
    value per response. What else a method gives follows: of ``labels`` ``label_probs``, ``expected_reward`` and so on,
    the ``basis`` under its title, and ``of_responses`` under its own names.

    What is said of comparisons goes to a file beside it, ``rewards.comparisons.jsonl``, if there are any:
    ``{"id": "q-17", "comparison": 0, "chosen": 0.37, "rejected": 0.12}`` with the comparison's place in the record,
    then ``preference``, ``labels`` and ``of_comparisons`` as far as the module gives them.

    With several ranks each writes its own files, ``rewards.rank1.jsonl`` and so on. A file appears under its name when
    it is complete.
    """

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        """Name the file.

        Args:
            path: File to write, JSON Lines.
            overwrite: Whether files that are there may be replaced; one of comparisons goes if now there are none.
        """
        self.path, self.overwrite = Path(path), overwrite
        self._responses = self._comparisons = _Lines(self.path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file.

        Raises:
            FileExistsError: If one of the files is there and may not be replaced.
        """
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        ending = f"{rank}{self.path.suffix}"
        self._responses = _Lines(self.path.with_suffix(ending))
        self._comparisons = _Lines(self.path.with_suffix(f".comparisons{ending}"))
        for lines in (self._responses, self._comparisons):
            if lines.path.exists() and not self.overwrite:
                raise FileExistsError(f"{lines.path} is there already: name another file, or set overwrite")
        self._responses.open()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: RewardOutput,
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch.

        Raises:
            ValueError: If the module says something of more or fewer responses or comparisons than there are.
        """
        prompt = batch["response_prompt"]
        values = {name: outputs[name] for name in ("reward",) if name in outputs}
        labels, basis = outputs.get("labels"), outputs.get("basis")
        values |= _label_columns(labels, "responses")
        if basis is not None:
            values[basis.title] = basis.rewards
        values |= outputs.get("of_responses", {})
        self._responses.write(batch["id"], prompt, "response", batch["response_index"], values)
        if "comparisons" not in batch:
            return
        values = {name: outputs[name] for name in ("chosen", "rejected", "preference") if name in outputs}
        values |= _label_columns(labels, "comparisons")
        values |= outputs.get("of_comparisons", {})
        if values and len(batch["comparisons"]):
            prompt = prompt[batch["comparisons"][:, 0]]
            self._comparisons.open()
            self._comparisons.write(batch["id"], prompt, "comparison", batch["comparison_index"], values)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the complete files in place."""
        if not self._comparisons.close(complete=True):
            self._comparisons.path.unlink(missing_ok=True)  # of an earlier run
        self._responses.close(complete=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep what was written under its partial name."""
        for lines in (self._responses, self._comparisons):
            lines.close(complete=False)


class _Lines:
    """A file of lines that has another name until it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self._stream: IO[str] | None = None

    def open(self) -> None:
        """Begin the file, unless it was begun."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.partial.open("w", encoding="utf-8")

    def write(
        self, ids: list[str], prompt: Tensor, item: str, index: Tensor, values: Mapping[str, Tensor]
    ) -> None:
        """A line for each item: its record, its place in it, its values."""
        assert self._stream is not None
        for name, value in values.items():
            if value.ndim == 0 or len(value) != len(index):
                raise ValueError(
                    f"{name} must have a row for each of {len(index)} {item}s, got a shape of {tuple(value.shape)}"
                )
        columns = {item: index.tolist()} | {name: value.tolist() for name, value in values.items()}
        for number, *row in zip(prompt.tolist(), *columns.values(), strict=True):
            line = {"id": ids[number], **dict(zip(columns, row, strict=True))}
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self, *, complete: bool) -> bool:
        """End the file and, if it is complete, put it in place; whether there was one."""
        if self._stream is None:
            return False
        self._stream.close()
        self._stream = None
        if complete:
            os.replace(self.partial, self.path)
        return True


def _label_columns(labels: Labels | None, on: str) -> dict[str, Tensor]:
    """What labels say, if they are of these items."""
    if labels is None or labels.on != on:
        return {}
    columns: dict[str, Tensor | None] = {name: getattr(labels, part) for part, name in LABELS.items()}
    return {name: column for name, column in columns.items() if column is not None}
