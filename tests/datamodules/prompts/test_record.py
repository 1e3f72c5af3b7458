"""A prompt, the sentence behind it, and the number of an item."""

import pytest

from pluralign.datamodules.prompts import PromptRecord
from pluralign.datamodules.prompts.record import item_key, with_sentence
from pluralign.datamodules.records import Message, RecordError

SYSTEM, ASK = Message("system", "You know fruit."), Message("user", "Name one.")


def test_the_sentence_stands_behind_the_text_of_the_last_user_turn():
    assert with_sentence("Name a fruit.", "Be kind.") == "Name a fruit. Be kind."
    assert with_sentence("Name a fruit:\n", "Be kind.") == "Name a fruit:\nBe kind."
    assert with_sentence("Name a fruit.", "") == "Name a fruit."
    tool = Message("tool", "42")
    turns = (SYSTEM, ASK, Message("assistant", "Apple."), ASK, tool)
    said = with_sentence(turns, "Be kind.")
    assert said == (*turns[:3], Message("user", "Name one. Be kind."), tool)
    assert with_sentence((SYSTEM,), "") == (SYSTEM,)
    with pytest.raises(RecordError, match="no turn of the user"):
        with_sentence((SYSTEM,), "Be kind.")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "blank prompt"),
        (" \n", "blank prompt"),
        ((Message("user", " "),), "blank prompt"),
        ((ASK, Message("assistant", "Apple.")), "out of range"),
        ((), "wrong type"),
        (3, "wrong type"),
    ],
)
def test_prompts_that_are_none(prompt, reason):
    with pytest.raises(RecordError) as caught:
        PromptRecord("q", prompt)
    assert caught.value.reason == reason


def test_a_name_shows_something():
    with pytest.raises(RecordError, match="missing field: field 'id'"):
        PromptRecord(" ", "Name a fruit.")


def test_one_message_is_the_same_question_as_its_text():
    assert PromptRecord("a", "Name one.").split_key == PromptRecord("b", (ASK,)).split_key
    assert PromptRecord("a", (SYSTEM, ASK)).given == [
        {"role": "system", "content": "You know fruit."},
        {"role": "user", "content": "Name one."},
    ]


def test_the_number_of_an_item_changes_with_all_that_it_is():
    first = ("grammar", "train", "q1", "Name one.", "Be kind.", {"user": "ann"}, [[5, 6], [5]])
    others = (*["other"] * 5, {"user": "bob"}, [[5, 6], [6]])
    keys = {item_key(*first)}
    for place, other in enumerate(others):
        keys.add(item_key(*first[:place], other, *first[place + 1 :]))
    assert len(keys) == 8 and all(-(2**63) <= key < 2**63 for key in keys)
    assert item_key(*first) == 1582817926411485286
