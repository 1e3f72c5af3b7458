"""Distances between beta distributions, and from a beta distribution to one observed share."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ._beta_order_two import wasserstein_two
from ._check_mode import LossModule
from ._common import Reduction, broadcast_double, check_choice, check_values, reduce_loss
from ._incomplete_beta import beta_tails, incomplete_beta_float64, log_beta, off_the_ends

Order = Literal[1, 2]

_BRACKET_STEPS = 5
_CROSSING_STEPS = 4


def beta_wasserstein(
    alpha_p: Tensor,
    beta_p: Tensor,
    alpha_q: Tensor,
    beta_q: Tensor,
    *,
    order: Order = 1,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Wasserstein distance between two beta distributions on [0, 1].

    How far, on average, probability must be moved to turn one crowd's distribution into the other's; the
    unit is the share itself. Order 1 is exact up to the incomplete beta function: two beta distribution
    functions cross at most once inside (0, 1), namely when the signs of alpha_p - alpha_q and beta_p -
    beta_q agree; without a crossing the distance is the gap of the means, with one at x* it is :math:`|2
    H(x^*) - H(1)|`, where H integrates F - G and has a closed form. Order 2 is the root of a
    quadrature over quantiles that are interpolated in tables of both distributions (error below 1e-5, at most shapes about
    1e-7), and takes some five times as long.

    .. math::
        W_1 = \int_0^1 |F(x) - G(x)| \, dx, \qquad
        W_2 = \Big(\int_0^1 (F^{-1}(u) - G^{-1}(u))^2 \, du\Big)^{1/2}

    Args:
        alpha_p: First shape of the one, (B,), > 0; made for 0.05 to 5,000.
        beta_p: Second shape of the one, broadcasts with it, > 0.
        alpha_q: First shape of the other, broadcasts with it, > 0.
        beta_q: Second shape of the other, broadcasts with it, > 0.
        order: 1 or 2.
        weight: Weights >= 0, broadcast to (B,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Distance in [0, 1], scalar or (B,), float32 (float64 for float64 input); computed in float64. At
        equal distributions the gradient is zero, a valid subgradient.

    Raises:
        ValueError: If a shape is not > 0 and finite, ``order`` or ``reduction`` is unknown, or shapes do
            not fit.

    Source:
        Definition: Villani, *Topics in Optimal Transportation*, 2003, section 2.2. The closed form between
        crossings is our own derivation. Why beta distributions: the abstract of version 1 of Li et al.,
        *Aligning Crowd Feedback via Distributional Preference Reward Modeling*, 2024,
        https://arxiv.org/abs/2402.09764, names them as the model of a crowd's preference; that this
        distance is taken between them is our reading. Departures: none from the definition.

    .. versionadded:: 0.1
    """
    check_choice("order", order, (1, 2))
    names = ("alpha_p", "beta_p", "alpha_q", "beta_q")
    given = (alpha_p, beta_p, alpha_q, beta_q)
    for name, tensor in zip(names, given, strict=True):
        check_values(name, tensor, 0.0, open_low=True)
    shapes = broadcast_double(*given)
    distance = _order_one(*shapes) if order == 1 else wasserstein_two(*shapes)
    return reduce_loss(_as_given(distance, *given), reduction, weight)


def beta_wasserstein_to_share(
    alpha: Tensor,
    beta: Tensor,
    share: Tensor,
    *,
    order: Order = 1,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Wasserstein distance between a beta distribution and one observed share.

    The expected distance of the predicted share from the observed one, in closed form. A prediction of
    order 1 that is free to move settles as a point at the median of the shares observed, order 2 at their
    mean.

    .. math::
        W_1 = E|X - s| = s \, (2 F(s) - 1) + m - 2 m I_s(\alpha + 1, \beta), \qquad
        W_2 = \big(\mathrm{Var} X + (m - s)^2\big)^{1/2}, \qquad m = \frac{\alpha}{\alpha + \beta}

    Args:
        alpha: First shape, (B,), > 0; made for 0.05 to 5,000.
        beta: Second shape, broadcasts with alpha, > 0.
        share: Observed share s, broadcasts with alpha, in [0, 1], no unit.
        order: 1 or 2.
        weight: Weights >= 0, broadcast to (B,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Distance in [0, 1], scalar or (B,), float32 (float64 for float64 input); computed in float64.

    Raises:
        ValueError: If a shape is not > 0 and finite, ``share`` is outside [0, 1], ``order`` or ``reduction``
            is unknown, or shapes do not fit.

    Source:
        As for :func:`beta_wasserstein`; the distance to a point mass is the expected distance.
        Departures: none.

    .. versionadded:: 0.1
    """
    check_choice("order", order, (1, 2))
    check_values("alpha", alpha, 0.0, open_low=True)
    check_values("beta", beta, 0.0, open_low=True)
    check_values("share", share, 0.0, 1.0)
    a, b, s = broadcast_double(alpha, beta, share)
    if order == 1:
        # E|X - s| = 2 (s F(s) - E[X; X < s]) + m - s, whose derivative in s is 2 F(s) - 1.
        distance = 2 * _integral_of_cdf(a, b, s) + a / (a + b) - s
    else:
        mean, variance = _moments(a, b)
        distance = _safe_sqrt(variance + (mean - s).square())
    return reduce_loss(_as_given(distance.clamp_min(0), alpha, beta, share), reduction, weight)


def _as_given(value: Tensor, *given: Tensor) -> Tensor:
    return value if any(tensor.dtype == torch.float64 for tensor in given) else value.float()


def _moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = a + b
    mean = a / total
    return mean, mean * (b / total) / (total + 1)


def _safe_sqrt(value: Tensor) -> Tensor:
    """Square root with gradient zero where the value is zero (or negative by rounding)."""
    positive = value > 1e-30
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)


def _integral_of_cdf(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Integral of the distribution function from 0 to x: x F(x) - m I_x(a + 1, b).

    By the recurrence I_x(a + 1, b) = I_x(a, b) - x^a (1 - x)^b / (a B(a, b)) it takes one incomplete beta.
    """
    place = x.detach()
    inside = off_the_ends(place)
    mean = a / (a + b)
    height = torch.exp(a * inside.log() + b * torch.log1p(-inside) - log_beta(a, b))
    height = torch.where((place <= 0) | (place >= 1), 0.0, height)
    cdf = incomplete_beta_float64(a, b, place)
    # The derivative in x is F itself; through the two terms it would be a difference of infinities.
    return (place - mean) * cdf + mean * height / a + cdf.detach() * (x - place)


def _order_one(a_p: Tensor, b_p: Tensor, a_q: Tensor, b_q: Tensor) -> Tensor:
    gap = a_p / (a_p + b_p) - a_q / (a_q + b_q)
    a, b = torch.stack([a_p, a_q]), torch.stack([b_p, b_q])
    crossing, crosses = _crossing(a.detach(), b.detach())
    below = _integral_of_cdf(a, b, crossing.expand_as(a))
    # H(1) is the gap of the means, q's less p's. At the crossing F = G, so moving it does not count.
    twice = 2 * (below[0] - below[1]) + gap
    return torch.where(crosses, twice, gap).abs()


def _crossing(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Where F = G inside (0, 1), and whether that happens; (2, B) -> (B,), (B,).

    The log ratio of the densities, c log x + d log(1 - x) + const, has at most two roots, so F - G, zero at
    both ends, has at most one root inside, and one exactly if c and d have the same sign. It lies between
    the two roots of the ratio, where F - G is monotone; there Newton steps are kept in a bracket. All of it
    happens in log-odds of x.
    """
    with torch.no_grad():
        c, d = a[0] - a[1], b[0] - b[1]
        crosses = c * d > 0
        sign = c.sign()
        # Pairs that do not cross run along with harmless numbers.
        c, d = torch.where(crosses, c.abs(), 1.0), torch.where(crosses, d.abs(), 1.0)
        log_norm = log_beta(a, b)
        constant = torch.where(crosses, sign * (log_norm[1] - log_norm[0]), 2.0)
        low, high = -constant / c, constant / d
        for _ in range(_BRACKET_STEPS):
            # Newton on a concave function from outside: it comes close without ever passing the root.
            low = low - _log_ratio(c, d, constant, low) / (c - (c + d) * torch.sigmoid(low)).clamp_min(1e-9)
            high = high - _log_ratio(c, d, constant, high) / (c - (c + d) * torch.sigmoid(high)).clamp_max(
                -1e-9
            )
        y = torch.log(c / d)
        for step in range(_CROSSING_STEPS + 1):
            x = off_the_ends(torch.sigmoid(y))
            tails = beta_tails(
                a, b, x.expand_as(a), log_norm, fine=step == _CROSSING_STEPS, derivatives=False
            )
            # Compare the smaller tails, on a log scale: the crossing may lie far out in one of them.
            left = tails.lower.sum(0) < 1
            tail = torch.where(left, tails.lower, tails.upper).clamp_min(1e-300)
            ratio = torch.where(left, sign, -sign) * (tail[0] / tail[1]).log()
            beyond = ratio > 0
            high, low = torch.where(beyond, y, high), torch.where(beyond, low, y)
            rate = tails.density / tail
            newton = y - ratio / (sign * (rate[0] - rate[1]) * x * (1 - x))
            y = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        return off_the_ends(torch.sigmoid(y)), crosses


def _log_ratio(c: Tensor, d: Tensor, constant: Tensor, y: Tensor) -> Tensor:
    return c * F.logsigmoid(y) + d * F.logsigmoid(-y) + constant


class BetaWassersteinLoss(LossModule):
    """Module form of :func:`beta_wasserstein`."""

    def __init__(self, *, order: Order = 1, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            order: 1 or 2.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.order: Order = order
        self.reduction: Reduction = reduction

    def forward(
        self,
        alpha_p: Tensor,
        beta_p: Tensor,
        alpha_q: Tensor,
        beta_q: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Distance of the pairs; arguments as in :func:`beta_wasserstein`."""
        return beta_wasserstein(
            alpha_p, beta_p, alpha_q, beta_q, order=self.order, weight=weight, reduction=self.reduction
        )


class BetaWassersteinToShareLoss(LossModule):
    """Module form of :func:`beta_wasserstein_to_share`."""

    def __init__(self, *, order: Order = 1, reduction: Reduction = "mean") -> None:
        """Keep the settings.

        Args:
            order: 1 or 2.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.order: Order = order
        self.reduction: Reduction = reduction

    def forward(self, alpha: Tensor, beta: Tensor, share: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Distance to the shares; arguments as in :func:`beta_wasserstein_to_share`."""
        return beta_wasserstein_to_share(
            alpha, beta, share, order=self.order, weight=weight, reduction=self.reduction
        )
