"""One way to read a table, and what its rows then say: the settings that say it, and the judgement of each row."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...records import Judgement, RecordError
from .profile import Rows

__all__ = ["Answers", "Candidate", "Codes", "Judge", "OpenQuestion", "TableReading", "outcome_words"]

Codes = Mapping[str, str | float]
Judge = Callable[[Mapping[str, object]], Judgement | None]
"""What a row says of the pair; None where nobody judged; a :class:`RecordError` where it cannot be read."""


@dataclass(frozen=True)
class TableReading:
    """One way to read something of a table.

    Attributes:
        meaning: In words.
        columns: Column of each field; None for a field that is not to be read.
        codes: What codes of the winner mean.
        options: Other settings, such as ``positive`` and ``preference_range``.
        judge: Says who won by it; None where it is about something else.
    """

    meaning: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    codes: Codes = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    judge: Judge | None = None

    def answers(self, rows: Rows) -> "Answers":
        """What rows say of who won.

        Args:
            rows: A sample.
        """
        shares: list[float | None] = []
        unread: Counter[str] = Counter()
        for row in rows:
            judgement = None
            try:
                judgement = self.judge(row) if self.judge is not None else None
            except RecordError as error:
                unread[error.reason] += 1
            shares.append(None if judgement is None else judgement.share)
        return Answers(tuple(shares), unread)


@dataclass(frozen=True)
class OpenQuestion:
    """Something that rows do not tell.

    Attributes:
        about: What is open, such as ``who won``.
        why: Why it is.
        readings: Ways to read it, of which the data rule out none.
    """

    about: str
    why: str
    readings: tuple[TableReading, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What the rows of a sample say by a reading.

    Attributes:
        shares: Of each row the share that prefers the first; None where nobody judged or it cannot be read.
        unread: Rows that cannot be read, by reason.
    """

    shares: tuple[float | None, ...]
    unread: Counter[str]

    @property
    def readable(self) -> float:
        """Share of rows that can be read."""
        return 1 - self.unread.total() / max(1, len(self.shares))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows that the first side wins, ties, rows that the second wins."""
        told = [share for share in self.shares if share is not None]
        return (
            sum(share > 0.5 for share in told),
            sum(share == 0.5 for share in told),
            sum(share < 0.5 for share in told),
        )

    def agreement(self, other: "Answers") -> tuple[int, int]:
        """Rows that both decide, and of these the ones in which they name the same winner."""
        both = [
            (one, another)
            for one, another in zip(self.shares, other.shares, strict=True)
            if one is not None and another is not None and 0.5 not in (one, another)
        ]
        return len(both), sum((one > 0.5) == (another > 0.5) for one, another in both)


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


def outcome_words(share: float | None) -> str:
    """Who won, in a few words."""
    if share is None:
        return "nobody judged"
    if share == 0.5:
        return "a tie"
    side = "the first" if share > 0.5 else "the second"
    return f"{side} wins" if share in (0.0, 1.0) else f"{side} wins, {max(share, 1 - share):.0%}"
