"""The page of treated comparisons: one HTML file that loads nothing, and in which no text of the data is more than text.

Whatever comes from the data is escaped, and a content security policy lets no script and no style run but the two that stand
in this package, which it knows by their hashes.
"""

import math
from collections.abc import Sequence
from string import Template
from typing import Literal

import numpy as np

from pluralign.datamodules.treatments import TreatmentReport

from .page import page_text, policy, resource
from .treated_axis import axis
from .treated_sample import SampledComparison, Stratum

__all__ = ["treated_page"]

LONG = 1200
"""Characters above which a text scrolls in a box of its own."""
EXTREME = 95
"""Percentile of the sizes of strengths and votes that the axis reaches; what is beyond stands at its end."""

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
<p>On the right stands the answer that the label of the data prefers, on the left the other one. A dot is what a member of the
ensemble thinks: to the right of the line at 0 it agrees with the label, to the left it does not. The bar is their mean, the
<em>strength</em> of the label; the band around it is one standard deviation wide on each side. The frame marks the answer that
training prefers after the treatment.</p></details>
<div class="scroll" tabindex="0" role="region" aria-label="What each rule covers"><table>
<thead><tr><th scope="col">Rule</th><th scope="col">$by</th><th scope="col">Treatment</th>
<th scope="col" class="figure">Comparisons</th><th scope="col" class="figure">Share</th>
<th scope="col" class="figure">Lowest strength</th><th scope="col" class="figure">Highest strength</th>
<th scope="col" class="figure">Mean std</th><th scope="col" class="figure">Shown here</th></tr></thead>
<tbody>
$rules
</tbody></table></div>
</header>
<search aria-label="Filters">
<fieldset><legend>Rules</legend>
$boxes
</fieldset>
<fieldset><legend>Strength</legend>
<label>from <input id="low" type="number" step="any" placeholder="$least"></label>
<label>to <input id="high" type="number" step="any" placeholder="$greatest"></label>
</fieldset>
<label class="order">Order <select id="order">
<option value="drawn">by rule, as drawn</option>
<option value="up">weakest first</option>
<option value="down">strongest first</option>
<option value="std">least agreed first</option>
</select></label>
<button type="button" id="all">Show all</button>
<output id="shown" aria-live="polite">$number shown</output>
</search>
<main>
$cards
<p id="none" hidden>No comparison fits these filters.</p>
</main>
<script>$script</script>
</body>
</html>
""")

CARD = Template("""<article data-rule="$stratum" data-strength="$strength" data-std="$std" data-drawn="$drawn" aria-labelledby="c$drawn">
<h2 id="c$drawn"><span class="record">$record</span> <span class="badge $kind">$treatment</span></h2>
<section class="prompt"><h3>Prompt</h3>$prompt</section>
<div class="sides">
<section class="side$other_mark"><h3>$other</h3>$other_text</section>
<section class="side$label_mark"><h3>$label</h3>$label_text</section>
</div>
$axis
<p class="said">$said</p>
</article>""")


def treated_page(
    title: str, report: TreatmentReport, groups: Sequence[Stratum], sample: Sequence[SampledComparison]
) -> str:
    """An HTML page about a sample of treated comparisons.

    Args:
        title: Of data and split.
        report: How many comparisons each rule covers.
        groups: Comparisons by what is done to them.
        sample: Those that are shown.
    """
    style, script = resource("treated_page.css"), resource("treated_page.js")
    sizes = [abs(x) for each in sample for x in (*each.votes, each.strength) if not math.isnan(x)]
    reach = float(np.percentile(sizes, EXTREME)) if sizes else 0.0
    known = [each.strength for each in sample if not math.isnan(each.strength)]
    shown = [group for group in groups if len(group.places) or group.number >= 0]
    names = {group.number: _name(group) for group in groups}
    counts = {group.number: sum(each.stratum == group.number for each in sample) for group in shown}
    return PAGE.substitute(
        policy=policy(style, script),
        title=f"Treated labels: {page_text(title)}",
        by=report.by.capitalize(),
        summary=page_text(report.lines()[0]),
        rules="\n".join(_row(group, counts[group.number]) for group in shown),
        boxes="\n".join(_box(group, counts[group.number]) for group in shown),
        least=_figure(min(known, default=0.0)),
        greatest=_figure(max(known, default=0.0)),
        number=f"{len(sample):,} of {len(sample):,}",
        cards="\n".join(_card(each, i, names[each.stratum], reach or 1.0) for i, each in enumerate(sample)),
        style=style,
        script=script,
    )


def _figure(value: float) -> str:
    """A number to read, with a true minus sign."""
    return "&ndash;" if math.isnan(value) else f"{value:.3g}".replace("-", "&minus;")


def _name(group: Stratum) -> str:
    """What is done to a stratum, in words."""
    if group.number >= 0:
        return group.cover.treatment
    return {"by no rule": "no rule", "tied": "tied", "without a strength": "no strength"}[
        group.cover.interval
    ]


def _row(group: Stratum, shown: int) -> str:
    cover = group.cover
    name = f"rules[{group.number}]" if group.number >= 0 else "&ndash;"
    figures = [f"{cover.comparisons:,}", f"{cover.share:.1%}"]
    figures += [_figure(cover.lowest), _figure(cover.highest), _figure(cover.std), str(shown)]
    cells = "".join(f"<td class=figure>{figure}</td>" for figure in figures)
    return f"<tr><th scope=row>{name}</th><td>{cover.interval}</td><td>{cover.treatment}</td>{cells}</tr>"


def _box(group: Stratum, shown: int) -> str:
    off = "" if shown else " disabled"
    name = f"{group.cover.interval}: {group.cover.treatment}" if group.number >= 0 else _name(group)
    return (
        f'<label><input type="checkbox" name="rule" value="{group.number}" checked{off}> {name} '
        f"<small>({shown})</small></label>"
    )


def _body(text: str) -> str:
    """A text as the network reads it; a long one scrolls, and can be reached by the keyboard to do so."""
    if not text:
        return '<p class="empty">empty</p>'
    long = ' tabindex="0" role="group" aria-label="a long text"' if len(text) > LONG else ""
    return f'<div class="text{" long" if long else ""}" dir="auto"{long}>{page_text(text)}</div>'


def _card(each: SampledComparison, drawn: int, treatment: str, reach: float) -> str:
    # A label whose share is below a half prefers the second side, and a strength is towards the side that is preferred.
    turned = each.share < 0.5
    strength, votes = (
        (-each.strength, [-vote for vote in each.votes]) if turned else (each.strength, [*each.votes])
    )
    label, other = (each.second, each.first) if turned else (each.first, each.second)
    trained = _trained_side(each)
    names = {
        "label": "One answer" if each.share == 0.5 else "Preferred by the label",
        "other": "The other answer",
    }
    if trained == "other":
        names["other"] += " &rarr; preferred in training"
    return CARD.substitute(
        stratum=each.stratum,
        strength="" if math.isnan(strength) else f"{strength:.6g}",
        std="" if math.isnan(each.std) else f"{each.std:.6g}",
        drawn=drawn,
        record=f"{page_text(each.record)} <small>comparison {each.place}</small>",
        kind="drop" if each.dropped else "flip" if trained == "other" else "keep",
        treatment=treatment,
        prompt=_body(each.prompt),
        label_text=_body(label),
        other_text=_body(other),
        label=names["label"],
        other=names["other"],
        label_mark=" trained" if trained == "label" else "",
        other_mark=" trained" if trained == "other" else "",
        axis=axis(strength, each.std, votes, reach),
        said=_said(each, strength, votes, trained),
    )


def _trained_side(each: SampledComparison) -> Literal["label", "other", "neither"]:
    """Which side training prefers."""
    if each.dropped or each.treated_share == 0.5:
        return "neither"
    first = (each.treated_share > 0.5) != each.flipped
    return "label" if first == (each.share > 0.5) else "other"


def _said(each: SampledComparison, strength: float, votes: Sequence[float], trained: str) -> str:
    """What the figures say, in a line."""
    if math.isnan(strength):
        parts = ["No strength is known"]
    else:
        parts = [
            f"Strength {_figure(strength)}" + ("" if math.isnan(each.std) else f", std {_figure(each.std)}")
        ]
    if votes:
        parts.append(f"{sum(vote > 0 for vote in votes)} of {len(votes)} members agree with the label")
    share = max(each.share, 1 - each.share)
    parts.append("the label is a tie" if share == 0.5 else f"share of the label {share:.3g}")
    if each.dropped:
        parts.append("<strong>left out of training</strong>")
    elif each.flipped or each.treated_share != each.share or each.margin:
        after = max(each.treated_share, 1 - each.treated_share)
        change = f"in training: share {after:.3g}" + (" of the other side" if trained == "other" else "")
        if each.margin:
            change += f", margin {_figure(each.margin if each.treated_share >= 0.5 else -each.margin)}"
        parts.append(f"<strong>{change}</strong>")
    return "; ".join(parts) + "."
