"""Ideal points: a user prefers what lies closer to the user's own point."""

from typing import Literal

import torch
from torch import Tensor

from ._check_mode import LossModule
from ._common import (
    Reduction,
    as_compute,
    check_broadcast,
    check_choice,
    check_indices,
    check_mask,
    check_number,
    check_same_shape,
    check_values,
    reduce_loss,
    safe_norm,
    unit_vector,
)
from .pairwise import bradley_terry_loss, hinge_loss, smoothed_hinge_loss

__all__ = [
    "IdealPointLoss",
    "NormBoundLoss",
    "ideal_point_cross_entropy",
    "ideal_point_loss",
    "ideal_point_reward",
    "norm_bound_loss",
    "token_window_mean",
]

Score = Literal["distance", "squared_distance", "angle"]
PairLoss = Literal["logistic", "hinge", "smoothed_hinge"]
WindowWeighting = Literal["mean", "last", "cumulative"]

_SCORES = ("distance", "squared_distance", "angle")
_PAIR_LOSSES = ("logistic", "hinge", "smoothed_hinge")


def ideal_point_reward(
    item: Tensor, ideal: Tensor, *, score: Score = "distance", scale: Tensor | float = 1.0
) -> Tensor:
    r"""Reward of an item for a user: closeness to the user's ideal point.

    With squared distances the difference of two rewards is linear in the weights of the prototypes that
    make up the ideal point, so that fitting a new user is a convex problem. Distance and angle may
    disagree about a pair.

    .. math::
        r = -c \, \lVert x - u \rVert, \qquad r = -c \, \lVert x - u \rVert^2, \qquad
        r = c \, \frac{x \cdot u}{\lVert x \rVert \, \lVert u \rVert}

    Args:
        item: Features x, (..., D).
        ideal: Ideal points u, (..., D), broadcasts with ``item``.
        score: ``"distance"``, ``"squared_distance"`` or ``"angle"``.
        scale: Factor c > 0; may be a tensor that is learnt and broadcasts to the rewards.

    Returns:
        Rewards, (...,), higher is better, in the unit of the features, its square, or none. Gradient zero
        where item and ideal point coincide (distance), or one of them is zero (angle).

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or ``score`` is unknown.

    Example:
        >>> import torch
        >>> ideal_point_reward(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0]))
        tensor(-5.)

    Source:
        Chen et al., *PAL: Pluralistic Alignment Framework for Learning from Heterogeneous Preferences*, 2024,
        https://arxiv.org/abs/2406.08469, formulas as in the official code (equation numbers not available);
        Coombs, *Psychological Scaling Without a Unit of Measurement*, Psychological Review 57, 1950.
        Departures: squared distance is an addition.

    .. versionadded:: 0.1
    """
    check_choice("score", score, _SCORES)
    check_values("item", item)
    check_values("ideal", ideal)
    if isinstance(scale, Tensor):
        check_values("scale", scale, 0.0, open_low=True)
    else:
        check_number("scale", scale, 0.0, open_low=True)
    x, u = as_compute(item, ideal)
    if x.ndim == 0 or u.ndim == 0 or x.shape[-1] != u.shape[-1]:
        raise ValueError(
            "item and ideal must share their last dimension; "
            f"got {tuple(item.shape)} and {tuple(ideal.shape)}"
        )
    if score == "angle":
        closeness = (unit_vector(x) * unit_vector(u)).sum(-1)
    elif score == "distance":
        closeness = -safe_norm(x - u)
    else:
        closeness = -(x - u).square().sum(-1)
    if isinstance(scale, Tensor):
        check_broadcast("scale", scale, closeness.shape)
        scale = scale.to(closeness.dtype)
    return closeness * scale


def ideal_point_loss(
    chosen: Tensor,
    rejected: Tensor,
    ideal: Tensor,
    *,
    score: Score = "distance",
    loss: PairLoss = "logistic",
    scale: Tensor | float = 1.0,
    preference: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Loss of a user's comparison of two items by their closeness to the user's ideal point.

    ``"logistic"`` is the Bradley-Terry loss of the rewards and equals the cross-entropy over the two scores
    as logits; the hinges use margin 1 and, smoothed, a parabola of width 5.

    .. math:: L = \ell\big(r(x_c, u) - r(x_r, u)\big), \qquad r \ \text{as in ideal\_point\_reward}

    Args:
        chosen: Features of the preferred items, (P, D).
        rejected: Features of the others, (P, D).
        ideal: Ideal points of the judges, (P, D) or broadcasting.
        score: ``"distance"``, ``"squared_distance"`` or ``"angle"``.
        loss: ``"logistic"``, ``"hinge"`` or ``"smoothed_hinge"``.
        scale: Factor of the rewards, > 0; a tensor may be learnt.
        preference: Share of judges who prefer the chosen one, in [0, 1]; only with ``"logistic"``.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,).

    Raises:
        ValueError: If shapes do not fit, a value is not finite, an option is unknown, or ``preference`` comes
            with a hinge.

    Source:
        As :func:`ideal_point_reward`. Defaults of the official code: hinge with distances for fixed
        prototypes, cross-entropy with angles at scale 1/0.07 for prompt-conditioned ones. Departures: the
        official code's logistic loss of distances has its sign reversed; here the closer item wins.

    .. versionadded:: 0.1
    """
    check_choice("loss", loss, _PAIR_LOSSES)
    first = ideal_point_reward(chosen, ideal, score=score, scale=scale)
    second = ideal_point_reward(rejected, ideal, score=score, scale=scale)
    if loss == "logistic":
        return bradley_terry_loss(first, second, preference=preference, weight=weight, reduction=reduction)
    if preference is not None:
        raise ValueError(f"preference needs loss='logistic'; got loss={loss!r}")
    hinge = hinge_loss if loss == "hinge" else smoothed_hinge_loss
    return hinge(first, second, weight=weight, reduction=reduction)


def ideal_point_cross_entropy(
    items: Tensor,
    ideal: Tensor,
    preferred: Tensor,
    *,
    score: Score = "angle",
    scale: Tensor | float = 1.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of a user's choice among several items; for two it is the logistic loss.

    .. math:: L = -\log \frac{\exp r(x_y, u)}{\sum_k \exp r(x_k, u)}

    Args:
        items: Features of the options, (B, K, D).
        ideal: Ideal points of the judges, (B, D) or broadcasting to it.
        preferred: Index y of the option chosen, (B,) int64, in 0..K-1.
        score: ``"distance"``, ``"squared_distance"`` or ``"angle"``.
        scale: Factor of the rewards, > 0; a tensor may be learnt.
        weight: Weights >= 0, broadcast to (B,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (B,).

    Raises:
        ValueError: If shapes do not fit, an index is outside 0..K-1, or an option is unknown.
        TypeError: If ``preferred`` does not hold integers.

    Source:
        As :func:`ideal_point_reward`. Departures: more than two options is an addition.

    .. versionadded:: 0.1
    """
    if items.ndim < 2 or preferred.shape != items.shape[:-2]:
        raise ValueError(
            f"preferred must have the shape of items without its last two; got {tuple(preferred.shape)} for "
            f"{tuple(items.shape)}"
        )
    check_indices("preferred", preferred, 0, items.shape[-2] - 1)
    check_broadcast("ideal", ideal, items.shape[:-2] + items.shape[-1:])
    rewards = ideal_point_reward(items, ideal.unsqueeze(-2), score=score, scale=scale)
    loss = -rewards.log_softmax(-1).gather(-1, preferred.unsqueeze(-1)).squeeze(-1)
    return reduce_loss(loss, reduction, weight)


def norm_bound_loss(
    ideal: Tensor, *, bound: float = 4.0, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""What the norm of an ideal point exceeds a bound by.

    .. math:: L = \max(0, \lVert u \rVert - b)

    Args:
        ideal: Ideal points u, (..., D).
        bound: Free norm b, >= 0, in the unit of the features.
        weight: Weights >= 0, broadcast to (...,).
        reduction: ``"mean"`` (weighted), ``"sum"`` (the original's) or ``"none"``.

    Returns:
        Loss >= 0, scalar or (...,), in the unit of the features.

    Raises:
        ValueError: If a value is not finite, ``bound`` < 0, or ``reduction`` is unknown.

    Source:
        Chen et al., 2024, as :func:`ideal_point_reward`: the official code's text-to-image branch (bound
        4). Departures: none.

    .. versionadded:: 0.1
    """
    check_number("bound", bound, 0.0)
    check_values("ideal", ideal)
    (points,) = as_compute(ideal)
    return reduce_loss((safe_norm(points) - bound).clamp_min(0), reduction, weight)


def token_window_mean(values: Tensor, mask: Tensor, *, weighting: WindowWeighting = "cumulative") -> Tensor:
    r"""Weighted mean of per-token values over each row's window of tokens.

    .. math::
        \frac{\sum_{j=1}^{l} w_j v_j}{\sum_{j=1}^{l} w_j}, \qquad
        w_j = j \ (\text{cumulative}),\ 1\ (\text{mean}),\ 1[j = l]\ (\text{last})

    Args:
        values: Per-token values, (..., T).
        mask: Tokens inside the window, same shape, bool; j counts these from 1 to l.
        weighting: ``"cumulative"`` (later tokens weigh more), ``"mean"`` or ``"last"``.

    Returns:
        Means, (...,); 0 for an empty window.

    Raises:
        ValueError: If shapes differ or ``weighting`` is unknown.
        TypeError: If ``mask`` is not boolean.

    Source:
        Chen et al., 2024, as :func:`ideal_point_reward`: the official code's weighting of token losses.
        Departures: the window is a mask and not found from padding ids.

    .. versionadded:: 0.1
    """
    check_choice("weighting", weighting, ("cumulative", "mean", "last"))
    check_same_shape(values=values, mask=mask)
    check_mask(mask)
    (numbers,) = as_compute(values)
    position = mask.cumsum(-1)
    if weighting == "cumulative":
        weight = position
    elif weighting == "mean":
        weight = torch.ones_like(position)
    else:
        weight = (position == position[..., -1:]).long()
    weight = torch.where(mask, weight, 0).to(numbers.dtype)
    inside = torch.where(mask, numbers, 0.0)
    return (weight * inside).sum(-1) / weight.sum(-1).clamp_min(1)


class IdealPointLoss(LossModule):
    """Module form of :func:`ideal_point_loss`."""

    def __init__(
        self,
        *,
        score: Score = "distance",
        loss: PairLoss = "logistic",
        scale: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        """Keep the settings.

        Args:
            score: ``"distance"``, ``"squared_distance"`` or ``"angle"``.
            loss: ``"logistic"``, ``"hinge"`` or ``"smoothed_hinge"``.
            scale: Factor of the rewards, > 0, unless one is given at the call.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.score: Score = score
        self.loss: PairLoss = loss
        self.scale = scale
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        ideal: Tensor,
        *,
        scale: Tensor | None = None,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the comparisons; arguments as in :func:`ideal_point_loss`."""
        return ideal_point_loss(
            chosen,
            rejected,
            ideal,
            score=self.score,
            loss=self.loss,
            scale=self.scale if scale is None else scale,
            preference=preference,
            weight=weight,
            reduction=self.reduction,
        )


class NormBoundLoss(LossModule):
    """Module form of :func:`norm_bound_loss`."""

    def __init__(self, *, bound: float = 4.0, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            bound: Free norm, >= 0.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.bound = bound
        self.reduction: Reduction = reduction

    def forward(self, ideal: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Excess over the bound; arguments as in :func:`norm_bound_loss`."""
        return norm_bound_loss(ideal, bound=self.bound, weight=weight, reduction=self.reduction)
