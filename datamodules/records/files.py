"""Readers that know where every row came from: JSON Lines, JSON lists, CSV, Parquet and hub datasets.

All of them yield :class:`SourceRow`, or, for a line that cannot be read, the :class:`RecordError` that says
why, so that one rule (``on_invalid``) decides about both. An error of the file as a whole is raised, never skipped. Files may
be compressed with gzip.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .fields import nested_field, text_field
from .json_text import Decoded, check_json, decode_json
from .reading import HEAD, open_bytes, readable, refuse_foreign
from .record import RecordError

__all__ = [
    "HubDataset",
    "SourceRow",
    "parse_rows",
    "read_csv",
    "read_json",
    "read_json_lines",
    "read_json_list",
    "read_parquet",
    "read_table",
    "source_row",
]


Parsed = TypeVar("Parsed")
Made = TypeVar("Made")


class SourceRow(NamedTuple):
    """One row as the source holds it.

    Attributes:
        file: File or dataset name.
        line: 1-based line, or number of the row where a file has no lines.
        fields: The row's columns.
    """

    file: str
    line: int
    fields: Mapping[str, object]

    def text(self, field: str) -> str:
        """Return a field that must hold text.

        Args:
            field: Its name, such as ``prompt`` or ``instance.user_prompt``.

        Raises:
            RecordError: If it is missing or no string.
        """
        try:
            return text_field(field, self.get(field))
        except RecordError as error:
            raise error.at(self.file, self.line) from None

    def get(self, field: str, *, optional: bool = False) -> object:
        """Return a field, or one of an object in it.

        Args:
            field: Its name, such as ``prompt`` or ``instance.user_prompt``.
            optional: Whether it may be missing; None then.

        Raises:
            RecordError: If it is missing and may not be; says which there are.
        """
        try:
            return nested_field(self.fields, field, optional=optional)
        except RecordError as error:
            raise error.at(self.file, self.line) from None

    def made(self, field: str, kind: type[Made]) -> Made:
        """Return a field that ``load`` put into the row, of the kind that it has there.

        Raises:
            TypeError: If it is of another kind.
        """
        value = self.fields[field]
        if not isinstance(value, kind):
            raise TypeError(f"{field} must be a {kind.__name__}; got {value!r}")
        return value


def parse_rows(
    rows: Iterable[SourceRow | RecordError], parse: Callable[[SourceRow], Parsed]
) -> Iterator[Parsed | RecordError]:
    """What each row means, or what is wrong with it and where.

    Args:
        rows: Rows of a file.
        parse: Makes something of a row, or raises a :class:`RecordError`.
    """
    for row in rows:
        result: Parsed | RecordError
        if isinstance(row, RecordError):
            result = row
        else:
            try:
                result = parse(row)
            except RecordError as error:
                result = error.at(row.file, row.line)
        yield result


def read_json_lines(
    path: Path, *, empty: bool = False, lists: str | None = None
) -> Iterator[SourceRow | RecordError]:
    """Rows of a JSON Lines file; blank lines are passed over.

    Args:
        path: The file.
        empty: Whether it may have no bytes at all.
        lists: Name of the only field of a line that is a list; None refuses such a line.

    Raises:
        RecordError: If the file as a whole cannot be read.
    """
    with open_bytes(path, empty=empty) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                fields, odd = decode_json(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield RecordError(
                    "line", line[:40], "UTF-8 text", reason="not UTF-8", file=str(path), line=number
                )
                continue
            except RecordError as error:
                yield error.at(str(path), number)
                continue
            except ValueError as error:  # a number of too many digits, too
                problem = (
                    f"{error.msg} at column {error.colno}"
                    if isinstance(error, json.JSONDecodeError)
                    else str(error)
                )
                allowed = f"one JSON object a line ({problem})"
                text = line[:80].decode(errors="replace")
                yield RecordError("line", text, allowed, reason="not JSON", file=str(path), line=number)
                continue
            if lists is not None and isinstance(fields, list):
                fields = {lists: fields}
            yield source_row(path, number, fields, odd=odd)


def read_json(path: Path, allowed: str) -> Decoded:
    """What a file of one JSON value holds; rows in it are still to be checked where it is odd.

    Args:
        path: The file.
        allowed: What it should hold, for the error.

    Raises:
        RecordError: If it is no JSON.
    """
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        return decode_json(content.decode("utf-8-sig"))
    except RecordError as error:
        raise error.at(str(path), 0) from None
    except ValueError as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        allowed += " (JSON Lines, one object a line, have the ending .jsonl)" if lines else ""
        raise RecordError("file", str(error), allowed, reason="not JSON", file=str(path)) from error


def read_json_list(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file that holds one JSON list; a row's number stands in for its line.

    Raises:
        RecordError: If the file as a whole is not a JSON list.
    """
    rows, odd = read_json(path, "one JSON list")
    if not isinstance(rows, list):
        raise RecordError("file", type(rows).__name__, "one JSON list", reason="not JSON", file=str(path))
    for number, fields in enumerate(rows, 1):
        yield source_row(path, number, fields, odd=odd)


def source_row(
    path: Path, number: int, fields: object, *, odd: bool, field: str = "line"
) -> SourceRow | RecordError:
    """A row of decoded JSON, or what is wrong with it.

    Args:
        path: File that it is of.
        number: Its line, or its number.
        fields: What was decoded.
        odd: Whether :func:`check_json` must look at it.
        field: Name in the error if it is no object.
    """
    if not isinstance(fields, dict):
        return RecordError(field, fields, "a JSON object", reason="wrong type", file=str(path), line=number)
    if odd:
        try:
            check_json(fields)
        except RecordError as error:
            return error.at(str(path), number)
    return SourceRow(str(path), number, fields)


def read_csv(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a CSV file with a header; cells are strings, empty cells are left out.

    Raises:
        RecordError: If the file as a whole cannot be read: bytes that are not UTF-8, a quote that stays open, a column
            given twice. What comes behind cannot be trusted, so none of it is skipped.
    """
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        allowed = "UTF-8 text"
        value = content[error.start : error.start + 40]
        raise RecordError("line", value, allowed, reason="not UTF-8", file=str(path), line=line) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _refuse_repeated(path, [name for name in _header(reader) if name])
        while (fields := _next_row(reader)) is not None:
            surplus = fields.pop(None, None)
            if surplus is not None:
                allowed = f"{len(reader.fieldnames or [])} cells, as in the header"
                yield RecordError(
                    "line", surplus, allowed, reason="wrong type", file=str(path), line=reader.line_num
                )
                continue
            cells = {name: cell for name, cell in fields.items() if name is not None and cell}
            yield SourceRow(str(path), reader.line_num, cells)
    except csv.Error as error:  # an open quote
        line = reader.line_num + 1
        raise RecordError(
            "line", str(error), "well-formed CSV", reason="not CSV", file=str(path), line=line
        ) from error


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


def _refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    """Refuse a table that has a column twice: one of them would be read, and nobody knows which was meant."""
    for name, number in Counter(columns).items():
        if number > 1:
            allowed = f"each column once (it is there {number} times): rename or remove the others"
            raise RecordError("header", name, allowed, reason="duplicate column", file=str(path), line=1)


def read_parquet(
    path: Path,
    columns: Collection[str] | None = None,
    *,
    cells: Callable[[str, Any], list[object]] = lambda name, values: list(values.to_pylist()),
) -> Iterator[SourceRow | RecordError]:
    """Rows of a Parquet file, read a batch at a time; nulls are left out.

    Args:
        path: The file.
        columns: Columns to read, where the file has them; None for all.
        cells: Gives the cells of a column from its name and its Arrow array.

    Raises:
        RecordError: If the file as a whole cannot be read; of a cell that Python cannot hold, one is yielded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(path, "a file"), path.open("rb") as stream:
        refuse_foreign(path, stream.read(HEAD), b"PAR1")
    number = 0
    with readable(path, "a whole Parquet file", pa.ArrowException, ValueError, MemoryError):
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        _refuse_repeated(path, names)
        for batch in file.iter_batches(batch_size=1024, columns=names):
            for row in _batch_rows(batch, cells):
                number += 1
                yield (
                    row.at(str(path), number)
                    if isinstance(row, RecordError)
                    else SourceRow(str(path), number, row)
                )


def _batch_rows(
    batch: Any,  # noqa: ANN401  pyarrow has no types
    cells: Callable[[str, Any], list[object]],
) -> Iterator[dict[str, object] | RecordError]:
    """Rows of a batch; one by one if Python cannot hold all of it, such as text of wrong bytes or a date in year 0."""
    try:
        table = [cells(name, batch.column(i)) for i, name in enumerate(batch.schema.names)]
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        if len(batch) > 1:
            for i in range(len(batch)):
                yield from _batch_rows(batch.slice(i, 1), cells)
            return
        yield RecordError("line", str(error), "values that Python can hold", reason="wrong type")
        return
    for row in zip(*table, strict=True):
        yield {name: cell for name, cell in zip(batch.schema.names, row, strict=True) if cell is not None}


def read_table(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file by its suffix: ``.jsonl``, ``.json`` (one list), ``.csv`` (each also ``.gz``), ``.parquet``.

    Raises:
        ValueError: If the suffix is another one.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    readers = {".jsonl": read_json_lines, ".json": read_json_list, ".csv": read_csv, ".parquet": read_parquet}
    if suffix not in readers:
        raise ValueError(
            f"{path}: unknown suffix {suffix!r}; allowed: {', '.join(readers)} (text also with .gz)"
        )
    return readers[suffix](path)


class HubDataset(NamedTuple):
    """A dataset on the Hugging Face hub.

    Attributes:
        name: As on the hub.
        revision: Commit hash.
    """

    name: str
    revision: str

    def pin(self, data_dir: str | None) -> str | None:
        """What a fingerprint says of the source: None where local files, whose bytes count, replace the hub."""
        return f"{self.name}@{self.revision}" if data_dir is None else None

    def rows(
        self, split: str, *, configuration: str | None = None, data_dir: str | None = None
    ) -> Iterator[SourceRow | RecordError]:
        """Rows of a split; nulls are left out.

        Args:
            split: Split on the hub.
            configuration: Configuration on the hub.
            data_dir: Folder inside the dataset.
        """
        from datasets import load_dataset

        names = [self.name] if configuration is None else [self.name, configuration]
        rows: Any = load_dataset(*names, revision=self.revision, split=split, data_dir=data_dir)
        part = "".join(f"/{name}" for name in (configuration, data_dir) if name)
        place = f"{self.name}@{self.revision[:12]}{part}[{split}]"
        for number, fields in enumerate(rows, 1):
            yield SourceRow(place, number, {key: cell for key, cell in fields.items() if cell is not None})
