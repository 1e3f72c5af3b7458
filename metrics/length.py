"""Whether a reward follows the length of responses."""

import math

import torch
from torch import Tensor

from .clustered import clustered_sums
from .estimate import Estimate, bootstrap_sums, percentile_interval

__all__ = ["length_correlation"]


def length_correlation(
    gap: Tensor, longer: Tensor, cluster: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Spearman correlation of differences in reward and in length, of responses to one prompt.

    Every pair counts in both directions, so that which response comes first plays no part. Ranks are in float64 over all pairs.

    Args:
        gap: Reward of the first less that of the second, (M,).
        longer: Length of the first less that of the second, (M,), any unit.
        cluster: Prompt of each, (M,) int64, any numbers.
        num_resamples: Resamples of the bootstrap over clusters; ranks stay as they are.
        seed: Seed.

    Returns:
        In [-1, 1]; NaN where gaps, or lengths, are all equal to 0: there is no correlation with what is constant.
    """
    first, second = _ranks(gap), _ranks(longer)
    sums = clustered_sums(torch.stack([first * second, first.square(), second.square()], 1), cluster)

    def correlation(totals: Tensor) -> Tensor:
        both, one, other = totals.unbind(-1)
        return both / (one * other).sqrt()

    value = float(correlation(sums.sum(0))) if len(sums) else float("nan")
    if len(sums) < 2 or math.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    drawn = bootstrap_sums(sums, num_resamples=num_resamples, seed=seed)
    drawn_from = torch.tensor([len(sums)])
    ends = percentile_interval(correlation(drawn).unsqueeze(1), drawn_from=drawn_from)
    return Estimate(value, *ends[:, 0].tolist())


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks of values among themselves and their negatives, less the middle rank: odd in the value, (M,) float64."""
    values = values.double()
    both = torch.cat([values, -values])
    _, level, counts = both.unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0).double() - counts / 2
    ranks: Tensor = (middle - len(values))[level[: len(values)]]
    return ranks
