"""Rows of persona votes: what they may hold, and votes counted with forgetting.

The data module and the update of a file read rows here alone, so that what one accepts the other accepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from ...records import (
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    is_blank,
    list_field,
    mapping_field,
    number_field,
    parse_messages,
    text_field,
    user_field,
    whole_field,
)

__all__ = ["COLUMNS", "CONTENT", "PersonaRow", "Vote", "read_vote", "weighted_votes"]

COLUMNS = frozenset(("id", "prompt", "responses", "prior", "votes", "target"))
"""All that is read of a row."""
CONTENT = {"prompt": "prompt", "responses": "responses"}
"""Fields and columns that name a row without an id: what an update leaves as it is."""


class Vote(NamedTuple):
    """One persona's label for one response, and when: whether the time was text, and the time in seconds."""

    persona: str
    label: int
    time: tuple[bool, int | float] | None


@dataclass(frozen=True)
class PersonaRow:
    """A checked row.

    Attributes:
        name: Its id.
        responses: Texts.
        priors: A distribution per response; None where there is none.
        votes: Votes per response.
        targets: The stored target per response; None where there is none.
        record: What a data module makes of it.
    """

    name: str
    responses: list[str]
    priors: list[tuple[float, ...] | None]
    votes: list[list[Vote]]
    targets: list[tuple[float, ...] | None]
    record: PreferenceRecord

    @property
    def repeated(self) -> int:
        """Votes that are there again, of the same persona, label and time on the same response: they count once."""
        return sum(len(votes) - len(set(votes)) for votes in self.votes)

    @classmethod
    def read(cls, row: SourceRow, num_labels: int, forgetting: float) -> "PersonaRow":
        """Check a row.

        Args:
            row: As the file holds it, with an id.
            num_labels: Number of labels K.
            forgetting: Share of its weight that a vote keeps at each later time step, in (0, 1].

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
        for i, given in enumerate(votes):
            _refuse_contradictions(f"votes[{i}]", given)
        prior = row.fields.get("prior")
        if isinstance(prior, list) and prior and not any(isinstance(part, list | None) for part in prior):
            prior = [prior] * len(responses)  # one for all
        name = user_field("id", row.get("id"))
        messages = prompt if isinstance(prompt, str) else parse_messages("prompt", prompt)
        priors = _distributions("prior", prior, len(responses), num_labels)
        judged = []
        for i, (text, expected, given) in enumerate(zip(responses, priors, votes, strict=True)):
            counts, _ = weighted_votes(f"votes[{i}]", given, num_labels, forgetting)
            has_votes = bool(given) or expected is not None
            judged.append(Response(text, votes=counts if has_votes else None, prior=expected))
        return cls(
            name=name,
            responses=responses,
            priors=priors,
            votes=votes,
            targets=_distributions("target", row.fields.get("target"), len(responses), num_labels),
            record=PreferenceRecord(id=name, prompt=messages, responses=tuple(judged)),
        )


def _refuse_contradictions(field: str, votes: Sequence[Vote]) -> None:
    """Refuse two labels of a persona on a response at one time: nobody knows which one holds."""
    labels: dict[tuple[str, tuple[bool, int | float] | None], int] = {}
    for j, vote in enumerate(votes):
        before = labels.setdefault((vote.persona, vote.time), vote.label)
        if before != vote.label:
            allowed = f"label {before}, which {vote.persona!r} gave at that time before, or another time"
            raise RecordError(f"{field}[{j}].label", vote.label, allowed, reason="contradictory votes")


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
    persona = text_field(f"{where}persona", vote.get("persona"))
    if is_blank(persona):
        raise RecordError(f"{where}persona", persona, "a name that is not blank", reason="missing field")
    label = whole_field(f"{where}label", vote.get("label"), 0, num_labels - 1)
    time = vote.get("time")
    return Vote(persona, label, None if time is None else _time(f"{where}time", time))


def _time(field: str, value: object) -> tuple[bool, int | float]:
    if not isinstance(value, str):
        number = number_field(field, value)
        return False, value if isinstance(value, int) else number  # nanoseconds are not exact as a float
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

    A vote that is there again, with the same persona, label and time, counts once.

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
        for vote in set(votes):
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
    for vote in dict.fromkeys(votes):  # in their order, for floats do not add up alike in another
        if vote.time is not None:
            counts[vote.label] += weights[vote.time]
    return tuple(counts), len(times)
