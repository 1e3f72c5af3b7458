"""The tables of ``pluralign evaluate``, as a terminal shows them."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from pluralign.inference.board import MEASURES, Board, BoardData, Cell, Measure, Measured

__all__ = ["board_tables"]

FIRST = ("accuracy", "user_accuracy", "worst_group", "log_loss", "fitted_log_loss", "brier")
"""Measures of the first table of a data set."""
SECOND = (
    "calibration_error",
    "calibration_slope",
    "transport",
    "length_correlation",
    "tied_rewards",
    "spread",
    "swap",
)
"""And of the second."""
NAME = 18
"""Letters of a model's name that stay on one line, whatever else does not fit."""
MARKS = {"best": "*", "not told apart": "=", "behind": "", "alone": "", "unknown": "?"}
OF = {measure.name: measure for measure in MEASURES}


def board_tables(board: Board) -> Iterator[Table]:
    """For each data set two tables of models by measures and the best against the others, then official numbers.

    Args:
        board: What was found.

    Yields:
        Tables that fit into 80 columns, unless names are long.
    """
    for data in board.data:
        cells = [cell for cell in board.cells if cell.data == data.name]
        yield _measures(data, cells, FIRST, _title(data), _first_caption(data, cells))
        yield _measures(data, cells, SECOND, None, _second_caption(cells))
        if (against := _against_best(board, data)) is not None:
            yield against
    for official in board.official:
        yield _official(official.data, official.rule, official.numbers, official.reasons)


def _title(data: BoardData) -> str:
    parts = [f"{data.comparisons:,} comparisons of {data.prompts:,} prompts"]
    if data.ties:
        parts.append(f"{data.ties:,} ties")
    parts += [
        f"{number:,} {what}" for what, number in (("users", data.users), ("domains", data.domains)) if number
    ]
    return f"{escape(data.name)}, {data.split}: {', '.join(parts)}"


def _measures(
    data: BoardData, cells: Sequence[Cell], names: Sequence[str], title: str | None, caption: str | None
) -> Table:
    shown = [OF[name] for name in names if any(cell.measures[name].value is not None for cell in cells)]
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(
        "", overflow="fold", min_width=min(NAME, max((len(cell.model) for cell in cells), default=0))
    )
    for measure in shown:
        table.add_column(measure.title.replace(" ", "\n"), justify="right", no_wrap=True)
    for cell in sorted(
        cells, key=lambda cell: (cell.standing == "unknown", -(cell.measures["accuracy"].value or 0.0))
    ):
        mark = MARKS[cell.standing] if "accuracy" in names else ""
        name = f"{escape(cell.model)}{' [red]dead[/red]' if cell.dead else ''}"
        table.add_row(name, *(_cell(measure, cell.measures[measure.name], mark) for measure in shown))
    return table


def _cell(measure: Measure, value: Measured, mark: str) -> str:
    if value.value is None:
        return "-"
    text = f"{value.value:{measure.form}}"
    text = text.lstrip("+-") if not float(text.rstrip("%")) else text
    if measure.name == "accuracy":
        return f"{text} {_interval(measure, value)}{mark or ' '}"
    return text


def _interval(measure: Measure, value: Measured) -> str:
    if value.low is None or value.high is None:
        return ""
    if measure.form.endswith("%"):
        return f"{100 * value.low:.1f}-{100 * value.high:.1f}"
    return f"{value.low:{measure.form}} to {value.high:{measure.form}}"


def _first_caption(data: BoardData, cells: Sequence[Cell]) -> str:
    lines = ["accuracy with its 95 % interval over prompts"]
    if len(cells) > 1:
        lines[0] += "; * the best, = not told apart from the best after correction"
    if len(cells) > 1 and any(cell.standing == "unknown" for cell in cells):
        lines[0] += ", ? not ranked"
    for cell in cells:
        worst = cell.measures["worst_group"]
        if worst.value is not None and worst.reason:
            few = " (few)" if worst.of_few else ""
            lines.append(f"worst group of {escape(cell.model)}: {escape(worst.reason)}{few}")
    lines += [escape(note) for note in data.notes]
    if data.invalid:
        told = ", ".join(f"{name} {number:,}" for name, number in data.invalid.items())
        lines.append(f"rows that were no valid records: {escape(told)}")
    if data.identical:
        lines.append(f"{data.identical:,} comparisons of equal texts are left out")
    return "\n".join(lines)


def _second_caption(cells: Sequence[Cell]) -> str:
    lines = ["slope: 1 is right; length: correlation with it; swap: change with the order"]
    for cell in cells:
        lines += [f"[yellow]{escape(cell.model)}[/yellow]: {escape(warning)}" for warning in cell.warnings]
        lines += [
            f"{escape(cell.model)}: {escape(name)}: {number:,}"
            for name, number in cell.counts.items()
            if "does not know" in name or "the model knows" in name
        ]
    return "\n".join(lines)


def _against_best(board: Board, data: BoardData) -> Table | None:
    """The best model against each of the others; None where there is none, or nobody else."""
    standing = {cell.model: cell.standing for cell in board.cells if cell.data == data.name}
    best = next((name for name, one in standing.items() if one == "best"), None)
    if best is None or len(standing) < 2:
        return None
    caption = (
        "difference in accuracy, in points, where all ranked models could read both sides;\np exact, by exchanging two models prompt "
        f"by prompt; corrected (Holm) for {board.settings['tests']} tests:\nof every two models on all data, which board.json has"
    )
    table = Table(
        title=escape(f"{data.name}: {best} against"),
        caption=caption,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", overflow="fold", min_width=min(NAME, max(map(len, standing))))
    for column in ("less", "interval", "right alone\nboth ways", "p", "corrected"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in board.paired:
        if pair.data != data.name or best not in (pair.first, pair.second):
            continue
        other = pair.second if pair.first == best else pair.first
        value, low, high = pair.difference.value, pair.difference.low, pair.difference.high
        alone = pair.only_first, pair.only_second
        if pair.first != best:
            value = None if value is None else -value
            low, high = (None if high is None else -high), (None if low is None else -low)
            alone = alone[::-1]
        table.add_row(
            escape(other),
            "-" if value is None else f"{100 * value:+.1f}",
            "-" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{alone[0]:,} : {alone[1]:,}",
            _p(pair.p_value),
            _p(pair.p_corrected),
        )
    return table


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _official(
    data: str, rule: str, numbers: Mapping[str, Mapping[str, float | None]], reasons: Mapping[str, str]
) -> Table:
    names = list(dict.fromkeys(name for of_model in numbers.values() for name in of_model))
    lines = [f"{escape(model)}: {escape(reason)}" for model, reason in reasons.items()]
    table = Table(
        title=f"{escape(data)} by its own rule",
        caption="\n".join([escape(rule), *lines]),
        box=box.SIMPLE_HEAD,
        min_width=60,  # the caption is as wide as the table, which may have no columns but its first
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for model in numbers:
        table.add_column(escape(model), justify="right")
    for name in names:
        values = (of_model.get(name) for of_model in numbers.values())
        table.add_row(escape(name), *("-" if value is None else f"{value:.3f}" for value in values))
    return table
