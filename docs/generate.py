"""The parts of README and docs that follow from the code: written here, never by hand.

``python docs/generate.py`` writes them, ``python docs/generate.py --check`` names the files that differ and exits 1.
A generated part stands between two marks::

    <!-- generated: NAME -->
    <!-- end -->

NAME is a table (``methods``, ``data modules``, ``callbacks``, ``commands``, ``columns``, ``shared settings``, ``settings of
prompts``, ``settings of methods``) or one entry of a table: a class's name, or ``pluralign`` and a verb. Every entry has a page; one
that is missing is made. What stands outside the marks is written by hand and stays.
"""

import argparse
import ast
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import docstring_parser
import lightning as L

import pluralign.callbacks
import pluralign.datamodules
import pluralign.models
from pluralign.datamodules.columns import COLUMNS
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.prompts import PromptDataModule
from pluralign.models import RespondingModule, RolloutModule
from pluralign.models.base import BaseModule
from pluralign.train import VERBS

ROOT = Path(__file__).resolve().parents[1]
MARKS = re.compile(r"(<!-- generated: (?P<name>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SHARED = (
    "It takes the options of `pluralign fit`, so that the same configuration serves; all are in `--help`."
)
LEFT_OUT = ("Attributes:", "Example:")
"""Sections of a docstring that a page goes without."""


class Entry(NamedTuple):
    """A method, data module, callback or command."""

    name: str
    """Class, or ``pluralign`` and a verb."""
    summary: str
    """One line without a full stop."""
    page: Path
    """Relative to the root."""
    text: str
    """What its page says of it."""


# From docstrings to Markdown ---------------------------------------------------------------------------


def inline(text: str) -> str:
    """The marks within a line: ``code`` and roles become `code`, :math: becomes $formula$."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text)


def indented(lines: list[str], start: int) -> int:
    """Where a block of indented and blank lines ends; blank lines at its end are not of it."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
        end += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return end


def blocks(lines: list[str]) -> Iterator[str]:
    """Lines of Markdown, from those of a docstring without common indentation."""
    place = 0
    while place < len(lines):
        line, end = lines[place], indented(lines, place + 1)
        inner = textwrap.dedent("\n".join(lines[place + 1 : end])).strip("\n")
        starts = not line.startswith((" ", "* ", "- ")) and (place == 0 or lines[place - 1][:1] in ("", " "))
        if line.startswith(".. math::"):
            formula = f"{line.removeprefix('.. math::')} {inner}"
            yield f"$${' '.join(formula.split())}$$"
        elif line.startswith(".. "):  # versionadded and the like
            pass
        elif line.endswith("::"):
            yield from (inline(line[:-1]), "", "```", *inner.splitlines(), "```")
        elif re.fullmatch(r"=+( +=+)+", line):
            end = place + 1 + max(i for i, other in enumerate(lines[place + 1 :]) if other == line) + 1
            yield from (
                "```",
                *(row.replace("``", "") for row in lines[place + 1 : end - 1] if row != line),
                "```",
            )
        elif inner and starts and lines[place + 1].strip():  # a term and what it means
            if line not in LEFT_OUT:
                yield from ("", f"**{inline(line)}**", "", *blocks(inner.splitlines()), "")
        else:
            end = place + 1
            yield inline(line)
        place = end


def markdown(text: str | None) -> str:
    """A docstring, or a part of one, in Markdown."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(blocks(inspect.cleandoc(text or "").splitlines()))).strip()


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; cells are one line each."""
    lines = [list(titles), *([" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# What there is -----------------------------------------------------------------------------------------


def concrete(room: ModuleType, base: type) -> dict[str, type]:
    """Classes of a room's face that one can use, by name: no bases of others."""
    classes = {name: getattr(room, name) for name in room.__all__ if isinstance(getattr(room, name), type)}
    return {
        name: found
        for name, found in sorted(classes.items(), key=lambda item: item[0].lower())
        if issubclass(found, base)
        and not inspect.isabstract(found)
        and not found.__module__.endswith(".base")
    }


def stem(thing: type) -> str:
    """Name of the file of a class, or of its folder."""
    parts = [part for part in thing.__module__.split(".") if part != "module"]
    return parts[-1]


def first_line(thing: type) -> str:
    """First line of a class's docstring, without its full stop."""
    return inline((vars(thing).get("__doc__") or "").strip().splitlines()[0].rstrip("."))


def plain(value: object) -> bool:
    """Whether a default reads well as Python writes it."""
    return (
        value is None
        or isinstance(value, str | int | float)
        or (isinstance(value, tuple) and all(map(plain, value)))
    )


def settings(thing: type, shared: Mapping[str, inspect.Parameter]) -> str:
    """Table of a class's settings, as its constructor has them, but for those shared with others at the same default."""
    constructor = vars(thing).get("__init__")
    if constructor is None:
        return ""
    described = docstring_parser.parse(inspect.cleandoc(constructor.__doc__ or "")).params
    meanings = {entry.arg_name: entry.description or "" for entry in described}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body
    assert isinstance(definition, ast.FunctionDef)  # what a constructor is
    named, keywords = definition.args.args, definition.args.kwonlyargs
    values = [*definition.args.defaults, *definition.args.kw_defaults]
    written = dict(
        zip((argument.arg for argument in reversed([*named, *keywords])), reversed(values), strict=False)
    )
    rows = []
    for argument in [*named[1:], *keywords]:
        default = inspect.signature(constructor).parameters[argument.arg].default
        if argument.arg in shared and default == shared[argument.arg].default:
            continue
        value = written.get(argument.arg)
        shown = "" if value is None else ast.unparse(value)
        if isinstance(value, ast.Name) and plain(default):  # a constant: its value says more than its name
            shown = repr(default)
        hint = "" if argument.annotation is None else f"`{ast.unparse(argument.annotation)}`"
        rows.append(
            (f"`{argument.arg}`", hint, shown and f"`{shown}`", inline(meanings.get(argument.arg, "")))
        )
    return table(("setting", "type", "default", "meaning"), rows) if rows else ""


def recipes(name: str, page: Path) -> str:
    """The configurations that name a class."""
    wanted = re.compile(rf"class_path: {name}$", re.MULTILINE)
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    named = [path for path in paths if wanted.search(path.read_text(encoding="utf-8"))]
    links = (f"[{path.name}]({os.path.relpath(path, ROOT / page.parent)})" for path in named)
    return f"Recipes: {', '.join(links)}." if named else ""


def class_entry(thing: type, folder: str, shared: Mapping[str, inspect.Parameter], about: str = "") -> Entry:
    """A class: where it is, what it is (with all but the first line of ``about``), its recipes, its own settings."""
    name, page = thing.__name__, Path("docs", folder, f"{stem(thing)}.md")
    source = Path(inspect.getfile(thing)).resolve().relative_to(ROOT)
    rest = inspect.cleandoc(vars(thing).get("__doc__") or "").partition("\n")[2]
    parts = [
        f"{first_line(thing)} ([{source.as_posix()}]({os.path.relpath(ROOT / source, ROOT / page.parent)})).",
        markdown(rest),
        markdown(about.partition("\n")[2]),
        recipes(name, page),
        settings(thing, shared),
    ]
    return Entry(name, first_line(thing), page, "\n\n".join(part for part in parts if part))


def printed_help(name: str) -> str:
    """What ``pluralign VERB --help`` prints, every option on one line."""
    module, _, function = VERBS[name].function.partition(":")
    with (
        redirect_stdout(StringIO()) as stream,
        suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="10000"),
    ):
        getattr(import_module(f"pluralign.commands.{module}"), function)(["--help"])
    return stream.getvalue()


def options(lines: Iterable[str]) -> str:
    """Table of the options of a help's lines."""
    rows = []
    for line in lines:
        option, _, meaning = line.strip().partition("  ")
        end = re.search(r" ?\((?:(required), )?(?:type: .*?)?(?:, )?(?:default: (.*))?\)$", meaning)
        required, default = (end[1], end[2]) if end else (None, None)
        text = meaning.strip() if end is None else meaning[: end.start()].strip()
        if not option.startswith("-h"):
            rows.append((f"`{option.split()[0]}`", required or (default and f"`{default}`") or "", text))
    return table(("option", "default", "meaning"), rows) if rows else ""


def command_entry(name: str, summary: str) -> Entry:
    """A verb: what its help says, and the options that are its own."""
    usage, description, *groups = printed_help(name).strip().split("\n\n")
    wrapped = (re.sub(r"\n {4,}", "  ", group).splitlines() for group in groups)
    by_title = {title: lines for title, *lines in wrapped}
    every = [line for lines in by_title.values() for line in lines]
    shares = any("--trainer.max_epochs" in line for line in every)
    parts = [
        f"```\n{' '.join(usage.removeprefix('usage: ').split())}\n```",
        inline(description),
        options(by_title.get(f"Options of {name}:", [] if shares else every)),
        SHARED if shares and name != "fit" else "",
    ]
    page = Path("docs", "commands", f"{name.replace(' ', '_')}.md")
    return Entry(f"pluralign {name}", inline(summary), page, "\n\n".join(part for part in parts if part))


def entries() -> dict[str, list[Entry]]:
    """Everything that has a page, by the name of its table."""
    bases = {base: inspect.signature(base.__init__).parameters for base in (PreparedData, PromptDataModule)}

    def shared(thing: type) -> Mapping[str, inspect.Parameter]:
        return next((settings for base, settings in bases.items() if issubclass(thing, base)), {})

    return {
        "methods": [
            class_entry(thing, "methods", {})
            for thing in concrete(pluralign.models, L.LightningModule).values()
        ],
        "data modules": [
            class_entry(thing, "data_sets", shared(thing), sys.modules[thing.__module__].__doc__ or "")
            for thing in concrete(pluralign.datamodules, L.LightningDataModule).values()
        ],
        "callbacks": [
            class_entry(thing, "callbacks", {})
            for thing in concrete(pluralign.callbacks, L.Callback).values()
        ],
        "commands": [command_entry(name, verb.summary) for name, verb in VERBS.items()],
    }


# Sections and pages ------------------------------------------------------------------------------------


def columns() -> str:
    """Table of the columns of the data."""
    return table(
        ("key", "one for each", "meaning", "where missing", "provided by"),
        (
            (
                f"`{column.name}`",
                column.item,
                inline(column.meaning),
                "" if column.missing is None else f"{column.missing:g}".replace("nan", "NaN"),
                inline(column.provided_by),
            )
            for column in COLUMNS
        ),
    )


def linked(rows: Iterable[Entry], kind: str, page: Path) -> str:
    """Table of entries, with links to their pages from a page (relative to the root)."""
    links = ((f"[`{row.name}`]({os.path.relpath(row.page, page.parent)})", row.summary) for row in rows)
    return table((kind, "what it is"), links)


def sections(of_tables: Mapping[str, list[Entry]]) -> dict[str, Callable[[Path], str]]:
    """Text of each generated part, by name, for the page (relative to the root) on which it stands."""

    def anywhere(text: str) -> Callable[[Path], str]:
        return lambda page: text

    return {
        **{name: partial(linked, rows, name.removesuffix("s")) for name, rows in of_tables.items()},
        "columns": anywhere(columns()),
        "shared settings": anywhere(settings(PreparedData, {})),
        "settings of prompts": anywhere(settings(PromptDataModule, {})),
        "settings of methods": anywhere(settings(BaseModule, {})),
        "settings of responses": anywhere(settings(RespondingModule, {})),
        "settings of rounds": anywhere(settings(RolloutModule, {})),
        **{row.name: anywhere(row.text) for rows in of_tables.values() for row in rows},
    }


def filled(page: Path, text: str, parts: Mapping[str, Callable[[Path], str]]) -> str:
    """A page's text with its generated parts as they should be.

    Raises:
        ValueError: If a mark names nothing.
    """

    def part(mark: re.Match[str]) -> str:
        if mark["name"] not in parts:
            raise ValueError(
                f"{page.as_posix()}: nothing is called {mark['name']!r}; there are {', '.join(parts)}"
            )
        return f"{mark[1]}{parts[mark['name']](page)}\n{mark[3]}"

    return MARKS.sub(part, text)


def generated() -> dict[Path, str]:
    """Text of every page as it should be, by its path relative to the root.

    Raises:
        ValueError: If a mark names nothing, or a page lacks its own part.
    """
    of_tables = entries()
    parts = sections(of_tables)
    names = {row.page: row.name for rows in of_tables.values() for row in rows}
    written = {path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    pages = {}
    for page in sorted(written | set(names)):
        own = f"<!-- generated: {names[page]} -->\n" if page in names else ""
        text = f"# {names.get(page)}\n\n{own}<!-- end -->\n"
        if page in written:
            text = (ROOT / page).read_text(encoding="utf-8")
        if own not in text:
            raise ValueError(f"{page.as_posix()}: lacks {own.strip()} and <!-- end -->")
        pages[page] = filled(page, text, parts)
    return pages


def differing(pages: Mapping[Path, str]) -> list[Path]:
    """Pages that do not stand as generated."""
    return [
        page
        for page, text in pages.items()
        if not (ROOT / page).is_file() or (ROOT / page).read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page differs")
    check = parser.parse_args().check
    pages = generated()
    different = differing(pages)
    for page in different:
        print(f"{page.as_posix()} {'differs: run python docs/generate.py' if check else 'written'}")
        if not check:
            (ROOT / page).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / page).write_text(pages[page], encoding="utf-8")
    sys.exit(1 if check and different else 0)


if __name__ == "__main__":
    main()
