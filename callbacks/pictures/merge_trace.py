"""The picture of a MergeTrace: texts in the colours of leading experts, and the weights token by token below each."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from pluralign.metrics import ExpertWeights, TracedResponse

from .style import GREY, SERIES, bare_axes, plain, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_merge_trace", "expert_color"]

WIDTH, EDGE = 10.0, 0.55
"""Inches of the picture, and of its edges."""
LETTERS = 118
"""Of a line of text."""
MOST_LINES = 10
LINE, HEAD, CHART, GAP, TOP = 0.19, 0.42, 0.95, 0.5, 0.35
"""Inches of a line of text, of a response's heading, of its weights, of the space below, of the headline."""
FONT = "DejaVu Sans Mono"
"""It comes with matplotlib."""
WIDE = 0.602
"""Width of its letters, as a share of their size."""
LEGEND_LETTERS, LEGEND_WIDTH = 28, 110
"""Of a name in the legend, and of its lines with six for each patch and the space around."""
MISSING = "\u25a1"


class Placed(NamedTuple):
    """A part of a token in a line."""

    line: int
    column: int
    text: str
    token: int


def expert_color(number: int) -> str:
    """An expert's colour; with more experts than colours they begin anew."""
    return SERIES[number % len(SERIES)]


def draw_merge_trace(found: ExpertWeights, title: str) -> "Figure":
    """Draw responses below each other.

    Args:
        found: What to draw.
        title: Headline.

    Returns:
        The picture, not yet written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    texts = [list(_placed(one.pieces)) for one in found.traced]
    lines = [min(MOST_LINES, 1 + max((part.line for part in text), default=0)) for text in texts]
    names = [_shown(shortened(name, LEGEND_LETTERS)) for name in found.experts]
    columns = max(1, min(len(names), int(LEGEND_WIDTH / (6 + max(map(len, names), default=0)))))
    legend = 0.24 * -(-len(names) // columns) + 0.2
    hidden = [
        len({part.token for part in text if part.line >= number})
        for text, number in zip(texts, lines, strict=True)
    ]
    writing = [LINE * (number + bool(more)) for number, more in zip(lines, hidden, strict=True)]
    heights = [HEAD + size + CHART + GAP for size in writing]
    height = TOP + legend + sum(heights) + 0.1
    figure = Figure(figsize=(WIDTH, height))
    figure.text(
        EDGE / WIDTH, 1 - 0.12 / height, plain(_shown(title)), fontsize="medium", fontweight="bold", va="top"
    )
    marks = [Patch(color=expert_color(i), label=plain(name)) for i, name in enumerate(names)]
    figure.legend(
        handles=marks,
        loc="upper left",
        bbox_to_anchor=(EDGE / WIDTH, 1 - TOP / height),
        borderaxespad=0,
        ncols=columns,
        fontsize="small",
        frameon=False,
    )
    top = height - TOP - legend
    for i, one in enumerate(found.traced):
        axes = _axes(figure, top - HEAD, writing[i])
        _draw_text(axes, one, texts[i], lines[i], lines[i] + bool(hidden[i]))
        if hidden[i]:
            more = f"and {hidden[i]:,} more tokens"
            axes.text(0, lines[i] + 0.5, more, fontsize="x-small", color=GREY, va="center_baseline")
        heading = _shown(", ".join(one.preference)) or "no preference"
        figure.text(
            EDGE / WIDTH, (top - 0.02) / height, plain(heading), fontsize="small", fontweight="bold", va="top"
        )
        prompt = _shown(shortened(one.prompt, LETTERS))
        figure.text(
            EDGE / WIDTH, (top - 0.2) / height, plain(prompt), fontsize="x-small", color=GREY, va="top"
        )
        _draw_weights(_axes(figure, top - HEAD - writing[i] - 0.08, CHART - 0.08), one)
        top -= heights[i]
    return figure


def _axes(figure: "Figure", top: float, high: float) -> "Axes":
    """Axes from edge to edge, by inches from below."""
    width, height = figure.get_size_inches()
    return figure.add_axes((EDGE / width, (top - high) / height, 1 - 2 * EDGE / width, high / height))


def _placed(pieces: Sequence[str]) -> Iterator[Placed]:
    """Tokens in lines; one that does not fit begins a line, and one that is longer than a line goes on in the next."""
    line, column = 0, 0
    for token, piece in enumerate(pieces):
        *before, last = _shown(piece).replace("\t", "    ").split("\n")
        for end, part in [*((True, f"{text}\u21b5") for text in before), (False, last)]:
            if column and column + len(part.rstrip()) > LETTERS:
                line, column, part = line + 1, 0, part.lstrip(" ")
            while part:
                room = LETTERS - column
                if room <= 0:
                    line, column, room = line + 1, 0, LETTERS
                yield Placed(line, column, part[:room], token)
                column += len(part[:room])
                part = part[room:]
            if end:
                line, column = line + 1, 0


def _draw_text(axes: "Axes", one: TracedResponse, text: Sequence[Placed], number: int, lines: int) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, LETTERS)
    axes.set_ylim(lines, 0)
    size = 72 * (WIDTH - 2 * EDGE) / LETTERS / WIDE
    leading = one.leading
    for part in text:
        if part.line >= number:
            break
        lead = leading[part.token]
        color, weight = expert_color(lead), one.weights[part.token][lead]
        # On white, without transparency, so that two that touch do not add up.
        pale = tuple(1 - 0.55 * weight * (1 - shade) for shade in to_rgb(color))
        place = (part.column, part.line + 0.08)
        axes.add_patch(Rectangle(place, len(part.text), 0.8, color=pale, lw=0))
        axes.add_patch(Rectangle((part.column, part.line + 0.88), len(part.text), 0.07, color=color, lw=0))
        axes.text(
            part.column,
            part.line + 0.5,
            plain(part.text),
            family=FONT,
            fontsize=size,
            va="center_baseline",
        )


def _draw_weights(axes: "Axes", one: TracedResponse) -> None:
    length = len(one.pieces)
    below = [0.0] * length
    for i in reversed(
        range(len(one.weights[0]) if length else 0)
    ):  # the first expert's stands above, as on the page
        top = [base + row[i] for base, row in zip(below, one.weights, strict=True)]
        axes.stairs(top, range(length + 1), baseline=below, fill=True, color=expert_color(i), lw=0)
        below = top
    axes.set_xlim(0, max(1, length))
    axes.set_ylim(0, 1)
    axes.locator_params(axis="x", integer=True)
    axes.set_yticks([0, 1], ["0", "1"])
    axes.set_ylabel("weight", fontsize="x-small")
    bare_axes(axes)
    axes.grid(visible=False)
    axes.set_xlabel("token", fontsize="x-small", labelpad=1)


@cache
def _letters() -> frozenset[int]:
    """Characters that the font has."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FONT)).get_charmap())


def _shown(text: str) -> str:
    """Text in which what the font lacks is a box."""
    return "".join(letter if letter in "\n\t" or ord(letter) in _letters() else MISSING for letter in text)
