"""One dataset row becomes a :class:`PreferenceRecord`; whatever is wrong with it is said here.

A record is a prompt, k >= 1 responses and the judgements on them: comparisons between two responses (with
the share of annotators, the judge, the domain, ...), and per response a rating or vote counts. Validation
happens on construction and raises :class:`RecordError`, to which the reader adds file and line.

Defined behaviour:

================================  ==========================================================================
input                             what happens
================================  ==========================================================================
tie                               ``preference=0.5``; trains, and is left out of accuracy
identical responses               kept; their comparisons are dropped and counted when tokenised
identical responses, two systems  two responses, where rows are merged, too; their comparison is dropped as any such
empty or blank response           error ``empty response``, unless the data module leaves it out and says so (``left_out``)
empty prompt                      allowed: the response is scored on its own
no prompt anywhere in a record    allowed and counted; a split of such records alone warns
missing field, wrong type         error ``missing field`` / ``wrong type``
NaN or infinite number            error ``not finite`` (leave the field out if the value is unknown)
number beyond float32             error ``not finite``: above 3.4e38 it would become infinite; so for the sum of votes
share, weight, votes off range    error ``out of range``
weights of a split that sum to 0  error of the split, and so if the sum is not finite in float32
index that points at no response  error ``out of range``
blank id, user, system, ...       error ``missing field``: nothing but characters that show nothing
no judgement and no rating        allowed here (scoring needs none); a training split drops and counts it
the same judgement again          kept, and counted as ``repeated``: same prompt, texts, share, judge and domain
duplicate record id               error ``duplicate id``, found when the split is read
bytes that are not UTF-8          error ``not UTF-8``, found when the line is read; half a character, too
a key given twice in JSON         error ``duplicate key``; in CSV and Parquet, a column given twice is an error of the file
JSON of more than 100 levels      error ``nested too deeply``
a file that cannot be read        error ``unreadable file``, never skipped: damaged, cut, empty, no permission, another kind
================================  ==========================================================================

An error of a row is raised, or with ``on_invalid: skip`` counted. An error of a file stops in any case: nobody can say how
many rows were lost.
"""

import json
import math
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha1

from ..columns import Column, optional_columns

__all__ = [
    "FLOAT32_MAX",
    "Comparison",
    "Message",
    "PreferenceRecord",
    "RecordError",
    "Response",
    "is_blank",
    "listed",
    "record_key",
    "shown",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""Largest number that a batch can hold."""
SHOWN_LETTERS = 120
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters by their category that show nothing: Hangul fillers and the empty Braille pattern."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = (
    4,
    SHOWN_LETTERS,
    SHOWN_LETTERS,
    SHOWN_LETTERS,
)
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 30


def shown(value: object) -> str:
    """A value for a message: at most 120 characters and four levels, whatever it is."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 3]}..."


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message: at most so many; those that would not show, or are long, in quotes."""
    every = list(names)
    texts = [name if 0 < len(name) <= 40 and name.isprintable() else shown(name) for name in every[:most]]
    return ", ".join(texts) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def is_blank(text: str) -> bool:
    """Whether text shows nothing: white space, control and zero-width characters, fillers."""
    return all(
        letter.isspace() or letter in FILLERS or unicodedata.category(letter) in ("Cc", "Cf")
        for letter in text
    )


class RecordError(ValueError):
    """A row that cannot become a record: names file, line, field, value and what is allowed."""

    def __init__(
        self, field: str, value: object, allowed: str, *, reason: str, file: str = "", line: int = 0
    ) -> None:
        """Keep the parts, so that a skip can be counted by reason and a reader can add the place.

        Args:
            field: Name of the field, with indices, such as ``comparisons[2].preference``.
            value: What was found.
            allowed: What would have been accepted, as a phrase.
            reason: Short category under which skipped rows are counted.
            file: Where the row came from.
            line: Line of the row, or its 1-based number where a file has no lines; 0 if unknown, or of no row alone.
        """
        self.field, self.value, self.allowed, self.reason = field, value, allowed, reason
        self.file, self.line = file, line
        place = "" if not file else f"{file}:{line}: " if line else f"{file}: "
        super().__init__(f"{place}{reason}: field {shown(field)} is {shown(value)}; allowed: {allowed}")

    def __reduce__(self) -> tuple[object, ...]:
        """How it comes back from another process: by its parts, and not by its text alone."""
        parts = (self.field, self.value, self.allowed)
        return partial(RecordError, reason=self.reason, file=self.file, line=self.line), parts

    def at(self, file: str, line: int) -> "RecordError":
        """Return the same error with the place it came from."""
        return RecordError(self.field, self.value, self.allowed, reason=self.reason, file=file, line=line)


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(field, value, "a string", reason="wrong type")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(field, value, "text that encodes as UTF-8", reason="not UTF-8") from None
    return value


def _number(field: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(field, value, "a number", reason="wrong type")
    if not abs(value) <= FLOAT32_MAX:  # NaN, infinite, or infinite in a batch
        allowed = f"a finite number, at most {FLOAT32_MAX:.3g} (float32); leave the field out if unknown"
        raise RecordError(field, value, allowed, reason="not finite")
    if not low <= value <= high:
        bounds = f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a number >= {low:g}"
        raise RecordError(field, value, bounds, reason="out of range")
    return float(value)


def _counts(field: str, value: object) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise RecordError(field, value, "a non-empty list of counts, one per category", reason="wrong type")
    counts = tuple(_number(f"{field}[{i}]", count, 0.0) for i, count in enumerate(value))
    if sum(counts) > FLOAT32_MAX:
        allowed = f"counts whose sum is at most {FLOAT32_MAX:.3g} (float32)"
        raise RecordError(field, value, allowed, reason="not finite")
    return counts


def _name(
    field: str, value: object, allowed: str = "a name that is not blank; leave it out if unknown"
) -> str:
    name = _text(field, value)
    if is_blank(name):
        raise RecordError(field, value, allowed, reason="missing field")
    return name


def _optional_text(field: str, value: object) -> str | None:
    return None if value is None else _text(field, value)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``developer``, ``user``, ``assistant`` or ``tool``.
        content: What was said; empty where a turn has nothing but other keys, such as calls of tools.
        others: What else the turn has, such as ``tool_calls`` or ``reasoning_content``, for the chat template.
    """

    role: str
    content: str
    others: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def rest(self) -> str:
        """Its other keys as JSON, equal for equal ones in any order; empty if there are none."""
        return json.dumps(self.others, sort_keys=True, default=str) if self.others else ""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to the prompt.

    Attributes:
        text: The answer; not blank. Of several turns, or with other keys, its plain form (:func:`plain_turns`).
        score: A rating, any finite number; None if unknown.
        votes: Annotator counts per category, >= 0; None if unknown.
        prior: What to expect of the crowd before anyone voted: a distribution over the categories; None if unknown.
        user: Whose reward is asked for in the predict split; None for the record's.
        domain: In which domain, likewise.
        system: Who wrote it: a model, a person, the system prompt of a domain; None if unknown.
        messages: Its turns, where it is more than one turn of the assistant with nothing but content; the last is the
            assistant's. A chat template gets them, the plain format has ``text``.
    """

    text: str
    score: float | None = None
    votes: tuple[float, ...] | None = None
    prior: tuple[float, ...] | None = None
    user: str | None = None
    domain: str | None = None
    messages: tuple[Message, ...] | None = None
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement between two responses.

    Attributes:
        chosen: Index of the first response.
        rejected: Index of the second response; differs from ``chosen``.
        preference: Share of annotators preferring the first, in [0, 1]; 0.5 is a tie.
        user: Who judged; None for a crowd or an unknown judge.
        domain: In which domain; None if there are none.
        margin: Required reward gap; None if unknown.
        weight: Loss weight, >= 0; None means 1.
        strength: Signed vote strength; None if unknown.
        votes: Annotator counts per category, >= 0; None if unknown.
        group: Group of users that the judge is of, the same in every judgement of theirs; None if unknown.
    """

    chosen: int
    rejected: int
    preference: float = 1.0
    user: str | None = None
    domain: str | None = None
    margin: float | None = None
    weight: float | None = None
    strength: float | None = None
    votes: tuple[float, ...] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """A prompt with its responses and every judgement on them.

    Attributes:
        id: Stable and unique within the dataset.
        prompt: Text, or the conversation up to the responses (its last turn is not the assistant's).
        responses: k >= 1 answers.
        comparisons: Judgements between two of them; may be empty.
        group: Rows with the same group stay on one side of a random split; None means the prompt, or the
            responses where the prompt is blank.
        source: Which part of a mixture it is of, without a NUL; None for the data module's name.
        aspect: The preference asked for, such as ``harmless``; None if that is not said.
        weight: Weight of the whole record, >= 0; None means 1.
        user: Whose reward is asked for in the predict split, of responses that do not say it; None for nobody in
            particular.
        domain: In which domain, likewise.
        left_out: What the data module left out of the row, a number by reason; counted in the report as dropped.
    """

    id: str
    prompt: str | tuple[Message, ...]
    responses: tuple[Response, ...]
    comparisons: tuple[Comparison, ...] = ()
    group: str | None = None
    source: str | None = None
    aspect: str | None = None
    weight: float | None = None
    user: str | None = None
    domain: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            RecordError: Naming field, value and what is allowed.
        """
        _name("id", self.id, "a name that is not blank")
        _check_prompt(self.prompt)
        _optional_text("group", self.group)
        _check_columns("", [self], optional_columns("record"))
        if self.source is not None and "\0" in self.source:
            raise RecordError("source", self.source, "a name without a NUL", reason="out of range")
        if not self.responses:
            raise RecordError("responses", self.responses, "at least one response", reason="missing field")
        for i, response in enumerate(self.responses):
            _check_response(f"responses[{i}]", response)
        for i, comparison in enumerate(self.comparisons):
            _check_comparison(f"comparisons[{i}]", comparison, len(self.responses))
        _check_columns("responses[{}].", self.responses, optional_columns("response"))
        _check_columns("", [self], optional_columns("request"))
        _check_columns("responses[{}].", self.responses, optional_columns("request"))
        _check_columns("comparisons[{}].", self.comparisons, optional_columns("comparison"))
        _check_lengths(
            "responses",
            [counts for response in self.responses for counts in (response.votes, response.prior)],
        )
        _check_lengths("comparisons", [comparison.votes for comparison in self.comparisons])

    @property
    def requests(self) -> tuple[Response, ...]:
        """The responses with the user and the domain for whom each is scored."""
        if self.user is None and self.domain is None:
            return self.responses
        return tuple(
            replace(
                response,
                user=self.user if response.user is None else response.user,
                domain=self.domain if response.domain is None else response.domain,
            )
            for response in self.responses
        )

    @property
    def split_key(self) -> str:
        """What decides the side of a random split: the group, else the prompt, else the responses.

        A question is the same as text and as one message of the user.
        """
        if self.group is not None:
            return self.group
        if isinstance(self.prompt, str):
            return self.prompt.strip() or "\n".join(sorted(response.text for response in self.responses))
        first, *others = self.prompt
        if first.role == "user" and not (others or first.others) and (question := first.content.strip()):
            return question
        return "\n".join(f"{turn.role}: {turn.content.strip()}{turn.rest}" for turn in self.prompt)


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str):
        _text("prompt", prompt)
        return
    if not isinstance(prompt, tuple) or not prompt:
        raise RecordError("prompt", prompt, "text, or a non-empty list of messages", reason="wrong type")
    _check_messages("prompt", prompt)
    if prompt[-1].role == "assistant":
        allowed = "a last turn of user or system; the assistant's turn is the response"
        raise RecordError(f"prompt[{len(prompt) - 1}].role", "assistant", allowed, reason="out of range")


def _check_messages(field: str, messages: Sequence[object]) -> None:
    for i, message in enumerate(messages):
        if not isinstance(message, Message):
            raise RecordError(
                f"{field}[{i}]", message, "a message with role and content", reason="wrong type"
            )
        if message.role not in ROLES:
            raise RecordError(f"{field}[{i}].role", message.role, " | ".join(ROLES), reason="out of range")
        _text(f"{field}[{i}].content", message.content)


def _check_response(field: str, response: object) -> None:
    if not isinstance(response, Response):
        raise RecordError(field, response, "a Response", reason="wrong type")
    if not _text(f"{field}.text", response.text).strip():
        raise RecordError(f"{field}.text", response.text, "text that is not blank", reason="empty response")
    if response.messages is not None:
        _check_messages(f"{field}.messages", response.messages)
        if not response.messages or response.messages[-1].role != "assistant":
            allowed = "turns of which the last is the assistant's"
            raise RecordError(f"{field}.messages", response.messages, allowed, reason="out of range")
    if response.prior is not None and abs(sum(_counts(f"{field}.prior", response.prior)) - 1) > 1e-3:
        allowed = "shares that sum to 1 (within 0.001)"
        raise RecordError(f"{field}.prior", response.prior, allowed, reason="out of range")


def _check_comparison(field: str, comparison: object, num_responses: int) -> None:
    if not isinstance(comparison, Comparison):
        raise RecordError(field, comparison, "a Comparison", reason="wrong type")
    for name in ("chosen", "rejected"):
        index = getattr(comparison, name)
        if isinstance(index, bool) or not isinstance(index, int):
            raise RecordError(f"{field}.{name}", index, "an index", reason="wrong type")
        if not 0 <= index < num_responses:
            allowed = f"an index in 0..{num_responses - 1}"
            raise RecordError(f"{field}.{name}", index, allowed, reason="out of range")
    if comparison.chosen == comparison.rejected:
        allowed = "another response than chosen"
        raise RecordError(f"{field}.rejected", comparison.rejected, allowed, reason="out of range")
    _number(f"{field}.preference", comparison.preference, 0.0, 1.0)


def _check_columns(field: str, items: Sequence[object], columns: Sequence[Column]) -> None:
    """Values that an item may lack, as the table of columns has them; ``{}`` in ``field`` is the item's number."""
    for i, item in enumerate(items):
        for entry in columns:
            value = entry.of(item)
            if value is None:
                continue
            name = entry.stored if entry.item == "record" else f"{field.format(i)}{entry.field}"
            if entry.kind == "name":
                _name(name, value)
            elif entry.kind == "counts":
                _counts(name, value)
            else:
                _number(name, value, entry.low)


def record_key(source: str, split: str, name: str) -> int:
    """Number that names a record for good, by which side tables are joined.

    It is the first eight bytes of the SHA-1 of ``source NUL split NUL id`` in UTF-8, as a signed big-endian integer;
    neither source nor split can hold a NUL, so that different triples never give the same bytes.

    Args:
        source: The record's source, or else the name of the data module.
        split: Split that the record is in.
        name: The record's id.

    Example:
        >>> record_key("hh_rlhf", "train", "7")
        -3140952165823202031
    """
    digest = sha1(f"{source}\0{split}\0{name}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _check_lengths(field: str, votes: Sequence[tuple[float, ...] | None]) -> None:
    lengths = {len(counts) for counts in votes if counts is not None}
    if len(lengths) > 1:
        allowed = "equally many categories throughout"
        raise RecordError(f"{field}[*].votes", sorted(lengths), allowed, reason="out of range")
