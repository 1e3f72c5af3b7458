"""The tables of ``pluralign compare``, as a terminal shows them."""

import math
from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from pluralign.metrics import Diversity, Estimate, WinRate

from .compare_report import Comparison, ComparisonReport

__all__ = ["comparison_tables"]


def comparison_tables(report: ComparisonReport) -> Iterator[Table]:
    """A table of the sources, and for each judge one of every two sources and, of more, one of all against all.

    Args:
        report: What was found.

    Yields:
        Tables that fit into 80 columns, unless names are long.
    """
    yield _sources(report)
    for name, comparison in report.judges.items():
        yield _pairs(name, comparison)
        if comparison.averages:
            yield _all_against_all(name, comparison)


def _table(title: str, caption: str | None, first: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=escape(title), caption=caption, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _sources(report: ComparisonReport) -> Table:
    every = report.sources.values()
    reasons: dict[str, str] = {}
    for source in every:
        reasons |= source.diversity.reasons
    lines = [
        f"lengths in {report.length_unit}, distinct n-grams in {report.unit}; unique, overlap: of an item's samples"
    ]
    lines += [f"{name.replace('_', '-')}: {reason}" for name, reason in reasons.items()]
    if any(source.missing for source in every):
        missing = ", ".join(
            f"{name} {source.missing:,}" for name, source in report.sources.items() if source.missing
        )
        lines.append(f"responses that others have are missing: {escape(missing)}")
    table = _table(
        "Responses", "\n".join(lines), "",
        ("number", "length,\nrange", "finished", "distinct\n1 and 2", "unique", "overlap"),
    )  # fmt: skip
    for name, source in report.sources.items():
        of = source.diversity
        table.add_row(
            escape(name),
            f"{of.responses:,}",
            f"{_value(of.mean_length, '.1f')}, {of.shortest:,.0f}-{of.longest:,.0f}",
            _value(source.finished, ".1%"),
            _both(of),
            _value(of.unique),
            _value(of.overlap),
        )
    return table


def _both(of: Diversity) -> str:
    return f"{_value(of.distinct_1)} {_value(of.distinct_2)}"


def _pairs(name: str, comparison: Comparison) -> Table:
    lines = ["p: two-sided, by the signs of prompts; intervals: 95 %, bootstrap over prompts"]
    for (one, other), rates in comparison.pairs.items():
        bias = rates.position_bias
        swayed = not math.isnan(bias.value) and (bias.value or rates.agreement < 1)
        if swayed:
            lines.append(
                f"{escape(one)} : {escape(other)}: what is shown first wins by {bias.value:+.3f} ({_interval(bias)}); "
                f"{rates.agreement:.1%} of verdicts are the same in both orders"
            )
        if rates.not_judged:
            lines.append(f"{escape(one)} : {escape(other)}: {rates.not_judged:,} items have no criterion")
    lines += [
        f"{escape(of)}: not judged, though {number:,} items ask for it"
        for of, number in comparison.not_asked.items()
    ]
    if comparison.always:
        lines.append(f"for every item: {escape(', '.join(comparison.always))}")
    table = _table(
        f"Judged by {name}", "\n".join(lines), "win rate of the first",
        ("rate", "interval", "won", "tied", "lost", "prompts", "p"),
    )  # fmt: skip
    for (one, other), rates in comparison.pairs.items():
        if table.row_count:
            table.add_section()
        table.add_row(escape(f"{one} : {other}"), *_cells(rates.overall))
        for criterion, rate in rates.by_criterion.items():
            table.add_row(escape(f"  {criterion}"), *_cells(rate))
    return table


def _cells(rate: WinRate) -> tuple[str, ...]:
    p = "-" if math.isnan(rate.p_value) else "<.001" if rate.p_value < 0.001 else f"{rate.p_value:.3f}"
    counts = (f"{number:,}" for number in (rate.wins, rate.ties, rate.losses, rate.prompts))
    return (_value(rate.rate.value), _interval(rate.rate), *counts, p)


def _all_against_all(name: str, comparison: Comparison) -> Table:
    names = list(comparison.averages)
    rates = {pair: one.overall.rate.value for pair, one in comparison.pairs.items()}
    rates |= {(other, one): 1 - rate for (one, other), rate in rates.items()}
    titles = tuple(escape(f"against\n{other}") for other in names)
    table = _table(f"All against all, by {name}", "best first", "win rate of", ("mean", "interval", *titles))
    best = sorted(names, key=lambda one: (-comparison.averages[one].value, one))
    for one in best:
        average = comparison.averages[one]
        cells = ["" if one == other else _value(rates[one, other]) for other in names]
        table.add_row(escape(one), _value(average.value), _interval(average), *cells)
    return table


def _value(value: float, form: str = ".3f") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _interval(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.low) else f"{estimate.low:.3f} to {estimate.high:.3f}"
