"""Readers that know where every row came from: JSON Lines, JSON lists, CSV, Parquet and hub datasets.

All of them yield :class:`SourceRow`, or, for a line that cannot be read, the :class:`RecordError` that says
why, so that one rule (``on_invalid``) decides about both. Files may be compressed with gzip.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from .fields import nested_field, text_field
from .record import RecordError

__all__ = [
    "HubDataset",
    "SourceRow",
    "find_file",
    "hash_files",
    "parse_rows",
    "read_csv",
    "read_json_lines",
    "read_json_list",
    "read_parquet",
    "read_table",
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


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacking gzip by its name."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of ``names`` that exists in ``folder``, plain or with ``.gz``.

    Raises:
        FileNotFoundError: Naming the folder, what was looked for and what is there.
    """
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    there = (
        ", ".join(sorted(path.name for path in folder.iterdir())[:20])
        if folder.is_dir()
        else "no such folder"
    )
    raise FileNotFoundError(
        f"data_dir={str(folder)!r} has none of {', '.join(names)} (plain or .gz); there: {there}"
    )


def hash_files(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file's bytes, in order: what the fingerprint of a cache rests on.

    A list, for files of the same name in several folders (``helpful-base/train.jsonl``, ...) all count.
    """
    digests = []
    for path in paths:
        with path.open("rb") as stream:
            digests.append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return digests


def read_json_lines(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a JSON Lines file; blank lines are passed over."""
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                fields = json.loads(raw.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield RecordError(
                    "line", raw[:40], "UTF-8 text", reason="not UTF-8", file=str(path), line=number
                )
                continue
            except (ValueError, RecursionError) as error:  # too deep, or a number of too many digits
                shown = raw[:80].decode(errors="replace")
                problem = (
                    f"{error.msg} at column {error.colno}"
                    if isinstance(error, json.JSONDecodeError)
                    else error
                )
                allowed = f"one JSON object a line ({problem})"
                yield RecordError("line", shown, allowed, reason="not JSON", file=str(path), line=number)
                continue
            yield _row(path, number, fields)


def read_json_list(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file that holds one JSON list; a row's number stands in for its line.

    Raises:
        RecordError: If the file as a whole is not a JSON list.
    """
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecordError(
            "file", str(error), "one JSON list", reason="not JSON", file=str(path), line=1
        ) from error
    if not isinstance(rows, list):
        raise RecordError(
            "file", type(rows).__name__, "one JSON list", reason="not JSON", file=str(path), line=1
        )
    for number, fields in enumerate(rows, 1):
        yield _row(path, number, fields)


def _row(path: Path, number: int, fields: object) -> SourceRow | RecordError:
    if not isinstance(fields, dict):
        return RecordError("line", fields, "a JSON object", reason="wrong type", file=str(path), line=number)
    return SourceRow(str(path), number, fields)


def read_csv(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a CSV file with a header; cells are strings, empty cells are left out."""
    with open_bytes(path) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + stream_line(path, error.start)
            raise RecordError(
                "line", "...", "UTF-8 text", reason="not UTF-8", file=str(path), line=line
            ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in reader:
            surplus = fields.pop(None, None)
            if surplus is not None:
                allowed = f"{len(reader.fieldnames or [])} cells, as in the header"
                yield RecordError(
                    "line", surplus, allowed, reason="wrong type", file=str(path), line=reader.line_num
                )
                continue
            cells = {key: cell for key, cell in fields.items() if cell not in (None, "")}
            yield SourceRow(str(path), reader.line_num, cells)
    except csv.Error as error:  # an open quote, a cell above the csv module's limit
        line = reader.line_num + 1
        raise RecordError(
            "line", str(error), "well-formed CSV", reason="not CSV", file=str(path), line=line
        ) from error


def stream_line(path: Path, offset: int) -> int:
    """Number of line breaks before a byte offset of the unpacked file."""
    with open_bytes(path) as stream:
        return stream.read(offset).count(b"\n")


def read_parquet(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a Parquet file, read a batch at a time; nulls are left out."""
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
        for fields in batch.to_pylist():
            number += 1
            yield SourceRow(
                str(path), number, {key: cell for key, cell in fields.items() if cell is not None}
            )


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
