"""Estimates with bootstrap intervals: one way of drawing with replacement, whatever is computed from what was drawn.

Own code, since on our sizes it is faster where there are many columns, and leaves out what a resample lacks: with 350
users, 1,000 resamples and 24 columns ``scipy.stats.bootstrap`` takes about four times as long for the same intervals
(with one column as long), and ``BootStrapper`` of torchmetrics with one column over a hundred times as long; see
``benchmarks/estimates.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CONFIDENCE", "Estimate", "bootstrap", "bootstrap_means", "bootstrap_sums", "percentile_interval"]

CONFIDENCE = 0.95
CHUNK = 4_000_000
"""Numbers drawn at a time."""


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[Tensor], Tensor], number: int, *, num_resamples: int, seed: int) -> Tensor:
    """A statistic of rows drawn with replacement, as many as there are.

    Args:
        statistic: From indices of drawn rows, (n, ``number``) int64, to a value of each of the n resamples, (n, ...).
        number: Rows to draw from, >= 1.
        num_resamples: Number of resamples.
        seed: Seed; the global generator stays as it is. Equal seeds draw equal rows, whatever the statistic.

    Returns:
        (``num_resamples``, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // number)
    sizes = (min(step, num_resamples - start) for start in range(0, num_resamples, step))
    return torch.cat(
        [statistic(torch.randint(number, (size, number), generator=generator)) for size in sizes]
    )


def bootstrap_sums(columns: Tensor, *, num_resamples: int, seed: int) -> Tensor:
    """Sums of every column over drawn rows: one matrix product for all columns, from how often each row was drawn.

    Args:
        columns: (rows, F) float64.
        num_resamples: Number of resamples.
        seed: Seed.

    Returns:
        (``num_resamples``, F).
    """

    def sums(drawn: Tensor) -> Tensor:
        times = torch.zeros(drawn.shape, dtype=columns.dtype)
        times.scatter_add_(1, drawn, torch.ones((), dtype=columns.dtype).expand(drawn.shape))
        return times @ columns

    return bootstrap(sums, len(columns), num_resamples=num_resamples, seed=seed)


def bootstrap_means(values: Tensor, *, num_resamples: int, seed: int) -> Tensor:
    """Means of values (rows,) over drawn rows: (``num_resamples``,)."""
    return bootstrap(lambda drawn: values[drawn].mean(1), len(values), num_resamples=num_resamples, seed=seed)


def percentile_interval(statistics: Tensor, *, drawn_from: Tensor | None = None) -> Tensor:
    r"""Ends of the 95 % percentile interval of each column.

    Percentiles of resamples are too near each other where few things are drawn: by a factor of :math:`\sqrt{(n - 1) / n}`, and as
    a normal interval beside Student's. With their number n they are expanded to the levels
    :math:`\Phi(\pm \sqrt{n / (n - 1)} \, t_{n - 1})`.

    Args:
        statistics: Of every resample, (resamples, ...) float64; NaN where a resample has none.
        drawn_from: How many independent things each column was drawn from, (F,) int64, for statistics (resamples, F); None for
            plain percentiles.

    Returns:
        (2, ...): low and high; NaN where no resample has any.

    Source:
        T. C. Hesterberg, *What teachers should know about the bootstrap*, The American Statistician 69(4), 2015, section 4.3.3.
        Departures: none.
    """
    if drawn_from is None:
        tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
        return torch.nanquantile(statistics, tails, dim=0)
    numbers, column = drawn_from.clamp_min(2).unique(return_inverse=True)
    ends = statistics.new_empty(2, statistics.shape[1])
    for place, number in enumerate(numbers.tolist()):
        level = _expanded_level(number)
        here = column == place
        tails = torch.tensor([1 - level, level], dtype=torch.float64)
        ends[:, here] = torch.nanquantile(statistics[:, here], tails, dim=0)
    return ends


def _expanded_level(number: int) -> float:
    """Upper level of percentiles over resamples of so many, >= 2."""
    from scipy.special import ndtr, stdtrit

    quantile = stdtrit(number - 1, (1 + CONFIDENCE) / 2)
    return float(ndtr(quantile * (number / (number - 1)) ** 0.5))
