"""Every line of the table in record.py, and that an error says what is needed to mend the row."""

import json
import math
import pickle

import pytest
import torch

from pluralign.datamodules import (
    Comparison,
    LocalDataModule,
    Message,
    PreferenceRecord,
    RecordError,
    Response,
)
from pluralign.datamodules.records import listed, parse_messages


def record(**changes):
    fields = {"id": "r1", "prompt": "Which way?", "responses": (Response("Left."), Response("Right."))}
    return PreferenceRecord(**{**fields, **changes})


def compare(*args, **kwargs):
    return record(comparisons=(Comparison(*args, **kwargs),))


def test_a_valid_record_keeps_its_fields():
    full = compare(
        1, 0, 0.75, user="u", domain="d", margin=-1.0, weight=0.0, strength=-2.0, votes=(3.0, 0.0, 1.0)
    )
    assert full.comparisons[0].preference == 0.75
    assert full.comparisons[0].votes == (3.0, 0.0, 1.0)
    assert full.split_key == "Which way?"


def test_a_tie_is_a_half():
    assert compare(0, 1, 0.5).comparisons[0].preference == 0.5


def test_identical_responses_are_kept():
    assert len(record(responses=(Response("Same."), Response("Same."))).responses) == 2


def test_an_empty_prompt_is_allowed_and_split_by_the_responses():
    first = record(prompt=" ")
    second = record(prompt="", responses=(Response("Up."), Response("Down.")))
    turned = record(prompt="", responses=(Response("Right."), Response("Left.")))
    assert first.split_key == turned.split_key != second.split_key


def test_no_judgement_is_allowed():
    assert record().comparisons == ()


def test_split_key_is_the_group_then_the_prompt():
    messages = (Message("system", "Be brief."), Message("user", " Hi "))
    assert record(prompt=messages).split_key == "system: Be brief.\nuser: Hi"
    assert record(prompt=messages, group="g").split_key == "g"
    assert record(prompt=" Hi\n").split_key == "Hi"


CASES = [
    ("empty response", "responses[1].text", lambda: record(responses=(Response("a"), Response("")))),
    ("empty response", "responses[0].text", lambda: record(responses=(Response(" \n\t"),))),
    ("missing field", "responses", lambda: record(responses=())),
    ("missing field", "id", lambda: record(id="")),
    ("wrong type", "id", lambda: record(id=7)),
    ("wrong type", "prompt", lambda: record(prompt=None)),
    ("wrong type", "prompt", lambda: record(prompt=())),
    ("wrong type", "prompt[0]", lambda: record(prompt=("Hi",))),
    ("wrong type", "prompt[0].content", lambda: record(prompt=(Message("user", 3),))),
    ("out of range", "prompt[0].role", lambda: record(prompt=(Message("human", "Hi"),))),
    (
        "out of range",
        "prompt[1].role",
        lambda: record(prompt=(Message("user", "a"), Message("assistant", "b"))),
    ),
    ("wrong type", "group", lambda: record(group=3)),
    ("wrong type", "responses[0]", lambda: record(responses=("Left.",))),
    ("wrong type", "responses[0].text", lambda: record(responses=(Response(None),))),
    ("wrong type", "responses[0].score", lambda: record(responses=(Response("a", "5"),))),
    ("wrong type", "responses[0].score", lambda: record(responses=(Response("a", True),))),
    ("not finite", "responses[0].score", lambda: record(responses=(Response("a", math.nan),))),
    ("not finite", "responses[0].score", lambda: record(responses=(Response("a", -math.inf),))),
    ("out of range", "responses[0].votes[1]", lambda: record(responses=(Response("a", None, (1, -1)),))),
    ("wrong type", "responses[0].votes", lambda: record(responses=(Response("a", None, ()),))),
    ("wrong type", "responses[0].votes", lambda: record(responses=(Response("a", None, "12"),))),
    (
        "out of range",
        "responses[*].votes",
        lambda: record(responses=(Response("a", votes=(1,)), Response("b", votes=(1, 2)))),
    ),
    ("not UTF-8", "responses[0].text", lambda: record(responses=(Response("a\ud800"),))),
    ("not UTF-8", "prompt", lambda: record(prompt="\udcff")),
    ("wrong type", "comparisons[0]", lambda: record(comparisons=((0, 1),))),
    ("wrong type", "comparisons[0].chosen", lambda: compare("0", 1)),
    ("wrong type", "comparisons[0].rejected", lambda: compare(0, True)),
    ("out of range", "comparisons[0].chosen", lambda: compare(2, 1)),
    ("out of range", "comparisons[0].rejected", lambda: compare(0, -1)),
    ("out of range", "comparisons[0].rejected", lambda: compare(1, 1)),
    ("out of range", "comparisons[0].preference", lambda: compare(0, 1, 1.01)),
    ("not finite", "comparisons[0].preference", lambda: compare(0, 1, math.nan)),
    ("wrong type", "comparisons[0].preference", lambda: compare(0, 1, None)),
    ("wrong type", "comparisons[0].user", lambda: compare(0, 1, user=4)),
    ("wrong type", "comparisons[0].domain", lambda: compare(0, 1, domain=["d"])),
    ("not finite", "comparisons[0].margin", lambda: compare(0, 1, margin=math.inf)),
    ("out of range", "comparisons[0].weight", lambda: compare(0, 1, weight=-0.1)),
    ("wrong type", "comparisons[0].strength", lambda: compare(0, 1, strength="strong")),
    ("not finite", "comparisons[0].votes[0]", lambda: compare(0, 1, votes=(math.nan, 1))),
    ("not finite", "comparisons[0].weight", lambda: compare(0, 1, weight=3.41e38)),
    ("not finite", "comparisons[0].margin", lambda: compare(0, 1, margin=-1e39)),
    ("not finite", "comparisons[0].strength", lambda: compare(0, 1, strength=10**39)),
    ("not finite", "comparisons[0].votes[1]", lambda: compare(0, 1, votes=(1, 1e60))),
    ("not finite", "comparisons[0].votes", lambda: compare(0, 1, votes=(3e38, 1e38))),
    ("not finite", "responses[0].score", lambda: record(responses=(Response("a", 1e300),))),
    ("not finite", "record_weight", lambda: record(weight=2**129)),
    ("missing field", "id", lambda: record(id="\u2003\u200b")),
    ("missing field", "source", lambda: record(source="\ufeff")),
    ("missing field", "aspect", lambda: record(aspect="")),
    ("missing field", "comparisons[0].user", lambda: compare(0, 1, user="\u00a0\t")),
    ("missing field", "comparisons[0].domain", lambda: compare(0, 1, domain="\u2800\u3164")),
]


@pytest.mark.parametrize(("reason", "field", "make"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_each_fault_has_its_reason_and_names_its_field(reason, field, make):
    with pytest.raises(RecordError) as caught:
        make()
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert f"allowed: {caught.value.allowed}" in str(caught.value)


def test_an_error_names_place_field_value_and_what_is_allowed():
    error = RecordError("comparisons[0].preference", 3, "a number in [0, 1]", reason="out of range")
    placed = error.at("votes.jsonl", 12)
    text = "votes.jsonl:12: out of range: field 'comparisons[0].preference' is 3; allowed: a number in [0, 1]"
    assert str(placed) == text
    assert isinstance(placed, ValueError)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**100, 3.4028234663852886e38, 2**24 + 1, 1e-46])
def test_whatever_float32_holds_is_read(tmp_path, value):
    assert compare(0, 1, strength=value).comparisons[0].strength == value
    data = module(
        tmp_path, {**GOOD, "strength": value, "margin": 2**25 + 1, "weight": 2**31, "votes": [2**40 + 1, 0]}
    )
    data.setup("test")
    (row,) = data.table("test")[[0]]
    assert row.columns["strength"].tolist() == [float(torch.tensor(float(value)))]
    assert row.columns["comparison_votes"].tolist() == [2.0**40, 0]


@pytest.mark.parametrize("name", ["ann", "\u200bann", "7", ".", "\u0661", "\U0001f600", "e\u0301", "\u4e2d"])
def test_names_that_show_something(name):
    assert compare(0, 1, user=name, domain=name).comparisons[0].user == name


def nested(levels, made=()):
    for _ in range(levels):
        made = [made]
    return made


HUGE = {
    "text": "x" * 5000,
    "bytes": b"x" * 5000,
    "list": list(range(9999)),
    "object": {str(i): i for i in range(999)},
    "deep": nested(100_000),
    "whole number": 10**5000,
    "half": "\ud800",
}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE.keys())
def test_a_value_of_any_size_and_depth_is_shortened(value):
    error = RecordError("text", value, "less", reason="wrong type").at("f", 1)
    assert len(str(error)) < 250 and str(error).encode()
    assert len(str(RecordError("x" * 999, 1, "less", reason="wrong type"))) < 250


def test_names_in_messages_are_bounded_and_printable():
    assert listed(["a", "b c"]) == "a, b c"
    assert listed(["", "a\nb", "\ud800", "x" * 60]) == f"'', 'a\\nb', '\\ud800', {'x' * 60!r}"
    assert listed([str(i) for i in range(1030)], 3) == "0, 1, 2 and 1,027 more"


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        ("Hi", "wrong type", "p"),
        (3, "wrong type", "p"),
        (["Hi"], "wrong type", "p[0]"),
        ([{"role": "user"}], "missing field", "p[0].content"),
        ([{"content": "Hi"}], "missing field", "p[0].role"),
        ([{"role": "user", "content": 5}], "wrong type", "p[0].content"),
        ([{"role": "narrator", "content": "Hi"}], "out of range", "p[0].role"),
    ],
)
def test_messages_that_are_none(value, reason, field):
    with pytest.raises(RecordError) as caught:
        parse_messages("p", value)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_messages():
    assert parse_messages("p", [{"role": "user", "content": "Hi", "name": "Bo"}]) == (
        Message("user", "Hi", {"name": "Bo"}),
    )


# What happens to rows when a split is read --------------------------------------------------------------


GOOD = {"prompt": "Which way?", "chosen": "Left.", "rejected": "Right."}


def module(tmp_path, *lines, **kwargs):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )
    return LocalDataModule(test=str(path), **kwargs)


BAD = [
    {**GOOD, "id": "a"},
    {**GOOD, "id": "a", "prompt": "Which day?"},
    {**GOOD, "chosen": ""},
    {**GOOD, "chosen": "  "},
    {**GOOD, "weight": math.nan},
    {**GOOD, "preference": "high"},
    {"prompt": "Which way?", "chosen": "Left."},
    b'{"prompt": "caf\xe9", "chosen": "Left.", "rejected": "Right."}',
    b'{"prompt": ',
    b"[1, 2]",
]


def test_skipped_rows_are_counted_by_reason(tmp_path):
    data = module(tmp_path, *BAD, on_invalid="skip")
    data.setup("test")
    report = data.reports["test"]
    assert (report.rows, report.records, report.comparisons) == (10, 1, 1)
    assert report.invalid == {
        "duplicate id": 1,
        "empty response": 2,
        "not finite": 1,
        "wrong type": 2,
        "missing field": 1,
        "not UTF-8": 1,
        "not JSON": 1,
    }
    assert "rows.jsonl:3: empty response: field 'responses[0].text' is ''" in "\n".join(report.first_errors)


@pytest.mark.parametrize("number", range(1, len(BAD)))
def test_an_error_stops_at_the_row(tmp_path, number):
    data = module(tmp_path, BAD[0], BAD[number])
    with pytest.raises(RecordError, match=r"rows\.jsonl:2: "):
        data.setup("test")


def test_ties_stay_and_identical_responses_are_dropped_and_counted(tmp_path):
    same = {"prompt": "Which day?", "chosen": "Today.", "rejected": "Today."}
    data = module(tmp_path, {**GOOD, "preference": 0.5}, same)
    data.setup("test")
    report = data.reports["test"]
    assert (report.rows, report.records, report.comparisons, report.invalid) == (2, 1, 1, {})
    assert report.dropped == {"comparison of identical responses": 1, "record without a judgement": 1}
    assert data.table("test")[[0]][0].preference.tolist() == [0.5]


def test_a_row_without_judgement_is_dropped_from_a_judged_split_and_kept_to_predict(tmp_path):
    row = {"prompt": "Which way?", "responses": ["Left.", "Right."]}
    data = module(tmp_path, GOOD, row)
    data.setup("test")
    assert data.reports["test"].dropped == {"record without a judgement": 1}
    predict = LocalDataModule(predict=str(tmp_path / "rows.jsonl"))
    predict.setup("predict")
    assert predict.reports["predict"].records == 2


def test_a_rating_is_a_judgement(tmp_path):
    data = module(tmp_path, {"prompt": "Which way?", "response": "Left.", "score": 2})
    data.setup("test")
    assert data.table("test")[[0]][0].columns["score"].tolist() == [2.0]


def test_an_empty_prompt_is_tokenised(tmp_path):
    data = module(tmp_path, {**GOOD, "prompt": ""})
    with pytest.warns(UserWarning, match="none of its 1 records has a prompt"):
        data.setup("test")
    assert data.reports["test"].records == 1


def test_an_error_comes_back_from_another_process_whole():
    error = RecordError("comparisons[0].preference", 3, "a number in [0, 1]", reason="out of range").at(
        "f", 4
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.field, again.value, again.reason, again.file, again.line) == (
        "comparisons[0].preference", 3, "out of range", "f", 4
    )  # fmt: skip
