import itertools
import math

import pytest
import torch
from scipy.stats import binomtest

from pluralign.metrics import holm_correction, paired_accuracy


def test_with_a_comparison_a_prompt_it_is_the_sign_test():
    first = torch.tensor([1] * 9 + [0] * 2 + [1] * 6)
    second = torch.tensor([0] * 9 + [1] * 2 + [1] * 6)
    found = paired_accuracy(first, second, torch.arange(17))
    assert found.p_value == pytest.approx(binomtest(9, 11).pvalue, abs=1e-12)
    assert found.difference.value == pytest.approx(7 / 17)
    assert (found.only_first, found.only_second, found.comparisons, found.prompts) == (9, 2, 17, 17)


def test_comparisons_of_a_prompt_change_sides_together():
    gains = [[1, 1, 1], [1, 0], [-1, -1], [1, 1]]
    first = torch.tensor([max(0, gain) for prompt in gains for gain in prompt])
    second = torch.tensor([max(0, -gain) for prompt in gains for gain in prompt])
    cluster = torch.tensor([number for number, prompt in enumerate(gains) for _ in prompt])
    sums = [3, 1, -2, 2]
    as_far = [
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True))) >= 4
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert paired_accuracy(first, second, cluster).p_value == pytest.approx(sum(as_far) / 16)


def test_one_prompt_with_many_comparisons_is_no_evidence_and_mcnemar_would_call_it_so():
    first, second, cluster = torch.ones(200), torch.zeros(200), torch.zeros(200, dtype=torch.int64)
    assert paired_accuracy(first, second, cluster).p_value == 1.0
    assert binomtest(200, 200).pvalue < 1e-50


def test_equal_models_do_not_differ_and_nothing_cannot_be_tested():
    right = torch.tensor([1, 0, 1])
    assert paired_accuracy(right, right, torch.arange(3)).p_value == 1.0
    assert math.isnan(paired_accuracy(right[:0], right[:0], torch.arange(0)).p_value)
    with pytest.raises(ValueError, match="must be"):
        paired_accuracy(right, right[:2], torch.arange(3))


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_they_should_be_under_clustering():
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(30).repeat_interleave(8)
    alarms = 0
    for seed in range(200):
        # Two equal models: on a prompt one of the two is right throughout, whichever.
        side = torch.randint(2, (30,), generator=generator).repeat_interleave(8)
        alarms += paired_accuracy(side, 1 - side, cluster, seed=seed).p_value < 0.05
    assert alarms <= 20


def test_holms_steps_by_hand():
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_correction([0.5, 0.6]) == [1.0, 1.0]
    first, second, third = holm_correction([math.nan, 0.02, 0.03])
    assert math.isnan(first) and (second, third) == pytest.approx((0.04, 0.04))
    assert holm_correction([]) == []


def test_the_interval_of_a_difference_has_width_and_says_what_the_test_says():
    right = torch.ones(10, dtype=torch.int64)
    low, high = paired_accuracy(right, right, torch.arange(10)).difference[1:]
    assert low == pytest.approx(-high) and 0.15 < high < 0.25
    # Five to nothing: the sign test says 0.0625, and without it the interval would leave out 0.
    first = torch.tensor([1] * 100)
    found = paired_accuracy(first, torch.tensor([0] * 5 + [1] * 95), torch.arange(100))
    assert found.p_value == pytest.approx(1 / 16) and found.difference.low == 0.0
    found = paired_accuracy(first, torch.tensor([0] * 6 + [1] * 94), torch.arange(100))
    assert found.p_value == pytest.approx(1 / 32) and found.difference.low > 0
    assert math.isnan(paired_accuracy(first, first, first * 0).difference.low)


def test_with_many_single_comparisons_it_is_agrestis_and_mins():
    first, second = torch.tensor([1] * 300 + [0] * 200), torch.tensor([0] * 90 + [1] * 250 + [0] * 160)
    low, high = paired_accuracy(first, second, torch.arange(500)).difference[1:]
    more, fewer, number = 90.5, 40.5, 502
    middle = (more - fewer) / number
    half = 1.96 * math.sqrt((more + fewer - number * middle**2) / number**2)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=2e-4)


def test_what_is_neither_right_nor_wrong_is_refused():
    with pytest.raises(ValueError, match="second must be 1 where the model is right"):
        paired_accuracy(torch.tensor([1.0]), torch.tensor([math.nan]), torch.arange(1))
