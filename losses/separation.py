"""MetaRM's difference objective: how far apart rewards of responses to one prompt lie."""

import torch
from torch import Tensor

from ._check_mode import LossModule
from ._common import Reduction, as_compute, check_number, check_values, reduce_loss
from ._ranked import keep_present, same_list

__all__ = ["SeparationObjective", "separation_objective"]


def separation_objective(
    reward: Tensor,
    *,
    group: Tensor | None = None,
    mask: Tensor | None = None,
    smoothing: float = 0.0,
    break_ties: bool = False,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""How well rewards tell the responses to a prompt apart, labels or not; to be *increased*.

    It rewards any separation, right or wrong, and any growth of scale, so watch both. Exactly tied rewards
    have no gradient, as |d| has none at zero; a smooth |d| has none there either, being symmetric, and only
    makes the gradient continuous. ``break_ties`` takes the one-sided derivative, which parts ties in the
    order of the responses. Prompts are padded rows with a ``mask``, or lie in one flat list with the prompt of each
    response in ``group``.

    .. math::
        J = \frac{2}{k^2} \sum_{i < j} \sigma(|r_i - r_j|), \qquad
        |d| \to \sqrt{d^2 + s^2} \ \text{when smoothed by}\ s

    Args:
        reward: Rewards of the k responses sampled for a prompt, (..., k); with ``group`` of all prompts, (R,).
        group: Prompt of each response, (R,) integer.
        mask: Responses that exist, same shape, bool; k counts them.
        smoothing: s >= 0, in the unit of the rewards.
        break_ties: Whether ties get the gradient of a just positive difference r_i - r_j, i < j.
        weight: Weights >= 0 of the prompts, broadcast to (...,); with ``group`` (R,), equal within a prompt.
        reduction: ``"mean"`` over prompts (weighted), with ``group`` over those of two responses or more; ``"sum"`` or
            ``"none"``.

    Returns:
        Objective, scalar or (...,): from (k - 1) / 2k when all are equal to (k - 1) / k when all are far
        apart. With ``group`` and ``"none"``, (R,): each response's share, which add up to its prompt's.

    Raises:
        ValueError: If shapes do not fit, a value that counts is not finite, ``smoothing`` < 0, or
            ``reduction`` is unknown.
        TypeError: If ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> separation_objective(torch.tensor([[0.2, 0.5, 1.1]]))
        tensor(0.4291)

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, equation 11,
        https://arxiv.org/abs/2401.06080; also Dou et al., *MetaRM: Shifted Distributions Alignment via
        Meta-Learning*, https://arxiv.org/abs/2405.00438. Departures: the mean over prompts is our reading;
        mask, group, smoothing and ``break_ties`` are additions.

    .. versionadded:: 0.1
    """
    check_number("smoothing", smoothing, 0.0)
    listed = same_list(reward, group, mask)
    (rewards,) = as_compute(keep_present(reward, mask))
    check_values("reward", rewards)
    size = rewards.shape[-1]
    pairs = listed & torch.ones(size, size, dtype=torch.bool, device=rewards.device).triu(1)
    gap = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
    apart = torch.hypot(gap, torch.full_like(gap, smoothing)) if smoothing else gap.abs()
    if break_ties:
        apart = apart + torch.where(gap == 0, gap - gap.detach(), 0.0)  # nothing but a slope of 1
    found = torch.where(pairs, torch.sigmoid(apart), 0.0)
    if group is not None:
        return _of_shares(found, listed.sum(-1).to(found.dtype), reduction, weight)
    total = found.sum((-2, -1))
    if mask is None:
        count = torch.full_like(total, size)
    else:
        count = mask.sum(-1).to(total.dtype)
    return reduce_loss(2 * total / count.clamp_min(1).square(), reduction, weight)


def _of_shares(found: Tensor, count: Tensor, reduction: Reduction, weight: Tensor | None) -> Tensor:
    """The objective from (R, R) pairs above the diagonal and each response's k (R,), reduced."""
    shares = (found + found.mT).sum(-1) / count.clamp_min(1).square()
    if reduction != "mean":
        return reduce_loss(shares, reduction, weight)
    prompts = torch.where(count >= 2, 1 / count.clamp_min(1), 0.0)  # which add up to one for each prompt
    if weight is not None:
        prompts = prompts * weight
    number = prompts.sum()
    return reduce_loss(shares, "sum", weight) / torch.where(number > 0, number, torch.ones_like(number))


class SeparationObjective(LossModule):
    """Module form of :func:`separation_objective`."""

    def __init__(
        self, *, smoothing: float = 0.0, break_ties: bool = False, reduction: Reduction = "mean"
    ) -> None:
        """Keep the settings.

        Args:
            smoothing: Width of the rounded corner of |d|, >= 0, in the unit of the rewards.
            break_ties: Whether ties get a gradient.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.smoothing = smoothing
        self.break_ties = break_ties
        self.reduction: Reduction = reduction

    def forward(
        self,
        reward: Tensor,
        *,
        group: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Objective of the prompts; arguments as in :func:`separation_objective`."""
        return separation_objective(
            reward,
            group=group,
            mask=mask,
            smoothing=self.smoothing,
            break_ties=self.break_ties,
            weight=weight,
            reduction=self.reduction,
        )
