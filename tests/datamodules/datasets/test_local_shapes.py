"""Prompts and sides in the forms that data have, columns inside others, and prompts that two texts share."""

import csv
import json

import pytest

from pluralign.datamodules import Comparison, LoaderConfig, LocalDataModule, Message, RecordError, Response
from pluralign.datamodules.datasets.local.fields import value_at
from pluralign.datamodules.datasets.local.texts import shared_prompt


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def module(folder, rows, name="rows.jsonl", **settings):
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    return LocalDataModule(test=str(path), **settings)


def record(folder, row, **settings):
    data = module(folder, [row], **settings)
    given = next(data.load("test"))
    if isinstance(given, RecordError):
        raise given
    return data.to_example(given)


def texts(found):
    return [response.text for response in found.responses]


ASKED = (Message("user", "Where do owls sleep?"),)
Q, A, B = "Where do owls sleep?", "In trees.", "At school."
PARTS = [{"type": "text", "text": "Where do "}, {"type": "text", "text": "owls sleep?", "image": None}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": user(Q), "chosen": bot(A), "rejected": bot(B)},
        {"prompt": user(Q), "chosen": A, "rejected": bot(B)},
        {"prompt": [user(Q)], "chosen": [user(Q), bot(A)], "rejected": B},
        {"messages": [user(Q), bot(A)], "chosen": [user(Q), bot(A)], "rejected": [user(Q), bot(B)]},
        {"chosen": [user(PARTS), bot([{"type": "text", "text": A}])], "rejected": [user(PARTS), bot(B)]},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"chosen": json.dumps([Q, A]), "rejected": json.dumps([Q, B])},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"prompt": json.dumps([Q]), "chosen": json.dumps([A]), "rejected": json.dumps([B])},
        {
            "chosen": [{"from": "Human", "value": Q}, {"from": "gpt", "value": A}],
            "rejected": [user(Q), bot(B)],
        },
        {"prompt": [user(Q)], "responses": [bot(A), [bot(B)]], "comparisons": [[0, 1]]},
        {"responses": [[user(Q), bot(A)], {"text": [user(Q), bot(B)]}], "comparisons": [[0, 1]]},
    ],
)
def test_one_question_in_many_forms(tmp_path, row):
    found = record(tmp_path, row)
    assert (found.prompt, texts(found), found.comparisons) == (ASKED, [A, B], (Comparison(0, 1),))
    if "chosen" in row:
        turned = {"first": row["rejected"], "second": row["chosen"], "winner": "b"}
        neutral = record(
            tmp_path, {**{k: v for k, v in row.items() if k in ("prompt", "messages")}, **turned}
        )
        assert (neutral.prompt, texts(neutral), neutral.comparisons) == (ASKED, [B, A], (Comparison(1, 0),))


def test_a_prompt_that_is_text_stays_text_beside_answers_alone(tmp_path):
    found = record(tmp_path, {"prompt": Q, "chosen": [bot(A)], "rejected": bot(B)})
    assert (found.prompt, texts(found)) == (Q, [A, B])
    whole = {"chosen": [user(Q), bot(A)], "rejected": [user(Q), bot(B)], "messages": [user(Q), bot(A)]}
    found = record(tmp_path, {"prompt": Q, **whole, "score_chosen": 8.5, "score_rejected": 3.0})
    assert (found.prompt, texts(found)) == (Q, [A, B])


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([user("Another question?"), bot(A)], "no common prompt"),
        ([user(Q), bot(A), user("More?")], "wrong type"),
        ([user(Q)], "missing answer"),
        ([user([{"type": "image", "image": "x.png"}]), bot(A)], "not text"),
    ],
)
def test_sides_that_cannot_be_brought_together(tmp_path, chosen, reason):
    with pytest.raises(RecordError) as caught:
        record(tmp_path, {"prompt": Q, "chosen": chosen, "rejected": bot(B)})
    assert caught.value.reason == reason
    with pytest.raises(RecordError, match=r"another prompt.*columns: \{prompt: null\}"):
        record(
            tmp_path, {"prompt": "Something else", "chosen": [user(Q), bot(A)], "rejected": [user(Q), bot(B)]}
        )


def test_answers_of_several_turns_are_the_same_with_and_without_a_prompt_column(tmp_path):
    long = [bot(A), user("All of them?"), bot("Some use barns.")]
    apart = record(tmp_path, {"prompt": [user(Q)], "chosen": long, "rejected": [bot(B)]})
    whole = record(tmp_path, {"chosen": [user(Q), *long], "rejected": [user(Q), bot(B)]})
    assert apart.prompt == whole.prompt == ASKED and apart.responses == whole.responses
    assert apart.responses[0].text == "In trees.\n\nHuman: All of them?\n\nAssistant: Some use barns."
    assert [turn.role for turn in apart.responses[0].messages] == ["assistant", "user", "assistant"]
    assert apart.responses[1] == Response(B)
    same = record(tmp_path, {"prompt": [user(Q)], "chosen": long, "rejected": [*long[:2], bot("All do.")]})
    assert len(same.prompt) == 3 and texts(same) == ["Some use barns.", "All do."]


def test_other_keys_of_messages_are_kept(tmp_path):
    found = record(
        tmp_path, {"prompt": Q, "chosen": bot("", tool_calls=[{"name": "look"}]), "rejected": bot(B)}
    )
    assert found.responses[0].messages[0].others == {"tool_calls": [{"name": "look"}]}


def test_texts_of_turns_zip_and_what_is_missing_is_named(tmp_path):
    row = {
        "prompt": json.dumps([Q, "And bats?"]),
        "first": json.dumps([A, "In caves."]),
        "second": json.dumps([B, "No."]),
    }
    found = record(tmp_path, {**row, "winner": "model_b"})
    assert found.prompt == ASKED and found.comparisons == (Comparison(1, 0),)
    assert texts(found)[0] == "In trees.\n\nHuman: And bats?\n\nAssistant: In caves."
    for second, reason in (
        ("[null, null]", "missing turn"),
        ('["At school."]', "wrong length"),
        ("[]", "wrong length"),
    ):
        with pytest.raises(RecordError) as caught:
            record(tmp_path, {**row, "second": second, "winner": "a"})
        assert caught.value.reason == reason and caught.value.field.startswith("second")
    plain = record(tmp_path, {"prompt": "Write a list.", "chosen": '["a"]', "rejected": '["b"]'})
    assert texts(plain) == ['["a"]', '["b"]'], "an answer may be JSON"


def test_the_judged_turn(tmp_path):
    sides = {
        "first": [user(Q), bot(A), user("And bats?"), bot("In caves.")],
        "second": [user(Q), bot(B), user("And bats?"), bot("No idea.")],
        "winner": "a",
    }
    with pytest.raises(
        RecordError, match=r"unread turn: field 'turn' is 1;.*columns: \{turn: turn\}.*\{turn: null\}"
    ):
        record(tmp_path, {**sides, "turn": 1})
    one = record(tmp_path, {**sides, "turn": 1}, columns={"turn": "turn"})
    assert (one.prompt, texts(one)) == (ASKED, [A, B])
    two = record(tmp_path, {**sides, "turn": 2}, columns={"turn": "turn"})
    assert texts(two)[1] == "At school.\n\nHuman: And bats?\n\nAssistant: No idea."
    assert two == record(tmp_path, {**sides, "turn": 1, "id": two.id}, columns={"turn": None})
    with pytest.raises(
        RecordError, match=r"out of range: field 'turn' is 3; allowed: a whole number in \[1, 2\]"
    ):
        record(tmp_path, {**sides, "turn": 3}, columns={"turn": "turn"})


# Columns inside others ------------------------------------------------------------------------------------


def test_names_with_dots():
    row = {"a.b": 1, "a": {"b": 2, "c.d": {"e": 3}, "list": [{"x": 4}, 5]}, "n": None}
    assert [value_at(row, name) for name in ("a.b", "a.c.d.e", "a.list.0.x", "a.list.1")] == [1, 3, 4, 5]
    assert [value_at(row, name) for name in ("a.list.2", "a.list.x", "a.z", "n.x", "n", "a.list.0.x.y")] == [
        None
    ] * 6


def test_columns_reach_into_objects_and_lists(tmp_path):
    row = {
        "question": {"full text": Q, "id": 12},
        "answers": [{"text": A, "by": "m1"}, {"text": B, "by": "m2"}],
        "judge.name": "ann",
        "verdict": {"winner": "a"},
    }
    columns = {
        "prompt": "question.full text",
        "first": "answers.0.text",
        "second": "answers.1.text",
        "winner": "verdict.winner",
        "user": "judge.name",
        "id": "question.id",
    }
    found = record(tmp_path, row, columns=columns)
    assert (found.id, found.prompt, texts(found)) == ("12", Q, [A, B])
    assert found.comparisons == (Comparison(0, 1, user="ann"),)
    data = module(tmp_path, [row], columns=columns)
    data.setup("test")
    assert data.reports["test"].unread_columns == []
    with pytest.raises(ValueError, match=r"columns names question\.text, which no row"):
        list(module(tmp_path, [row], columns={**columns, "prompt": "question.text"}).load("test"))


def test_null_in_an_object_is_like_a_missing_field(tmp_path):
    row = {
        "prompt": Q,
        "responses": [{"text": A, "score": None}, {"text": B, "user": None}],
        "scores": [3, 1],
        "comparisons": [{"chosen": 0, "rejected": 1, "user": None, "preference": None, "domain": None}],
        "user": "ann",
        "domain": "owls",
    }
    found = record(tmp_path, row)
    assert [response.score for response in found.responses] == [3, 1]
    assert found.comparisons == (Comparison(0, 1, user="ann", domain="owls"),)


def test_whole_numbers_of_a_csv_column_with_gaps(tmp_path):
    cells = ["3.0", "3", "007", "1.10", "1e3", "007.0", "0.0", "3.00", "-3.0"]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["prompt", "chosen", "rejected", "user"], *(["q", "a", "b", cell] for cell in cells)]
        )
    data = LocalDataModule(test=str(path))
    users = [data.to_example(row).comparisons[0].user for row in data.load("test")]
    assert users == ["3", "3", "007", "1.10", "1e3", "007.0", "0", "3.00", "-3.0"]
    assert (
        record(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b", "user": "3.0"}).comparisons[0].user
        == "3.0"
    )


# Prompts that two texts share -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "prompt", "answers"),
    [
        ("Wie spät ist es? Es ist drei.", "Wie spät ist es? Es ist vier.", "Wie spät ist es?", ("Es ist drei.", "Es ist vier.")),
        ("Say hi. It is hi", "Say hi. It is bye", "Say hi.", ("It is hi", "It is bye")),
        ("質問\uff1a色は\uff1f「青です」", "質問\uff1a色は\uff1f「赤です」", "質問\uff1a色は\uff1f", ("「青です」", "「赤です」")),
        ("वह कहाँ है। वह यहाँ है", "वह कहाँ है। वह वहाँ है", "वह कहाँ है।", ("वह यहाँ है", "वह वहाँ है")),
        ("ما هذا؟ هذا كتاب", "ما هذا؟ هذا قلم", "ما هذا؟", ("هذا كتاب", "هذا قلم")),
        ("### Task:\nAdd\n### Reply:\n4", "### Task:\nAdd\n### Reply:\n5", "### Task:\nAdd\n### Reply:", ("4", "5")),
        ("See e.g. the first", "See e.g. the second", "", ("See e.g. the first", "See e.g. the second")),
        ("1. one", "1. two", "", ("1. one", "1. two")),
        ("He said \"Stop!\" Then a", "He said \"Stop!\" Then b", "He said \"Stop!\"", ("Then a", "Then b")),
        ("Why?\n    x = 1", "Why?\n    y = 1", "Why?", ("    x = 1", "    y = 1")),
        ("Stop. ", "Stop. Now", "", ("Stop. ", "Stop. Now")),
        ("The sum is 4", "The sum is 5", "", ("The sum is 4", "The sum is 5")),
    ],
)  # fmt: skip
def test_the_prompt_ends_where_a_sentence_does(first, second, prompt, answers):
    found = shared_prompt(first, second)
    assert (found.prompt, found.answers) == (prompt, answers)
    assert shared_prompt(second, first).answers == answers[::-1]


def test_questions_without_an_end_stay_on_one_side_of_the_split(tmp_path):
    """In Thai, whose sentences have no mark at their end."""
    rows = [
        {"chosen": f"ผู้ใช้: ข้อ {i} ทำอย่างไร ผู้ช่วย: {a}{j}", "rejected": f"ผู้ใช้: ข้อ {i} ทำอย่างไร ผู้ช่วย: {b}{j}"}
        for i in range(30)
        for j, (a, b) in enumerate((("คำตอบ", "ไม่ทราบ"), ("คำว่า", "คำนี้"), ("ลอง", "ขอ")))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = LocalDataModule(train=str(path), validation_share=0.3, loader=LoaderConfig(batch_size=4))
    sides = {"train": set(), "validation": set()}
    for row in data.load("train"):
        found = data.to_example(row)
        assert found.prompt == "" and found.group is not None
        sides[data.route(found, "train")].add(row.fields["chosen"].split()[2])
    assert len(sides["train"]) + len(sides["validation"]) == 30 and sides["validation"]


def test_a_heading_that_all_rows_have_makes_no_group_of_them():
    heading = (
        "You are a careful assistant. Answer in one word without any further explanation the question what is"
    )
    groups = {
        shared_prompt(
            f"{heading[:28]} Item {i} {heading[28:]} a", f"{heading[:28]} Item {i} {heading[28:]} b"
        ).group
        for i in range(20)
    }
    assert len(groups) == 20
    one = {
        shared_prompt(f"Ask {word} and go on a", f"Ask {word} and go on b").group for word in ("x", "x", "y")
    }
    assert len(one) == 2


@pytest.mark.parametrize("written", ["Human: {}\n\nAssistant:", "\n\nHuman: {}\n\nAssistant: ", "{}"])
def test_a_prompt_beside_dialogues_in_plain_text_is_not_read_twice(tmp_path, written):
    whole = "\n\nHuman: Name a bird.\n\nAssistant: {}"
    row = {
        "prompt": written.format("Name a bird."),
        "chosen": whole.format("Wren."),
        "rejected": whole.format("Oak."),
    }
    given = record(tmp_path, row)
    assert [response.text for response in given.responses] == ["Wren.", "Oak."]
    assert given.split_key == "Name a bird."
    with pytest.raises(RecordError, match="another prompt"):
        record(tmp_path, {**row, "prompt": written.format("Name a tree.")})


def test_a_prompt_that_ends_with_the_name_of_who_is_to_answer(tmp_path):
    row = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A bird!\n\nAssistant:",
        "first": " Wren.",
        "second": " Oak.",
        "winner": "b",
    }
    given = record(tmp_path, row)
    assert given.prompt == (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "A bird!"))
    assert [response.text.strip() for response in given.responses] == ["Wren.", "Oak."]
    given = record(tmp_path, {**row, "prompt": "Human: is a word.", "first": "Yes.", "second": "No."})
    assert given.prompt == "Human: is a word."


def test_a_question_as_text_and_as_a_message_is_on_one_side_of_a_split(tmp_path):
    sides = {"chosen": "Wren.", "rejected": "Oak."}
    asked = [
        "Name a bird. ",
        {"role": "user", "content": "Name a bird."},
        [{"role": "user", "content": " Name a bird."}],
    ]
    keys = {record(tmp_path, {"prompt": prompt, **sides}).split_key for prompt in asked}
    assert keys == {"Name a bird."}
