"""The picture of a RecoveryReport: learned rewards against true ones, and the way there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .style import BLUE, ORANGE, bare_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_recovery"]


def draw_recovery(score: Tensor, reward: Tensor, history: Sequence[dict[str, float]]) -> "Figure":
    """Draw every response, and accuracy and correlation by step.

    Args:
        score: True rewards less their prompts' means, (R,).
        reward: Learned ones, (R,).
        history: Values of every validation, the last one of these responses.

    Returns:
        The picture, not yet written.
    """
    from matplotlib.figure import Figure

    last = history[-1]
    figure = Figure(figsize=(9, 4), layout="constrained")
    points, curve = figure.subplots(1, 2)
    points.scatter(score, reward, s=6, color=BLUE, alpha=0.4, linewidths=0)
    points.set_xlabel("true mean utility, minus its prompt's mean")
    points.set_ylabel("learned reward, minus its prompt's mean")
    points.set_title(f"responses (correlation {last['model correlation']:.2f})")
    steps = [entry["step"] for entry in history]
    for name, color, marker in (("accuracy", BLUE, "o"), ("correlation", ORANGE, "D")):
        values = [entry[f"model {name}"] for entry in history]
        curve.plot(steps, values, marker=marker, ms=3.5, color=color, label=name)
        curve.axhline(last[f"truth {name}"], color=color, ls=":", label=f"{name} of the truth")
    curve.set_xlabel("optimiser steps")
    curve.set_ylabel("accuracy (share), correlation")
    curve.set_title("on the way")
    curve.legend(loc="lower right", fontsize="small")
    for axes in (points, curve):
        bare_axes(axes)
    return figure
