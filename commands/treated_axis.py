"""Members' votes as dots on an axis of strength: inline SVG that is as wide as there is room."""

import math
from collections.abc import Sequence

__all__ = ["axis"]

MIDDLE, EDGE = 24, 4.0
"""Height of the line of dots, in pixels; room at each end of it, in per cent of the width."""
LANES, LANE = 5, 5
"""Heights that the dots are spread over, so that equal votes can be told apart, and how far apart those are, in pixels."""


def axis(strength: float, std: float, votes: Sequence[float], reach: float) -> str:
    """An axis from ``-reach`` to ``reach`` with a dot for each vote, their mean, and a band of its standard deviation.

    Args:
        strength: Mean; NaN for none, which gives no picture.
        std: Standard deviation; NaN if it is not known.
        votes: Of the members; what is beyond the axis stands at its end, hollow.
        reach: Where the axis ends, > 0.
    """
    if math.isnan(strength):
        return ""

    def x(value: float) -> float:
        return round(50 + max(-1.0, min(1.0, value / reach)) * (50 - EDGE), 2)

    parts = [_line("line", EDGE, MIDDLE, 100 - EDGE, MIDDLE), _line("zero", 50, MIDDLE - 20, 50, MIDDLE + 20)]
    if not math.isnan(std):
        left, right = x(strength - std), x(strength + std)
        width = round(right - left, 2)
        parts.insert(0, f'<rect class="band" x="{left}%" y="{MIDDLE - 16}" width="{width}%" height="32"/>')
    for member, vote in enumerate(votes):
        kind = ("for" if vote > 0 else "against") + (" beyond" if abs(vote) > reach else "")
        y = MIDDLE + (member % LANES - LANES // 2) * LANE
        told = f"<title>vote {member + 1}: {vote:.3g}</title>"
        parts.append(f'<circle class="{kind}" cx="{x(vote)}%" cy="{y}" r="4.5">{told}</circle>')
    parts.append(_line("mean", x(strength), MIDDLE - 18, x(strength), MIDDLE + 18))
    told = f"{len(votes)} votes, mean {strength:.3g}" if votes else f"strength {strength:.3g}"
    told += "" if math.isnan(std) else f", standard deviation {std:.3g}"
    ends = f"<span>\u2212{reach:.2g}, the other side</span><span>0</span><span>the label's side, +{reach:.2g}</span>"
    return f'<svg role="img" aria-label="{told}">{"".join(parts)}</svg>\n<div class="ends" aria-hidden="true">{ends}</div>'


def _line(kind: str, left: float, top: float, right: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{left:g}%" y1="{top}" x2="{right:g}%" y2="{bottom}"/>'
