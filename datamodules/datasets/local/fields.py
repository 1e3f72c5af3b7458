"""Fields that a row of your own may have, by its shape, and their values under our names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ...columns import Kind, optional_columns
from ...records import (
    RecordError,
    SourceRow,
    conversation,
    has_text_cells,
    is_number,
    json_cell,
    list_field,
    name_field,
    number_cell,
)

__all__ = [
    "ASKED",
    "COMPARISON",
    "FIELDS",
    "FORMS",
    "JUDGED",
    "KINDS_OF_RECORD",
    "NESTED",
    "NEUTRAL_ALONE",
    "OF_RECORD",
    "RATED",
    "READ",
    "SEVERAL",
    "SHARED",
    "FieldNames",
    "Shape",
    "column_values",
    "row_name",
    "value_at",
    "without_nulls",
]

OF_RECORD = {entry.stored: entry.field for entry in optional_columns("record") if entry.field is not None}
"""Attribute of a record for each field of a row."""
KINDS_OF_RECORD: dict[str, Kind] = {entry.stored: entry.kind for entry in optional_columns("record")}
JUDGED: dict[str, Kind] = {
    entry.field: entry.kind for entry in optional_columns("comparison") if entry.field is not None
}
"""Fields of a comparison, beside its sides and the share."""
RATED: dict[str, Kind] = {
    entry.field: entry.kind
    for entry in optional_columns("response")
    if entry.field is not None and entry.in_batch
}
"""Fields of a response, beside its text."""
ASKED: dict[str, Kind] = {
    entry.field: entry.kind for entry in optional_columns("request") if entry.field is not None
}
"""Fields of a row or response to be scored: as whom."""
SEVERAL = {name: name if kind == "counts" else f"{name}s" for name, kind in RATED.items()}
"""Field of a row that holds one such value for each of several responses."""
COMPARISON = ("chosen", "rejected", "preference", *JUDGED)
SHARED = ("weight", *(name for name, kind in JUDGED.items() if kind == "name"))
"""Fields of a row that hold for comparisons, or judgements, which have none of their own."""

FORMS: dict[str, tuple[str, ...]] = {
    "winner": ("winner",),
    "strength": ("strength",),
    "preference": ("preference",),
    "outcomes": ("first_wins", "second_wins", "tie"),
    "scores": ("first_score", "second_score"),
    "judgements": ("judgements",),
}
"""Forms in which a row of ``first`` and ``second`` says who won, each with its fields."""
SINGLE = ("winner", "strength", "preference")
"""Those that one judgement of several may have."""
NESTED = tuple(f"judgements.{name}" for name in (*SINGLE, *SHARED))
"""Fields of an object in ``judgements``."""

KINDS: dict[str, Kind] = {**KINDS_OF_RECORD, **JUDGED, **RATED}
NUMBERS = (
    "preference",
    *(name for name, kind in KINDS.items() if kind == "number"),
    *FORMS["outcomes"],
    *FORMS["scores"],
    "turn",
)
NAMES = ("id", *(name for name, kind in KINDS.items() if kind == "name"))
COUNTS = tuple(name for name, kind in KINDS.items() if kind == "counts")
LISTS = tuple(
    dict.fromkeys(("messages", "responses", "comparisons", *SEVERAL.values(), *COUNTS, "judgements"))
)
TEXTS = ("prompt", "messages", "chosen", "rejected", "first", "second", "response")
"""Fields that hold text, or messages."""
MAPPED_ONLY = ("turn", "system")
"""Fields that are read where ``columns`` names a column alone: others call other things so, such as a prompt of the system."""
FIELDS = tuple(dict.fromkeys((*TEXTS, *NUMBERS, *NAMES, *LISTS, "winner")))

Shape = Literal["responses", "pair", "neutral", "response"]
ALWAYS = ("id", "prompt", "messages", *OF_RECORD)
READ: dict[Shape | None, tuple[str, ...]] = {
    "responses": (*ALWAYS, "responses", "comparisons", *SEVERAL.values(), *SHARED),
    "pair": (*ALWAYS, "chosen", "rejected", "systems", "preference", "turn", *JUDGED),
    "neutral": (
        *ALWAYS,
        "first",
        "second",
        "systems",
        "turn",
        *JUDGED,
        *(name for names in FORMS.values() for name in names),
    ),
    "response": (*ALWAYS, "response", *RATED, *ASKED),
    None: FIELDS,
}
"""Fields that a row of each shape may have; others are passed over, as unknown columns are."""
NEUTRAL_ALONE = {"winner", "judgements", *FORMS["outcomes"], *FORMS["scores"]}
"""Fields that say who won of ``first`` and ``second`` alone."""
WHOLE_FLOAT = re.compile(r"(0|[1-9]\d*)\.0", re.ASCII)
"""A whole number as a table writes it in a column with gaps; neither ``007.0`` nor ``1.10``."""


def value_at(fields: Mapping[str, object], name: str) -> object:
    """Value of a column, or of what is nested in one; None if it is missing.

    Args:
        fields: Of a row, or of an object in it.
        name: A column, or with dots the way into its objects and lists, such as ``question.text`` or ``answers.0``; a name that has
            dots itself comes first.
    """
    if name in fields or "." not in name:
        return fields.get(name)
    return _inside(fields, name.split("."))


def _inside(value: object, path: Sequence[str]) -> object:
    if not path:
        return value
    if isinstance(value, list | tuple):
        index = int(path[0]) if path[0].isascii() and path[0].isdigit() else len(value)
        return _inside(value[index], path[1:]) if index < len(value) else None
    if isinstance(value, Mapping):
        for end in range(len(path), 0, -1):
            if (key := ".".join(path[:end])) in value:
                return _inside(value[key], path[end:])
    return None


def without_nulls(fields: Mapping[str, object]) -> dict[str, object]:
    """An object's fields; null is like a missing one."""
    return {name: value for name, value in fields.items() if value is not None}


def row_name(field: str, value: object) -> str | None:
    """An id, user or domain: text, or a whole number (as a float too: Parquet has those beside nulls)."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= 2**53:
            allowed = "text, or a whole number below 2^53: a larger one is not exact in a column of floats"
            raise RecordError(field, value, allowed, reason="out of range")
        value = int(value)
    return name_field(field, value)


def column_values(field: str, kinds: Mapping[str, Kind], fields: Mapping[str, object]) -> dict[str, Any]:
    """Values of columns that a row, response or comparison has; a record checks the numbers itself."""
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = fields.get(name)
        if value is None:
            continue
        if kind == "name":
            values[name] = row_name(f"{field}{name}", value)
        else:
            values[name] = (
                tuple(list_field(f"{field}{name}", value, empty=True)) if kind == "counts" else value
            )
    return values


class FieldNames:
    """Which column each field is read from.

    Attributes:
        theirs: Column of each field that is read.
        nested: Key of each field of an object in ``judgements``.
        judges: Columns that hold what one judge each said.
        switched_off: Fields that are not read though a column has their name.
    """

    def __init__(self, columns: Mapping[str, str | None], judges: Sequence[str] = ()) -> None:
        """Take the settings.

        Args:
            columns: Column of fields that differ; None for a field that is not to be read.
            judges: Columns that hold what one judge each said.
        """
        self.judges = tuple(judges)
        self.switched_off = sorted(field for field, column in columns.items() if column is None)
        self.given = {field: column for field, column in columns.items() if column is not None}
        judged = {field for names in FORMS.values() for field in names}
        taken = judged & {column for field, column in self.given.items() if field in judged}
        self.theirs = {
            field: self.given.get(field, field)
            for field in FIELDS
            if (field == "id" or field not in self.switched_off)
            and (field in self.given or not (field in MAPPED_ONLY or field in taken))
        }
        self._fields_of: dict[str, list[str]] = {}
        for field, column in self.theirs.items():
            self._fields_of.setdefault(column, []).append(field)
        self._inside = {field: column for field, column in self.theirs.items() if "." in column}
        self.nested = {
            name.removeprefix("judgements."): self.given.get(name, name.removeprefix("judgements."))
            for name in NESTED
            if name not in self.switched_off
        }
        self._read = {
            shape: {
                part for field in fields if field in self.theirs for part in _beginnings(self.theirs[field])
            }
            | {*self.switched_off, *(self.judges if shape == "neutral" else ())}
            for shape, fields in READ.items()
        }

    def read(self, shape: Shape | None) -> set[str]:
        """Columns that a row of a shape is read from."""
        return self._read[shape]

    def has(self, row: SourceRow, field: str) -> bool:
        """Whether a row has a field."""
        return field in self.theirs and value_at(row.fields, self.theirs[field]) is not None

    def shape(self, row: SourceRow) -> Shape | None:
        """Of a row, by the fields that it has."""
        if self.has(row, "responses"):
            return "responses"
        if self.has(row, "chosen") or self.has(row, "rejected"):
            return "pair"
        if self.has(row, "response"):
            return "response"
        return "neutral" if self.has(row, "first") or self.has(row, "second") else None

    def content(self, row: SourceRow, shape: Shape | None) -> dict[str, object]:
        """What names a row without id: every field but that; those of a neutral pair where it is one."""
        others = () if shape == "neutral" else {*NEUTRAL_ALONE, "first", "second"}
        content = {field: value for field, value in self._given(row) if field != "id" and field not in others}
        return content | (self._said(row) if shape == "neutral" else {})

    def values(self, row: SourceRow) -> dict[str, object]:
        """A row's fields under our names, without nulls; text as what it stands for."""
        fields = {}
        is_csv = has_text_cells(row.file)
        for field, value in self._given(row):
            if isinstance(value, str):
                value = _cell(field, value) if is_csv else value
            if isinstance(value, str) and field in TEXTS:
                value = conversation(field, value)
            fields[field] = value
        return fields | self._said(row)

    def _given(self, row: SourceRow) -> Iterator[tuple[str, object]]:
        """Each field that a row has, and its value as it stands there; none that are null."""
        for column, value in row.fields.items():
            if value is not None:
                for field in self._fields_of.get(column, ()):
                    yield field, value
        for field, column in self._inside.items():
            if column not in row.fields and (value := value_at(row.fields, column)) is not None:
                yield field, value

    def _said(self, row: SourceRow) -> dict[str, object]:
        """What each judge of the ``judges`` said, if anybody did."""
        said = without_nulls({judge: value_at(row.fields, judge) for judge in self.judges})
        return {"judges": said} if said else {}

    def inside_judgements(self, row: SourceRow) -> dict[str, object]:
        """What objects in ``judgements`` have that nothing reads, by its way there."""
        column, read = self.theirs.get("judgements", ""), {*self.nested.values()}
        return {
            f"{column}.{key}": value
            for entry in self.entries(row)
            for key, value in entry.items()
            if key not in read
        }

    def occurs(self, row: SourceRow, field: str, column: str) -> bool:
        """Whether a row has the column of a field, be it null."""
        places = self.entries(row) if field in NESTED else [row.fields]
        return any(column in fields or value_at(fields, column) is not None for fields in places)

    def entries(self, row: SourceRow) -> Iterator[Mapping[str, object]]:
        """Objects of a row's ``judgements``."""
        several = value_at(row.fields, self.theirs["judgements"]) if "judgements" in self.theirs else None
        for entry in several if isinstance(several, list) else ():
            if isinstance(entry, Mapping):
                yield entry


def _beginnings(name: str) -> list[str]:
    """A name with dots and the columns that it may be nested in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _cell(field: str, text: str) -> object:
    """What a cell of CSV stands for."""
    if field in FORMS["outcomes"] and text.casefold() in ("true", "false"):
        return text.casefold() == "true"
    if field == "winner" or (field in SINGLE and not is_number(text)):
        return text  # a code
    if field in NUMBERS:
        return number_cell(field, text)
    if field in LISTS:
        return json_cell(field, text)
    if field in NAMES and WHOLE_FLOAT.fullmatch(text):
        return text.removesuffix(".0")
    return text
