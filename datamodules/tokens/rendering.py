"""Records become text: by a chat template, or by the two strings of the plain format.

Nothing of a conversation is lost on the way in silence. A chat template is somebody else's program: it may refuse a
conversation, fail, not read a key of a message, or take text out of it. Each of these is an error that names the place in
the record, or is counted where the settings allow it; only what a template leaves out of an *earlier* turn of the
assistant, as many do with reasoning, is counted without being asked.
"""

import json
import re
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

from ..records import Message, PreferenceRecord, RecordError, Response, answer, listed
from .config import TextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["INVALID", "ChatRendering", "PlainRendering", "Rendered", "without_keys"]

REFUSED = "refused by the chat template"
FAILED = "the chat template failed"
UNREAD = "message key that nothing reads"
LOST = "text that the chat template leaves out"
NO_FORM = "role without a plain form"
INVALID = frozenset({REFUSED, FAILED, UNREAD, LOST, NO_FORM})
"""Reasons for which a record has no text: an invalid row, not a long one."""

EARLIER_TEXT = "reasoning of an earlier turn that the chat template leaves out"
EARLIER_KEY = "message key of an earlier turn that the chat template leaves out"
PROMPT_TEXT = "part of a prompt that the chat template leaves out"
RESPONSE_TEXT = "part of a response that the chat template leaves out"

REASONING = re.compile(r"\A.*(?:</\w[^<>]*>|\[/\w+\]|<\|\w+\|>)", re.DOTALL)
"""A turn up to its last closing tag, such as ``</think>``, ``[/THINK]`` or ``<|message|>``."""

Turn = dict[str, object]
"""A message as templates have it."""
ALWAYS = ("role", "content")


class Rendered(NamedTuple):
    """Text of a record.

    Attributes:
        texts: Of the prompt alone, then of prompt and response for every response.
        left_out: What the chat template left out and may leave out, by kind.
    """

    texts: list[str]
    left_out: Counter[str]


def without_keys(record: PreferenceRecord, keys: Collection[str]) -> PreferenceRecord:
    """The record without those keys of its messages; itself if it has none of them."""
    if not keys or not any(key in keys for message in _messages(record) for key in message.others):
        return record
    prompt = record.prompt if isinstance(record.prompt, str) else _bare(record.prompt, keys)
    return replace(record, prompt=prompt, responses=tuple(_response(each, keys) for each in record.responses))


def _response(response: Response, keys: Collection[str]) -> Response:
    if response.messages is None:
        return response
    bare = answer("responses", _bare(response.messages, keys))
    return replace(response, text=bare.text, messages=bare.messages)


def _messages(record: PreferenceRecord) -> list[Message]:
    prompt = () if isinstance(record.prompt, str) else record.prompt
    return [*prompt, *(message for response in record.responses for message in response.messages or ())]


def _bare(messages: Sequence[Message], keys: Collection[str]) -> tuple[Message, ...]:
    return tuple(
        replace(message, others={key: value for key, value in message.others.items() if key not in keys})
        for message in messages
    )


# The plain format ------------------------------------------------------------------------------------------


class PlainRendering:
    """Two strings, around every user turn and around every answer; system messages as they are.

    Attributes:
        opens_answers: Whether a prompt alone ends where an answer begins.
    """

    opens_answers = True

    def __init__(self, config: TextConfig) -> None:
        """Keep the strings.

        Args:
            config: With ``prompt_format``, ``response_format`` and the keys to ignore.
        """
        self.ignored = frozenset(config.ignored_message_keys)
        self.user, self.assistant = config.prompt_format, config.response_format
        self.formats = {"system": "{text}\n\n", "user": self.user, "assistant": self.assistant}

    def render(self, record: PreferenceRecord) -> Rendered:
        """Text of the prompt alone, then with every response.

        Raises:
            RecordError: If a message has a role or a key that the format has no form for.
        """
        record = without_keys(record, self.ignored)
        if isinstance(record.prompt, str):
            prompt = self.user.replace("{text}", record.prompt) if record.prompt else ""
        else:
            self._check("prompt", record.prompt)
            prompt = "".join(
                self.formats[turn.role].replace("{text}", turn.content) for turn in record.prompt
            )
        for i, response in enumerate(record.responses):
            if response.messages is not None:
                self._check(f"responses[{i}].messages", response.messages)
        answers = [self.assistant.replace("{text}", response.text) for response in record.responses]
        return Rendered([prompt, *(prompt + answer for answer in answers)], Counter())

    def _check(self, field: str, messages: Sequence[Message]) -> None:
        for i, message in enumerate(messages):
            if message.role not in self.formats:
                allowed = f"{' | '.join(self.formats)} in the plain format, or text.format: chat with a template that reads it"
                raise RecordError(f"{field}[{i}].role", message.role, allowed, reason=NO_FORM)
            for key, value in message.others.items():
                unread = [key for message in messages for key in message.others]
                allowed = f"text.format: chat with a template that reads it, or {_to_ignore(unread)}"
                raise RecordError(f"{field}[{i}].{key}", value, allowed, reason=UNREAD)


def _to_ignore(keys: Iterable[str]) -> str:
    return f"text.ignored_message_keys: [{listed(dict.fromkeys(keys))}] if nothing is to be read in them"


# Chat templates --------------------------------------------------------------------------------------------


class ChatRendering:
    """The tokenizer's chat template, in the sandbox of ``transformers``, under a clock that stands still; picklable."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: TextConfig) -> None:
        """Settle the template, and compile it once.

        Args:
            tokenizer: It has a chat template.
            config: With the tokenizer's name, the day, and what may be left out.

        Raises:
            ValueError: If the template is not Jinja; names its line.
        """
        self.tokenizer, self.name = tokenizer, config.tokenizer
        self.ignored, self.may_lose = frozenset(config.ignored_message_keys), config.lost_text == "count"
        template = str(tokenizer.get_chat_template())
        clock = frozen_clock(date.fromisoformat(config.date)) if "strftime_now" in template else ""
        self.template, self.clock_lines = clock + template, clock.count("\n")
        self._check_syntax()

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._apply("", [{"role": "user", "content": "?"}])
        except RecordError as error:  # what it makes of conversations is seen row by row
            fault = error.__cause__
            if not isinstance(fault, TemplateSyntaxError):
                return
            raise ValueError(
                f"the chat template of text.tokenizer={self.name!r} is not Jinja: line "
                f"{fault.lineno - self.clock_lines}: {fault.message}; mend it there, or set text.format: plain"
            ) from fault

    def render(self, record: PreferenceRecord) -> Rendered:
        """Text of the prompt alone, then of prompt and response for every response.

        Raises:
            RecordError: If the template refuses the conversation, fails, does not read a key, or leaves text out.
        """
        record = without_keys(record, self.ignored)
        prompt = _prompt_turns(record.prompt)
        answers = [_answer_turns(f"responses[{i}]", response) for i, response in enumerate(record.responses)]
        texts = [self._apply("prompt", prompt, generation=True)]
        texts += [self._apply(f"responses[{i}]", [*prompt, *turns]) for i, turns in enumerate(answers)]
        left_out: Counter[str] = Counter()
        self._check_prompt(record, prompt, texts, left_out)
        for i, (response, turns) in enumerate(zip(record.responses, answers, strict=True)):
            field = f"responses[{i}]" if response.messages is None else f"responses[{i}].messages"
            self._check_answer(field, prompt, turns, (texts[0], texts[i + 1]), left_out)
        return Rendered(texts, left_out)

    def _apply(self, field: str, turns: list[Turn], *, generation: bool = False) -> str:
        try:
            messages = cast(list[dict[str, str]], turns)  # the hint leaves out that values may be anything
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation
                )
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise self._failure(field, turns, error) from error

    def _failure(self, field: str, turns: list[Turn], error: Exception) -> RecordError:
        from jinja2 import TemplateError

        roles = ", ".join(str(turn["role"]) for turn in turns)
        if type(error) is TemplateError:  # what raise_exception raises; the classes below it are faults
            allowed = f"a conversation that the chat template accepts ({error})"
            return RecordError(field, roles, allowed, reason=REFUSED)
        lines = [
            frame.lineno - self.clock_lines
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == "<template>" and frame.lineno is not None
        ]
        place = f" in line {lines[-1]}" if lines else ""
        allowed = (
            f"a conversation that the chat template of {self.name!r} can render; it failed{place} with "
            f"{type(error).__name__}: {error}"
        )
        return RecordError(field, roles, allowed, reason=FAILED)

    @cached_property
    def opens_answers(self) -> bool:
        """Whether a prompt alone ends with the beginning of an answer: a template may have no generation prompt."""
        turns: list[Turn] = [{"role": "user", "content": "?"}]
        return self._apply("", turns, generation=True) != self._apply("", turns)

    # What a template does not show -------------------------------------------------------------------------

    def _check_prompt(
        self, record: PreferenceRecord, turns: list[Turn], texts: list[str], left_out: Counter[str]
    ) -> None:
        if unread := self._unread("prompt", turns, 0, texts[0]):
            left_out[EARLIER_KEY] += len(unread)
        # The text with a response begins with the prompt's own in nearly all templates; where not, both count.
        different = [texts[0], *(text for text in texts[1:] if not text.startswith(texts[0]))]
        for number, turn in enumerate(turns):
            content = str(turn["content"])
            if all(shows(text, content) for text in different):
                continue
            rest = REASONING.sub("", content)
            if turn["role"] == "assistant" and all(shows(text, rest) for text in different):
                left_out[EARLIER_TEXT] += 1
            else:
                field = "prompt" if isinstance(record.prompt, str) else f"prompt[{number}].content"
                self._lose(field, content, PROMPT_TEXT, left_out)

    def _check_answer(
        self,
        field: str,
        prompt: list[Turn],
        answer: list[Turn],
        texts: tuple[str, str],
        left_out: Counter[str],
    ) -> None:
        for number, key in self._unread(field, [*prompt, *answer], len(prompt), texts[1]):
            self._lose(f"{field}[{number}].{key}", answer[number][key], RESPONSE_TEXT, left_out)
        for number, turn in enumerate(answer):
            content = str(turn["content"])
            if not shows(texts[1], content, beyond=texts[0]):
                place = f"{field}[{number}].content" if field.endswith("messages") else f"{field}.text"
                self._lose(place, content, RESPONSE_TEXT, left_out)

    def _unread(self, field: str, turns: list[Turn], start: int, text: str) -> list[tuple[int, str]]:
        """Keys of turns from ``start`` on, counted from there, that the template reads in last turns alone.

        Raises:
            RecordError: If it reads one nowhere.
        """
        places = [(i, key) for i, turn in enumerate(turns[start:]) for key in turn if key not in ALWAYS]
        generation = start == 0  # the prompt alone ends with the beginning of an answer
        unread = [
            (i, key)
            for i, key in places
            if not self._reads(turns, start + i, key, text, generation=generation)
        ]
        nowhere = [(i, key) for i, key in unread if not self._reads_last(turns[: start + i + 1], key)]
        if nowhere:
            (i, key), keys = nowhere[0], [key for _, key in nowhere]
            allowed = f"a key that the chat template of {self.name!r} reads, or {_to_ignore(keys)}"
            raise RecordError(f"{field}[{i}].{key}", turns[start + i][key], allowed, reason=UNREAD)
        return unread

    def _reads(
        self, turns: list[Turn], number: int, key: str, text: str, *, generation: bool = False
    ) -> bool:
        """Whether the text of a conversation would be another without a key."""
        bare = {name: value for name, value in turns[number].items() if name != key}
        changed = [*turns[:number], bare, *turns[number + 1 :]]
        try:
            return self._apply("", changed, generation=generation) != text
        except RecordError:
            return True  # the template needs it

    def _reads_last(self, turns: list[Turn], key: str) -> bool:
        """Whether a key of the last turn is read: then the template leaves it out of earlier turns on purpose."""
        try:
            return self._reads(turns, len(turns) - 1, key, self._apply("", turns))
        except RecordError:
            return False

    def _lose(self, field: str, value: object, kind: str, left_out: Counter[str]) -> None:
        if self.may_lose:
            left_out[kind] += 1
            return
        hint = ", move reasoning into reasoning_content if it reads that" if kind == RESPONSE_TEXT else ""
        allowed = (
            f"text that the chat template of {self.name!r} shows whole: take another template or text.format: plain{hint}, "
            "or set text.lost_text: count to go on without what it leaves out"
        )
        raise RecordError(field, value, allowed, reason=LOST)


def _prompt_turns(prompt: str | tuple[Message, ...]) -> list[Turn]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns("prompt", prompt)


def _answer_turns(field: str, response: Response) -> list[Turn]:
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    return _turns(f"{field}.messages", response.messages)


def _turns(field: str, messages: Sequence[Message]) -> list[Turn]:
    for i, message in enumerate(messages):
        for key in message.others:
            if key in ALWAYS:
                value, allowed = message.others[key], f"one {key} of a message, not two"
                raise RecordError(f"{field}[{i}].{key}", value, allowed, reason=UNREAD)
    return [{"role": message.role, "content": message.content, **message.others} for message in messages]


def shows(rendered: str, text: str, *, beyond: str = "") -> bool:
    """Whether a rendered conversation has a text in it.

    Templates may trim and break lines (white space does not count), and write texts as JSON.

    Args:
        rendered: The conversation.
        text: What should stand there.
        beyond: Beginning of the conversation, in which alone it is not enough to stand.
    """
    text = text.strip()
    return (
        not text
        or _stands(rendered, text, beyond)
        or _stands(_dense(rendered), _dense(text), _dense(beyond))
        or _stands(rendered, json.dumps(text, ensure_ascii=False)[1:-1], beyond)
    )


def _stands(rendered: str, text: str, beyond: str) -> bool:
    if rendered.startswith(beyond):  # the first that ends beyond; forwards, time is linear in any text
        return rendered.find(text, max(0, len(beyond) - len(text) + 1)) >= 0
    place = rendered.rfind(text)
    return place >= 0 and not beyond.startswith(rendered[: place + len(text)])


def _dense(text: str) -> str:
    return "".join(text.split())


DIRECTIVES = "aAwdbBmyYHIMSfpjUWcxXGuV"


def frozen_clock(today: date) -> str:
    """A Jinja macro that hides the clock which transformers offers to templates under the same name.

    It is written in Jinja itself, because transformers replaces functions that are passed to a template.
    """
    values = {f"%{name}": today.strftime(f"%{name}") for name in DIRECTIVES}
    values |= {f"%-{name}": values[f"%{name}"].lstrip("0") or "0" for name in "dmjHIMS"}
    known = "".join(f" | replace({name!r}, {value!r})" for name, value in values.items())
    # Templates are rendered with trim_blocks: the line break after the macro goes, too.
    return f"{{% macro strftime_now(format) %}}{{{{ format{known} }}}}{{% endmacro %}}\n"
