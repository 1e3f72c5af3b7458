"""Customised against general accuracy: intervals against what is known of them, and what is paired with what."""

import math

import pytest
import torch

from pluralign.metrics import JudgedColumns, TradeOffNames, TradeOffStart, trade_off_summary

NAMES = TradeOffNames(("own", "web", "chat"), ("law",), (), ("law",), ("web", "chat"), "normal")


def columns(source, right, *, prompt=None, by_domain=None):
    number = len(right)
    some = torch.arange(number)
    nothing = torch.full((number,), -1)
    return JudgedColumns(
        source=torch.tensor(source),
        domain=nothing,
        loser=nothing,
        prompt=some if prompt is None else torch.tensor(prompt),
        key=some,
        place=torch.zeros(number, dtype=torch.int64),
        lengths=torch.ones(number, 2, dtype=torch.int64),
        right=torch.tensor(right, dtype=torch.int8),
        by_domain=torch.tensor(by_domain or [[-1]] * number, dtype=torch.int8),
        by_chance=torch.zeros(number, 0, dtype=torch.int8),
    )


def summary(of, start=None, seed=0):
    return trade_off_summary(of, NAMES, start=start, alike=0.1, num_resamples=2000, seed=seed)


def test_intervals_of_independent_comparisons_are_those_of_the_normal_distribution():
    right = [int(i % 4 != 0) for i in range(800)]
    found = summary(columns([0] * 400 + [1] * 400, right)).measures["customized_accuracy"]
    assert found.estimate.value == 0.75 and found.number == 400 and found.random_head is None
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.estimate.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.estimate.high == pytest.approx(0.75 + half, abs=0.006)


def test_comparisons_of_a_prompt_are_drawn_together():
    """Ten equal comparisons of each of 40 prompts tell no more than one."""
    right = [int(i // 10 % 4 != 0) for i in range(400)]
    found = summary(columns([0] * 400 + [1], [*right, 1], prompt=[*(i // 10 for i in range(400)), 999]))
    low, high = found.measures["customized_accuracy"].estimate[1:]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 40), abs=0.04)


def test_the_general_accuracy_is_the_mean_of_sets():
    found = summary(columns([0, 1, 1, 1, 1, 2], [1, 1, 1, 1, 0, 0])).measures
    assert found["general_accuracy"].estimate.value == pytest.approx((3 / 4 + 0) / 2)
    assert found["general_accuracy"].number == 5


def test_forgetting_is_paired():
    """Equal accuracies twice: of other comparisons, which an unpaired difference could not tell from the same ones."""
    then = [1, *[i % 2 for i in range(200)]]
    source = [0] + [1] * 200
    start = summary(columns(source, then)).started
    same = summary(columns(source, then), start).measures["forgetting"]
    assert same.estimate == (0, 0, 0) and same.number == 200
    other = summary(columns(source, [1, *[1 - value for value in then[1:]]]), start).measures["forgetting"]
    assert other.estimate.value == 0 and other.estimate.high - other.estimate.low > 0.2


def test_a_domains_own_reward_is_compared_with_what_judged_at_the_start():
    source, then = [0, 1, 1, 1, 1], [1, 1, 1, 1, 0]
    start = summary(columns(source, then)).started
    own = [[1], [0], [0], [1], [0]]
    found = summary(columns(source, then, by_domain=own), start).measures
    assert found["general_accuracy/as/law"].estimate.value == 1 / 4
    assert found["forgetting"].estimate.value == 0 and found["forgetting/as/law"].estimate.value == 1 / 2


def test_a_start_names_comparisons():
    start = TradeOffStart(torch.tensor([[1, 2, 0], [1, 3, 1]]), torch.tensor([1, 0], dtype=torch.int8))
    assert start.of(columns([1, 1, 1, 1], [1, 1, 1, 1])).tolist() == [-1, -1, 1, -1], (
        "the fourth has another place"
    )


def test_nothing_but_ties_is_an_error():
    with pytest.raises(ValueError, match="of 2 comparisons, 2 of them ties, none is decided"):
        summary(columns([0, 1], [-1, -1]))
