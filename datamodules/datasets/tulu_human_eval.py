"""TuluHumanEvalDataModule: answers of two models compared on five levels by people with names (Tulu human evaluation).

* Source: https://github.com/allenai/open-instruct, file ``human_eval/data/eval_annotations_tulu_1.xlsx`` (Wang et al., *How Far
  Can Camels Go? Exploring the State of Instruction Tuning on Open Resources*, NeurIPS 2023,
  https://arxiv.org/abs/2306.04751). Not on the Hugging Face hub.
* Licence: Apache-2.0.
* Revision: commit e6c3044aa620.
* Columns read: ``id``, ``prompt``, ``completion_a``, ``completion_b``, ``model_a``, ``model_b``, ``preference``, ``evaluator``, and with
  ``acceptability`` ``completion_a_is_acceptable``, ``completion_b_is_acceptable`` (``yes``, ``no``).
* Split rule (ours; all of it is test data): a prompt, whichever models answered it, goes to training, validation or test
  (80/10/10) by the SHA-1 of its text.

The sense of ``preference``: ``a-is-better`` and ``a-is-slightly-better`` prefer ``completion_a``, with a strength of 2 and 1;
``b-is-...`` likewise the other; ``tie`` is a tie with a strength of 0. The strength of a comparison is that of its winner.

A row is one record with one comparison, by its evaluator. About a seventh of the pairs were judged by several, which are merged
with all their judgements when tokenised. Departure: where somebody judged a pair again, the authors' script keeps the latest
of the judgements; here both count, and the report says how many repeat.

The release is a spreadsheet, which nothing here reads: save the sheet as CSV in UTF-8, with its header, or as JSON Lines.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..records import (
    Judgement,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    compared,
    find_file,
    name_field,
    read_table,
    rows_of_split,
    system_field,
    user_field,
    vote_counts,
)
from ..settings import SharedSettings

__all__ = ["ACCEPTABILITY", "TuluHumanEvalDataModule"]

ACCEPTABILITY = ("unacceptable", "acceptable")
"""Categories of a response's votes, in their order."""

COMMIT = "e6c3044aa620"
NAME = "eval_annotations_tulu_1"
LEVELS = {
    "a-is-better": Judgement(1.0, 2.0),
    "a-is-slightly-better": Judgement(1.0, 1.0),
    "tie": Judgement(0.5, 0.0),
    "b-is-slightly-better": Judgement(0.0, -1.0),
    "b-is-better": Judgement(0.0, -2.0),
}
ANSWERS = {"no": 0, "yes": 1}


class TuluHumanEvalDataModule(PreferenceDataModule):
    """Answers of models in pairs, each judged on five levels by one or more of 16 people (Tulu human evaluation)."""

    name = "tulu_human_eval"
    sources = ("train", "validation", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub. Get them with `git clone https://github.com/allenai/open-instruct && git -C "
        f"open-instruct checkout {COMMIT}`, save the sheet human_eval/data/{NAME}.xlsx as {NAME}.csv in UTF-8, and give "
        "data_dir=open-instruct/human_eval/data (Apache-2.0)"
    )

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        acceptability: bool = False,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose what to read beside the preference; reads nothing.

        Args:
            data_dir: Folder with ``eval_annotations_tulu_1.jsonl`` or ``.csv`` (also ``.gz``), one row for each of the sheet.
            acceptability: Whether each response has the evaluator's vote, ``unacceptable`` or ``acceptable``.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data).

        Example:
            >>> TuluHumanEvalDataModule(data_dir="open-instruct/human_eval/data", acceptability=True).acceptability
            True

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.data_dir, self.acceptability = self.need_folder(data_dir), acceptability

    def files(self, source: str) -> list[Path]:
        """The one file, whatever the source."""
        return [find_file(Path(self.data_dir), f"{NAME}.jsonl", f"{NAME}.csv")]

    def settings(self) -> dict[str, object]:
        """Whether acceptability is read."""
        return {"acceptability": self.acceptability}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """One row per judgement."""
        yield from rows_of_split(read_table(self.files(source)[0]), source, _prompt)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, two answers to it, and which one the evaluator prefers."""
        judgement = LEVELS[choice_field("preference", row.get("preference"), LEVELS)]
        evaluator = user_field("evaluator", row.get("evaluator"))
        return PreferenceRecord(
            id=f"{NAME}:{name_field('id', row.get('id'))}",
            prompt=_prompt(row),
            responses=tuple(self._response(row, side) for side in "ab"),
            comparisons=(compared(0, 1, judgement, user=evaluator),),
        )

    def _response(self, row: SourceRow, side: str) -> Response:
        field, model = f"completion_{side}", f"model_{side}"
        votes = None
        if self.acceptability:
            name = f"{field}_is_acceptable"
            votes = vote_counts([ANSWERS[choice_field(name, row.get(name), ANSWERS)]], len(ANSWERS))
        system = system_field(model, row.get(model, optional=True))
        return Response(row.text(field).strip(), votes=votes, system=system)


def _prompt(row: SourceRow) -> str:
    return row.text("prompt").strip()
