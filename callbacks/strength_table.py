"""The tables of a StrengthReport."""

from rich.table import Table

from pluralign.metrics import Estimate, StrengthSummary

from .base import value_table

__all__ = ["decile_table", "strength_table"]


def strength_table(
    summary: StrengthSummary, title: str, *, first: dict[str, float] | None, last: dict[str, float]
) -> Table:
    """What is found of all comparisons, beside the first validation.

    Args:
        summary: What to show.
        title: How the headline begins.
        first: Entry of the first validation; None if there is no other.
        last: Entry of the shown one.
    """
    return value_table(
        f"{title}: {summary.num_comparisons:,} comparisons, {summary.num_members} members",
        "95 % intervals: bootstrap over records",
        [
            (row.title, row.key, row.value, "" if row.interval is None else _interval(row.interval))
            for row in summary.rows()
        ],
        first=first,
        last=last,
    )


def decile_table(summary: StrengthSummary) -> Table:
    """Groups by strength: from where to where, spread, and who agrees with the label, as far as it is known."""
    groups = summary.deciles
    table = Table(title=f"{len(groups)} groups by strength, against the label first")
    shown = [
        (name, heading)
        for name, heading in (
            ("std", "mean std"),
            ("label_share", "annotators for it"),
            ("label_agreement", "label agrees with the judge"),
        )
        if any(getattr(group, name) is not None for group in groups)
    ]
    for heading in ("", "strength (nats)", *(heading for _, heading in shown)):
        table.add_column(heading, justify="right")
    for number, group in enumerate(groups, 1):
        cells = []
        for name, _ in shown:
            estimate: Estimate | None = getattr(group, name)
            interval = f" ({_interval(estimate)})" if estimate and name == "label_agreement" else ""
            cells.append("-" if estimate is None else f"{estimate.value:.3f}{interval}")
        table.add_row(f"{number}", f"{group.low:.3g} to {group.high:.3g}", *cells)
    return table


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.3f} to {estimate.high:.3f}"
