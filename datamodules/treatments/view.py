"""TreatedView: records of the training split, each with what is done to its comparisons; what is dropped is not read."""

from ..tokens import ComparisonView, RecordTable, TokenRow, TreatedComparisons
from .decisions import Decisions

__all__ = ["TreatedView"]


class TreatedView(ComparisonView):
    """Records whose comparisons say which rule covers them; records of which all are dropped are not read.

    What the rules do is done to a whole batch at once (:func:`treated_batch`), after side tables are joined.

    Attributes:
        decisions: Of every comparison of the split.
    """

    def __init__(self, rows: RecordTable | ComparisonView, decisions: Decisions) -> None:
        """Find what is left.

        Args:
            rows: The split's records, or a view of them.
            decisions: Of every comparison of the split.
        """
        self.decisions = decisions
        if isinstance(rows, ComparisonView):
            mask = rows.mask & decisions.kept
            super().__init__(rows.table, mask, keeps_unjudged=rows.keeps_unjudged)
        else:
            super().__init__(rows, decisions.kept, keeps_unjudged=True)

    def _filtered(self, row: TokenRow, place: int) -> TokenRow:
        start, end = self._starts[place], self._ends[place]
        treated = TreatedComparisons(self.decisions.rule[start:end], self.decisions.strength[start:end])
        return super()._filtered(row._replace(treated=treated), place)
