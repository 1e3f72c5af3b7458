"""The parts of README and docs that follow from the code: written here, never by hand.

``python docs/generate.py`` writes them, ``python docs/generate.py --check`` names the files that differ and exits 1.
A generated part stands between two marks::

    <!-- generated: NAME -->
    <!-- end -->

NAME is a table (``methods``, ``data modules``, ``callbacks``, ``commands``, ``columns``, ``shared settings``) or one
entry of a table: a class's name, or ``pluralign`` and a verb. Every entry has a page; one that is missing is made. What
stands outside the marks is written by hand and stays.
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
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import docstring_parser
import lightning as L
import yaml

import pluralign.callbacks
import pluralign.datamodules
import pluralign.models
import pluralign.train
from pluralign.datamodules import PreferenceDataModule
from pluralign.datamodules.columns import COLUMNS

VERBS = getattr(pluralign.train, "VERBS", {})
ROOT = Path(__file__).resolve().parents[1]
MARKS = re.compile(r"(<!-- generated: (?P<name>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


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


def settings(function: Callable[..., Any], shared: Mapping[str, inspect.Parameter]) -> str:
    """Table of a constructor's arguments, but for those that it shares with others at the same default."""
    described = {
        entry.arg_name: entry.description or ""
        for entry in docstring_parser.parse(inspect.cleandoc(function.__doc__ or "")).params
    }
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    written = {argument.arg: argument for argument in [*definition.args.args, *definition.args.kwonlyargs]}
    defaults = dict(
        zip(
            (argument.arg for argument in definition.args.kwonlyargs),
            definition.args.kw_defaults,
            strict=True,
        )
    )
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        same = name in shared and parameter.default == shared[name].default
        if name == "self" or same or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        hint, default = written[name].annotation, defaults.get(name)
        shown = "" if default is None else ast.unparse(default)
        if isinstance(default, ast.Name) and plain(parameter.default):
            shown = repr(parameter.default)
        rows.append(
            (
                f"`{name}`",
                "" if hint is None else f"`{ast.unparse(hint)}`",
                shown and f"`{shown}`",
                inline(described.get(name, "")),
            )
        )
    return table(("setting", "type", "default", "meaning"), rows) if rows else ""


def recipes(name: str, page: Path) -> str:
    """The configurations that name a class."""
    named = [
        path
        for path in sorted((ROOT / "configs").glob("*.yaml"))
        if name
        in {part.get("class_path") for part in _parts(yaml.safe_load(path.read_text(encoding="utf-8")))}
    ]
    links = (f"[{path.name}]({os.path.relpath(path, ROOT / page.parent)})" for path in named)
    return f"Recipes: {', '.join(links)}." if named else ""


def _parts(settings: object) -> Iterator[dict[str, Any]]:
    if isinstance(settings, dict):
        yield settings
        for value in settings.values():
            yield from _parts(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _parts(value)


def class_entry(thing: type, folder: str, shared: Mapping[str, inspect.Parameter], about: str = "") -> Entry:
    """A class: where it is, what it is, which recipes use it, its own settings."""
    name, page = thing.__name__, Path("docs", folder, f"{stem(thing)}.md")
    source = Path(inspect.getfile(thing)).resolve().relative_to(ROOT)
    rest = inspect.cleandoc(vars(thing).get("__doc__") or "").partition("\n")[2]
    parts = [
        f"{first_line(thing)} ([{source.as_posix()}]({os.path.relpath(ROOT / source, ROOT / page.parent)})).",
        markdown(rest),
        about,
        recipes(name, page),
        settings(thing.__init__, shared),  # type: ignore[misc]  its arguments are what is asked for
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


def command_entry(name: str, summary: str) -> Entry:
    """A verb: what its help says, and the options that are its own."""
    usage, description, *groups = printed_help(name).strip().split("\n\n")
    wrapped = (re.sub(r"\n {4,}", "  ", group).splitlines() for group in groups)
    by_title = {title: lines for title, *lines in wrapped}
    own = by_title.get(f"Options of {name}:")
    shares = any("--config" in line for lines in by_title.values() for line in lines)
    lines = own or ([] if shares else [line for lines in by_title.values() for line in lines])
    rows = []
    for line in lines:
        option, _, meaning = line.strip().partition("  ")
        parts = re.fullmatch(
            r"(.*?)(?: \((?:(required), )?(?:type: .*?)?(?:, )?(?:default: (.*))?\))?", meaning.strip()
        )
        assert parts is not None  # the first group matches anything
        if not option.startswith("-h"):
            rows.append(
                (f"`{option.split()[0]}`", parts[2] or (f"`{parts[3]}`" if parts[3] else ""), parts[1])
            )
    also = (
        "It takes the options of `pluralign fit`, so that the same configuration serves; all are in `--help`."
    )
    parts = [
        f"```\n{' '.join(usage.removeprefix('usage: ').split())}\n```",
        description,
        table(("option", "default", "meaning"), rows) if rows else "",
        also if shares and name != "fit" else "",
    ]
    page = Path("docs", "commands", f"{name.replace(' ', '_')}.md")
    return Entry(f"pluralign {name}", inline(summary), page, "\n\n".join(part for part in parts if part))


def entries() -> dict[str, list[Entry]]:
    """Everything that has a page, by the name of its table."""
    base = inspect.signature(PreferenceDataModule.__init__).parameters
    data_sets = concrete(pluralign.datamodules, L.LightningDataModule).values()
    return {
        "methods": [
            class_entry(thing, "methods", {})
            for thing in concrete(pluralign.models, L.LightningModule).values()
        ],
        "data modules": [
            class_entry(
                thing,
                "data_sets",
                base,
                markdown((sys.modules[thing.__module__].__doc__ or "").partition("\n")[2]),
            )
            for thing in data_sets
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
                "" if column.missing is None else f"{column.missing:g}",
                inline(column.provided_by),
            )
            for column in COLUMNS
        ),
    )


def sections(of_tables: Mapping[str, list[Entry]]) -> dict[str, Callable[[Path], str]]:
    """Text of each generated part, by name, for the page (relative to the root) on which it stands."""

    def linked(title: str, rows: list[Entry]) -> Callable[[Path], str]:
        def text(page: Path) -> str:
            links = (
                (f"[`{row.name}`]({os.path.relpath(row.page, page.parent)})", row.summary) for row in rows
            )
            return table((title, "what it is"), links)

        return text

    parts: dict[str, Callable[[Path], str]] = {
        name: linked(name.removesuffix("s"), rows) for name, rows in of_tables.items()
    }
    parts["columns"] = lambda page: columns()
    parts["shared settings"] = lambda page: settings(PreferenceDataModule.__init__, {})
    for rows in of_tables.values():
        parts.update({row.name: lambda page, text=row.text: text for row in rows})  # type: ignore[misc]
    return parts


def generated() -> dict[Path, str]:
    """Text of every page that has a generated part, by its path relative to the root.

    Raises:
        ValueError: If a mark names nothing, or a page lacks its own part.
    """
    of_tables = entries()
    parts = sections(of_tables)
    own = {row.page: row.name for rows in of_tables.values() for row in rows}
    written = {path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    pages = {}
    for page in sorted(written | set(own)):
        name = own.get(page)
        empty = f"# {name}\n\n<!-- generated: {name} -->\n<!-- end -->\n"
        text = (ROOT / page).read_text(encoding="utf-8") if page in written else empty
        names = [mark["name"] for mark in MARKS.finditer(text)]
        if unknown := [mark for mark in names if mark not in parts]:
            raise ValueError(
                f"{page.as_posix()}: nothing is called {unknown[0]!r}; there are {', '.join(parts)}"
            )
        if name is not None and name not in names:
            raise ValueError(f"{page.as_posix()}: lacks <!-- generated: {name} --> and <!-- end -->")
        if names:
            pages[page] = MARKS.sub(
                lambda mark, page=page: f"{mark[1]}{parts[mark['name']](page)}\n{mark[3]}", text
            )  # type: ignore[misc]
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
    options = parser.parse_args()
    pages = generated()
    different = differing(pages)
    for page in different:
        print(f"{page.as_posix()} {'differs: run python docs/generate.py' if options.check else 'written'}")
        if not options.check:
            (ROOT / page).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / page).write_text(pages[page], encoding="utf-8")
    sys.exit(1 if options.check and different else 0)


if __name__ == "__main__":
    main()
