"""``pluralign score``: rewards of the responses in a file, by any reward model."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.records import hash_files
from pluralign.inference import ScoredParts, Scorer, num_rows, score_records

from .model_options import MODEL, add_opening, add_reward, add_running, opened_scorer
from .program import verb_parser

__all__ = ["score"]


def score(words: Sequence[str]) -> None:
    """Score the responses in a file with a reward model: a checkpoint, a run, an exported folder, or one of transformers.

    Rows are read in every form that your own data may have (`pluralign data inspect FILE` says how), and never need a judgement.
    What was scored is kept: the same command goes on where it was stopped.

    Raises:
        FileNotFoundError: If the file or the model is not there.
        FileExistsError: If the file of scores is.
        ValueError: If rows or options are wrong, or a text cannot be read.
    """
    options = _parser().parse_args(words)
    check_range("--chunk", options.chunk, at_least=1)
    data = LocalDataModule(
        predict=options.file, columns=_columns(options.columns), on_invalid=options.on_invalid
    )
    output = Path(options.output)
    if output.exists() and not options.overwrite:  # before anything large is read
        raise FileExistsError(f"{output} is there already: name another file, or add --overwrite")
    files = data.files("predict")  # says what is not there, before a model is read
    scorer = opened_scorer(options.model, options, unscored=0.0 if options.unread == "null" else None)
    made_by = {
        "model": scorer.identity,
        "input": hash_files(files),
        **{name: getattr(options, name) for name in ("columns", "chunk", "labels", "members", "on_invalid")},
    }
    parts = ScoredParts(output, made_by, overwrite=options.overwrite)
    if before := len(parts.parts):
        Console().print(f"{before * options.chunk:,} records were scored before: going on after them")
    _run(scorer, data, parts, options)


def _run(scorer: Scorer, data: LocalDataModule, parts: ScoredParts, options: argparse.Namespace) -> None:
    console = Console()
    skipped: Counter[str] = Counter()
    unread = 0
    records = data.records("predict", skipped=skipped)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records · {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("scoring", total=num_rows(data.files("predict")), rate="")
        done = tokens = 0
        steps = score_records(
            scorer, records, parts, chunk=options.chunk, labels=options.labels, members=options.members
        )
        for step in steps:
            done, tokens, unread = done + step.responses, tokens + step.tokens, unread + step.unread
            elapsed = progress.tasks[task].elapsed or 0.0
            rate = f"{tokens / elapsed:,.0f} tokens/s" if elapsed else ""
            progress.update(task, advance=step.records, rate=f"{done:,} responses · {rate}")
    number = parts.finish()
    lost = [f"{count:,} rows {reason}" for reason, count in sorted(skipped.items())]
    lost += [f"{unread:,} responses unread, with no reward"] if unread else []
    console.print(
        f"{number:,} responses scored by {scorer.name}{''.join(f'; {one}' for one in lost)}: {parts.output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _columns(given: Sequence[str]) -> dict[str, str | None]:
    """Our fields by the columns that hold them.

    Raises:
        ValueError: If one has another form.
    """
    columns: dict[str, str | None] = {}
    for word in given:
        field, equals, column = word.partition("=")
        if not equals or not field:
            raise ValueError(f"--columns must be FIELD=COLUMN, such as prompt=question; got {word!r}")
        columns[field] = column or None
    return columns


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("score", score.__doc__)
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="rows with responses: JSON Lines, JSON, CSV, Parquet; a pattern, or a folder",
    )
    add("--model", "-m", required=True, help=MODEL)
    add("--output", "-o", required=True, metavar="FILE", help="scores: .parquet or .jsonl")
    add("--overwrite", action="store_true", help="replace what --output names, and begin anew")
    add_opening(parser)
    add_reward(parser, "rows")
    add(
        "--unread",
        choices=("error", "null"),
        default="error",
        help="what a response gets that the text format does not take, such as a longer one: an error, or no reward (%(default)s)",
    )
    _add_options_of_files(parser)
    return parser


def _add_options_of_files(parser: argparse.ArgumentParser) -> None:
    """What is read and written, and how fast."""
    add = parser.add_argument
    add("--labels", action="store_true", help="write the distribution over labels, too")
    add("--members", action="store_true", help="write each member's, prototype's or domain's reward, too")
    add(
        "--columns",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="which of your columns is which field, such as prompt=question; may be given again",
    )
    add(
        "--on_invalid",
        choices=("error", "skip"),
        default="error",
        help="what to do with a row that is no valid record (%(default)s)",
    )
    add_running(parser)
    add("--chunk", type=int, default=1024, help="records that are scored and kept together (%(default)s)")
