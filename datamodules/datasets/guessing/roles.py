"""Which column holds the prompt, the user, the domain: by names that others use, and by what stands in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ...records import ROLE_NAMES, RecordError, conversation, listed
from ..local.fields import value_at
from ..local.likely import name_words
from ..own_files import LIKELY, PERSONS
from .profile import ColumnProfile, TableProfile, is_messages
from .readings import OpenQuestion, TableReading
from .sides import ABOUT

__all__ = [
    "ASSISTANT",
    "PERSON",
    "Choice",
    "choose_domain",
    "choose_prompt",
    "choose_users",
    "is_of_list",
    "turns_of",
    "unnamed_prompt",
    "whole_sides",
]

PROMPT = (
    *LIKELY["prompt"], "instructions", "questiontext", "fulltext", "conversations", "chathistory", "passage", "messages", "task",
    "problem", "request", "title",
)  # fmt: skip
"""Names of what was asked, without case and punctuation."""
BESIDE = ("user", "text", "full", "chat", "initial", "human", "source", "original", "turns")
"""Words beside these in a name."""
ASKED = ("prompt", "question", "query", "instruction")
"""Words in other names of it."""
PERSON = (*PERSONS, "participant", "respondent", "person", "crowdworker", "reviewer", "assessor", "voter")
ALSO = ("id", "hash", "name", "anon", "uuid", "key")
DOMAIN = (*LIKELY["domain"], "subreddit", "theme")
ASSISTANT = tuple(name for name, role in ROLE_NAMES.items() if role == "assistant")
MOST_DOMAINS = 200
ALIKE = 16
"""Letters with which both sides begin where they repeat what was asked."""
COPIED = 0.99
"""Share of rows in which one column must hold another's text to be the longer of the two."""


class Choice(NamedTuple):
    """What a field is read from.

    Attributes:
        column: The column; None for none.
        evidence: Why, where it was not the name alone.
        question: What is open; None if nothing is.
        notes: What is to be said beside it.
    """

    column: str | None = None
    evidence: str = ""
    question: OpenQuestion | None = None
    notes: tuple[str, ...] = ()


# The prompt --------------------------------------------------------------------------------------------


def choose_prompt(table: TableProfile, answers: Sequence[str]) -> Choice:
    """The column of what was asked.

    Args:
        table: What the table holds.
        answers: Columns of the responses.
    """
    candidates = [column for column in table.columns.values() if _may_ask(column, table, answers)]
    candidates = _outermost(candidates)
    if not candidates:
        return Choice()
    if len(candidates) == 1:
        return Choice(candidates[0].name)
    holding = [
        column
        for column in candidates
        if all(_holds(table, column, other) for other in candidates if other is not column)
    ]
    if holding:
        best = next((column for column in holding if name_words(column.name) == ("prompt",)), holding[0])
        others = [column.name for column in candidates if column is not best]
        return Choice(best.name, f"{best.name} holds the text of {listed(others)}, too")
    names = [column.name for column in candidates]
    readings = tuple(TableReading(f"{name} alone is the prompt", {"prompt": name}) for name in names)
    why = (
        f"{listed(names)} hold text that may be what was asked. If people saw several of them, write one column that joins "
        "them: a prompt that lacks a part is a wrong label"
    )
    return Choice(question=OpenQuestion("the prompt", why, readings))


def _may_ask(column: ColumnProfile, table: TableProfile, answers: Sequence[str]) -> bool:
    if column.kind not in ("text", "messages") or column.missing > 0.95:
        return False
    if any(column.name == name or column.name.startswith(f"{name}.") for name in answers):
        return False
    last = name_words(column.name.rpartition(".")[2])
    plain = "".join(last)
    named = (
        plain in PROMPT
        or (set(last) <= {*PROMPT, *BESIDE} and bool(set(last) & set(PROMPT)))
        or (
            any(word in ASKED for word in last)
            and not set(last) & {"id", "hash", "type", "source", "len", "length", "name"}
        )
    )
    if "." in column.name:
        named = named and (
            plain in (*ASKED, "post", "fulltext", "text") or any(w in ASKED for w in name_words(column.name))
        )
    if not named or (column.is_constant and table.rows and len(table.rows) > 4):
        return False
    if column.kind == "messages":
        return not _ends_with_assistant(table, column.name)
    return column.is_prose or plain in ("prompt", "question", "query", "instruction", "input")


def _ends_with_assistant(table: TableProfile, name: str) -> bool:
    """Whether a conversation holds the answer, as a copy of one side does."""
    ends = [turns_of(value_at(row, name))[-1:] for row in table.rows[:50]]
    return bool(ends) and all(turn and turn[0][0] in ASSISTANT for turn in ends if turn)


def _outermost(columns: Iterable[ColumnProfile]) -> list[ColumnProfile]:
    """Columns that lie in no other."""
    every = list(columns)
    return [
        column for column in every if not any(column.name.startswith(f"{other.name}.") for other in every)
    ]


def _holds(table: TableProfile, column: ColumnProfile, other: ColumnProfile) -> bool:
    """Whether a column's text holds another's in nearly every row."""
    rows = [row for row in table.rows[:500] if value_at(row, other.name) is not None]
    held = sum(_text(value_at(row, other.name)) in _text(value_at(row, column.name)) for row in rows)
    return held >= COPIED * len(rows)


def _text(value: object) -> str:
    return "\n".join(content.strip() for _, content in turns_of(value)) or str(value or "").strip()


def turns_of(value: object) -> list[tuple[str, str]]:
    """Speaker and text of the turns of a conversation, in whatever form; none of anything else.

    Args:
        value: Of a row.
    """
    if isinstance(value, str):
        try:
            value = conversation("", value)
        except RecordError:
            return []
    if not is_messages(value):
        return []
    turns = value if isinstance(value, list) else [value]
    return [
        (str(turn.get("role", turn.get("from"))), str(turn.get("content", turn.get("value"))))
        for turn in turns
        if isinstance(turn, Mapping)
    ]


def whole_sides(table: TableProfile, names: Sequence[str]) -> bool:
    """Whether the sides hold what was asked, too: they are conversations that begin with another turn than the assistant's.

    Args:
        table: What the table holds.
        names: Columns of the sides.
    """
    if any(table.columns[name].kind == "texts" for name in names):
        return True
    begins = [turns_of(value_at(row, name))[:1] for row in table.rows[:50] for name in names]
    told = [turn[0][0] for turn in begins if turn]
    return len(told) > 0.9 * len(begins) and all(role not in ASSISTANT for role in told)


def is_of_list(name: str) -> bool:
    """Whether a name is of something in a list.

    Args:
        name: With dots between the levels of nested fields.
    """
    return any(part.isdecimal() for part in name.split(".")[1:])


def unnamed_prompt(table: TableProfile, answers: Sequence[str]) -> Choice:
    """What may have been asked, where no column is called like a prompt and the sides do not begin alike.

    Args:
        table: What the table holds.
        answers: Columns of the sides.
    """
    if _begin_alike(table, answers):
        return Choice(
            notes=("no column is called like a prompt: what both sides begin with is taken for it",)
        )
    candidates = [
        column.name
        for column in table.columns.values()
        if column.is_prose
        and column.name in table.top
        and not (column.kind == "messages" and _ends_with_assistant(table, column.name))
        and (column.is_varied or column.kind == "messages")
        and not any(name == column.name or name.startswith(f"{column.name}.") for name in answers)
        and not set(name_words(column.name)) & set(ABOUT)
    ]
    if not candidates:
        return Choice(notes=("no column holds what was asked: the answers stand alone",))
    readings = tuple(TableReading(f"{name} is the prompt", {"prompt": name}) for name in candidates)
    why = f"no column is called like one; {listed(candidates)} may be it"
    alone = TableReading("nobody asked anything: the answers stand alone", {"prompt": None})
    return Choice(question=OpenQuestion("the prompt", why, (*readings, alone)))


def _begin_alike(table: TableProfile, answers: Sequence[str]) -> bool:
    """Whether most rows' sides are texts that begin with the same letters."""
    sides = [[value_at(row, name) for name in answers] for row in table.rows[:200]]
    texts = [side for side in sides if len(side) == 2 and all(isinstance(text, str) for text in side)]
    alike = sum(len({str(text)[:ALIKE] for text in side}) == 1 for side in texts)
    return bool(texts) and alike > 0.5 * len(texts)


# People and domains ------------------------------------------------------------------------------------


def choose_users(table: TableProfile) -> Choice:
    """The column of who judged.

    Args:
        table: What the table holds.
    """
    candidates = [column for column in table.columns.values() if _may_be_person(column)]
    once = [column.name for column in candidates if column.is_unique and len(table.rows) > 20]
    candidates = [column for column in candidates if column.name not in once]
    notes = tuple(f"{name} is another in every row, so it tells of no user" for name in once)
    if len(candidates) < 2:
        return Choice(candidates[0].name if candidates else None, notes=notes)
    names = [column.name for column in candidates]
    readings = tuple(
        TableReading(f"{column.name} judged: {column.shown}", {"user": column.name}) for column in candidates
    )
    question = OpenQuestion(
        "who judged",
        f"{listed(names)} may name who judged",
        (*readings, TableReading("neither", {"user": None})),
    )
    return Choice(question=question, notes=notes)


def _may_be_person(column: ColumnProfile) -> bool:
    parts = name_words(column.name.rpartition(".")[2])
    if is_of_list(column.name):
        return False
    if not parts or not set(parts) <= {*PERSON, *ALSO} or not set(parts) & set(PERSON):
        return False
    return column.is_short or column.is_whole


def choose_domain(table: TableProfile) -> Choice:
    """The column of domains, of which there are few.

    Args:
        table: What the table holds.
    """
    candidates = [
        column.name
        for column in table.columns.values()
        if name_words(column.name.rpartition(".")[2]) in {(name,) for name in DOMAIN}
        and column.kind == "text"
        and len(column.values) <= MOST_DOMAINS
        and not is_of_list(column.name)
        and not column.is_unique
    ]
    if "domain" in candidates or len(candidates) == 1:
        return Choice("domain" if "domain" in candidates else candidates[0])
    if not candidates:
        return Choice()
    return Choice(
        notes=(
            f"{listed(candidates)} may name domains: columns: {{domain: {candidates[0]}}} reads one of them",
        )
    )
