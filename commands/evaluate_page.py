"""The report of an evaluation: one HTML file that loads nothing, in which no text of the data is more than text.

Tables with intervals and with what is told apart, pictures of them, and the worst disagreements between models and people to read.
Whatever comes from data or models is escaped; a content security policy lets no style and no script run but those of this package.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Template

from pluralign.inference.board import MEASURES, Board, BoardData, Cell, Measure, Measured, OfficialTable

from .evaluate_items import disagreement_cards, filters
from .evaluate_pictures import forest, reliability, signed
from .page import page_text, policy, resource
from .svg import series_class

__all__ = ["board_page"]

BY_NAME = {measure.name: measure for measure in MEASURES}
STANDINGS = {
    "best": ("best", "&#9733; best"),
    "not told apart": ("near", "&asymp; not told apart"),
    "behind": ("behind", "&#9660; behind"),
    "alone": ("near", "alone"),
    "unknown": ("near", "? not ranked"),
}
"""Class and words of a model's place on a data set; no place is told by colour alone."""

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
<p class="soft">$summary</p>
<nav aria-label="Sections">$links</nav>
<ul class="legend" aria-label="Models">$legend</ul>
<details><summary>What the columns mean</summary><dl>$meanings</dl></details></header>
<main>
$sections
</main>
<script>$script</script>
</body>
</html>
""")


def board_page(board: Board) -> str:
    """The board as an HTML page.

    Args:
        board: What was found.
    """
    style, script = resource("page.css") + resource("evaluate_page.css"), resource("evaluate_page.js")
    numbers = {model.name: number for number, model in enumerate(board.models)}
    content: dict[str, Callable[[Board, Mapping[str, int]], str]] = {
        "Board": _boards,
        "Pairs of models": _pairs,
        "Calibration": _calibration,
        "Domains, groups and users": _parts,
        "Length": _length,
        "Official scores": _official,
        "Worst disagreements": _disagreements,
        "Models and data": _about,
    }
    made = {name: made for name, make in content.items() if (made := make(board, numbers))}
    models, data = _count(len(board.models), "model"), _count(len(board.data), "data set")
    return PAGE.substitute(
        policy=policy(style, script),
        style=style,
        script=script,
        title=f"{models} on {data}",
        summary=page_text(
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in board.settings.items())
        ),
        links="".join(f'<a href="#s{i}">{name}</a>' for i, name in enumerate(made)),
        legend="".join(f"<li>{_swatch(number)}{page_text(name)}</li>" for name, number in numbers.items()),
        meanings="".join(
            f"<dt>{page_text(one.title)}</dt><dd>{page_text(one.meaning)}</dd>" for one in MEASURES
        ),
        sections="\n".join(
            f'<section aria-labelledby="s{i}"><h2 id="s{i}">{name}</h2>{part}</section>'
            for i, (name, part) in enumerate(made.items())
        ),
    )


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _swatch(number: int) -> str:
    return f'<span class="swatch {series_class(number)}"></span> '


def _cells(board: Board, data: BoardData) -> list[Cell]:
    """Cells of a data set, the most accurate model first and what is not ranked last."""
    cells = [cell for cell in board.cells if cell.data == data.name]
    return sorted(
        cells,
        key=lambda cell: (cell.standing == "unknown", -(_value(cell.measures.get("accuracy")) or 0.0)),
    )


def _value(one: Measured | None) -> float | None:
    return None if one is None else one.value


def _table(label: str, heads: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{page_text(label)}"><table class="{kind}"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(name: str, *, figure: bool = False, title: str = "") -> str:
    about = f' title="{page_text(title)}"' if title else ""
    return f'<th scope="col"{" class=figure" if figure else ""}{about}>{page_text(name)}</th>'


def _measured(one: Measured | None, form: str, *, best: bool = False) -> str:
    """A cell: the number, its interval beneath, or why there is none."""
    if one is None or one.value is None:
        reason = "" if one is None or one.reason is None else f' title="{page_text(one.reason)}"'
        return f'<td class="figure"{reason}>&ndash;</td>'
    interval = ""
    if one.low is not None and one.high is not None:
        interval = f"<small>{signed(one.low, form)} to {signed(one.high, form)}</small>"
    if one.number is not None:
        interval += f"<small>n = {one.number:,}{' (few)' if one.of_few else ''}</small>"
    about = f' title="{page_text(one.reason)}"' if one.reason else ""
    return f'<td class="figure{" best" if best else ""}"{about}>{signed(one.value, form)}{interval}</td>'


def _best(values: Sequence[float], measure: Measure) -> float | None:
    """The best of several values; None where they are equal, or one is alone."""
    if len({*values}) < 2:
        return None
    return min(values, key=lambda value: _distance(value, measure))


def _distance(value: float, measure: Measure) -> float:
    """How far a value is from the best there could be, but for a constant."""
    if measure.best in ("highest", "lowest"):
        return -value if measure.best == "highest" else value
    return abs(value - (1 if measure.best == "one" else 0))


# Sections ----------------------------------------------------------------------------------------------


def _boards(board: Board, numbers: Mapping[str, int]) -> str:
    parts = []
    for data in board.data:
        cells = _cells(board, data)
        shown = [
            one for one in MEASURES if any(_value(cell.measures.get(one.name)) is not None for cell in cells)
        ]
        best = {
            one.name: _best(
                [
                    value
                    for cell in cells
                    if cell.standing != "unknown"
                    and (value := _value(cell.measures.get(one.name))) is not None
                ],
                one,
            )
            for one in shown
        }
        heads = [
            _head("Model"),
            _head("Standing"),
            *(_head(one.title, figure=True, title=one.meaning) for one in shown),
        ]
        rows = [_board_row(cell, shown, best, numbers[cell.model]) for cell in cells]
        said = (
            f"{page_text(data.kind)}, {page_text(data.split)}: {data.comparisons:,} comparisons of {data.prompts:,} prompts"
            + (f", {_count(data.users, 'user')}" if data.users else "")
        )
        accuracy = {cell.model: cell.measures["accuracy"] for cell in cells if "accuracy" in cell.measures}
        picture = forest(accuracy, numbers, f"Accuracy on {data.name}", form=".1%", zero=0.5)
        doubts = [f"{cell.model}: {warning}" for cell in cells for warning in cell.warnings]
        warnings = "".join(f'<p class="warning">{page_text(each)}</p>' for each in [*data.notes, *doubts])
        figure = (
            f'<div class="card narrow"><h4>Accuracy, 95 % intervals; the line is a coin</h4>{picture}</div>'
        )
        parts.append(
            f"<h3>{page_text(data.name)}</h3><p class='soft'>{said}</p>{warnings}"
            + _table(f"Board of {data.name}", heads, rows, "board")
            + (figure if picture else "")
        )
    return "".join(parts)


def _board_row(cell: Cell, shown: Sequence[Measure], best: Mapping[str, float | None], number: int) -> str:
    kind, words = STANDINGS[cell.standing]
    dead = " <small>(dead: all its rewards are equal)</small>" if cell.dead else ""
    values = "".join(
        _measured(
            one := cell.measures.get(measure.name),
            measure.form,
            best=cell.standing != "unknown" and _is(one, best[measure.name], measure),
        )
        for measure in shown
    )
    return (
        f'<tr><th scope="row">{_swatch(number)}{page_text(cell.model)}{dead}</th>'
        f'<td class="standing {kind}">{words}</td>{values}</tr>'
    )


def _is(one: Measured | None, best: float | None, measure: Measure) -> bool:
    value = _value(one)
    if value is None or best is None:
        return False
    return _distance(value, measure) == _distance(best, measure)


def _pairs(board: Board, numbers: Mapping[str, int]) -> str:
    heads = [
        _head("Data"), _head("First"), _head("Second"), _head("Difference in accuracy", figure=True),
        _head("p", figure=True), _head("p, corrected", figure=True, title="After Holm's correction over all pairs and data sets"),
        _head("Only first right", figure=True), _head("Only second right", figure=True), _head("Told apart?"),
    ]  # fmt: skip
    rows = []
    for pair in board.paired:
        apart = pair.p_corrected is not None and pair.p_corrected < 0.05
        rows.append(
            f'<tr><th scope="row">{page_text(pair.data)}</th><td>{_swatch(numbers[pair.first])}{page_text(pair.first)}</td>'
            f"<td>{_swatch(numbers[pair.second])}{page_text(pair.second)}</td>{_measured(pair.difference, '+.1%')}"
            f'<td class="figure">{_p(pair.p_value)}</td><td class="figure">{_p(pair.p_corrected)}</td>'
            f'<td class="figure">{pair.only_first:,}</td><td class="figure">{pair.only_second:,}</td>'
            f'<td class="{"yes" if apart else ""}">{"yes" if apart else "no" if pair.p_corrected is not None else "&ndash;"}</td></tr>'
        )
    return _table("Pairs of models", heads, rows) if rows else ""


def _p(value: float | None) -> str:
    return "&ndash;" if value is None else "&lt;.001" if value < 0.001 else f"{value:.3f}"


def _calibration(board: Board, numbers: Mapping[str, int]) -> str:
    cards = [
        f'<div class="card"><h4>{_swatch(numbers[cell.model])}{page_text(cell.model)} on {page_text(data.name)}</h4>'
        f"{reliability(cell.reliability, numbers[cell.model], f'{cell.model} on {data.name}')}</div>"
        for data in board.data
        for cell in _cells(board, data)
        if cell.reliability
    ]
    if not cards:
        return ""
    said = "Upwards: the share of people on the model's side. On the dashed line a model is as sure as it is right; below it is too sure."
    return f'<p class="soft">{said}</p><div class="grid-of">{"".join(cards)}</div>'


def _parts(board: Board, numbers: Mapping[str, int]) -> str:
    parts = []
    for data in board.data:
        cells = _cells(board, data)
        for title, name in (
            ("domain", "domains"),
            ("group of users", "groups"),
            ("least well served user", "lowest_users"),
        ):
            tables: list[Mapping[str, Measured]] = [getattr(cell, name) for cell in cells]
            keys = dict.fromkeys(key for table in tables for key in table)
            if not keys:
                continue
            heads = [_head(title.capitalize()), *(_head(cell.model, figure=True) for cell in cells)]
            rows = [
                f'<tr><th scope="row">{page_text(key)}</th>{"".join(_measured(table.get(key), ".1%") for table in tables)}</tr>'
                for key in keys
            ]
            closed = len(keys) > 12 or name == "lowest_users"
            table = _table(f"{data.name} by {title}", heads, rows)
            label = f"{page_text(data.name)}: accuracy by {title} ({len(keys):,}), n {'users' if name == 'groups' else 'prompts'}"
            parts.append(f"<details{'' if closed else ' open'}><summary>{label}</summary>{table}</details>")
    return "".join(parts)


def _length(board: Board, numbers: Mapping[str, int]) -> str:
    cards = []
    for data in board.data:
        values = {
            cell.model: one
            for cell in _cells(board, data)
            if (one := cell.measures.get("length_correlation"))
        }
        if picture := forest(values, numbers, f"Length on {data.name}", form="+.2f", zero=0):
            cards.append(f'<div class="card"><h4>{page_text(data.name)}</h4>{picture}</div>')
    meaning = page_text(BY_NAME["length_correlation"].meaning)
    return f'<p class="soft">{meaning}</p><div class="grid-of">{"".join(cards)}</div>' if cards else ""


def _official(board: Board, numbers: Mapping[str, int]) -> str:
    return "".join(_official_table(table, numbers) for table in board.official)


def _official_table(table: OfficialTable, numbers: Mapping[str, int]) -> str:
    columns = dict.fromkeys(name for values in table.numbers.values() for name in values)
    rows = []
    for model in dict.fromkeys([*table.numbers, *table.reasons]):
        values = table.numbers.get(model, {})
        reason = f" <small>{page_text(table.reasons[model])}</small>" if model in table.reasons else ""
        cells = "".join(_official_cell(values.get(name)) for name in columns)
        rows.append(
            f'<tr><th scope="row">{_swatch(numbers[model])}{page_text(model)}{reason}</th>{cells}</tr>'
        )
    heads = [_head("Model"), *(_head(name, figure=True) for name in columns)]
    said = f"<h3>{page_text(table.data)}</h3><p class='soft'>{page_text(table.rule)}</p>"
    return said + _table(f"Official scores of {table.data}", heads, rows, "board")


def _official_cell(value: float | None) -> str:
    return f'<td class="figure">{"&ndash;" if value is None else signed(value, ".4g")}</td>'


def _disagreements(board: Board, numbers: Mapping[str, int]) -> str:
    items = board.disagreements
    if not items:
        return ""
    models = [model.name for model in board.models if any(item.model == model.name for item in items)]
    data = [one.name for one in board.data if any(item.data == one.name for item in items)]
    said = "Comparisons in which a model is surest of the side that people did not take; the surest first. Read them: some are the model's fault, some the label's."
    return (
        f'<p class="soft">{said}</p>{filters(models, data, len(items))}{disagreement_cards(items, models, data, numbers)}'
        '<p id="none" hidden>No disagreement fits these filters.</p>'
    )


def _about(board: Board, numbers: Mapping[str, int]) -> str:
    models = [
        f'<tr><th scope="row">{_swatch(numbers[one.name])}{page_text(one.name)}</th>'
        + "".join(
            f"<td>{page_text(str(each))}</td>" for each in (one.method, one.kind, one.whose, one.probability)
        )
        + f"<td><code>{page_text(one.place)}</code>{f' at {page_text(one.revision)}' if one.revision else ''}</td></tr>"
        for one in board.models
    ]
    counts = (
        "records",
        "prompts",
        "responses",
        "comparisons",
        "ties",
        "identical",
        "left_out",
        "users",
        "groups",
        "domains",
        "votes",
    )
    data = [
        f'<tr><th scope="row">{page_text(one.name)}</th><td>{page_text(one.kind)}</td><td>{page_text(one.split)}</td>'
        + "".join(f'<td class="figure">{getattr(one, name):,}</td>' for name in counts)
        + f"<td>{page_text(', '.join(f'{number:,} {reason}' for reason, number in one.invalid.items()) or 'none')}</td>"
        f"<td><code>{page_text(one.fingerprint)}</code></td></tr>"
        for one in board.data
    ]
    of_models = map(_head, ("Model", "Method", "Kind", "Whose rewards", "Predicted share", "Opened"))
    of_data = [
        *map(_head, ("Data", "Module", "Split")),
        *(_head(name.replace("_", " "), figure=True) for name in counts),
        *map(_head, ("Invalid rows", "Fingerprint")),
    ]
    return _table("Models", of_models, models) + _table("Data", of_data, data)
