"""Judges in both orders, rewards as judges, words as rewards."""

import math

import pytest
import torch

from pluralign.inference import (
    PairedResponse,
    RewardJudge,
    WordShare,
    WrittenResponse,
    criteria_of,
    pair_verdicts,
    words_of,
)

DIMENSIONS = ("tone.warm", "tone.cold", "size.small")


def written(item, response, preference=("tone.warm",), **columns):
    return WrittenResponse(
        item, 0, f"Say {item}", preference, response, None, None, None, columns, f"file:{item}"
    )


def paired(item, first, second, preference=("tone.warm",), **columns):
    return PairedResponse(*(written(item, text, preference, **columns) for text in (first, second)))


def length(prompts, responses, columns):
    return [float(len(response)) for response in responses]


def test_every_dimension_is_asked_about_in_both_orders():
    asked = []

    def judge(prompts, first, second, criterion, columns):
        asked.append((list(prompts), list(first), list(second), criterion, dict(columns)))
        return [1.0 if len(a) > len(b) else -0.5 for a, b in zip(first, second, strict=True)]

    pairs = [
        paired("x", "long one", "short", ("tone.warm", "size.small"), user="ann"),
        paired("y", "a", "bcd", ("tone.cold",)),
    ]
    verdicts = pair_verdicts(judge, pairs, DIMENSIONS, DIMENSIONS)
    assert verdicts[:, 0, 0].tolist() == [1, 0.5] and verdicts[:, 0, 2].tolist() == [1, 0.5]
    assert verdicts[:, 1, 1].tolist() == [-0.5, -1]
    assert verdicts[:, 0, 1].isnan().all() and verdicts[:, 1, 0].isnan().all()
    assert [call[3] for call in asked] == ["tone.warm"] * 2 + ["tone.cold"] * 2 + ["size.small"] * 2
    assert asked[0][:3] == (["Say x"], ["long one"], ["short"]) and asked[1][1:3] == (["short"], ["long one"])
    assert asked[0][4] == {"user": ["ann"], "preference": [("tone.warm", "size.small")]}


def test_items_without_a_preference_are_judged_overall():
    def judge(prompts, first, second, criterion, columns):
        return [0.0]

    assert criteria_of(judge, (), DIMENSIONS) == ("overall",)
    assert criteria_of(judge, ("tone.cold",), DIMENSIONS) == ("tone.cold",)


def test_rewards_count_where_their_dimension_is_asked_for_and_others_always():
    judge = RewardJudge({"tone.warm": WordShare(["dear"]), "length": length})
    assert criteria_of(judge, ("tone.warm", "size.small"), DIMENSIONS) == ("tone.warm", "length")
    assert criteria_of(judge, ("tone.cold",), DIMENSIONS) == ("length",)
    pairs = [paired("x", "dear you", "you there"), paired("y", "ab", "a", ("tone.cold",))]
    verdicts = pair_verdicts(judge, pairs, ("tone.warm", "length"), DIMENSIONS)
    assert verdicts[:, 0].tolist() == [[1, -1], [1, -1]]
    assert verdicts[0, 1].isnan().tolist() == [True, False] and verdicts[:, 1, 1].tolist() == [1, 1]


def test_a_response_is_rated_once_and_small_differences_tie():
    rated = []

    def reward(prompts, responses, columns):
        rated.extend(responses)
        return torch.tensor([float(len(response)) for response in responses])

    judge = RewardJudge({"r": reward}, tie_width=1.0)
    pairs = [paired("x", "aaa", "aa"), paired("x", "aaa", "a"), paired("x", "aaa", "aaa")]
    assert pair_verdicts(judge, pairs, ["r"], [])[:, :, 0].tolist() == [[0, 1, 0]] * 2
    assert sorted(rated) == ["a", "aa", "aaa"]


def test_a_reward_may_depend_on_columns():
    def of_user(prompts, responses, columns):
        return [
            len(r) * (1 if user == "ann" else -1) for r, user in zip(responses, columns["user"], strict=True)
        ]

    pairs = [paired("x", "aa", "a", user="ann"), paired("x", "aa", "a", user="bob")]
    assert pair_verdicts(RewardJudge({"r": of_user}), pairs, ["r"], [])[0, :, 0].tolist() == [1, -1]


def test_words():
    assert words_of("It's warm, isn't it?") == ["it's", "warm", ",", "isn't", "it", "?"]
    rule = WordShare(["Dear", "friend"])
    assert rule([""] * 3, ["Dear friend!", "no", ""], {}) == [pytest.approx(2 / 3), 0, 0]


@pytest.mark.parametrize("words", [[], "dear", ["two words"], [""]])
def test_words_that_are_none(words):
    with pytest.raises(ValueError, match="words must be one or more single words; got"):
        WordShare(words)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda *args: [2.0], r"asked for tone.warm, gives 2 for item x; verdicts must be in \[-1, 1\]"),
        (lambda *args: [math.nan], r"asked for tone.warm, gives nan for 'item x'; it must give a finite"),
        (lambda *args: [0.0, 0.0], r"must give \(1,\) numbers; got a shape of \(2,\)"),
        (
            RewardJudge({"tone.warm": lambda *args: [math.nan]}),
            "reward tone.warm gives nan for 'first'; it must give a finite number for every response",
        ),
    ],
)
def test_what_is_no_verdict_is_refused(judge, message):
    with pytest.raises(ValueError, match=message):
        pair_verdicts(judge, [paired("x", "first", "second")], ["tone.warm"], DIMENSIONS)


def test_settings_of_reward_judges():
    with pytest.raises(ValueError, match="rewards must name one or more; got none"):
        RewardJudge({})
    with pytest.raises(ValueError, match="tie_width must be finite and >= 0; got -1"):
        RewardJudge({"r": length}, tie_width=-1)
    with pytest.raises(ValueError, match="there is no reward 's'; there are r"):
        RewardJudge({"r": length})([], [], [], "s", {})
