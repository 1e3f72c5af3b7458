"""Strengths of a split's comparisons: those that the data have or a side table brings, or those of a vote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..joins import SideTable
from ..tokens import RecordTable

__all__ = ["Strengths", "VotedStrengths", "given_strengths", "joined_values", "voted_strengths"]

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
        ValueError: If no vote is on any of the comparisons.
    """
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
