"""JSON text becomes values, and what JSON leaves open is refused: keys given twice, half characters, endless depth."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from .record import RecordError

__all__ = ["Decoded", "check_json", "decode_json", "decode_next"]

MAX_DEPTH = 100
"""Levels of lists and objects within one row. Python itself cannot write what is nested much deeper."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Escapes that are halves of a character beyond 16 bits; two make a whole one."""


class Repeated(dict[str, object]):
    """An object that gave a key twice.

    Attributes:
        key: The first such key.
    """

    key: str


class Decoded(NamedTuple):
    """What a text stands for.

    Attributes:
        value: The value.
        odd: Whether :func:`check_json` must look at it: most text has nothing that could be wrong.
    """

    value: object
    odd: bool


def decode_json(text: str) -> Decoded:
    """Read JSON; ``NaN`` and infinity stay numbers, to be refused by whoever reads the field.

    Raises:
        ValueError: If it is no JSON, or holds a whole number of thousands of digits.
        RecordError: If it is nested deeper than Python can read.
    """
    return _decode(text, lambda decoder: (decoder.decode(text), 0, len(text)))


def decode_next(text: str, start: int) -> tuple[Decoded, int]:
    """Read the JSON value that begins at a place, whatever stands behind it.

    Args:
        text: What holds it.
        start: Where it begins.

    Returns:
        The value, and the place behind it.

    Raises:
        ValueError: As :func:`decode_json`.
        RecordError: Likewise.
    """
    end = start

    def read(decoder: json.JSONDecoder) -> tuple[object, int, int]:
        nonlocal end
        value, end = decoder.raw_decode(text, start)
        return value, start, end

    return _decode(text, read), end


def _decode(text: str, read: Callable[[json.JSONDecoder], tuple[object, int, int]]) -> Decoded:
    """What a decoder that marks keys given twice reads between two places of a text."""
    repeated = False

    def to_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal repeated
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        repeated = True
        marked, seen = Repeated(fields), set[str]()
        marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return marked

    try:
        value, start, end = read(json.JSONDecoder(object_pairs_hook=to_object))
    except RecursionError:  # how deep Python reads depends on who calls
        raise too_deep("line") from None
    deep = text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH
    return Decoded(value, repeated or deep or HALF.search(text, start, end) is not None)


def check_json(value: object, field: str = "") -> None:
    """Refuse what an odd value may hold.

    Args:
        value: As decoded.
        field: Where it stands, for the error.

    Raises:
        RecordError: At a key given twice, text with half a character, or too many levels.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise too_deep(field or "line")
        level = [child for _, child in _children(level)]
    places = [(field, value)]
    while places:
        path, inside = places.pop()
        if isinstance(inside, Repeated):
            allowed = f"each key once ({inside.key!r} is there several times)"
            raise RecordError(_inside(path, inside.key), inside[inside.key], allowed, reason="duplicate key")
        for text in (inside, *inside) if isinstance(inside, dict) else (inside,):
            if isinstance(text, str) and not is_utf8(text):
                allowed = "text that encodes as UTF-8 (it has half of a character)"
                raise RecordError(path or "line", text, allowed, reason="not UTF-8")
        places += reversed([(_inside(path, name), child) for name, child in _children([inside])])


def too_deep(field: str) -> RecordError:
    """The error of JSON with too many levels."""
    allowed = f"JSON of at most {MAX_DEPTH} levels"
    return RecordError(field, "deeper JSON", allowed, reason="nested too deeply")


def is_utf8(text: str) -> bool:
    """Whether text encodes: half a character does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _children(values: list[object]) -> Iterator[tuple[str | int, object]]:
    for value in values:
        if isinstance(value, Mapping):
            yield from value.items()
        elif isinstance(value, list):
            yield from enumerate(value)


def _inside(path: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name
