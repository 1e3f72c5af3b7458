"""The batches of an epoch as three arrays: packed at once, whatever their number."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["BatchPlan", "Integers", "longest_first", "pack"]

Integers = NDArray[np.integer[Any]]
"""Numbers of records are int32 where there are fewer than 2^31 of them: of a billion, each byte is a gigabyte."""
BLOCK = 1 << 20
"""Records that are sorted and packed at a time, as far as their stretches allow: what bounds memory beside the plan itself."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan(Sequence[Integers]):
    """Batches, each a stretch of a list of records.

    Attributes:
        records: Numbers of records, those of a batch one after the other, (n,).
        starts: Where in ``records`` each batch begins, int64, (batches,).
        stops: Where it ends, int64, (batches,).
    """

    records: Integers
    starts: Integers
    stops: Integers

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Integers: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Integers | Self:
        """Records of a batch, or a plan of some of the batches."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.records[self.starts[index] : self.stops[index]]

    def __iter__(self) -> Iterator[Integers]:
        """Records of each batch."""
        for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
            yield self.records[start:stop]

    @property
    def sizes(self) -> Integers:
        """Records of each batch, (batches,)."""
        return self.stops - self.starts

    def take(self, places: Integers) -> Self:
        """Some of the batches, in this order; one may come twice."""
        return type(self)(self.records, self.starts[places], self.stops[places])

    def halved(self, places: Integers) -> Self:
        """The batches with some of them divided in two, the larger half in front.

        Args:
            places: Of the batches to be divided, each of two records at least and named once.
        """
        middles = (self.starts[places] + self.stops[places] + 1) // 2
        starts = np.insert(self.starts, places + 1, middles)
        stops = np.insert(self.stops, places, middles)
        return type(self)(self.records, starts, stops)


def longest_first(lengths: Integers, records: Integers, mega_size: int) -> Integers:
    """Records sorted from long to short within each stretch of ``mega_size``; those of equal length keep their order."""
    ordered = np.empty_like(records)
    if not len(records):
        return ordered
    longest = lengths.max()
    narrow = (
        longest - lengths.min() < 2**16
    )  # then sorted by two bytes, in time that grows with the records alone
    for start, stop in _blocks(len(records), mega_size):
        some = records[start:stop]
        keys: Integers = longest - lengths[some]
        if narrow:
            keys = keys.astype(np.uint16)
        whole = len(some) // mega_size * mega_size
        places = np.argsort(keys[:whole].reshape(-1, mega_size), axis=1, kind="stable")
        places += np.arange(0, whole, mega_size)[:, None]
        ordered[start : start + whole] = some[places.reshape(-1)]
        ordered[start + whole : stop] = some[whole:][np.argsort(keys[whole:], kind="stable")]
    return ordered


def _blocks(number: int, mega_size: int) -> Iterator[tuple[int, int]]:
    """Where blocks of whole stretches begin and end, the last one's but for what is there."""
    size = max(1, BLOCK // mega_size) * mega_size
    for start in range(0, number, size):
        yield start, min(number, start + size)


def pack(
    records: Integers,
    *,
    lengths: Integers,
    rows: Integers | None,
    max_tokens: int | None,
    max_records: int | None,
    mega_size: int,
) -> BatchPlan:
    """Greedy batches of records that are sorted from long to short: the first one sets the padded length.

    Where a batch that begins with a record would end is reckoned for all records of a block at once; then the batches follow from
    the first, by one step each.

    Args:
        records: Numbers of records, (n,).
        lengths: Of every record's longest row in tokens, by its number.
        rows: Of every record, likewise; None for one each.
        max_tokens: Bound on rows x padded length of a batch; None for no bound.
        max_records: Bound on its records; None for no bound.
        mega_size: Records of a stretch beyond whose end no batch goes.
    """
    begins, ends = [], []
    for start, stop in _blocks(len(records), mega_size):
        some = records[start:stop]
        reach = _reach(
            lengths[some], None if rows is None else rows[some], max_tokens, max_records, mega_size
        )
        starts, step, place = array("q"), reach.data, 0
        while place < len(some):
            starts.append(place)
            place = step[place]
        first = np.frombuffer(starts, dtype=np.int64)
        begins.append(first + start)
        ends.append(reach[first] + start)
    nothing = np.empty(0, dtype=np.int64)
    return BatchPlan(records, np.concatenate([*begins, nothing]), np.concatenate([*ends, nothing]))


def _reach(
    lengths: Integers,
    rows: Integers | None,
    max_tokens: int | None,
    max_records: int | None,
    mega_size: int,
) -> NDArray[np.int64]:
    """Where a batch would end that begins with a record, for every record of a block."""
    places = np.arange(len(lengths))
    ends: NDArray[np.int64] = np.minimum(len(lengths), places - places % mega_size + mega_size)
    if max_records is not None:
        np.minimum(ends, places + max_records, out=ends)
    if max_tokens is not None:
        fitting = max_tokens // np.maximum(1, lengths).astype(np.int64)
        if rows is None:
            fitting += places
        else:
            before = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
            fitting = np.searchsorted(before, before[:-1] + fitting, side="right") - 1
        np.minimum(ends, fitting, out=ends)
    np.maximum(ends, places + 1, out=ends)
    return ends
