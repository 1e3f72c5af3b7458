"""Judgements that no field reads, and shares that are another code: refused with the setting that reads them."""

import json
import re

import pytest

from pluralign.datamodules import LocalDataModule, RecordError
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
