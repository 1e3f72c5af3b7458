"""Words that say who won a pair: what is known, what names a side, and what nobody can tell."""

from collections.abc import Mapping

from ...records import Judgement, RecordError, Side, check_codes, coded_judgement, listed
from ..local.fields import value_at
from ..local.likely import name_words
from .profile import ColumnProfile, TableProfile
from .readings import Candidate, Codes, TableReading
from .sides import ColumnPair, column_pairs

__all__ = ["MOST_CODES", "by_name", "by_words", "coded", "codes_shown"]

MOST_CODES = 12
"""Distinct values beyond which text is no code."""


def by_words(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A column of few texts: words that are known, the names of the sides, or codes of one's own.

    Args:
        table: What the table holds.
        column: The column.
        sides: Columns of the two responses.
    """
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
    if len(unknown) == len(texts) and (candidate := by_name(table, column, sides)):
        return candidate
    if not unknown:
        how = "names the winner" + (": " + codes_shown(meant) if meant else " in words")
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
    parts = name_words(text)
    for side, name, mark in names:
        if text.casefold() == name.casefold() or parts == name_words(name):
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


def by_name(table: TableProfile, column: ColumnProfile, sides: ColumnPair) -> Candidate | None:
    """A column whose values are those of one side's columns: the winner's model, or its text.

    Args:
        table: What the table holds.
        column: The column.
        sides: Columns of the two responses.
    """
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


def codes_shown(codes: Codes) -> str:
    """Codes and what they mean, in a line."""
    return ", ".join(
        f"{code} {'nobody judged' if meaning == 'none' else meaning}" for code, meaning in codes.items()
    )
