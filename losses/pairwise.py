"""Losses on rewards that were compared: pairs, ranked lists, ties, and where rewards are centred."""

import math

import torch.nn.functional as F
from torch import Tensor

from ._check_mode import LossModule
from ._common import Reduction, check_broadcast, check_number, check_values, compared, reduce_loss
from ._ranked import PlackettLuceLoss, RankedPairsLoss, plackett_luce_loss, ranked_pairs_loss
from ._ties import DavidsonLoss, RaoKupperLoss, davidson_loss, rao_kupper_loss

__all__ = [
    "BradleyTerryLoss",
    "DavidsonLoss",
    "HingeLoss",
    "PlackettLuceLoss",
    "RankedPairsLoss",
    "RaoKupperLoss",
    "RewardCenteringLoss",
    "SmoothedHingeLoss",
    "bradley_terry_loss",
    "davidson_loss",
    "hinge_loss",
    "plackett_luce_loss",
    "ranked_pairs_loss",
    "rao_kupper_loss",
    "reward_centering_loss",
    "smoothed_hinge_loss",
]


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    preference: Tensor | None = None,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Negative log-likelihood of comparisons under the Bradley-Terry model.

    One formula holds the whole family. A flipped label is ``preference`` 0, or equally smoothing 1, or
    swapped rewards with a negated margin; a soft label is a ``preference`` between; smoothing by a
    replaces p by (1 - a) p + a (1 - p). Without margin the loss is least at a gap of
    :math:`\log(p / (1 - p))`; a margin moves that optimum by itself, and may be negative, as the signed
    strength of a suspected wrong label is.

    .. math:: L = -p \log \sigma(z) - (1 - p) \log \sigma(-z), \qquad z = r_c - r_r - m

    Args:
        chosen: Rewards of the preferred responses, any shape (P,), in nats of log-odds.
        rejected: Rewards of the others, same shape.
        preference: Share of judges who prefer the chosen one, broadcasts to (P,), in [0, 1]; 1 if None.
        margin: Required gap, signed, broadcasts to (P,), in the unit of the rewards; 0 if None.
        label_smoothing: Probability that a label is wrong, in [0, 1].
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,), float32 (float64 for float64 input).

    Raises:
        ValueError: If shapes do not fit, a value is not finite or outside its range, or ``reduction`` is
            unknown.

    Example:
        >>> import torch
        >>> bradley_terry_loss(torch.tensor([0.5]), torch.tensor([0.0]), label_smoothing=0.2)
        tensor(0.5741)

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, equations 2
        (plain), 5 (smoothing) and 6 (margin), https://arxiv.org/abs/2401.06080. Departures: the margin is
        inside the sigmoid, the only reading under which it acts (equation 6 prints it outside), and
        smoothing together with a margin puts equation 6's z into equation 5; both are our reading of it. The
        official code's log(sigmoid + 1e-5) saturates and is not used.

    .. versionadded:: 0.1
    """
    first, second = compared(chosen, rejected)
    check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    gap = first - second
    if margin is not None:
        check_broadcast("margin", margin, chosen.shape)
        check_values("margin", margin)
        gap = gap - margin.to(gap.dtype)
    if preference is None:
        loss = -F.logsigmoid(gap)
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-gap)
        return reduce_loss(loss, reduction, weight)
    check_broadcast("preference", preference, chosen.shape)
    check_values("preference", preference, 0.0, 1.0)
    share = preference.to(gap.dtype)
    if label_smoothing:
        share = (1 - label_smoothing) * share + label_smoothing * (1 - share)
    loss = -share * F.logsigmoid(gap) - (1 - share) * F.logsigmoid(-gap)
    return reduce_loss(loss, reduction, weight)


def reward_centering_loss(
    chosen: Tensor, rejected: Tensor, *, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Square of the sum of a pair's rewards: fixes the offset that comparisons leave free.

    Add it with a small coefficient (0.01 is usual). It is zero when each pair lies symmetrically around
    zero, and does not otherwise resist separating the pair.

    .. math:: L = (r_c + r_r)^2

    Args:
        chosen: Rewards of the preferred responses, (P,).
        rejected: Rewards of the others, (P,).
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,), in squared units of the rewards.

    Raises:
        ValueError: If shapes differ, a value is not finite, or ``reduction`` is unknown.

    Source:
        Eisenstein et al., *Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward
        Hacking*, 2023, the regulariser of the reward model's objective,
        https://arxiv.org/abs/2312.09244. Departures: none.

    .. versionadded:: 0.1
    """
    first, second = compared(chosen, rejected)
    return reduce_loss((first + second).square(), reduction, weight)


def hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float = 1.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""What a pair lacks of the required gap; pairs that have it give no gradient.

    .. math:: L = \max(0,\ m - (r_c - r_r))

    Args:
        chosen: Rewards of the preferred responses, (P,).
        rejected: Rewards of the others, (P,).
        margin: Required gap m, a number or a tensor that broadcasts to (P,), in the unit of the rewards.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,), in the unit of the rewards.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or ``reduction`` is unknown.

    Source:
        Chen et al., *PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences*, 2024,
        https://arxiv.org/abs/2406.08469, as in the official code, where it is the default with distances
        (equation number not available). Departures: none.

    .. versionadded:: 0.1
    """
    return reduce_loss(F.relu(_shortfall(chosen, rejected, margin)), reduction, weight)


def smoothed_hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float = 1.0,
    smoothing: float = 5.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Hinge loss whose corner is a parabola: the gradient is continuous.

    .. math::
        L = \begin{cases} \max(0, z)^2 / 2\gamma & z \le \gamma \\ z - \gamma / 2 & z > \gamma \end{cases},
        \qquad z = m - (r_c - r_r)

    Args:
        chosen: Rewards of the preferred responses, (P,).
        rejected: Rewards of the others, (P,).
        margin: Required gap m, a number or a tensor that broadcasts to (P,), in the unit of the rewards.
        smoothing: Width gamma of the parabola, > 0, in the unit of the rewards; towards 0 it is the hinge.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,), in the unit of the rewards.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, ``smoothing`` <= 0, or ``reduction`` is
            unknown.

    Source:
        Chen et al., *PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences*, 2024,
        https://arxiv.org/abs/2406.08469, as in the official code, gamma = 5 (equation number not
        available). Departures: none.

    .. versionadded:: 0.1
    """
    check_number("smoothing", smoothing, 0.0, open_low=True)
    lack = F.relu(_shortfall(chosen, rejected, margin))
    parabola = lack.clamp_max(smoothing).square() / (2 * smoothing)
    return reduce_loss(parabola + F.relu(lack - smoothing), reduction, weight)


def _shortfall(chosen: Tensor, rejected: Tensor, margin: Tensor | float) -> Tensor:
    first, second = compared(chosen, rejected)
    if isinstance(margin, Tensor):
        check_broadcast("margin", margin, chosen.shape)
        check_values("margin", margin)
        margin = margin.to(first.dtype)
    else:
        check_number("margin", margin, -math.inf)
    return margin - (first - second)


class BradleyTerryLoss(LossModule):
    """Module form of :func:`bradley_terry_loss`."""

    def __init__(self, *, label_smoothing: float = 0.0, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            label_smoothing: Probability that a label is wrong, in [0, 1].
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        preference: Tensor | None = None,
        margin: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the comparisons; arguments as in :func:`bradley_terry_loss`."""
        return bradley_terry_loss(
            chosen,
            rejected,
            preference=preference,
            margin=margin,
            label_smoothing=self.label_smoothing,
            weight=weight,
            reduction=self.reduction,
        )


class RewardCenteringLoss(LossModule):
    """Module form of :func:`reward_centering_loss`."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.reduction: Reduction = reduction

    def forward(self, chosen: Tensor, rejected: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Loss of the pairs; arguments as in :func:`reward_centering_loss`."""
        return reward_centering_loss(chosen, rejected, weight=weight, reduction=self.reduction)


class HingeLoss(LossModule):
    """Module form of :func:`hinge_loss`."""

    def __init__(self, *, margin: float = 1.0, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            margin: Required gap, in the unit of the rewards.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.margin = margin
        self.reduction: Reduction = reduction

    def forward(
        self, chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Loss of the pairs; a ``margin`` given here goes first. See :func:`hinge_loss`."""
        required = self.margin if margin is None else margin
        return hinge_loss(chosen, rejected, margin=required, weight=weight, reduction=self.reduction)


class SmoothedHingeLoss(LossModule):
    """Module form of :func:`smoothed_hinge_loss`."""

    def __init__(self, *, margin: float = 1.0, smoothing: float = 5.0, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            margin: Required gap, in the unit of the rewards.
            smoothing: Width of the parabola, > 0.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.margin = margin
        self.smoothing = smoothing
        self.reduction: Reduction = reduction

    def forward(
        self, chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Loss of the pairs; a ``margin`` given here goes first. See :func:`smoothed_hinge_loss`."""
        return smoothed_hinge_loss(
            chosen,
            rejected,
            margin=self.margin if margin is None else margin,
            smoothing=self.smoothing,
            weight=weight,
            reduction=self.reduction,
        )
