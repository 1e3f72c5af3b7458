"""JudgeBenchDataModule: two answers of one model to a hard question, of which one is correct (JudgeBench).

* Source: https://github.com/ScalerLab/JudgeBench, folder ``data`` (Tan et al., *JudgeBench: A Benchmark for Evaluating LLM-based Judges*,
  ICLR 2025, https://arxiv.org/abs/2410.12784).
* Licence: none in the repository.
* Revision: commit e2c52c284e73.
* Columns read: ``pair_id``, ``source``, ``question``, ``response_A``, ``response_B``, ``label`` (``A>B`` or ``B>A``).
* Split rule: all of it is the test split; the two files are the answers of two models.

A row is a record of two responses in the order of the file and one comparison in the domain of its source: ``mmlu-pro``,
``livebench-reasoning``, ``livebench-math`` or ``livecodebench``.

**Official score** (:func:`official_scores`): the share of pairs that are judged rightly, of each source and ``Overall``. A reward model is
asked in one order; its judge says ``B>A`` of equal rewards, which then count by chance of the order. They are wrong here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Unpack, get_args

from ..base import PreferenceDataModule
from ..checks import check_subset
from ..official import OfficialScores, mean_by_name, pair_items, pair_results
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    find_file,
    read_json_lines,
)
from ..settings import SharedSettings

__all__ = ["JudgeBenchDataModule"]

COMMIT = "e2c52c284e73"
Answering = Literal["gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"]
SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
LABELS = ("A>B", "B>A")
RULE = (
    f"JudgeBench: share of pairs judged rightly; equal rewards are wrong (ScalerLab/JudgeBench at {COMMIT})"
)


class JudgeBenchDataModule(PreferenceDataModule):
    """Pairs of answers to hard questions, one of them correct, by source (JudgeBench)."""

    name = "judgebench"
    sources = ("test",)
    where_to_get = (
        "get the data with `git clone https://github.com/ScalerLab/JudgeBench && git -C JudgeBench checkout "
        f"{COMMIT}` and give data_dir=JudgeBench/data (the repository has no licence)"
    )

    def __init__(
        self,
        *,
        answered_by: tuple[Answering, ...] = get_args(Answering),
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose whose answers; reads nothing.

        Args:
            answered_by: Models whose answers to read. Published results are of one each.
            data_dir: The folder ``data`` of the repository: ``dataset=judgebench,response_model=<model>.jsonl`` (also ``.gz``).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a model is unknown.

        Example:
            >>> JudgeBenchDataModule(data_dir="JudgeBench/data", answered_by=("gpt-4o-2024-05-13",)).answered_by
            ('gpt-4o-2024-05-13',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.answered_by = check_subset("answered_by", answered_by, get_args(Answering))
        self.data_dir = self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """The file of each model."""
        folder = Path(self.data_dir)
        return [
            find_file(folder, f"dataset=judgebench,response_model={name}.jsonl") for name in self.answered_by
        ]

    def settings(self) -> dict[str, object]:
        """Models."""
        return {"answered_by": self.answered_by}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of each model, one after the other."""
        for path in self.files(source):
            yield from read_json_lines(path)

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A question, two answers, and which of them is correct."""
        label = choice_field("label", row.get("label"), LABELS)
        chosen = LABELS.index(label)
        source = row.text("source")
        part = next((name for name in SOURCES if source.startswith(name)), None)
        if part is None:
            allowed = f"a name that begins with {' | '.join(SOURCES)}"
            raise RecordError("source", source, allowed, reason="out of range")
        return PreferenceRecord(
            id=row.text("pair_id"),
            prompt=row.text("question"),
            responses=(Response(row.text("response_A")), Response(row.text("response_B"))),
            comparisons=(Comparison(chosen, 1 - chosen, domain=part),),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Accuracy of each source that was run, and of all pairs together."""
        results = pair_results(records, rewards)
        right = [result.right for result in results]
        numbers = mean_by_name([result.part for result in results], right)
        numbers |= mean_by_name(["Overall"] * len(right), right)
        return OfficialScores(numbers, pair_items(results), RULE)
