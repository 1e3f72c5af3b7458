"""Checked values of a row's fields: each says in its error what would have been accepted.

None counts as a missing field: JSON, Parquet and the hub write one for the other.
"""

import math
import sys
from collections.abc import Collection, Mapping, Sequence

from .record import RecordError, is_blank, listed

__all__ = [
    "choice_field",
    "flag_field",
    "list_field",
    "mapping_field",
    "name_field",
    "nested_field",
    "number_field",
    "system_field",
    "text_field",
    "user_field",
    "whole_field",
]


def nested_field(fields: Mapping[str, object], name: str, *, optional: bool = False) -> object:
    """Value of a field, or of a field of an object in it.

    Args:
        fields: Of a row.
        name: Such as ``prompt`` or ``instance.user_prompt``; a field whose own name has dots comes first.
        optional: Whether it may be missing.

    Returns:
        The value; None if it is missing and may be.

    Raises:
        RecordError: If it is missing, or is looked for in what is no object.
    """
    if name in fields:
        return fields[name]
    value: object = fields
    first, *others = name.split(".")
    path = ""
    for part in (first, *others):
        inside = mapping_field(path, value)
        path = f"{path}.{part}" if path else part
        value = inside.get(part)
        if value is None and optional:
            return None
        if part not in inside:
            there = listed(sorted(map(str, inside))) or "none"
            raise RecordError(path, None, f"a field of this name; there are {there}", reason="missing field")
    return value


def mapping_field(field: str, value: object) -> Mapping[str, object]:
    """An object.

    Args:
        field: Name to use in an error; so for all functions here.
        value: What the row holds; so for all functions here.

    Raises:
        RecordError: If it is none; so for all functions here.
    """
    if not isinstance(value, Mapping):
        raise _wrong_type(field, value, "an object")
    return value


def list_field(
    field: str, value: object, length: int | None = None, *, empty: bool = False
) -> Sequence[object]:
    """A list.

    Args:
        field: Name to use in an error.
        value: What the row holds.
        length: Number of entries; None for any number.
        empty: Whether that may be 0.
    """
    allowed = (
        f"a list of {length}" if length is not None else "a list" if empty else "a list that is not empty"
    )
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise _wrong_type(field, value, allowed)
    if (not value and not empty) if length is None else len(value) != length:
        raise RecordError(field, value, allowed, reason="wrong length")
    return value


def text_field(field: str, value: object, *, blank: str | None = None) -> str:
    """A string.

    Args:
        field: Name to use in an error.
        value: What the row holds.
        blank: Reason for an error where there is nothing but white space, such as ``empty response``; None allows it.
    """
    if not isinstance(value, str):
        raise _wrong_type(field, value, "a string")
    if blank is not None and not value.strip():
        raise RecordError(field, value, "text that is not blank", reason=blank)
    return value


def choice_field(field: str, value: object, choices: Collection[str]) -> str:
    """One of a few strings."""
    if text_field(field, value) not in choices:
        raise RecordError(field, value, " | ".join(choices), reason="out of range")
    return str(value)


def flag_field(field: str, value: object) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise _wrong_type(field, value, "true | false")
    return value


def whole_field(field: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number in a range.

    Args:
        field: Name to use in an error.
        value: What the row holds.
        low: Least number.
        high: Largest number; None for no bound.
    """
    allowed = f"a whole number >= {low}" if high is None else f"a whole number in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(field, value, allowed)
    if value < low or (high is not None and value > high):
        raise RecordError(field, value, allowed, reason="out of range")
    return value


def number_field(field: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A number in a range; neither NaN nor infinite.

    Args:
        field: Name to use in an error.
        value: What the row holds.
        low: Least number; infinite for no bound.
        high: Largest number; infinite for no bound.
    """
    allowed = "a finite number" if math.isinf(high) else f"a number in [{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(field, value, allowed)
    if not abs(value) <= sys.float_info.max:  # NaN, infinite, or a whole number too large for a float
        raise RecordError(field, value, allowed, reason="not finite")
    if not low <= value <= high:
        raise RecordError(field, value, allowed, reason="out of range")
    return float(value)


def name_field(field: str, value: object) -> str:
    """Text, taken as it is, or a whole number in decimal: the number 7 and the text "7" are the same name."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong_type(field, value, "text or a whole number")
    return str(value)


def user_field(field: str, value: object) -> str:
    """A name that is not blank."""
    name = name_field(field, value)
    if is_blank(name):
        raise RecordError(field, value, "a name that is not blank", reason="missing field")
    return name


def system_field(field: str, value: object) -> str | None:
    """The name of who wrote a response; None where there is none: nobody needs it to learn from the response."""
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    return name_field(field, value)


def _wrong_type(field: str, value: object, allowed: str) -> RecordError:
    return RecordError(field, value, allowed, reason="missing field" if value is None else "wrong type")
