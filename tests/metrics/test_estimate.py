"""The one bootstrap: what it draws, and that both ways of using it draw the same."""

import pytest
import torch

from pluralign.metrics import bootstrap, bootstrap_means, bootstrap_sums, percentile_interval


def test_a_resample_draws_whole_prompts():
    sums = torch.tensor([[1.0, 10.0], [2.0, 40.0], [4.0, 160.0]]).double()
    found = bootstrap_sums(sums, num_resamples=200, seed=5)
    generator = torch.Generator().manual_seed(5)
    for row, drawn in zip(
        found.tolist(), torch.randint(3, (200, 3), generator=generator).tolist(), strict=True
    ):
        assert row == [sum(sums[i, column].item() for i in drawn) for column in range(2)]


def test_resamples_do_not_depend_on_the_memory_they_take(monkeypatch):
    sums = torch.rand(6, 2).double()
    whole = bootstrap_sums(sums, num_resamples=50, seed=5)
    monkeypatch.setattr("pluralign.metrics.estimate.CHUNK", 24)
    assert torch.allclose(bootstrap_sums(sums, num_resamples=50, seed=5), whole, atol=1e-12)


def test_means_are_of_the_rows_that_sums_are_of():
    values = torch.rand(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = bootstrap_means(values, num_resamples=300, seed=2)
    drawn = torch.randint(37, (300, 37), generator=torch.Generator().manual_seed(2))
    assert torch.equal(means, values[drawn].mean(1))
    columns = torch.stack([values, torch.ones_like(values)], 1)
    above, below = bootstrap_sums(columns, num_resamples=300, seed=2).unbind(1)
    assert torch.allclose(means, above / below, atol=1e-14)


def test_any_statistic_of_the_drawn_rows_and_nobodys_random_numbers():
    state = torch.get_rng_state()
    largest = bootstrap(lambda drawn: drawn.amax(1), 9, num_resamples=50, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again = torch.randint(9, (50, 9), generator=torch.Generator().manual_seed(1)).amax(1)
    assert torch.equal(largest, again)


def test_an_interval_leaves_resamples_without_a_value_out():
    statistics = torch.arange(101.0, dtype=torch.float64).repeat(2, 1).T.contiguous()
    statistics[0, 1] = torch.nan
    low, high = percentile_interval(statistics)
    assert low.tolist() == pytest.approx([2.5, 3.475])
    assert high.tolist() == pytest.approx([97.5, 97.525])
