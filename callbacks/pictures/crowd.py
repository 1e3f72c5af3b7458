"""The picture of a CrowdTable: reliability of every label, mean distributions, expected rewards."""

import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pluralign.metrics import NUM_BINS, CrowdTable, Estimate

from .style import BLUE, GREY, ORANGE, bare_axes, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_crowd_table"]

OBSERVED, PREDICTED = BLUE, ORANGE
"""The markers differ besides."""
MOST_POINTS = 3000
FEW_PROMPTS = 5
"""Prompts below which a bootstrap interval says nothing, so that none is drawn."""
WIDTH, HEIGHT, BELOW = 2.5, 3.0, 3.5
"""Inches of a label's panel, and of the row of summaries."""


def draw_crowd_table(table: CrowdTable, title: str) -> "Figure":
    """Draw a panel per label, and below them the mean distributions and the expected rewards.

    What another panel's mirror shows is not drawn: of two labels the second (its probability is what the first leaves);
    where every comparison counts in both orders, labels from the second side's end of the scale, whose curves are those
    of the first side's. Expected rewards then stand once for each comparison, in the order whose prediction is larger.

    Args:
        table: What to draw.
        title: Headline.

    Returns:
        The picture, not yet written.
    """
    from matplotlib.figure import Figure

    shown = _shown_labels(table)
    number = len(shown)
    columns = number if number <= 5 else (number + 1) // 2
    rows = -(-number // columns)
    width = WIDTH * max(columns, 3.4 if number > 1 else 2.6)
    figure = Figure(figsize=(width, HEIGHT * rows + BELOW + 0.5), layout="constrained")
    figure.suptitle(plain(title), fontsize="medium", fontweight="bold")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(HEIGHT * rows, BELOW))[:, 0]
    ratios = [ratio for _ in range(rows) for ratio in (3.2, 1)]
    axes = above.subplots(2 * rows, columns, squeeze=False, height_ratios=ratios)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        pair = axes[2 * row, column], axes[2 * row + 1, column]
        if i < number:
            _draw_label(*pair, table, shown[i], leftmost=column == 0)
        else:
            for one in pair:
                one.set_axis_off()
    _legend(above, 4 if number > 1 else 2)
    if table.both_orders and len(table.labels) == 2:  # both means are a half: nothing to see
        _draw_rewards(below.subplots(), table)
    else:
        distribution, rewards = below.subplots(1, 2, width_ratios=(1.9, 1))
        _draw_distribution(distribution, table)
        _draw_rewards(rewards, table)
    return figure


def _shown_labels(table: CrowdTable) -> list[int]:
    """Labels with a panel of their own: those that are no other one's mirror."""
    number = len(table.labels)
    if table.both_orders:
        return list(range((number + 1) // 2))
    return [0] if number == 2 else list(range(number))


def _mirror(table: CrowdTable, k: int) -> str | None:
    """The label whose panel would mirror this one's; None if there is none."""
    number = len(table.labels)
    if table.both_orders:
        return table.labels[number - 1 - k] if number - 1 - k != k else None
    return table.labels[1] if number == 2 else None


def _note(table: CrowdTable, k: int) -> str:
    """What stands in a label's panel."""
    lines = [
        f"calibration error {table.calibration_error[k]:.3f}",
        f"sampling noise {table.calibration_error_floor[k]:.3f}",
    ]
    mirror = _mirror(table, k)
    if mirror is not None:
        what = "the same, sides swapped" if table.both_orders else "one minus this"
        lines.append(f"{shortened(mirror, 22)}: {what}")
    return plain("\n".join(lines))


def _draw_label(curve: "Axes", histogram: "Axes", table: CrowdTable, k: int, *, leftmost: bool) -> None:
    bins = table.bins[k]
    several = [one for one in bins if one.num_prompts >= FEW_PROMPTS]
    places, observed = [one.predicted for one in several], [one.observed for one in several]
    curve.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1)
    curve.plot(places, [one.value for one in observed], color=OBSERVED, lw=1, alpha=0.5)
    _with_interval(curve, places, observed, OBSERVED, "o")
    few = [one for one in bins if one.num_prompts < FEW_PROMPTS]
    curve.plot(
        [one.predicted for one in few],
        [one.observed.value for one in few],
        color=OBSERVED,
        marker="o",
        ms=4.5,
        mfc="white",
        ls="none",
    )
    curve.set_title(_label(table.labels[k], 26, 2), fontsize="small", fontweight="bold")
    curve.text(0.04, 0.96, _note(table, k), transform=curve.transAxes, va="top", fontsize="x-small")
    histogram.bar(
        [one.left for one in bins],
        [one.share for one in bins],
        width=0.94 / NUM_BINS,
        align="edge",
        color=PREDICTED,
        alpha=0.75,
    )
    histogram.set_xlabel("predicted probability", fontsize="small")
    histogram.set_ylim(0, 1.05 * max(one.share for label in table.bins for one in label))
    curve.set_ylim(-0.02, 1.02)
    for axes in (curve, histogram):
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        bare_axes(axes)
    curve.tick_params(labelbottom=False)
    curve.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    histogram.locator_params(axis="y", nbins=2)
    if leftmost:
        curve.set_ylabel("observed share of votes", fontsize="small")
        histogram.set_ylabel("share\nof items", fontsize="small")
    else:
        curve.tick_params(labelleft=False)
        histogram.tick_params(labelleft=False)


def _draw_distribution(axes: "Axes", table: CrowdTable) -> None:
    # In both orders a label and its mirror have one mean.
    shown = _shown_labels(table) if table.both_orders else list(range(len(table.labels)))
    observed, predicted = ([means[k] for k in shown] for means in (table.observed, table.predicted))
    for shift, means, color, marker, name in (
        (-0.12, observed, OBSERVED, "o", "observed"),
        (0.12, predicted, PREDICTED, "D", "predicted"),
    ):
        at = [place + shift for place in range(len(shown))]
        axes.bar(at, [one.value for one in means], width=0.22, color=color, alpha=0.3)
        _with_interval(axes, at, means, color, marker, name)
    axes.set_ylim(0, 1.2 * max(one.high for one in (*observed, *predicted)))
    axes.set_xlim(-0.6, len(shown) - 0.4)
    names = []
    for k in shown:
        mirror = _mirror(table, k) if table.both_orders else None
        names.append(
            _label(table.labels[k] + (f", as {mirror}" if mirror else ""), 12 if not mirror else 22, 3)
        )
    axes.set_xticks(range(len(shown)), names, fontsize="x-small" if len(shown) > 6 else "small")
    axes.set_ylabel("mean share of votes", fontsize="small")
    axes.set_title("mean distribution", fontsize="small", fontweight="bold")
    axes.legend(loc="upper right", ncols=2, fontsize="small", frameon=False)
    bare_axes(axes)
    axes.grid(visible=False, axis="x")


def _draw_rewards(axes: "Axes", table: CrowdTable) -> None:
    rewards = _one_order(table)
    total = len(rewards)
    if total > MOST_POINTS:
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:MOST_POINTS]
        rewards = rewards[chosen]
    predicted, observed = rewards.T.tolist()
    low, high = min(table.label_rewards), max(table.label_rewards)
    edge = 0.04 * (high - low) or 1.0
    left = min(predicted) if table.both_orders else low
    axes.plot([left, high], [left, high], color=GREY, ls="--", lw=1)
    axes.scatter(predicted, observed, s=9, color=OBSERVED, alpha=0.25 if total > 300 else 0.6, linewidths=0)
    axes.set_xlim(left - edge, high + edge)
    axes.set_ylim(low - edge, high + edge)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted (unit: label rewards)", fontsize="small")
    axes.set_ylabel("observed (unit: label rewards)", fontsize="small")
    some = f" ({len(rewards):,} of {total:,})" if total > MOST_POINTS else ""
    whose = "\nof the preferred side" if table.both_orders else ""
    axes.set_title(f"expected reward{whose}{some}", fontsize="small", fontweight="bold")
    bare_axes(axes)


def _one_order(table: CrowdTable) -> Tensor:
    """Predicted and observed rewards (M, 2), of every comparison once: in the order whose prediction is larger."""
    if not table.both_orders:
        return table.rewards
    first, second = table.rewards.chunk(2)
    return torch.where(first[:, :1] >= second[:, :1], first, second)


def _with_interval(
    axes: "Axes",
    places: list[float],
    estimates: list[Estimate],
    color: str,
    marker: str,
    name: str | None = None,
) -> None:
    # A percentile interval need not hold the estimate itself.
    lengths = [
        [max(0.0, one.value - one.low) for one in estimates],
        [max(0.0, one.high - one.value) for one in estimates],
    ]
    axes.errorbar(
        places,
        [one.value for one in estimates],
        yerr=lengths,
        color=color,
        ls="none",
        marker=marker,
        ms=4.5,
        lw=1.4,
        capsize=2.5,
        label=name,
    )


def _legend(above: "SubFigure", columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        Line2D([], [], color=OBSERVED, marker="o", ms=4.5, lw=1.4, label="observed, with 95 % interval"),
        Line2D(
            [],
            [],
            color=OBSERVED,
            marker="o",
            ms=4.5,
            mfc="white",
            ls="none",
            label=f"fewer than {FEW_PROMPTS} prompts",
        ),
        Line2D([], [], color=GREY, ls="--", lw=1, label="calibrated"),
        Patch(color=PREDICTED, alpha=0.75, label="how many items have it"),
    ]
    above.legend(handles=marks, loc="outside upper center", ncols=columns, fontsize="small", frameon=False)


def _label(name: str, width: int, lines: int) -> str:
    return plain("\n".join(textwrap.wrap(name, width, max_lines=lines, placeholder="...")))
