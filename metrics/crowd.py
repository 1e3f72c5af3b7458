"""How far predicted label distributions are from a crowd's votes; intervals that respect prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pluralign.losses import categorical_wasserstein

from .estimate import Estimate, bootstrap_sums, percentile_interval

__all__ = [
    "NUM_BINS",
    "SMALLEST_PROBABILITY",
    "Bin",
    "CrowdTable",
    "check_votes",
    "crowd_table",
    "item_values",
    "share_deviation",
]

NUM_BINS = 10
SMALLEST_PROBABILITY = 1e-6
"""Least predicted probability in the divergence, which stays finite by it."""


class Bin(NamedTuple):
    """Predictions of one label within [left, left + 0.1): their share of all, prompts, mean, and what was observed.

    An interval needs several prompts: from one it has no length.
    """

    left: float
    share: float
    num_prompts: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class CrowdTable:
    """Everything that :func:`crowd_table` finds.

    Attributes:
        labels: Names of the K labels.
        label_rewards: Their rewards.
        both_orders: Whether every item counts a second time with its labels reversed.
        num_items: Judged items, each counted once.
        num_without_votes: Items left out because nobody judged them.
        num_prompts: Prompts of the judged items.
        num_votes: Votes in all.
        values: Distances by name.
        calibration_error: Per label, in [0, 1].
        calibration_error_floor: What chance alone would give, per label.
        predicted: Mean predicted probability per label.
        observed: Mean observed share per label.
        bins: Reliability per label, non-empty bins only.
        rewards: (M, 2) expected reward as predicted and as observed, of every item in every order counted.
    """

    labels: tuple[str, ...]
    label_rewards: tuple[float, ...]
    both_orders: bool
    num_items: int
    num_without_votes: int
    num_prompts: int
    num_votes: float
    values: dict[str, Estimate]
    calibration_error: tuple[float, ...]
    calibration_error_floor: tuple[float, ...]
    predicted: tuple[Estimate, ...]
    observed: tuple[Estimate, ...]
    bins: tuple[tuple[Bin, ...], ...]
    rewards: Tensor

    @property
    def mean_calibration_error(self) -> float:
        """Mean over labels."""
        return sum(self.calibration_error) / len(self.labels)

    def as_json(self) -> dict[str, object]:
        """Plain values, without those of single items; what is per label stands in a list, as the labels do."""
        names = ("predicted", "observed")
        plain = {name: value for name, value in vars(self).items() if name != "rewards"}
        plain["values"] = {name: value._asdict() for name, value in self.values.items()}
        plain |= {name: [one._asdict() for one in getattr(self, name)] for name in names}
        plain["bins"] = [
            [one._asdict() | {"observed": one.observed._asdict()} for one in label] for label in self.bins
        ]
        return plain


def crowd_table(
    probs: Tensor,
    votes: Tensor,
    prompt: Tensor,
    *,
    labels: Sequence[str],
    label_rewards: Sequence[float],
    both_orders: bool,
    num_resamples: int,
    seed: int,
) -> CrowdTable | None:
    """Compare predictions with votes.

    Args:
        probs: Predicted distributions, (M, K).
        votes: Annotator counts, (M, K), >= 0; an item without any is left out.
        prompt: Prompt of each item, (M,) int64; any numbers.
        labels: K names.
        label_rewards: K rewards.
        both_orders: Count every item and its flip, labels reversed.
        num_resamples: Bootstrap resamples, >= 100 or so.
        seed: Seed of the bootstrap.

    Returns:
        The table; None if no item has votes.

    Raises:
        ValueError: If a row of ``probs`` is no distribution, or votes are negative or not finite.
    """
    probs, votes = probs.double(), votes.double()
    _check_distributions(probs)
    check_votes(votes)
    judged = votes.sum(-1) > 0
    num_items = int(judged.sum())
    if not num_items:
        return None
    ids, member = prompt[judged].unique(return_inverse=True)
    p, counts = probs[judged], votes[judged]
    if both_orders:
        p, counts, member = (
            torch.cat([p, p.flip(-1)]),
            torch.cat([counts, counts.flip(-1)]),
            member.repeat(2),
        )
    q = counts / counts.sum(-1, keepdim=True)
    rewards = torch.tensor(label_rewards, dtype=torch.float64)
    values = item_values(p, counts, rewards)
    num_labels, num_prompts, num_values = p.shape[-1], len(ids), len(values)

    columns = torch.cat([torch.ones_like(p[:, :1]), torch.stack(list(values.values()), 1), p, q], 1)
    sums = columns.new_zeros(num_prompts, columns.shape[1]).index_add_(0, member, columns)
    binned = bin_sums(p, q, member, num_prompts)  # (prompts, 3, K, bins)
    everything = torch.cat([sums, binned.flatten(1)], 1)

    def means(summed: Tensor) -> Tensor:
        """Of every column and of every bin's observed shares, (..., 1 + values + 2 K + K bins)."""
        number, _, observed = summed[..., sums.shape[1] :].unflatten(-1, (3, -1)).unbind(-2)
        return torch.cat([summed[..., : sums.shape[1]] / summed[..., :1], observed / number], -1)

    # A bin that a resample leaves empty is NaN there, and an empty one everywhere.
    ends = percentile_interval(means(bootstrap_sums(everything, num_resamples=num_resamples, seed=seed)))
    estimates = [Estimate(*row) for row in torch.stack([means(everything.sum(0)), *ends], 1).tolist()][1:]

    _, predicted, observed = binned.sum(0)
    gaps = binned[:, 1] - binned[:, 2]
    scatter = (gaps - gaps.mean(0)).square().sum(0).sqrt()
    return CrowdTable(
        labels=tuple(labels),
        label_rewards=tuple(label_rewards),
        both_orders=both_orders,
        num_items=num_items,
        num_without_votes=len(votes) - num_items,
        num_prompts=num_prompts,
        num_votes=float(votes.sum()),
        values=dict(zip(values, estimates, strict=False)),
        calibration_error=tuple(((predicted - observed).abs().sum(-1) / len(p)).tolist()),
        calibration_error_floor=tuple((math.sqrt(2 / math.pi) * scatter.sum(-1) / len(p)).tolist()),
        predicted=tuple(estimates[num_values:][:num_labels]),
        observed=tuple(estimates[num_values + num_labels :][:num_labels]),
        bins=_reliability(binned, estimates[num_values + 2 * num_labels :], len(p)),
        rewards=torch.stack([p @ rewards, q @ rewards], 1),
    )


def _reliability(binned: Tensor, observed: Sequence[Estimate], num_items: int) -> tuple[tuple[Bin, ...], ...]:
    """Non-empty bins of every label, from sums (prompts, 3, K, bins) and estimates of the K x bins observed shares."""
    number, predicted, _ = binned.sum(0)
    shares, centres = (number / num_items).tolist(), (predicted / number).tolist()
    prompts: list[list[int]] = (binned[:, 0] > 0).sum(0).tolist()
    return tuple(
        tuple(
            Bin(b / NUM_BINS, shares[k][b], prompts[k][b], centres[k][b], observed[k * NUM_BINS + b])
            for b in range(NUM_BINS)
            if shares[k][b] > 0
        )
        for k in range(len(number))
    )


def item_values(p: Tensor, counts: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """Distance of each item's prediction from its votes.

    Args:
        p: Predicted distributions, (M, K), float64.
        counts: Votes, (M, K), at least one per item.
        rewards: Rewards of the labels, (K,).

    Returns:
        By name, (M,) each.
    """
    num_votes = counts.sum(-1)
    q = counts / num_votes.unsqueeze(-1)
    top = counts.gather(-1, p.argmax(-1, keepdim=True)).squeeze(-1)
    return {
        "wasserstein_index": categorical_wasserstein(p, q, cost="index", reduction="none"),
        "wasserstein_reward": categorical_wasserstein(p, q, cost=rewards, reduction="none"),
        # rounding, and the floor of p, may take it below 0
        "kl": (torch.xlogy(q, q) - q * p.clamp_min(SMALLEST_PROBABILITY).log()).sum(-1).clamp_min(0),
        "total_variation": (p - q).abs().sum(-1) / 2,
        "total_variation_expected": share_deviation(num_votes, p).sum(-1) / 2,
        "total_variation_floor": share_deviation(num_votes, q).sum(-1) / 2,
        "top1_agreement": (top == counts.amax(-1)).double(),
        "expected_reward_error": ((p - q) @ rewards).abs(),
    }


def share_deviation(num_votes: Tensor, p: Tensor) -> Tensor:
    r"""Mean absolute deviation of the share that n votes give from the probability p of a vote.

    .. math::
        E\,|X/n - p| = \tfrac{2 m}{n} \tbinom{n}{m} p^m (1 - p)^{n - m + 1},
        \qquad X \sim \text{Bin}(n, p), \; m = \lfloor n p \rfloor + 1

    Args:
        num_votes: n, (...,), > 0; rounded to whole votes, at least one.
        p: Probabilities, (..., K).

    Returns:
        (..., K), in [0, 0.5].

    Source:
        De Moivre's formula, as in P. Diaconis and S. Zabell, *Closed Form Summation for Classical Distributions*,
        Statistical Science 6, 1991, equation 1.1. Departures: none.
    """
    n = num_votes.round().clamp_min(1).unsqueeze(-1)
    p = p.clamp(0, 1)
    m = (n * p).floor() + 1
    logarithm = (
        torch.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma(n - m + 1)  # infinite at p = 1: the value is 0
        + torch.xlogy(m, p) + torch.xlogy(n - m + 1, 1 - p)
    )  # fmt: skip
    return 2 * m / n * logarithm.exp()


def bin_sums(p: Tensor, q: Tensor, member: Tensor, num_prompts: int) -> Tensor:
    """Number, predictions and observed shares, summed by prompt, label and bin of the prediction.

    Args:
        p: Predicted distributions, (M, K).
        q: Observed shares, (M, K).
        member: Prompt of each item, (M,) int64, below ``num_prompts``.
        num_prompts: Number of prompts.

    Returns:
        (``num_prompts``, 3, K, ``NUM_BINS``).
    """
    num_labels = p.shape[-1]
    bins = (p * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    cell = (member.unsqueeze(-1) * num_labels + torch.arange(num_labels)) * NUM_BINS + bins
    sums = p.new_zeros(3, num_prompts * num_labels * NUM_BINS)
    for row, values in zip(sums, (torch.ones_like(p), p, q), strict=True):
        row.index_add_(0, cell.flatten(), values.flatten())
    return sums.view(3, num_prompts, num_labels, NUM_BINS).transpose(0, 1)


def check_votes(votes: Tensor) -> None:
    """Refuse what is no number of votes: a NaN would count as an item that nobody voted on, and make their sum NaN.

    Args:
        votes: Annotator counts, (M, K).

    Raises:
        ValueError: If one is negative or not finite.
    """
    fine = ((votes >= 0) & votes.isfinite()).all(-1)
    if not bool(fine.all()):
        first = int((~fine).nonzero()[0])
        raise ValueError(
            f"votes must be finite and >= 0, and 0 where nobody voted; {int((~fine).sum()):,} of {len(votes):,} items differ, the "
            f"first is {votes[first].tolist()}"
        )


def _check_distributions(probs: Tensor) -> None:
    fine = (probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() <= 1e-3)
    if bool(fine.all()):
        return
    first = int((~fine).nonzero()[0])
    raise ValueError(
        f"predicted label probabilities must be >= 0 and sum to 1 within 0.001; {int((~fine).sum())} of {len(probs)} "
        f"items differ, the first is {probs[first].tolist()}"
    )
