"""``pluralign data inspect FILE``: what the data seem to be, how to read them, and what their first rows then say."""

import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

import pluralign.datamodules
from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.datasets import (
    GivenSettings,
    KnownTable,
    OpenQuestion,
    TableGuess,
    TableReading,
    guess_table,
    outcome_words,
)
from pluralign.datamodules.records import RecordError

from .outcomes import data_block, print_outcome
from .parser import Parser
from .program import EPILOG
from .sampling import Sample, SampledDataModule, take_records, take_sample, tokenised

__all__ = ["inspect_unknown"]

NOTHING_CHOSEN = 2
"""Exit status where nobody can tell how the data are to be read."""
FIRST_ROWS = 3
"""Rows of which a reading says who won."""


def inspect_unknown(words: Sequence[str], *, console: Console | None = None) -> None:
    """Say what data without a configuration are, how to read them and what they then hold.

    Args:
        words: Names of the data, and options.
        console: Where to print; None for standard output.

    Raises:
        SystemExit: With status 2 if they can be read in two ways, or in none.
    """
    console = console or Console()
    options = _parser().parse_args(list(words))
    sample = take_sample(options.data, options.rows)
    given = GivenSettings(
        options.columns,
        options.codes,
        {
            name: options[name]
            for name in ("positive", "preference_range", "judges")
            if options[name] is not None
        },
    )
    console.rule(Text(", ".join(options.data), "bold"))
    if not sample.readable:
        raise ValueError(f"{', '.join(options.data)} has no row that can be read" + _first_error(sample))
    guess = guess_table((row.fields for row in sample.readable), text_cells=sample.text_cells, given=given)
    _print_rows(sample, console)
    if guess.known is not None and _print_known(guess.known, sample, options.rows, options.examples, console):
        return
    _print_guess(guess, console)
    if not guess.is_certain:
        for question in guess.questions:
            _print_question(question, guess, sample, console)
        _print_columns(guess, console)
        raise SystemExit(NOTHING_CHOSEN)
    _print_reading(guess, sample, options.examples, console)


def _parser() -> Parser:
    parser = Parser(
        prog="pluralign data inspect",
        usage="%(prog)s DATA [DATA ...] [--rows N] [--examples N] [--columns ...] [--codes ...] [--positive ...]\n"
        "       %(prog)s --config FILE [options]",
        description="Say what data without a configuration are, how to read them and what they then hold.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        type=str,
        help="files, patterns or folders; or a dataset on the hub, [hub:]org/name[@revision][:configuration][/split]",
    )
    add("--rows", type=int, default=2000, help="how many rows are looked at")
    add("--examples", type=int, default=3, help="how many of them are shown")
    add(
        "--columns",
        type=dict[str, str | None],
        default={},
        help="column of a field, where the guess is not yours",
    )
    add("--codes", type=dict[str, str | float], default={}, help="what your codes of the winner mean")
    add(
        "--positive",
        type=Literal["first", "second"] | None,
        default=None,
        help="which side a number above 0 prefers",
    )
    add(
        "--preference_range",
        type=list[float] | None,
        default=None,
        help="values of a share: for the second, for the first",
    )
    add("--judges", type=list[str] | None, default=None, help="columns that hold what one judge each said")
    return parser


def _first_error(sample: Sample) -> str:
    errors = [str(row) for row in sample.rows if isinstance(row, RecordError)]
    return f"; the first says: {errors[0]}" if errors else ""


def _print_rows(sample: Sample, console: Console) -> None:
    rows = len(sample.rows)
    which = f"{rows:,} row{'s' * (rows != 1)}" if sample.is_whole else f"the first {rows:,} rows"
    wrong = rows - len(sample.readable)
    lost = f", {wrong:,} of which cannot be read{_first_error(sample)}" if wrong else ""
    console.print(Text(f"looked at {which}{lost}"))


# What is guessed ---------------------------------------------------------------------------------------


def _print_guess(guess: TableGuess, console: Console) -> None:
    console.print(Text.assemble(("it has   ", "bold cyan"), guess.form))
    for title, lines in (("because  ", guess.evidence), ("mind     ", guess.notes)):
        for line in lines:
            console.print(Text.assemble((title, "bold cyan"), line))


def _print_question(question: OpenQuestion, guess: TableGuess, sample: Sample, console: Console) -> None:
    """What is open, and each reading as a configuration, with what the first rows would say."""
    console.print()
    console.print(Text.assemble((f"Not chosen: {question.about}. ", "bold red"), f"{question.why}."))
    for number, reading in enumerate(question.readings, 1):
        console.print()
        console.print(Text.assemble((f"reading {number}  ", "bold"), reading.meaning))
        if reading.judge is not None:
            console.print(Text(f"           {_said(reading, guess)}"))
        _print_block(
            data_block("LocalDataModule", {guess.split: sample.train} | guess.settings(reading)), console
        )
    if question.readings:
        console.print(
            Text("\nPaste the one that is right, or give its settings here: --columns, --codes, --positive.")
        )


def _said(reading: TableReading, guess: TableGuess) -> str:
    """What the rows say by a reading: the first ones, and all together."""
    answers = reading.answers(guess.table.rows)
    first = "; ".join(
        f"row {i}: {outcome_words(share)}" for i, share in enumerate(answers.shares[:FIRST_ROWS], 1)
    )
    wins, ties, losses = answers.counts
    return f"{first} ... in all the first wins {wins:,}, ties {ties:,}, the second wins {losses:,}"


def _print_columns(guess: TableGuess, console: Console) -> None:
    """What every column holds, for somebody who must choose."""
    console.print()
    console.print(Text("columns", "bold cyan"))
    for name in islice(guess.table.columns, 40):
        column = guess.table.columns[name]
        gaps = f", missing in {column.missing:.0%} of the rows" if column.missing else ""
        kind = (
            f"text of {column.mean_letters:,.0f} letters on average"
            if column.is_prose and column.kind == "text"
            else column.shown
        )
        console.print(Text(f"  {name}: {kind}{gaps}"), overflow="ellipsis", no_wrap=True)


def _print_block(block: str, console: Console) -> None:
    console.print(Text(block), soft_wrap=True)


# What the data then say --------------------------------------------------------------------------------


def _print_reading(guess: TableGuess, sample: Sample, examples: int, console: Console) -> None:
    settings = guess.settings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of columns is said below
        split = (
            "test" if guess.split == "train" else guess.split
        )  # of a training split some rows are held out
        data = SampledDataModule(sample, split, settings, on_invalid="skip")
        outcome = take_records(data, len(sample.rows))
        dropped = tokenised(sample, split, settings).dropped if outcome.records else {}
    sides = [
        str(guess.reading.columns.get(name)) for name in ("first", "second") if name in guess.reading.columns
    ]
    print_outcome(outcome, examples, console, sides=sides, dropped=dropped, unread=data.unread_columns(split))
    if not outcome.records:
        raise SystemExit(NOTHING_CHOSEN)
    console.rule("[bold]paste this", align="left")
    if sample.hub is not None:
        console.print(
            Text(f"# {sample.hub.place}, written to a folder by datasets.load_dataset(...).save_to_disk(...)")
        )
    train = sample.train if sample.hub is None else sample.hub.name.partition("/")[2]
    _print_block(data_block("LocalDataModule", {guess.split: train} | settings), console)
    _print_next(guess.split, console)


def _print_next(split: str, console: Console) -> None:
    recipe = "--config configs/bradley_terry_local.yaml --config data.yaml"
    if split == "predict":
        said = "next: nobody compared these answers, so that nothing can be learnt from them; a trained model scores them"
        commands = [f"pluralign predict {recipe} --ckpt_path last --output rewards.jsonl"]
    else:
        said = "next: write it to data.yaml, look at lengths and agreement, then train"
        commands = [f"pluralign data inspect {recipe}", f"pluralign fit {recipe}"]
    console.print(Text("\n  ".join([said, *commands])), soft_wrap=True)


def _print_known(known: KnownTable, sample: Sample, most: int, examples: int, console: Console) -> bool:
    """Say which data module reads this public data set, and what it reads; False where its files lie otherwise."""
    console.print(Text.assemble(("it is    ", "bold cyan"), f"a table that {known.module} reads: use that"))
    module: type[PreferenceDataModule] = getattr(pluralign.datamodules, known.module)
    settings = dict(known.settings)
    problem = ""
    if sample.hub is None:
        settings["data_dir"] = str(known.folder(Path(sample.readable[0].file)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = take_records(module(**settings), most)  # type: ignore[arg-type]
        except (ValueError, OSError) as error:
            problem = str(error)
        else:
            console.print(Text(f"it reads {settings['data_dir']}, of which these are the first rows:"))
            print_outcome(outcome, examples, console)
    console.rule("[bold]paste this", align="left")
    _print_block(data_block(known.module, settings), console)
    if problem:
        console.print(Text.assemble(("mind     ", "bold cyan"), f"it cannot be read so: {problem}"))
        console.print(Text("otherwise it is read as data of your own:\n"))
        return False
    page = f"docs/data_sets/{module.name}.md"
    console.print(Text(f"next: {page} says what it reads, and which recipe in configs/ trains on it"))
    return True
