"""Prompt, responses and comparisons of a row, by its shape; sides in whatever form a conversation has."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeGuard

from ...records import (
    Comparison,
    Message,
    Prompt,
    RecordError,
    Response,
    alternating_messages,
    conversation,
    decode_json,
    list_field,
    parse_messages,
    split_sides,
    text_field,
    whole_field,
)
from ..hh_rlhf import TURN, parse_dialogue
from .fields import ASKED, COMPARISON, JUDGED, RATED, SEVERAL, SHARED, column_values, row_name, without_nulls
from .judged import JudgementReader, share_of_votes
from .texts import shared_prompt

__all__ = ["Content", "chosen_pair", "neutral_pair", "one_response", "ranked_responses"]


class Content(NamedTuple):
    """What a row holds.

    Attributes:
        prompt: Text or messages.
        responses: The answers.
        comparisons: Judgements on two of them.
        group: What divides the row from others, where the prompt does not.
    """

    prompt: Prompt
    responses: Sequence[Response]
    comparisons: Sequence[Comparison] = ()
    group: str | None = None


def chosen_pair(fields: Mapping[str, object], reader: JudgementReader) -> Content:
    """A pair whose sides say who won."""
    content = _written_by(fields, _sides(fields, ("chosen", "rejected")))
    return content._replace(comparisons=[_comparison("", fields, reader, (0, 1))])


def neutral_pair(fields: Mapping[str, object], reader: JudgementReader) -> Content:
    """A pair of which another field says who won."""
    content = _written_by(fields, _sides(fields, ("first", "second")))
    comparisons = reader.comparisons(fields)
    if "first_score" in fields or "second_score" in fields:
        scored = zip(content.responses, reader.scores(fields), strict=True)
        content = content._replace(responses=[replace(response, score=score) for response, score in scored])
    return content._replace(comparisons=comparisons)


def one_response(fields: Mapping[str, object]) -> Content:
    """One response, rated or to be scored."""
    content = _sides(fields, ("response",))
    rated = replace(content.responses[0], **column_values("", RATED, fields))
    return content._replace(responses=[rated])


def _written_by(fields: Mapping[str, object], content: Content) -> Content:
    """Two sides with who wrote each, where the row says it."""
    if "systems" not in fields:
        return content
    systems = list_field("systems", fields["systems"], len(content.responses))
    names = [row_name(f"systems[{i}]", system) for i, system in enumerate(systems)]
    responses = [
        replace(response, system=name) for response, name in zip(content.responses, names, strict=True)
    ]
    return content._replace(responses=responses)


def ranked_responses(fields: Mapping[str, object], reader: JudgementReader) -> Content:
    """Several responses, with comparisons by their places."""
    values = list_field("responses", fields["responses"], empty=True)
    several = {
        name: list_field(field, fields[field], len(values)) if field in fields else [None] * len(values)
        for name, field in SEVERAL.items()
    }
    texts: dict[str, object] = {}
    columns = []
    for i, value in enumerate(values):
        field = f"responses[{i}]"
        is_object = isinstance(value, Mapping) and not {"role", "from"} & value.keys()
        response = without_nulls(value) if is_object and isinstance(value, Mapping) else {"text": value}
        for name in response.keys() - {"text", *RATED, *ASKED}:
            allowed = ", ".join(("text", *RATED, *ASKED))
            raise RecordError(f"{field}.{name}", response[name], allowed, reason="unknown field")
        rated = {name: response.get(name, entries[i]) for name, entries in several.items()}
        asked = {name: response.get(name) for name in ASKED}
        columns.append(column_values(f"{field}.", RATED | ASKED, rated | asked))
        texts[field] = response.get("text")
    content = _sides({**fields, **_decoded(texts)}, tuple(texts)) if texts else Content(_prompt(fields), [])
    responses = [replace(response, **own) for response, own in zip(content.responses, columns, strict=True)]
    return content._replace(responses=responses, comparisons=_comparisons(fields, reader))


def _decoded(texts: Mapping[str, object]) -> dict[str, object]:
    return {
        field: conversation(field, text) if isinstance(text, str) else text for field, text in texts.items()
    }


def _comparisons(fields: Mapping[str, object], reader: JudgementReader) -> list[Comparison]:
    shared = {name: fields[name] for name in SHARED if name in fields}
    comparisons = []
    for i, entry in enumerate(list_field("comparisons", fields.get("comparisons", []), empty=True)):
        field = f"comparisons[{i}]"
        if not isinstance(entry, Mapping):
            parts = list_field(field, entry)
            if len(parts) not in (2, 3):
                raise RecordError(field, entry, "[i, j], [i, j, share] or an object", reason="wrong type")
            entry = dict(zip(COMPARISON, parts, strict=False))
        for name in entry.keys() - set(COMPARISON):
            raise RecordError(f"{field}.{name}", entry[name], ", ".join(COMPARISON), reason="unknown field")
        entry = without_nulls(entry)
        sides = [entry.get(name) for name in ("chosen", "rejected")]
        comparisons.append(_comparison(f"{field}.", {**shared, **entry}, reader, sides))
    return comparisons


def _comparison(
    field: str,
    fields: Mapping[str, object],
    reader: JudgementReader,
    sides: Sequence[Any],
) -> Comparison:
    """Everything of a comparison by its sides; values are checked by the record."""
    values = column_values(field, {"preference": "number", **JUDGED}, fields)
    if "preference" in values:
        values["preference"] = reader.share_of_chosen(f"{field}preference", values["preference"])
    comparison = Comparison(*sides, **values)
    if "preference" not in values:
        _refuse_other_majority(f"{field}votes", comparison.votes)
    return comparison


def _refuse_other_majority(field: str, votes: object) -> None:
    """Refuse counts from chosen to rejected of which most are for rejected, where no share is said beside them."""
    counts = votes if isinstance(votes, tuple) else ()
    if not all(isinstance(count, int | float) and count >= 0 for count in counts) or not any(counts):
        return  # the record says what is wrong with them
    if (share := share_of_votes(counts)) < 0.5:
        allowed = (
            f"counts from chosen to rejected, of which chosen has a share of {share:g}: turn the sides or the counts round, say "
            "preference, or read neutral sides: columns: {first: ..., second: ...}"
        )
        raise RecordError(field, votes, allowed, reason="votes for the other side")


# Prompt and sides --------------------------------------------------------------------------------------------


def _sides(fields: Mapping[str, object], names: tuple[str, ...]) -> Content:
    """Prompt and answers of sides that are texts or conversations, which may hold the prompt.

    Raises:
        RecordError: If a side is missing, or they have no common prompt.
    """
    for name in names:
        if fields.get(name) is None:
            raise RecordError(name, None, "text or messages", reason="missing field")
    values = {name: fields[name] for name in names}
    if (zipped := _zipped(fields, values)) is not None:
        return _conversations(fields, zipped, None)
    given = _given_prompt(fields, values)
    if all(isinstance(value, str) for value in values.values()):
        texts = [text_field(name, value) for name, value in values.items()]
        if fields.get("turn", 1) != 1:
            raise RecordError(
                "turn", fields["turn"], "1, beside sides that are texts: they have one", reason="out of range"
            )
        if given is None:
            return _two_texts(fields, names, texts)
        dialogue = _dialogue_prompt(given)
        if dialogue is not given or all(TURN.match(text.strip()) for text in texts):
            sides = {
                name: parse_dialogue(name, text) if TURN.match(text.strip()) else _turns(name, text)
                for name, text in zip(names, texts, strict=True)
            }
            return _conversations(fields, sides, dialogue)
        return Content(given, [Response(text) for text in texts])
    if given is None:
        for name, value in values.items():
            if isinstance(value, str):
                raise RecordError(
                    name,
                    value,
                    "messages, as the other side has, or a prompt of its own",
                    reason="wrong type",
                )
    else:
        _refuse_two_readings(values)
    return _conversations(fields, {name: _turns(name, value) for name, value in values.items()}, given)


def _refuse_two_readings(sides: Mapping[str, object]) -> None:
    """Refuse several texts beside a prompt that do not begin with the user's: they may be turns, or several answers."""
    for name, value in sides.items():
        if _is_texts(value) and len(value) % 2 and len(value) > 1:
            allowed = "one answer beside a prompt: turns as messages with roles, several answers in responses"
            raise RecordError(name, value, allowed, reason="several answers")


def _dialogue_prompt(prompt: Prompt) -> Prompt:
    """The turns of a prompt that is a dialogue in plain text which ends with the name of who is to answer; any other as it is."""
    if not isinstance(prompt, str) or not TURN.match(prompt.strip()):
        return prompt
    turns = parse_dialogue("prompt", prompt)
    return turns[:-1] if turns[-1] == Message("assistant", "") and len(turns) > 1 else prompt


def _two_texts(fields: Mapping[str, object], names: tuple[str, ...], texts: Sequence[str]) -> Content:
    """Two texts without a prompt of their own."""
    if len(texts) != 2:
        raise RecordError("prompt", None, "text or messages, in prompt or messages", reason="missing field")
    if all(TURN.match(text.strip()) for text in texts):
        dialogues = {name: parse_dialogue(name, text) for name, text in zip(names, texts, strict=True)}
        return _conversations(fields, dialogues, None)
    prompt, answers, group = shared_prompt(*texts)
    return Content(prompt, [Response(text) for text in answers], group=group)


def _conversations(
    fields: Mapping[str, object], sides: Mapping[str, tuple[Message, ...]], prompt: Prompt | None
) -> Content:
    """Sides that are turns, cut to the turn that was judged."""
    if "turn" in fields:
        sides = {name: _cut(name, side, fields["turn"]) for name, side in sides.items()}
    try:
        return Content(*split_sides(tuple(sides), list(sides.values()), prompt))
    except RecordError as error:
        if error.reason != "another prompt":
            raise
        allowed = f"{error.allowed}; or columns: {{prompt: null}} where the sides alone are right"
        raise RecordError(error.field, error.value, allowed, reason=error.reason) from None


def _given_prompt(fields: Mapping[str, object], sides: Mapping[str, object]) -> Prompt | None:
    """A prompt of its own; ``messages`` that are the whole of a side are none."""
    if "prompt" in fields:
        return _prompt(fields)
    if "messages" not in fields or any(fields["messages"] == side for side in sides.values()):
        return None
    return _prompt(fields)


def _prompt(fields: Mapping[str, object]) -> Prompt:
    """An explicit prompt: text or messages, or texts that alternate, of which the last is the user's."""
    for field in ("prompt", "messages"):
        if field in fields:
            value = fields[field]
            if _is_texts(value):
                return alternating_messages(field, [*value, ""])[:-1]
            return value if isinstance(value, str) else parse_messages(field, value)
    raise RecordError("prompt", None, "text or messages, in prompt or messages", reason="missing field")


def _turns(field: str, value: object) -> tuple[Message, ...]:
    """A side as turns; a text is the assistant's answer, texts alternate and the last is the assistant's."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    if _is_texts(value):
        return alternating_messages(field, value)
    if not isinstance(value, list | tuple | Mapping):
        raise RecordError(field, value, "text or messages", reason="wrong type")
    return parse_messages(field, value)


def _is_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def _zipped(
    fields: Mapping[str, object], sides: Mapping[str, object]
) -> dict[str, tuple[Message, ...]] | None:
    """Conversations of which prompt and sides each hold one text a turn, as lists or the JSON of lists; None if they do not.

    Two sides alone, without a prompt, may be the JSON of texts that alternate.

    Raises:
        RecordError: If a turn has no text, or prompt and side are not equally long.
    """
    several = {name: _texts_of_turns(value) for name, value in sides.items()}
    if any(texts is None for texts in several.values()):
        return None
    if fields.get("prompt") is None:
        lists = [texts for texts in several.values() if texts and None not in texts]
        written = all(isinstance(value, str) for value in sides.values()) and "messages" not in fields
        if not written or len(lists) < 2 or any(len(texts) < 2 or texts[0] != lists[0][0] for texts in lists):
            return None
        return {name: alternating_messages(name, texts) for name, texts in several.items() if texts}
    asked = _texts_of_turns(fields["prompt"])
    if asked is None:
        return None
    turns: dict[str, tuple[Message, ...]] = {}
    for name, texts_of_side in several.items():
        answers = list_field(name, texts_of_side, len(asked))
        for field, given in (("prompt", asked), (name, answers)):
            for i, text in enumerate(given):
                if not isinstance(text, str):
                    raise RecordError(f"{field}[{i}]", text, "a text for each turn", reason="missing turn")
        turns[name] = tuple(
            message
            for question, answer in zip(asked, answers, strict=True)
            for message in (Message("user", str(question)), Message("assistant", str(answer)))
        )
    return turns


def _texts_of_turns(value: object) -> list[str | None] | None:
    """Texts and nulls of a list that has nothing else, or of the JSON of one; None for anything else."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return None
        try:
            value, _ = decode_json(value)
        except ValueError:
            return None
    if not isinstance(value, list):
        return None
    return value if all(text is None or isinstance(text, str) for text in value) else None


def _cut(field: str, side: tuple[Message, ...], turn: object) -> tuple[Message, ...]:
    """A conversation up to the answer of its turn that was judged, counted from 1.

    Raises:
        RecordError: If it does not begin with the question, or has fewer turns.
    """
    number = int(turn) if isinstance(turn, float) and turn.is_integer() else turn
    starts = question_places(side)
    if side[:1] and side[0].role == "assistant":
        allowed = "a whole conversation, from the first question on: of it the judged turn is read"
        raise RecordError(field, side[0].content, allowed, reason="wrong type")
    last = whole_field("turn", number, 1, max(1, len(starts)))
    return side if last >= len(starts) else side[: starts[last]]


def question_places(side: Sequence[Message]) -> list[int]:
    """Where each turn of a conversation begins: at a message of the user behind another's."""
    return [
        i
        for i, message in enumerate(side)
        if message.role == "user" and (i == 0 or side[i - 1].role != "user")
    ]
