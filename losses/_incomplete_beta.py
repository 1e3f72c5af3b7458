"""The regularised incomplete beta function in batches, with derivatives in all three arguments.

torch has neither the function nor its derivatives. In log-odds y of x the integrand of the beta function,
sigma(y)^a sigma(-y)^b, is smooth and log-concave. From y outwards, away from the mode, it therefore falls
at least exponentially beyond one width, so a fixed set of nodes scaled by that width serves all parameters.
Both shapes are first raised by one, by the recurrence of the function, which keeps the tails short for
shapes near zero. There is no loop whose length depends on data: it compiles, and runs under vmap.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import WithSlopes, broadcast_double, check_values

_STRETCH = 3.0  # of the map (-1, 1) -> (0, inf): half of the nodes lie within three widths


def _half_line_nodes(number: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights, carried to (0, inf) by s = c (1 + z) / (1 - z)."""
    step = torch.arange(1, number, dtype=torch.float64, device="cpu")
    side = step / (4 * step.square() - 1).sqrt()
    z, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    weight = 2 * vectors[0].square()
    return _STRETCH * (1 + z) / (1 - z), weight * 2 * _STRETCH / (1 - z).square()


_LARGE = 1e37  # stands for an infinite density: finite in float32 too

_COARSE = _half_line_nodes(24)
_FINE = _half_line_nodes(48)


class BetaTails(NamedTuple):
    """Both tails of Beta(a, b) at x, and what differentiates them."""

    lower: Tensor
    upper: Tensor
    density: Tensor
    d_alpha: Tensor
    d_beta: Tensor


def log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """Logarithm of the beta function."""
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)


def beta_tails(
    alpha: Tensor, beta: Tensor, x: Tensor, log_norm: Tensor, *, fine: bool, derivatives: bool
) -> BetaTails:
    """Tails, density and (if asked, else zeros) derivatives of the lower tail in both shapes.

    Args:
        alpha: First shape, float64, > 0.
        beta: Second shape, float64, > 0.
        x: Place, float64, in (0, 1); the caller keeps it off the ends.
        log_norm: :func:`log_beta` of the shapes, which a search computes once.
        fine: 48 nodes (error about 1e-10) instead of 24 (about 1e-6, to search with).
        derivatives: Whether ``d_alpha`` and ``d_beta`` are computed.

    Returns:
        Tensors of the broadcast shape.
    """
    log_x, log_not_x = torch.log(x), torch.log1p(-x)
    y = log_x - log_not_x
    a, b = alpha + 1, beta + 1
    upper_side = y > torch.log(a) - torch.log(b)
    # Mirror so that the tail at hand is the lower one: y lies left of the mode.
    near, far = torch.where(upper_side, b, a), torch.where(upper_side, a, b)
    y = torch.where(upper_side, -y, y)
    log_s, log_t = F.logsigmoid(y), F.logsigmoid(-y)
    width = _fall_width(near, far, y, log_s, log_t)

    nodes, weights = _FINE if fine else _COARSE
    nodes, weights = nodes.to(x.device, non_blocking=True), weights.to(x.device, non_blocking=True)
    at = torch.addcmul(y.unsqueeze(-1), width.unsqueeze(-1), nodes, value=-1)
    log_s_at = F.logsigmoid(at)
    # near log s + far log t at the nodes, less the same at y; log t = log s - y saves one function.
    start = near * log_s + far * (log_t + y)
    fall = torch.addcmul(-start.unsqueeze(-1), (near + far).unsqueeze(-1), log_s_at)
    mass = torch.addcmul(fall, (far * width).unsqueeze(-1), nodes).exp_()
    total = mass @ weights

    # x^a (1-x)^b / B(a, b), and from it the same for the raised shapes.
    height = torch.exp(alpha * log_x + beta * log_not_x - log_norm)
    sum_ = alpha + beta
    raised = height * x * (1 - x) * sum_ * (sum_ + 1) / (alpha * beta) * width
    tail = raised * total
    slope = (1 - x) / alpha - x / beta
    lowering = height * slope
    lower = torch.where(upper_side, 1 - tail, tail) + lowering
    upper = torch.where(upper_side, tail, 1 - tail) - lowering
    density = height / (x * (1 - x))
    if not derivatives:
        zero = torch.zeros_like(lower)
        return BetaTails(lower, upper, density, zero, zero)
    all_, all_raised = torch.digamma(sum_), torch.digamma(sum_ + 2)
    log_s_mass = (mass * log_s_at) @ weights
    log_t_mass = log_s_mass - (mass * at) @ weights
    d_near = raised * (log_s_mass - total * (torch.digamma(near) - all_raised))
    d_far = raised * (log_t_mass - total * (torch.digamma(far) - all_raised))
    d_alpha = torch.where(upper_side, -d_far, d_near)
    d_beta = torch.where(upper_side, -d_near, d_far)
    d_alpha = d_alpha + lowering * (log_x - torch.digamma(alpha) + all_) - height * (1 - x) / alpha.square()
    d_beta = d_beta + lowering * (log_not_x - torch.digamma(beta) + all_) + height * x / beta.square()
    return BetaTails(lower, upper, density, d_alpha, d_beta)


def _fall_width(near: Tensor, far: Tensor, y: Tensor, log_s: Tensor, log_t: Tensor) -> Tensor:
    """Distance over which the integrand falls by about e: three Newton steps from a parabola."""
    s, t = log_s.exp(), log_t.exp()
    fall = near * t - far * s
    width = 2 / (fall + torch.sqrt(fall.square() + 2 * (near + far) * s * t))
    for _ in range(3):
        log_s_at = F.logsigmoid(y - width)
        log_t_at = log_s_at - (y - width)
        lost = near * (log_s - log_s_at) + far * (log_t - log_t_at)
        width = width - (lost - 1) / (near * log_t_at.exp() - far * log_s_at.exp())
    return width


def off_the_ends(x: Tensor) -> Tensor:
    """``x`` moved into (0, 1) by no more than float64 can tell."""
    return x.clamp(torch.finfo(torch.float64).tiny, 1 - torch.finfo(torch.float64).eps / 2)


class _RegularizedIncompleteBeta(WithSlopes):
    generate_vmap_rule = True

    @staticmethod
    def forward(alpha: Tensor, beta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tails = beta_tails(alpha, beta, off_the_ends(x), log_beta(alpha, beta), fine=True, derivatives=True)
        at_end = (x <= 0) | (x >= 1)
        value = torch.where(at_end, x, tails.lower).clamp(0, 1)
        d_alpha = torch.where(at_end, 0.0, tails.d_alpha)
        d_beta = torch.where(at_end, 0.0, tails.d_beta)
        return value, d_alpha, d_beta, tails.density.clamp_max(_LARGE)


def incomplete_beta_float64(alpha: Tensor, beta: Tensor, x: Tensor) -> Tensor:
    """:func:`regularized_incomplete_beta` for float64 tensors of one shape, without checks."""
    outputs: tuple[Tensor, ...] = _RegularizedIncompleteBeta.apply(alpha, beta, x)  # type: ignore[no-untyped-call]
    return outputs[0]


def regularized_incomplete_beta(alpha: Tensor, beta: Tensor, x: Tensor) -> Tensor:
    r"""Distribution function of Beta(alpha, beta) at x, differentiable in all three arguments.

    Computed in float64 whatever comes in. Against scipy and mpmath, for shapes from 0.05 to 5,000 and x
    anywhere, the error of the value stays below 1e-9 and that of the shape derivatives below 1e-8 relative
    to their scale (tests/losses/test_beta.py). The derivative in x is the density; where it is infinite (x
    at an end, shape below one) a large finite number stands for it. There are no
    second derivatives: asking for them raises.

    .. math:: I_x(a, b) = \frac{1}{B(a, b)} \int_0^x t^{a-1} (1 - t)^{b-1} \, dt

    Args:
        alpha: First shape a, any shape (B,), > 0.
        beta: Second shape b, broadcasts with alpha, > 0.
        x: Place, broadcasts with alpha, in [0, 1].

    Returns:
        Value in [0, 1], broadcast shape, float32 (float64 for float64 input).

    Raises:
        ValueError: If a shape is not > 0 and finite, or x is outside [0, 1].

    Source:
        Definition and recurrences: NIST Digital Library of Mathematical Functions, 8.17.1, 8.17.20 and
        8.17.21, https://dlmf.nist.gov/8.17. Departures: the quadrature is our own.

    .. versionadded:: 0.1
    """
    check_values("alpha", alpha, 0.0, open_low=True)
    check_values("beta", beta, 0.0, open_low=True)
    check_values("x", x, 0.0, 1.0)
    wide = any(tensor.dtype == torch.float64 for tensor in (alpha, beta, x))
    a, b, place = broadcast_double(alpha, beta, x)
    value = incomplete_beta_float64(a, b, place)
    return value if wide else value.float()
