"""Readers that know where every row came from: JSON Lines, JSON lists, CSV, Parquet and hub datasets.

All of them yield :class:`SourceRow`, or, for a line that cannot be read, the :class:`RecordError` that says
why, so that one rule (``on_invalid``) decides about both. Files may be compressed with gzip.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from .record import RecordError

__all__ = [
    "SourceRow",
    "find_file",
    "hash_files",
    "read_csv",
    "read_hub",
    "read_json_lines",
    "read_json_list",
    "read_parquet",
    "read_table",
]


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
        """Return a column that must hold text.

        Raises:
            RecordError: If it is missing or no string.
        """
        value = self.get(field)
        if not isinstance(value, str):
            raise RecordError(field, value, "a string", reason="wrong type", file=self.file, line=self.line)
        return value

    def get(self, field: str) -> object:
        """Return a column that must exist.

        Raises:
            RecordError: If it is missing; says which columns there are.
        """
        if field not in self.fields:
            allowed = (
                f"a column of this name; the row has {', '.join(sorted(map(str, self.fields))) or 'none'}"
            )
            raise RecordError(field, None, allowed, reason="missing field", file=self.file, line=self.line)
        return self.fields[field]


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


def read_hub(
    name: str, *, revision: str, split: str, data_dir: str | None = None
) -> Iterator[SourceRow | RecordError]:
    """Rows of a dataset on the Hugging Face hub at a pinned revision.

    Args:
        name: Dataset name.
        revision: Commit hash.
        split: Split on the hub.
        data_dir: Folder inside the dataset.
    """
    from datasets import load_dataset

    rows: Any = load_dataset(name, revision=revision, split=split, data_dir=data_dir)
    place = f"{name}@{revision[:12]}" + (f"/{data_dir}" if data_dir else "") + f"[{split}]"
    for number, fields in enumerate(rows, 1):
        yield SourceRow(place, number, {key: cell for key, cell in fields.items() if cell is not None})
