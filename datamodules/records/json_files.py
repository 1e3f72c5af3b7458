"""JSON files: lines, one list, or values one after another. Their rows are read one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

from .json_stream import JsonValues
from .json_text import Decoded, check_json, decode_json
from .reading import HEAD, Utf8Text, open_bytes
from .record import RecordError
from .rows import SourceRow

__all__ = ["read_json", "read_json_lines", "read_json_list", "read_json_rows", "source_row"]

MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""


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
    with open_bytes(path) as stream:
        values = JsonValues(Utf8Text(path, stream).read)
        try:
            for number, (fields, odd) in enumerate(values.listed(), 1):
                yield source_row(path, number, fields, odd=odd)
        except RecordError as error:
            raise error if error.file else error.at(str(path), 0) from None
        except ValueError as error:
            raise RecordError(
                "file", str(error), "one JSON list", reason="not JSON", file=str(path)
            ) from error


def read_json_rows(path: Path) -> Iterator[SourceRow | RecordError]:
    """Rows of a file named ``.json``: of one JSON list, of JSON Lines, or of objects over several lines, one after another.

    A row's number stands in for its line in a list; otherwise it is the line in which the row begins.

    Raises:
        RecordError: If the file as a whole is none of these.
    """
    with open_bytes(path) as stream:
        head = stream.peek(HEAD)[:HEAD].removeprefix(MARK).lstrip()
        lines = head.startswith(b"{") and _is_object(stream.readline())
    if head.startswith(b"["):
        yield from read_json_list(path)
        return
    if lines:
        yield from read_json_lines(path)
        return
    with open_bytes(path) as stream:
        values = JsonValues(Utf8Text(path, stream).read)
        try:
            for line, (fields, odd) in values.successive():
                yield source_row(path, line, fields, odd=odd)
        except RecordError as error:
            raise error if error.file else error.at(str(path), 0) from None
        except ValueError as error:
            allowed = "one JSON list, or JSON objects one after another"
            raise RecordError("file", str(error), allowed, reason="not JSON", file=str(path)) from error


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object as a whole, as every line of JSON Lines is."""
    try:
        return isinstance(decode_json(line.decode("utf-8-sig")).value, dict)
    except ValueError:  # too deep, too
        return False


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
