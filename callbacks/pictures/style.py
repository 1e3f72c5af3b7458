"""What pictures share: colours, axes and text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "GREY", "ORANGE", "PALE", "SERIES", "bare_axes", "plain", "shortened"]

BLUE, ORANGE, GREY, PALE = "#0072B2", "#D55E00", "#8C8C8C", "#BDBDBD"

SERIES = (
    "#E69F00",
    BLUE,
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    ORANGE,
    "#F0E442",
    "#332288",
    "#882255",
    "#999933",
)
"""Okabe and Ito's colours without black, told apart with any kind of colour vision, then three of Tol's."""


def bare_axes(axes: "Axes") -> None:
    """A pale grid behind, small numbers, and no frame above and on the right."""
    axes.grid(alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize="x-small")
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str) -> str:
    """Text as it is: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """Text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3].rstrip()}..."
