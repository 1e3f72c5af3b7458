import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, t

from pluralign.metrics import clustered_means, clustered_shares


def test_means_leave_out_what_is_not_known_and_intervals_draw_whole_clusters():
    values = torch.tensor([[1.0, 2.0], [0.0, torch.nan], [1.0, 4.0], [1.0, torch.nan]])
    cluster = torch.tensor([7, 7, 3, 9])
    first, second = clustered_means(values, cluster, num_resamples=4000, seed=1)
    assert first.value == 0.75 and second.value == 3.0
    # Three clusters with sums (1 of 2), (1 of 1), (1 of 1): the mean of drawn ones, by counting all 27 draws.
    sums = {0: (1, 2), 1: (1, 1), 2: (1, 1)}
    drawn = [sum(sums[i][0] for i in draw) / sum(sums[i][1] for i in draw) for draw in np.ndindex(3, 3, 3)]
    assert min(drawn) == 0.5 <= first.low <= np.quantile(drawn, 0.05) and first.high == 1.0


def test_rows_of_one_cluster_are_one_draw():
    generator = torch.Generator().manual_seed(0)
    of_cluster = torch.randn(40, generator=generator)
    once = clustered_means(of_cluster[:, None], torch.arange(40))[0]
    repeated = clustered_means(
        of_cluster.repeat_interleave(10)[:, None], torch.arange(40).repeat_interleave(10)
    )[0]
    assert once == pytest.approx(repeated)
    apart = clustered_means(of_cluster.repeat_interleave(10)[:, None], torch.arange(400))[0]
    assert (
        apart.high - apart.low < (repeated.high - repeated.low) / 2
    )  # what ignoring the clusters would claim


def test_nothing_and_one_cluster_have_no_interval():
    (none,) = clustered_means(torch.empty(0, 1), torch.empty(0, dtype=torch.int64))
    (one,) = clustered_means(torch.tensor([[1.0], [0.0]]), torch.tensor([4, 4]))
    assert math.isnan(none.value) and one.value == 0.5 and math.isnan(one.low)
    with pytest.raises(ValueError, match="values must be"):
        clustered_means(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


def test_shares_of_single_rows_have_wilsons_interval_with_students_quantile():
    right = torch.tensor([1.0] * 17 + [0.0] * 3)[:, None]
    (found,) = clustered_shares(right, torch.arange(20))
    quantile, share = t.ppf(0.975, 19), 0.85
    number = 19.0  # a variance of the mean of p (1 - p) / 19 is that of 20 rows, estimated
    middle = (share + quantile**2 / (2 * number)) / (1 + quantile**2 / number)
    half = (
        quantile
        * np.sqrt(share * (1 - share) / number + quantile**2 / (4 * number**2))
        / (1 + quantile**2 / number)
    )
    assert found == pytest.approx((share, middle - half, middle + half))
    normal = binomtest(17, 20).proportion_ci(method="wilson")
    assert found.low < normal.low and found.high > normal.high
    large = clustered_shares(right.repeat(100, 1), torch.arange(2000))[0]
    assert large[1:] == pytest.approx(tuple(binomtest(1700, 2000).proportion_ci(method="wilson")), abs=1e-4)


def test_a_share_of_one_has_an_interval_and_prompts_that_are_alike_count_once():
    right = torch.ones(120, 1)
    (alone,) = clustered_shares(right, torch.arange(120))
    (of_few,) = clustered_shares(right, torch.arange(120) // 60)
    assert (alone.value, alone.high) == (1.0, 1.0) and 0.96 < alone.low < 0.98
    assert of_few.low < 0.02 and of_few.high == 1.0  # two prompts are two pieces of evidence
    wrong = clustered_shares(1 - right, torch.arange(120))[0]
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - alone.low))
    together = torch.tensor([1.0, 1, 0, 1, 0, 0, 1, 1, 0, 1])
    once = clustered_shares(together[:, None], torch.arange(10))[0]
    repeated = clustered_shares(
        together.repeat_interleave(7)[:, None], torch.arange(10).repeat_interleave(7)
    )[0]
    assert once == pytest.approx(repeated)


def test_shares_leave_out_what_is_not_known_and_one_cluster_has_no_interval():
    values = torch.tensor([[1.0, torch.nan], [0.0, 0.25], [1.0, 0.75]])
    first, second = clustered_shares(values, torch.tensor([0, 1, 2]))
    assert first.value == pytest.approx(2 / 3) and second.value == 0.5
    (one,) = clustered_shares(values[:, :1], torch.zeros(3, dtype=torch.int64))
    assert one.value == pytest.approx(2 / 3) and math.isnan(one.low) and math.isnan(one.high)
    (nothing,) = clustered_shares(values[:1, 1:], torch.zeros(1, dtype=torch.int64))
    assert math.isnan(nothing.value)
