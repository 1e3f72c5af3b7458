"""How text becomes tokens: the settings."""

from dataclasses import dataclass, fields
from datetime import date
from typing import Any, Literal, Self

from ..batch import TextFormat
from ..checks import check_choices

__all__ = ["BYTE", "WORDS", "TextConfig"]

BYTE = "byte"
"""Name of the built-in byte-level tokenizer: 256 bytes and three special tokens, made in code."""
WORDS = "words"
"""Name of the built-in tokenizer of whole words, those of the small language of :class:`StyleGrammarDataModule`."""


@dataclass(frozen=True)
class TextConfig:
    r"""How text becomes tokens. Everything here is part of the cache's fingerprint and of every checkpoint.

    Attributes:
        tokenizer: Hugging Face name or folder, or ``byte`` for the built-in byte-level tokenizer, or ``words`` for that of
            :class:`StyleGrammarDataModule`. The command line fills it from the model's backbone, so it is written once.
        revision: Branch, tag or commit of the tokenizer on the hub; None for its default branch.
        trust_remote_code: Whether code that ships with the tokenizer may run.
        format: ``chat`` applies the tokenizer's chat template, ``plain`` the two strings below, ``auto``
            the template if there is one.
        prompt_format: Plain format of a user turn (or of a prompt given as text); holds ``{text}`` once.
        response_format: Plain format of an assistant turn and of the response; holds ``{text}`` once.
        max_length: Largest number of tokens of prompt plus response plus EOS; None for as many as the model's backbone
            has positions, and for no limit where it has none or there is no model.
        truncation: What happens above ``max_length``: ``prompt_left`` cuts the prompt from the left and keeps
            responses and EOS whole, ``drop`` leaves the response out with its comparisons, ``error`` stops.
            All responses of a prompt see the same cut. Every cut and drop is counted and reported.
        date: The day (ISO) that chat templates see as today, so that tokens do not change overnight.
        ignored_message_keys: Keys of messages, beside role and content, in which nothing is to be read, such as
            ``tool_call_id``. They are taken out; any other key that neither template nor format reads is an error.
        lost_text: What happens where the chat template leaves out text of a response, or of a turn of the prompt:
            ``error``, or ``count`` it and go on without. Reasoning that a template leaves out of earlier turns of the
            assistant is counted in any case.
        end: How a text ends: ``token`` is the end token exactly once, ``template`` whatever the chat template, or the plain
            format, ends with. The second is what reward models were trained on that take a conversation as the template
            gives it; the state that is read is that of the text's last token in either case.
    """

    tokenizer: str = BYTE
    revision: str | None = None
    trust_remote_code: bool = False
    format: Literal["auto", "chat", "plain"] = "auto"
    prompt_format: str = "\n\nHuman: {text}\n\nAssistant:"
    response_format: str = " {text}"
    max_length: int | None = None
    truncation: Literal["prompt_left", "drop", "error"] = "prompt_left"
    date: str = "2024-07-26"
    ignored_message_keys: tuple[str, ...] = ()
    lost_text: Literal["error", "count"] = "error"
    end: Literal["token", "template"] = "token"

    def __post_init__(self) -> None:
        """Check the settings that can be checked without a tokenizer.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        for name in ("prompt_format", "response_format"):
            if getattr(self, name).count("{text}") != 1:
                raise ValueError(f"{name} must hold {{text}} exactly once, got {getattr(self, name)!r}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length must be at least 2 (one token and EOS) or null, got {self.max_length}"
            )
        check_choices(type(self), **vars(self))
        keys = self.ignored_message_keys
        if isinstance(keys, str) or not {"role", "content"}.isdisjoint(keys):
            raise ValueError(f"ignored_message_keys must list keys beside role and content, got {keys!r}")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date must be an ISO day such as 2024-07-26, got {self.date!r}") from None

    @classmethod
    def of_format(
        cls, description: TextFormat, *, tokenizer: str | None = None, trust_remote_code: bool = False
    ) -> Self:
        """The settings that a settled format was made of, as a checkpoint keeps it.

        Whether they give the same tokens today is to be compared: a tokenizer's name may stand for another one now.

        Args:
            description: What :meth:`RecordTokenizer.fingerprint` says.
            tokenizer: Name or folder of the tokenizer now; None for that of then.
            trust_remote_code: Whether code that ships with the tokenizer may run; the description does not decide that.
        """
        names = {each.name for each in fields(cls)} - {"trust_remote_code"}
        settings: dict[str, Any] = {name: value for name, value in description.items() if name in names}
        if ignored := settings.get("ignored_message_keys"):
            settings["ignored_message_keys"] = tuple(str(ignored).split(", "))
        if tokenizer is not None:
            settings |= {"tokenizer": tokenizer, "revision": None}
        return cls(**settings, trust_remote_code=trust_remote_code)
