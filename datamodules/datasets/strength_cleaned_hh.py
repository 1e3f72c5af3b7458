"""StrengthCleanedHHDataModule: HH-RLHF with what ten reward models think of every label (hh-rlhf-strength-cleaned).

* Source: https://huggingface.co/datasets/fnlp/hh-rlhf-strength-cleaned (Wang et al., *Secrets of RLHF in Large Language
  Models Part II: Reward Modeling*, 2024, https://arxiv.org/abs/2401.06080), over HH-RLHF (Bai et al., 2022).
* Licence: Apache-2.0.
* Revision: bca492d5b414ce1e67a499b30470e2376b8a7d7f, the newest that could be seen. Columns are those of its card and of the
  authors' reader (https://github.com/OpenLMLab/MOSS-RLHF at 4865d826fc67); the rows could not be read when this was
  written, nor whether the hub calls ``valid.json`` its ``validation`` split, as its rules say.
* Columns read: ``chosen``, ``rejected``; ``mean preference difference``, and with ``strength="standardised"``
  ``std preference difference``; with labels of the models ``chosen_score_list``, ``rejected_score_list`` (or the same with spaces:
  accounts of the release differ), with those of GPT-4 ``GPT4 label``.
* Split rule: the released ``valid`` (10%) is the test split here, being all that is held out; validation is carved out of
  ``train`` by a hash of the first turn. Both splits of HH-RLHF were mixed and divided anew, by pairs, so that nothing here
  can be tested on HH-RLHF's own test split, and the report of the test split counts prompts that are in training, too.

A side is a list of texts without speakers: all but the last are the conversation that both share, and the last is the answer.
Turns alternate, counted from the answer, so that the first may be the assistant's where a conversation was cut. One row is one
record with one comparison. Identical answers are dropped and counted when tokenised.

The sense of the strength: the mean over ten reward models of the score of ``chosen`` less that of ``rejected``. Above 0
they agree with the human label, below 0 they doubt it. Like everywhere, the comparison's strength is the winner's: with human
labels, which stay as they are, it is negative in doubt. No human label is a tie.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

from ..base import PreferenceDataModule
from ..checks import check_choices
from ..records import (
    Comparison,
    HubDataset,
    Judgement,
    PreferenceRecord,
    RecordError,
    SourceRow,
    alternating_messages,
    compared,
    crowd_judgement,
    find_file,
    list_field,
    number_field,
    read_table,
    signed_judgement,
    split_sides,
    whole_field,
)
from ..settings import LenientSettings, OnInvalid

__all__ = ["StrengthCleanedHHDataModule"]

HUB = HubDataset("fnlp/hh-rlhf-strength-cleaned", "bca492d5b414ce1e67a499b30470e2376b8a7d7f")
RELEASED = {"train": "train", "test": "validation"}
FILES = {"train": "train", "test": "valid"}
SIDES = ("chosen", "rejected")
MEAN, DEVIATION = "mean preference difference", "std preference difference"
SCORES = ("chosen_score_list", "rejected_score_list")
GPT4 = "GPT4 label"
UNLABELLED, CHOSEN = -1, 1


class StrengthCleanedHHDataModule(PreferenceDataModule):
    """Pairs of assistant dialogues with human labels, and how strongly ten reward models agree or doubt (HH-RLHF)."""

    name = "strength_cleaned_hh"
    sources = ("train", "test")

    def __init__(
        self,
        *,
        labels: Literal["human", "models"] = "human",
        test_labels: Literal["human", "models", "gpt4"] | None = None,
        strength: Literal["difference", "standardised"] = "difference",
        data_dir: str | None = None,
        on_invalid: OnInvalid = "skip",
        **shared: Unpack[LenientSettings],
    ) -> None:
        """Choose labels and strength; reads nothing.

        Args:
            labels: ``human``: chosen wins. ``models``: the ten reward models vote by their scores, and the comparison has their
                share and their votes (for the winner, tie, for the other).
            test_labels: Likewise for the test split, or ``gpt4``, whose labels it has: a pair that GPT-4 did not label is an
                error ``no judgement``. None for those of ``labels``.
            strength: ``difference``: the mean difference of scores. ``standardised``: in standard deviations of the models.
            data_dir: Folder with ``train.json`` and ``valid.json``, a JSON list each, or the same as ``.jsonl`` (also ``.gz``); None
                loads the pinned revision from the Hugging Face hub.
            on_invalid: ``error`` or ``skip``; HH-RLHF has a few blank answers, so ``skip`` by default.
            **shared: Settings that all datasets share, see :class:`PreferenceDataModule`.

        Raises:
            ValueError: If a setting is not one of its values.

        Example:
            >>> StrengthCleanedHHDataModule(labels="models", test_labels="gpt4").sources
            ('train', 'test')

        .. versionadded:: 0.1
        """
        super().__init__(on_invalid=on_invalid, **shared)
        check_choices(
            StrengthCleanedHHDataModule.__init__, labels=labels, test_labels=test_labels, strength=strength
        )
        self.labels, self.test_labels, self.strength = labels, test_labels or labels, strength
        self.data_dir = data_dir

    def files(self, source: str) -> list[Path]:
        """The source's file, if it is local."""
        if self.data_dir is None:
            return []
        return [
            find_file(Path(self.data_dir), *(f"{FILES[source]}.{ending}" for ending in ("json", "jsonl")))
        ]

    def settings(self) -> dict[str, object]:
        """Labels and strength, and the pinned revision if the hub is the source."""
        names = ("labels", "test_labels", "strength")
        return {"hub": HUB.pin(self.data_dir), **{name: getattr(self, name) for name in names}}

    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Rows of the source, each with an id and the kind of label that is read."""
        labels = self.test_labels if source == "test" else self.labels
        rows = HUB.rows(RELEASED[source]) if self.data_dir is None else read_table(self.files(source)[0])
        for row in rows:
            if isinstance(row, RecordError):
                yield row
            else:
                place = {"id": f"{FILES[source]}:{row.line}", "labels": labels}
                yield row._replace(fields={**row.fields, **place})

    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """The conversation that both sides share, two answers and a comparison."""
        sides = [alternating_messages(name, list_field(name, row.get(name))) for name in SIDES]
        prompt, responses = split_sides(SIDES, sides)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=prompt,
            responses=tuple(responses),
            comparisons=(_comparison(row, self._strength(row)),),
            group=sides[0][0].content,
        )

    def _strength(self, row: SourceRow) -> float:
        """Strength for ``chosen``."""
        difference = number_field(MEAN, row.get(MEAN))
        if self.strength == "difference":
            return difference
        deviation = number_field(DEVIATION, row.get(DEVIATION))
        if deviation <= 0:
            raise RecordError(DEVIATION, deviation, "a number above 0, to divide by", reason="out of range")
        return difference / deviation


def _comparison(row: SourceRow, strength: float) -> Comparison:
    labels = row.text("labels")
    if labels == "human":
        return Comparison(0, 1, strength=strength)
    if labels == "models":
        comparison = crowd_judgement(0, 1, _votes(row))
        return replace(comparison, strength=strength if comparison.chosen == 0 else -strength)
    label = whole_field(GPT4, row.get(GPT4), UNLABELLED, CHOSEN)
    if label == UNLABELLED:
        allowed = "1 (chosen) or 0 (rejected): GPT-4 did not label this pair"
        raise RecordError(GPT4, label, allowed, reason="no judgement")
    return compared(0, 1, Judgement(float(label == CHOSEN), strength))


def _votes(row: SourceRow) -> list[Judgement]:
    """What each of the reward models says by its two scores."""
    names = [spaced if (spaced := name.replace("_", " ")) in row.fields else name for name in SCORES]
    chosen = list_field(names[0], row.get(names[0]))
    rejected = list_field(names[1], row.get(names[1]), len(chosen))
    gaps = (
        number_field(f"{names[0]}[{i}]", first) - number_field(f"{names[1]}[{i}]", second)
        for i, (first, second) in enumerate(zip(chosen, rejected, strict=True))
    )
    return [signed_judgement(names[0], gap, "first") for gap in gaps]
