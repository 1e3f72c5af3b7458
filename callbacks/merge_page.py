"""The page of a MergeTrace: one HTML file that loads nothing, and in which no text of the data is more than text.

Texts are escaped, and a content security policy lets no script and no style run but those that stand in this package,
which it knows by their hashes.
"""

import math
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template

from pluralign.metrics import ExpertWeights, TracedResponse, WeightShare

from .pictures import expert_color

__all__ = ["merge_page"]

LEVELS = 20
"""Steps of a colour's intensity."""
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which would not be seen, as symbols of them."""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$summary</p>
<details><summary>How to read this page</summary>
<p>A token has the colour of the expert with the largest weight in the mixture that it was drawn from; the stronger the colour, the
larger the weight. The bands below a text are the weights of all experts, token by token; they add up to 1. Point at a token or at the
bands, or move the slider, and all weights of that token are shown.</p></details>
</header>
<ul class="legend" aria-label="Experts">
$legend
</ul>
<p class="caption" id="means">Mean weight, and in brackets the share of tokens that the expert leads</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="means"><table>
<thead><tr><th scope="col">Items that ask for</th><th scope="col" class="figure">Tokens</th>$experts</tr></thead>
<tbody>
$rows
</tbody></table></div>
<main>
$cards
</main>
<script>$script</script>
</body>
</html>
""")

CARD = Template("""<article aria-labelledby="r$number">
<h2 id="r$number">$preference <small>$size</small></h2>
<h3>Prompt</h3>
<div class="prompt" dir="auto">$prompt</div>
<h3>Response</h3>
<div class="text" dir="auto">$text</div>$cut
<h3>Weights by token</h3>
<div class="chart">
<div class="scale" aria-hidden="true"><span>1</span><span>0</span></div>
$chart
<div class="steps" aria-hidden="true"><span>token 1</span><span>$last</span></div>
<input type="range" min="1" max="$last" value="1" aria-label="Token" hidden>
</div>
<div class="readout" hidden></div>
</article>""")


def merge_page(title: str, found: ExpertWeights) -> str:
    """An HTML page about the weights of experts.

    Args:
        title: Headline.
        found: What to show.
    """
    folder = files("pluralign.callbacks")
    style, script = ((folder / f"merge_page.{ending}").read_text("utf-8") for ending in ("css", "js"))
    style += _classes(len(found.experts))
    names = enumerate(map(_text, found.experts))
    shares = {"any preference": found.overall, **found.by_dimension}
    return PAGE.substitute(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        title=_text(title),
        summary=_summary(found),
        legend="\n".join(f'<li><span class="swatch e{i}"></span>{name}</li>' for i, name in names),
        experts="".join(f'<th scope="col" class="figure">{_text(name)}</th>' for name in found.experts),
        rows="\n".join(_row(name, share) for name, share in shares.items()),
        cards="\n".join(_card(i, one, found.experts) for i, one in enumerate(found.traced)),
        style=style,
        script=script,
    )


def _classes(number: int) -> str:
    """Colours of experts, and steps of intensity."""
    colors = [f".e{i} {{ --c: {expert_color(i)}; }}" for i in range(number)]
    steps = [f".w{level} {{ --w: {level / LEVELS:g}; }}" for level in range(1, LEVELS + 1)]
    return "\n".join([*colors, *steps, ""])


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    """Text of the data as text of the page."""
    return escape(text.translate(VISIBLE))


def _summary(found: ExpertWeights) -> str:
    number = f"{found.responses:,} responses, {found.overall.tokens:,} tokens"
    if math.isnan(found.effective):
        return number
    return (
        f"{number}. Effectively {found.effective:.2f} of {len(found.experts)} experts take part in a token."
    )


def _row(name: str, share: WeightShare) -> str:
    cells = "".join(
        f'<td class="figure e{i} w{_level(mean)}">{mean:.3f} <small>({lead:.0%})</small></td>'
        if share.tokens
        else '<td class="figure">&ndash;</td>'
        for i, (mean, lead) in enumerate(zip(share.mean, share.leads, strict=True))
    )
    return f'<tr><th scope="row">{_text(name)}</th><td class="figure">{share.tokens:,}</td>{cells}</tr>'


def _level(weight: float) -> int:
    return round(min(1.0, max(0.0, weight)) * LEVELS)


def _card(number: int, one: TracedResponse, experts: Sequence[str]) -> str:
    preference = "".join(f'<span class="badge">{_text(name)}</span>' for name in one.preference)
    length = len(one.pieces)
    return CARD.substitute(
        number=number,
        preference=preference or '<span class="badge">no preference</span>',
        size=f"{length:,} tokens",
        prompt=_text(one.prompt),
        text="".join(
            _token(piece, weights, lead, experts)
            for piece, weights, lead in zip(one.pieces, one.weights, one.leading, strict=True)
        ),
        cut="" if one.finished else '\n<div class="cut">cut at the greatest length</div>',
        chart=_chart(one, experts),
        last=length,
    )


def _token(piece: str, weights: Sequence[float], lead: int, experts: Sequence[str]) -> str:
    """A token in its expert's colour; the end of a line, and a token without text, have a sign."""
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    told = ", ".join(f"{experts[i]} {weights[i]:.3f}" for i in order if weights[i] > 0)
    text = _text(piece).replace("\n", "<i>&#8629;</i>\n") if piece else "<i>&#8709;</i>"
    again = " again" if expert_color(lead) in map(expert_color, range(lead)) else ""
    data = " ".join(f"{weight:.4g}" for weight in weights)
    return f'<b class="e{lead} w{_level(weights[lead])}{again}" title="{_text(told)}" data-weights="{data}">{text}</b>'


def _chart(one: TracedResponse, experts: Sequence[str]) -> str:
    """Bands of weights on top of each other, the first expert's above, each token as wide as another."""
    length = len(one.pieces)
    above = [0.0] * length
    paths = []
    for i in range(len(experts)):
        below = [top + row[i] for top, row in zip(above, one.weights, strict=True)]
        if below != above:
            there = "".join(f"V{100 * y:.2f}H{k + 1}" for k, y in enumerate(above))
            back = "".join(f"V{100 * below[k]:.2f}H{k}" for k in reversed(range(length)))
            paths.append(f'<path class="e{i}" d="M0 {100 * above[0]:.2f}{there}{back}Z"/>')
        above = below
    return (
        f'<svg viewBox="0 0 {length} 100" preserveAspectRatio="none" shape-rendering="crispEdges" role="img" '
        f'aria-label="Weights of experts by token">{"".join(paths)}<rect class="cursor" x="0" y="0" width="1" height="100"/></svg>'
    )
