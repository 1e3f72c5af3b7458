"""RewardBenchDataModule: pairs of answers in 23 subsets, scored by section as RewardBench does.

* Source: https://huggingface.co/datasets/allenai/reward-bench, split ``filtered`` (Lambert et al., *RewardBench: Evaluating Reward
  Models for Language Modeling*, 2024, https://arxiv.org/abs/2403.13787).
* Licence: ODC-By; subsets have licences of their own.
* Revision: 168d848cdbbea9764fae4a544dc9ca1e6cca4931, 2,985 rows. The schema is that of the release's readers; the bytes were not
  at hand.
* Columns read: ``prompt`` (text, or a list of messages), ``chosen``, ``rejected``, ``subset``, ``id``.
* Split rule: all of it is the test split. Whoever trains on it, or on LLMBar, which is in it, cannot be compared with others.

A row is a record of two responses and one comparison, whose domain is the subset. Ids repeat between subsets, so that a record's is
``subset:id``. Texts stay as they are.

**Official score** (:func:`official_scores`): a pair is right if the chosen answer's reward is the greater one; equal is wrong. A
section is the mean of its subsets weighted by rows, ``math-prm`` counting as 984 rows in place of its 447, as many as the code.
A subset that is left out leaves its section's weights; ``average`` is the mean of the four sections, where all were run, and
so the leaderboard's of a model without *Prior Sets*.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from ..base import PreferenceDataModule
from ..checks import check_subset
from ..official import OfficialScores, mean_by_name, pair_items, pair_results, section_scores
from ..records import (
    Comparison,
    HubDataset,
    PreferenceRecord,
    Prompt,
    RecordError,
    Response,
    SourceRow,
    choice_field,
    name_field,
    parse_messages,
)
from ..settings import SharedSettings
from .parts import find_parts, read_parts

__all__ = ["RewardBenchDataModule"]

HUB = HubDataset("allenai/reward-bench", "168d848cdbbea9764fae4a544dc9ca1e6cca4931")
RELEASED = "filtered"
ROWS = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "math-prm": 984, "refusals-dangerous": 100, "refusals-offensive": 100, "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    "xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136, "hep-cpp": 164, "hep-go": 164,
    "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
}  # fmt: skip
"""Rows that each subset counts for in its section."""
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
COLUMNS = ("prompt", "chosen", "rejected", "subset", "id")
RULE = (
    "RewardBench 1: sections weighted by rows, math-prm as 984; equal rewards are wrong (rewardbench 0.1.4)"
)


class RewardBenchDataModule(PreferenceDataModule):
    """Pairs of answers to chat, safety and reasoning prompts, with RewardBench's own score (RewardBench 1)."""

    name = "rewardbench"
    sources = ("test",)

    def __init__(
        self,
        *,
        subsets: tuple[str, ...] = tuple(ROWS),
        data_dir: str | None = None,
        **shared: Unpack[SharedSettings],
    ) -> None:
        """Choose subsets and source; reads nothing.

        Args:
            subsets: Which of the 23 to read, such as ``math-prm``.
            data_dir: Folder with ``filtered*.parquet`` or ``filtered*.jsonl`` (also ``.gz``), or with these in its folder ``data``;
                None loads the pinned revision from the Hugging Face hub.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a subset is unknown.

        Example:
            >>> RewardBenchDataModule(subsets=("math-prm",)).subsets
            ('math-prm',)

        .. versionadded:: 0.1
        """
        super().__init__(**shared)
        self.subsets, self.data_dir = check_subset("subsets", subsets, ROWS), data_dir

    def files(self, source: str) -> list[Path]:
        """The release's files, if local."""
        if self.data_dir is None:
            return []
        patterns = (f"{RELEASED}*{ending}" for ending in (".parquet", ".jsonl", ".jsonl.gz"))
        return find_parts(Path(self.data_dir), *patterns)

    def settings(self) -> dict[str, object]:
        """Subsets, and the pinned revision if the hub is the source."""
        return {"hub": HUB.pin(self.data_dir), "subsets": self.subsets}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the subsets in use; one whose subset is none is an error."""
        local = self.data_dir is not None
        left_out = [subset for subset in ROWS if subset not in self.subsets]
        for row in read_parts(self.files(source), COLUMNS) if local else HUB.rows(RELEASED):
            if isinstance(row, RecordError) or row.fields.get("subset") not in left_out:
                yield row

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """A prompt, the right answer and the wrong one."""
        subset = choice_field("subset", row.get("subset"), ROWS)
        return PreferenceRecord(
            id=f"{subset}:{name_field('id', row.get('id'))}",
            prompt=_prompt(row),
            responses=(Response(row.text("chosen")), Response(row.text("rejected"))),
            comparisons=(Comparison(0, 1, domain=subset),),
        )

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores:
        """The four sections and, if all were run, their mean."""
        results = pair_results(records, rewards)
        accuracies = mean_by_name([result.part for result in results], [result.right for result in results])
        numbers = section_scores(accuracies, ROWS, SECTIONS)
        if len(numbers) == len(SECTIONS):
            numbers["average"] = sum(numbers.values()) / len(numbers)
        return OfficialScores(numbers, pair_items(results), RULE)


def _prompt(row: SourceRow) -> Prompt:
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else parse_messages("prompt", prompt)
