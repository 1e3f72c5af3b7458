"""Comparisons in which judges may also call a tie."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._check_mode import LossModule
from ._common import Reduction, check_broadcast, check_number, check_values, compared, reduce_loss


def _outcome_loss(
    log_win: Tensor,
    log_lose: Tensor,
    log_tie: Tensor,
    tie: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """Cross-entropy of the three outcomes."""
    check_broadcast("tie", tie, log_win.shape)
    check_values("tie", tie, 0.0, 1.0)
    tied = tie.to(log_win.dtype)
    decided = log_win
    if preference is not None:
        check_broadcast("preference", preference, log_win.shape)
        check_values("preference", preference, 0.0, 1.0)
        share = preference.to(log_win.dtype)
        decided = share * log_win + (1 - share) * log_lose
    return reduce_loss(-tied * log_tie - (1 - tied) * decided, reduction, weight)


def _setting(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        check_broadcast(name, value, like.shape)
        check_values(name, value, 0.0, open_low=True)
        return value.to(like.dtype)
    check_number(name, value, 0.0, open_low=True)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def rao_kupper_loss(
    chosen: Tensor,
    rejected: Tensor,
    tie: Tensor,
    *,
    threshold: Tensor | float = 0.5,
    preference: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Bradley-Terry with ties by a threshold: who cannot tell the responses apart calls a tie.

    A judge prefers one response only if it is better by more than the threshold. The threshold may be a
    tensor that is learnt.

    .. math::
        P_{win} = \sigma(d - h), \quad P_{lose} = \sigma(-d - h), \quad
        P_{tie} = (e^{2h} - 1)\, P_{win} P_{lose}, \qquad d = r_c - r_r

    Args:
        chosen: Rewards of the first responses, (P,), in nats of log-odds.
        rejected: Rewards of the second ones, (P,).
        tie: Share of judges who call a tie, broadcasts to (P,), in [0, 1].
        threshold: h > 0, in the unit of the rewards; a number, or a tensor that broadcasts to (P,).
        preference: Among judges who decide, the share for ``chosen``, in [0, 1]; 1 if None.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,).

    Raises:
        ValueError: If shapes do not fit, a value is not finite or outside its range, or ``reduction`` is
            unknown.

    Source:
        Rao and Kupper, *Ties in Paired-Comparison Experiments: A Generalization of the Bradley-Terry Model*,
        Journal of the American Statistical Association 62, 1967, with theta = exp(h). Departures: shares
        instead of single outcomes.

    .. versionadded:: 0.1
    """
    first, second = compared(chosen, rejected)
    gap = first - second
    h = _setting("threshold", threshold, gap)
    log_win = F.logsigmoid(gap - h)
    log_lose = F.logsigmoid(-gap - h)
    # log(e^{2h} - 1) without overflow for large h, and without cancellation for small h.
    log_tie = 2 * h + torch.log(-torch.expm1(-2 * h)) + log_win + log_lose
    return _outcome_loss(log_win, log_lose, log_tie, tie, preference, weight, reduction)


def davidson_loss(
    chosen: Tensor,
    rejected: Tensor,
    tie: Tensor,
    *,
    prevalence: Tensor | float = 1.0,
    preference: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Bradley-Terry with ties as a third outcome whose odds follow the geometric mean of the two.

    Unlike with a threshold, the odds of winning among decided judges stay those of Bradley-Terry.

    .. math::
        P_{win} \propto e^{d/2}, \quad P_{lose} \propto e^{-d/2}, \quad P_{tie} \propto \nu,
        \qquad d = r_c - r_r

    Args:
        chosen: Rewards of the first responses, (P,), in nats of log-odds.
        rejected: Rewards of the second ones, (P,).
        tie: Share of judges who call a tie, broadcasts to (P,), in [0, 1].
        prevalence: nu > 0, odds of a tie among equals; a number, or a tensor that broadcasts to (P,).
        preference: Among judges who decide, the share for ``chosen``, in [0, 1]; 1 if None.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,).

    Raises:
        ValueError: If shapes do not fit, a value is not finite or outside its range, or ``reduction`` is
            unknown.

    Source:
        Davidson, *On Extending the Bradley-Terry Model to Accommodate Ties in Paired Comparison Experiments*,
        Journal of the American Statistical Association 65, 1970. Departures: shares instead of single
        outcomes.

    .. versionadded:: 0.1
    """
    first, second = compared(chosen, rejected)
    half = (first - second) / 2
    log_nu = _setting("prevalence", prevalence, half).log().expand(half.shape)
    log_win, log_lose, log_tie = torch.stack([half, -half, log_nu]).log_softmax(0).unbind()
    return _outcome_loss(log_win, log_lose, log_tie, tie, preference, weight, reduction)


class RaoKupperLoss(LossModule):
    """Module form of :func:`rao_kupper_loss`, with a fixed threshold."""

    def __init__(self, *, threshold: float = 0.5, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            threshold: Gap that a judge notices, > 0, in the unit of the rewards.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.threshold = threshold
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        tie: Tensor,
        *,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the comparisons; arguments as in :func:`rao_kupper_loss`."""
        return rao_kupper_loss(
            chosen,
            rejected,
            tie,
            threshold=self.threshold,
            preference=preference,
            weight=weight,
            reduction=self.reduction,
        )


class DavidsonLoss(LossModule):
    """Module form of :func:`davidson_loss`, with a fixed prevalence of ties."""

    def __init__(self, *, prevalence: float = 1.0, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            prevalence: Odds of a tie among equals, > 0.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.prevalence = prevalence
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        tie: Tensor,
        *,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the comparisons; arguments as in :func:`davidson_loss`."""
        return davidson_loss(
            chosen,
            rejected,
            tie,
            prevalence=self.prevalence,
            preference=preference,
            weight=weight,
            reduction=self.reduction,
        )
