"""Tables as text: CSV, and TSV, whose cells are parted by tabs. Their rows are read one at a time."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from .reading import Utf8Text, open_bytes
from .record import RecordError
from .rows import SourceRow

__all__ = ["read_csv", "read_tsv", "refuse_repeated"]


def read_csv(path: Path, *, delimiter: str = ",") -> Iterator[SourceRow | RecordError]:
    """Rows of a CSV file with a header; cells are strings, empty cells are left out.

    Args:
        path: The file.
        delimiter: What stands between cells; of CSV it may be another mark, if the header says so.

    Raises:
        RecordError: If the file as a whole cannot be read: bytes that are not UTF-8, a quote that stays open, a column
            given twice. What comes behind cannot be trusted, so none of it is skipped.
    """
    kind = "TSV" if delimiter == "\t" else "CSV"
    with open_bytes(path) as stream:
        lines = iter(Utf8Text(path, stream))
        header = next(lines, "")
        if delimiter == ",":
            delimiter = _delimiter(header)
        reader = csv.DictReader(chain([header] if header else [], lines), delimiter=delimiter, strict=True)
        try:
            refuse_repeated(path, [name for name in _header(reader) if name])
            while (fields := _next_row(reader)) is not None:
                yield _row(path, reader, fields)
        except csv.Error as error:  # an open quote
            allowed = (
                f"well-formed {kind}: a cell with a quote in it stands in quotes, and has that quote twice"
            )
            line = reader.line_num + 1
            raise RecordError(
                "line", str(error), allowed, reason=f"not {kind}", file=str(path), line=line
            ) from error


def read_tsv(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file like CSV with tabs between cells.

    Raises:
        RecordError: As :func:`read_csv`.
    """
    return read_csv(path, delimiter="\t")


def _row(
    path: Path, reader: "csv.DictReader[str]", fields: dict[str | Any, str | Any]
) -> SourceRow | RecordError:
    surplus = fields.pop(None, None)
    if surplus is not None:
        allowed = f"{len(reader.fieldnames or [])} cells, as in the header"
        return RecordError(
            "line", surplus, allowed, reason="wrong type", file=str(path), line=reader.line_num
        )
    if (
        None in fields.values()
    ):  # a cut row: what it lacks would be read as unknown, and a share as everybody's
        given = [cell for cell in fields.values() if cell is not None]
        allowed = f"{len(reader.fieldnames or [])} cells, as in the header, be they empty"
        return RecordError(
            "line", given, allowed, reason="wrong length", file=str(path), line=reader.line_num
        )
    cells = {name: cell for name, cell in fields.items() if name is not None and cell}
    return SourceRow(str(path), reader.line_num, cells)


def _delimiter(header: str) -> str:
    """What stands between the cells of a CSV file: a comma, unless a header without any is divided by other marks.

    Spreadsheets write semicolons where the comma is the decimal mark.
    """
    with _cells_of_any_length():
        cells = next(csv.reader([header]), [])
    others = [mark for mark in ";\t" if mark in header]
    return others[0] if len(cells) == 1 and len(others) == 1 else ","


def _header(reader: "csv.DictReader[str]") -> Sequence[str]:
    with _cells_of_any_length():
        return reader.fieldnames or []


def _next_row(reader: "csv.DictReader[str]") -> dict[str | Any, str | Any] | None:
    with _cells_of_any_length():
        return next(reader, None)


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a cell, which holds for the whole process, for one row."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    """Refuse a table that has a column twice: one of them would be read, and nobody knows which was meant."""
    for name, number in Counter(columns).items():
        if number > 1:
            allowed = f"each column once (it is there {number} times): rename or remove the others"
            raise RecordError("header", name, allowed, reason="duplicate column", file=str(path), line=1)
