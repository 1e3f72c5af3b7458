"""Strengths of a split's comparisons: those that the data have or a side table brings, or those of a vote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..joins import SideTable
from ..tokens import RecordTable

__all__ = [
    "Strengths",
    "VotedStrengths",
    "check_names",
    "given_strengths",
    "joined_values",
    "named_comparisons",
    "voted_strengths",
]

Floats = NDArray[np.float32]


class VotedStrengths(Protocol):
    """What is asked of a table of votes."""

    @property
    def mean(self) -> Floats:
        """Of every entry, (n,): mean over members of the first side's reward less the second's; NaN if nobody voted."""
        ...

    @property
    def std(self) -> Floats:
        """Of every entry, (n,): standard deviation over members."""
        ...

    def find(self, record_key: ArrayLike, index: ArrayLike) -> NDArray[np.int64]:
        """Entries of comparisons, (m,); -1 where one has none."""
        ...


@dataclass(frozen=True, eq=False)
class Strengths:
    """Strength of every comparison of a split, record after record.

    Attributes:
        mean: How much higher the first side is scored than the second, (n,) float32; NaN where it is not known.
        std: Standard deviation over those who scored, (n,) float32; None where it is not known.
        source: Where they are from, for messages.
    """

    mean: Floats
    std: Floats | None
    source: str


def named_comparisons(table: RecordTable, places: Sequence[int]) -> list[str]:
    """What messages call comparisons: place and id of their rows of the data.

    Args:
        table: The split's records.
        places: Which comparisons of the split, from 0.
    """
    ends = np.cumsum(counts := table.comparison_counts())
    named = []
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        names, _, places_there = table.without_tokens()[[number]][0].items_of("comparison")
        item = place - int(ends[number] - counts[number])
        named.append(f"{int(places_there[item])} of record {names[item]!r}")
    return named


def check_names(title: str, table: RecordTable) -> None:
    """Refuse comparisons of one name: votes on one would count for the other, whatever that is.

    Sources of a mixture that are one kind of data name their records alike where these have the same ids.

    Args:
        title: Data and split, for messages.
        table: The split's records.

    Raises:
        ValueError: If two comparisons have one name; says which, and what to change.
    """
    keys, index = table.named_items("comparison")
    order = np.lexsort((index, keys))  # stable: of one name, in the order of the split
    keys, index = keys[order], index[order]
    again = np.flatnonzero((keys[1:] == keys[:-1]) & (index[1:] == index[:-1]))
    if len(again):
        one, other = named_comparisons(table, sorted(order[again[0] : again[0] + 2].tolist()))
        raise ValueError(
            f"{title}: {len(again):,} comparisons have the name of another (comparison {one} that of {other}), for their rows have "
            "one id and one kind of data, so that votes on one would count for the other: give the rows of one source other "
            "ids, or, in files of your own, a source"
        )


def joined_values(table: RecordTable, column: str, joins: Iterable[SideTable]) -> Floats:
    """A number of every comparison, those of a side table before those of the data, (comparisons,); NaN where it is not known.

    Args:
        table: The split's records.
        column: Stored name of the column.
        joins: Side tables.
    """
    values = torch.from_numpy(table.comparison_values(column))
    for side in joins:
        if side.column == column:
            values = side.join(values, *table.named_items("comparison"))
    return values.numpy()


def given_strengths(title: str, table: RecordTable, joins: Sequence[SideTable]) -> Strengths:
    """The strengths that the data have; those of a side table go before them.

    Args:
        title: Data and split, for messages.
        table: The split's records.
        joins: Side tables.

    Raises:
        ValueError: If there are none.
    """
    mean = joined_values(table, "strength", joins)
    source = next((side.path for side in joins if side.column == "strength"), "the data")
    if np.isnan(mean).all():
        raise ValueError(
            f"{title}: loader.treatments needs strengths, and the data have none: set loader.treatments.votes to the folder "
            "that `pluralign vote` wrote, or join a side table of them (loader.joins)"
        )
    return Strengths(mean, None, source)


def voted_strengths(title: str, table: RecordTable, votes: VotedStrengths, folder: str) -> Strengths:
    """Strengths of a vote.

    Args:
        title: Data and split, for messages.
        table: The split's records.
        votes: Of the split's comparisons.
        folder: Where they are from.

    Raises:
        ValueError: If no vote is on any of the comparisons, or two of them have one name.
    """
    check_names(title, table)
    entries = votes.find(*table.named_items("comparison"))
    has = entries >= 0
    mean, std = (np.full(len(entries), np.nan, dtype=np.float32) for _ in range(2))
    mean[has], std[has] = votes.mean[entries[has]], votes.std[entries[has]]
    if np.isnan(mean).all():
        raise ValueError(
            f"{title}: no vote in {folder} is on any of its comparisons: run `pluralign vote` on this split, or set "
            "loader.treatments.votes to the folder of its votes"
        )
    return Strengths(mean, std, folder)
