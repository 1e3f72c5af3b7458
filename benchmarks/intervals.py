"""What the benchmarks of methods share: a mean over runs with Student's interval."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from pluralign.metrics import Estimate

__all__ = ["run_estimate"]


def run_estimate(values: Sequence[float]) -> Estimate:
    """Mean over runs, with Student's 95 % interval; its ends are NaN for a single run."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Estimate(mean, mean - half, mean + half)
