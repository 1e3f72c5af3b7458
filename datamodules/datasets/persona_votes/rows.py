"""Rows of persona votes: what they may hold, and votes counted with forgetting."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from ...records import (
    Message,
    RecordError,
    SourceRow,
    list_field,
    mapping_field,
    number_field,
    parse_messages,
    text_field,
    user_field,
    whole_field,
)

__all__ = ["CONTENT", "PersonaRow", "Vote", "read_vote", "weighted_votes"]

CONTENT = {"prompt": "prompt", "responses": "responses"}
"""Fields and columns that name a row without an id: what an update leaves as it is."""


class Vote(NamedTuple):
    """One persona's label for one response, and when: whether the time was text, and the time in seconds."""

    persona: str
    label: int
    time: tuple[bool, float] | None


@dataclass(frozen=True)
class PersonaRow:
    """A checked row.

    Attributes:
        name: Its id.
        prompt: Text or messages.
        responses: Texts.
        priors: A distribution per response; None where there is none.
        votes: Votes per response.
        targets: The stored target per response; None where there is none.
    """

    name: str
    prompt: str | tuple[Message, ...]
    responses: list[str]
    priors: list[tuple[float, ...] | None]
    votes: list[list[Vote]]
    targets: list[tuple[float, ...] | None]

    @classmethod
    def read(cls, row: SourceRow, num_labels: int) -> "PersonaRow":
        """Check a row.

        Args:
            row: As the file holds it, with an id.
            num_labels: Number of labels K.

        Raises:
            RecordError: Naming field, value and what is allowed.
        """
        prompt = row.get("prompt")
        texts = list_field("responses", row.get("responses"), empty=True)
        responses = [text_field(f"responses[{i}]", text) for i, text in enumerate(texts)]
        lists = list_field("votes", row.get("votes"), len(responses))
        votes = [
            [
                read_vote(f"votes[{i}][{j}]", vote, num_labels)
                for j, vote in enumerate(list_field(f"votes[{i}]", given, empty=True))
            ]
            for i, given in enumerate(lists)
        ]
        prior = row.fields.get("prior")
        if isinstance(prior, list) and prior and not any(isinstance(part, list | None) for part in prior):
            prior = [prior] * len(responses)  # one for all
        return cls(
            name=user_field("id", row.get("id")),
            prompt=prompt if isinstance(prompt, str) else parse_messages("prompt", prompt),
            responses=responses,
            priors=_distributions("prior", prior, len(responses), num_labels),
            votes=votes,
            targets=_distributions("target", row.fields.get("target"), len(responses), num_labels),
        )


def _distributions(
    field: str, value: object, num_responses: int, num_labels: int
) -> list[tuple[float, ...] | None]:
    if value is None:
        return [None] * num_responses
    return [
        None if entry is None else _distribution(f"{field}[{i}]", entry, num_labels)
        for i, entry in enumerate(list_field(field, value, num_responses))
    ]


def _distribution(field: str, value: object, num_labels: int) -> tuple[float, ...]:
    numbers = enumerate(list_field(field, value, num_labels))
    distribution = tuple(number_field(f"{field}[{j}]", number) for j, number in numbers)
    if min(distribution) < 0 or abs(sum(distribution) - 1) > 1e-3:
        allowed = "probabilities >= 0 that sum to 1 (within 0.001)"
        raise RecordError(field, value, allowed, reason="out of range")
    return distribution


def read_vote(field: str, value: object, num_labels: int) -> Vote:
    """Check a vote.

    Args:
        field: Name to use in an error.
        value: The decoded JSON.
        num_labels: Number of labels K.

    Raises:
        RecordError: If it is none; see the description of ``module.py``.
    """
    vote, where = mapping_field(field, value), f"{field}." if field else ""
    persona = text_field(f"{where}persona", vote.get("persona"), blank="missing field")
    label = whole_field(f"{where}label", vote.get("label"), 0, num_labels - 1)
    time = vote.get("time")
    return Vote(persona, label, None if time is None else _time(f"{where}time", time))


def _time(field: str, value: object) -> tuple[bool, float]:
    if not isinstance(value, str):
        return False, number_field(field, value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        allowed = "a number, or a date and time such as 2024-05-30T12:00:00Z"
        raise RecordError(field, value, allowed, reason="wrong type") from None
    return True, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def weighted_votes(
    field: str, votes: Sequence[Vote], num_labels: int, forgetting: float
) -> tuple[tuple[float, ...], int]:
    """Counts of one response's votes, in which each vote counts ``forgetting ** (later time steps)``.

    Args:
        field: Name to use in an error.
        votes: Votes on the response.
        num_labels: Number of labels K.
        forgetting: Share of its weight that a vote keeps at each step, in (0, 1].

    Returns:
        Counts, (K,), and the number of time steps: of different times among the votes; 0 if nothing is forgotten.

    Raises:
        RecordError: If something is forgotten and votes have no time, or some have numbers and others dates.
    """
    counts = [0.0] * num_labels
    if forgetting == 1:
        for vote in votes:
            counts[vote.label] += 1.0
        return tuple(counts), 0
    for i, vote in enumerate(votes):
        if vote.time is None:
            raise RecordError(
                f"{field}[{i}].time",
                None,
                f"a time in every vote, for forgetting is {forgetting:g}",
                reason="missing field",
            )
        if vote.time[0] != (votes[0].time or vote.time)[0]:
            allowed = "numbers alone or dates alone within a response"
            raise RecordError(f"{field}[{i}].time", vote.time[1], allowed, reason="wrong type")
    times = sorted({vote.time for vote in votes if vote.time is not None})
    weights = {time: forgetting**age for age, time in enumerate(reversed(times))}
    for vote in votes:
        if vote.time is not None:
            counts[vote.label] += weights[vote.time]
    return tuple(counts), len(times)
