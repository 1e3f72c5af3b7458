from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from pluralign.metrics import MemberCorrelation


def metric_of(*parts):
    metric = MemberCorrelation(parts[0].shape[1])
    for part in parts:
        metric.update(part)
    return metric


def votes(number=60, members=4, missing=0.0):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(number, 1, generator=generator, dtype=torch.float64) + 0.5
    differences = common + 0.7 * torch.randn(number, members, generator=generator, dtype=torch.float64)
    gone = torch.rand(number, members, generator=generator) < missing
    return differences.masked_fill(gone, torch.nan)


@pytest.mark.parametrize("missing", [0.0, 0.25])
def test_it_is_the_mean_over_pairs_of_members_of_what_both_voted_on(missing):
    differences = votes(missing=missing)
    pairs = []
    for a, b in combinations(range(4), 2):
        both = differences[:, [a, b]]
        both = both[~both.isnan().any(1)]
        pairs.append(stats.pearsonr(both[:, 0].numpy(), both[:, 1].numpy()).statistic)
    assert float(metric_of(differences).compute()) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_batches_are_summed():
    differences = (votes(500) + 5).float()
    metric = metric_of(*differences.split([100, 1, 399]))
    expected = torch.corrcoef(differences.double().T)
    torch.testing.assert_close(metric.matrix(), expected, atol=1e-9, rtol=0)
    assert float(metric.compute()) == pytest.approx(
        float(expected[tuple(torch.triu_indices(4, 4, 1))].mean())
    )
    metric.reset()
    metric.update(differences[:50])
    assert float(metric.compute()) == pytest.approx(float(metric_of(differences[:50]).compute()))


def test_far_from_zero_it_is_still_exact():
    differences = 1e4 + torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [3.0, 2.0]])
    assert float(metric_of(differences).compute()) == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_that_never_vary_have_none_and_hide_nothing(dtype):
    assert bool(metric_of(torch.full((50, 2), 0.3, dtype=dtype)).compute().isnan())
    assert bool(metric_of(torch.zeros(20, 4, dtype=dtype)).compute().isnan())
    two = votes(members=2).to(dtype)
    constant = torch.cat([two, torch.full((60, 1), 0.1, dtype=dtype)], dim=1)
    assert float(metric_of(constant).compute()) == pytest.approx(float(metric_of(two).compute()))
    same = torch.cat([votes(members=1).to(dtype).expand(-1, 3), torch.zeros(60, 1, dtype=dtype)], dim=1)
    assert float(metric_of(same).compute()) == pytest.approx(1)


def test_members_that_never_voted_together_have_none():
    gone = torch.nan
    apart = torch.tensor([[1.0, gone], [2.0, gone], [gone, 1.0], [gone, 3.0]])
    assert bool(metric_of(apart).compute().isnan())
    once = votes(20, 3)
    once[1:, 2] = torch.nan  # one vote says nothing
    metric = metric_of(once)
    assert bool(metric.matrix()[0, 2].isnan())
    assert float(metric.compute()) == pytest.approx(float(metric_of(once[:, :2]).compute()))


def test_one_member_and_no_comparisons_have_none():
    assert bool(metric_of(votes(members=1)).compute().isnan())
    assert bool(metric_of(torch.empty(0, 3)).compute().isnan())
