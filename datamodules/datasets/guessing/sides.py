"""Which columns hold the two sides of a pair, found by names that differ in one word: ``answer_0`` and ``answer_1``."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from ..local.likely import JUDGED_MARKS, NEUTRAL_MARKS, name_words
from .profile import ColumnProfile, TableProfile

__all__ = ["ABOUT", "ColumnPair", "Sides", "column_pairs", "find_sides", "several_sides"]

ANSWERS = (
    "response", "answer", "output", "completion", "conversation", "generation", "reply", "summary", "summaries", "text",
    "candidate", "option", "argument", "arg", "continuation", "message", "messages", "content", "story", "translation", "ref",
    "dialogue", "dialog", "assistant", "sentence", "caption",
)  # fmt: skip
"""Words for what is judged."""
ABOUT = (
    "model", "generator", "id", "name", "source", "label", "score", "rating", "reward", "rank", "acceptable", "hash",
    "tokens", "lang", "language", "reason", "reasoning", "reasons", "justification", "feedback", "rationale", "explanation",
    "comment", "policy", "note", "critique", "quotes", "metadata", "url", "author", "stance", "scores", "list", "evaluation",
)  # fmt: skip
"""Words for what is said of a side."""


class ColumnPair(NamedTuple):
    """Two columns that are the same of either side.

    Attributes:
        first: The first side's.
        second: The second side's.
        marks: The words that tell them apart.
        stem: The words that they share.
        is_judged: Whether the marks say who won.
    """

    first: str
    second: str
    marks: tuple[str, str]
    stem: tuple[str, ...]
    is_judged: bool

    @property
    def names(self) -> tuple[str, str]:
        """Both columns."""
        return self.first, self.second


class Sides(NamedTuple):
    """The sides of a table of pairs.

    Attributes:
        pair: The one that is meant.
        others: Others that could be meant as well.
        beside: Text of neutral sides, where the sides are said to be chosen and rejected.
    """

    pair: ColumnPair
    others: tuple[ColumnPair, ...] = ()
    beside: tuple[ColumnPair, ...] = ()


def column_pairs(names: Iterable[str]) -> Iterator[ColumnPair]:
    """Pairs of columns whose names differ in one word that tells sides apart.

    Args:
        names: Of columns.
    """
    marks = dict.fromkeys(JUDGED_MARKS, True) | dict.fromkeys(NEUTRAL_MARKS, False)
    split = {name: name_words(name) for name in names}
    every = list(split)
    for one, other in combinations(every, 2):
        if len(split[one]) != len(split[other]):
            continue
        for first, second in ((one, other), (other, one)):
            differ = [
                (i, pair)
                for i, pair in enumerate(zip(split[first], split[second], strict=True))
                if pair[0] != pair[1]
            ]
            if not differ or len({pair for _, pair in differ}) > 1 or differ[0][1] not in marks:
                continue
            at = {i for i, _ in differ}
            stem = tuple(word for i, word in enumerate(split[first]) if i not in at)
            pair = ColumnPair(first, second, differ[0][1], stem, marks[differ[0][1]])
            if pair.is_judged or not _is_of_more(pair, set(split.values())):
                yield pair


def _is_of_more(pair: ColumnPair, names: set[tuple[str, ...]]) -> bool:
    """Whether numbered sides go on beyond the two, or begin before them."""
    first = name_words(pair.first)
    beyond = {("0", "1"): ("2",), ("1", "2"): ("0", "3"), ("a", "b"): ("c",)}.get(pair.marks, ())
    others = {tuple(mark if word == pair.marks[0] else word for word in first) for mark in beyond}
    return bool(others & names)


def find_sides(table: TableProfile) -> Sides | None:
    """The two columns that hold the sides of a pair; None if there are none.

    Args:
        table: What the table holds.
    """
    pairs = [pair for pair in column_pairs(table.columns) if _holds_answers(pair, table)]
    pairs = [pair for pair in pairs if not any(_is_within(pair, other) for other in pairs)]
    judged = [pair for pair in pairs if pair.is_judged]
    neutral = [pair for pair in pairs if not pair.is_judged]
    for group in (judged, neutral):
        if group:
            best, *others = sorted(group, key=lambda pair: _weight(pair, table))
            rivals = [pair for pair in others if _weight(pair, table)[0] == _weight(best, table)[0]]
            return Sides(best, tuple(rivals), tuple(neutral) if group is judged else ())
    return None


def _holds_answers(pair: ColumnPair, table: TableProfile) -> bool:
    columns = [table.columns[name] for name in pair.names]
    if any(word in ABOUT for word in pair.stem):
        return False
    if min(column.present for column in columns) < 0.5 * max(1, len(table.rows)):
        return False
    named = any(word in ANSWERS for word in pair.stem) or (pair.is_judged and not pair.stem)
    return all(_is_answer(column, named=named) for column in columns)


def _is_answer(column: ColumnProfile, *, named: bool) -> bool:
    if column.is_prose or column.kind == "texts":
        return True
    return named and column.kind == "text" and (column.is_varied or column.present <= 4)


def _is_within(pair: ColumnPair, other: ColumnPair) -> bool:
    """Whether a pair's columns lie in the columns of another, or in one of them."""
    return any(all(name.startswith(f"{outer}.") for name in pair.names) for outer in other.names) or all(
        name.startswith(f"{outer}.") for name, outer in zip(pair.names, other.names, strict=True)
    )


def _weight(pair: ColumnPair, table: TableProfile) -> tuple[int, float]:
    """What sorts pairs by how likely they are meant: plainly named ones first, then longer ones."""
    named = 0 if pair.is_judged and not pair.stem else 1 if any(w in ANSWERS for w in pair.stem) else 2
    return named, -sum(table.columns[name].mean_letters for name in pair.names)


def several_sides(table: TableProfile) -> list[str]:
    """Columns of three or more answers to one prompt, such as ``response_1`` to ``response_8``; none otherwise.

    Args:
        table: What the table holds.
    """
    families: dict[tuple[str, ...], list[str]] = {}
    for name, column in table.columns.items():
        parts = name_words(name)
        numbered = [i for i, part in enumerate(parts) if part.isdecimal() or part in "abcdefgh"]
        if len(numbered) == 1 and column.is_prose and not any(part in ABOUT for part in parts):
            stem = tuple("#" if i == numbered[0] else part for i, part in enumerate(parts))
            families.setdefault(stem, []).append(name)
    named = {stem: names for stem, names in families.items() if len(names) > 2}
    return max(named.values(), key=len, default=[])
