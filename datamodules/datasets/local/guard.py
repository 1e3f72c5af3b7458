"""Judgements that nothing reads, and shares that are none: said before they become wrong labels."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ...records import (
    FLOAT32_MAX,
    RecordError,
    SourceRow,
    conversation,
    has_text_cells,
    is_number,
    known_code,
    listed,
    parse_messages,
)
from .fields import FORMS, NEUTRAL_ALONE, FieldNames, Shape, value_at
from .judged import JudgementReader
from .likely import (
    judgement_columns,
    likely_reading,
    name_words,
    numbers_reading,
    say_who_won,
    score_pairs,
)

__all__ = ["JudgementGuard", "RowsAhead"]

AHEAD = 500
"""Rows that are looked at for further values of a column before an error names it."""
MOST_VALUES = 8
TIE_FLAGS = {"tie", "istie", "tied", "istied", "draw", "isdraw"}
"""Names, without case and punctuation, of columns that are true or 1 for a tie."""
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
        self._looked_ahead = False
        self._two_readings: dict[Shape, bool] = {}

    def problem(self, row: SourceRow, shape: Shape | None, rows: RowsAhead) -> RecordError | None:
        """What is wrong with a row; None if nothing is."""
        if (share := self._share_off(row)) is not None:
            self._look_ahead(rows)
            return self._other_code(share).at(row.file, row.line)
        if not self.judged or shape not in ("pair", "neutral"):
            return None
        return (
            self._index_or_share(row, shape, rows)
            or self._unread_turn(row, shape)
            or self._unread(row, shape, rows)
        )

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

    def _look_ahead(self, rows: RowsAhead) -> None:
        """Note the shares of rows to come, once: a file may hold nothing but such rows."""
        if not self._looked_ahead:
            self._looked_ahead = True
            for other in rows.ahead():
                self._note_shares(other)

    def _index_or_share(self, row: SourceRow, shape: Shape, rows: RowsAhead) -> RecordError | None:
        """Nothing but 0 and 1 in a share that no setting names, of sides without a sense: it may be the better side's number."""
        fields = {"preference", "judgements.preference"}
        if fields & self.names.given.keys() or self.reader.codes or self.reader.preference_range != (0, 1):
            return None
        shares = [*self._row_shares(row)] if self._two_readings.get(shape, True) else []
        if not shares:
            return None
        first, second = self._sides(shape)
        if shape not in self._two_readings:
            seen = {share for each in (row, *rows.ahead()) for share in self._row_shares(each)}
            self._two_readings[shape] = seen <= {0.0, 1.0} and not say_who_won(first)
        if not self._two_readings[shape]:
            return None
        nested = not self.names.has(row, "preference")
        column = self.names.nested["preference"] if nested else self.names.theirs["preference"]
        within = "judgements." if nested else ""
        allowed = (
            f"a sense that is said, for only 0 and 1 occur: columns: {{{within}preference: {column}}} where it is the share that prefers "
            f"{first}; columns: {{first: {first}, second: {second}, {within}winner: {column}}}; codes: {{0: first | second, 1: first | "
            "second} where it is the number of the better side"
        )
        value = shares[0]
        return RecordError(column, int(value), allowed, reason="two readings", file=row.file, line=row.line)

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
            likely = judgement_columns(row.fields, unread, plain=True) or _contradicting(row, unread)
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
        if isinstance(turn, str) and has_text_cells(row.file) and is_number(turn):
            turn = float(turn)
        if isinstance(turn, bool) or not isinstance(turn, int | float) or turn < 1:
            return None
        asked = [_questions(side, value_at(row.fields, side)) for side in self._sides(shape)]
        if min(asked) <= turn:
            return None
        allowed = (
            f"a turn that is read, for the sides have {min(asked)}: columns: {{turn: turn}} takes away what follows the judged turn; "
            "columns: {turn: null} where all of it was judged"
        )
        return RecordError("turn", turn, allowed, reason="unread turn", file=row.file, line=row.line)


def _questions(field: str, side: object) -> int:
    """Turns of the user in a side that is messages, or the JSON of some; 0 for anything else."""
    try:
        value = conversation(field, side) if isinstance(side, str) else side
        messages = parse_messages(field, value)
    except RecordError:  # said where the row is read
        return 0
    return sum(message.role == "user" for message in messages)


def _contradicting(row: SourceRow, unread: list[str]) -> list[str]:
    """What says that a pair whose sides say who won is a tie, or scores of both sides, of which the rejected one has more."""
    for column in unread:
        if "".join(name_words(column)) in TIE_FLAGS and _number(row, column):
            return [column]
    for first, second in score_pairs(unread):
        chosen, rejected = _number(row, first), _number(row, second)
        if say_who_won(first) and chosen is not None and rejected is not None and chosen < rejected:
            return [first, second]
    return []


def _number(row: SourceRow, column: str) -> float | None:
    """A number, a truth value as one, or what a cell of text holds of these; None for anything else."""
    value = row.fields[column]
    if isinstance(value, str) and has_text_cells(row.file):
        value = {"true": 1.0, "false": 0.0}.get(value.casefold(), value)
        value = float(value) if isinstance(value, str) and is_number(value) else value
    return float(value) if isinstance(value, int | float) and abs(value) <= FLOAT32_MAX else None
