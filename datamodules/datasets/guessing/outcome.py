"""Who won a pair, as far as the columns tell it: each column that may say it, with every way to read it."""

from collections.abc import Collection, Iterator, Mapping
from statistics import fmean

from ...records import (
    Judgement,
    Outcome,
    RecordError,
    check_codes,
    coded_judgement,
    list_field,
    listed,
    number_field,
    one_hot_judgement,
    signed_judgement,
)
from ..local.fields import value_at
from ..local.likely import name_words
from .codes import MOST_CODES, by_name, by_words
from .numbers import DEGREE, as_number, by_numbers
from .profile import ColumnProfile, TableProfile
from .readings import Candidate, Judge, TableReading
from .roles import PERSON
from .sides import ColumnPair, column_pairs

__all__ = ["candidates", "candidates_of_texts", "is_winner_name"]

WINNER = (
    "winner", "win", "wins", "won", "label", "labels", "preference", "preferred", "choice", "chosen", "better", "best", "verdict", "judgement",
    "judgment", "vote", "pref", "selected", "selection", "decision", "outcome", "result", "winning", "favourite", "favorite",
    "prefer", "picked", "pick", "annotation", "comparison", "pairwise",
)  # fmt: skip
"""Words in the name of a column that says who won."""
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


def candidates(table: TableProfile, sides: ColumnPair, *, also: Collection[str] = ()) -> list[Candidate]:
    """What may say who won, the plainest first.

    Args:
        table: What the table holds.
        sides: Columns of the two responses.
        also: Columns that may say it whatever they are called.
    """
    hot = list(_one_hot(table))
    taken = {name for candidate in hot for name in candidate.columns} | set(sides.names)
    taken |= {
        name
        for pair in column_pairs(table.columns)
        for name in pair.names
        if set(pair.marks) != set(sides.marks) and (pair.stem or not pair.is_judged)
    }
    single = [
        candidate
        for name, column in table.columns.items()
        if name not in taken
        and (is_winner_name(name) or name in also)
        and (candidate := _single(table, column, sides))
    ]
    judges = list(_judges(table, sides))
    together = {name for candidate in judges for name in candidate.columns}
    single = [candidate for candidate in single if not together & set(candidate.columns)]
    return [*hot, *judges, *_without_aspects(single), *_votes(table), *_scores(table, sides)]


def candidates_of_texts(name: str, column: ColumnProfile, sides: ColumnPair) -> list[Candidate]:
    """How a list of codes in a row is read, one of each person: by one code at a time.

    Args:
        name: Of the column of lists.
        column: What the lists hold, of a table in which each of their entries is a row.
        sides: Columns of the two responses.
    """
    parts = set(name_words(name))
    if not parts & set(WINNER) or parts & set(NOT_WINNER) or not column.is_short:
        return []
    candidate = by_words(TableProfile((), {column.name: column}, (column.name,)), column, sides)
    return [candidate] if candidate and candidate.readings else []


def _without_aspects(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates without those of an aspect, such as ``helpful_pref``, where one is of all: ``overall_pref``."""
    overall = [candidate for candidate in candidates if "overall" in name_words(candidate.columns[0])]
    if len(overall) != 1:
        return candidates
    stem = set(name_words(overall[0].columns[0])) - {"overall"}
    return [
        candidate
        for candidate in candidates
        if candidate is overall[0] or not stem & set(name_words(candidate.columns[0]))
    ]


def is_winner_name(name: str) -> bool:
    """Whether a column is called as those are that say who won, or by how much.

    Args:
        name: With dots between the levels of nested fields.
    """
    parts = name_words(name.rpartition(".")[2] or name)
    if any(part in DEGREE for part in parts):
        return not set(parts) & {"std", "deviation", "id"}
    if "id" in parts and set(parts) & {"better", "preferred", "winner", "chosen"}:  # of the response that won
        return True
    return any(part in WINNER for part in parts) and not any(part in NOT_WINNER for part in parts)


def _single(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A candidate of one column, if its values can be codes of a winner."""
    if column.is_short and len(column.values) <= MOST_CODES:
        return by_words(table, column, sides)
    if column.kind == "number" and not column.is_constant:
        return by_numbers(column, sides)
    if column.kind == "text":
        return by_name(table, column, sides)
    return None


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
            if (
                flag
                and set(name_words(name)) & set(TIE)
                and set(name_words(name)) - set(TIE) <= set(pair.stem)
            ):
                outcomes[name], fields["tie"] = "tie", name
                break

        def judge(row: Mapping[str, object], outcomes: dict[str, Outcome] = outcomes) -> Judgement | None:
            values = {name: as_number(value_at(row, name)) for name in outcomes}
            return one_hot_judgement(values, list(outcomes.values()))

        meaning = f"{', '.join(outcomes)} hold 1 where {', '.join(outcomes.values())} is the outcome"
        yield Candidate(tuple(outcomes), (TableReading(meaning, fields, judge=judge),))


# A column for each judge ---------------------------------------------------------------------------------


def _judges(table: TableProfile, sides: ColumnPair) -> Iterator[Candidate]:
    families: dict[tuple[str, ...], list[ColumnProfile]] = {}
    for name, column in table.columns.items():
        parts = name_words(name)
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
        if (
            len(columns) < 2
            or len(kinds) > 1
            or any(column.kind not in ("number", "text") for column in columns)
        ):
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


# Counts of votes -----------------------------------------------------------------------------------------


def _votes(table: TableProfile) -> Iterator[Candidate]:
    """A list of counts, from the first side to the second."""
    for name in table.top:
        column = table.columns.get(name)
        if (
            column is None
            or column.kind != "numbers"
            or "votes" not in name_words(name)
            or len(column.lengths) != 1
        ):
            continue
        meaning = f"{name} counts votes, from those for the first side to those for the second"
        yield Candidate((name,), (TableReading(meaning, {"votes": name}, judge=_by_votes(name)),))


def _by_votes(name: str) -> Judge:
    def judge(row: Mapping[str, object]) -> Judgement | None:
        value = value_at(row, name)
        if value is None:
            return None
        counts = [number_field(name, count, 0.0) for count in list_field(name, value)]
        if not sum(counts):
            return None
        half = len(counts) // 2
        middle = counts[half] if len(counts) % 2 else 0.0
        return Judgement((sum(counts[:half]) + middle / 2) / sum(counts))

    return judge


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
        one, other = (as_number(value_at(row, name)) for name in (first, second))
        if one is None and other is None:
            return None
        if not isinstance(one, int | float) or not isinstance(other, int | float):
            raise RecordError(first, one, "a number for each side", reason="wrong type")
        return signed_judgement(first, float(one) - float(other), "first")

    return judge
