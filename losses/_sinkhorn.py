"""Entropic transport: Sinkhorn's iterations in the log domain, and the divergence free of their bias."""

import torch
from torch import Tensor

from ._common import Reduction, as_compute, check_distribution, check_number, check_same_shape, reduce_loss
from ._cost import Cost, cost_matrix

_PLAIN_STEPS = 10
_STEP_LENGTH = 1.5  # overrelaxation; converges below 2


def _log(p: Tensor) -> Tensor:
    """Logarithm with -inf at zero; only used without gradients."""
    return p.clamp_min(0).log()


def _dual_potentials(
    p: Tensor, q: Tensor, cost: Tensor, epsilon: float, num_iterations: int
) -> tuple[Tensor, Tensor]:
    """Potentials (f, g) after alternating updates; no gradient passes through the iterations.

    Both updates look at whole rows, so potentials are right also where a probability is zero: the
    derivative there is the one-sided one. They are the mean of two runs, one updating f first and one g, so
    that p = q gives f = g, and thus no gradient, after any number of iterations. Steps longer than the plain
    update make up for its slow last digits.
    """
    log_p, log_q = _log(torch.stack([p, q])), _log(torch.stack([q, p]))
    scaled = torch.stack([cost, cost.T]).reshape(2, *(1,) * (p.ndim - 1), *cost.shape) / epsilon
    f, g = torch.zeros_like(log_p), torch.zeros_like(log_p)
    for step in range(num_iterations):
        length = 1.0 if step < _PLAIN_STEPS else _STEP_LENGTH
        f = f + length * (-((log_q + g).unsqueeze(-2) - scaled).logsumexp(-1) - f)
        g = g + length * (-((log_p + f).unsqueeze(-1) - scaled).logsumexp(-2) - g)
    f = -((log_q + g).unsqueeze(-2) - scaled).logsumexp(-1)
    return epsilon * (f[0] + g[1]) / 2, epsilon * (g[0] + f[1]) / 2


def _entropic_cost(p: Tensor, q: Tensor, cost: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    with torch.no_grad():
        f, g = _dual_potentials(p, q, cost, epsilon, num_iterations)
    return (f * p).sum(-1) + (g * q).sum(-1)


def sinkhorn_divergence(
    p: Tensor,
    q: Tensor,
    *,
    cost: Cost = "index",
    exponent: float = 1.0,
    epsilon: float = 0.1,
    num_iterations: int = 100,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Entropic transport cost without its bias: smooth where the exact cost has corners.

    The exact cost has kinks, so its gradient does not fade towards the optimum; here it does, within about
    ``epsilon``. Zero at p = q, non-negative for metric costs at convergence; towards :func:`categorical_wasserstein` as
    epsilon falls. Iterations run in the log domain; the gradient is that of the converged dual (the
    potentials), not of the iterations. The smaller epsilon is against the costs, the more iterations it
    takes; the defaults are within 0.01 of convergence for six labels one apart. For a symmetric cost, value
    and gradient are zero at p = q after any number of iterations.

    .. math::
        S = OT_\epsilon(p, q) - \tfrac12 OT_\epsilon(p, p) - \tfrac12 OT_\epsilon(q, q), \qquad
        OT_\epsilon(p, q) = \min_T \sum_{ij} T_{ij} M_{ij} + \epsilon \, KL(T \,\|\, p q^\top)

    Args:
        p: Predicted distributions, (..., K), non-negative, summing to 1 (within 1e-3).
        q: Target distributions, same shape.
        cost: As in :func:`categorical_wasserstein`.
        exponent: Costs are raised to this power, > 0.
        epsilon: Regularisation, > 0, in the unit of the cost.
        num_iterations: Sinkhorn iterations, >= 1.
        weight: Weights >= 0, broadcast to (...,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Divergence, scalar or (...,), in the unit of the cost.

    Raises:
        ValueError: If p or q is no distribution, shapes do not fit, or a setting is outside its range.

    Source:
        Feydy et al., *Interpolating between Optimal Transport and MMD using Sinkhorn Divergences*, AISTATS
        2019, equation 3, https://arxiv.org/abs/1810.08278. Departures: for an asymmetric cost the own terms
        use the cost as it is; overrelaxed updates, averaged over both orders (Thibault et al., 2017,
        https://arxiv.org/abs/1711.01851, has the former). That a reward model of crowds uses it is our reading; the solver of Li et
        al., 2024 (https://arxiv.org/abs/2402.09764) is not known.

    .. versionadded:: 0.1
    """
    first, second, matrix = _prepare(p, q, cost, exponent, epsilon, num_iterations)
    across = _entropic_cost(first, second, matrix, epsilon, num_iterations)
    # The own terms symmetrically: half of the gradient comes through either argument.
    own_p = _entropic_cost(first, first, matrix, epsilon, num_iterations)
    own_q = _entropic_cost(second, second, matrix, epsilon, num_iterations)
    return reduce_loss(across - (own_p + own_q) / 2, reduction, weight)


def sinkhorn_plan(
    p: Tensor,
    q: Tensor,
    *,
    cost: Cost = "index",
    exponent: float = 1.0,
    epsilon: float = 0.1,
    num_iterations: int = 100,
) -> Tensor:
    r"""Entropic transport plan: how much goes from each label to each other; for looking, not for training.

    .. math:: T_{ij} = p_i q_j \exp((f_i + g_j - M_{ij}) / \epsilon)

    Args:
        p: Distributions mass is taken from, (..., K), non-negative, summing to 1 (within 1e-3).
        q: Distributions it is brought to, same shape.
        cost: As in :func:`categorical_wasserstein`.
        exponent: Costs are raised to this power, > 0.
        epsilon: Regularisation, > 0, in the unit of the cost.
        num_iterations: Sinkhorn iterations, >= 1.

    Returns:
        Plan, (..., K, K), without gradient; columns sum to q exactly, rows to p at convergence.

    Raises:
        ValueError: If p or q is no distribution, shapes do not fit, or a setting is outside its range.

    Source:
        Cuturi, *Sinkhorn Distances: Lightspeed Computation of Optimal Transport*, NeurIPS 2013, lemma 2,
        https://arxiv.org/abs/1306.0895. Departures: log domain.

    .. versionadded:: 0.1
    """
    first, second, matrix = _prepare(p, q, cost, exponent, epsilon, num_iterations)
    with torch.no_grad():
        f, g = _dual_potentials(first, second, matrix, epsilon, num_iterations)
        logits = _log(first).unsqueeze(-1) + (f.unsqueeze(-1) + g.unsqueeze(-2) - matrix) / epsilon
        return second.unsqueeze(-2) * logits.softmax(-2)


def _prepare(
    p: Tensor, q: Tensor, cost: Cost, exponent: float, epsilon: float, num_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_same_shape(p=p, q=q)
    check_number("epsilon", epsilon, 0.0, open_low=True)
    check_number("num_iterations", num_iterations, 1)
    check_distribution("p", p)
    check_distribution("q", q)
    first, second = as_compute(p, q)
    return first, second, cost_matrix(cost, exponent, first)
