"""A row as its source holds it, with its place, and what each row means."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from .fields import nested_field, text_field
from .record import RecordError

__all__ = ["SourceRow", "parse_rows"]

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
