"""WebGPTDataModule: pairs of long answers to questions, written with the help of a browser (WebGPT comparisons).

* Source: https://openaipublic.blob.core.windows.net/webgpt-answer-viewer/comparisons.jsonl (Nakano et al., *WebGPT:
  Browser-assisted question-answering with human feedback*, 2021, https://arxiv.org/abs/2112.09332, appendix K). What the Hugging
  Face hub has (openai/webgpt_comparisons, card at revision 561745a7e8cc) is a script that fetches this file, which the
  library no longer runs.
* Licence: none is stated on the card or in the paper.
* Revision: one file, never changed as far as is known: 19,578 pairs. The schema is that of the paper, the card and public readers
  of it; the bytes were not at hand.
* Columns read: ``question.full_text``, ``answer_0``, ``answer_1``, ``score_0``, ``score_1``. The file itself has a list of two
  objects a line, each with ``question``, ``answer`` and ``score``: both forms are read. Quotes and tokens are not.
* Split rule (ours; the release has one split): a tenth of the questions, by their hash, is the test split; validation is
  carved out of training by another hash.

A score is in [-1, 1], and the two of a pair sum to 0: **the greater score is preferred**, both 0 are a tie with a share of 0.5. The
strength of a comparison is the score of the response that comes first, which is the winner. Nobody has a name. A row is
one record with two responses; all rows of a question stay on one side of the split.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..records import (
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    compared,
    list_field,
    mapping_field,
    number_field,
    parse_rows,
    read_json_lines,
    read_parquet,
    signed_judgement,
)
from ..settings import SharedSettings
from .parts import find_parts, numbered_rows, rows_of_source

__all__ = ["WebGPTDataModule"]

PAIR = "pair"
COLUMNS = ("question", "answer_0", "answer_1", "score_0", "score_1")
ROUNDING = 1e-6


class WebGPTDataModule(PreferenceDataModule):
    """Pairs of long answers to questions, compared by one labeller each, with ties and degrees (WebGPT)."""

    name = "webgpt"
    sources = ("train", "test")
    where_to_get = (
        "the data are not on the Hugging Face hub in a form that can be loaded. Get them with `curl --create-dirs -o "
        "webgpt/comparisons.jsonl https://openaipublic.blob.core.windows.net/webgpt-answer-viewer/comparisons.jsonl` and "
        "give data_dir=webgpt"
    )

    def __init__(self, *, data_dir: str | None = None, **shared: Unpack[SharedSettings]) -> None:
        """Name the folder; reads nothing.

        Args:
            data_dir: Folder with ``comparisons.jsonl`` (also ``.gz``), or with the ``*.parquet`` that the hub made of it.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing; says where to get the data.

        Example:
            >>> WebGPTDataModule(data_dir="webgpt").splits
            ('train', 'validation', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.data_dir = self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """The release's files, whatever the source."""
        return find_parts(Path(self.data_dir), "comparisons.jsonl", "comparisons.jsonl.gz", "*.parquet")

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Pairs of the questions of the source; one whose question cannot be read is an error of training."""
        rows = numbered_rows("comparisons", parse_rows(self._rows(source), _named))
        yield from rows_of_source(source, rows, lambda row: row.text("question.full_text").strip())

    def _rows(self, source: str) -> Iterator[SourceRow | RecordError]:
        for path in self.files(source):
            if path.suffix == ".parquet":
                yield from read_parquet(path, COLUMNS)
            else:
                yield from read_json_lines(path, lists=PAIR)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A question, two answers and what a labeller thought of them."""
        first, second = (number_field(f"score_{i}", row.get(f"score_{i}"), -1, 1) for i in range(2))
        if abs(first + second) > ROUNDING:
            raise RecordError(
                "score_1", second, f"{-first:g}, since the two sum to 0", reason="scores do not sum to 0"
            )
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("question.full_text").strip(),
            responses=tuple(Response(row.text(f"answer_{i}").strip()) for i in range(2)),
            comparisons=(compared(0, 1, signed_judgement("score_0", first, "first")),),
            group=row.text("group"),
        )


def _named(row: SourceRow) -> SourceRow:
    """A pair under the names of columns, whichever of its two forms it has."""
    if PAIR not in row.fields:
        return row
    sides = list_field("line", row.get(PAIR), 2)
    first, second = (mapping_field(f"line[{i}]", side) for i, side in enumerate(sides))
    if first.get("question") != second.get("question"):
        raise RecordError(
            "line[1].question",
            second.get("question"),
            "the question of line[0]",
            reason="pair of two questions",
        )
    fields = {"question": first.get("question")}
    for i, side in enumerate((first, second)):
        fields |= {f"{name}_{i}": side[name] for name in ("answer", "score") if name in side}
    return row._replace(fields=fields)
