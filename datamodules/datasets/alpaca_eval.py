"""AlpacaEvalDataModule: answers of many models against one baseline, as several AI judges see them (AlpacaEval).

* Source: https://github.com/tatsu-lab/alpaca_eval, files ``results/<model>/<judge>/annotations.json`` (Dubois et al.,
  *Length-Controlled AlpacaEval*, 2024, https://arxiv.org/abs/2404.04475). Not on the Hugging Face hub.
* Licence: the repository is Apache-2.0, its README marks the data CC-BY-NC-4.0: take them as not for commercial use.
* Revision: commit cd543a149df8.
* Columns read: ``instruction``, ``output_1`` (the baseline's answer), ``output_2`` (the model's), ``preference``, ``annotator``,
  ``generator_1``, ``generator_2``, ``dataset`` (these three may be missing).
* Split rule (ours; all of it is test data): an instruction, whichever models answered it, goes to training, validation or
  test (80/10/10) by the SHA-1 of its text.

The sense of ``preference``: 1 is ``output_1``, 2 is ``output_2``, and what lies between is 1 plus the share that prefers
``output_2``, as judges with log-probabilities give it; 1.5, and 0 in old files, is a draw. So the share of the comparison is
that of the winner, at least 0.5, and only a draw is a tie. There is no strength: a share says how sure a judge is.

A row is one record with one comparison: the judge is the user, the part of the evaluation set (``dataset``) the domain, and a
response's system is its ``generator``. Several
judges saw the same pair, which is merged with all its judgements when tokenised. A row whose judgement could not be
parsed (``preference`` null or NaN) is an error ``no judgement``, and models gave blank answers: ``on_invalid="skip"``, the
default here, counts both. As groups without judgements (``unlabelled`` of a mixture) an instruction's answers are one group, the
baseline's once and every model's of ``models``, and rows without a judgement count as well. Where a model answered as the baseline did, the pair is dropped and counted when tokenised.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..records import (
    Comparison,
    Judgement,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    compared,
    listed,
    number_field,
    read_json_list,
    rows_of_split,
    system_field,
    text_field,
    user_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["AlpacaEvalDataModule"]

COMMIT = "cd543a149df8"
NAMES = ("annotations.json", "annotations.json.gz")
OLD_DRAW, DRAW = 0.0, 1.5


class AlpacaEvalDataModule(PreferenceDataModule):
    """Answers of models against a baseline's, each pair judged by one or several AI judges (AlpacaEval)."""

    name = "alpaca_eval"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone https://github.com/tatsu-lab/alpaca_eval && git -C "
        f"alpaca_eval checkout {COMMIT}` and give data_dir=alpaca_eval/results (treat as CC-BY-NC-4.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        models: tuple[str, ...] | None = None,
        judges: tuple[str, ...] | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose models and judges; reads nothing.

        Args:
            data_dir: The folder ``results`` of the repository, with ``<model>/<judge>/annotations.json`` (also ``.gz``).
            models: Whose answers to read, by the names of the folders; None for all.
            judges: Whose judgements to read, likewise.
            on_invalid: ``error`` or ``skip``; the release has blank answers and judgements that were not parsed, so
                ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or no model or judge is named.

        Example:
            >>> AlpacaEvalDataModule(data_dir="alpaca_eval/results", models=("vicuna-7b",)).models
            ('vicuna-7b',)

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        for name, chosen in (("models", models), ("judges", judges)):
            if chosen is not None and not chosen:
                raise ValueError(f"{name} must name one at least, or be null for all; got {list(chosen)}")
        self.data_dir = self.need_folder(data_dir)
        self.models, self.judges = models, judges

    def files(self, source: str) -> list[Path]:
        """Every judge's file of every model that is read, by name, whatever the source.

        Raises:
            FileNotFoundError: If there are none, or a model or judge that the settings name has none.
        """
        folder = Path(self.data_dir)
        paths = sorted(path for path in folder.glob("*/*/*") if path.name in NAMES)
        if not paths:
            raise FileNotFoundError(
                f"data_dir={self.data_dir!r} holds no <model>/<judge>/{NAMES[0]} (plain or .gz)"
            )
        for what, chosen, level in (("models", self.models, 2), ("judges", self.judges, 1)):
            if chosen is None:
                continue
            there = {path.parts[-1 - level] for path in paths}
            if missing := sorted(set(chosen) - there):
                raise FileNotFoundError(
                    f"data_dir={self.data_dir!r} has nothing for {what} {listed(missing)}; there are {listed(sorted(there))}"
                )
            paths = [path for path in paths if path.parts[-1 - level] in chosen]
        return paths

    def settings(self) -> dict[str, object]:
        """Models and judges whose files are read."""
        return {"places": [_place(path) for path in self.files("train")]}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of every file in turn, with the names of model and judge."""
        for path in self.files(source):
            for row in rows_of_split(read_json_list(path), source, _prompt):
                if isinstance(row, RecordError):
                    yield row
                else:
                    yield row._replace(fields={**row.fields, "id": f"{_place(path)}:{row.line}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """An instruction, the baseline's answer and the model's, and which the judge prefers."""
        answers = (
            Response(row.text(f"output_{i}").strip(), system=system_field(name, row.get(name, optional=True)))
            for i, name in ((1, "generator_1"), (2, "generator_2"))
        )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=_prompt(row),
            responses=tuple(answers),
            comparisons=(_comparison(row),) if self.needs_judgement else (),
        )


def _place(path: Path) -> str:
    """Model and judge of a file."""
    return "/".join(path.parts[-3:-1])


def _prompt(row: SourceRow) -> str:
    return row.text("instruction").strip()


def _comparison(row: SourceRow) -> Comparison:
    """What the judge says of the baseline's answer and the model's."""
    judge = user_field("annotator", row.get("annotator"))
    part = row.get("dataset", optional=True)
    domain = None if part is None else text_field("dataset", part)
    return compared(0, 1, _judgement(row), user=judge, domain=domain)


def _judgement(row: SourceRow) -> Judgement:
    """What the code says: never a share as it stands."""
    value = row.get("preference", optional=True)
    allowed = "a number in [1, 2] (1: output_1, 2: output_2), or 0 for a draw"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RecordError(
            "preference", value, f"{allowed}; the judge's answer was not parsed", reason="no judgement"
        )
    preference = number_field("preference", value)
    if preference == OLD_DRAW:
        preference = DRAW
    if not 1 <= preference <= 2:
        raise RecordError("preference", value, allowed, reason="out of range")
    return Judgement(2 - preference)
