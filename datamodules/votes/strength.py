"""What the votes on a comparison come to: mean, deviation and number."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["vote_strengths"]

Strengths = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


def vote_strengths(differences: NDArray[np.float32]) -> Strengths:
    r"""Strength of each comparison over the members that vote on it.

    .. math:: \hat\mu = \frac{1}{M} \sum_m d_m \qquad \hat\sigma = \sqrt{\frac{1}{M} \sum_m (d_m - \hat\mu)^2}

    Args:
        differences: :math:`d_m`, reward of the first response minus that of the second, (n, M); NaN where a member does
            not vote, which M leaves out there.

    Returns:
        Mean, float32, and population standard deviation (divisor M, not M - 1), float32, both NaN where nobody votes, and
        number of votes, int32; (n,) each.

    Source:
        B. Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, arXiv 2401.06080, section 2.2.

    .. versionadded:: 0.1
    """
    values = np.asarray(differences, np.float64)
    voted = ~np.isnan(values)
    number = voted.sum(1)
    divisor = np.where(number, number, np.nan)
    mean = np.where(voted, values, 0).sum(1) / divisor
    spread = np.where(voted, values - mean[:, None], 0)
    std = np.sqrt((spread**2).sum(1) / divisor)
    return mean.astype(np.float32), std.astype(np.float32), number.astype(np.int32)
