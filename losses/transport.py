"""Transport distances: between label distributions, between beta distributions, to an observed share."""

import torch
from torch import Tensor

from ._beta import (
    BetaWassersteinLoss,
    BetaWassersteinToShareLoss,
    beta_wasserstein,
    beta_wasserstein_to_share,
)
from ._check_mode import LossModule
from ._common import Reduction, as_compute, check_distribution, check_number, check_same_shape, reduce_loss
from ._cost import Cost, cost_matrix, ground_of, keep_bits, kept, positions_on_line
from ._incomplete_beta import regularized_incomplete_beta
from ._potentials import best_potentials, exact_transport, transport_potentials
from ._sinkhorn import divergence, sinkhorn_divergence, sinkhorn_plan

__all__ = [
    "BetaWassersteinLoss",
    "BetaWassersteinToShareLoss",
    "CategoricalWassersteinLoss",
    "SinkhornDivergenceLoss",
    "beta_wasserstein",
    "beta_wasserstein_to_share",
    "categorical_wasserstein",
    "regularized_incomplete_beta",
    "sinkhorn_divergence",
    "sinkhorn_plan",
    "transport_potentials",
]


def categorical_wasserstein(
    p: Tensor,
    q: Tensor,
    *,
    cost: Cost = "index",
    exponent: float = 1.0,
    potentials: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Exact optimal transport cost between distributions over K labels.

    Unlike cross-entropy it knows which labels are close: mass on a wrong but near label costs less. All
    costs are solved exactly and in batches. Labels on a line have a closed form; any other matrix with up
    to 8 labels (6 if it is no metric) is a maximum over the vertices of its dual polytope, found once per
    matrix; beyond that POT solves the rows one by one on the host. The gradient is a dual potential: exact,
    but of constant size, so it does not fade near the optimum (see :func:`sinkhorn_divergence`), and
    defined up to a constant that a softmax removes.

    .. math::
        W = \min_{T \ge 0} \sum_{ij} T_{ij} M_{ij}^e \quad \text{with} \quad T 1 = p, \; T^\top 1 = q;
        \qquad \text{on a line, } e = 1: \; \sum_k (x_{k+1} - x_k) \, |F_p(k) - F_q(k)|

    Args:
        p: Predicted distributions, (..., K), non-negative, summing to 1 (within 1e-3): probabilities, not
            logits.
        q: Target distributions, same shape.
        cost: ``"index"``: labels lie at 0..K-1; a vector (K,): labels lie at these places, such as their
            rewards, in any order; or a matrix (K, K), row to column (p to q), also asymmetric. Not
            differentiated.
        exponent: Costs are raised to this power e, > 0. The value is the transport cost itself: with e = 2
            it is the square of the 2-Wasserstein distance.
        potentials: What :func:`transport_potentials` gave for this cost (with ``exponent`` applied), to
            spare looking it up; then ``cost`` is not read.
        weight: Weights >= 0, broadcast to (...,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Transport cost >= 0 (for non-negative costs), scalar or (...,), in the unit of the cost to the power
        e.

    Raises:
        ValueError: If p or q is no distribution, shapes do not fit, ``exponent`` <= 0, or ``reduction`` is
            unknown.

    Example:
        >>> import torch
        >>> target = torch.tensor([0.9, 0.1, 0.0])
        >>> near, far = torch.tensor([0.9, 0.0, 0.1]), torch.tensor([0.0, 0.1, 0.9])
        >>> categorical_wasserstein(near, target), categorical_wasserstein(far, target)
        (tensor(0.1000), tensor(1.8000))

    Source:
        Li et al., *Aligning Crowd Feedback via Distributional Preference Reward Modeling*, 2024,
        https://arxiv.org/abs/2402.09764 (the method's optimal transport loss; its cost matrix, exponent,
        solver and equation numbers were not available, so that all of them are settings here and the
        defaults our reading). Closed form: Villani, *Topics in Optimal Transportation*, 2003, theorem
        2.18. Departures: none from the definition.

    .. versionadded:: 0.1
    """
    check_same_shape(p=p, q=q)
    check_number("exponent", exponent, 0.0, open_low=True)
    check_distribution("p", p)
    check_distribution("q", q)
    first, second = as_compute(p, q)
    if potentials is not None:
        labels = first.shape[-1]
        if potentials.ndim != 2 or potentials.shape[-1] not in (labels, 2 * labels):
            raise ValueError(
                f"potentials must be of shape (V, {labels}) or (V, {2 * labels}); "
                f"got {tuple(potentials.shape)}"
            )
        return reduce_loss(best_potentials(first, second, potentials), reduction, weight)
    positions = positions_on_line(cost, first)
    if positions is not None and exponent >= 1:
        return reduce_loss(_on_line(first, second, positions, cost, exponent), reduction, weight)
    matrix = cost_matrix(cost, exponent, first)
    potentials = transport_potentials(matrix)
    if potentials is not None:
        return reduce_loss(best_potentials(first, second, potentials), reduction, weight)
    return reduce_loss(exact_transport(first, second, matrix), reduction, weight)


def _on_line(p: Tensor, q: Tensor, positions: Tensor, cost: Cost, exponent: float) -> Tensor:
    """Closed forms for labels at places on a line: mass keeps its order."""
    if not isinstance(cost, str):
        order = positions.argsort()
        positions, p, q = positions[order], p[..., order], q[..., order]
    if exponent == 1:
        surplus = (p - q)[..., :-1].cumsum(-1).abs()
        return (surplus if isinstance(cost, str) else surplus * positions.diff()).sum(-1)  # labels one apart
    # T_ij is the overlap of the i-th step of one distribution function with the j-th of the other.
    ends_p, ends_q = p.cumsum(-1).unsqueeze(-1), q.cumsum(-1).unsqueeze(-2)
    starts_p, starts_q = ends_p - p.unsqueeze(-1), ends_q - q.unsqueeze(-2)
    plan = (torch.minimum(ends_p, ends_q) - torch.maximum(starts_p, starts_q)).clamp_min(0)
    gap = (positions.unsqueeze(1) - positions.unsqueeze(0)).abs()
    return (plan * gap.pow(exponent)).sum((-2, -1))


class CategoricalWassersteinLoss(LossModule):
    """Module form of :func:`categorical_wasserstein`; looks at a cost matrix once, when it is made."""

    _cost: Tensor | None
    _potentials: Tensor | None

    def __init__(self, *, cost: Cost = "index", exponent: float = 1.0, reduction: Reduction = "mean") -> None:
        """Keep the settings, and the potentials of a matrix.

        Args:
            cost: ``"index"``, positions (K,), or a matrix (K, K). A tensor becomes a buffer that is not
                saved.
            exponent: Costs are raised to this power, > 0.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

        Raises:
            ValueError: If ``exponent`` <= 0 or a matrix is not square.
        """
        super().__init__()
        check_number("exponent", exponent, 0.0, open_low=True)
        self.exponent = exponent
        self.reduction: Reduction = reduction
        potentials = None
        if isinstance(cost, Tensor) and cost.ndim == 2:
            potentials = transport_potentials(cost.double().pow(exponent))
        self.register_buffer("_cost", keep_bits(cost), persistent=False)
        self.register_buffer("_potentials", keep_bits(potentials), persistent=False)

    def forward(self, p: Tensor, q: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Transport cost; arguments as in :func:`categorical_wasserstein`."""
        return categorical_wasserstein(
            p,
            q,
            cost=kept(self._cost, "index"),
            exponent=self.exponent,
            potentials=kept(self._potentials, None),
            weight=weight,
            reduction=self.reduction,
        )


class SinkhornDivergenceLoss(LossModule):
    """Module form of :func:`sinkhorn_divergence`; looks at a cost matrix once, when it is made."""

    _cost: Tensor | None

    def __init__(
        self,
        *,
        cost: Cost = "index",
        exponent: float = 1.0,
        epsilon: float = 0.1,
        num_iterations: int = 100,
        reduction: Reduction = "mean",
    ) -> None:
        """Keep the settings.

        Args:
            cost: ``"index"``, positions (K,), or a matrix (K, K). A tensor becomes a buffer that is not
                saved.
            exponent: Costs are raised to this power, > 0.
            epsilon: Regularisation, > 0, in the unit of the cost.
            num_iterations: Sinkhorn iterations, >= 1.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.exponent = exponent
        self.epsilon = epsilon
        self.num_iterations = num_iterations
        self.reduction: Reduction = reduction
        self._ground = ground_of(cost, exponent, 0)
        self.register_buffer("_cost", keep_bits(cost), persistent=False)

    def forward(self, p: Tensor, q: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Divergence; arguments as in :func:`sinkhorn_divergence`."""
        cost: Cost = kept(self._cost, "index")
        ground = ground_of(cost, self.exponent, p.shape[-1]) if isinstance(cost, str) else self._ground
        loss = divergence(
            p, q, cost, self.exponent, ground, epsilon=self.epsilon, num_iterations=self.num_iterations
        )
        return reduce_loss(loss, self.reduction, weight)
