"""The batches of an epoch as three arrays: packed at once, whatever their number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["BatchPlan", "longest_first", "pack"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan(Sequence[Integers]):
    """Batches, each a stretch of a list of records.

    Attributes:
        records: Numbers of records, those of a batch one after the other, int64, (n,).
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


def longest_first(lengths: NDArray[np.int64], records: Integers, mega_size: int) -> Integers:
    """Records sorted from long to short within each stretch of ``mega_size``; those of equal length keep their order."""
    if not len(records):
        return records
    shorter: NDArray[np.integer[Any]] = lengths.max() - lengths
    if shorter.max() < 2**16:  # sorted by their two bytes, in time that grows with the records alone
        shorter = shorter.astype(np.uint16)
    keys = shorter[records]
    whole = len(records) // mega_size * mega_size
    places = np.empty(len(records), dtype=np.int64)
    table = np.argsort(keys[:whole].reshape(-1, mega_size), axis=1, kind="stable")
    table += np.arange(0, whole, mega_size)[:, None]
    places[:whole] = table.reshape(-1)
    places[whole:] = whole + np.argsort(keys[whole:], kind="stable")
    return records[places]


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

    Where a batch that begins with a record would end is reckoned for all records at once; then the batches follow from the
    first, by one step each.

    Args:
        records: Numbers of records, (n,).
        lengths: Of every record's longest row in tokens, by its number.
        rows: Of every record, likewise; None for one each.
        max_tokens: Bound on rows x padded length of a batch; None for no bound.
        max_records: Bound on its records; None for no bound.
        mega_size: Records of a stretch beyond whose end no batch goes.
    """
    number = len(records)
    places = np.arange(number)
    ends = np.minimum(number, places - places % mega_size + mega_size)
    if max_records is not None:
        np.minimum(ends, places + max_records, out=ends)
    if max_tokens is not None:
        fitting = max_tokens // np.maximum(1, lengths[records])
        if rows is None:
            fitting += places
        else:
            before = np.concatenate([[0], np.cumsum(rows[records])])
            fitting = np.searchsorted(before, before[:-1] + fitting, side="right") - 1
        np.minimum(ends, fitting, out=ends)
    np.maximum(ends, places + 1, out=ends)
    starts, step, start = [], memoryview(ends), 0  # pyright: ignore[reportArgumentType]
    while start < number:
        starts.append(start)
        start = step[start]
    begins = np.asarray(starts, dtype=np.int64)
    return BatchPlan(records, begins, ends[begins])
