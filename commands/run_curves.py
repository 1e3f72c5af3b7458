"""Curves as letters: a picture for a terminal of any width, in dots of Braille."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

from .run_folders import Curve

__all__ = ["curve_lines", "thinned"]

STYLES = ("cyan", "yellow", "magenta", "green", "red", "blue")
"""Colours of curves; they come again after the last."""
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""What the dots of a Braille sign add to its number, row by row."""
BLANK = 0x2800


def thinned(curve: Curve, number: int) -> Curve:
    """A curve of fewer points: means of points that stand beside each other.

    Args:
        curve: Steps and values, at least one.
        number: Most points that are left.
    """
    size = math.ceil(len(curve) / number)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def curve_lines(curves: Mapping[str, Curve], *, width: int, height: int = 8) -> list[Text]:
    """Lines of a picture of one number of one or more runs.

    Args:
        curves: Steps and values, by run; those without a finite value are not drawn.
        width: Columns of the terminal.
        height: Lines that the curves take.

    Returns:
        The picture, its axes, and with several runs a legend.
    """
    finite = {name: [(s, v) for s, v in curve if math.isfinite(v)] for name, curve in curves.items()}
    points = [point for curve in finite.values() for point in curve]
    if not points:
        return [Text("no finite value", style="dim")]
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = min(s for s, _ in points), max(s for s, _ in points)
    ticks = [f"{value:.4g}" for value in (high, (low + high) / 2, low)]
    margin = max(map(len, ticks))
    columns = max(8, width - margin - 2)
    cells = [[0] * columns for _ in range(height)]
    owners: list[list[int | None]] = [[None] * columns for _ in range(height)]
    for number, curve in enumerate(finite.values()):
        places = [
            (
                round((s - first) / max(1, last - first) * (2 * columns - 1)),
                round((1 - (v - low) / ((high - low) or 1.0)) * (4 * height - 1)),
            )
            for s, v in (thinned(curve, 2 * columns) if curve else [])
        ]
        for x, y in _joined(places):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            owners[y // 4][x // 2] = number
    shown = (
        {0: ticks[0], height // 2: ticks[1], height - 1: ticks[2]} if high > low else {height // 2: ticks[0]}
    )
    lines = [_line(cells[row], owners[row], shown.get(row, ""), margin) for row in range(height)]
    steps = f"step {first:,}"
    lines.append(Text(f"{'':{margin}} └{steps}{f'{last:,}':>{max(1, columns - len(steps))}}", style="dim"))
    if len(curves) > 1:
        lines += [
            Text(f"{'':{margin}}  ━ {name}{_end(finite[name])}", style=_style(i))
            for i, name in enumerate(curves)
        ]
    return lines


def _line(cells: Sequence[int], owners: Sequence[int | None], tick: str, margin: int) -> Text:
    line = Text(f"{tick:>{margin}} │", style="dim")
    for cell, owner in zip(cells, owners, strict=True):
        line.append(chr(BLANK + cell), style=None if owner is None else _style(owner))
    return line


def _end(curve: Curve) -> str:
    """The last value of a curve; colours alone do not say which is which."""
    return f", at last {curve[-1][1]:.4g}" if curve else ""


def _style(number: int) -> str:
    return STYLES[number % len(STYLES)]


def _joined(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Points with those between them."""
    dots = [*places[:1]]
    for (x0, y0), (x1, y1) in pairwise(places):
        number = max(abs(x1 - x0), abs(y1 - y0), 1)
        dots += [
            (round(x0 + (x1 - x0) * i / number), round(y0 + (y1 - y0) * i / number))
            for i in range(1, number + 1)
        ]
    return dots
