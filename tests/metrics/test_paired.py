"""Intervals over units and runs, beside plain loops."""

import math

import pytest
import torch

from pluralign.metrics import bootstrap_means, crossed_estimates, percentile_interval


def judged(num_runs, num_units, *, by_run=1.0, by_unit=1.0, noise=1.0, seed=0):
    """Values of units in runs: an effect of each run, one of each unit, and noise."""
    generator = torch.Generator().manual_seed(seed)
    runs, units, rest = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((num_runs, 1), (1, num_units), (num_runs, num_units))
    )
    values = by_run * runs + by_unit * units + noise * rest
    run, unit = torch.meshgrid(torch.arange(num_runs), torch.arange(num_units), indexing="ij")
    return values.reshape(-1, 1), run.reshape(-1), unit.reshape(-1)


def test_it_is_the_weighted_mean_of_what_both_draws_leave():
    values, run, unit = judged(4, 6)
    there = torch.randperm(24, generator=torch.Generator().manual_seed(1))[:15]
    values, run, unit = values[there], run[there] * 10 - 7, unit[there] + 100  # any numbers, empty cells
    weight = torch.rand(15, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found,) = crossed_estimates(values, run, unit, weight=weight, num_resamples=300, seed=5)

    generator = torch.Generator().manual_seed(5)
    names = [sorted(set(run.tolist())), sorted(set(unit.tolist()))]
    draws = [torch.randint(len(one), (300, len(one)), generator=generator).tolist() for one in names]
    means = []
    for runs, units in zip(*draws, strict=True):
        above = below = 0.0
        for value, r, u, w in zip(
            values[:, 0].tolist(), run.tolist(), unit.tolist(), weight.tolist(), strict=True
        ):
            times = runs.count(names[0].index(r)) * units.count(names[1].index(u))
            above, below = above + times * w * value, below + times * w
        means.append(above / below if below else math.nan)
    low, high = percentile_interval(torch.tensor(means, dtype=torch.float64)).tolist()
    mean = float((weight * values[:, 0]).sum() / weight.sum())
    assert tuple(found) == pytest.approx((mean, low, high))


def test_one_run_leaves_the_bootstrap_over_units():
    values, run, unit = judged(1, 200)
    (found,) = crossed_estimates(values, run, unit, num_resamples=4000, seed=1)
    low, high = percentile_interval(bootstrap_means(values[:, 0], num_resamples=4000, seed=2)).tolist()
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_it_is_wider_than_either_alone():
    """Where runs and units both matter, an interval over one of them leaves out the other's part."""
    values, run, unit = judged(8, 40, noise=0.0)
    zero = torch.zeros_like(run)
    widths = [
        one.high - one.low
        for r, u in ((run, unit), (run, zero), (zero, unit))
        for one in crossed_estimates(values, r, u)
    ]
    assert widths[0] > 1.05 * max(widths[1:])


def test_columns_share_draws_so_that_differences_are_paired():
    values, run, unit = judged(5, 30)
    both = torch.cat([values, values + 0.25], 1)
    shift = crossed_estimates(both[:, 1:] - both[:, :1], run, unit)
    assert tuple(shift[0]) == pytest.approx((0.25, 0.25, 0.25))
    first, second = crossed_estimates(both, run, unit)
    assert [b - a for a, b in zip(first, second, strict=True)] == pytest.approx([0.25] * 3)


@pytest.mark.slow
def test_it_covers_the_truth():
    """Over repeated worlds the 95 % interval holds the true mean, 0, about as often as it says."""
    hits = 0
    for world in range(300):
        values, run, unit = judged(10, 40, seed=world)
        (found,) = crossed_estimates(values, run, unit, num_resamples=400)
        hits += found.low <= 0 <= found.high
    assert 0.88 < hits / 300 < 0.99


def test_shapes_that_do_not_fit_are_refused_and_nothing_gives_nothing():
    values, run, unit = judged(2, 3)
    with pytest.raises(
        ValueError, match=r"values must be \(M, F\), run and unit \(M,\); got \(6,\), \(6,\) and"
    ):
        crossed_estimates(values[:, 0], run, unit)
    with pytest.raises(ValueError, match=r"got \(6, 1\), \(6,\) and \(5,\)"):
        crossed_estimates(values, run, unit[:5])
    (found,) = crossed_estimates(values[:0], run[:0], unit[:0])
    assert all(math.isnan(one) for one in found)
