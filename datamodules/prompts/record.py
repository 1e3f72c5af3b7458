"""A row becomes a prompt, the preference that it asks for, if it names one, and what else is known of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1

from ..records import Message, PreferenceRecord, RecordError, Response, is_blank

__all__ = ["PromptRecord", "item_key", "with_sentence"]


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt that a policy is to answer.

    Attributes:
        id: Stable and unique within a split.
        prompt: Text that is not blank, or a conversation whose last turn is not the assistant's.
        preference: Names of the dimensions that it asks for; None for those of the data module's settings.
        columns: What else its source says of it, by name; plain values.
    """

    id: str
    prompt: str | tuple[Message, ...]
    preference: tuple[str, ...] | None = None
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check id and prompt as a record of responses does; the data module checks the preference.

        Raises:
            RecordError: Naming field, value and what is allowed.
        """
        _ = PreferenceRecord(self.id, self.prompt, (Response("-"),))
        turns = (
            [Message("user", self.prompt)]
            if isinstance(self.prompt, str)
            else [turn for turn in self.prompt if not turn.others]
        )
        if turns and all(is_blank(turn.content) for turn in turns):
            raise RecordError("prompt", self.prompt, "text that is not blank", reason="blank prompt")

    @property
    def split_key(self) -> str:
        """What decides the side of a random split: the prompt; a question is the same as text and as one message."""
        return PreferenceRecord(self.id, self.prompt, (Response("-"),)).split_key

    @property
    def given(self) -> str | list[dict[str, str]]:
        """The prompt as batches have it."""
        if isinstance(self.prompt, str):
            return self.prompt
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]


def with_sentence(prompt: str | tuple[Message, ...], sentence: str) -> str | tuple[Message, ...]:
    """A prompt with a sentence behind the text of the user's last turn.

    Args:
        prompt: Text or messages.
        sentence: What is said of the preference; the prompt stays as it is without any.

    Raises:
        RecordError: If no turn is the user's.
    """
    if not sentence:
        return prompt
    if isinstance(prompt, str):
        return _joined(prompt, sentence)
    for place in range(len(prompt) - 1, -1, -1):
        if prompt[place].role == "user":
            turn = replace(prompt[place], content=_joined(prompt[place].content, sentence))
            return (*prompt[:place], turn, *prompt[place + 1 :])
    roles = [turn.role for turn in prompt]
    allowed = "a turn of the user, behind whose text the preference is said; or axes: {} to say none"
    raise RecordError("prompt", roles, allowed, reason="no turn of the user")


def _joined(text: str, sentence: str) -> str:
    return f"{text}{sentence}" if not text or text[-1].isspace() else f"{text} {sentence}"


def item_key(
    name: str,
    split: str,
    item: str,
    prompt: object,
    sentence: str,
    columns: Mapping[str, object],
    tokens: Sequence[Sequence[int]],
) -> int:
    """Number by which an item is found again: it changes with all that decides responses to it, and what rewards say of them.

    That is the item's name, its prompt, what is said of its preference, its columns (such as the user whose reward it is), and
    the tokens that networks read, which change with tokenizer and format, and where a prompt is cut.

    Args:
        name: Of the data module.
        split: Split that the item is in.
        item: Its id.
        prompt: Text, or messages of plain values.
        sentence: What is said of the preference.
        columns: What else the source says of it.
        tokens: Those of each of its forms.

    Returns:
        The first eight bytes of the SHA-1 of all of it as JSON, as a signed big-endian integer.
    """
    text = json.dumps([name, split, item, prompt, sentence, columns, tokens], default=str)
    return int.from_bytes(sha1(text.encode(), usedforsecurity=False).digest()[:8], "big", signed=True)
