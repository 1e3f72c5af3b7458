"""Cells: numbers that a file format means, JSON, and conversations; what only Python would read is refused."""

import json

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import conversation, json_cell, number_cell

TALK = [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "Wren."}]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("-0.5", -0.5),
        ("+3", 3),
        ("1e-3", 0.001),
        ("1.", 1),
        (".5", 0.5),
        ("007", 7),
        ("2E+4", 20000),
    ],
)
def test_numbers(text, number):
    assert number_cell("f", text) == number


@pytest.mark.parametrize(
    "text",
    ["1_000", " 1", "1 ", "\u0661\u0662", "\uff11", "nan", "NaN", "inf", "-Infinity", "1,5", "0x1f", "1e", ".", "", "True", "½", "1\n"],
)  # fmt: skip
def test_what_is_no_number(text):
    with pytest.raises(RecordError, match=r"^wrong type: field 'f' is .*allowed: a number such as 2"):
        number_cell("f", text)


def test_a_number_that_no_float_holds():
    with pytest.raises(RecordError, match=r"^not finite: field 'f' is '1e999'"):
        number_cell("f", "1e999")


def test_json():
    assert json_cell("f", '[[0, 1], {"a": null}]') == [[0, 1], {"a": None}]
    for text, reason in {
        "[1": "wrong type", "[" * 5000: "nested too deeply", "1" * 5000: "wrong type", '{"a": 1, "a": 2}': "duplicate key",
        '["\\ud800"]': "not UTF-8", "[" * 500 + "]" * 500: "nested too deeply",
    }.items():  # fmt: skip
        with pytest.raises(RecordError) as caught:
            json_cell("f", text)
        assert (caught.value.reason, caught.value.field[0]) == (reason, "f")
        assert len(str(caught.value)) < 400


def test_a_text_that_is_a_conversation():
    assert conversation("f", json.dumps(TALK)) == TALK
    assert conversation("f", f"\n {json.dumps(TALK, indent=2)} ") == TALK
    assert conversation("f", json.dumps(TALK[1])) == TALK[1:]
    with pytest.raises(RecordError, match="not UTF-8"):
        conversation("f", '[{"role": "user", "content": "\\ud83d"}]')


@pytest.mark.parametrize(
    "text",
    ["Wren.", "[1, 2]", "[]", "{}", '[{"role": "user"}]', '{"role": "admin", "rights": "content"}', "[role and content]",
     '[{"role": "user", "content": "Hi"}, 3]', f"He wrote: {json.dumps(TALK)}", '[{"name": "role", "content": "x"}'],
)  # fmt: skip
def test_other_text_stays_text(text):
    assert conversation("f", text) == text


@pytest.mark.parametrize(
    "text", [str(TALK), str(TALK[0]), json.dumps(TALK)[:-1], "[{'content': 'Hi', 'role': 'user'}\n {}]"]
)
def test_what_only_looks_like_a_conversation_is_refused(text):
    with pytest.raises(RecordError, match=r"^wrong type: field 'f' is .*messages as JSON"):
        conversation("f", text)


def test_conversations_of_speakers_and_values():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes", "weight": 1}]
    assert conversation("chosen", json.dumps(turns)) == turns
    for answer in ('{"from": "Oslo", "value": 3}', "{'from': 'Oslo', 'value': 3}"):
        assert conversation("chosen", answer) == answer, "an answer in JSON"
    with pytest.raises(RecordError, match=r"json\.dumps writes it"):
        conversation("chosen", str(turns))
