"""``pluralign data inspect FILE``: what the data seem to be, how to read them, and what their first rows then say."""

import re
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt
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
from pluralign.datamodules.tokens import SplitReport

from .outcomes import data_block, print_outcome
from .parser import Parser
from .program import EPILOG
from .sampling import Outcome, Sample, SampledDataModule, take_records, take_sample, tokenised

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
        {str(code): meaning for code, meaning in options.codes.items()},  # YAML reads numbers
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
        if any(question.readings for question in guess.questions):
            _print_how_to_choose(len(guess.questions), console)
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
    add("--rows", type=PositiveInt, default=2000, help="how many rows are looked at")
    add("--examples", type=NonNegativeInt, default=3, help="how many of them are shown")
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
            data_block("LocalDataModule", {guess.split: sample.train, **guess.settings(reading)}), console
        )


def _print_how_to_choose(questions: int, console: Console) -> None:
    what = (
        "Paste the one that is right, or give its settings here"
        if questions == 1
        else f"{questions} things are open, and each reading settles one of them: give the settings of the right ones here"
    )
    console.print(Text(f"\n{what}: --columns, --codes, --positive."))


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
    names = guess.table.columns if len(guess.table.rows) > 1 else guess.table.top
    for name in islice((name for name in names if name in guess.table.columns), 40):
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
        # Of a training split some rows are held out.
        split = "test" if guess.split == "train" else guess.split
        data = SampledDataModule(sample, split, settings, on_invalid="skip")
        outcome = take_records(data, len(sample.rows))
        report = tokenised(sample, split, settings) if outcome.records else SplitReport()
    sides = [
        str(guess.reading.columns.get(name)) for name in ("first", "second") if name in guess.reading.columns
    ]
    print_outcome(
        outcome, examples, console, sides=sides, dropped=report.dropped, unread=data.unread_columns(split)
    )
    if not report.records:
        console.print(Text.assemble(("mind     ", "bold cyan"), "nothing is left of these rows"))
        raise SystemExit(NOTHING_CHOSEN)
    console.rule("[bold]paste this", align="left")
    if sample.hub is not None:
        console.print(
            Text(f"# {sample.hub.place}, written to a folder by datasets.load_dataset(...).save_to_disk(...)")
        )
    rows = sample.train if sample.hub is None else sample.hub.name.partition("/")[2]
    _print_block(
        data_block("LocalDataModule", {guess.split: rows, **settings, **_skipping(outcome)}), console
    )
    compared = guess.split == "predict" or any(record.comparisons for record in outcome.records)
    _print_next(guess.split, "bradley_terry_local" if compared else "dprm_local", console)


def _skipping(outcome: Outcome) -> dict[str, object]:
    """The setting by which a run loses the rows that were lost here; without it they stop the run."""
    return {"on_invalid": "skip"} if outcome.lost else {}


def _print_next(split: str, recipe: str, console: Console) -> None:
    given = f"--config configs/{recipe}.yaml --config data.yaml"
    if split == "predict":
        said = "next: nobody compared these answers, so that nothing can be learnt from them; a trained model scores them"
        commands = [f"pluralign predict {given} --ckpt_path last --output rewards.jsonl"]
    else:
        said = "next: write it to data.yaml, look at lengths and agreement, then train"
        commands = [f"pluralign data inspect {given}", f"pluralign fit {given}"]
    console.print(Text("\n  ".join([said, *commands])), soft_wrap=True)


def _print_known(known: KnownTable, sample: Sample, most: int, examples: int, console: Console) -> bool:
    """Say which data module reads this public data set, and what it reads; False where its files lie otherwise."""
    console.print(Text.assemble(("it is    ", "bold cyan"), f"a table that {known.module} reads: use that"))
    module: type[PreferenceDataModule] = getattr(pluralign.datamodules, known.module)
    if sample.hub is not None:
        settings, problem = dict(known.settings), ""
    else:
        settings, problem = _print_first_rows(module, known, sample, most, examples, console)
    if problem:
        console.print(Text.assemble(("mind     ", "bold cyan"), f"it cannot be read so: {problem}"))
        console.print(Text("otherwise it is read as data of your own:\n"))
        return False
    console.rule("[bold]paste this", align="left")
    _print_block(data_block(known.module, settings), console)
    recipes = _recipes(known.module)
    page = f"docs/data_sets/{module.name}.md says what it reads"
    if recipes:
        console.print(
            Text(
                f"next: write it to data.yaml and give it behind a recipe of this data set; {page}\n"
                + "\n".join(f"  pluralign fit --config configs/{name} --config data.yaml" for name in recipes)
            ),
            soft_wrap=True,
        )
    else:
        console.print(Text(f"next: write it to data.yaml; {page}"), soft_wrap=True)
    return True


def _print_first_rows(
    module: type[PreferenceDataModule],
    known: KnownTable,
    sample: Sample,
    most: int,
    examples: int,
    console: Console,
) -> tuple[dict[str, object], str]:
    """Print what a data module makes of its files; the settings that read them, and why none do."""
    folder = str(known.folder(Path(sample.readable[0].file)))
    problem = ""
    for others in ((), known.otherwise) if known.otherwise else ((),):
        settings = {**dict(known.settings), "data_dir": folder, **dict(others)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = take_records(module(**settings), most)  # type: ignore[arg-type]
        except (ValueError, OSError) as error:
            problem = problem or str(error)
            continue
        console.print(Text(f"it reads {folder}, of which these are the first rows:"))
        print_outcome(outcome, examples, console)
        return settings | _skipping(outcome), ""
    return {}, problem


def _recipes(module: str) -> list[str]:
    """Names of the recipes that train on a data module."""
    named = re.compile(rf"^data:\n  class_path: {module}$", re.MULTILINE)  # not as a source of a mixture
    folder = Path(pluralign.datamodules.__file__).parents[1] / "configs"
    return [
        path.name for path in sorted(folder.glob("*.yaml")) if named.search(path.read_text(encoding="utf-8"))
    ]
