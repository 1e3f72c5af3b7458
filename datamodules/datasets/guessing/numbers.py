"""Numbers that say who won a pair: signs, shares, codes, scales; of most there is more than one reading."""

from collections.abc import Mapping

from ...records import Judgement, Side, is_number, number_field, signed_judgement
from ..local.fields import value_at
from ..local.likely import name_words
from .codes import coded, codes_shown
from .profile import ColumnProfile
from .readings import Candidate, TableReading
from .sides import ColumnPair

__all__ = ["DEGREE", "as_number", "by_numbers"]

DEGREE = ("strength", "margin", "difference", "diff", "delta", "gap", "advantage")
"""Words in the name of a column that says by how much."""
LARGEST_SCALE = 10
"""Number to which a scale of whole numbers goes at most."""


def by_numbers(column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A column of numbers, with every way to read them.

    Args:
        column: The column.
        sides: Columns of the two responses.
    """
    values = set(column.numbers)
    degree = any(word in DEGREE for word in name_words(column.name))
    if side := _about_side(column.name, sides):
        return _of_one_side(column, side)
    if min(values) < 0 < max(values):
        return _signed(column)
    if degree or min(values) < 0:
        return None  # a size without a direction
    if values <= {0.0, 1.0}:
        return _zero_or_one(column)
    if max(values) <= 1:
        return _share(column)
    if values <= {1.0, 1.5, 2.0} and sides.marks != ("0", "1"):
        codes: dict[str, str | float] = {"1": "first", "2": "second"}
        if 1.5 in values:
            codes["1.5"] = "tie"
        return Candidate(
            (column.name,),
            (coded(column.name, codes, f"{column.name} names the side: {codes_shown(codes)}"),),
        )
    if 1 <= min(values) and max(values) <= 2 and not column.is_whole:
        meaning = f"{column.name} goes from 1, the first side, to 2, the second"
        reading = _shared(column.name, 2, 1, meaning)
        if sides.marks != ("0", "1"):
            return Candidate((column.name,), (reading,))
        other = _shared(column.name, 1, 2, f"{column.name} goes from 1, the second side, to 2, the first")
        why = f"{column.name} holds {column.shown}, and the sides are called 0 and 1"
        return Candidate((column.name,), (reading, other), why)
    if column.is_whole and max(values) <= LARGEST_SCALE:
        return _scale(column, sides)
    return None


def _about_side(name: str, sides: ColumnPair) -> Side | None:
    """The side that the name of a column is about, such as ``a_wins`` or ``share_first``."""
    parts = name_words(name)
    marks = [mark for mark in (*sides.marks, "first", "second") if mark in parts]
    if len(marks) != 1:
        return None
    return "first" if marks[0] in (sides.marks[0], "first") else "second"


def _of_one_side(column: ColumnProfile, side: Side) -> Candidate | None:
    """A share, or a flag, of the side that the column's name names; -1 and the like of none."""
    if not 0 <= min(column.numbers) <= max(column.numbers) <= 1:
        return None
    meaning = f"{column.name} is the share of the {side} side"
    if set(column.numbers) <= {0.0, 1.0}:
        other: Side = "second" if side == "first" else "first"
        return Candidate((column.name,), (coded(column.name, _flag_codes(column, other, side), meaning),))
    ends = (0, 1) if side == "first" else (1, 0)
    return Candidate((column.name,), (_shared(column.name, *ends, meaning),))


def _shared(name: str, nobody: float, everybody: float, meaning: str) -> TableReading:
    """A reading by a share: which numbers stand for nobody and for everybody preferring the first side."""

    def judge(row: Mapping[str, object]) -> Judgement | None:
        value = as_number(value_at(row, name))
        if value is None:
            return None
        number = number_field(name, value, min(nobody, everybody), max(nobody, everybody))
        return Judgement((number - nobody) / (everybody - nobody))

    options = {} if (nobody, everybody) == (0, 1) else {"preference_range": [nobody, everybody]}
    return TableReading(meaning, {"preference": name}, options=options, judge=judge)


def _share(column: ColumnProfile) -> Candidate:
    readings = tuple(
        _shared(column.name, *ends, f"{column.name} is the share that prefers the {side}")
        for side, ends in (("first", (0, 1)), ("second", (1, 0)))
    )
    return Candidate(
        (column.name,),
        readings,
        f"{column.name} holds {column.shown}, and nothing says of which side it is the share",
    )


def _signed(column: ColumnProfile) -> Candidate:
    readings = []
    sides: tuple[Side, Side] = ("first", "second")
    for side in sides:

        def judge(row: Mapping[str, object], side: Side = side) -> Judgement | None:
            value = as_number(value_at(row, column.name))
            return None if value is None else signed_judgement(column.name, value, side)

        meaning = f"above 0, {column.name} prefers the {side} side"
        readings.append(
            TableReading(meaning, {"strength": column.name}, options={"positive": side}, judge=judge)
        )
    if set(column.numbers) <= {-1.0, 0.0, 1.0} and not any(
        word in DEGREE for word in name_words(column.name)
    ):
        for zero, one in (("second", "first"), ("first", "second")):
            codes: dict[str, str | float] = {"-1": "none", "0": zero, "1": one}
            readings.append(coded(column.name, codes, f"{column.name}: {codes_shown(codes)}"))
    why = f"{column.name} holds {column.shown}, and nothing says which side a number above 0 prefers"
    return Candidate((column.name,), tuple(readings), why)


def _flag_codes(column: ColumnProfile, zero: str, one: str) -> dict[str, str | float]:
    names = ("false", "true") if column.flags == column.present else ("0", "1")
    return dict(zip(names, (zero, one), strict=True))


def _zero_or_one(column: ColumnProfile) -> Candidate:
    readings = []
    for zero, one in (("second", "first"), ("first", "second")):
        codes = _flag_codes(column, zero, one)
        readings.append(coded(column.name, codes, f"{column.name}: {codes_shown(codes)}"))
    why = (
        f"{column.name} holds {column.shown}: 1 is the first side in one data set, and the second in another"
    )
    return Candidate((column.name,), tuple(readings), why)


def _scale(column: ColumnProfile, sides: ColumnPair) -> Candidate:
    """Whole numbers from 0 or 1: a side and something else, or a scale from one side to the other."""
    values = [int(value) for value in column.numbers]
    low, high = values[0], values[-1]
    readings = []
    if (low, high) in ((0, 2), (1, 3)):
        other = 0 if low == 0 else 3
        for meaning in ("tie", "none"):
            codes: dict[str, str | float] = {str(other): meaning, "1": "first", "2": "second"}
            readings.append(coded(column.name, codes, f"{column.name}: {codes_shown(codes)}"))
    middle = (low + high) / 2
    for near, far in (("first", "second"), ("second", "first")):
        codes = {
            str(value): "tie" if value == middle else near if value < middle else far
            for value in range(low, high + 1)
        }
        readings.append(coded(column.name, codes, f"{column.name} is a scale: {codes_shown(codes)}"))
    why = f"{column.name} holds {column.shown}, and nothing says which number means which side"
    return Candidate((column.name,), tuple(readings), why)


def as_number(value: object) -> object:
    """A number that may be written as text, as it is in CSV.

    Args:
        value: Of a row.
    """
    if isinstance(value, str) and is_number(value):
        return float(value)
    return value
