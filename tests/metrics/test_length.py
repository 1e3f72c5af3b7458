import math

import pytest
import torch
from scipy.stats import spearmanr

from pluralign.metrics import length_correlation


def test_it_is_spearmans_of_every_pair_in_both_directions():
    generator = torch.Generator().manual_seed(0)
    longer = torch.randint(-5, 6, (300,), generator=generator)
    gap = longer * 0.3 + torch.randn(300, generator=generator).round(decimals=1)
    cluster = torch.arange(300) // 3
    found = length_correlation(gap, longer, cluster)
    reference = spearmanr(torch.cat([gap, -gap]), torch.cat([longer, -longer])).statistic
    assert found.value == pytest.approx(reference, abs=1e-12)
    assert found.low < found.value < found.high
    flipped = torch.where(torch.arange(300) % 2 == 0, 1, -1)
    assert length_correlation(gap * flipped, longer * flipped, cluster).value == pytest.approx(found.value)


def test_large_and_near_rewards_are_ranked_in_float64():
    gap = torch.tensor([1e-12, 2e-12, 3e-12], dtype=torch.float64)
    assert length_correlation(gap, torch.tensor([1, 2, 3]), torch.arange(3)).value == pytest.approx(1.0)


@pytest.mark.parametrize("gap, longer", [([0.0, 0.0], [1, 2]), ([1.0, 2.0], [0, 0])])
def test_a_constant_correlates_with_nothing(gap, longer):
    assert math.isnan(length_correlation(torch.tensor(gap), torch.tensor(longer), torch.arange(2)).value)
