"""The picture of what customising costs: customised against general accuracy, by step, of one or more runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pluralign.metrics import Estimate

from .style import BLUE, GREY, SERIES, bare_axes, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TradeOffCurve", "trade_off_figure"]

CUSTOMIZED, GENERAL = "customized_accuracy", "general_accuracy"
COLORS = (BLUE, *(color for color in SERIES if color not in (BLUE, "#F0E442")))
"""Without the yellow, too pale for a line on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("--", ":")
SPAN = 1.0
"""Baselines farther out than this many times the runs' own range are told in the legend alone."""
LEAST_SPAN = 0.02
MOST_LETTERS = 28
"""Of a run's name in the legend, whose two columns fit under the picture."""


@dataclass(frozen=True)
class TradeOffCurve:
    """The way of a run between customised and general accuracy.

    Attributes:
        name: What it is called; empty for the only one.
        steps: Optimiser steps of each point, ascending.
        general: General accuracy at each, in [0, 1].
        customized: Customised accuracy at each, in [0, 1].
        general_end: That of the last point, with its interval.
        customized_end: Likewise.
        started: Whether the first point is the model before training.
    """

    name: str
    steps: tuple[int, ...]
    general: tuple[float, ...]
    customized: tuple[float, ...]
    general_end: Estimate
    customized_end: Estimate
    started: bool = False

    @classmethod
    def of_report(cls, name: str, report: Mapping[str, Any]) -> "TradeOffCurve":
        """The curve of a report, as :class:`pluralign.callbacks.GeneralPreference` writes it.

        Args:
            name: What to call it.
            report: Content of the JSON file.

        Raises:
            KeyError: If a part is missing.
        """
        history, measures = report["history"], report["measures"]
        general, customized = (
            Estimate(*(float(measures[key][end]) for end in Estimate._fields))
            for key in (GENERAL, CUSTOMIZED)
        )
        return cls(
            name,
            steps=tuple(int(entry["step"]) for entry in history),
            general=tuple(float(entry[GENERAL]) for entry in history),
            customized=tuple(float(entry[CUSTOMIZED]) for entry in history),
            general_end=general,
            customized_end=customized,
            started=bool(report["started"]) and history[0]["step"] == 0,
        )


def trade_off_figure(
    curves: Sequence[TradeOffCurve],
    *,
    title: str = "",
    baselines: Mapping[str, tuple[float, float]] | None = None,
    general_label: str = "general accuracy",
) -> "Figure":
    """Draw customised against general accuracy: a curve over the steps of each run, which ends in a cross of intervals.

    Args:
        curves: One or more runs; the first one is in front.
        title: Headline.
        baselines: General and customised accuracy of what takes no training, by name: lines.
        general_label: What the horizontal axis shows.

    Returns:
        The picture, not yet written.

    Raises:
        ValueError: If there are no curves.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("curves must be one or more, got none")
    baselines = baselines or {}
    rows = -(-(len(curves) + len(baselines) + any(curve.started for curve in curves)) // 2)
    figure = Figure(figsize=(7.4, 5.2 + 0.2 * rows), layout="constrained")
    if title:
        figure.suptitle(plain(title), fontsize="medium", fontweight="bold")
    axes = figure.subplots()
    for number, curve in reversed(list(enumerate(curves))):
        _draw_curve(axes, curve, number)
    _limits(axes, curves, baselines)
    for (general, customized), style in zip(baselines.values(), STYLES * len(baselines), strict=False):
        axes.axvline(general, color=GREY, ls=style, lw=1, zorder=0)
        axes.axhline(customized, color=GREY, ls=style, lw=1, zorder=0)
    axes.set_xlabel(plain(general_label))
    axes.set_ylabel("customised accuracy")
    bare_axes(axes)
    _legend(figure, curves, baselines)
    return figure


def _draw_curve(axes: "Axes", curve: TradeOffCurve, number: int) -> None:
    color, marker = _look(number)
    front = 3 if number == 0 else 2
    axes.plot(
        curve.general, curve.customized, color=color, lw=1.4, marker=marker, ms=3.5, alpha=0.8, zorder=front
    )
    general, customized = curve.general_end, curve.customized_end
    # A percentile interval need not hold the estimate itself.
    reach = [
        [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]] for one in (general, customized)
    ]
    axes.errorbar(
        general.value,
        customized.value,
        xerr=reach[0],
        yerr=reach[1],
        color=color,
        marker=marker,
        ms=8,
        lw=1.2,
        capsize=2.5,
        mec="white",
        zorder=front + 2,
    )
    if curve.started:
        axes.plot(
            curve.general[0],
            curve.customized[0],
            marker="o",
            ms=9,
            mfc="white",
            mec=color,
            mew=1.8,
            zorder=front + 1,
        )


def _look(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def _limits(
    axes: "Axes", curves: Sequence[TradeOffCurve], baselines: Mapping[str, tuple[float, float]]
) -> None:
    """All of the curves and intervals, and those baselines that are not far away."""
    for set_limits, place, ways, ends in (
        (axes.set_xlim, 0, [curve.general for curve in curves], [curve.general_end for curve in curves]),
        (
            axes.set_ylim,
            1,
            [curve.customized for curve in curves],
            [curve.customized_end for curve in curves],
        ),
    ):
        values = [*(value for way in ways for value in way), *(value for end in ends for value in end)]
        low, high = min(values), max(values)
        span = max(high - low, LEAST_SPAN)
        near = [
            one[place] for one in baselines.values() if low - SPAN * span <= one[place] <= high + SPAN * span
        ]
        low, high = min([low, *near]), max([high, *near])
        edge = 0.06 * max(high - low, LEAST_SPAN)
        set_limits(low - edge, high + edge)


def _legend(
    figure: "Figure", curves: Sequence[TradeOffCurve], baselines: Mapping[str, tuple[float, float]]
) -> None:
    from matplotlib.lines import Line2D

    marks = []
    for number, curve in enumerate(curves):
        color, marker = _look(number)
        steps = f"{'to ' if len(curve.steps) > 1 else ''}step {max(curve.steps):,}"
        name = f"{shortened(curve.name, MOST_LETTERS)}, {steps}" if curve.name else steps
        marks.append(Line2D([], [], color=color, marker=marker, ms=6, lw=1.4, label=plain(name)))
    if any(curve.started for curve in curves):
        marks.append(
            Line2D([], [], color=GREY, marker="o", ms=7, mfc="white", mew=1.8, ls="none", label="start")
        )
    for (name, (general, customized)), style in zip(baselines.items(), STYLES * len(baselines), strict=False):
        label = f"{name}: {general:.3f} general, {customized:.3f} customised"
        marks.append(Line2D([], [], color=GREY, ls=style, lw=1, label=plain(label)))
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
