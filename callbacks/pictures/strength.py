"""The picture of a StrengthReport: histogram of strengths, agreement by decile, spread of the members, risk by coverage."""

from collections.abc import Sequence
from math import floor, log10
from statistics import median
from typing import TYPE_CHECKING

from pluralign.metrics import Estimate, StrengthGroup, StrengthSummary

from .style import BLUE, GREY, ORANGE, bare_axes, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_strengths"]

GREEN = "#009E73"
CURVES = {
    "std": ("std of the members", BLUE, "-"),
    "std_to_strength": ("std / |strength|", ORANGE, "-."),
    "weakness": ("smallness of |strength|", GREEN, (0, (5, 1.5))),
}
"""Scores of uncertainty: name, colour, and a kind of line besides."""
MOST_LETTERS = 28
MOST_LETTERS_OF_NAMES = 60
"""Of the strengths of groups, side by side at an axis."""
FEW = 20
"""Comparisons below which no share of errors is drawn."""


def draw_strengths(summary: StrengthSummary, *, title: str = "", judge: str | None = None) -> "Figure":
    """Draw what is known of strengths.

    Four panels: the histogram with the line of 0; agreement by group of strength (with the judge, and among annotators where
    they differ; where neither is known, of the ensemble with the label by the size of the strength); mean std of the members
    by group; and the share of errors among the most certain comparisons, beside the best possible and a random order.

    Args:
        summary: What to draw.
        title: Headline.
        judge: Name of the judge, where there is one.

    Returns:
        The picture, not yet written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.4), layout="constrained")
    if title:
        figure.suptitle(plain(title), fontsize="medium", fontweight="bold")
    (histogram, agreement), (spread, risk) = figure.subplots(2, 2)
    _draw_histogram(histogram, summary)
    _draw_agreement(agreement, summary, shortened(judge or "the judge", MOST_LETTERS))
    _draw_spread(spread, summary)
    _draw_risk(risk, summary)
    for axes in (histogram, agreement, spread, risk):
        bare_axes(axes)
        axes.xaxis.label.set_size("small")
        axes.yaxis.label.set_size("small")
        axes.title.set_fontsize("small")
        axes.title.set_fontweight("bold")
    return figure


def _draw_histogram(axes: "Axes", summary: StrengthSummary) -> None:
    bins = summary.histogram
    lefts = [bins.left + bins.width * i for i in range(len(bins.counts))]
    # A left border is a multiple of the width only as far as its digits go.
    colors = [ORANGE if left + bins.width / 2 < 0 else BLUE for left in lefts]
    axes.bar(lefts, bins.counts, width=0.94 * bins.width, align="edge", color=colors, alpha=0.8)
    axes.set_ylim(0, 1.18 * max(*bins.counts, 1))
    axes.axvline(0, ymax=0.9, color="black", lw=1)  # below the words
    negative = summary.share_negative
    for place, side, text, color in (
        (0.02, "left", f"against the label: {negative.value:.1%}", ORANGE),
        (0.98, "right", f"with it: {1 - negative.value:.1%}", BLUE),
    ):
        axes.text(
            place,
            0.98,
            text,
            transform=axes.transAxes,
            ha=side,
            va="top",
            color=color,
            fontsize="small",
            fontweight="bold",
        )
    far = [
        f"{number:,} {where}" for number, where in ((bins.below, "below"), (bins.above, "above")) if number
    ]
    axes.set_xlabel(
        "strength: mean reward gap of the members (nats)" + (f"; not shown: {', '.join(far)}" if far else "")
    )
    axes.set_ylabel(f"comparisons per bin of {bins.width:g} nats")
    axes.set_title("strengths of the labels")


def _draw_agreement(axes: "Axes", summary: StrengthSummary, judge: str) -> None:
    groups = summary.deciles
    lines: list[tuple[str, list[Estimate | None], str, str]] = []
    if any(group.label_agreement is not None for group in groups):
        lines.append((f"label agrees with {judge}", [group.label_agreement for group in groups], BLUE, "o"))
    if any(group.label_share is not None for group in groups):
        lines.append(("annotators on the label's side", [group.label_share for group in groups], ORANGE, "D"))
    if lines:
        axes.set_title("agreement about the labels, by strength")
        axes.set_xlabel(f"mean strength of each of {len(groups)} equal groups (nats)")
        _mark_zero(axes, groups)
    else:
        groups = summary.size_groups
        lines.append(("ensemble agrees with the label", [group.accuracy for group in groups], BLUE, "o"))
        axes.set_title("agreement with the labels, by the size of the strength")
        axes.set_xlabel(f"mean |strength| of each of {len(groups)} equal groups (nats)")
    shift = 0.09 if len(lines) > 1 else 0.0
    lows = [0.5]
    for number, (name, estimates, color, marker) in enumerate(lines):
        _with_interval(axes, estimates, color, marker, name, shift=shift * (2 * number - 1))
        lows += [one.low for one in estimates if one is not None]
    axes.axhline(0.5, color=GREY, ls="--", lw=1)
    low = min(lows) - 0.04
    axes.set_ylim(low - 0.09 * len(lines) * (1.04 - low), 1.04)  # with room for the legend
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1 + 1e-9])
    axes.set_ylabel("share")
    _name_groups(axes, groups)
    axes.legend(loc="lower right", fontsize="small", frameon=False)


def _draw_spread(axes: "Axes", summary: StrengthSummary) -> None:
    groups = summary.std_groups
    axes.set_title("spread of the members, by strength")
    axes.set_xlabel(f"mean strength of each of {len(groups)} equal groups (nats)")
    axes.set_ylabel("mean std of the members (nats)")
    estimates = [group.std for group in groups]
    _with_interval(axes, estimates, BLUE, "o", "")
    _mark_zero(axes, groups)
    _name_groups(axes, groups)
    highs = [one.high for one in estimates if one is not None]
    axes.set_ylim(0, 1.12 * max(highs, default=1.0) or 1.0)


def _draw_risk(axes: "Axes", summary: StrengthSummary) -> None:
    axes.set_title("does uncertainty predict errors?")
    axes.set_xlabel("coverage: share of comparisons, the most certain first")
    axes.set_ylabel(f"share of errors among them (against the {'judge' if summary.has_judge else 'label'})")
    found = {name: one for name, one in summary.errors.items() if name in CURVES}
    if not found:
        axes.text(
            0.5, 0.5, "no reference decides a comparison", transform=axes.transAxes, ha="center", color=GREY
        )
        return
    highest = 0.0
    for name, one in found.items():
        title, color, style = CURVES[name]
        auroc = "" if one.auroc is None else f", AUROC {one.auroc.value:.2f}"
        label = f"{title}: area {one.area.value:.3f}{auroc}"
        # The share among very few says nothing, and would be a spike.
        least = min(FEW / one.number, 0.1)
        start = next(place for place, coverage in enumerate(one.coverage) if coverage >= least)
        coverage, risk = one.coverage[start:], one.risk[start:]
        axes.plot(coverage, risk, color=color, ls=style, lw=1.6, label=label)
        highest = max(highest, *risk)
    whole = next(iter(found.values()))
    error = whole.error
    axes.axhline(error, color=GREY, ls="--", lw=1, label=f"random order: area {error:.3f}")
    places = [i / 200 for i in range(1, 201)]
    axes.plot(
        places, [max(0.0, 1 - (1 - error) / place) for place in places], color="black", ls=":", lw=1.2,
        label=f"best possible: area {whole.area.value - whole.excess.value:.3f}",
    )  # fmt: skip
    top = 1.6 * highest or 1.0  # with room for the legend
    axes.set_ylim(-0.02 * top, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= min(1.0, top) + 1e-9])
    axes.set_xlim(-0.01, 1.01)
    axes.legend(loc="upper left", fontsize="x-small", frameon=False)


def _mark_zero(axes: "Axes", groups: Sequence[StrengthGroup]) -> None:
    """A line where strength goes through 0, between the groups' places."""
    below = [group for group in groups if group.high <= 0]
    number = float(len(below))
    crossing = groups[len(below)] if len(below) < len(groups) else None
    if crossing is not None and crossing.low < 0:
        number += -crossing.low / (crossing.high - crossing.low)
    if 0 < number < len(groups):
        axes.axvline(number + 0.5, color="black", lw=1)
        axes.annotate(
            "strength 0", (number + 0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
            textcoords="offset points", va="top", fontsize="x-small",
        )  # fmt: skip


def _name_groups(axes: "Axes", groups: Sequence[StrengthGroup]) -> None:
    """The mean strength of every group, of every second or third one where there are many."""
    centers = [group.center for group in groups]
    size = median(abs(center) for center in centers)
    digits = min(4, max(0, 1 - floor(log10(size)))) if size > 0 else 2
    # Without a minus before zero, and with the sign that axes have.
    names = [f"{round(center, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}") for center in centers]
    step = -(-len(groups) * max(map(len, names)) // MOST_LETTERS_OF_NAMES)
    axes.set_xticks(range(1, len(groups) + 1, step), names[::step])
    axes.set_xlim(0.4, len(groups) + 0.6)


def _with_interval(
    axes: "Axes",
    estimates: Sequence[Estimate | None],
    color: str,
    marker: str,
    name: str,
    *,
    shift: float = 0.0,
) -> None:
    known = [(place + shift, one) for place, one in enumerate(estimates, 1) if one is not None]
    # A percentile interval need not hold the estimate itself.
    reach = [
        [max(0.0, one.value - one.low) for _, one in known],
        [max(0.0, one.high - one.value) for _, one in known],
    ]
    axes.errorbar(
        [place for place, _ in known],
        [one.value for _, one in known],
        yerr=reach,
        color=color,
        marker=marker,
        ms=4.5,
        lw=1.2,
        capsize=2.5,
        label=name or None,
    )
