"""The sign-flip test against all patterns in a plain loop, and against the sign test of scipy."""

import itertools
import math

import pytest
import torch
from scipy.stats import binomtest, norm

from pluralign.metrics import sign_flip, sign_flip_test


def by_hand(values):
    least = abs(sum(values)) - 1e-9
    patterns = [*itertools.product((1, -1), repeat=len(values))]
    return sum(
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= least
        for signs in patterns
    ) / len(patterns)


@pytest.mark.parametrize(
    "values",
    [[3, 1, -2, 2], [1, 1, 1, 1, -1], [0.5, -0.25, 0.25, 1.75], [5, 5, 5, -3, 7, 7, -2, 1], [1, -1], [4]],
)
def test_it_is_the_share_of_patterns_as_far_from_zero(values):
    assert sign_flip_test(torch.tensor(values)) == pytest.approx(by_hand(values), abs=1e-12)


@pytest.mark.parametrize(("more", "fewer"), [(120, 80), (40, 12), (900, 800), (6, 0), (30_000, 29_000)])
def test_values_of_one_size_are_the_sign_test_however_many(more, fewer):
    expected = binomtest(more, more + fewer).pvalue
    values = torch.tensor([0.5] * more + [-0.5] * fewer + [0.0] * 7)
    assert sign_flip_test(values) == pytest.approx(expected, rel=1e-9)


def test_a_one_sided_result_is_as_rare_as_it_is():
    assert sign_flip_test(torch.ones(200)) == pytest.approx(2.0**-199, rel=1e-9, abs=0)
    assert 0 < sign_flip_test(torch.ones(5000)) <= 1e-300  # of no test that is made it is 0


def test_a_hundred_thousand_prompts_of_several_comparisons_are_counted(monkeypatch):
    monkeypatch.setattr(sign_flip, "_patterns", lambda *_: pytest.fail("drawn"))
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-6, 7, (100_000,), generator=generator).double()
    values[:300] = 6  # so that they come to something
    spread = float(values.square().sum().sqrt())
    normal = 2 * norm.sf((abs(float(values.sum())) - 0.5) / spread)
    assert sign_flip_test(values) == pytest.approx(normal, rel=1e-3)


def test_values_of_several_sizes_come_near_patterns_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-4, 6, (300,), generator=generator).double()
    signs = torch.randint(2, (200_000, 300), generator=generator).float() * 2 - 1
    drawn = float(((signs @ values.float()).abs() >= abs(float(values.sum())) - 1e-6).double().mean())
    assert sign_flip_test(values) == pytest.approx(drawn, abs=0.002)
    # Of sizes without a common unit patterns are drawn, always the same ones.
    other = values * math.pi
    assert sign_flip_test(other) == pytest.approx(drawn, abs=0.02)
    assert sign_flip_test(other) == sign_flip_test(other, seed=0)


def test_few_values_of_any_size_are_counted_and_none_differ_from_nothing():
    values = [0.3, -1.7, 2.2, 0.9, -0.1]
    assert sign_flip_test(torch.tensor(values)) == pytest.approx(by_hand(values))
    assert sign_flip_test(torch.zeros(3)) == 1.0 and math.isnan(sign_flip_test(torch.zeros(0)))
    with pytest.raises(ValueError, match="must be finite"):
        sign_flip_test(torch.tensor([1.0, math.nan]))
