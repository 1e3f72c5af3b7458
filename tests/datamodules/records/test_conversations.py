"""Conversations in every form, and sides that are brought to one prompt and their answers."""

import json

import pytest

from pluralign.datamodules import Message, RecordError, Response
from pluralign.datamodules.records import (
    alternating_messages,
    answer,
    parse_messages,
    plain_turns,
    split_sides,
)

U, U2 = Message("user", "Hi"), Message("user", "More?")
A, B, C = (Message("assistant", text) for text in ("Hello", "Go away", "Yes"))
SYSTEM = Message("system", "Be kind.")
SIDES = ("chosen", "rejected")


def test_messages_in_their_forms():
    said = {"role": "user", "content": "Hi"}
    parts = [{"type": "text", "text": "H"}, "i", {"text": "", "image": None}]
    forms = [
        said,
        [said],
        [{"from": "human", "value": "Hi"}],
        [{"role": "User", "content": parts}],
        {"role": "prompter", "content": "Hi"},
    ]
    assert {parse_messages("prompt", form) for form in forms} == {(U,)}
    assert [m.role for m in parse_messages("p", [{"role": r, "content": "x"} for r in ("model", "tool", "developer")])] == [
        "assistant", "tool", "developer",
    ]  # fmt: skip


def test_other_keys_that_hold_something_are_kept():
    calls = [{"function": {"name": "look"}}]
    turn = {
        "role": "assistant",
        "content": None,
        "tool_calls": calls,
        "name": None,
        "images": [],
        "reasoning": "",
    }
    (message,) = parse_messages("chosen", turn)
    assert (message.content, message.others) == ("", {"tool_calls": calls})
    assert json.dumps(calls) in plain_turns([message])


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ("Hi", "p", "wrong type"),
        (3, "p", "wrong type"),
        (["Hi"], "p[0]", "wrong type"),
        ([{"content": "Hi"}], "p[0].role", "missing field"),
        ([{"role": 3, "content": "Hi"}], "p[0].role", "wrong type"),
        ([{"role": "narrator", "content": "Hi"}], "p[0].role", "out of range"),
        ([{"role": "user"}], "p[0].content", "missing field"),
        ([{"role": "user", "content": {}}], "p[0].content", "wrong type"),
        ([{"role": "user", "content": "\ud83d"}], "p[0].content", "not UTF-8"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "p[0].content[0].image", "not text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "image": "y"}]}],
            "p[0].content[0].image",
            "not text",
        ),
        ([{"from": "human", "value": 3}], "p[0].value", "wrong type"),
    ],
)
def test_what_is_no_conversation(value, field, reason):
    with pytest.raises(RecordError) as caught:
        parse_messages("p", value)
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_texts_that_alternate_count_from_the_end():
    assert alternating_messages("chosen", ["Hi", " Hello "]) == (U, A)
    assert [turn.role for turn in alternating_messages("c", ["x", "y", "z"])] == [
        "assistant",
        "user",
        "assistant",
    ]
    for texts in ([], ["Hi", None]):
        with pytest.raises(RecordError):
            alternating_messages("c", texts)


@pytest.mark.parametrize(
    ("sides", "prompt", "expected"),
    [
        (((U, A), (U, B)), None, (U,)),
        (((A,), (B,)), (U,), (U,)),
        (((U, A), (B,)), (U,), (U,)),
        (((A,), (B,)), "Hi", "Hi"),
        (((U, A), (U, B)), "Hi", "Hi"),
        (((SYSTEM, U, A), (SYSTEM, U, B)), "Hi", (SYSTEM, U)),
        (((U, A), (U, B)), " Hi\n", (U,)),
    ],
)
def test_sides_with_and_without_their_prompt(sides, prompt, expected):
    assert split_sides(SIDES, sides, prompt) == (expected, [Response("Hello"), Response("Go away")])


def test_turns_that_all_sides_share_are_prompt_wherever_they_stand():
    whole = split_sides(SIDES, [(U, A, U2, B), (U, A, U2, C)])
    assert whole == ((U, A, U2), [Response("Go away"), Response("Yes")])
    assert split_sides(SIDES, [(A, U2, B), (A, U2, C)], (U,)) == whole
    early = split_sides(SIDES, [(U, A, U2, C), (U, B)])
    assert early[0] == (U,) and early[1][0] == Response(
        "Hello\n\nHuman: More?\n\nAssistant: Yes", messages=(A, U2, C)
    )
    assert split_sides(("response",), [(U, A, U2, C)]) == ((U, A, U2), [Response("Yes")])


@pytest.mark.parametrize(
    ("sides", "prompt", "reason"),
    [
        (((A,), (B,)), None, "no common prompt"),
        (((U, A), (U2, B)), None, "no common prompt"),
        (((U, A), (U, B)), "Something else", "another prompt"),
        (((U2, A), (B,)), (U,), "another prompt"),
        (((U, A), (U,)), None, "missing answer"),
        (((U, A, U2), (U, B)), None, "wrong type"),
        (((), (U, B)), None, "no common prompt"),
    ],
)
def test_sides_that_do_not_agree(sides, prompt, reason):
    with pytest.raises(RecordError) as caught:
        split_sides(SIDES, sides, prompt)
    assert caught.value.reason == reason


def test_an_answer_with_other_keys_keeps_its_message():
    thought = Message("assistant", "4", {"reasoning_content": "2+2"})
    assert answer("chosen", [thought]) == Response('4\n{"reasoning_content": "2+2"}', messages=(thought,))
    assert answer("chosen", [A]) == Response("Hello")
