"""Losses on lists of responses: all ordered pairs of a list, or the whole order at once."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ._check_mode import LossModule
from ._common import (
    Reduction,
    as_compute,
    check_broadcast,
    check_choice,
    check_mask,
    check_number,
    check_same_shape,
    check_values,
    reduce_loss,
)

PairAverage = Literal["pair", "prompt"]


def check_list(values: Tensor, mask: Tensor | None) -> None:
    """Raise unless ``values`` is a list and ``mask`` fits (``ValueError``) and is bool (``TypeError``)."""
    check_same_shape(reward=values, mask=mask)
    if values.ndim == 0:
        raise ValueError("reward must have at least one dimension; got a scalar")
    check_mask(mask)


def same_list(values: Tensor, group: Tensor | None, mask: Tensor | None) -> Tensor:
    """Which pairs of entries are both present and belong to one list.

    Args:
        values: (..., R); with ``group``, (R,).
        group: (R,) integer: the list of each entry; None if the last dimension is one list.
        mask: (..., R) bool: entries that are present; None if all are.

    Returns:
        (..., R, R) bool.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: If ``mask`` is not boolean.
    """
    check_list(values, mask)
    present = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    pairs = present.unsqueeze(-1) & present.unsqueeze(-2)
    if group is not None:
        if values.ndim != 1 or group.shape != values.shape:
            raise ValueError(
                "with group, reward and group must both be (R,); "
                f"got {tuple(values.shape)}, {tuple(group.shape)}"
            )
        pairs = pairs & (group.unsqueeze(-1) == group.unsqueeze(-2))
    return pairs


def keep_present(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero in place of absent entries, so that whatever they hold cannot leak."""
    return values if mask is None else torch.where(mask, values, torch.zeros_like(values))


def ranked_pairs_loss(
    reward: Tensor,
    score: Tensor,
    *,
    group: Tensor | None = None,
    mask: Tensor | None = None,
    average: PairAverage = "pair",
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Bradley-Terry loss over all strictly ordered pairs of responses to a prompt.

    Equal scores make no pair. Lists are either padded rows (B, R) with a ``mask``, or a flat (R,) with the
    list of each response in ``group``.

    .. math::
        L = \frac{1}{|P|} \sum_{(i,j) \in P} -\log \sigma(r_i - r_j),
        \qquad P = \{(i, j)\ \text{in one list}: s_i > s_j\}

    Args:
        reward: Predicted rewards, (B, R), or (R,) with ``group``.
        score: What the order comes from, same shape, any unit; only comparisons of it matter.
        group: List of each response, (R,) integer.
        mask: Responses that exist, shape of ``reward``, bool. Negative scores are legitimate scores.
        average: ``"pair"``: every pair counts the same, so long lists weigh more; ``"prompt"``: mean over the
            pairs of a list first, then over lists that have any.
        weight: Weights >= 0 that broadcast to (..., R, R), pairs (preferred, other); for a weight per
            padded row give (B, 1, 1).
        reduction: ``"mean"`` (weighted, as ``average`` says), ``"sum"``, or ``"none"`` for the pair matrix.

    Returns:
        Loss >= 0: scalar, or (..., R, R) with zeros where there is no pair (whose sum is ``"sum"``). No pair
        at all gives 0.

    Raises:
        ValueError: If shapes do not fit, a value that counts is not finite, or an option is unknown.
        TypeError: If ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> ranked_pairs_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.5]]))
        tensor(0.2201)

    Source:
        Cheng et al., *Everyone Deserves A Reward: Learning Customized Human Preferences*, 2023,
        https://arxiv.org/abs/2309.03126; formula as in the official code (the paper's equation number was
        not available). Departures: absent responses are given by a mask and not by a negative score; the
        mean per prompt is an addition.

    .. versionadded:: 0.1
    """
    check_choice("average", average, ("pair", "prompt"))
    check_same_shape(reward=reward, score=score)
    listed = same_list(reward, group, mask)
    (rewards,), scores = as_compute(keep_present(reward, mask)), keep_present(score, mask)
    check_values("reward", rewards)
    check_values("score", scores)
    ordered = listed & (scores.unsqueeze(-1) > scores.unsqueeze(-2))
    loss = -F.logsigmoid(rewards.unsqueeze(-1) - rewards.unsqueeze(-2))
    loss = torch.where(ordered, loss, torch.zeros_like(loss))
    share = ordered.to(loss.dtype)
    if average == "prompt":
        per_response = share.sum(-1)
        if group is None:
            count = per_response.sum(-1, keepdim=True)
        else:
            count = (listed * per_response).sum(-1)
        share = share / count.clamp_min(1).unsqueeze(-1)
    if weight is not None:
        check_broadcast("weight", weight, share.shape)
        check_values("weight", weight, 0.0)
        share = share * weight.to(loss.dtype)
    return reduce_loss(loss, reduction, share)


def plackett_luce_loss(
    reward: Tensor,
    score: Tensor,
    *,
    mask: Tensor | None = None,
    top: int | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Negative log-likelihood of whole rankings under the Plackett-Luce model.

    The best response is drawn among all, the next among the rest, and so on. Two responses give the
    Bradley-Terry loss. Tied scores are taken in the order in which they are listed.

    .. math:: L = \sum_{t} \log \sum_{u \ge t} \exp(r_{\pi(u)} - r_{\pi(t)}), \qquad \pi = \text{best first}

    Args:
        reward: Predicted rewards, (..., R).
        score: The higher the better ranked, same shape.
        mask: Responses that exist, same shape, bool.
        top: Only the first ``top`` draws count (a partial ranking), >= 1; None for all.
        weight: Weights >= 0 of the rankings, broadcast to (...,).
        reduction: ``"mean"`` over rankings (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (...,).

    Raises:
        ValueError: If shapes do not fit, a value that counts is not finite, ``top`` < 1, or ``reduction`` is
            unknown.
        TypeError: If ``mask`` is not boolean.

    Source:
        Plackett, *The Analysis of Permutations*, Applied Statistics 24, 1975; Luce, *Individual Choice
        Behavior*, 1959; as a ranking loss: Xia et al., *Listwise Approach to Learning to Rank*, ICML 2008.
        Departures: none.

    .. versionadded:: 0.1
    """
    check_same_shape(reward=reward, score=score)
    if top is not None:
        check_number("top", top, 1)
    check_list(reward, mask)
    (rewards,), scores = as_compute(keep_present(reward, mask)), keep_present(score, mask)
    check_values("reward", rewards)
    check_values("score", scores)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    if mask is not None:
        absent = (~mask.gather(-1, order)).to(torch.uint8)
        order = order.gather(-1, absent.argsort(dim=-1, stable=True))
    rewards = rewards.gather(-1, order)
    size = rewards.shape[-1]
    position = torch.arange(size, device=rewards.device)
    # Absent responses come last in a sorted row.
    drawn = (position < size).expand_as(rewards) if mask is None else position < mask.sum(-1, keepdim=True)
    later = (position >= position.unsqueeze(-1)) & drawn.unsqueeze(-2)
    later = later | torch.eye(size, dtype=torch.bool, device=rewards.device)  # an empty row would give -inf
    gap = rewards.unsqueeze(-2) - rewards.unsqueeze(-1)
    loss = torch.where(later, gap, torch.full_like(gap, -torch.inf)).logsumexp(-1)
    if top is not None:
        drawn = drawn & (position < top)
    return reduce_loss(torch.where(drawn, loss, torch.zeros_like(loss)).sum(-1), reduction, weight)


class RankedPairsLoss(LossModule):
    """Module form of :func:`ranked_pairs_loss`."""

    def __init__(self, *, average: PairAverage = "pair", reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            average: ``"pair"``: every pair counts the same; ``"prompt"``: every list does.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.average: PairAverage = average
        self.reduction: Reduction = reduction

    def forward(
        self,
        reward: Tensor,
        score: Tensor,
        *,
        group: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the lists; arguments as in :func:`ranked_pairs_loss`."""
        return ranked_pairs_loss(
            reward,
            score,
            group=group,
            mask=mask,
            average=self.average,
            weight=weight,
            reduction=self.reduction,
        )


class PlackettLuceLoss(LossModule):
    """Module form of :func:`plackett_luce_loss`."""

    def __init__(self, *, top: int | None = None, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            top: Only the first ``top`` draws count, >= 1; None for all.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.top = top
        self.reduction: Reduction = reduction

    def forward(
        self, reward: Tensor, score: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Loss of the rankings; arguments as in :func:`plackett_luce_loss`."""
        return plackett_luce_loss(
            reward, score, mask=mask, top=self.top, weight=weight, reduction=self.reduction
        )
