"""The page of runs: their curves over each other and what differs in their configurations; one HTML file that loads nothing."""

import math
from collections.abc import Mapping, Sequence
from string import Template

from .page import page_text, policy, resource
from .run_curves import thinned
from .run_folders import Curve, Run
from .svg import Axes, series_class

__all__ = ["runs_page"]

POINTS = 400
"""Most points of a curve; more are not seen."""
DENSE = 40
"""Points from which a curve has no marks."""

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
<header><h1>$title</h1>
<ul class="legend" aria-label="Runs">$legend</ul></header>
<main>
<h2>Runs</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>
<thead><tr><th scope="col">Run</th><th scope="col">Method</th><th scope="col">Data</th><th scope="col">Status</th>
<th scope="col" class="figure">Steps</th>$numbers</tr></thead>
<tbody>$rows</tbody></table></div>
<h2>Curves</h2>
<div class="grid-of">$curves</div>
$differences
</main>
</body>
</html>
""")


def runs_page(runs: Mapping[str, Run], curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """An HTML page about one or more runs.

    Args:
        runs: By the names under which they are shown.
        curves: Steps and values, by number and run.
    """
    style = resource("page.css")
    names = [*runs]
    measured = [key for key in curves if any(key in run.last for run in runs.values())][:4]
    return PAGE.substitute(
        policy=policy(style),
        style=style,
        title=page_text("Runs: " + ", ".join(names) if len(names) > 1 else f"Run {names[0]}"),
        legend="".join(
            f'<li><span class="swatch {series_class(i)}"></span>{page_text(name)}</li>'
            for i, name in enumerate(names)
        ),
        numbers="".join(f'<th scope="col" class="figure">{page_text(key)}</th>' for key in measured),
        rows="".join(_row(name, run, measured) for name, run in runs.items()),
        curves="".join(_card(key, curves[key], names) for key in curves),
        differences=_differences(runs),
    )


def _row(name: str, run: Run, measured: Sequence[str]) -> str:
    cells = "".join(f'<td class="figure">{_number(run, key)}</td>' for key in measured)
    return (
        f'<tr><th scope="row">{page_text(name)}</th><td>{page_text(run.method)}</td><td>{page_text(run.data)}</td>'
        f'<td>{page_text(run.status)}</td><td class="figure">{run.steps:,}</td>{cells}</tr>'
    )


def _number(run: Run, key: str) -> str:
    if key not in run.last:
        return "&ndash;"
    best = f"best {run.best[key]:.4g}" if key in run.best else ""
    return f"{run.last[key]:.4g} <small>{best}</small>"


def _card(key: str, curves: Mapping[str, Curve], names: Sequence[str]) -> str:
    finite = {name: [(s, v) for s, v in curve if math.isfinite(v)] for name, curve in curves.items()}
    drawn = {name: thinned(curve, POINTS) for name, curve in finite.items() if curve}
    head = f"<h3>{page_text(key)}</h3>"
    if not drawn:
        return f'<section class="card">{head}<p class="soft">no finite value</p></section>'
    values = [value for curve in drawn.values() for _, value in curve]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.1
    last = max(step for curve in drawn.values() for step, _ in curve)
    axes = Axes((0, max(1, last)), (low - room, high + room))
    parts = [axes.frame("step", "")]
    for name, curve in drawn.items():
        number = names.index(name)
        parts.append(axes.line(curve, series_class(number)))
        if len(curve) < DENSE:
            parts += [axes.mark(s, v, number, f"{name}: {v:.4g} at step {s:,}") for s, v in curve]
    said = "; ".join(f"{name} ends at {curve[-1][1]:.4g}" for name, curve in drawn.items())
    return f'<section class="card">{head}{axes.picture(parts, f"{key} by step: {said}")}</section>'


def _differences(runs: Mapping[str, Run]) -> str:
    """Options in which configurations are not alike; of one run all of them."""
    settings = {name: run.settings() for name, run in runs.items()}
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    alone = len(runs) == 1
    different = [
        key for key in keys if alone or len({repr(each.get(key, "-")) for each in settings.values()}) > 1
    ]
    title = "Configuration" if alone else "What differs in the configurations"
    if not different:
        return f"<h2>{title}</h2><p>Nothing.</p>"
    heads = "".join(f'<th scope="col">{page_text(name)}</th>' for name in runs)
    rows = "".join(
        f'<tr><th scope="row">{page_text(key)}</th>'
        + "".join(
            f"<td><code>{page_text(str(each.get(key, 'not there')))}</code></td>"
            for each in settings.values()
        )
        + "</tr>"
        for key in different
    )
    return (
        f'<h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>'
        f'<th scope="col">Option</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
