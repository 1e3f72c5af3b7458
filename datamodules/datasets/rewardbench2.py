"""RewardBench2DataModule: one right answer among four, or several right ones among many, scored as RewardBench 2 does.

* Source: https://huggingface.co/datasets/allenai/reward-bench-2, split ``test`` (Malik et al., *RewardBench 2: Advancing Reward Model
  Evaluation*, 2025, https://arxiv.org/abs/2506.01937).
* Licence: ODC-By; completions have the terms of the models that wrote them.
* Revision: 7ff08853b0d5686e79b13fda8677024f566a104a, 1,865 rows. The schema is that of the release's readers; the bytes were not at
  hand.
* Columns read: ``id``, ``prompt``, ``chosen`` and ``rejected`` (lists of texts), ``num_correct``, ``total_completions``, ``subset``.
* Split rule: all of it is the test split.

A row is one record: the right completions, then the wrong ones, each right one compared with each wrong one, in the domain of its
subset. In ``Ties`` a prompt has several right answers (``tied:N``) or is the twin of such a prompt with one (``ref:N``). A
record's id is ``subset:id``. Texts stay as they are.

**Official score** (:func:`official_scores`): a prompt counts 1 / m if its right completion is one of m with the greatest
reward, else 0 (equal rewards of four completions count 0.25), and a subset is the mean of its prompts. ``Ties`` has a rule
of its own (:func:`~pluralign.datamodules.official.ties_score`), of which the released package and the repository have different
versions (``ties_version``). ``average`` is the mean of the six subsets, each counting the same, where all were run: our reading, for
the release's scripts print subsets alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices, check_subset
from ..official import OfficialScores, best_of_n_score, checked_rewards, mean_by_name, ties_score
from ..records import (
    Comparison,
    HubDataset,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    list_field,
    name_field,
    text_field,
    whole_field,
)
from ..settings import SharedSettings
from .parts import find_parts, read_parts

__all__ = ["RewardBench2DataModule"]

HUB = HubDataset("allenai/reward-bench-2", "7ff08853b0d5686e79b13fda8677024f566a104a")
TIES = "Ties"
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES)
COLUMNS = ("id", "prompt", "chosen", "rejected", "num_correct", "total_completions", "subset")
RULES = {
    "package": "RewardBench 2: best of 4, Ties as in the package rewardbench 0.1.4",
    "repository": "RewardBench 2: best of 4, Ties as in allenai/reward-bench at 05a9005efb60",
}


class RewardBench2DataModule(PreferenceDataModule):
    """One right answer among four, and prompts with several right ones, with the official score (RewardBench 2)."""

    name = "rewardbench2"
    sources = ("test",)

    def __init__(
        self,
        *,
        subsets: tuple[str, ...] = SUBSETS,
        ties_version: Literal["package", "repository"] = "repository",
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subsets, rule and source; reads nothing.

        Args:
            subsets: Which to read: ``Factuality``, ``Precise IF``, ``Math``, ``Safety``, ``Focus``, ``Ties``.
            ties_version: Which rule for ``Ties``: the ``repository``'s, or that of the released ``package`` 0.1.4, which
                leaves prompts whose right answers have equal rewards out of its last term.
            data_dir: Folder with ``test*.parquet`` or ``test*.jsonl`` (also ``.gz``), or with these in its folder ``data``; None loads
                the pinned revision from the Hugging Face hub.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is unknown.

        Example:
            >>> RewardBench2DataModule(subsets=("Ties",), ties_version="package").subsets
            ('Ties',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        check_choices(RewardBench2DataModule.__init__, ties_version=ties_version)
        self.subsets, self.data_dir = check_subset("subsets", subsets, SUBSETS), data_dir
        self.ties_version: Literal["package", "repository"] = ties_version

    def files(self, source: str) -> list[Path]:
        """The release's files, if local."""
        if self.data_dir is None:
            return []
        return find_parts(Path(self.data_dir), "test*.parquet", "test*.jsonl", "test*.jsonl.gz")

    def settings(self) -> dict[str, object]:
        """Subsets, and the pinned revision if the hub is the source; the rule decides no rows."""
        return {"hub": HUB.pin(self.data_dir), "subsets": self.subsets}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subsets in use; one whose subset is none is an error."""
        local = self.data_dir is not None
        left_out = [subset for subset in SUBSETS if subset not in self.subsets]
        for row in read_parts(self.files(source), COLUMNS) if local else HUB.rows("test"):
            if isinstance(row, RecordError) or row.fields.get("subset") not in left_out:
                yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, the right completions and the wrong ones, and every comparison of a right with a wrong one."""
        subset = choice_field("subset", row.get("subset"), SUBSETS)
        chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
        whole_field("num_correct", row.get("num_correct"), len(chosen), len(chosen))
        total = len(chosen) + len(rejected)
        whole_field("total_completions", row.get("total_completions"), total, total)
        if subset != TIES and len(chosen) != 1:
            raise RecordError("chosen", chosen, f"one text, in {subset}", reason="wrong length")
        name = name_field("id", row.get("id"))
        if subset == TIES and not (name.startswith(("ref:", "tied:")) and name.partition(":")[2].isdecimal()):
            raise RecordError("id", name, "ref:NUMBER or tied:NUMBER, in Ties", reason="out of range")
        return PreferenceRecord(
            id=f"{subset}:{name}",
            prompt=row.text("prompt"),
            responses=tuple(Response(text) for text in (*chosen, *rejected)),
            comparisons=tuple(
                Comparison(right, wrong, domain=subset)
                for right in range(len(chosen))
                for wrong in range(len(chosen), total)
            ),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """Score of each subset that was run and, of all six, their mean; prompts of Ties count in their subset alone."""
        items: list[dict[str, object]] = []
        shares: list[tuple[str, float]] = []
        names, tied_rewards, rights = [], [], []
        for record, values in zip(records, checked_rewards(records, rewards), strict=True):
            subset, _, name = record.id.partition(":")
            num_correct = len({comparison.chosen for comparison in record.comparisons})
            item = {"id": record.id, "part": subset, "rewards": values.tolist(), "num_correct": num_correct}
            if subset == TIES:
                names.append(name)
                tied_rewards.append(values)
                rights.append(num_correct)
                item["right"] = bool(values[:num_correct].min() > values[num_correct:].max())
            else:
                shares.append((subset, best_of_n_score(values)))
                item["score"] = shares[-1][1]
            items.append(item)
        found = mean_by_name([subset for subset, _ in shares], [share for _, share in shares])
        if names:
            found[TIES] = ties_score(names, tied_rewards, rights, version=self.ties_version)
        numbers = {subset: found[subset] for subset in SUBSETS if subset in found}
        if len(numbers) == len(SUBSETS):
            numbers["average"] = sum(numbers.values()) / len(numbers)
        return OfficialScores(numbers, items, RULES[self.ties_version])


def _texts(row: SourceRow, field: str) -> list[str]:
    entries = list_field(field, row.get(field))
    return [text_field(f"{field}[{i}]", text, blank="empty response") for i, text in enumerate(entries)]
