"""Contrastive terms for reward models: two views of a batch should agree and differ from the rest."""

import torch
from torch import Tensor, nn

from ._check_mode import LossModule
from ._common import Reduction, as_compute, check_number, check_same_shape, reduce_loss, unit_vector
from ._swav import SwAVLoss, check_row_mask, check_views, masked_weight, sinkhorn_assignment, swav_loss
from .pairwise import bradley_terry_loss

__all__ = [
    "ContrastiveMarginLoss",
    "SimCSELoss",
    "SwAVLoss",
    "difference_views",
    "pair_views",
    "simcse_loss",
    "sinkhorn_assignment",
    "swav_loss",
]


def pair_views(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Features of chosen and rejected responses as rows of one view: each other's hard negatives.

    .. math:: H = \{f_c\} \cup \{f_r\}

    Args:
        chosen: Features of the preferred responses, (P, H).
        rejected: Features of the others, (P, H).

    Returns:
        Rows, (2 P, H).

    Raises:
        ValueError: If shapes differ.

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, section on
        contrastive learning, https://arxiv.org/abs/2401.06080. Departures: none.

    .. versionadded:: 0.1
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    return torch.cat([chosen, rejected])


def difference_views(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Differences of a pair's features, both ways round, as rows of one view.

    Each row has its own negative in the batch, at cosine -1: an easy negative.

    .. math:: H = \{f_c - f_r\} \cup \{f_r - f_c\}

    Args:
        chosen: Features of the preferred responses, (P, H).
        rejected: Features of the others, (P, H).

    Returns:
        Rows, (2 P, H).

    Raises:
        ValueError: If shapes differ.

    Source:
        As :func:`pair_views`; there called "-diff". Departures: none.

    .. versionadded:: 0.1
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    difference = chosen - rejected
    return torch.cat([difference, -difference])


def simcse_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float = 0.05,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Each row should find its own second view among all second views.

    .. math:: L_i = -\log \frac{\exp(\cos(h_i, h'_i) / \tau)}{\sum_j \exp(\cos(h_i, h'_j) / \tau)}

    What stands in several rows is its own negative, which no network could tell apart: give each thing one row.

    Args:
        first: One view, (N, H); a zero row has cosine 0 with everything.
        second: The other view of the same rows, (N, H).
        temperature: tau > 0.
        weight: Weights >= 0 of the rows, (N,).
        mask: Rows that take part, (N,) bool; the others are no negatives and have loss 0.
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (N,).

    Raises:
        ValueError: If shapes differ or are not (N, H), a value is not finite, ``temperature`` <= 0, or
            ``reduction`` is unknown.
        TypeError: If ``mask`` is not boolean.

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, equation 9,
        https://arxiv.org/abs/2401.06080; Gao et al., *SimCSE: Simple Contrastive Learning of Sentence
        Embeddings*, EMNLP 2021, equation 1, https://arxiv.org/abs/2104.08821. Departures: mask; that there are
        2 P rows and the temperature (SimCSE's own) are our reading.

    .. versionadded:: 0.1
    """
    check_views(first, second)
    check_number("temperature", temperature, 0.0, open_low=True)
    one, two = as_compute(first, second)
    with torch.autocast(one.device.type, enabled=False):
        logits = unit_vector(one) @ unit_vector(two).T / temperature
    if mask is not None:
        check_row_mask(mask, len(one))
        themselves = torch.eye(len(one), dtype=torch.bool, device=one.device)
        logits = logits.masked_fill(~(mask | themselves), -torch.inf)  # no row of the softmax is empty
    loss = -logits.log_softmax(-1).diagonal()
    return reduce_loss(loss, reduction, masked_weight(weight, mask, loss))


class SimCSELoss(LossModule):
    """Module form of :func:`simcse_loss`."""

    def __init__(self, *, temperature: float = 0.05, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            temperature: Divides the cosines, > 0.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.temperature = temperature
        self.reduction: Reduction = reduction

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of the rows; arguments as in :func:`simcse_loss`."""
        return simcse_loss(
            first,
            second,
            temperature=self.temperature,
            weight=weight,
            mask=mask,
            reduction=self.reduction,
        )


class ContrastiveMarginLoss(LossModule):
    r"""Ranking with an adaptive margin, plus a coefficient times a contrastive term.

    .. math:: L = L_{BT}(r_c - r_r - \hat\mu) + \beta \, L_{CL}(H, H')

    The paper's coefficients: 1 for SimCSE, 0.5 for SwAV on differences (20 prototypes), 0.1 for SwAV on
    pairs (50 prototypes).

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, section on
        contrastive learning and equation 6, https://arxiv.org/abs/2401.06080. Departures: the margin inside
        the sigmoid, as in :func:`bradley_terry_loss`; margin and contrastive term together are our reading.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        contrastive: nn.Module | None = None,
        *,
        coefficient: float = 1.0,
        difference: bool = False,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        """Keep the settings and the contrastive term.

        Args:
            contrastive: Module called with two views (2 P, H); :class:`SimCSELoss` if None.
            coefficient: beta >= 0; with 0 the term is left out.
            difference: Whether views are differences of a pair (:func:`difference_views`) and not its two
                members (:func:`pair_views`).
            label_smoothing: Probability that a label is wrong, in [0, 1].
            reduction: ``"mean"`` (weighted) or ``"sum"``, of the ranking term.

        Raises:
            ValueError: If ``coefficient`` < 0 or ``reduction`` is ``"none"``.
        """
        super().__init__()
        check_number("coefficient", coefficient, 0.0)
        if reduction == "none":
            raise ValueError("reduction must be 'mean' or 'sum': the terms have different rows; got 'none'")
        self.contrastive = SimCSELoss(reduction=reduction) if contrastive is None else contrastive
        self.coefficient = coefficient
        self.difference = difference
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        chosen_views: tuple[Tensor, Tensor],
        rejected_views: tuple[Tensor, Tensor],
        *,
        margin: Tensor | None = None,
        preference: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Sum of the two terms.

        Args:
            chosen: Rewards of the preferred responses, any shape: (P,), or (2, P) for both views.
            rejected: Rewards of the others, same shape.
            chosen_views: Two views of the preferred responses' features, (P, H) each.
            rejected_views: Two views of the others' features, (P, H) each.
            margin: Required gap, signed, broadcasts to ``chosen``.
            preference: Share of judges who prefer the chosen one, broadcasts to ``chosen``.
            weight: Weights >= 0 of the ranking term, broadcast to ``chosen``.

        Returns:
            Loss, scalar.
        """
        ranking = bradley_terry_loss(
            chosen,
            rejected,
            margin=margin,
            preference=preference,
            label_smoothing=self.label_smoothing,
            weight=weight,
            reduction=self.reduction,
        )
        if self.coefficient == 0:
            return ranking
        rows = difference_views if self.difference else pair_views
        first, second = (rows(c, r) for c, r in zip(chosen_views, rejected_views, strict=True))
        contrast: Tensor = self.contrastive(first, second)
        return ranking + self.coefficient * contrast
