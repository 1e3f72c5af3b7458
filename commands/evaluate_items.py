"""The worst disagreements between a model and people, as cards to read: prompt, both responses, votes and every model's rewards."""

from collections.abc import Mapping, Sequence
from string import Template

from pluralign.inference.board import Disagreement

from .evaluate_pictures import signed
from .page import page_text
from .svg import series_class

__all__ = ["disagreement_cards", "filters"]

LONG = 900
"""Characters above which a text scrolls in a box of its own."""

CARD = Template("""<article class="card" data-model="$model_number" data-set="$data_number" data-sure="$sure"
 aria-labelledby="d$number">
<h3 id="d$number"><span class="swatch $kind"></span> $model <small>$where</small></h3>
<p class="said">$said</p>
<h4>Prompt</h4>$prompt
<div class="sides">
<section class="side people"><h4>Preferred by people</h4>$preferred</section>
<section class="side model"><h4>Preferred by the model</h4>$other</section>
</div>
<div class="scroll" tabindex="0" role="region" aria-label="Rewards"><table><caption>Rewards by every model that has read both</caption>
<thead><tr><th scope="col">Model</th><th scope="col" class="figure">people's</th><th scope="col" class="figure">the other</th>
<th scope="col">agrees</th></tr></thead><tbody>$rewards</tbody></table></div>
</article>""")


def filters(models: Sequence[str], data: Sequence[str], number: int) -> str:
    """What chooses cards; shown where the page's script runs.

    Args:
        models: Names of those that have cards.
        data: Names of the data sets that have.
        number: Of cards.
    """
    return (
        '<search aria-label="Filters" hidden>'
        f'<label>Model <select id="model"><option value="">all</option>{_options(models)}</select></label>'
        f'<label>Data <select id="data"><option value="">all</option>{_options(data)}</select></label>'
        '<label>Contains <input id="words" type="search" autocomplete="off"></label>'
        f'<output id="shown" aria-live="polite">{number:,} shown</output></search>'
    )


def _options(names: Sequence[str]) -> str:
    return "".join(f'<option value="{i}">{page_text(name)}</option>' for i, name in enumerate(names))


def disagreement_cards(
    items: Sequence[Disagreement], models: Sequence[str], data: Sequence[str], numbers: Mapping[str, int]
) -> str:
    """A card for each.

    Args:
        items: Worst first.
        models: Names as :func:`filters` has them.
        data: Likewise.
        numbers: Places of the models among all, which give colours.
    """
    return "\n".join(
        CARD.substitute(
            number=number,
            model_number=models.index(item.model),
            data_number=data.index(item.data),
            sure=f"{1 - item.predicted:.4f}",
            kind=series_class(numbers[item.model]),
            model=page_text(item.model),
            where=page_text(", ".join(filter(None, [item.data, item.record, item.domain, item.user]))),
            said=_said(item),
            prompt=_body(item.prompt),
            preferred=_body(item.preferred),
            other=_body(item.other),
            rewards="".join(_rewards(name, pair, numbers[name]) for name, pair in item.rewards.items()),
        )
        for number, item in enumerate(items)
    )


def _said(item: Disagreement) -> str:
    votes = ""
    if item.votes is not None:
        votes = f" (votes by category: {', '.join(f'{number:g}' for number in item.votes)})"
    return (
        f"<strong>{item.share:.0%}</strong> of people prefer the first answer{votes}; the model gives it "
        f"<strong>{item.predicted:.0%}</strong>."
    )


def _body(text: str) -> str:
    """A text; a long one scrolls, and can be reached by the keyboard to do so."""
    if not text.strip():
        return '<p class="empty">empty</p>'
    long = ' tabindex="0" role="group" aria-label="a long text"' if len(text) > LONG else ""
    return f'<div class="text{" long" if long else ""}" dir="auto"{long}>{page_text(text)}</div>'


def _rewards(name: str, pair: tuple[float, float], number: int) -> str:
    preferred, other = pair
    verdict = "equal" if preferred == other else "yes" if preferred > other else "no"
    return (
        f'<tr><th scope="row"><span class="swatch {series_class(number)}"></span> {page_text(name)}</th>'
        f'<td class="figure">{signed(preferred, ".3f")}</td><td class="figure">{signed(other, ".3f")}</td>'
        f'<td class="{verdict}">{verdict}</td></tr>'
    )
