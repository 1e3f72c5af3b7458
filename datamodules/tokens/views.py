"""ComparisonView: records of a split with some of their comparisons; what has none left is not read."""

import copy
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from .rows import TokenRow, take_row_comparisons
from .table import RecordTable, lengths

__all__ = ["ComparisonView"]


class ComparisonView(torch.utils.data.Dataset[list[TokenRow]]):
    """Records of a split with some of their comparisons; records of which none is left are not read.

    Attributes:
        table: All the records.
        mask: Which of their comparisons stay, (comparisons,) bool, record after record.
        keeps_unjudged: Whether records without any comparison in the table stay.
        sizes: As those of :class:`RecordTable`, of the records that are read.
        places: Which of the split's records those are, ascending, (n,).
        num_kept: Judgements that stay.
        num_judgements: Judgements of the split.
    """

    def __init__(self, table: RecordTable, mask: NDArray[np.bool_], *, keeps_unjudged: bool) -> None:
        """Find the records.

        Args:
            table: All the records.
            mask: Which of their comparisons stay, (comparisons,), record after record.
            keeps_unjudged: Whether records without any comparison in the table stay.
        """
        self.table, self.mask, self.keeps_unjudged = table, mask, keeps_unjudged
        counts = lengths(table.column("comparison_index"))
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        before = np.concatenate([[0], np.cumsum(mask)])
        kept = before[self._ends] - before[self._starts]
        self.num_kept, self.num_judgements = int(before[-1]), len(mask)
        self._whole = kept == counts
        self.places = np.flatnonzero((kept > 0) | ((counts == 0) & keeps_unjudged))
        self._kept: NDArray[np.int64] = kept[self.places]
        self.sizes: NDArray[np.int32] = np.asarray(table.sizes)[self.places]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.places)

    def comparison_counts(self) -> NDArray[np.int64]:
        """Judgements of every record that stay, (n,)."""
        return self._kept

    def without_tokens(self) -> Self:
        """The same records, whose tokens are not read."""
        other = copy.copy(self)
        other.table = self.table.without_tokens()
        return other

    def rows(self) -> Iterator[TokenRow]:
        """Every record in order."""
        kept = np.zeros(len(self.table), dtype=bool)
        kept[self.places] = True
        for place, (row, keep) in enumerate(zip(self.table.rows(), kept.tolist(), strict=True)):
            if keep:
                yield self._filtered(row, place)

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        places = self.places[rows].tolist()
        return [self._filtered(row, place) for row, place in zip(self.table[places], places, strict=True)]

    def _filtered(self, row: TokenRow, place: int) -> TokenRow:
        if self._whole[place]:
            return row
        return take_row_comparisons(row, self.mask[self._starts[place] : self._ends[place]])
