"""A stratified random sample of treated comparisons, with texts and votes, for a person to read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.treatments import (
    NO_RULE,
    CoverReport,
    Decisions,
    joined_values,
    treated_comparisons,
)

__all__ = ["TIED", "UNKNOWN", "SampledComparison", "Stratum", "drawn", "sampled_comparisons", "strata"]

TIED, UNKNOWN = -2, -3
"""In place of a rule's number: the label prefers neither side, or the strength is not known."""


class Stratum(NamedTuple):
    """Comparisons that are treated alike."""

    number: int
    """Of the rule, or one of ``NO_RULE``, ``TIED`` and ``UNKNOWN``."""
    cover: CoverReport
    places: NDArray[np.int64]
    """Which of the split's comparisons they are, ascending."""


class SampledComparison(NamedTuple):
    """A comparison, before and after its treatment; strength and margin are of its first side over the second."""

    stratum: int
    record: str
    place: int
    prompt: str
    first: str
    second: str
    share: float
    strength: float
    """NaN where it is not known."""
    votes: tuple[float, ...]
    """Difference by each member that voted; empty without votes."""
    std: float
    """Of the votes; NaN without any."""
    flipped: bool
    dropped: bool
    treated_share: float
    """Of the side that is first after the treatment."""
    margin: float
    """Which the loss requires of the side that is first after the treatment."""


def strata(decisions: Decisions, share: NDArray[np.float32]) -> list[Stratum]:
    """Comparisons by what is done to them, in the order of the rules; then those to which nothing is done, by reason.

    Args:
        decisions: Of every comparison of the split.
        share: Of each, (n,).
    """
    number = decisions.rule.astype(np.int64)
    tied = share == 0.5
    number[np.isnan(decisions.strength)] = UNKNOWN
    number[tied] = TIED
    report = decisions.report
    covers = {**dict(enumerate(report.rules)), NO_RULE: report.uncovered}
    for other, reason in {TIED: "tied", UNKNOWN: "without a strength"}.items():
        count = int((number == other).sum())
        nan = float("nan")
        covers[other] = CoverReport(reason, "keep", count, count / max(1, len(share)), nan, nan, nan)
    return [Stratum(each, cover, np.flatnonzero(number == each)) for each, cover in covers.items()]


def drawn(groups: Sequence[Stratum], number: int, seed: int) -> NDArray[np.int64]:
    """At most so many of each stratum, at random, (m,) places; those of one stratum stand together.

    Args:
        groups: The strata.
        number: Of each.
        seed: Other values draw others.
    """
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(group.places)[:number] for group in groups])


def sampled_comparisons(
    data: PreferenceDataModule, decisions: Decisions, groups: Sequence[Stratum], places: NDArray[np.int64]
) -> list[SampledComparison]:
    """Comparisons of the training split with their texts, votes and treatment.

    Args:
        data: Set up to fit.
        decisions: Of every comparison of the training split.
        groups: The strata.
        places: Which comparisons, (m,).
    """
    table = data.table("train")
    counts = table.comparison_counts()
    ends = np.cumsum(counts)
    numbers = np.searchsorted(ends, places, side="right")
    items = (places - (ends - counts)[numbers]).tolist()
    rows = table.without_tokens()[numbers.tolist()]
    sides: list[tuple[str, int]] = []
    for row, item in zip(rows, items, strict=True):
        sides += [(row.id, int(row.response_index[side])) for side in row.comparisons[item]]
    texts = data.texts("train", sides)
    votes, std = _votes(data, decisions, places)
    after = _treated(data, decisions, places)
    stratum = np.empty(len(places), dtype=np.int64)
    for group in groups:
        stratum[np.isin(places, group.places)] = group.number
    drops = ~decisions.kept
    sample = []
    for i, (row, item, place) in enumerate(zip(rows, items, places.tolist(), strict=True)):
        names, _, origin = row.items_of("comparison")
        sample.append(
            SampledComparison(
                stratum=int(stratum[i]),
                record=names[item],
                place=int(origin[item]),
                prompt=texts[2 * i][0],
                first=texts[2 * i][1],
                second=texts[2 * i + 1][1],
                share=float(row.preference[item]),
                strength=float(decisions.strength[place]),
                votes=votes[i],
                std=float(std[i]),
                flipped=bool(after["comparisons"][i, 0] % 2),
                dropped=bool(drops[place]),
                treated_share=float(after["preference"][i]),
                margin=float(after["margin"][i]),
            )
        )
    return sample


def _votes(
    data: PreferenceDataModule, decisions: Decisions, places: NDArray[np.int64]
) -> tuple[list[tuple[float, ...]], NDArray[np.float32]]:
    """Of each comparison what the members that voted say, and their standard deviation."""
    if decisions.config.votes is None:
        return [()] * len(places), np.full(len(places), np.nan, dtype=np.float32)
    table = data.vote_table(decisions.config.votes)
    keys, items = data.table("train").named_items("comparison")
    entries = table.find(keys[places], items[places])
    said = np.where((entries >= 0)[:, None], table.differences[entries], np.nan)
    return [tuple(row[~np.isnan(row)].tolist()) for row in said], np.where(
        entries >= 0, table.std[entries], np.nan
    )


def _treated(data: PreferenceDataModule, decisions: Decisions, places: NDArray[np.int64]) -> PreferenceBatch:
    """The comparisons after their treatment; the sides of the i-th are called 2i and 2i + 1."""
    table, count = data.table("train"), len(places)
    own = joined_values(table, "margin", data.joins)[places]
    batch = PreferenceBatch(
        comparisons=torch.arange(2 * count).reshape(count, 2),
        preference=torch.from_numpy(table.comparison_values("preference")[places]),
        margin=torch.from_numpy(np.nan_to_num(own)),
    )
    return treated_comparisons(batch, decisions.rule[places], decisions.strength[places], decisions.config)
