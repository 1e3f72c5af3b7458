"""Small pictures as SVG whose colours are those of the page's style, so that they are light and dark as it is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .page import page_text

__all__ = ["SERIES", "Axes", "series_class", "ticks"]

SERIES = 8
"""Colours that the style has for models or runs; they come again after the last, with other marks."""
MARKS = ("circle", "square", "diamond")


def series_class(number: int) -> str:
    """Class of what belongs to one of several things."""
    return f"s{number % SERIES}"


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Round numbers within a range.

    Args:
        low: Its lower end.
        high: Its upper end, above it.
        number: About how many.
    """
    rough = (high - low) / max(1, number)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 + round(place * step, 12) for place in range(first, last + 1)]


@dataclass(frozen=True)
class Axes:
    """Ranges of two axes and where they stand in a picture.

    Attributes:
        x_range: Values at the left and right.
        y_range: Values below and above.
        width: Of the picture.
        height: Of the picture.
        left: Room for what stands at the vertical axis.
        bottom: Room for what stands at the horizontal one.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: float = 340
    height: float = 210
    left: float = 44
    bottom: float = 34
    top: float = 8
    right: float = 12

    def x(self, value: float) -> float:
        """Place of a value of the horizontal axis."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        """Place of a value of the vertical axis."""
        low, high = self.y_range
        inner = self.height - self.bottom - self.top
        return round(self.height - self.bottom - (value - low) / (high - low) * inner, 2)

    def frame(self, x_title: str, y_title: str, *, x_form: str = ",g", y_form: str = ".3g") -> str:
        """Lines of the grid with their numbers, and the titles of the axes."""
        right, below = self.width - self.right, self.height - self.bottom
        parts = []
        for value in ticks(*self.y_range):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" y1="{y}" x2="{right}" y2="{y}"/>')
            parts.append(
                f'<text class="tick end" x="{self.left - 5}" y="{y + 3.5}">{_signed(value, y_form)}</text>'
            )
        for value in ticks(*self.x_range):
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x}" y1="{self.top}" x2="{x}" y2="{below}"/>')
            parts.append(f'<text class="tick mid" x="{x}" y="{below + 14}">{_signed(value, x_form)}</text>')
        if x_title:
            middle = (self.left + right) / 2
            parts.append(
                f'<text class="tick mid" x="{middle}" y="{self.height - 4}">{page_text(x_title)}</text>'
            )
        if y_title:
            parts.append(f'<text class="tick" x="2" y="{self.top + 2}">{page_text(y_title)}</text>')
        return "".join(parts)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> str:
        """A line through points."""
        places = " ".join(f"{self.x(x):g},{self.y(y):g}" for x, y in points)
        return f'<polyline class="curve {kind}" points="{places}"/>'

    def mark(self, x: float, y: float, number: int, title: str = "") -> str:
        """A point of one of several things, in its colour and, where colours come again, in another shape."""
        shape = MARKS[number // SERIES % len(MARKS)]
        told = f"<title>{page_text(title)}</title>" if title else ""
        kind = f'class="mark {series_class(number)}"'
        a, b = self.x(x), self.y(y)
        if shape == "circle":
            return f'<circle {kind} cx="{a}" cy="{b}" r="4">{told}</circle>'
        turn = f' transform="rotate(45 {a} {b})"' if shape == "diamond" else ""
        return f'<rect {kind} x="{a - 3.5:g}" y="{b - 3.5:g}" width="7" height="7"{turn}>{told}</rect>'

    def picture(self, content: Sequence[str], label: str) -> str:
        """The picture of some parts.

        Args:
            content: In the order in which they are drawn.
            label: What it shows, for those who do not see it.
        """
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{page_text(label)}">'
            f"{''.join(content)}</svg>"
        )


def _signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return f"{value:{form}}".replace("-", "&minus;")
