"""Ids of rows that have none: by content, so that rows put in before them shift no id."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

from .rows import SourceRow

__all__ = ["ContentNames"]


class ContentNames:
    """Names that follow content; the n-th of equal content, from the second on, gets ``:n`` behind its name."""

    def __init__(self) -> None:
        """Begin to count."""
        self._equal: Counter[str] = Counter()

    def of(self, content: Mapping[str, object]) -> str:
        """The first 16 hexadecimal digits of the SHA-1 of the content as JSON with sorted keys; nulls are no content."""
        given = {field: value for field, value in content.items() if value is not None}
        text = json.dumps(given, sort_keys=True, default=str)
        name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]
        self._equal[name] += 1
        return f"{name}:{self._equal[name]}" if self._equal[name] > 1 else name

    def named(self, row: SourceRow, content: Mapping[str, str], *, column: str = "id") -> SourceRow:
        """A row with an id: its own, unless that is missing or empty.

        Args:
            row: As the file holds it.
            content: Column of each field that is its content.
            column: Column of the id.
        """
        if row.fields.get(column) not in (None, ""):
            return row
        name = self.of({field: row.fields.get(source) for field, source in content.items()})
        return row._replace(fields={**row.fields, column: name})
