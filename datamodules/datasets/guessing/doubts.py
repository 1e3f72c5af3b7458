"""Pairs whose columns say who won: what else the rows say of it, and whether that says the same."""

import re
from collections.abc import Iterator
from dataclasses import replace

from ...records import Judgement, listed
from ..local.likely import judgement_columns
from .form import GivenSettings, TableGuess
from .outcome import candidates, is_winner_name
from .profile import ColumnProfile, TableProfile
from .readings import Answers, OpenQuestion, TableReading
from .sides import ColumnPair

__all__ = ["winner_named"]

SETTLED = ("winner", "preference")
"""Fields by which the user has said what tells who won."""


def winner_named(guess: TableGuess, pair: ColumnPair, given: GivenSettings) -> TableGuess:
    """A guess with the share, and with a question where another column names another winner than the columns' names.

    Args:
        guess: Of the sides.
        pair: Columns of the sides.
        given: What the user says of the table.
    """
    guess = _with_share(guess, pair)
    if any(field in given.columns for field in SETTLED):
        return guess
    likely = _likely(guess.table, pair)
    named = TableReading(
        f"the names say it: {pair.first} was preferred in every row",
        {"winner": None},
        judge=lambda row: Judgement(1.0),
    )
    doubts = []
    agreeing = []
    for candidate in candidates(guess.table, pair):
        plain = set(candidate.columns) & likely
        told = [(reading, reading.answers(guess.table.rows)) for reading in candidate.readings]
        if not plain and not any("first_score" in reading.columns for reading, _ in told):
            continue
        if len(told) == 1 and not told[0][1].counts[2]:
            agreeing.append(f"{_told(told[0][1])} by {listed(candidate.columns)}, too")
        elif told or plain:
            doubts.append((candidate, [reading for reading, _ in told]))
    if doubts:
        readings = (named, *(_neutral(reading, pair) for _, several in doubts for reading in several))
        names = listed([name for candidate, _ in doubts for name in candidate.columns])
        why = f"{names} may name another winner than the names {pair.first} and {pair.second} do"
        return replace(guess, questions=(*guess.questions, OpenQuestion("who won", why, readings)))
    columns = {**guess.reading.columns, **({"winner": None} if likely else {})}
    return replace(
        guess, reading=replace(guess.reading, columns=columns), evidence=(*guess.evidence, *agreeing)
    )


def _told(answers: Answers) -> str:
    wins, ties, _ = answers.counts
    return f"the first wins {wins:,} rows" + (f" and ties {ties:,}" if ties else "")


def _likely(table: TableProfile, pair: ColumnPair) -> set[str]:
    """Columns whose names plainly say that they tell who won."""
    others = [name for name in table.top if name not in (*pair.names, "preference")]
    return {name for row in table.rows for name in judgement_columns(row, others, plain=True)}


def _neutral(reading: TableReading, pair: ColumnPair) -> TableReading:
    """A reading of sides that the names do not tell apart."""
    sides = {"chosen": None, "rejected": None, "first": pair.first, "second": pair.second}
    return replace(reading, columns={**sides, **reading.columns})


def _with_share(guess: TableGuess, pair: ColumnPair) -> TableGuess:
    column = guess.table.columns.get("preference")
    notes = list(_unread(guess.table, pair))
    reading = guess.reading
    if column is not None and column.numbers and 0 <= column.numbers[0] <= column.numbers[-1] <= 1:
        notes.append(f"preference is read as the share that prefers {pair.first}")
    elif column is not None and _has_decimal_commas(column):
        alone = TableReading(
            "preference is not read: all people preferred the chosen side", {"preference": None}
        )
        why = f"preference holds {column.shown}: a decimal comma is not read, write a point"
        return replace(guess, questions=(*guess.questions, OpenQuestion("the share", why, (alone,))))
    elif column is not None:
        reading = replace(reading, columns={**reading.columns, "preference": None})
        notes.append(f"preference holds {column.shown}, which is no share, and is not read")
    return replace(guess, reading=reading, notes=(*guess.notes, *notes))


def _has_decimal_commas(column: ColumnProfile) -> bool:
    """Whether its values are numbers as they are written where the comma is the decimal mark."""
    texts = [value for value in column.values if isinstance(value, str)]
    return bool(texts) and all(re.fullmatch(r"\d+,\d+", text) for text in texts)


def _unread(table: TableProfile, pair: ColumnPair) -> Iterator[str]:
    """Columns that may say by how much."""
    for name in table.top:
        column = table.columns.get(name)
        if (
            column is None
            or name in (*pair.names, "preference", "strength", "margin")
            or not is_winner_name(name)
        ):
            continue
        if column.kind == "number" and not column.is_constant:
            yield f"{name} holds {column.shown} and is not read; columns: {{strength: {name}}} reads it as the strength"
