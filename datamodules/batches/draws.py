"""EpochDraws: which records an epoch has, where it takes only so much of some parts of the data."""

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draws", "EpochDraws", "PartDraw"]

Integers = NDArray[np.int64]


class Draws(Protocol):
    """Which records each epoch has; :class:`EpochDraws` says what is what."""

    fewest: int
    """Records that any epoch has at least."""

    @property
    def whole(self) -> bool:
        """Whether every epoch has all records."""
        ...

    def records(self, epoch: int) -> Integers:
        """Records of an epoch."""
        ...

    def growth(self, costs: NDArray[np.int64]) -> float:
        """How many times what the first epoch's records cost those of another one may cost at most; >= 1."""
        ...


class PartDraw(NamedTuple):
    """How much an epoch takes of a part of the data."""

    name: str
    """Of the part; with the seed it decides the order in which its records are taken."""
    units: Integers
    """What each of its records counts, (n,) >= 0: its comparisons, or 1."""
    amount: int
    """Units that an epoch takes, 1 to all of them."""


class _Walk:
    """A part's records in the order in which they are taken; an epoch has those that begin within its units.

    Records stand one after the other on a circle, each as long as it counts. Epoch e has those that begin in the e-th
    stretch of ``amount``: none twice, for a stretch goes round at most once; and each exactly once whenever all
    stretches together have gone round.
    """

    def __init__(self, part: PartDraw, first: int, seed: int) -> None:
        self.first, self.amount, self.total = first, part.amount, int(part.units.sum())
        self.whole = part.amount == self.total
        number = len(part.units)
        if self.whole:
            self.order: Integers = np.arange(number)
        else:
            random = np.random.default_rng([seed, zlib.crc32(part.name.encode())])
            self.order = random.permutation(number)
        counts = part.units[self.order]
        # Records at the end that count nothing begin where the circle closes: they go with the last that counts.
        self.begins: Integers = np.minimum(np.cumsum(counts) - counts, max(0, self.total - 1))

    def records(self, epoch: int) -> Integers:
        """Records of an epoch, by their places in all parts together."""
        if self.whole:
            return self.first + self.order
        start = epoch * self.amount % self.total
        stop = start + self.amount
        at = np.searchsorted(self.begins, [start, stop, stop - self.total])
        return self.first + np.concatenate([self.order[at[0] : at[1]], self.order[: at[2]]])

    def most(self, costs: NDArray[np.float64]) -> float:
        """Most that the records of any epoch cost together; what each costs is given by its place in all parts."""
        own = costs[self.first + self.order]
        if self.whole:
            return float(own.sum())
        twice = np.concatenate([[0.0], np.cumsum(np.concatenate([own, own]))])
        return float((twice[self._stops] - twice[: len(own)]).max())

    def fewest(self) -> int:
        """Fewest records of any epoch."""
        if self.whole:
            return len(self.order)
        after = self.begins + 1
        return int((self._ends(after) - np.searchsorted(self.begins, after)).min())

    @cached_property
    def _stops(self) -> Integers:
        return self._ends(self.begins)

    def _ends(self, starts: Integers) -> Integers:
        """Where, twice around the circle, the stretches end that begin at ``starts``."""
        return np.searchsorted(np.concatenate([self.begins, self.begins + self.total]), starts + self.amount)


class EpochDraws:
    """Which records each epoch has: of every part so much, by a seeded walk that comes to all of them.

    An epoch takes no record twice, and the epochs that follow one another go through a part's records evenly: each is
    taken once before any is taken again. Whole records are taken, so that where they count differently, an epoch may
    have less than a record more or less than its amount, and over many epochs has it on the average.

    Attributes:
        parts: How much is taken of each part.
        fewest: Records that any epoch has at least.
    """

    def __init__(self, parts: Sequence[PartDraw], *, seed: int = 0) -> None:
        """Lay out the walks.

        Args:
            parts: In the order of the records, which stand one part after the other.
            seed: Of the order; equal on all ranks.

        Raises:
            ValueError: If a part's amount is not from 1 to all it has.
        """
        self.parts = tuple(parts)
        for part in self.parts:
            total = int(part.units.sum())
            if not 1 <= part.amount <= total:
                raise ValueError(f"amount of {part.name} must be in [1, {total}], got {part.amount}")
        firsts = np.cumsum([0, *(len(part.units) for part in self.parts)]).tolist()
        self._walks = [_Walk(part, first, seed) for part, first in zip(self.parts, firsts, strict=False)]
        self.fewest = sum(walk.fewest() for walk in self._walks)

    @property
    def whole(self) -> bool:
        """Whether every epoch has all records."""
        return all(walk.whole for walk in self._walks)

    def records(self, epoch: int) -> Integers:
        """Records of an epoch, part after part."""
        return np.concatenate([walk.records(epoch) for walk in self._walks])

    def growth(self, costs: NDArray[np.int64]) -> float:
        """How many times what the first epoch's records cost those of another one may cost at most; >= 1.

        Args:
            costs: Of every record, (n,) > 0; ones for their number.
        """
        if self.whole:
            return 1.0
        first = max(1, int(costs[self.records(0)].sum()))
        return max(1.0, sum(walk.most(costs.astype(np.float64)) for walk in self._walks) / first)
