"""Pictures of a board: intervals beside each other, and what was predicted against what was observed."""

from collections.abc import Mapping, Sequence

from pluralign.inference.board import Measured, ReliabilityBin

from .page import page_text
from .svg import Axes, series_class, ticks

__all__ = ["forest", "reliability"]

ROW = 22
"""Height of a model's row."""
LETTER = 6.2
"""Width of a letter, about."""
LONGEST = 20
"""Letters of a name that are drawn; the table has it in full."""


def forest(
    values: Mapping[str, Measured], numbers: Mapping[str, int], title: str, *, form: str, zero: float
) -> str:
    """Values with their intervals, a row each, with a line at the value that says nothing.

    Args:
        values: By model.
        numbers: Places of the models among all, which give colours.
        title: What is measured.
        form: Format of the values.
        zero: Where the line stands: a half for shares that a coin has, 0 for correlations.

    Returns:
        The picture; empty where no model has a value.
    """
    known = {name: one for name, one in values.items() if one.value is not None}
    if not known:
        return ""
    ends = [end for one in known.values() for end in (one.value, one.low, one.high) if end is not None]
    low, high = min([*ends, zero]), max([*ends, zero])
    room = 0.04 * (high - low) or 0.05
    left = 14 + LETTER * min(LONGEST, max(map(len, known)))
    axes = Axes(
        (low - room, high + room), (0, 1), height=30 + ROW * len(known), left=left, bottom=24, right=46
    )
    below = axes.height - axes.bottom
    parts = []
    for value in ticks(*axes.x_range):
        x = axes.x(value)
        parts.append(f'<line class="grid" x1="{x}" y1="{axes.top}" x2="{x}" y2="{below}"/>')
        parts.append(f'<text class="tick mid" x="{x}" y="{below + 14}">{signed(value, _plain(form))}</text>')
    parts.append(f'<line class="zero" x1="{axes.x(zero)}" y1="{axes.top}" x2="{axes.x(zero)}" y2="{below}"/>')
    for row, (name, one) in enumerate(known.items()):
        parts += _row(axes, axes.top + ROW * (row + 0.5), name, one, numbers[name], form)
    told = "; ".join(f"{name} {one.value:{form}}" for name, one in known.items())
    return axes.picture(parts, f"{title}: {told}")


def _row(axes: Axes, y: float, name: str, one: Measured, number: int, form: str) -> list[str]:
    assert one.value is not None  # the caller has looked
    kind = series_class(number)
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    parts = [
        f'<text class="end" x="{axes.left - 8:g}" y="{y + 4:g}">{page_text(short)}<title>{page_text(name)}</title></text>'
    ]
    if one.low is not None and one.high is not None:
        parts.append(
            f'<line class="interval {kind}" x1="{axes.x(one.low)}" y1="{y}" x2="{axes.x(one.high)}" y2="{y}"/>'
        )
    parts.append(f'<circle class="mark {kind}" cx="{axes.x(one.value)}" cy="{y}" r="4.5"/>')
    parts.append(f'<text x="{axes.width - axes.right + 6:g}" y="{y + 4:g}">{signed(one.value, form)}</text>')
    return parts


def reliability(bins: Sequence[ReliabilityBin], number: int, title: str) -> str:
    """What a model predicted against what people said, each bin with its interval; on the diagonal it is right about itself.

    Args:
        bins: Comparisons of similar confidence, each looked at from the side that the model is for.
        number: Place of the model among all.
        title: What is shown.
    """
    known = [each for each in bins if each.observed.value is not None]
    ends = [end for each in known for end in (each.observed.value, each.observed.low) if end is not None]
    least = max(0.0, min([0.5, *ends]) - 0.03)
    axes = Axes((0.5, 1), (least, 1), height=230, left=40, right=22)
    kind = series_class(number)
    parts = [axes.frame("predicted", "", x_form=".0%", y_form=".0%")]
    parts.append(
        f'<line class="zero" x1="{axes.x(0.5)}" y1="{axes.y(0.5)}" x2="{axes.x(1)}" y2="{axes.y(1)}"/>'
    )
    for each in known:
        observed = each.observed
        assert observed.value is not None  # known has no others
        x = min(1.0, max(0.5, each.predicted))
        if observed.low is not None and observed.high is not None:
            a, b = axes.y(max(least, observed.low)), axes.y(min(1.0, observed.high))
            parts.append(
                f'<line class="interval {kind}" x1="{axes.x(x)}" y1="{a}" x2="{axes.x(x)}" y2="{b}"/>'
            )
        told = f"{each.number:,} comparisons: predicted {each.predicted:.1%}, observed {observed.value:.1%}"
        parts.append(axes.mark(x, max(least, observed.value), number, told))
    said = "; ".join(f"{each.predicted:.0%} predicted, {each.observed.value:.0%} observed" for each in known)
    return axes.picture(parts, f"{title}: {said}")


def signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return f"{value:{form}}".replace("-", "&minus;")


def _plain(form: str) -> str:
    """Format of numbers at an axis: those are round."""
    return ".0%" if form.endswith("%") else "g"
