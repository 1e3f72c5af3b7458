"""RewardWriter: predictions as JSON Lines, one object per response, and one per comparison where there are any."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from rich.console import Console
from torch import Tensor

from pluralign.datamodules.batch import GivenRecord, Labels, PreferenceBatch, RewardOutput
from pluralign.datamodules.columns import with_requests
from pluralign.models.base import data_of

from .base import check_one_loader
from .prediction_lines import Line, PredictionLines

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
WHO = ("id", "response", "comparison", "prompt", "text", "user", "domain", "personal")
"""What lines say beside the values."""
OWN = frozenset({*WHO, "reward", "chosen", "rejected", "preference", *LABELS.values()})
"""Names of a line that no method may take for something else."""


class RewardWriter(L.Callback):
    """Write what ``predict`` finds: everything that the module says of a response or of a comparison.

    A line is ``{"id": "q-17", "response": 1, "prompt": "Name a fruit.", "text": "Apple.", "reward": 0.37}``: the record's
    id, the response's place in it, prompt and response as the data give them, and every value per response. Where the
    data name users or the method knows some, ``user`` follows, and where they name domains ``domain``; ``personal`` says
    whether the reward is that user's own, or else the mean user's (``"user": null`` always has the latter). What else
    a method gives follows: of ``labels`` ``label_probs``, ``expected_reward`` and so on, the ``basis`` under its title,
    and ``of_responses`` under its own names.

    What is said of comparisons goes to a file beside it, ``predictions.comparisons.jsonl``, if there are any:
    ``{"id": "q-17", "comparison": 0, "chosen": 0.37, "rejected": 0.12}`` with the comparison's place in the record, its
    user and domain, then ``preference``, ``labels`` and ``of_comparisons`` as far as the module gives them.

    Lines are in the order of the input, of all ranks in one file, which the first rank puts together at the end and
    which appears when it is complete. Until then every batch's lines are in ``predictions.jsonl.partial`` (of several
    ranks ``.rank0.partial`` and so on) as soon as they are known, without the texts; that is what an interrupted run
    leaves, and it is not replaced unasked. Memory holds one batch and one record, however many there are; the
    input is read once more at the end.
    """

    def __init__(self, path: str | None = None, *, overwrite: bool = False, texts: bool = True) -> None:
        """Name the file.

        Args:
            path: File to write, JSON Lines; None for ``predictions.jsonl`` in the run's folder.
            overwrite: Whether files that are there may be replaced; one of comparisons goes if now there are none.
            texts: Whether lines hold prompt and response.
        """
        self.path = None if path is None else Path(path)
        self.overwrite, self.texts = overwrite, texts
        self._responses = self._comparisons = PredictionLines(Path("predictions.jsonl"))
        self._names: dict[str, Sequence[str]] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file.

        Raises:
            FileExistsError: If one of the files is there and may not be replaced.
            ValueError: If there are several loaders, whose records could have equal ids.
        """
        check_one_loader(self, trainer)
        folder = trainer.log_dir or trainer.default_root_dir  # every rank has to ask
        path = Path(folder) / "predictions.jsonl" if self.path is None else self.path
        beside = path.with_suffix(f".comparisons{path.suffix}")
        self._responses, self._comparisons = (
            PredictionLines(each, rank=trainer.global_rank, ranks=trainer.world_size)
            for each in (path, beside)
        )
        for lines in (self._responses, self._comparisons):
            lines.refuse(overwrite=self.overwrite)
        self._responses.open()
        data = data_of(trainer)
        self._names = {} if data is None else {"user": data.users, "domain": data.domains}

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput with the names of what it is of
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch.

        Raises:
            ValueError: If the module says something of more or fewer responses or comparisons than there are, or under a
                name that is taken.
        """
        output, asked = cast(RewardOutput, outputs), with_requests(batch)
        self._add_responses(output, asked, len(batch["response_prompt"]))
        if "comparisons" in batch:
            self._add_comparisons(output, asked)

    def _add_responses(self, output: RewardOutput, batch: PreferenceBatch, number: int) -> None:
        """Write a line for every request."""
        labels, basis = output.get("labels"), output.get("basis")
        values: dict[str, Tensor] = {"reward": output["reward"]} if "reward" in output else {}
        values |= _label_columns(labels, "responses")
        others = {} if basis is None else {basis.title: basis.rewards}
        values |= _free(others | output.get("of_responses", {}), "of_responses")
        _check_lengths(values, number, "response")
        response = batch["request_response"]
        values = {name: value[response] for name, value in values.items()}
        if "requested" in output:
            values["reward"] = output["requested"]
        columns = self._who(batch, "request_user_id", "request_domain_id", always="personal" in output)
        if "personal" in output:
            columns["personal"] = output["personal"].tolist()
        self._responses.add(
            {
                "id": [batch["id"][n] for n in batch["request_prompt"].tolist()],
                "response": batch["request_index"].tolist(),
                **columns,
                **{name: value.tolist() for name, value in values.items()},
            }
        )

    def _add_comparisons(self, output: RewardOutput, batch: PreferenceBatch) -> None:
        """Write a line for every comparison, if anything is said of them."""
        values = {"chosen": output["chosen"]} if "chosen" in output else {}
        values |= {"rejected": output["rejected"]} if "rejected" in output else {}
        values |= {"preference": output["preference"]} if "preference" in output else {}
        values |= _label_columns(output.get("labels"), "comparisons")
        values |= _free(output.get("of_comparisons", {}), "of_comparisons")
        number = len(batch["comparisons"])
        if not values or not number:
            return
        _check_lengths(values, number, "comparison")
        prompt = batch.get("comparison_prompt", batch["response_prompt"][batch["comparisons"][:, 0]])
        self._comparisons.open()
        self._comparisons.add(
            {
                "id": [batch["id"][n] for n in prompt.tolist()],
                "comparison": batch["comparison_index"].tolist(),
                **self._who(batch, "user_id", "domain_id"),
                **{name: value.tolist() for name, value in values.items()},
            }
        )

    def _who(
        self, batch: PreferenceBatch, user: str, domain: str, *, always: bool = False
    ) -> dict[str, list[Any]]:
        """Names of users and domains where the batch has them; with ``always`` users of whom it says nothing, too."""
        columns: dict[str, list[Any]] = {}
        for name, key in (("user", user), ("domain", domain)):
            indices = cast(Mapping[str, Tensor], batch).get(key)
            if indices is not None:
                names = self._names.get(name) or ()
                found = indices.tolist()
                columns[name] = [None if i < 0 else names[i] if i < len(names) else i for i in found]
            elif always and name == "user":
                columns[name] = [None] * len(batch["request_index"])
        return columns

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the complete files in place, in the input's order, and say where they are."""
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        self._responses.check_ranks()
        data, texts = data_of(trainer), self.texts
        counts = {"given": 0}

        def given() -> Iterable[GivenRecord]:
            for record in () if data is None else data.given("predict"):
                counts["given"] += len(record.responses)
                yield record

        console = Console()
        number = self._responses.finish(
            given(), lambda record, line: _with_response(record, line, texts=texts)
        )
        _say(console, f"{number:,} predictions: {self._responses.path}")
        if counts["given"] > number:
            _say(
                console,
                f"{counts['given'] - number:,} of {counts['given']:,} responses of the input have none: they were "
                "dropped when it was read, as reported then, or the run was told to stop before them",
            )
        if any(path.exists() for path in self._comparisons.partials):
            number = self._comparisons.finish(() if data is None else data.given("predict"), _with_judge)
            _say(console, f"{number:,} predictions of comparisons: {self._comparisons.path}")
        else:
            self._comparisons.path.unlink(missing_ok=True)  # of an earlier run

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep what was written under its partial name, and say so."""
        for lines in (self._responses, self._comparisons):
            if lines.abandon():
                _say(Console(), f"{lines.number:,} predictions were made before that: {lines.partial}")


def _with_response(record: GivenRecord, line: Line, *, texts: bool) -> Line:
    """A response's line with what the data say of it."""
    response = record.responses[line["response"]]
    head: Line = {"id": line["id"], "response": line["response"]}
    if texts:
        head |= {"prompt": record.prompt, "text": response.text}
    told = {name: getattr(response, name) for name in ("user", "domain") if name in line}
    return head | told | {name: value for name, value in line.items() if name not in head | told}


def _with_judge(record: GivenRecord, line: Line) -> Line:
    """A comparison's line with its user and domain as the data name them."""
    user, domain = record.judges[line["comparison"]]
    return line | {name: value for name, value in (("user", user), ("domain", domain)) if name in line}


def _free(values: Mapping[str, Tensor], place: str) -> Mapping[str, Tensor]:
    """A method's own values.

    Raises:
        ValueError: If one has a name that lines have for something else.
    """
    if taken := sorted(OWN & values.keys()):
        raise ValueError(
            f"{place} (or the basis) has {', '.join(map(repr, taken))}, which a line of predictions has for something else: "
            f"give it another name; taken are {', '.join(sorted(OWN))}"
        )
    return values


def _check_lengths(values: Mapping[str, Tensor], number: int, item: str) -> None:
    for name, value in values.items():
        if value.ndim == 0 or len(value) != number:
            raise ValueError(
                f"{name} must have a row for each of {number} {item}s, got a shape of {tuple(value.shape)}"
            )


def _label_columns(labels: Labels | None, on: str) -> dict[str, Tensor]:
    """What labels say, if they are of these items."""
    if labels is None or labels.on != on:
        return {}
    columns: dict[str, Tensor | None] = {name: getattr(labels, part) for part, name in LABELS.items()}
    return {name: column for name, column in columns.items() if column is not None}


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
