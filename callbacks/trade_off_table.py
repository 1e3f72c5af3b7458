"""The table of customised against general accuracy."""

from collections.abc import Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from pluralign.metrics import TradeOff

from .base import Finding

__all__ = ["CUSTOMIZED", "GENERAL", "trade_off_table"]

CUSTOMIZED, GENERAL = "customized_accuracy", "general_accuracy"


def trade_off_table(finding: Finding[TradeOff], earlier: Mapping[str, float] | None) -> Table:
    """Every measure with its interval, beside an earlier one and beside the baselines on the same comparisons.

    Args:
        finding: What to show.
        earlier: Entry of an earlier validation; None for none.

    Returns:
        A table that fits into 80 columns.
    """
    measures = finding.whole.measures
    shown = Table(
        title=f"{finding.title}: {measures[CUSTOMIZED].number:,} customised, {measures[GENERAL].number:,} general comparisons",
        caption="intervals: 95 %, bootstrap over records; longer wins, random head: on the same comparisons",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    steps = [entry["step"] for entry in (earlier, finding.entry) if entry]
    for column in (
        *(f"step\n{step:,.0f}" for step in steps),
        "interval",
        "longer\nwins",
        "random\nhead",
        "pairs",
    ):
        shown.add_column(column, justify="right", no_wrap=True)
    for key, measure in measures.items():
        if not measure.indent and shown.row_count:
            shown.add_section()
        before = [f"{earlier[key]:.3f}" if key in earlier else "-"] if earlier else []
        baselines = (measure.longer_wins, measure.random_head)
        shown.add_row(
            escape(f"{'  ' if measure.indent else ''}{measure.title}"),
            *before,
            f"{measure.estimate.value:.3f}",
            f"{measure.estimate.low:.3f} to {measure.estimate.high:.3f}",
            *("" if one is None else f"{one.value:.3f}" for one in baselines),
            f"{measure.number:,}",
        )
    return shown
