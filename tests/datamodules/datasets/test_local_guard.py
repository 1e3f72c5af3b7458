"""Judgements that no field reads, and shares that are another code: refused with the setting that reads them."""

import csv
import json
import re

import pytest

from pluralign.datamodules import LocalDataModule, RecordError
from pluralign.datamodules.datasets.local.guard import RowsAhead
from pluralign.datamodules.datasets.local.likely import (
    Reading,
    likely_reading,
    likely_sides,
    say_who_won,
    side_pairs,
)

SIDES = {"prompt": "Which tea?", "response_a": "Green.", "response_b": "Black."}
NEUTRAL = {"first": "response_a", "second": "response_b"}
TAKEN = {"chosen": "response_a", "rejected": "response_b"}


def module(folder, rows, **settings):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return LocalDataModule(test=str(path), **settings)


def refusal(folder, rows, **settings):
    """The first row's error."""
    first = next(module(folder, rows, **settings).load("test"))
    assert isinstance(first, RecordError), first
    return first


@pytest.mark.parametrize("columns", [NEUTRAL, TAKEN])
@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"label": [1, 2, 1]}, "winner: label}; codes: {1: first | second | tie | none, 2: first"),
        ({"Preferred Side": ["left", "right"]}, "winner: Preferred Side}; codes: {left: first | second"),
        ({"verdict": ["A", "tie"]}, "winner: verdict} would"),
        ({"overall_preference": [2, -3]}, "strength: overall_preference}; positive: first | second"),
        ({"humanPreference": [0.2, 0.9]}, "preference: humanPreference}; preference_range: [0, 1] | [1, 0]"),
        ({"human_pref": [1.2, 2.0]}, "preference: human_pref}; preference_range: [2, 1] | [1, 2]"),
        ({"score_a": [1, 2], "score_b": [2.5, 0]}, "first_score: score_a, second_score: score_b}"),
        ({"wins_1": [1, 0], "wins_2": [0, 0], "wins_tie": [0, 1]}, "first_wins: wins_1, second_wins: wins_2, tie: wins_tie}"),
        ({"votes_by": [["A", "B"], ["B"]]}, "judgements: votes_by}"),
        ({"annotations": [[{"worker": 3, "label": "A"}]]}, "judgements: annotations, judgements.winner: label, judgements.user: worker}"),
    ],
)  # fmt: skip
def test_a_pair_that_nobody_reads_the_judgement_of(tmp_path, columns, values, setting):
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    error = refusal(tmp_path, [{**SIDES, **row} for row in rows], columns=columns)
    (column, seen) = next(iter(values.items()))
    assert (error.reason, error.field, error.value, error.line) == ("unread judgement", column, seen[0], 1)
    assert all(str(value) in str(error) for value in seen)
    assert f"columns: {{first: response_a, second: response_b, {setting}" in str(error)


def test_what_the_error_says_can_be_pasted(tmp_path):
    rows = [{**SIDES, "label": value} for value in (2, 1)]
    error = refusal(tmp_path, rows, columns=TAKEN)
    assert "columns: {first: response_a, second: response_b, winner: label}; codes: {2: " in str(error)
    columns = {"first": "response_a", "second": "response_b", "winner": "label"}
    data = module(tmp_path, rows, columns=columns, codes={2: "second", 1: "first"})
    assert [data.to_example(row).comparisons[0].chosen for row in data.load("test")] == [1, 0]


@pytest.mark.parametrize(
    "extra",
    [
        {"winner": "model_b"},
        {"label": 0},
        {"labels": [1, 0]},
        {"preference_strength": -2},
        {"overall_preference": 3},
        {"choice": 1},
        {"better": "rejected"},
        {"score_chosen": 1, "score_rejected": 2},
        {"rejected-rating": 4, "chosen-rating": 3.5},
    ],
)
def test_sides_that_are_called_chosen_are_believed_unless_a_plain_column_may_say_otherwise(tmp_path, extra):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", **extra}
    error = refusal(tmp_path, [row])
    assert (
        error.reason == "unread judgement"
        and "columns: {winner: null} where chosen and rejected say it" in str(error)
    )
    assert not isinstance(next(module(tmp_path, [row], columns={"winner": None}).load("test")), RecordError)
    assert not isinstance(next(module(tmp_path, [{**row, "preference": 0.2}]).load("test")), RecordError)


@pytest.mark.parametrize(
    "extra",
    [
        {"score_chosen": 8.5, "score_rejected": 3.0},
        {"chosen_score": 2, "rejected_score": 2},
        {"rating": 4},
        {"margin": 2, "strength": -1},
        {"label_source": "crowd"},
        {"preference_statement": "It is better."},
        {"annotations": "none"},
    ],
)
def test_harmless_columns_beside_chosen_and_rejected(tmp_path, extra):
    data = module(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b", **extra}])
    assert not isinstance(next(data.load("test")), RecordError)


def test_harmless_columns_beside_neutral_sides(tmp_path):
    row = {
        **SIDES,
        "label_confidence": 0.2,
        "preference_reason": "nicer",
        "best_practice": "x" * 50,
        "model_a": "m",
    }
    assert not isinstance(next(module(tmp_path, [row], columns=NEUTRAL).load("test")), RecordError)
    judged = [{**SIDES, "winner": "A", "rating": 3}, {**SIDES, "rating": 3}]
    assert not any(
        isinstance(row, RecordError) for row in module(tmp_path, judged, columns=NEUTRAL).load("test")
    )


def test_a_strength_beside_sides_whose_names_say_nothing(tmp_path):
    rows = [{**SIDES, "s": value} for value in (3, -2)]
    error = refusal(tmp_path, rows, columns={**TAKEN, "strength": "s"})
    assert "strength: s}; positive: first | second" in str(error)
    named = [{"prompt": "q", "chosen": "a", "rejected": "b", "s": -2}]
    data = module(tmp_path, named, columns={"strength": "s"})
    (comparison,) = data.to_example(next(data.load("test"))).comparisons
    assert (comparison.chosen, comparison.preference, comparison.strength) == (0, 1.0, -2)


def test_a_winner_that_is_mapped_beside_chosen_and_rejected(tmp_path):
    error = refusal(tmp_path, [{**SIDES, "who": "b"}], columns={**TAKEN, "winner": "who"})
    assert "columns: {first: response_a, second: response_b, winner: who}" in str(error)


def test_skipped_rows_are_counted_and_rows_to_score_need_no_judgement(tmp_path):
    rows = [{**SIDES, "prompt": f"q{i}", "label": i % 2} for i in range(4)]
    with pytest.raises(ValueError, match=r"nothing is left.*4 unread judgement.*columns: \{first"):
        module(tmp_path, rows, columns=TAKEN, on_invalid="skip").setup("test")
    data = LocalDataModule(predict=str(tmp_path / "rows.jsonl"), columns=NEUTRAL)
    data.setup("predict")
    assert data.reports["predict"].responses == 8


def test_sides_that_no_column_names_are_guessed_at_in_the_error_alone(tmp_path):
    data = module(tmp_path, [{**SIDES, "winner": "model_a"}])
    with pytest.raises(
        RecordError, match=r"perhaps columns: \{first: response_a, second: response_b, winner: winner\}"
    ):
        data.to_example(next(data.load("test")))


# Shares --------------------------------------------------------------------------------------------------


def shares(*values, **more):
    return [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "preference": v, **more}
        for i, v in enumerate(values)
    ]


def test_a_number_that_is_no_share_is_named_with_the_values_seen(tmp_path):
    rows = module(tmp_path, shares(1, 1.5, 2, 1.25)).load("test")
    assert not isinstance(next(rows), RecordError)
    second = next(rows)
    assert (second.reason, second.value, second.line) == ("out of range", 1.5, 2)
    assert "preference holds 1, 1.25, 1.5, 2, which is another code" in str(second)
    assert "preference_range: [2, 1] | [1, 2]" in str(second)


def test_another_code_stops_a_split_even_where_rows_are_skipped(tmp_path):
    data = module(tmp_path, shares(*[1, 0.5, 2] * 20), on_invalid="skip")
    with pytest.raises(
        RecordError, match=r"rows\.jsonl: .*preference holds 0\.5, 1, 2, .* in 20 of 60 rows"
    ) as caught:
        data.setup("test")
    assert caught.value.line == 0
    ranked = {"prompt": "q", "responses": ["a", "b"], "comparisons": [[0, 1, 2], [1, 0, 1]]}
    with pytest.raises(RecordError, match="another code in 3 of 3 rows"):
        module(tmp_path, [{**ranked, "id": i} for i in range(3)], on_invalid="skip").setup("test")


def test_single_slips_are_skipped_and_counted(tmp_path):
    data = module(tmp_path, shares(*[0.5] * 120, 3), on_invalid="skip")
    data.setup("test")
    assert dict(data.reports["test"].invalid) == {"out of range": 1}


def test_percentages_and_codes_are_read_by_what_the_error_says(tmp_path):
    error = refusal(tmp_path, shares(80, 25))
    assert "preference_range: [0, 100]" in str(error)
    data = module(tmp_path, shares(80, 25), preference_range=(0, 100))
    assert [data.to_example(row).comparisons[0].preference for row in data.load("test")] == [0.8, 0.25]


def test_words_in_a_share_are_refused_with_the_setting(tmp_path):
    data = module(tmp_path, shares("model_b"))
    with pytest.raises(
        RecordError,
        match=r"field 'preference' is 'model_b'.*columns: \{first: \.\.\., second: \.\.\., winner",
    ):
        data.setup("test")


# Tables --------------------------------------------------------------------------------------------------


def test_names_of_sides():
    assert side_pairs(["answer 1", "human_ref_A", "text", "answer 2", "human_ref_B", "outputB"]) == [
        ("human_ref_A", "human_ref_B"),
        ("answer 1", "answer 2"),
    ]
    fields = {
        "model_a": "m",
        "model_b": "n",
        "completionA": "x",
        "completionB": "y",
        "label_0": 1,
        "label_1": 0,
    }
    assert likely_sides(fields) == ("completionA", "completionB")
    assert likely_sides({**fields, "text_1": "x", "text_2": "y"}) is None, "two readings"
    assert say_who_won("better_answer") and say_who_won("y_w") and not say_who_won("response_1")


def test_readings_are_yaml():
    reading = likely_reading({"label": ["yes", "no", "A>B"]})
    assert reading == Reading(
        {"winner": "label"},
        {"codes": "{'yes': first | second | tie | none, 'no': first | second | tie | none}"},
    )
    assert re.search(r"columns: \{winner: label\}; codes", str(reading))


@pytest.mark.parametrize(
    ("name", "value"),
    [("pick", "response_b"), ("reward_b", 2.5), ("favourite", 2), ("Sieger", "B"), ("\u52dd\u8005", "B>A"), ("outcome of it", "tie")],
)  # fmt: skip
def test_a_judgement_under_another_name(tmp_path, name, value):
    row = {**SIDES, name: value}
    for columns in (TAKEN, NEUTRAL):
        assert refusal(tmp_path, [row], columns=columns).field == name
    told = {**row, "prompt": "Which?", "chosen": "Green.", "rejected": "Black."}
    assert not isinstance(next(module(tmp_path, [told]).load("test")), RecordError), "the sides say it"


def test_a_code_in_a_column_beside_a_judgement_is_none(tmp_path):
    row = {**SIDES, "source_text": "A", "reason": "same"}
    assert not isinstance(next(module(tmp_path, [row], columns=TAKEN).load("test")), RecordError)


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (NEUTRAL, {"preference": 1}),
        (NEUTRAL, {"preference": 0.0}),
        (TAKEN, {"preference": 0}),
        (NEUTRAL, {"judgements": [{"preference": 1, "user": "ann"}]}),
    ],
)
def test_nothing_but_0_and_1_may_be_a_share_or_a_number_of_the_side(tmp_path, columns, row):
    error = refusal(tmp_path, [{**SIDES, **row}] * 3, columns=columns)
    assert error.reason == "two readings" and "preference: preference}" in error.allowed
    assert "winner: preference}; codes: {0: first | second" in error.allowed
    within = "judgements." if "judgements" in row else ""
    said = {**columns, f"{within}preference": "preference"}
    assert not isinstance(next(module(tmp_path, [{**SIDES, **row}], columns=said).load("test")), RecordError)


def test_a_share_between_0_and_1_settles_what_the_column_is(tmp_path):
    rows = [{**SIDES, "preference": share} for share in (1, 0, 0.4)]
    rows = list(module(tmp_path, rows, columns=NEUTRAL).load("test"))
    assert len(rows) == 3 and not any(isinstance(row, RecordError) for row in rows)


def test_sides_that_say_who_won_and_a_column_that_says_otherwise(tmp_path):
    pair = {"prompt": "Which?", "chosen": "Green.", "rejected": "Black."}
    for flag in ("tie", "is_tie", "Draw"):
        assert refusal(tmp_path, [{**pair, flag: True}]).field == flag
        assert not isinstance(next(module(tmp_path, [{**pair, flag: False}]).load("test")), RecordError)
    path = tmp_path / "scores.csv"
    path.write_text("prompt,chosen,rejected,score_chosen,score_rejected,tie\nWhich?,Green.,Black.,1.5,4,\n")
    first = next(LocalDataModule(test=str(path)).load("test"))
    assert isinstance(first, RecordError) and first.field == "score_chosen"
    path.write_text("prompt,chosen,rejected,tie\nWhich?,Green.,Black.,True\nWhich?,Green.,Black.,false\n")
    first, second = LocalDataModule(test=str(path)).load("test")
    assert isinstance(first, RecordError) and first.field == "tie" and not isinstance(second, RecordError)


def test_a_turn_of_conversations_in_other_forms(tmp_path):
    turns = [("human", "Hi"), ("gpt", "Hello"), ("human", "More?"), ("gpt", "Yes")]
    side = [{"from": speaker, "value": text} for speaker, text in turns]
    row = {"first": side, "second": [*side[:-1], {"from": "gpt", "value": "No"}], "winner": "a", "turn": 1.0}
    written = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
    for each in (row, written):
        assert refusal(tmp_path, [each]).reason == "unread turn"
        assert not isinstance(next(module(tmp_path, [{**each, "turn": 2}]).load("test")), RecordError)
    path = tmp_path / "turns.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, written)
        writer.writeheader()
        writer.writerow(written)
    first = next(LocalDataModule(test=str(path)).load("test"))
    assert isinstance(first, RecordError) and first.reason == "unread turn"


def test_a_file_of_another_code_is_looked_ahead_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        RowsAhead, "ahead", lambda self, ahead=RowsAhead.ahead: calls.append(1) or ahead(self)
    )
    rows = [{"prompt": "Which?", "chosen": "Green.", "rejected": "Black.", "preference": 2}] * 5
    with pytest.raises(RecordError, match="in 5 of 5 rows"):
        list(module(tmp_path, rows).load("test"))
    assert calls == [1]


@pytest.mark.parametrize(
    "user", ["How deep is the sea?", "Tell me:\n1. the sea", "a name of more words than names have"]
)
def test_what_the_user_said_is_no_name(tmp_path, user):
    row = {"user": user, "chosen": "Deep", "rejected": "Flat"}
    with pytest.raises(RecordError, match="unread prompt: field 'user'"):
        list(map(module(tmp_path, [row]).to_example, module(tmp_path, [row]).load("test")))
    data = module(tmp_path, [row], columns={"prompt": "user", "user": None})
    (record,) = map(data.to_example, data.load("test"))
    assert record.prompt == user and record.comparisons[0].user is None
    data = module(tmp_path, [row], columns={"user": "user"})
    (record,) = map(data.to_example, data.load("test"))
    assert record.prompt == "" and record.comparisons[0].user == user


def test_votes_for_the_rejected_side(tmp_path):
    pair = {"prompt": "Which?", "chosen": "Green.", "rejected": "Black."}
    several = {
        "prompt": "Which?",
        "responses": ["Green.", "Black."],
        "comparisons": [{"chosen": 0, "rejected": 1, "votes": [1, 3]}],
    }
    for row in ({**pair, "votes": [0, 1, 2]}, several):
        data = module(tmp_path, [row])
        with pytest.raises(RecordError, match="votes for the other side"):
            list(map(data.to_example, data.load("test")))
    for row in ({**pair, "votes": [2, 1, 2]}, {**pair, "votes": [0, 1, 2], "preference": 0.3}):
        data = module(tmp_path, [row])
        assert len(list(map(data.to_example, data.load("test")))) == 1
