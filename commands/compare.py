"""``pluralign compare``: who wrote the better responses, by rewards and judges."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pluralign.datamodules.checks import check_range
from pluralign.datamodules.whole_files import written_whole
from pluralign.inference import WrittenResponse, join_responses, read_responses

from .compare_report import comparison_report
from .compare_tables import comparison_tables
from .judges import configured_judges
from .program import verb_parser

__all__ = ["compare"]


def compare(words: Sequence[str]) -> None:
    """Compare files of responses to the same items, as `pluralign generate` writes them: who wins how often.

    Of two responses the one wins that more of the item's criteria are for, by rewards or by judges, who are asked in both
    orders; a tie counts half. Win rates have intervals and tests over prompts, and stand beside how different and how long the
    responses are. More than two files are compared all against all.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If files do not fit together, or there is nobody to judge.
    """
    options = _parser().parse_args(words)
    check_range("--num_resamples", options.num_resamples, at_least=100)
    check_range("--seed", options.seed, at_least=0)
    judges = configured_judges(None if options.judges is None else Path(options.judges), options.words)
    files = _files(options.files)
    joined = join_responses(files, missing=options.missing)
    report = comparison_report(joined, judges, num_resamples=options.num_resamples, seed=options.seed)
    console = Console()
    for table in comparison_tables(report):
        console.print(table)
    if options.output is not None:
        path = Path(options.output)
        text = json.dumps(report.content(), ensure_ascii=False, indent=1, allow_nan=False)
        with written_whole(path, setting="--output") as stream:
            stream.write(f"{text}\n".encode())
        console.print(f"comparison: {path}", soft_wrap=True, highlight=False, markup=False)


def _files(given: Sequence[str]) -> dict[str, list[WrittenResponse]]:
    """Responses by the names of their sources.

    Raises:
        ValueError: If there is one file only, or two have one name.
    """
    named: dict[str, Path] = {}
    for word in given:
        name, equals, path = word.partition("=")
        # A file's own name may hold the sign.
        place = Path(word) if not equals or Path(word).exists() else Path(path)
        name = place.name.partition(".")[0] if place == Path(word) else name
        if not name or name in named:
            raise ValueError(f"{word}: each file needs a name of its own; write NAME={place}")
        named[name] = place
    if len(named) < 2:
        raise ValueError(f"give at least two files of responses; got {given[0]}")
    return {name: read_responses(path) for name, path in named.items()}


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("compare", compare.__doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="files of responses, FILE or NAME=FILE, two or more")
    add("--judges", metavar="FILE", help="YAML file with rewards, judges and tie_width")
    add(
        "--words",
        action="append",
        default=[],
        metavar="NAME=WORD,WORD",
        help="reward without a model: share of a response's words that are among these; may be given again",
    )
    add(
        "--missing",
        choices=("error", "count"),
        default="error",
        help="what to do where a file lacks a response that another one has (%(default)s)",
    )
    add(
        "--num_resamples",
        type=int,
        default=2000,
        help="resamples of the bootstrap over prompts (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the bootstrap and of the tests (%(default)s)")
    add("--output", "-o", metavar="FILE", help="JSON file to write, too")
    return parser
