"""Who won a neutral pair: the columns that may say it are held against each other before one of them is believed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from ...records import Judgement, listed
from ..local.fields import value_at
from .form import GivenSettings, TableGuess
from .outcome import candidates, candidates_of_texts, is_winner_name
from .profile import TableProfile, profile
from .readings import Answers, Candidate, Judge, OpenQuestion, TableReading
from .roles import choose_users, is_of_list
from .sides import ColumnPair

__all__ = ["who_won"]

ENOUGH = 5
"""Rows that two columns must both decide before their agreement says anything."""
SAYS_WHO_WON = ("winner", "strength", "preference", "first_wins", "first_score", "judgements", "votes")
"""Fields of which one says who won."""
NOTHING = (
    "no column says who won that could be read: name it by columns: {winner: ...} with codes, {strength: ...} with positive, "
    "{preference: ...} for a share, {first_wins, second_wins, tie}, {first_score, second_score}, {judgements: ...} for a list of "
    "what several people said, or by judges: [...] where each has a column"
)


class Told(NamedTuple):
    """A reading and what the rows then say."""

    reading: TableReading
    answers: Answers


def who_won(guess: TableGuess, pair: ColumnPair, given: GivenSettings) -> TableGuess:
    """A guess with what says who won, or with the question.

    Args:
        guess: Of the sides.
        pair: Columns of the sides.
        given: What the user says of the table.
    """
    table = guess.table
    if any(given.columns.get(name) for name in SAYS_WHO_WON) or given.options.get("judges"):
        return _as_given(guess, pair, given)
    every = candidates(table, pair)
    problems = tuple(candidate.problem for candidate in every if candidate.problem)
    certain = [_told(table, candidate.readings[0]) for candidate in every if len(candidate.readings) == 1]
    open_ones = [candidate for candidate in every if len(candidate.readings) != 1 and not candidate.problem]
    listed_ones = list(_lists(table, pair))
    certain += [
        _told(table, candidate.readings[0]) for candidate in listed_ones if len(candidate.readings) == 1
    ]
    open_ones += [candidate for candidate in listed_ones if len(candidate.readings) != 1]
    certain = [told for told in certain if told.answers.readable > 0.5]
    if not certain:
        return _unknown(guess, open_ones, problems)
    if parted := _parted(certain):
        return _asked(guess, parted[0], parted[1])
    best = certain[0]
    evidence = [best.reading.meaning] + [_agreeing(best, other) for other in certain[1:]]
    for candidate in open_ones:
        told = [_told(table, reading) for reading in candidate.readings]
        fits = [(best.answers.agreement(one.answers), one) for one in told]
        if not fits or max(both for (both, _), _ in fits) < ENOUGH:
            continue
        (both, same), nearest = max(fits, key=lambda fit: fit[0][1] / max(1, fit[0][0]))
        if same < both:
            return _asked(
                guess,
                f"{_names(best.reading)} and {listed(candidate.columns)} name another winner in {both - same:,} of {both:,} rows",
                (best.reading, *candidate.readings),
            )
        evidence.append(
            f"{nearest.reading.meaning}: so it agrees with {_names(best.reading)} in all of {both:,} rows"
        )
    reading = best.reading
    return replace(
        guess,
        reading=replace(
            guess.reading,
            columns={**guess.reading.columns, **reading.columns},
            codes=reading.codes,
            options=reading.options,
        ),
        evidence=(*guess.evidence, *evidence),
    )


def _told(table: TableProfile, reading: TableReading) -> Told:
    return Told(reading, reading.answers(table.rows))


def _names(reading: TableReading) -> str:
    return " and ".join(column for column in reading.columns.values() if column)


def _agreeing(best: Told, other: Told) -> str:
    both, _ = best.answers.agreement(other.answers)
    return f"{_names(other.reading)} names the same winner in all of {both:,} rows"


def _parted(certain: Sequence[Told]) -> tuple[str, tuple[TableReading, ...]] | None:
    """Why two certain readings cannot both be right."""
    best = certain[0]
    for other in certain[1:]:
        both, same = best.answers.agreement(other.answers)
        if same < both:
            why = f"{_names(best.reading)} and {_names(other.reading)} name another winner in {both - same:,} of {both:,} rows"
            return why, (best.reading, other.reading)
    return None


def _asked(guess: TableGuess, why: str, readings: Sequence[TableReading]) -> TableGuess:
    return replace(guess, questions=(*guess.questions, OpenQuestion("who won", why, tuple(readings))))


def _unknown(guess: TableGuess, open_ones: Sequence[Candidate], problems: Sequence[str]) -> TableGuess:
    """A guess of a pair whose winner no column names for certain."""
    if open_ones:
        first, *others = open_ones
        also = (
            f"; {listed([name for other in others for name in other.columns])} may say it, too"
            if others
            else ""
        )
        alone = [
            reading for other in others for reading in other.readings if "judgements" not in reading.columns
        ]
        readings = (*first.readings, *alone)
        return _asked(guess, first.why + also, readings)
    return _asked(guess, problems[0] if problems else NOTHING, ())


def _as_given(guess: TableGuess, pair: ColumnPair, given: GivenSettings) -> TableGuess:
    """What the user says, which is used as it is; codes of a winner are looked at, so that unknown ones are asked for."""
    winner = given.columns.get("winner")
    every = {name: candidate for candidate in candidates(guess.table, pair) for name in candidate.columns}
    if winner in every and not given.codes and len(every[winner].readings) != 1:
        return _asked(guess, every[winner].why or every[winner].problem, every[winner].readings)
    if winner in every and not given.codes:
        return replace(guess, reading=replace(guess.reading, codes=every[winner].readings[0].codes))
    strength = given.columns.get("strength")
    if strength in every and "positive" not in given.options and len(every[strength].readings) > 1:
        return _asked(guess, every[strength].why, every[strength].readings)
    return guess


# Several people in a list ---------------------------------------------------------------------------------


def _lists(table: TableProfile, pair: ColumnPair) -> Iterator[Candidate]:
    """Lists of objects or of codes, each of which is one person's judgement of the pair."""
    for name, column in table.columns.items():
        if column.kind == "texts" and name not in pair.names:
            inside = profile({name: text} for row in table.rows for text in _entries(row, name))
            for candidate in candidates_of_texts(name, inside.columns[name], pair):
                readings = tuple(
                    replace(_of_several(name, reading, None), columns={"judgements": name})
                    for reading in candidate.readings
                )
                yield Candidate((name,), readings, candidate.why)
        if column.kind != "objects" or is_of_list(name):
            continue
        inside = profile(
            (
                {str(key): value for key, value in entry.items()}
                for row in table.rows
                for entry in _list(row, name)
            ),
            text_cells=False,
        )
        user = choose_users(inside).column
        for candidate in candidates(inside, pair, also=("value",) if is_winner_name(name) else ()):
            readings = tuple(_of_several(name, reading, user) for reading in candidate.readings)
            if readings and set(candidate.readings[0].columns) <= {"winner", "strength", "preference"}:
                columns = tuple(f"{name}.{column}" for column in candidate.columns)
                yield Candidate(columns, readings, candidate.why and f"in {name}, {candidate.why}")


def _entries(row: Mapping[str, object], name: str) -> list[object]:
    """What a list of a row holds."""
    value = value_at(row, name)
    return [entry for entry in value if entry is not None] if isinstance(value, list) else []


def _list(row: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    """Its entries, each as an object: a code by itself under the list's own name."""
    return [entry if isinstance(entry, Mapping) else {name: entry} for entry in _entries(row, name)]


def _of_several(name: str, reading: TableReading, user: str | None) -> TableReading:
    columns: dict[str, str | None] = {"judgements": name}
    columns |= {f"judgements.{field}": column for field, column in reading.columns.items() if field != column}
    if user and user != "user":
        columns["judgements.user"] = user
    assert reading.judge is not None  # of a candidate
    meaning = f"each entry of {name} is a judgement: {reading.meaning}"
    return replace(reading, meaning=meaning, columns=columns, judge=_mean(name, reading.judge))


def _mean(name: str, judge: Judge) -> Judge:
    def mean(row: Mapping[str, object]) -> Judgement | None:
        shares = [judgement.share for entry in _list(row, name) if (judgement := judge(entry)) is not None]
        return Judgement(fmean(shares)) if shares else None

    return mean
