"""Means over comparisons whose intervals respect that those of one prompt depend on one another."""

import torch
from torch import Tensor

from .estimate import CONFIDENCE, Estimate, bootstrap_sums, percentile_interval

__all__ = ["clustered_means", "clustered_shares", "clustered_sums", "half_width_quantile", "ratio_interval"]

NOTHING = Estimate(float("nan"), float("nan"), float("nan"))
SMALLEST = 1e-24
"""Variance of a mean below which rounding is all that varies."""


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
    _check_shapes(values, cluster)
    if not len(values):
        return [NOTHING] * values.shape[1]
    known = ~values.isnan()
    columns = torch.cat([known.double(), values.double().nan_to_num(0.0)], 1)
    numbers, totals = clustered_sums(columns, cluster).chunk(2, 1)
    low, high = ratio_interval(totals, numbers, num_resamples=num_resamples, seed=seed)
    means = totals.sum(0) / numbers.sum(0)
    return [Estimate(*row) for row in torch.stack([means, low, high], 1).tolist()]


def clustered_shares(values: Tensor, cluster: Tensor) -> list[Estimate]:
    r"""Mean of each column of shares, with Wilson's interval at as many independent rows as the clusters are worth.

    A bootstrap of a share that is near 0 or 1 is too short, and of one that is 1 it is no interval: nothing that is drawn differs.
    Wilson's holds there. With mean :math:`p`, variance :math:`V` of the mean, which is that of whole clusters and at least that of
    independent rows, and Student's :math:`t` of G - 1 degrees, G clusters:

    .. math:: n = \frac{p (1 - p)}{V}, \qquad
        \frac{p + t^2 / 2n \pm t \sqrt{p (1 - p) / n + t^2 / 4n^2}}{1 + t^2 / n}

    Where nothing varies, such as where all is right, :math:`n = G`: a cluster is then worth one row.

    Args:
        values: (M, F) in [0, 1]; NaN where a row has no such value, and it is left out there.
        cluster: What is independent, such as the prompt of each comparison, (M,) int64, any numbers.

    Returns:
        An estimate for each column. NaN where it has no value; no interval where fewer than two clusters have one.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22, 1927; effective sample size
        and degrees of freedom: E. L. Korn and B. I. Graubard, *Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data*, Survey Methodology 24, 1998, section 2. Departures: theirs is around the
        interval of Clopper and Pearson; no fewer independent rows than clusters are taken where nothing varies.
    """
    _check_shapes(values, cluster)
    if not len(values):
        return [NOTHING] * values.shape[1]
    known = (~values.isnan()).double()
    shares = values.double().nan_to_num(0.0)
    numbers, totals = clustered_sums(torch.cat([known, shares], 1), cluster).chunk(2, 1)
    count, clusters = numbers.sum(0), (numbers > 0).sum(0)
    mean = totals.sum(0) / count
    of_clusters = (totals - mean * numbers).square().sum(0) * clusters / (clusters - 1)
    of_rows = ((shares - mean) * known).square().sum(0)
    spread = torch.maximum(of_clusters.nan_to_num(0.0), of_rows) / count.square()
    bernoulli = mean * (1 - mean)
    worth = torch.where(spread > SMALLEST, bernoulli / spread, clusters.double())
    ratio = half_width_quantile(clusters).square() / worth
    middle = (mean + ratio / 2) / (1 + ratio)
    half = (ratio * bernoulli + ratio.square() / 4).sqrt() / (1 + ratio)
    low, high = (
        torch.minimum((middle - half).clamp_min(0), mean),
        torch.maximum((middle + half).clamp_max(1), mean),
    )
    rows = torch.stack(
        [mean, low.masked_fill(clusters < 2, torch.nan), high.masked_fill(clusters < 2, torch.nan)], 1
    )
    return [Estimate(*row) for row in rows.tolist()]


def half_width_quantile(clusters: Tensor) -> Tensor:
    """By how many standard errors a 95 % interval over so many clusters extends to each side: Student's t.

    Args:
        clusters: (F,) int64.

    Returns:
        (F,) float64; NaN for fewer than two.
    """
    from scipy.special import stdtrit

    degrees = (clusters - 1).double()
    quantiles = torch.from_numpy(stdtrit(degrees.clamp_min(1).numpy(), (1 + CONFIDENCE) / 2))
    return quantiles.masked_fill(degrees < 1, torch.nan)


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
    clusters = (numbers != 0).sum(0)
    ends = percentile_interval(drawn[:, :width] / drawn[:, width:], drawn_from=clusters)
    low, high = ends.masked_fill(clusters < 2, float("nan"))
    return low, high


def _check_shapes(values: Tensor, cluster: Tensor) -> None:
    if values.ndim != 2 or cluster.shape != values.shape[:1]:
        raise ValueError(
            f"values must be (M, F) and cluster (M,); got {tuple(values.shape)} and {tuple(cluster.shape)}"
        )
