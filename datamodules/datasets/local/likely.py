"""What judgements are called in data that others publish, and the settings that read them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ...records import CODES, is_number, known_code
from ..own_files import PERSONS

__all__ = [
    "JUDGED_MARKS",
    "NEUTRAL_MARKS",
    "Reading",
    "judgement_columns",
    "likely_reading",
    "likely_sides",
    "name_words",
    "numbers_reading",
    "say_who_won",
    "score_pairs",
    "side_pairs",
]

JUDGING = {
    "winner", "win", "wins", "won", "label", "labels", "preference", "preferences", "pref", "prefs", "preferred", "prefers", "choice",
    "chosen", "better", "best", "verdict", "judgement", "judgements", "judgment", "judgments", "vote", "votes", "voted", "decision",
    "rating", "ratings", "rank", "ranks", "ranking", "annotation", "annotations", "strength", "score", "scores", "outcome",
    "reward", "rewards", "points", "grade", "pick", "picked", "selected", "selection", "favored", "favoured", "favorite", "favourite",
    "majority", "gold", "truth", "result", "comparison", "relation", "evaluation", "overall", "likert",
}  # fmt: skip
"""Words in the names of columns that say, or may say, which side is better."""
BESIDE = {
    "reason", "reasons", "reasoning", "explanation", "rationale", "statement", "elaboration", "confidence", "source", "type", "count",
    "time", "timestamp", "date", "text", "comment", "category", "prompt", "question", "annotator", "attributes", "system",
}  # fmt: skip
"""Words in the names of columns beside a judgement."""
PLAIN = {
    "winner", "label", "labels", "preferencestrength", "overallpreference", "overallpref", "preferred", "preferredresponse",
    "preferredside", "preferencelabel", "humanpreference", "individualpreference", "choice", "better", "betterresponse",
    "betterresponseid", "verdict", "judgement", "judgements", "judgment", "judgments", "winnermodela", "winnermodelb", "winnertie",
}  # fmt: skip
"""Names, without case and punctuation, of columns that say who won even beside sides that are called chosen and rejected."""
JUDGED_MARKS = (
    ("chosen", "rejected"), ("chosen", "reject"), ("accepted", "rejected"), ("selected", "rejected"), ("preferred", "rejected"),
    ("preferred", "dispreferred"), ("preferred", "unpreferred"), ("preferred", "nonpreferred"), ("better", "worse"),
    ("winner", "loser"), ("winning", "losing"), ("win", "lose"), ("win", "loss"), ("good", "bad"), ("positive", "negative"),
    ("pos", "neg"), ("best", "worst"),
)  # fmt: skip
"""Words that tell the winning side's column from the other's."""
NEUTRAL_MARKS = (
    ("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"), ("left", "right"), ("one", "two"), ("x", "y"),
)  # fmt: skip
"""Words that tell the columns of both sides apart, and not who won."""
WINNING = {winning for winning, _ in JUDGED_MARKS} | {"w"}
"""Words in the name of a side that say that it won."""
SIDES = {
    "response", "responses", "answer", "answers", "output", "outputs", "completion", "completions", "conversation", "reply", "replies",
    "generation", "generations", "summary", "summaries", "ref", "candidate", "option", "text", "assistant", "message", "messages",
}  # fmt: skip
"""Words in the names of columns that hold the side of a pair."""
SCORES = {"score", "scores", "rating", "ratings", "reward", "rewards", "points", "grade"}
SHORT = 40
"""Letters of a code at most."""


@lru_cache(maxsize=4096)  # asked for every row
def name_words(name: str) -> tuple[str, ...]:
    """Words and numbers of a column's name: ``scoreA``, ``score_a`` and ``Score A`` have the same."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\dA-Za-z_]+", name)
    return tuple(word.casefold() for word in words)


def say_who_won(side: str) -> bool:
    """Whether the name of a pair's winning side says that it won."""
    return not WINNING.isdisjoint(name_words(side))


def side_pairs(
    columns: Iterable[str], marks: Sequence[tuple[str, str]] = NEUTRAL_MARKS
) -> list[tuple[str, str]]:
    """Columns of which one is for each side, first and second: their names are the same but for one word."""
    words = {column: name_words(column) for column in columns}
    named: dict[tuple[str, ...], list[str]] = {}
    for column, parts in words.items():
        named.setdefault(parts, []).append(column)
    pairs = []
    for first_word, second_word in marks:
        for column, parts in words.items():
            for place in (place for place, word in enumerate(parts) if word == first_word):
                other = (*parts[:place], second_word, *parts[place + 1 :])
                pairs += [(column, name) for name in named.get(other, ())]
    return pairs


def likely_sides(fields: Mapping[str, object]) -> tuple[str, str] | None:
    """Columns of a row that look like the two sides of a neutral pair; None without any, or with several such pairs."""
    pairs = [
        pair
        for pair in side_pairs(fields)
        if not SIDES.isdisjoint(name_words(pair[0]))
        and JUDGING.isdisjoint(name_words(pair[0]))
        and all(isinstance(fields[side], str | list | dict) for side in pair)
    ]
    return pairs[0] if len(pairs) == 1 else None


def score_pairs(columns: Iterable[str]) -> list[tuple[str, str]]:
    """Columns that hold a score of each side, by their names; of sides that are called chosen and rejected too."""
    scores = [column for column in columns if not SCORES.isdisjoint(name_words(column))]
    return side_pairs(scores, (*JUDGED_MARKS, *NEUTRAL_MARKS))


def judgement_columns(fields: Mapping[str, object], columns: Iterable[str], *, plain: bool) -> list[str]:
    """Columns of a row that look like a judgement on its pair, the plainest names first.

    Args:
        fields: The row's.
        columns: Those to look at.
        plain: Whether the sides' names say who won, so that a column must be plain to say otherwise.
    """
    likely: list[tuple[bool, int, str]] = []
    for column in columns:
        words = name_words(column)
        is_plain = "".join(words) in PLAIN
        if not _holds_codes(fields.get(column)):
            continue
        judging = not JUDGING.isdisjoint(words) or _is_code(fields[column])
        if is_plain or (not plain and judging and BESIDE.isdisjoint(words)):
            likely.append((not is_plain, len(likely), column))
    return [column for *_, column in sorted(likely)]


def _holds_codes(value: object) -> bool:
    """Whether a value may be a judgement: a number, a short text, or a list or object."""
    if isinstance(value, str):
        return 0 < len(value.strip()) <= SHORT and "\n" not in value
    return isinstance(value, int | float) or (isinstance(value, list | dict) and bool(value))


def _is_code(value: object) -> bool:
    """Whether a value is a word for a side or a tie, whatever its column is called."""
    return isinstance(value, str) and known_code(value, CODES)


class Reading(NamedTuple):
    """Settings that read a judgement.

    Attributes:
        columns: Column of each field.
        others: Further settings by name, as text: what is to be chosen stands apart by ``|``.
    """

    columns: Mapping[str, str]
    others: Mapping[str, str]

    def __str__(self) -> str:
        """As YAML to paste."""
        named = ", ".join(f"{field}: {_yaml(column)}" for field, column in self.columns.items())
        return "; ".join(
            [f"columns: {{{named}}}", *(f"{name}: {text}" for name, text in self.others.items())]
        )


def likely_reading(values: Mapping[str, Sequence[object]]) -> Reading:
    """How columns that look like judgements would be read, by what they hold.

    Args:
        values: Different values of each column, the likeliest column first; at least one column.
    """
    numbers = [column for column, seen in values.items() if all(map(_is_number, seen))]
    flags = [
        column
        for column in numbers
        if {float(str(value)) for value in map(int_of, values[column])} <= {0.0, 1.0}
    ]
    for first, second in side_pairs(flags):
        ties = [("tie", column) for column in flags if {"tie", "ties", "draw"} & {*name_words(column)}]
        if {"winner", "wins", "win", "won"} & {*name_words(first)}:
            return Reading({"first_wins": first, "second_wins": second} | dict(ties[:1]), {})
    for first, second in score_pairs(numbers):
        return Reading({"first_score": first, "second_score": second}, {})
    column, seen = next(iter(values.items()))
    if any(isinstance(value, list | dict) for value in seen):
        return _reading_of_several(column, seen)
    if column in numbers:
        return numbers_reading(column, [float(str(int_of(value))) for value in seen])
    unknown = [value for value in seen if not known_code(value, CODES)]
    return Reading({"winner": column}, _codes(unknown))


def int_of(value: object) -> object:
    """A truth value as the number that it is."""
    return int(value) if isinstance(value, bool) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and is_number(value))


def _reading_of_several(column: str, seen: Sequence[object]) -> Reading:
    entries = [entry for value in seen if isinstance(value, list) for entry in value]
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if not objects:
        return Reading(
            {"judgements": column}, {} if entries else {"codes": "{CODE: first | second | tie | none}"}
        )
    likely = judgement_columns(objects[0], objects[0], plain=False)
    users = [("judgements.user", key) for key in objects[0] if {*PERSONS} & {*name_words(key)}]
    nested = {"judgements.winner": (likely or ["KEY"])[0]} | dict(users[:1])
    return Reading({"judgements": column, **nested}, {})


def numbers_reading(column: str, numbers: Sequence[float]) -> Reading:
    """How a column of numbers would be read: as a strength, a share or codes."""
    if min(numbers) < 0:
        return Reading({"strength": column}, {"positive": "first | second"})
    if not all(number.is_integer() for number in numbers):
        if max(numbers) <= 1:
            return Reading({"preference": column}, {"preference_range": "[0, 1] | [1, 0]"})
        twos = min(numbers) >= 1 and max(numbers) <= 2
        ends = "[2, 1] | [1, 2]" if twos else "[NOBODY, EVERYBODY]"
        return Reading({"preference": column}, {"preference_range": ends})
    if max(numbers) > 10:
        return Reading({"preference": column}, {"preference_range": "[0, 100] | [NOBODY, EVERYBODY]"})
    return Reading({"winner": column}, _codes([int(number) for number in numbers]))


def _codes(unknown: Sequence[object]) -> dict[str, str]:
    meanings = ", ".join(f"{_yaml(value)}: first | second | tie | none" for value in unknown[:6])
    return {"codes": f"{{{meanings}}}"} if unknown else {}


def _yaml(value: object) -> str:
    """A plain scalar, quoted where YAML would read something else."""
    text = str(value)
    plain = re.fullmatch(r"[\w.][\w. -]*", text) and text.casefold() not in (
        "yes",
        "no",
        "true",
        "false",
        "null",
        "on",
        "off",
    )
    return text if plain or not isinstance(value, str) else repr(text)
