"""``pluralign runs``: runs with their main numbers; ``pluralign runs show``: their curves, as a picture."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pluralign.datamodules.records import listed
from pluralign.datamodules.untrusted import UNREADABLE
from pluralign.datamodules.whole_files import written_whole

from .program import verb_parser
from .run_curves import curve_lines
from .run_folders import Curve, Run, find_runs, read_run
from .runs_page import runs_page

__all__ = ["runs", "show"]

MAIN = ("val/loss", "val/accuracy")
"""Numbers that are shown besides the one that a run watches."""
ORDERS = ("started", "name", "method", "data", "status", "steps", "time")
STYLES = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "interrupted": "yellow",
}
RUNS = "runs"
MOST_CURVES = 12
"""Curves that are shown where none is named; there may be a hundred."""


def runs(words: Sequence[str]) -> None:
    """List the runs of a folder: method, data, status, steps, time, main numbers (best and last), checkpoint.

    A run that says that it runs, and whose process is no more, was killed: it is `stopped`. Runs of before there was `run.json` are
    listed by configuration and log.

    Raises:
        FileNotFoundError: If there is no run; says where it looked.
        ValueError: If no run has the number to sort by.
    """
    options = _list_parser().parse_args(words)
    every = find_runs(Path(options.folder))
    names = [options.number] if options.number else _main_numbers(every)
    every = _sorted(every, options.sort, reverse=options.reverse)
    if options.json:
        print(json.dumps([_plain(run) for run in every], ensure_ascii=False, indent=1, allow_nan=False))
        return
    Console().print(_table(every, names, Path(options.folder)))


def show(words: Sequence[str]) -> None:
    """Show runs: what they ran with, and their curves, one over the other, in the terminal or as one HTML file.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If the runs have not logged what is asked for.
    """
    options = _show_parser().parse_args(words)
    shown = [_one(word) for word in options.runs]
    names = _distinct(shown)
    curves = _curves(dict(zip(names, shown, strict=True)), options.number)
    if options.output is not None:
        path = Path(options.output)
        with written_whole(path, setting="--output") as stream:
            stream.write(runs_page(dict(zip(names, shown, strict=True)), curves).encode())
        print(f"runs: {path}")
        return
    console = Console()
    console.print(_table(shown, _main_numbers(shown), None, names))
    for line in (line for run in shown for line in _surroundings(run)):
        console.print(line, highlight=False, markup=False)
    given = len(curves) if options.number else MOST_CURVES
    for key in [*curves][:given]:
        console.print(f"\n{key}", style="bold", highlight=False, markup=False)
        for text in curve_lines(curves[key], width=console.width):
            console.print(text, no_wrap=True, overflow="crop")
    if len(curves) > given:
        rest = [*curves][given:]
        console.print(f"\n--number shows others: {', '.join(rest)}", highlight=False, markup=False)


# The list ----------------------------------------------------------------------------------------------


def _main_numbers(every: Sequence[Run]) -> list[str]:
    """Numbers that say how well runs went: what they watch, then loss and accuracy."""
    watched = [run.monitor for run in every if run.monitor]
    known = {key for run in every for key in run.last}
    return [name for name in dict.fromkeys([*watched, *MAIN]) if name in known][:3]


def _sorted(every: Sequence[Run], order: str, *, reverse: bool) -> list[Run]:
    if order in ORDERS:
        name = "seconds" if order == "time" else order
        return sorted(every, key=lambda run: _key(getattr(run, name)), reverse=reverse)
    having = [run for run in every if order in run.last]
    if not having:
        known = sorted({key for run in every for key in run.last})
        raise ValueError(
            f"--sort {order}: no run has it; sort by {', '.join(ORDERS)} or a number: {listed(known, 12)}"
        )
    others = [run for run in every if order not in run.last]
    return [*sorted(having, key=lambda run: run.best.get(order, run.last[order]), reverse=reverse), *others]


def _key(value: Any) -> tuple[bool, Any]:  # noqa: ANN401  of whatever is sorted by
    return value is None, value


def _table(
    every: Sequence[Run], numbers: Sequence[str], folder: Path | None, names: Sequence[str] | None = None
) -> Table:
    title = None if folder is None else f"{len(every):,} runs in {escape(str(folder))}"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("run, method on data, checkpoint", overflow="fold")
    table.add_column("status", no_wrap=True)
    for column in ("steps", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for number in numbers:
        table.add_column(f"{escape(number)}\nbest, (last)", justify="right", overflow="fold")
    for name, run in zip(names or [run.name for run in every], every, strict=True):
        style = STYLES.get(run.status, "")
        checkpoint = escape(Path(run.checkpoint).name) if run.checkpoint else "no checkpoint"
        first = f"[bold]{escape(name)}[/]\n{escape(f'{run.method} on {run.data}')}\n[dim]{checkpoint}[/]"
        status = f"[{style}]{run.status}[/]" if style else run.status
        table.add_row(
            first, status, f"{run.steps:,}", _duration(run.seconds), *(_number(run, key) for key in numbers)
        )
    return table


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def _number(run: Run, key: str) -> str:
    if key not in run.last:
        return "-"
    last = f"({run.last[key]:.4g})"
    return f"{run.best[key]:.4g}\n{last}" if key in run.best else last


def _plain(run: Run) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds")
    fields = ("name", "method", "data", "status", "steps", "seconds", "monitor", "checkpoint")
    return {
        **{name: getattr(run, name) for name in fields},
        "folder": str(run.folder),
        "started": started,
        "last": dict(run.last),
        "best": dict(run.best),
    }


# One or more of them -----------------------------------------------------------------------------------


def _one(word: str) -> Run:
    """The run that is meant: a folder, the name of one in ``runs``, or the end of a name that no other run there ends in."""
    places = [*dict.fromkeys((Path(word), Path(RUNS, word)))]
    for place in places:
        if place.is_dir() and (run := read_run(place, place)) is not None:
            return run
    for place in places:
        if place.is_dir():
            found = find_runs(place)  # says so if there is none
            if len(found) == 1:
                return found[0]
            raise ValueError(
                f"{word} holds {len(found):,} runs, name one: {listed([str(run.folder) for run in found], 8)}"
            )
    words = Path(word).parts
    below = find_runs(Path(RUNS)) if words and Path(RUNS).is_dir() else []
    ends = [run for run in below if run.folder.parts[-len(words) :] == words]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(
            f"{len(ends):,} runs are called {word}, name one: {listed([str(run.folder) for run in ends], 8)}"
        )
    where = " nor ".join(str(place.absolute()) for place in places)
    raise FileNotFoundError(
        f"there is no run {word}: no folder {where}; `pluralign runs` lists those there are"
    )


def _distinct(shown: Sequence[Run]) -> list[str]:
    """Names of runs, as short as they can be told apart."""
    parts = [run.folder.absolute().parts for run in shown]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len({*names}) == len(names):
            return names
    raise ValueError(f"a run is named twice: {', '.join(str(run.folder) for run in shown)}")


def _curves(shown: Mapping[str, Run], numbers: Sequence[str] | None) -> dict[str, dict[str, Curve]]:
    """Curves by number and run: those asked for, else all, what was measured in validation first."""
    by_run = {name: run.curves() for name, run in shown.items()}
    known = sorted({key for curves in by_run.values() for key in curves}, key=_rank)
    if missing := [number for number in numbers or () if number not in known]:
        raise ValueError(f"--number {missing[0]}: logged were {', '.join(known) or 'no numbers'}")
    return {
        key: {name: curves[key] for name, curves in by_run.items() if key in curves}
        for key in numbers or known
    }


def _rank(key: str) -> tuple[int, str]:
    order = [*MAIN, "train/loss", "train/accuracy"]
    if key in order:
        return order.index(key), key
    return len(order) + (0 if key.startswith("val/") else 1), key


def _surroundings(run: Run) -> Iterator[str]:
    """What a run ran with, and each of its sessions, in lines."""
    if not run.record:
        yield f"{run.folder}: no run.json; what is known is from config.yaml and metrics.csv"
        return
    yield f"{run.folder}"
    try:
        yield from [*_sessions(run)]
    except UNREADABLE as error:
        yield f"  run.json does not say what it ran with ({error!r:.200}): it was written by something else, or damaged"


def _sessions(run: Run) -> Iterator[str]:
    """What ``run.json`` says of a run's sessions and data."""
    for session in run.record["sessions"]:
        git = session["git"]
        commit = (
            "" if git is None else f", git {git['commit'][:10]}{' with changes' if git['changed'] else ''}"
        )
        begun = datetime.fromisoformat(session["started"]).timestamp()
        local = time.strftime("%Y-%m-%d %H:%M", time.localtime(begun))
        error = f": {session['error']}" if "error" in session else ""
        yield (
            f"  {local}, steps {session['from_step'] or 0:,} to {session['to_step']:,}, {session['status']}{error}; "
            f"{session['processes']} x {session['device']}, {session['precision']}{commit}"
        )
        yield f"    pluralign {' '.join(session['command'])}"
    versions = run.record["sessions"][-1]["versions"]
    yield "  " + ", ".join(f"{name} {number}" for name, number in versions.items())
    if left_out := run.record.get("skipped_steps"):
        yield f"  {left_out:,} of {run.steps:,} optimiser steps left out: their gradients were not finite"
    for split, counts in run.record["data"]["splits"].items():
        lost = {**counts.get("invalid", {}), **counts.get("dropped", {})}
        told = "".join(f"; {number:,} {reason}" for reason, number in lost.items())
        kept = ", ".join(
            f"{counts[name]:,} {name}" for name in ("records", "responses", "comparisons") if name in counts
        )
        yield f"  {run.record['data']['name']} {split}: {kept}{told}"


# Options -----------------------------------------------------------------------------------------------


def _list_parser() -> argparse.ArgumentParser:
    parser = verb_parser("runs", runs.__doc__)
    add = parser.add_argument
    add("folder", nargs="?", default=RUNS, metavar="FOLDER", help="where to look, and below (%(default)s)")
    add(
        "--sort",
        default="started",
        metavar="BY",
        help=f"{', '.join(ORDERS)}, or a number such as val/loss (%(default)s)",
    )
    add("--reverse", action="store_true", help="the last first")
    add("--number", metavar="NAME", help="number to show in place of the main ones, such as val/brier")
    add("--json", action="store_true", help="print JSON")
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = verb_parser("runs show", show.__doc__)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs, their names in runs/, or a name's end such as version_0",
    )
    add(
        "--number",
        action="append",
        metavar="NAME",
        help="curve to show, such as val/loss; may be given again",
    )
    add(
        "--output",
        "-o",
        metavar="FILE",
        help="HTML file to write, which loads nothing, in place of the picture",
    )
    return parser
