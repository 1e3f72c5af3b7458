import math

import numpy as np
import pytest
import torch

from pluralign.metrics import clustered_means


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
