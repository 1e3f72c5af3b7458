"""How far the predicted share of a comparison can be trusted: reliability, slope, and the log loss at the best scale."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .clustered import clustered_shares, clustered_sums, ratio_interval
from .estimate import CONFIDENCE, Estimate, bootstrap_sums
from .preference import log_loss

__all__ = [
    "ConfidenceBin",
    "FittedLogLoss",
    "Reliability",
    "calibration_slope",
    "equal_mass_bins",
    "fitted_log_loss",
    "reliability",
]

STEPS = 200
"""Halvings of the interval in which a slope lies."""
HALVINGS = 20
"""And of that in which the end of a calibration error's interval does."""


class ConfidenceBin(NamedTuple):
    """Comparisons of similar confidence; shares are those of the side that is predicted."""

    low: float
    high: float
    number: int
    predicted: float
    observed: Estimate


class Reliability(NamedTuple):
    """Confidence against what was observed."""

    error: Estimate
    """Expected calibration error: mean over comparisons of how far the bins are off, in [0, 1]; chance alone makes it > 0."""
    by_chance: float
    """What it would be on average, were the model calibrated: what chance alone makes of so many; NaN of one cluster."""
    bins: tuple[ConfidenceBin, ...]


class FittedLogLoss(NamedTuple):
    """Log loss after the scale of the log-odds was fitted to other prompts."""

    losses: Tensor
    """Of each comparison, (M,) float64 in nats."""
    temperature: float
    """What log-odds were divided by, harmonic mean over parts; infinite where the odds tell nothing."""


def equal_mass_bins(values: Tensor, num_bins: int) -> Tensor:
    """Bins of about equally many values; equal values are in one bin.

    Args:
        values: (M,).
        num_bins: Bins, >= 1; there are fewer where values are few.

    Returns:
        Bin of each, (M,) int64 from 0 without gaps, in the values' order.
    """
    _, level, counts = values.double().unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0).double() - counts / 2  # of the places that a value takes
    bins = (middle * num_bins / max(1, len(values))).long().clamp_max(num_bins - 1)
    place: Tensor = bins.unique(return_inverse=True)[1][level]
    return place


def reliability(
    odds: Tensor,
    share: Tensor,
    cluster: Tensor,
    *,
    num_bins: int = 10,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Reliability:
    r"""Confidence :math:`\max(p, 1 - p)` against the observed share of that side, in bins of equally many comparisons.

    .. math:: ECE = \sum_b \tfrac{n_b}{M} \, |\bar q_b - \bar c_b|

    The mean of absolute values of what varies is too large, and in a resample, which varies once more, larger still, so that
    percentiles of resamples lie above the error that is there. The interval turns a test round instead: with the bins' gaps
    :math:`g_b` and their noise :math:`e_b`, a resample's gaps less :math:`g_b`, it holds every :math:`\lambda E` for which the
    error that was found lies among the middle 95 % of :math:`\sum_b |\lambda g_b + e_b|`. It begins at 0 where a calibrated model
    might have had as large an error. Bins have Wilson's interval (:func:`clustered_shares`).

    Args:
        odds: Predicted log-odds of the first, (M,).
        share: Share that prefers the first, (M,) in [0, 1].
        cluster: Prompt of each, (M,) int64, any numbers.
        num_bins: Bins, >= 1.
        num_resamples: Resamples of the bootstrap over clusters; bins stay as they are.
        seed: Seed.

    Returns:
        Error and bins; NaN and none without comparisons.

    Source:
        Equal-mass bins: K. Nguyen and B. O'Connor, *Posterior calibration and exploratory analysis for natural language
        processing models*, EMNLP 2015, section 3. Departures: of the predicted side, since which response comes first is
        no property of it.
        The interval is ours; coverage is measured in tests/metrics/test_coverage.py.
    """
    if not len(odds):
        return Reliability(Estimate(*[float("nan")] * 3), float("nan"), ())
    odds, share = odds.double(), share.double()
    confidence = odds.abs().sigmoid()
    # An undecided prediction is of neither side, whichever comes first.
    agreed = torch.where(odds > 0, share, 1 - share).where(odds != 0, odds.new_tensor(0.5))
    bins = equal_mass_bins(confidence, num_bins)
    number = int(bins.max()) + 1
    member = torch.nn.functional.one_hot(bins, number).double()
    sums = clustered_sums(
        torch.cat([member, confidence[:, None] * member, agreed[:, None] * member], 1), cluster
    )
    counts, predicted, observed = sums.sum(0).view(3, number)
    value = float((observed - predicted).abs().sum()) / len(odds)
    low, high, by_chance = _error_interval(value, sums, number, num_resamples=num_resamples, seed=seed)
    nothing = odds.new_tensor(torch.nan)
    shares = clustered_shares(torch.where(member > 0, agreed[:, None], nothing), cluster)
    edges = [(confidence[bins == b].min(), confidence[bins == b].max()) for b in range(number)]
    return Reliability(
        Estimate(value, low, high),
        by_chance,
        tuple(
            ConfidenceBin(
                float(edges[b][0]),
                float(edges[b][1]),
                int(counts[b]),
                float(predicted[b] / counts[b]),
                shares[b],
            )
            for b in range(number)
        ),
    )


def _error_interval(
    value: float, sums: Tensor, number: int, *, num_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Ends of the calibration error's interval, and its mean for a calibrated model, from sums (clusters, 3 bins)."""
    clusters = len(sums)
    if clusters < 2:
        return float("nan"), float("nan"), float("nan")
    _, predicted, observed = sums.sum(0).view(3, number)
    gaps = (observed - predicted) / sums[:, :number].sum()
    drawn = bootstrap_sums(sums, num_resamples=num_resamples, seed=seed).view(num_resamples, 3, number)
    noise = (drawn[:, 2] - drawn[:, 1]) / drawn[:, 0].sum(1, keepdim=True) - gaps
    noise *= (clusters / (clusters - 1)) ** 0.5

    def errors(times: float) -> Tensor:
        found: Tensor = (times * gaps + noise).abs().sum(1)
        return found

    def least(level: float) -> float:
        """The smallest error of which so large a share of resamples is above the one that was found, or at it."""
        low, high = 0.0, 1.0
        if float(errors(0.0).quantile(level)) >= value:
            return 0.0
        while high * value < 1 and float(errors(high).quantile(level)) < value:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if float(errors(middle).quantile(level)) < value else (low, middle)
        return min(1.0, high * value)

    tail = (1 - CONFIDENCE) / 2
    return least(1 - tail), least(tail), float(errors(0.0).mean())


def calibration_slope(
    odds: Tensor, share: Tensor, cluster: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> Estimate:
    r"""By what log-odds :math:`m` have to be multiplied so that the observed shares :math:`s` are likeliest.

    The root :math:`b` of :math:`\sum_i m_i (\sigma(b m_i) - s_i)`. 1 is calibrated, below 1 too sure of itself; below 0 on
    the wrong side. There is no intercept: exchanging the sides of a comparison changes nothing.

    Args:
        odds: Predicted log-odds of the first, (M,).
        share: Share that prefers the first, (M,) in [0, 1].
        cluster: Prompt of each, (M,) int64, any numbers.
        num_resamples: Resamples of the bootstrap over clusters; of each the slope after one step of Newton's from ``b``.
        seed: Seed.

    Returns:
        NaN where all odds are 0, and where no mistake bounds the slope.

    Source:
        D. R. Cox, *Two further applications of a model for binary regression*, Biometrika 45, 1958. Departures: no
        intercept, shares in place of outcomes.
    """
    odds, share = odds.double(), share.double()
    slope = _slope(odds, share)
    if not math.isfinite(slope):
        return Estimate(*[float("nan")] * 3)
    predicted = (slope * odds).sigmoid()
    step = odds * (share - predicted)
    curve = odds.square() * predicted * (1 - predicted)
    totals = clustered_sums(torch.stack([step, curve], 1), cluster)
    low, high = ratio_interval(totals[:, :1], totals[:, 1:], num_resamples=num_resamples, seed=seed)
    return Estimate(slope, slope + float(low), slope + float(high))


def fitted_log_loss(
    odds: Tensor, share: Tensor, cluster: Tensor, *, num_parts: int = 5, seed: int = 0
) -> FittedLogLoss:
    """Log loss of log-odds whose scale was fitted, each part of the clusters at the scale that fits the others best.

    What a reward model is worth as a predictor of shares if one number may be set by looking at other prompts.

    Args:
        odds: Predicted log-odds of the first, (M,); any scale.
        share: Share that prefers the first, (M,) in [0, 1].
        cluster: Prompt of each, (M,) int64, any numbers: those of one are in one part.
        num_parts: Parts, >= 2.
        seed: Decides which prompt is in which part.

    Raises:
        ValueError: If there are fewer clusters than parts.

    Source:
        Scale: C. Guo and others, *On calibration of modern neural networks*, ICML 2017, section 4.2. Smoothed shares, so that a
        model without mistakes has a scale: J. Platt, *Probabilistic outputs for support vector machines*, 1999, section 2.2.
        Departures: cross-fitted; a scale below 0 is 0, which is a coin.
    """
    odds, share = odds.double(), share.double()
    names, member = cluster.unique(return_inverse=True)
    if len(names) < num_parts:
        raise ValueError(
            f"a scale that is fitted on {num_parts} parts needs as many prompts; got {len(names)}"
        )
    generator = torch.Generator().manual_seed(seed)
    part = (torch.randperm(len(names), generator=generator) % num_parts)[member]
    slopes = []
    losses = torch.empty_like(odds)
    for number in range(num_parts):
        here = part == number
        others = share[~here]
        smoothed = others + (1 - 2 * others) / (len(others) + 2)
        slope = _slope(odds[~here], smoothed)
        slope = 0.0 if math.isnan(slope) else max(0.0, slope)
        slopes.append(slope)
        losses[here] = log_loss(slope * odds[here], share[here])
    mean = sum(slopes) / num_parts
    return FittedLogLoss(losses, 1 / mean if mean else float("inf"))


def _slope(odds: Tensor, share: Tensor) -> float:
    """The root; NaN where odds are all 0, infinite where nothing bounds it."""
    size = float(odds.square().mean().sqrt()) if len(odds) else 0.0
    if not size:
        return float("nan")
    unit = odds / size

    def excess(slope: float) -> float:
        return float((unit * ((slope * unit).sigmoid() - share)).sum())

    agreed = torch.where(unit > 0, share, 1 - share)[unit != 0]
    if bool((agreed == 1).all()) or bool((agreed == 0).all()):
        return float("inf") if agreed[0] == 1 else float("-inf")
    low, high = -1.0, 1.0
    while excess(high) < 0:
        high *= 2
    while excess(low) > 0:
        low *= 2
    for _ in range(STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2 / size
