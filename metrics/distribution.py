"""How strengths are distributed: groups of equal size, and a histogram of round bins."""

from math import ceil, floor, log10
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["StrengthHistogram", "quantile_shares", "strength_histogram"]

NUM_BINS, FEWEST_BINS = 40, 8
"""Bins that the middle of the strengths comes to, of many comparisons and of few; each side may take as many again."""
MIDDLE = (0.01, 0.99)


class StrengthHistogram(NamedTuple):
    """How many comparisons have a strength within [``left + i width``, ``left + (i + 1) width``); 0 is a border."""

    left: float
    width: float
    counts: tuple[int, ...]
    below: int
    """Comparisons below the first bin: farther out than the middle 98 % is wide."""
    above: int


def quantile_shares(values: Tensor, num_groups: int) -> Tensor:
    """How much of each row is in each of several groups of equal size, the lowest values first.

    A row whose place in the order is crossed by a border is in both groups by so much, and equal values share their places
    evenly: the result does not depend on the order of the rows.

    Args:
        values: (N,) float64, N >= ``num_groups``.
        num_groups: Number of groups, >= 1.

    Returns:
        (N, ``num_groups``) in [0, 1]; rows sum to 1, columns to N / ``num_groups``.
    """
    _, level, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double().unsqueeze(1)
    size = counts.double().unsqueeze(1)
    borders = torch.arange(num_groups + 1, dtype=torch.float64) * len(values) / num_groups
    overlap = torch.minimum(ends, borders[1:]) - torch.maximum(ends - size, borders[:-1])
    shares: Tensor = (overlap.clamp_min(0) / size)[level]
    return shares


def strength_histogram(strength: Tensor) -> StrengthHistogram:
    """Bins of a round width, from the middle of the strengths, as far as there are any but not endlessly.

    Args:
        strength: (N,) float64, N >= 1.
    """
    ordered, last = strength.sort().values, len(strength) - 1
    low, high = (float(ordered[place]) for place in (floor(MIDDLE[0] * last), ceil(MIDDLE[1] * last)))
    low, high = min(low, 0.0), max(high, 0.0)
    span = high - low
    number = min(NUM_BINS, max(FEWEST_BINS, int(2 * len(strength) ** 0.5)))
    width = _round_up(span / number) if span > 0 else 1.0
    first = floor(max(float(ordered[0]), low - span) / width)
    end = floor(min(float(ordered[-1]), high + span) / width) + 1
    first, end = min(first, 0), max(end, 1)
    bins = (strength / width).floor().clamp(first - 1, end).long() - first + 1
    below, *counts, above = bins.bincount(minlength=end - first + 2).tolist()
    return StrengthHistogram(first * width, width, tuple(counts), below, above)


def _round_up(number: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below, for a number above 0."""
    power = 10.0 ** floor(log10(number))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= number)
