"""Judgements that nothing reads, and shares that are none: said before they become wrong labels."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ...records import FLOAT32_MAX, RecordError, SourceRow, has_text_cells, is_number, known_code, listed
from .fields import FORMS, NEUTRAL_ALONE, FieldNames, Shape, value_at
from .judged import JudgementReader
from .likely import judgement_columns, likely_reading, numbers_reading, say_who_won, score_pairs

__all__ = ["JudgementGuard", "RowsAhead"]

AHEAD = 500
"""Rows that are looked at for further values of a column before an error names it."""
MOST_VALUES = 8
OTHER_CODE = 0.01
"""Share of rows with a number off the range from which on it is no slip of single rows."""


class RowsAhead(Iterator[SourceRow | RecordError]):
    """Rows, of which the next may be looked at before their turn."""

    def __init__(self, rows: Iterable[SourceRow | RecordError]) -> None:
        """Take the rows."""
        self._rows = iter(rows)
        self._ahead: deque[SourceRow | RecordError] = deque()

    def __next__(self) -> SourceRow | RecordError:
        """The next row."""
        return self._ahead.popleft() if self._ahead else next(self._rows)

    def ahead(self) -> Iterator[SourceRow]:
        """Rows to come, a few hundred at most."""
        for row in self._rows:
            self._ahead.append(row)
            if len(self._ahead) >= AHEAD:
                break
        return (row for row in self._ahead if isinstance(row, SourceRow))


class JudgementGuard:
    """Looks at the rows of one file for what would be read wrongly.

    A pair without a judgement is refused where a column that no field reads looks like one. Beside sides that are called chosen and
    rejected, or better and worse, only a plain name does (``winner``, ``label``), or scores of both sides that say otherwise.
    """

    def __init__(self, path: str, names: FieldNames, reader: JudgementReader, *, judged: bool) -> None:
        """Begin a file.

        Args:
            path: The files, as a message calls them.
            names: Column of each field.
            reader: What values mean.
            judged: Whether its rows need a judgement; rows to be scored do not.
        """
        self.path, self.names, self.reader, self.judged = path, names, reader, judged
        self._values: dict[str, list[object]] = {}
        self._has_judgements = any(field in names.given for form in FORMS.values() for field in form)
        self._shares: list[float] = []
        self._others: list[float] = []
        self._seen = self._off = 0

    def problem(self, row: SourceRow, shape: Shape | None, rows: RowsAhead) -> RecordError | None:
        """What is wrong with a row; None if nothing is."""
        if (share := self._share_off(row)) is not None:
            if len(self._others) < 2:
                for other in rows.ahead():
                    self._note_shares(other)
            return self._other_code(share).at(row.file, row.line)
        if not self.judged or shape not in ("pair", "neutral"):
            return None
        return self._unread_turn(row, shape) or self._unread(row, shape, rows)

    def finish(self) -> None:
        """Look back at the whole file.

        Raises:
            RecordError: Of the file, if its shares are another code in more rows than single slips are.
        """
        if self._off > 1 and self._off > OTHER_CODE * self._seen:
            raise self._other_code(self._others[0]).at(self.path, 0)

    # Shares ------------------------------------------------------------------------------------------------

    def _row_shares(self, row: SourceRow) -> Iterator[float]:
        """Numbers that would be read as shares."""
        theirs = self.names.theirs
        values = [value_at(row.fields, theirs["preference"])] if "preference" in theirs else []
        several = value_at(row.fields, theirs["comparisons"]) if "comparisons" in theirs else None
        for entry in several if isinstance(several, list) else ():
            if isinstance(entry, Mapping):
                values.append(entry.get("preference"))
            elif isinstance(entry, list) and len(entry) == 3:
                values.append(entry[2])
        if "preference" in self.names.nested:
            values += [value_at(entry, self.names.nested["preference"]) for entry in self.names.entries(row)]
        for value in values:
            if isinstance(value, str) and is_number(value) and has_text_cells(row.file):
                value = float(value)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or known_code(value, self.reader.codes)
            ):
                continue
            if abs(value) <= FLOAT32_MAX:
                yield float(value)

    def _in_range(self, share: float) -> bool:
        low, high = sorted(self.reader.preference_range)
        return low <= share <= high

    def _note_shares(self, row: SourceRow) -> list[float]:
        shares = list(self._row_shares(row))
        for share in shares:
            values = self._shares if self._in_range(share) else self._others
            if share not in values and len(values) < MOST_VALUES:
                values.append(share)
        return shares

    def _share_off(self, row: SourceRow) -> float | None:
        shares = self._note_shares(row)
        if not shares:
            return None
        self._seen += 1
        off = next((share for share in shares if not self._in_range(share)), None)
        self._off += off is not None
        return off

    def _other_code(self, value: float) -> RecordError:
        column = self.names.theirs.get("preference", "preference")
        low, high = self.reader.preference_range
        shares = sorted({value, *self._shares[: MOST_VALUES // 2], *self._others})
        rows = f" in {self._off:,} of {self._seen:,} rows so far" if self._off > 1 else ""
        allowed = (
            f"numbers in [{min(low, high):g}, {max(low, high):g}], the share that prefers the first side; {column} holds "
            f"{', '.join(f'{share:g}' for share in shares)}, which is another code{rows}; such as this is read by "
            f"{numbers_reading(column, shares)}"
        )
        return RecordError(
            column, int(value) if value.is_integer() else value, allowed, reason="out of range"
        )

    # Judgements --------------------------------------------------------------------------------------------

    def _unread(self, row: SourceRow, shape: Shape, rows: RowsAhead) -> RecordError | None:
        if "winner" in self.names.switched_off:
            return None
        unread = [column for column in row.fields if column not in self.names.read(shape)]
        sides = self._sides(shape)
        if shape == "neutral":
            has = any(self.names.has(row, field) for form in FORMS.values() for field in form)
            self._has_judgements |= has or self.names.has(row, "votes")
            if self._has_judgements or self.names.judges:
                return None
            likely = judgement_columns(row.fields, unread, plain=False)
        elif mapped := [
            self.names.given[field]
            for field in sorted(NEUTRAL_ALONE & self.names.given.keys())
            if self.names.has(row, field)
        ]:
            likely = mapped
        elif self.names.has(row, "preference") or "preference" in self.names.given:
            return None
        elif say_who_won(sides[0]):
            likely = judgement_columns(row.fields, unread, plain=True) or _contradicting(row.fields, unread)
        else:
            strength = [self.names.theirs["strength"]] if self.names.has(row, "strength") else []
            likely = strength + judgement_columns(row.fields, unread, plain=False)
        return self._refusal(row, likely, sides, rows) if likely else None

    def _sides(self, shape: Shape) -> tuple[str, str]:
        first, second = ("chosen", "rejected") if shape == "pair" else ("first", "second")
        return self.names.theirs.get(first, first), self.names.theirs.get(second, second)

    def _refusal(
        self, row: SourceRow, likely: list[str], sides: tuple[str, str], rows: RowsAhead
    ) -> RecordError:
        if not self._values.keys() >= {*likely}:
            for other in (row, *rows.ahead()):
                for column in likely:
                    seen = self._values.setdefault(column, [])
                    value = value_at(other.fields, column)
                    if value is not None and value not in seen and len(seen) < MOST_VALUES:
                        seen.append(value)
        column = likely[0]
        reading = likely_reading({name: self._values[name] for name in likely})
        named = reading._replace(columns={"first": sides[0], "second": sides[1]} | dict(reading.columns))
        allowed = (
            f"a judgement that is read: {column} holds {listed(map(str, self._values[column]))}, and no field reads it; {named} would; "
            f"or columns: {{winner: null}} where {' and '.join(sides)} say it, or nobody judged"
        )
        return RecordError(
            column,
            value_at(row.fields, column),
            allowed,
            reason="unread judgement",
            file=row.file,
            line=row.line,
        )

    def _unread_turn(self, row: SourceRow, shape: Shape) -> RecordError | None:
        """A turn that was judged, of conversations that go on after it."""
        if "turn" in self.names.theirs or "turn" in self.names.switched_off:
            return None
        turn = row.fields.get("turn")
        if isinstance(turn, bool) or not isinstance(turn, int) or turn < 1:
            return None
        asked = [_questions(value_at(row.fields, side)) for side in self._sides(shape)]
        if min(asked) <= turn:
            return None
        allowed = (
            f"a turn that is read, for the sides have {min(asked)}: columns: {{turn: turn}} takes away what follows the judged turn; "
            "columns: {turn: null} where all of it was judged"
        )
        return RecordError("turn", turn, allowed, reason="unread turn", file=row.file, line=row.line)


def _questions(side: object) -> int:
    """Turns of the user in a side that is a list of messages; 0 for anything else."""
    turns = side if isinstance(side, list) else ()
    return sum(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in turns)


def _contradicting(fields: Mapping[str, object], unread: list[str]) -> list[str]:
    """Scores of both sides, of which the rejected one has more."""
    for first, second in score_pairs(unread):
        chosen, rejected = fields[first], fields[second]
        if not say_who_won(first):
            continue
        if isinstance(chosen, int | float) and isinstance(rejected, int | float) and chosen < rejected:
            return [first, second]
    return []
