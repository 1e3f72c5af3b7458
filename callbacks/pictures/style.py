"""What pictures share: colours, axes, text, and the ways to a file and to a logger."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pluralign.datamodules.whole_files import written_whole

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "PALE",
    "SERIES",
    "PictureFormat",
    "bare_axes",
    "log_picture",
    "plain",
    "save_picture",
    "shortened",
]

PictureFormat = Literal["png", "pdf", "svg"]
"""Formats of pictures: points for screens, curves and letters for print and pages."""

DOTS_PER_INCH = 120
UNDATED: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Equal pictures are equal files."""

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


def save_picture(figure: "Figure", path: Path, formats: Iterable[str]) -> None:
    """Write a picture in every format, replacing files that are there.

    Args:
        figure: What to write.
        path: Where to, without an ending.
        formats: ``png``, ``pdf``, ``svg``: the endings.
    """
    from matplotlib import rc_context

    # Letters stay letters, as publishers ask.
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "pluralign"}):
        for ending in formats:
            with written_whole(path.with_name(f"{path.name}.{ending}")) as stream:
                figure.savefig(stream, format=ending, dpi=DOTS_PER_INCH, metadata=UNDATED[ending])


@runtime_checkable
class TakesFigures(Protocol):
    """What a logger writes with, where it takes figures, as that of TensorBoard does."""

    def add_figure(self, tag: str, figure: "Figure", global_step: int | None = None) -> None:
        """Keep a figure."""


@runtime_checkable
class Writes(Protocol):
    """A logger that writes with something of its own."""

    @property
    def experiment(self) -> object:
        """What it writes with."""


@runtime_checkable
class TakesImages(Protocol):
    """A logger that takes images, as that of Weights & Biases does."""

    def log_image(self, key: str, images: list[object], step: int | None = None) -> None:
        """Keep images, (height, width, 4) of bytes."""


def log_picture(loggers: "Iterable[Logger]", name: str, figure: "Figure", step: int) -> None:
    """Give a picture to every logger that takes pictures; for others the file in the run's folder is all.

    Args:
        loggers: Where to.
        name: What the logger calls it.
        figure: The picture.
        step: Optimiser steps.
    """
    for logger in loggers:
        if isinstance(logger, TakesImages):
            logger.log_image(name, [_dots(figure)], step=step)
        elif isinstance(logger, Writes) and isinstance(writer := logger.experiment, TakesFigures):
            writer.add_figure(name, figure, global_step=step)


def _dots(figure: "Figure") -> object:
    import torch

    buffer = BytesIO()
    figure.savefig(buffer, format="rgba", dpi=DOTS_PER_INCH)
    width, height = (int(DOTS_PER_INCH * inches) for inches in figure.get_size_inches())
    dots = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return dots.view(height, width, 4).numpy()
