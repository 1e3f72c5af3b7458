"""Conversations in the forms that data have: messages, parts, one message alone, texts that alternate, sides with the prompt.

Two sides of a pair are brought to one prompt and two answers by :func:`split_sides`, whichever of them the row holds apart.
"""

import json
from collections.abc import Mapping, Sequence

from .record import ROLES, Message, RecordError, Response, listed

__all__ = [
    "MESSAGE_FORMS",
    "ROLE_NAMES",
    "Prompt",
    "alternating_messages",
    "answer",
    "content_text",
    "parse_messages",
    "plain_turns",
    "shared_turns",
    "split_sides",
]

Prompt = str | tuple[Message, ...]

ROLE_NAMES = {role: role for role in ROLES} | {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "observation": "tool",
}
"""What others call the roles."""
SPEAKER = {
    "user": "Human",
    "assistant": "Assistant",
    "system": "System",
    "developer": "Developer",
    "tool": "Tool",
}
MESSAGE_FORMS = (("role", "content"), ("from", "value"))
"""Keys of speaker and text in a message."""
ALLOWED = "a message: an object with role and content (or from and value)"


def parse_messages(field: str, value: object) -> tuple[Message, ...]:
    """Read a conversation from decoded JSON: a list of messages, or one message alone.

    A message has ``role`` and ``content`` (or ``from`` and ``value``); content may be a list of parts of text. Other keys that hold
    something are kept for the chat template.

    Args:
        field: Name to use in an error.
        value: The decoded JSON.

    Raises:
        RecordError: If it is neither, a role is unknown, or a part is no text, such as an image.
    """
    if isinstance(value, Mapping):
        return (_message(field, value),)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RecordError(field, value, "a list of {role, content}, or one", reason="wrong type")
    return tuple(_message(f"{field}[{i}]", turn) for i, turn in enumerate(value))


def _message(field: str, turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise RecordError(field, turn, ALLOWED, reason="wrong type")
    speaker, said = next((form for form in MESSAGE_FORMS if form[0] in turn), MESSAGE_FORMS[0])
    role = turn.get(speaker)
    if not isinstance(role, str):
        reason = "missing field" if role is None else "wrong type"
        raise RecordError(f"{field}.{speaker}", role, f"a string; in {ALLOWED}", reason=reason)
    if (name := role.casefold()) not in ROLE_NAMES:
        raise RecordError(f"{field}.{speaker}", role, " | ".join(ROLE_NAMES), reason="out of range")
    others = {
        str(key): value
        for key, value in turn.items()
        if key not in (speaker, said) and value is not None and value not in ("", [], {})
    }
    content = turn.get(said)
    if content is None and others:  # calls of tools, and nothing said
        content = ""
    return Message(ROLE_NAMES[name], content_text(f"{field}.{said}", content), others)


def content_text(field: str, value: object) -> str:
    """Text of a message's content: a string, or a list of parts of text, which follow each other.

    Raises:
        RecordError: If it is neither, or a part is an image or something else that is no text.
    """
    if isinstance(value, str):
        _check_text(field, value)
        return value
    if isinstance(value, Sequence) and value:
        return "".join(_part_text(f"{field}[{i}]", part) for i, part in enumerate(value))
    reason = "missing field" if value is None else "wrong type"
    raise RecordError(field, value, "a string, or a list of parts of text", reason=reason)


def _part_text(field: str, part: object) -> str:
    if isinstance(part, str):
        _check_text(field, part)
        return part
    if not isinstance(part, Mapping):
        raise RecordError(field, part, "a part: {type: text, text: ...}", reason="wrong type")
    kind, text = part.get("type", "text"), part.get("text")
    held = [
        key for key, value in part.items() if key not in ("type", "text") and value not in (None, "", [], {})
    ]
    if kind != "text" or not isinstance(text, str) or held:
        what = kind if kind != "text" else listed(held) or "text"
        raise RecordError(
            f"{field}.{what}", part, "parts of text alone: nothing else is read", reason="not text"
        )
    _check_text(f"{field}.text", text)
    return text


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordError(field, text, "text that encodes as UTF-8", reason="not UTF-8") from None


def alternating_messages(field: str, texts: Sequence[object]) -> tuple[Message, ...]:
    """A conversation of texts without speakers, the last of which is the assistant's; before it, they alternate.

    The first may be the assistant's, where the beginning was cut.

    Raises:
        RecordError: If an entry is no text, or there is none.
    """
    if not texts:
        raise RecordError(field, texts, "at least one text", reason="wrong length")
    messages = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise RecordError(f"{field}[{i}]", text, "a string", reason="wrong type")
        _check_text(f"{field}[{i}]", text)
        role = "user" if (len(texts) - i) % 2 == 0 else "assistant"
        messages.append(Message(role, text.strip()))
    return tuple(messages)


def shared_turns(conversations: Sequence[Sequence[Message]]) -> int:
    """Leading turns that conversations share, up to the last that is not the assistant's."""
    first, *others = conversations
    same = len(first)
    for other in others:
        pairs = enumerate(zip(first[:same], other, strict=False))
        same = min(same, len(other))
        same = next((place for place, (turn, theirs) in pairs if turn is not theirs and turn != theirs), same)
    while same and first[same - 1].role == "assistant":
        same -= 1
    return same


def split_sides(
    fields: Sequence[str], sides: Sequence[Sequence[Message]], prompt: Prompt | None = None
) -> tuple[Prompt, list[Response]]:
    """One prompt and the answers of sides that are the answer alone, or the whole conversation.

    The prompt is the longest run of turns that all share and that does not end with the assistant's; so it is the same
    whether the turns before an answer stand in the side or in a prompt of their own.

    Args:
        fields: Name of each side, for an error.
        sides: At least one.
        prompt: As its column has it, if there is one: turns, with which a whole conversation begins; or text, a copy of what
            the user says somewhere in the shared turns.

    Returns:
        The prompt, as it was given if it is all that is shared, and a response for each side.

    Raises:
        RecordError: If a side has another prompt, they share no turn, or one ends with another turn than the assistant's.
    """
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt or ()
    whole = [_is_whole(side, turns) for side in sides]
    given = [
        tuple(side) if is_whole else (*turns, *side) for side, is_whole in zip(sides, whole, strict=True)
    ]
    if isinstance(prompt, tuple):
        for field, side in zip(fields, given, strict=True):
            if side[: len(prompt)] != prompt:
                allowed = "the answer alone, or the turns of the prompt and then the answer"
                raise RecordError(field, plain_turns(side), allowed, reason="another prompt")
    shared = shared_turns(given)
    if not shared:
        allowed = "conversations that share their first turn, or a prompt of their own"
        raise RecordError("prompt", None, allowed, reason="no common prompt")
    if isinstance(prompt, str) and prompt.strip() and any(whole):
        asked = [turn.content.strip() for turn in given[0][:shared] if turn.role != "assistant"]
        if prompt.strip() not in asked:
            field = fields[whole.index(True)]
            allowed = (
                f"a conversation in which the user says the prompt, {listed([prompt])}, before the sides part"
            )
            raise RecordError(field, plain_turns(sides[whole.index(True)]), allowed, reason="another prompt")
    answers = [answer(field, side[shared:]) for field, side in zip(fields, given, strict=True)]
    common = given[0][:shared]
    return (prompt if prompt is not None and common == turns else common), answers


def _is_whole(side: Sequence[Message], prompt: tuple[Message, ...]) -> bool:
    """Whether a side holds turns before the answer: it begins with another turn than the assistant's, or as the prompt does."""
    if not side:
        return False
    return side[0].role != "assistant" or (
        bool(prompt) and prompt[0].role == "assistant" and side[0] == prompt[0]
    )


def answer(field: str, turns: Sequence[Message]) -> Response:
    """The response that some turns are.

    Args:
        field: Name to use in an error.
        turns: Those after the prompt.

    Raises:
        RecordError: If there is none, or the last is not the assistant's.
    """
    allowed = "a last turn of the assistant, after the prompt: it is what is judged"
    if not turns:
        raise RecordError(field, None, allowed, reason="missing answer")
    if turns[-1].role != "assistant":
        raise RecordError(f"{field}[-1].role", turns[-1].role, allowed, reason="wrong type")
    if len(turns) == 1 and not turns[0].others:
        return Response(turns[0].content)
    return Response(plain_turns(turns), messages=tuple(turns))


def plain_turns(turns: Sequence[Message]) -> str:
    """Turns as plain text; the first, if it is the assistant's, without its speaker. Other keys are JSON behind the content."""
    parts = [f"{SPEAKER[turn.role]}: {_plain(turn)}" for turn in turns]
    if turns and turns[0].role == "assistant":
        parts[0] = _plain(turns[0])
    return "\n\n".join(parts)


def _plain(turn: Message) -> str:
    others = json.dumps(turn.others, ensure_ascii=False, default=str) if turn.others else ""
    return "\n".join(part for part in (turn.content, others) if part)
