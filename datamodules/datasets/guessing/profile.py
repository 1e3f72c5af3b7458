"""What the columns of a table hold, from a sample of its rows: kind, distinct values, range, gaps, also of nested fields."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from ...records import RecordError, conversation, is_number

__all__ = ["ColumnProfile", "Rows", "TableProfile", "profile"]

Rows = Sequence[Mapping[str, object]]
Kind = Literal["text", "number", "messages", "texts", "numbers", "objects", "object", "other"]
"""Of ``text`` are names, too; ``messages`` is a conversation or one message; ``texts``, ``numbers`` and ``objects`` are lists."""

DEEPEST = 3
"""Levels of nested objects that are looked into."""
WIDEST = 60
"""Keys of an object beyond which they are taken for data, not for fields."""
MOST_VALUES = 1000
"""Distinct values that are counted."""
MOSTLY = 0.98
"""Share of values from which a column is of their kind; the others are rows that will be lost, and counted."""
PROSE = 40
"""Letters on average from which text is taken for prose, whatever it is called."""


@dataclass
class ColumnProfile:
    """What one column, or one nested field, holds in a sample.

    Attributes:
        name: With dots between the levels of nested fields.
        rows: Rows of the sample.
        kinds: How many values are of which kind.
        values: How often each scalar occurs; of too many, the first ones.
        letters: Letters of all texts together.
        spaced: Texts that hold white space.
        lengths: How many lists have which length.
        flags: Values that are true or false.
    """

    name: str
    rows: int
    kinds: Counter[Kind] = field(default_factory=Counter)
    values: Counter[str | float] = field(default_factory=Counter)
    letters: int = 0
    spaced: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    flags: int = 0

    @property
    def present(self) -> int:
        """Rows that have a value."""
        return self.kinds.total()

    @property
    def kind(self) -> Kind:
        """The kind of all its values but a few odd ones, else ``other``."""
        if not self.kinds:
            return "other"
        if set(self.kinds) == {"text", "messages"}:  # some rows as text, others as conversations
            return "messages"
        kind, number = self.kinds.most_common(1)[0]
        return kind if number >= MOSTLY * self.present else "other"

    @property
    def missing(self) -> float:
        """Share of rows without a value."""
        return 1 - self.present / max(1, self.rows)

    @property
    def mean_letters(self) -> float:
        """Letters of a text on average."""
        return self.letters / max(1, self.kinds["text"])

    @property
    def is_prose(self) -> bool:
        """Whether it holds text that people or models wrote, not names: messages, or mostly text of several words."""
        if self.kind == "messages":
            return True
        if self.kind != "text":
            return False
        return self.mean_letters >= PROSE or (
            self.spaced >= 0.3 * self.present and self.mean_letters >= 6 and self.is_varied
        )

    @property
    def is_short(self) -> bool:
        """Whether it holds text that may be names or codes, with or without white space."""
        return self.kind == "text" and self.mean_letters < PROSE

    @property
    def is_varied(self) -> bool:
        """Whether its values are many, for its rows."""
        return len(self.values) > max(2, 0.05 * self.present)

    @property
    def is_unique(self) -> bool:
        """Whether every row has a value and none occurs twice."""
        return self.present == self.rows and bool(self.values) and max(self.values.values()) == 1

    @property
    def is_constant(self) -> bool:
        """Whether all its values are one."""
        return len(self.values) == 1

    @property
    def numbers(self) -> list[float]:
        """Its distinct numbers in order; none if it holds anything else."""
        return sorted(v for v in self.values if isinstance(v, float)) if self.kind == "number" else []

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers alone."""
        return bool(self.numbers) and all(number.is_integer() for number in self.numbers)

    @property
    def shown(self) -> str:
        """Its values in a few words."""
        if self.kind == "number" and len(self.values) > 8:
            return f"numbers from {min(self.numbers):g} to {max(self.numbers):g}"
        if not self.values:
            return self.kind
        most = ", ".join(
            repr(value[:30]) if isinstance(value, str) else f"{value:g}"
            for value in sorted(self.values, key=_order)[:8]
        )
        return most + (f" and {len(self.values) - 8:,} more" if len(self.values) > 8 else "")

    def add(self, value: object, *, text_cells: bool) -> None:
        """Count a value.

        Args:
            value: Of a row; not None.
            text_cells: Whether numbers are written as text, as in CSV.
        """
        kind = kind_of(value, text_cells=text_cells)
        self.kinds[kind] += 1
        if kind in ("texts", "numbers", "objects") and isinstance(value, Sequence):
            self.lengths[len(value)] += 1
        if isinstance(value, str):
            self.letters += len(value)
            self.spaced += bool(re.search(r"\S\s+\S", value))
        self.flags += isinstance(value, bool)
        scalar = float(value) if kind == "number" else value  # type: ignore[arg-type]
        if isinstance(scalar, str | float) and (len(self.values) < MOST_VALUES or scalar in self.values):
            self.values[scalar] += 1


def _order(value: str | float) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")


@dataclass(frozen=True)
class TableProfile:
    """What a table holds.

    Attributes:
        rows: The sample.
        columns: Columns and nested fields that have a value anywhere, by name, in order.
        top: Columns of the rows themselves, in order.
        text_cells: Whether numbers are written as text, as in CSV.
    """

    rows: Rows
    columns: Mapping[str, ColumnProfile]
    top: tuple[str, ...]
    text_cells: bool = False


def profile(
    rows: Iterable[Mapping[str, object]], *, most: int = 4000, text_cells: bool = False
) -> TableProfile:
    """Look at rows.

    Args:
        rows: Rows of a table; more are not taken.
        most: How many.
        text_cells: Whether numbers are written as text, as in CSV.
    """
    sample = list(islice(rows, most))
    columns: dict[str, ColumnProfile] = {}
    for row in sample:
        for name, value in _fields(row):
            if name not in columns:
                columns[name] = ColumnProfile(name, len(sample))
            columns[name].add(value, text_cells=text_cells)
    top = dict.fromkeys(name for row in sample for name in row)
    return TableProfile(sample, columns, tuple(top), text_cells)


def _fields(row: Mapping[str, object], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, object]]:
    """Every field of a row that has a value, with those of objects in it, and of lists of two."""
    for key, value in row.items():
        if value is None or value == "":
            continue
        name = f"{prefix}{key}"
        yield name, value
        if depth >= DEEPEST or is_messages(value):
            continue
        if isinstance(value, Mapping) and len(value) <= WIDEST:
            yield from _fields({str(k): v for k, v in value.items()}, f"{name}.", depth + 1)
        elif not depth and isinstance(value, list) and len(value) == 2:  # perhaps the two sides
            yield from _fields({str(i): v for i, v in enumerate(value)}, f"{name}.", depth + 1)


def kind_of(value: object, *, text_cells: bool = False) -> Kind:
    """What kind of value it is; a truth value is a number.

    Args:
        value: Of a row; not None.
        text_cells: Whether numbers are written as text, as in CSV.
    """
    if isinstance(value, str):
        if text_cells and is_number(value):
            return "number"
        return "messages" if _holds_messages(value) else "text"
    if isinstance(value, bool | int | float):
        return "number" if abs(value) <= sys.float_info.max else "other"
    if is_messages(value):
        return "messages"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, Sequence) and not isinstance(value, bytes) and value:
        entries = [entry for entry in value if entry is not None]
        if entries and all(isinstance(entry, str) for entry in entries):
            return "texts"
        if entries and all(isinstance(entry, int | float) for entry in entries):
            return "numbers"
        if entries and all(isinstance(entry, Mapping) for entry in entries):
            return "objects"
    return "other"


def _holds_messages(text: str) -> bool:
    try:
        return not isinstance(conversation("text", text), str)
    except RecordError:
        return False


def is_messages(value: object) -> bool:
    """Whether a value is a conversation, or one message."""
    if isinstance(value, Mapping):
        return {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and is_messages(turn) for turn in value)
    )
