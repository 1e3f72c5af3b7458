"""``pluralign evaluate``: any number of reward models on any number of data sets, on one board."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pluralign.datamodules.checks import check_range
from pluralign.datamodules.whole_files import locked_folder, written_whole
from pluralign.inference import Scorer, open_model
from pluralign.inference.board import (
    Contestant,
    Evaluation,
    EvaluationData,
    Resampling,
    Watch,
    evaluate_models,
    write_items,
)
from pluralign.inference.opening import Which

from .evaluate_page import board_page
from .evaluate_sources import configured_data, local_data, named_models
from .evaluate_tables import board_tables
from .program import EPILOG

__all__ = ["evaluate"]

BOARD, REPORT, SCORES = "board.json", "report.html", "scores"


def evaluate(words: Sequence[str]) -> None:
    """Put reward models on one board: which is better, on which data, and can it be believed?

    Models are checkpoints, folders of runs, folders that `pluralign export` wrote, and reward models of transformers, with the text
    format of their own training; all see the same comparisons, as the user and in the domain of each. The folder gets the board
    (board.json), a page to look at (report.html), and every reward (items.parquet, responses.parquet). Scores are kept there as
    they are made: with --resume an evaluation goes on where it was killed, and one with a further model scores only that.

    Raises:
        FileNotFoundError: If a model or a file is not there.
        FileExistsError: If the folder holds a board already, or another process is writing one there.
        ValueError: If two have one name, or data have nothing to evaluate; says what to change.
    """
    options = _parser().parse_args(words)
    check_range("--num_resamples", options.num_resamples, at_least=100)
    check_range("--max_tokens", options.max_tokens, at_least=1)
    check_range("--seed", options.seed, at_least=0)
    check_range("--worst", options.worst, at_least=0)
    folder = Path(options.output)
    _check_target(folder, resume=options.resume)
    sources, data = named_models(options.models), _data(options)
    opened = {
        name: partial(
            _open,
            source,
            checkpoint=options.checkpoint,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
            max_tokens=options.max_tokens,
        )
        for name, source in sources.items()
    }
    console = Console()
    with _alone(folder):
        _check_target(folder, resume=options.resume)  # another process may have written it meanwhile
        with _progress(console) as watch:
            found = evaluate_models(
                [Contestant(name, one) for name, one in opened.items()],
                [*data.values()],
                folder=folder / SCORES,
                resume=options.resume,
                how=Resampling(options.num_resamples, options.seed),
                worst=options.worst,
                watch=watch,
            )
        _report(folder, found, console)


def _check_target(folder: Path, *, resume: bool) -> None:
    """Refuse to replace a board unasked."""
    if (folder / BOARD).exists() and not resume:
        raise FileExistsError(
            f"{folder / BOARD} is there already: give --resume to go on with the scores that are kept there, or another folder"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process writes a board there: files of two would not fit each other."""
    busy = f"another process is writing a board into {folder} just now: wait for its end, or name another folder with --output"
    lock = locked_folder(folder / SCORES, busy=busy, setting="--output")
    try:
        yield
    finally:
        os.close(lock)


def _report(folder: Path, found: Evaluation, console: Console) -> None:
    """Write and show what was found."""
    write_items(folder / "items.parquet", folder / "responses.parquet", found.scored)
    found.board.write(folder / BOARD)
    with written_whole(folder / REPORT, setting="--output") as stream:
        stream.write(board_page(found.board).encode())
    for table in board_tables(found.board):
        console.print(table)
        console.print()
    for name in (BOARD, REPORT):
        path = folder / name
        console.print(f"{path.stem}: {path}", soft_wrap=True, highlight=False, markup=False)


def _data(options: argparse.Namespace) -> dict[str, EvaluationData]:
    """Data sets by name, read."""
    data: dict[str, EvaluationData] = {}
    for path in options.data:
        data |= _new(configured_data(Path(path)), data)
    data |= _new(local_data(options.local), data)
    if not data:
        raise ValueError(
            "there is nothing to evaluate on: name data sets in a file, --data FILE, or own pairs, --local FILE"
        )
    return data


def _open(source: str, *, checkpoint: Which, trust_remote_code: bool, device: str, max_tokens: int) -> Scorer:
    opened = open_model(source, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
    return Scorer(opened, unknown_users="mean", device=device, max_tokens=max_tokens)


def _new(found: dict[str, EvaluationData], before: dict[str, EvaluationData]) -> dict[str, EvaluationData]:
    """The data sets, none of which may have a name that is taken."""
    if twice := sorted(found.keys() & before.keys()):
        raise ValueError(f"two data sets are called {twice[0]}: give one of them another name")
    return found


@contextmanager
def _progress(console: Console) -> Iterator[Watch]:
    """A bar for the model and data set that are being read."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("responses"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:

        def watch(model: str, data: str, responses: int) -> Callable[[int], None]:
            task = progress.add_task(f"{model} on {data}", total=responses)
            return partial(progress.advance, task)

        yield watch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pluralign evaluate",
        description=" ".join((evaluate.__doc__ or "").partition("Raises:")[0].split()),
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="NAME=SOURCE or SOURCE: a checkpoint, a run's folder, an exported folder, a reward model of transformers (folder or "
        "hub name)",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of data sets: for each name class_path, init_args and split (test by default, else validation); may be "
        "given again",
    )
    add(
        "--local",
        action="append",
        default=[],
        metavar="FILE",
        help="NAME=FILE or FILE: own comparisons, in a form that LocalDataModule reads; may be given again",
    )
    add("--output", "-o", required=True, metavar="FOLDER", help="folder to write")
    add(
        "--resume",
        action="store_true",
        help="read scores that an evaluation before has kept in the folder, of the same weights and texts",
    )
    _add_running(parser)
    return parser


def _add_running(parser: argparse.ArgumentParser) -> None:
    """Options of how models run, and of intervals."""
    add = parser.add_argument
    add(
        "--checkpoint",
        choices=get_args(Which),
        default="best",
        help="which checkpoint of a run's folder (%(default)s)",
    )
    add(
        "--trust_remote_code",
        action="store_true",
        help="let code that ships with a model of transformers run",
    )
    add(
        "--device",
        default="auto",
        help="where models run: auto for an accelerator if there is one (%(default)s)",
    )
    add("--max_tokens", type=int, default=16_384, help="bound on the tokens of a batch (%(default)s)")
    add(
        "--num_resamples",
        type=int,
        default=2000,
        help="resamples of the bootstrap over prompts (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the bootstrap and of the tests (%(default)s)")
    add(
        "--worst",
        type=int,
        default=10,
        metavar="N",
        help="disagreements of each model and data set that the board shows (%(default)s)",
    )
