"""Lines of predictions: kept from the moment they are known, put into the input's order at the end."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pluralign.datamodules.batch import GivenRecord
from pluralign.datamodules.whole_files import appended_whole, written_whole

__all__ = ["Line", "PredictionLines", "merged"]

SETTING = "--output"
"""What names another place for predictions."""

Line = dict[str, Any]
"""One prediction, by the names of its values; JSON."""


class PredictionLines:
    """Lines in the order in which they are predicted, under a partial name; every batch is in the file at once.

    Attributes:
        path: The complete file's name.
        partial: Where this process writes.
        number: Lines so far.
    """

    def __init__(self, path: Path, *, rank: int = 0, ranks: int = 1) -> None:
        """Name the files.

        Args:
            path: The complete file.
            rank: This process.
            ranks: Number of processes.
        """
        self.path = path
        self.partials = [partial_name(path, each, ranks) for each in range(ranks)]
        self.partial = self.partials[rank]
        self.number = 0
        self._begun = False

    def refuse(self, *, overwrite: bool) -> None:
        """Refuse what is there.

        Raises:
            FileExistsError: If the complete file, or what is left of an interrupted run, may not be replaced.
        """
        if overwrite:
            return
        advice = "name another file (--output), or set overwrite (--overwrite)"
        if self.path.exists():
            raise FileExistsError(f"{self.path} is there already: {advice}")
        if self.partial.exists() and self.partial.stat().st_size:
            raise FileExistsError(f"{self.partial} holds what an interrupted run predicted: {advice}")

    def open(self) -> None:
        """Begin the file, unless it was begun.

        Raises:
            OSError: If there can be none.
        """
        if not self._begun:
            with appended_whole(self.partial, setting=SETTING) as stream:
                stream.truncate(0)
            self._begun = True

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append a line for each row of some columns; they survive this process.

        Args:
            columns: Of one length, by name; ``id`` is among them.

        Raises:
            OSError: If the disk does not take them; the lines of before stay.
        """
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        with appended_whole(self.partial, setting=SETTING) as stream:
            stream.writelines(f"{json.dumps(line, ensure_ascii=False)}\n".encode() for line in rows)
        self.number += len(rows)

    def abandon(self) -> bool:
        """Keep what the file holds, of which there may be nothing; whether there is something."""
        if self._begun and not self.number:
            self.partial.unlink(missing_ok=True)
        self._begun = False
        return self.number > 0

    def finish(self, given: Iterable[GivenRecord], complete: Callable[[GivenRecord, Line], Line]) -> int:
        """Put the lines of every process into the input's order, under the complete name; returns their number.

        Args:
            given: The input's records, in order.
            complete: Adds to a line what its record says.

        Raises:
            FileNotFoundError: If the lines of a process are not where this one can read them.
            OSError: If the disk does not take the complete file; what was predicted stays where it is.
        """
        partials = [path for path in self.partials if path.exists()]
        number = 0
        with written_whole(self.path, setting=SETTING) as stream:
            for record, line in merged(partials, given):
                line = line if record is None else complete(record, line)
                stream.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
                number += 1
        for path in partials:
            path.unlink()
        return number

    def check_ranks(self) -> None:
        """Make sure that every process's lines can be read here.

        Raises:
            FileNotFoundError: Naming the file that cannot.
        """
        for path in self.partials:
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is not here, so that predictions cannot be put together: predict into a folder that all "
                    "machines share, or on one machine; what each has predicted is kept"
                )


def partial_name(path: Path, rank: int, ranks: int) -> Path:
    """Where a process writes until the file is complete."""
    ending = f".rank{rank}.partial" if ranks > 1 else ".partial"
    return path.with_name(f"{path.name}{ending}")


def merged(paths: Sequence[Path], given: Iterable[GivenRecord]) -> Iterator[tuple[GivenRecord | None, Line]]:
    """Lines of several files in the order of the input's records; lines of no such record follow in their own order.

    Lines of a record stand together in one of the files. Where each record's begin is kept in a temporary database on
    disk: memory holds one record's lines, however many there are.

    Args:
        paths: Files of lines.
        given: The input's records.

    Yields:
        The record, None for a line of none of them, and the line.
    """
    database = sqlite3.connect("")  # without a name it is a file of its own, which goes with the connection
    streams = [path.open("rb") for path in paths]
    try:
        database.execute("create table lines (id text, file integer, start integer)")
        for number, stream in enumerate(streams):
            beginnings = ((name, number, start) for name, start in _beginnings(stream))
            database.executemany("insert into lines values (?, ?, ?)", beginnings)
        database.execute("create index by_id on lines (id)")
        for record in given:
            found = database.execute("delete from lines where id = ? returning file, start", (record.id,))
            for file, start in sorted(found.fetchall()):
                for line in _lines_at(streams[file], start):
                    yield record, line
        for file, start in database.execute("select file, start from lines order by file, start"):
            for line in _lines_at(streams[file], start):
                yield None, line
    finally:
        database.close()
        for stream in streams:
            stream.close()


def _beginnings(stream: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Record id and place of the first line of each record."""
    start, before = 0, None
    for text in stream:
        name: str = json.loads(text)["id"]
        if name != before:
            yield name, start
        before, start = name, start + len(text)


def _lines_at(stream: IO[bytes], start: int) -> Iterator[Line]:
    """The lines of the record that begins there."""
    stream.seek(start)
    name = None
    for text in stream:
        line: Line = json.loads(text)
        if name not in (None, line["id"]):
            return
        name = line["id"]
        yield line
