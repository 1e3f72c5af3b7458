"""Who won a pair, as far as the columns tell it: each column that may say it, with every way to read it."""

import re
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

from ...records import (
    Judgement,
    Outcome,
    RecordError,
    Side,
    check_codes,
    coded_judgement,
    listed,
    number_field,
    one_hot_judgement,
    signed_judgement,
)
from ..local.fields import value_at
from .profile import ColumnProfile, TableProfile, words
from .readings import Codes, Judge, TableReading
from .roles import PERSON
from .sides import ColumnPair, column_pairs

__all__ = ["Candidate", "candidates", "is_winner_name"]

WINNER = (
    "winner", "win", "label", "labels", "preference", "preferred", "choice", "chosen", "better", "best", "verdict", "judgement",
    "judgment", "vote", "pref", "selected", "selection", "decision", "outcome", "result", "winning", "favourite", "favorite",
    "prefer", "picked", "pick", "annotation",
)  # fmt: skip
"""Words in the name of a column that says who won."""
DEGREE = ("strength", "margin", "difference", "diff", "delta", "gap", "advantage")
"""Words in the name of a column that says by how much."""
SCORE = (
    "score",
    "scores",
    "rating",
    "ratings",
    "reward",
    "rewards",
    "votes",
    "likes",
    "upvotes",
    "grade",
    "points",
    "quality",
    "overall",
)
RANK = ("rank", "ranking", "ranks", "place", "position")
NOT_WINNER = (
    "confidence", "reason", "reasoning", "reasons", "justification", "statement", "elaboration", "id", "time", "timestamp",
    "explanation", "comment", "rationale", "model", "generator", "type", "name", "source", "count", "num", "number", "date",
    "score", "acceptable", "language", "lang", "length", "has",
)  # fmt: skip
"""Words in the name of a column that says something of a judgement, but not who won."""
TIE = ("tie", "draw", "equal", "same", "both")
MOST_CODES = 12
"""Distinct values beyond which text is no code."""
LARGEST_SCALE = 10


class Candidate(NamedTuple):
    """A column, or several, that may say who won.

    Attributes:
        columns: Their names.
        readings: Ways to read them: of one it is certain, of several one is right, of none nobody can tell.
        why: Why it is not certain; empty if it is.
        problem: Why it cannot be read at all; empty if it can.
    """

    columns: tuple[str, ...]
    readings: tuple[TableReading, ...]
    why: str = ""
    problem: str = ""


def candidates(table: TableProfile, sides: ColumnPair) -> list[Candidate]:
    """What may say who won, the plainest first.

    Args:
        table: What the table holds.
        sides: Columns of the two responses.
    """
    hot = list(_one_hot(table))
    taken = {name for candidate in hot for name in candidate.columns} | set(sides.names)
    taken |= {
        name
        for pair in column_pairs(table.columns)
        for name in pair.names
        if set(pair.marks) != set(sides.marks)
    }
    single = [
        candidate
        for name, column in table.columns.items()
        if name not in taken and is_winner_name(name) and (candidate := _single(table, column, sides))
    ]
    judges = list(_judges(table, sides))
    together = {name for candidate in judges for name in candidate.columns}
    single = [candidate for candidate in single if not together & set(candidate.columns)]
    return [*hot, *judges, *_without_aspects(single), *_scores(table, sides)]


def _without_aspects(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates without those of an aspect, such as ``helpful_pref``, where one is of all: ``overall_pref``."""
    overall = [candidate for candidate in candidates if "overall" in words(candidate.columns[0])]
    if len(overall) != 1:
        return candidates
    stem = set(words(overall[0].columns[0])) - {"overall"}
    return [
        candidate
        for candidate in candidates
        if candidate is overall[0] or not stem & set(words(candidate.columns[0]))
    ]


def is_winner_name(name: str) -> bool:
    """Whether a column is called as those are that say who won, or by how much.

    Args:
        name: With dots between the levels of nested fields.
    """
    parts = words(name.rpartition(".")[2] or name)
    if any(part in DEGREE for part in parts):
        return not set(parts) & {"std", "deviation", "id"}
    return any(part in WINNER for part in parts) and not any(part in NOT_WINNER for part in parts)


# A column for each outcome -------------------------------------------------------------------------------


def _one_hot(table: TableProfile) -> Iterator[Candidate]:
    for pair in column_pairs(table.columns):
        if not any(
            word in ("winner", "win", "wins", "won", "preferred", "better", "label") for word in pair.stem
        ):
            continue
        if not all(
            set(table.columns[name].numbers) <= {0.0, 1.0} and table.columns[name].numbers
            for name in pair.names
        ):
            continue
        outcomes: dict[str, Outcome] = {pair.first: "first", pair.second: "second"}
        fields: dict[str, str | None] = {"first_wins": pair.first, "second_wins": pair.second}
        for name, column in table.columns.items():
            flag = set(column.numbers) <= {0.0, 1.0} and bool(column.numbers)
            if flag and set(words(name)) & set(TIE) and set(words(name)) - set(TIE) <= set(pair.stem):
                outcomes[name], fields["tie"] = "tie", name
                break

        def judge(row: Mapping[str, object], outcomes: dict[str, Outcome] = outcomes) -> Judgement | None:
            values = {name: _number(value_at(row, name)) for name in outcomes}
            return one_hot_judgement(values, list(outcomes.values()))

        meaning = f"{', '.join(outcomes)} hold 1 where {', '.join(outcomes.values())} is the outcome"
        yield Candidate(tuple(outcomes), (TableReading(meaning, fields, judge=judge),))


def _number(value: object) -> object:
    """A number that may be written as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?", value):
        return float(value)
    return value


# A column for each judge ---------------------------------------------------------------------------------


def _judges(table: TableProfile, sides: ColumnPair) -> Iterator[Candidate]:
    families: dict[tuple[str, ...], list[ColumnProfile]] = {}
    for name, column in table.columns.items():
        parts = words(name)
        marked = [i for i, part in enumerate(parts) if part.isdecimal() or len(part) == 1]
        stem = tuple(part for i, part in enumerate(parts) if i not in marked)
        if (
            len(marked) == 1
            and set(stem) & {*PERSON, *WINNER}
            and not set(stem) & set(NOT_WINNER)
            and name in table.top
        ):
            families.setdefault(stem, []).append(column)
    for columns in families.values():
        kinds = {column.kind for column in columns}
        if len(columns) < 2 or len(kinds) > 1 or any(column.is_prose for column in columns):
            continue
        merged = ColumnProfile(listed([column.name for column in columns]), len(table.rows) * len(columns))
        for column in columns:
            merged.kinds += column.kinds
            merged.values += column.values
            merged.flags += column.flags
        if candidate := _single(table, merged, sides):
            names = [column.name for column in columns]
            readings = tuple(
                _of_judges(names, reading) for reading in candidate.readings if "winner" in reading.columns
            )
            if len(readings) == len(candidate.readings):
                yield Candidate(tuple(names), readings, candidate.why)


def _of_judges(names: list[str], reading: TableReading) -> TableReading:
    known = check_codes(reading.codes)

    def judge(row: Mapping[str, object]) -> Judgement | None:
        values = [value for name in names if (value := value_at(row, name)) is not None]
        told = [
            judgement
            for value in values
            if (judgement := coded_judgement(names[0], value, known)) is not None
        ]
        return Judgement(fmean(judgement.share for judgement in told)) if told else None

    meaning = f"{listed(names)} are what one judge each said; {reading.meaning.partition(': ')[2] or reading.meaning}"
    return TableReading(meaning, {}, codes=reading.codes, options={"judges": names}, judge=judge)


# Scores of both sides ----------------------------------------------------------------------------------


def _scores(table: TableProfile, sides: ColumnPair) -> Iterator[Candidate]:
    pairs = [
        pair
        for pair in column_pairs(table.columns)
        if pair.marks == sides.marks
        and all(table.columns[name].kind == "number" for name in pair.names)
        and any(word in (*SCORE, *RANK) for word in pair.stem)
    ]
    for pair in pairs:
        ranked = any(word in RANK for word in pair.stem)
        first, second = pair.names[::-1] if ranked else pair.names
        meaning = f"the {'lower' if ranked else 'greater'} of {pair.first} and {pair.second} wins, equal ones are a tie"
        reading = TableReading(
            meaning, {"first_score": first, "second_score": second}, judge=_by_scores(first, second)
        )
        yield Candidate(pair.names, (reading,))


def _by_scores(first: str, second: str) -> Judge:
    def judge(row: Mapping[str, object]) -> Judgement | None:
        one, other = (_number(value_at(row, name)) for name in (first, second))
        if one is None and other is None:
            return None
        if not isinstance(one, int | float) or not isinstance(other, int | float):
            raise RecordError(first, one, "a number for each side", reason="wrong type")
        return signed_judgement(first, float(one) - float(other), "first")

    return judge


# One column --------------------------------------------------------------------------------------------


def _single(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A candidate of one column, if its values can be codes of a winner."""
    if column.kind == "text" and not column.is_prose and len(column.values) <= MOST_CODES:
        return _words(table, column, sides)
    if column.kind == "number" and not column.is_constant:
        return _numbers(column, sides)
    if column.kind == "text" and not column.is_prose:
        return _names(table, column, sides)
    return None


def _words(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    texts = [value for value in column.values if isinstance(value, str)]
    meant: dict[str, str | float] = {}
    unknown: list[str] = []
    for text in texts:
        try:
            coded_judgement(column.name, text)
        except RecordError:
            if side := _names_side(text, sides):
                meant[text] = side
            else:
                unknown.append(text)
    if len(unknown) == len(texts) and (candidate := _names(table, column, sides)):
        return candidate
    if not unknown:
        how = "names the winner" + (": " + _codes_shown(meant) if meant else " in words")
        return Candidate((column.name,), (coded(column.name, meant, f"{column.name} {how}"),))
    if len(unknown) == 2 and len(texts) - len(meant) - 2 == sum(_is_tie(text) for text in texts):
        one, other = unknown
        readings = tuple(
            coded(column.name, {**meant, a: "first", b: "second"}, f"{a!r} means the first, {b!r} the second")
            for a, b in ((one, other), (other, one))
        )
        return Candidate(
            (column.name,),
            readings,
            f"{column.name} holds {column.shown}, and nothing says which side each is",
        )
    why = (
        f"{column.name} holds {column.shown}; nothing says what {listed(unknown)} mean"
        f"{'s' * (len(unknown) == 1)}: say it by codes, each first | second | tie | none"
    )
    return Candidate((column.name,), (), why)


def _is_tie(text: str) -> bool:
    try:
        judgement = coded_judgement("", text)
    except RecordError:
        return False
    return judgement is None or judgement.share == 0.5


def _names_side(text: str, sides: ColumnPair) -> Side | None:
    """The side that a code names: by its column's name, or by a word and its mark, such as ``left`` or ``a1`` of ``arg1``."""
    names: tuple[tuple[Side, str, str], ...] = (
        ("first", sides.first, sides.marks[0]),
        ("second", sides.second, sides.marks[1]),
    )
    parts = words(text)
    for side, name, mark in names:
        if text.casefold() == name.casefold() or parts == words(name):
            return side
        stems = (
            *sides.stem,
            *(word[0] for word in sides.stem),
            "option",
            "choice",
            "side",
            "response",
            "model",
            "text",
            "winner",
        )
        if parts and mark in parts and set(parts) - {mark} <= {*stems, "wins", "won", "is", "better", "the"}:
            return side
    return None


def _names(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A column whose values are those of one side's columns: the winner's model, or its text."""
    for pair in column_pairs(table.columns):
        if pair.marks != sides.marks or column.name in pair.names:
            continue
        named = sum(
            value_at(row, column.name) in (value_at(row, pair.first), value_at(row, pair.second))
            for row in table.rows
            if value_at(row, column.name) is not None
        )
        if named >= 0.5 * column.present:
            problem = (
                f"{column.name} repeats what {pair.first} or {pair.second} hold of the winner; write a column that names "
                "the side, such as A, B or tie"
            )
            return Candidate((column.name,), (), problem=problem)
    return None


def _numbers(column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    values = set(column.numbers)
    degree = any(word in DEGREE for word in words(column.name))
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
        codes: dict[str, str | float] = {"1": "first", "2": "second"} | (
            {"1.5": "tie"} if 1.5 in values else {}
        )
        return Candidate(
            (column.name,),
            (coded(column.name, codes, f"{column.name} names the side: {_codes_shown(codes)}"),),
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
    parts = words(name)
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
        value = _number(value_at(row, name))
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
            value = _number(value_at(row, column.name))
            return None if value is None else signed_judgement(column.name, value, side)

        meaning = f"above 0, {column.name} prefers the {side} side"
        readings.append(
            TableReading(meaning, {"strength": column.name}, options={"positive": side}, judge=judge)
        )
    if set(column.numbers) <= {-1.0, 0.0, 1.0} and not any(word in DEGREE for word in words(column.name)):
        for zero, one in (("second", "first"), ("first", "second")):
            codes: dict[str, str | float] = {"-1": "none", "0": zero, "1": one}
            readings.append(coded(column.name, codes, f"{column.name}: {_codes_shown(codes)}"))
    why = f"{column.name} holds {column.shown}, and nothing says which side a number above 0 prefers"
    return Candidate((column.name,), tuple(readings), why)


def _flag_codes(column: ColumnProfile, zero: str, one: str) -> dict[str, str | float]:
    names = ("false", "true") if column.flags == column.present else ("0", "1")
    return dict(zip(names, (zero, one), strict=True))


def _zero_or_one(column: ColumnProfile) -> Candidate:
    readings = []
    for zero, one in (("second", "first"), ("first", "second")):
        codes = _flag_codes(column, zero, one)
        readings.append(coded(column.name, codes, f"{column.name}: {_codes_shown(codes)}"))
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
            readings.append(coded(column.name, codes, f"{column.name}: {_codes_shown(codes)}"))
    middle = (low + high) / 2
    for near, far in (("first", "second"), ("second", "first")):
        codes = {
            str(value): "tie" if value == middle else near if value < middle else far
            for value in range(low, high + 1)
        }
        readings.append(coded(column.name, codes, f"{column.name} is a scale: {_codes_shown(codes)}"))
    why = f"{column.name} holds {column.shown}, and nothing says which number means which side"
    return Candidate((column.name,), tuple(readings), why)


def coded(name: str, codes: Codes, meaning: str) -> TableReading:
    """A reading by a column of codes.

    Args:
        name: Of the column.
        codes: What they mean, where :data:`pluralign.datamodules.records.CODES` does not have them.
        meaning: In words.
    """
    known = check_codes(codes)

    def judge(row: Mapping[str, object]) -> Judgement | None:
        value = value_at(row, name)
        return None if value is None else coded_judgement(name, value, known)

    return TableReading(meaning, {"winner": name}, codes=codes, judge=judge)


def _codes_shown(codes: Codes) -> str:
    return ", ".join(
        f"{code} {'nobody judged' if meaning == 'none' else meaning}" for code, meaning in codes.items()
    )
