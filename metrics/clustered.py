"""Means over comparisons whose intervals respect that those of one prompt depend on one another."""

import torch
from torch import Tensor

from .estimate import Estimate, bootstrap_sums, percentile_interval

__all__ = ["clustered_means", "clustered_sums", "ratio_interval"]

NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def clustered_sums(columns: Tensor, cluster: Tensor) -> Tensor:
    """Sums of every column within clusters.

    Args:
        columns: (M, F) float64.
        cluster: Of each row, (M,) int64, any numbers.

    Returns:
        (clusters, F) float64, in the order of their numbers.
    """
    names, member = cluster.unique(return_inverse=True)
    return columns.new_zeros(len(names), columns.shape[1]).index_add_(0, member, columns)


def clustered_means(
    values: Tensor, cluster: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Mean of each column, with a bootstrap interval that draws clusters, whole ones.

    Args:
        values: (M, F); NaN where a row has no such value, and it is left out there.
        cluster: What is drawn, such as the prompt of each comparison, (M,) int64, any numbers.
        num_resamples: Resamples, >= 1.
        seed: Seed; the global generator stays as it is.

    Returns:
        An estimate for each column. NaN where it has no value; no interval where fewer than two clusters have one.

    Raises:
        ValueError: If shapes do not fit.
    """
    if values.ndim != 2 or cluster.shape != values.shape[:1]:
        raise ValueError(
            f"values must be (M, F) and cluster (M,); got {tuple(values.shape)} and {tuple(cluster.shape)}"
        )
    if not len(values):
        return [NOTHING] * values.shape[1]
    known = ~values.isnan()
    columns = torch.cat([known.double(), values.double().nan_to_num(0.0)], 1)
    numbers, totals = clustered_sums(columns, cluster).chunk(2, 1)
    low, high = ratio_interval(totals, numbers, num_resamples=num_resamples, seed=seed)
    means = totals.sum(0) / numbers.sum(0)
    return [Estimate(*row) for row in torch.stack([means, low, high], 1).tolist()]


def ratio_interval(
    totals: Tensor, numbers: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Interval of ratios of sums over clusters.

    Args:
        totals: Sums of each cluster, (clusters, F) float64.
        numbers: What they are divided by, (clusters, F) float64.
        num_resamples: Resamples, >= 1.
        seed: Seed.

    Returns:
        Low and high, (F,) each; NaN where fewer than two clusters count.
    """
    width = totals.shape[1]
    drawn = bootstrap_sums(torch.cat([totals, numbers], 1), num_resamples=num_resamples, seed=seed)
    ends = percentile_interval(drawn[:, :width] / drawn[:, width:])
    few = (numbers != 0).sum(0) < 2
    low, high = ends.masked_fill(few, float("nan"))
    return low, high
