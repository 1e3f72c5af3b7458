"""What a user calls the rows of a split becomes the tables that hold them: a file, a pattern, a list, a folder, another store.

The tables come in natural order (``part-2`` before ``part-10``) and are all of one kind, so that where a row stands depends on
names alone. A row's id, if it has none of its own, follows its content: the same rows in one file or in many have the same ids.
"""

import glob
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from .arrow_files import STATE, saved_files, saved_splits
from .copies import RemoteFiles, is_remote, without_secrets
from .files import ENDINGS, TableKind, read_table, table_kind
from .reading import PACKINGS, readable, refuse_special
from .record import RecordError, listed
from .rows import SourceRow

__all__ = ["SourceTable", "TableSource", "find_tables"]

Reader = Callable[[Path], Iterator[SourceRow | RecordError]]
NO_TABLES = ("", ".md", ".txt", ".rst", ".yaml", ".yml", ".html", ".png", ".py", ".lock")
"""Endings of what may stand beside the shards in a folder."""
SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)", re.ASCII)


class SourceTable(NamedTuple):
    """One file, or one folder of ``save_to_disk``.

    Attributes:
        name: What messages call it.
        path: Where it is on this machine.
    """

    name: str
    path: Path

    @property
    def files(self) -> list[Path]:
        """Files whose bytes decide the rows.

        Raises:
            RecordError: If a folder is not one of ``save_to_disk``.
            FileNotFoundError: If it lacks a file.
        """
        return saved_files(self.path) if self.path.is_dir() else [self.path]

    def rows(self, read: Reader = read_table) -> Iterator[SourceRow | RecordError]:
        """Its rows, read as one takes them.

        Args:
            read: Reads a file or folder on this machine.

        Raises:
            RecordError: If it cannot be read as a whole.
        """
        if self.name == str(self.path):
            yield from read(self.path)
            return
        try:
            for row in read(self.path):
                if isinstance(row, RecordError):
                    yield row.at(self.name, row.line)
                else:
                    yield row._replace(file=self.name)
        except RecordError as error:
            raise error.at(self.name, error.line) from error


class TableSource(NamedTuple):
    """Tables of one kind, in order.

    Attributes:
        kind: What they are.
        tables: At least one.
    """

    kind: TableKind
    tables: tuple[SourceTable, ...]

    @property
    def files(self) -> list[Path]:
        """Files whose bytes decide the rows, in order."""
        return [path for table in self.tables for path in table.files]

    def rows(self, read: Reader = read_table) -> Iterator[SourceRow | RecordError]:
        """All rows, read as one takes them: the first few of a huge file cost nothing.

        Args:
            read: Reads a table.

        Raises:
            RecordError: If a table cannot be read as a whole.
        """
        for table in self.tables:
            yield from table.rows(read)


def find_tables(
    given: str | Sequence[str],
    *,
    copies: Path,
    argument: str = "file",
    split: str | None = None,
    endings: str = ", ".join(ENDINGS),
) -> TableSource:
    """Find what holds the rows; reads none.

    Args:
        given: A file; a pattern (``data/train-*.parquet``, ``**`` for folders in folders); a folder of shards; a folder of
            ``save_to_disk``; a name that ``fsspec`` reads (``s3://...``); or a list of such. ``~`` is the home folder.
        copies: Folder for copies of files of other stores.
        argument: What the user calls it, for errors.
        split: Split that is read where a folder of ``save_to_disk`` has several; None where nobody says.
        endings: How files may end, as a phrase for errors.

    Raises:
        FileNotFoundError: If something is not there; says what is.
        ValueError: If a file has an ending that nobody reads, tables are of several kinds, one is named twice, or shards
            are missing.
        RecordError: If nobody may look, or a store does not answer.
    """
    tables: list[SourceTable] = []
    for name in [given] if isinstance(given, str) else given:
        tables += _Search(name, argument, split, endings).tables(copies)
    names = [table.name for table in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{argument} names {twice[0]} twice: its rows would count twice")
    kinds: dict[TableKind, str] = {table_kind(table.path): table.name for table in reversed(tables)}
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise ValueError(
            f"{argument} names tables of several kinds: {other} is {second}, {one} is {first}; name those of one kind, such "
            f"as {Path(other).parent}/*{_ending(Path(other))}"
        )
    return TableSource(next(iter(kinds)), tuple(tables))


class _Search(NamedTuple):
    """One name, and who gave it."""

    given: str
    argument: str
    split: str | None
    endings: str

    @property
    def shown(self) -> str:
        """The name for messages."""
        return without_secrets(self.given) if is_remote(self.given) else self.given

    def tables(self, copies: Path) -> list[SourceTable]:
        """Tables that it stands for."""
        path = Path(self.given)
        if is_remote(self.given):
            remote = RemoteFiles(self.given)
            if remote.local is None:
                names = [remote.path] if remote.is_file() else self._shards(remote.names())
                return [SourceTable(remote.shown(name), remote.copied(name, copies)) for name in names]
            path = remote.local
        try:
            path = path.expanduser()
        except RuntimeError as error:
            raise FileNotFoundError(f"{self.argument}={self.shown!r}: {error}") from error
        with readable(path, "a file"):
            if path.is_file():
                return [SourceTable(str(path), path)]
            if path.is_dir():
                return self._in_folder(path)
            if path.exists():
                refuse_special(path)
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if glob.has_magic(str(path)) and matched:
            folders = [match for match in matched if match.is_dir() and not (match / STATE).is_file()]
            files = [str(match) for match in matched if match not in folders]
            return [SourceTable(name, Path(name)) for name in self._shards(files)]
        raise self._missing(path)

    def _in_folder(self, folder: Path) -> list[SourceTable]:
        """Tables of a folder: itself, one of the splits in it, or the shards in it."""
        if (folder / STATE).is_file():
            return [SourceTable(str(folder), folder)]
        if splits := saved_splits(folder):
            if self.split not in splits:
                raise FileNotFoundError(
                    f"{self.argument}={self.shown!r} has the splits {listed(splits)}, and no {self.split}: give the folder of "
                    f"one, such as {folder / splits[0]}"
                )
            return [SourceTable(str(folder / self.split), folder / self.split)]
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "_"))]
        names = [str(entry) for entry in entries if entry.is_file() and _ending(entry) not in NO_TABLES]
        if deeper := [entry.name for entry in entries if entry.is_dir()]:
            raise FileNotFoundError(
                f"{self.argument}={self.shown!r} is a folder with folders in it ({listed(sorted(deeper))}), and it is not clear "
                f"which files are meant: change {self.argument} to a pattern such as {folder}/{_pattern(folder)}"
            )
        if not names:
            raise self._missing(folder)
        return [SourceTable(name, Path(name)) for name in self._shards(names)]

    def _shards(self, names: Collection[str]) -> list[str]:
        """Names in order, after a check that none is missing or there in two forms."""
        ordered = sorted(names, key=lambda name: (_natural(name), name))
        if not ordered:
            raise FileNotFoundError(
                f"{self.argument}={self.shown!r} matches no file: change {self.argument} to the name of one"
            )
        plain = [
            name.removesuffix(Path(name).suffix) if Path(name).suffix in PACKINGS else name
            for name in ordered
        ]
        for one, other, first, second in zip(ordered, ordered[1:], plain, plain[1:], strict=False):
            if first == second:
                raise ValueError(
                    f"{self.argument}={self.shown!r} matches {one} and {other}: its rows would count twice"
                )
        self._refuse_missing_shards(ordered)
        return ordered

    def _refuse_missing_shards(self, names: Collection[str]) -> None:
        """Refuse a set ``...-00000-of-00010...`` that lacks some, or that is there in two divisions."""
        shards = [match.groups() for name in names if (match := SHARD.fullmatch(name))]
        families = groupby(
            sorted(shards, key=lambda shard: (shard[0], shard[3])), lambda shard: (shard[0], shard[3])
        )
        for (start, end), members in families:
            totals: dict[str, set[int]] = {}
            for _, number, total, _ in members:
                totals.setdefault(total, set()).add(int(number))
            if len(totals) > 1:
                raise ValueError(
                    f"{self.argument}={self.shown!r} matches {start}...{end} divided into {listed(sorted(totals))} files: rows "
                    "would count twice; name one division"
                )
            ((total, there),) = totals.items()
            first = 1 if int(total) in there and 0 not in there else 0
            if lacking := sorted(set(range(first, first + int(total))) - there):
                missing = listed([f"{number:0{len(total)}d}" for number in lacking], 5)
                raise FileNotFoundError(
                    f"{self.argument}={self.shown!r}: of the {int(total)} files {start}...-of-{total}{end}, {missing} "
                    "are not there; get them, or name the files to read in a list"
                )

    def _missing(self, path: Path) -> FileNotFoundError:
        """The error of a name that is nothing, with what is there."""
        folder = path
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        with readable(folder, "a folder"):
            there = sorted(other.name for other in folder.iterdir())
        kind = "a folder without tables" if path.is_dir() else "not a file"
        if path.is_symlink():
            kind = f"a link to {path.readlink()}, which is not there"
        elif glob.has_magic(str(path)):
            kind = "a pattern that matches nothing"
        return FileNotFoundError(
            f"{self.argument}={self.shown!r} is {kind} (looked for {path.absolute()}; {folder.absolute()} "
            f"{f'has {listed(there)}' if there else 'is empty'}): change {self.argument} to the path of a {self.endings} file"
        )


def _pattern(folder: Path) -> str:
    """A pattern of the first files in a folder, or in its folders, that are tables by their ending."""
    ways = ("*", "*/*", "*/*/*", "*/*/*/*")
    for way in ways:
        for path in sorted(islice(folder.glob(way), 1000)):
            ending = _ending(path)
            if (
                ending.removesuffix(path.suffix if path.suffix in PACKINGS else "") in ENDINGS
                and path.is_file()
            ):
                return ("**/" if "/" in way else "") + f"*{ending}"
    return "*.parquet, or ** for folders in folders"


def _natural(name: str) -> list[int | str]:
    """Numbers in a name as numbers, so that 2 comes before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def _ending(path: Path) -> str:
    """The ending of a file, with that of its packing."""
    return "".join(path.suffixes[-2:]) if path.suffix.lower() in PACKINGS else path.suffix.lower()
