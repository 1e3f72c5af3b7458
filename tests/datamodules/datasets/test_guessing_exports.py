"""Exports of annotation tools and of tables, as people have them: what they say of a pair, and files that hold no rows."""

import pytest

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.datasets import GivenSettings, guess_table
from pluralign.datamodules.records import SourceRow

STONES = ("flint", "slate", "chalk", "basalt", "marble")
SAID = (("A", "B"), ("A", "A"), ("B", "tie"))


def pair(i, one="response_a", other="response_b"):
    stone = STONES[i % 5]
    return {
        "prompt": f"What can I build of {i} cartloads of {stone} by the spring?",
        one: f"Of {i} cartloads of {stone} a wall of {i + 2} ells is built.",
        other: f"A {stone} is no wall, and {i} are none.",
    }


def records(rows, settings):
    data = LocalDataModule(train="stones.jsonl", **settings)
    return [
        data.to_example(SourceRow("stones.jsonl", i, row | {"id": f"s{i}"})) for i, row in enumerate(rows, 1)
    ]


def wins(record):
    """Share of the first side, and the user, of every comparison."""
    return [(c.preference if c.chosen == 0 else 1 - c.preference, c.user) for c in record.comparisons]


def test_objects_of_people_whose_value_is_the_code():
    """A question of Argilla: each answer with its user, under the question's name or in an object of all questions."""
    for nested in (False, True):
        rows = []
        for i in range(12):
            said = [{"user_id": f"u{n}", "value": code} for n, code in enumerate(SAID[i % 3])]
            row = (
                {"fields": pair(i), "responses": {"preference": said}}
                if nested
                else pair(i) | {"preference": said}
            )
            rows.append(row | {"status": "completed"})
        guess = guess_table(rows)
        assert guess.is_certain
        first, second, third = records(rows[:3], guess.settings())
        assert wins(first) == [(1.0, "u0"), (0.0, "u1")]
        assert wins(second) == [(1.0, "u0"), (1.0, "u1")]
        assert wins(third) == [(0.0, "u0"), (0.5, "u1")]


def test_a_list_of_codes_in_a_column_with_dots():
    """The same as a table: a list of values, and beside it one of users, which are not told apart by it."""
    rows = [
        pair(i) | {"preference.responses": list(SAID[i % 3]), "preference.responses.users": ["u0", "u1"]}
        for i in range(12)
    ]
    guess = guess_table(rows)
    assert guess.is_certain
    assert guess.settings()["columns"]["judgements"] == "preference.responses"
    (record,) = records(rows[1:2], guess.settings())
    assert wins(record) == [(1.0, None)]
    assert record.comparisons[0].votes == (2, 0, 0)


def test_left_and_right_of_a_comparison_are_asked_for():
    """The plain export of Label Studio: nothing in it says which side stood on the left."""
    rows = [
        pair(i, "answer1", "answer2") | {"comparison": ("left", "right")[i % 2], "annotator": i % 3}
        for i in range(12)
    ]
    (question,) = guess_table(rows).questions
    assert question.about == "who won"
    assert {reading.codes["left"]: reading.codes["right"] for reading in question.readings} == {
        "first": "second",
        "second": "first",
    }


def test_a_winner_beside_a_loser():
    rows = [pair(i) | {"winner": "ab"[i % 2], "loser": "ba"[i % 2]} for i in range(12)]
    guess = guess_table(rows)
    assert guess.is_certain
    assert [wins(record)[0][0] for record in records(rows[:2], guess.settings())] == [1.0, 0.0]


def test_counts_of_votes_are_read_as_their_name_is_and_said():
    rows = [pair(i) | {"votes": [3, 1, i % 2]} for i in range(12)]
    guess = guess_table(rows)
    assert guess.is_certain
    assert "from those for the first side" in guess.evidence[-1]
    assert [wins(record)[0][0] for record in records(rows[:2], guess.settings())] == [0.875, 0.7]
    uneven = [pair(i) | {"votes": [1] * (2 + i % 2)} for i in range(12)]
    assert not guess_table(uneven).is_certain


def test_a_conversation_as_another_tool_calls_it():
    rows = [
        {
            "conversations": [{"from": "human", "value": pair(i)["prompt"]}],
            "chosen": {"from": "gpt", "value": pair(i)["response_a"]},
            "rejected": {"from": "gpt", "value": pair(i)["response_b"]},
        }
        for i in range(12)
    ]
    guess = guess_table(rows)
    assert guess.is_certain
    assert guess.settings() == {"columns": {"prompt": "conversations"}}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({f"q{i}": pair(i) for i in range(4)}, "holds 4 objects under their names (q0, q1, q2 and 1 more)"),
        (
            {name: {str(i): pair(i)[name] for i in range(4)} for name in pair(0)},
            "3 columns of 4 cells each, as pandas writes",
        ),
        ({"version": 2, "data": [pair(i) for i in range(4)]}, "4 objects in data: if these are the rows"),
    ],
)
def test_one_object_that_is_a_whole_table(row, said):
    guess = guess_table([row])
    assert guess.shape is None
    assert said in guess.form
    assert guess.questions == ()


def test_codes_that_are_given_are_the_users_word():
    rows = [pair(i, "answer_1", "answer_2") | {"label": 1 + i % 2} for i in range(12)]
    assert guess_table(rows).reading.codes == {"1": "first", "2": "second"}
    guess = guess_table(rows, given=GivenSettings(codes={"1": "second", "2": "first"}))
    assert guess.is_certain
    assert guess.evidence == ()
    assert wins(records(rows[:1], guess.settings())[0]) == [(0.0, None)]


def test_judges_that_are_given_are_not_asked_for():
    rows = [pair(i) | {"judge1": i % 3, "judge2": (i + 1) % 3} for i in range(12)]
    assert not guess_table(rows).is_certain
    codes = {"0": "tie", "1": "first", "2": "second"}
    given = GivenSettings(codes=codes, options={"judges": ["judge1", "judge2"]})
    guess = guess_table(rows, given=given)
    assert guess.is_certain
    assert guess.settings()["codes"] == codes


def test_shares_with_a_decimal_comma_are_not_passed_over():
    rows = [pair(i, "chosen", "rejected") | {"preference": ("0,8", "1", "0,5")[i % 3]} for i in range(12)]
    (question,) = guess_table(rows, text_cells=True).questions
    assert question.about == "the share"
    assert "decimal comma" in question.why
