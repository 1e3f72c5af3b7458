"""RecordTable: what every table of a split's records can do, whatever they are read from."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..columns import Item
from ..joins import SideTable
from .rows import TokenRow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CHUNK", "RecordTable", "flat", "lengths"]

CHUNK = 1024
"""Records read at a time where all are."""


class RecordTable(torch.utils.data.Dataset[list[TokenRow]], ABC):
    """Records of one split, indexed by a list of rows at a time; picklable.

    Attributes:
        sizes: Of every record: responses, tokens of the prefix, sum and maximum of the responses' own tokens; int32, (n, 4).
    """

    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.sizes)

    @abstractmethod
    def without_tokens(self) -> Self:
        """The same records, whose tokens are not read."""

    @abstractmethod
    def column(self, name: str) -> "pa.ChunkedArray":
        """One column of every record, and nothing else read."""

    @abstractmethod
    def rows(self, chunk: int = CHUNK) -> Iterator[TokenRow]:
        """Every record in order."""

    @abstractmethod
    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""

    def comparison_counts(self) -> NDArray[np.int64]:
        """Comparisons of every record, (n,)."""
        return lengths(self.column("comparison_index"))

    def comparison_values(self, name: str) -> NDArray[np.float32]:
        """A column of one number a comparison, (comparisons,), record after record; NaN where a record lacks it."""
        counts, column = self.comparison_counts(), self.column(name)
        values = np.full(int(counts.sum()), np.nan, dtype=np.float32)
        values[np.repeat(lengths(column) > 0, counts)] = flat(column)
        return values

    def named_items(
        self, item: Item, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Key of the row of the data that holds each record, response or comparison, and its place there; (items,) each.

        A record that was merged from several rows has the key of the first.

        Args:
            item: Of what.
            start: First record that is asked for.
            stop: Where the records end that are; after the last one if None.
        """

        def column(name: str) -> "pa.ChunkedArray":
            return self.column(name).slice(start, None if stop is None else stop - start)

        keys = column("record_key").to_numpy()
        if item == "record":
            return keys, np.zeros(len(keys), dtype=np.int64)
        index = column(f"{item}_index")
        counts = lengths(index)
        named, places = np.repeat(keys, counts), _whole(index)
        rows = column("merged_id")
        merged = np.repeat(lengths(rows) > 0, counts)
        if merged.any():
            first = np.cumsum(lengths(rows)) - lengths(rows)
            row = np.repeat(first, counts)[merged] + _whole(column(f"{item}_origin"))
            named[merged] = _whole(column("merged_key"))[row]
            places[merged] = _whole(column(f"{item}_place"))
        return named, places

    def without_votes(
        self,
        name: str,
        categories: int,
        *,
        own_prior: bool,
        known: Collection[str] = (),
        joined: SideTable | None = None,
    ) -> tuple[str, int] | None:
        """First item that nobody voted on, as id of its row of the data and place in it; None if there is none.

        Args:
            name: ``votes`` or ``comparison_votes``.
            categories: Numbers per item.
            own_prior: Whether a prior that the record brings stands for votes.
            known: Ids of rows whose items need no votes.
            joined: Side table of priors, which stand for votes likewise.
        """
        of_responses = name == "votes"
        items = lengths(self.column("response_index" if of_responses else "comparison_index"))
        sums = _item_sums(self.column(name), items, categories)
        if of_responses and own_prior:
            sums = sums + _item_sums(self.column("prior"), items, categories)
            if joined is not None:
                sums = sums + (joined.find(*self.named_items("response")) >= 0)
        lacking, ends = np.flatnonzero(sums == 0), np.cumsum(items)
        numbers, first = np.unique(np.searchsorted(ends, lacking, side="right"), return_index=True)
        groups = np.split(lacking, first[1:])
        plain = self.without_tokens()
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK].tolist()
            for number, row, group in zip(some, plain[some], groups[start:], strict=False):
                names, _, places = row.items_of("response" if of_responses else "comparison")
                for item in (group - (ends[number] - items[number])).tolist():
                    if names[item] not in known:
                        return names[item], int(places[item])
        return None


def lengths(column: "pa.ChunkedArray") -> NDArray[np.int64]:
    """Length of every list."""
    parts = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def flat(column: "pa.ChunkedArray") -> NDArray[np.float64]:
    """The numbers of every list, one after the other."""
    return np.concatenate([*(chunk.flatten().to_numpy() for chunk in column.chunks), np.empty(0)])


def _whole(column: "pa.ChunkedArray") -> NDArray[np.int64]:
    """The whole numbers of every list, one after the other."""
    parts = [chunk.flatten().to_numpy().astype(np.int64) for chunk in column.chunks]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def _item_sums(column: "pa.ChunkedArray", items: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Sum of each item's numbers in a column of lists; 0 for the items of rows that lack them."""
    sums = np.zeros(int(items.sum()))
    sums[np.repeat(lengths(column) == items * width, items)] = flat(column).reshape(-1, width).sum(1)
    return sums
