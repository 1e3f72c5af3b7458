"""LLMBarDataModule: an output that follows the instruction and one that does not, often the better looking one (LLMBar).

* Source: https://github.com/princeton-nlp/LLMBar, folder ``Dataset/LLMBar`` (Zeng et al., *Evaluating Large Language Models at
  Evaluating Instruction Following*, ICLR 2024, https://arxiv.org/abs/2310.07641).
* Licence: MIT.
* Revision: commit 900616bff90b.
* Columns read: ``input``, ``output_1``, ``output_2``, ``label`` (1 or 2: which output is better).
* Split rule: all of it is the test split. RewardBench 1 has the same rows.

A row is a record of two responses in the order of the file and one comparison, whose domain is the subset: ``Natural``, or ``Neighbor``,
``GPTInst``, ``GPTOut`` or ``Manual`` of the adversarial set. Rows have no ids, so that a record's is the subset and its number in the file.

**Official score** (:func:`official_scores`): accuracy of each subset, the mean of the two orders in which a judge is asked.
Rewards do not depend on the order, but for equal ones: the release takes the second output of two equal ratings as the winner in
one order and the first in the other, so that they count a half. ``Adversarial`` is the mean of its four subsets, where all were run, and
``average`` that of all five: our reading of the paper's tables.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..checks import check_subset
from ..official import OfficialScores, mean_by_name, pair_items, pair_results
from ..records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    find_file,
    read_json_list,
    whole_field,
)
from ..settings import SharedSettings

__all__ = ["LLMBarDataModule"]

COMMIT = "900616bff90b"
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)
RULE = f"LLMBar: accuracy of each subset over both orders; equal rewards count 0.5 (princeton-nlp/LLMBar at {COMMIT})"


class LLMBarDataModule(PreferenceDataModule):
    """Outputs that follow an instruction against outputs that do not, some of them made to look better (LLMBar)."""

    name = "llmbar"
    sources = ("test",)
    where_to_get = (
        "get the data with `git clone https://github.com/princeton-nlp/LLMBar && git -C LLMBar checkout "
        f"{COMMIT}` and give data_dir=LLMBar/Dataset/LLMBar (MIT)"
    )

    def __init__(
        self,
        *,
        subsets: tuple[str, ...] = SUBSETS,
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subsets; reads nothing.

        Args:
            subsets: Which to read: ``Natural``, ``Neighbor``, ``GPTInst``, ``GPTOut``, ``Manual``.
            data_dir: The folder ``Dataset/LLMBar`` of the repository: ``Natural/dataset.json`` and, of the others, such as
                ``Adversarial/Manual/dataset.json`` (each also ``.gz``).
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If ``data_dir`` is missing (says where to get the data), or a subset is unknown.

        Example:
            >>> LLMBarDataModule(data_dir="LLMBar/Dataset/LLMBar", subsets=("Natural",)).subsets
            ('Natural',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.subsets, self.data_dir = check_subset("subsets", subsets, SUBSETS), self.need_folder(data_dir)

    def files(self, source: str) -> list[Path]:
        """The file of each subset in use."""
        folder = Path(self.data_dir)
        return [
            find_file(
                folder / "Adversarial" / subset if subset in ADVERSARIAL else folder / subset, "dataset.json"
            )
            for subset in self.subsets
        ]

    def settings(self) -> dict[str, object]:
        """Subsets."""
        return {"subsets": self.subsets}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subsets in use, each with the name of its subset."""
        for subset, path in zip(self.subsets, self.files(source), strict=True):
            for row in read_json_list(path):
                if isinstance(row, RecordError):
                    yield row
                else:
                    yield row._replace(fields={**row.fields, "subset": subset, "id": f"{subset}:{row.line}"})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """An instruction, two outputs, and which of them follows it."""
        chosen = whole_field("label", row.get("label"), 1, 2) - 1
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("input"),
            responses=(Response(row.text("output_1")), Response(row.text("output_2"))),
            comparisons=(Comparison(chosen, 1 - chosen, domain=row.text("subset")),),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Accuracy of each subset that was run, and means of the adversarial ones and of all."""
        results = pair_results(records, rewards)
        items = pair_items(results, tie=0.5)
        numbers = mean_by_name([result.part for result in results], [result.score(0.5) for result in results])
        means = {
            name: sum(numbers[subset] for subset in subsets) / len(subsets)
            for name, subsets in (("Adversarial", ADVERSARIAL), ("average", SUBSETS))
            if all(subset in numbers for subset in subsets)
        }
        return OfficialScores({**numbers, **means}, items, RULE)
