"""Wasserstein-2 distance of beta distributions in batches, with its derivatives in all four shapes.

Quantiles are not searched for. Each distribution is tabulated at evenly spaced log-odds y of x, where its density h has a
closed form: the mass L below each node and R above it, by quadrature. As a function of t = log(L / R) the log-odds are
smooth, in the tails linear, and their slope L R / h is known; so quantiles at the levels of the other distribution's nodes
follow by cubic interpolation. The nodes of both carry the integral over levels u = sigmoid(t): whichever distribution
changes faster decides how fine it is.

By duality, the derivative in a shape is the mean of the potential, whose slope is 2 (x - T(x)) for the transport map T, times
the derivative of the log density, log x - E[log X] or log(1 - x) - E[log(1 - X)].
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import WithSlopes
from ._incomplete_beta import log_beta

_NODES = 112
_FALL = 18.0  # of the log density, from its mode to the outermost nodes
_ENDS = 16.0  # log-odds beyond which x does not change any more: 1e-7 of what it is inside
_REACH_STEPS = 10
_ROWS = 256  # at a time: what is computed in between should fit a cache, and new memory costs more than arithmetic
_ROWS_ELSEWHERE = 4096  # on accelerators, where each call costs the host time: some 400 MiB at once


class VmapInfo(Protocol):
    """What torch hands to ``vmap`` of an autograd function."""

    batch_size: int


class _Table(NamedTuple):
    """Distributions at their nodes; two sides, p and q, of S pairs: (2, S, 1), or (2, S, n) where said."""

    alpha: Tensor
    beta: Tensor
    log_norm: Tensor
    low: Tensor
    """Log-odds of the first node."""
    step: Tensor
    """Between two nodes."""
    levels: Tensor
    """log(L / R), (2, S, n), rising."""
    slope: Tensor
    """Of the log-odds by the level, (2, S, n)."""
    above: Tensor
    """Mass above the last node."""

    @property
    def high(self) -> Tensor:
        """Log-odds of the last node."""
        return self.low + self.step * (self.levels.shape[-1] - 1)


class _Places(NamedTuple):
    """Quantiles at levels, and the density there."""

    odds: Tensor
    x: Tensor
    not_x: Tensor
    log_x: Tensor
    density: Tensor
    """Of the log-odds."""


def _places(alpha: Tensor, beta: Tensor, log_norm: Tensor, odds: Tensor) -> _Places:
    inverse = odds.neg().exp_()
    x = (1 + inverse).reciprocal_()
    log_x = torch.log1p(inverse).neg_()
    log_density = torch.addcmul(-log_norm, alpha + beta, log_x).addcmul_(beta, odds, value=-1)
    return _Places(odds, x, inverse.mul_(x), log_x, log_density.exp_())


def _reach(near: Tensor, far: Tensor) -> Tensor:
    """How far from the mode towards its ``near`` shape the log density has fallen: bisection, within a hundredth."""
    total = near + far
    near_share, far_share = near / total, far / total
    low, high = torch.full_like(near, -7.0), torch.full_like(near, 5.3)  # logarithms of the distance
    for _ in range(_REACH_STEPS):
        middle = (low + high) / 2
        distance = middle.exp()
        fall = total * (near_share * distance + (far_share + near_share * torch.exp(-distance)).log())
        high, low = torch.where(fall > _FALL, middle, high), torch.where(fall > _FALL, low, middle)
    return high.exp()


def _table(alpha: Tensor, beta: Tensor) -> _Table:
    mode = alpha.log() - beta.log()
    left, right = _reach(torch.stack([alpha, beta]), torch.stack([beta, alpha]))
    low, high = mode - left, mode + right
    low, high = (
        torch.maximum(low, (high - _ENDS).clamp_max(-_ENDS)),
        torch.minimum(high, (low + _ENDS).clamp_min(_ENDS)),
    )
    alpha, beta, low, high = (x.unsqueeze(-1) for x in (alpha, beta, low, high))
    step = (high - low) / (_NODES - 1)
    log_norm = log_beta(alpha, beta)
    at = _places(alpha, beta, log_norm, low + step * torch.arange(_NODES, dtype=low.dtype, device=low.device))
    slope = alpha - (alpha + beta) * at.x  # of the log density
    cells = _cells(at.density, at.density * slope, step)
    # Beyond the nodes: the first term of the incomplete beta function, exact where x or 1 - x is small.
    first, last = at.density[..., :1] / alpha, at.density[..., -1:] / beta
    below = torch.cat([first, cells], dim=-1).cumsum(-1)
    total = below[..., -1:] + last
    above = torch.maximum(total - below, last)
    return _Table(
        alpha,
        beta,
        log_norm + total.log(),
        low,
        step,
        (below / above).log(),
        below * above / (at.density * total),
        last / total,
    )


def _cells(values: Tensor, slopes: Tensor, width: Tensor) -> Tensor:
    """Integrals between neighbours, by the trapezoid rule with its correction from the slopes."""
    falls = (slopes[..., :-1] - slopes[..., 1:]).mul_(width / 6)
    return (values[..., :-1] + values[..., 1:]).add_(falls).mul_(width / 2)


def _cell_weights(width: Tensor) -> tuple[Tensor, Tensor]:
    """What values and slopes weigh in the sum of :func:`_cells`."""
    none = torch.zeros_like(width[..., :1])
    left, right = torch.cat([none, width], dim=-1), torch.cat([width, none], dim=-1)
    return (left + right) / 2, (right - left) * (right + left) / 12


def _merged(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Levels of both sides in one order, (S, 2 n), and how many of each side's nodes lie up to each, (2, S, 2 n)."""
    number = levels.shape[-1]
    place = torch.arange(number, device=levels.device)
    of_p = place + torch.searchsorted(levels[1], levels[0])
    of_q = place + torch.searchsorted(levels[0], levels[1], right=True)
    empty = levels.new_zeros(levels.shape[1], 2 * number)
    together = empty.scatter(1, of_p, levels[0]).scatter(1, of_q, levels[1])
    up_to_p = torch.zeros_like(empty, dtype=torch.int64).scatter(1, of_p, 1).cumsum(1)
    both = torch.arange(1, 2 * number + 1, device=levels.device)
    return together, torch.stack([up_to_p, both - up_to_p])


def _quantiles(table: _Table, levels: Tensor, counts: Tensor) -> _Places:
    """Quantiles at merged levels, by Hermite's cubic; beyond the outermost nodes, those."""
    index = (counts - 1).clamp(0, table.levels.shape[-1] - 2)
    low, high = table.levels.gather(2, index), table.levels.gather(2, index + 1)
    slope_low, slope_high = table.slope.gather(2, index), table.slope.gather(2, index + 1)
    width = high.sub_(low)
    share = (levels - low).div_(width.clamp_min(1e-12)).clamp_(0, 1)
    rest = 1 - share
    bend = (
        slope_low.mul_(rest).sub_(slope_high.mul_(share)).mul_(rest).mul_(share).mul_(width.div_(table.step))
    )
    # Of the step: 0 and 1 at its nodes, exactly.
    within = rest.mul_(2).add_(1).mul_(share).mul_(share).add_(bend)
    odds = within.add_(index).mul_(table.step).add_(table.low)
    return _places(table.alpha, table.beta, table.log_norm, odds)


def _distance(*shapes: Tensor) -> tuple[Tensor, ...]:
    """Distance of S pairs, and its derivatives in alpha_p, beta_p, alpha_q and beta_q, (S,) each."""
    alpha_p, beta_p, alpha_q, beta_q = shapes
    table = _table(torch.stack([alpha_p, alpha_q]), torch.stack([beta_p, beta_q]))
    levels, counts = _merged(table.levels)
    at = _quantiles(table, levels, counts)
    inverse = torch.exp(-levels)
    u = (1 + inverse).reciprocal()
    not_u = inverse * u
    mass, skew = u * not_u, not_u - u  # du / dt, and its logarithm's slope
    number = table.levels.shape[-1]
    inside = (counts >= 1) & ((counts < number) | (levels == table.levels[..., -1:]))
    rate = torch.where(inside, mass / at.density, 0.0)  # of the log-odds by the level
    bend = torch.addcmul(
        1 - table.alpha, table.alpha + table.beta - 2, at.x
    )  # 1 - 2 x less the log density's slope
    first = (at.x * at.not_x).mul_(rate)
    second = bend.mul_(rate).add_(skew).mul_(first)
    gap, gap_slope = at.x[0] - at.x[1], first[0] - first[1]
    width = levels.diff(dim=-1)
    weight, slope_weight = _cell_weights(width)
    squares = gap * mass * (gap * (weight + slope_weight * skew) + 2 * slope_weight * gap_slope)
    square = squares.sum(-1)
    positive = square > 1e-30
    distance = torch.where(positive, square, 1.0).sqrt()

    moving, moving_slope = gap * first, (gap_slope * first).addcmul_(gap, second)
    width = torch.where(inside[..., :-1] & (counts[..., :-1] < number), width, 0.0)
    potential = F.pad(_cells(moving, moving_slope, width).mul_(2).cumsum(-1), (1, 0))
    weight, slope_weight = _cell_weights(width)
    weighed = mass * potential
    of_score = (
        weight.addcmul_(slope_weight, skew).mul_(weighed).addcmul_(slope_weight, moving.mul_(mass), value=2)
    )
    of_slope = weighed.mul_(slope_weight).mul_(rate)
    slopes = _score_means(table, at, of_score, of_slope, potential[..., -1])
    scale = torch.where(positive, 0.5 / distance, 0.0)
    (in_alpha_p, in_alpha_q), (in_beta_p, in_beta_q) = (slope * scale for slope in slopes)
    return torch.where(positive, distance, 0.0), in_alpha_p, in_beta_p, -in_alpha_q, -in_beta_q


def _score_means(
    table: _Table, at: _Places, of_score: Tensor, of_slope: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """Means of the potential times the derivative of the log density in either shape, (2, S) each.

    Args:
        table: Both sides.
        at: Their quantiles.
        of_score: What that derivative weighs at each place.
        of_slope: What its slope by the log-odds weighs.
        last: The potential above the last node, (2, S); below the first one it is zero.
    """
    total = torch.digamma(table.alpha + table.beta)
    mean_log_x, mean_log_not_x = torch.digamma(table.alpha) - total, torch.digamma(table.beta) - total
    score_alpha, score_beta = at.log_x - mean_log_x, (at.log_x - at.odds).sub_(mean_log_not_x)
    in_alpha = score_alpha.mul_(of_score).addcmul_(of_slope, at.not_x).sum(-1)
    in_beta = score_beta.mul_(of_score).addcmul_(of_slope, at.x, value=-1).sum(-1)
    end = F.logsigmoid(-table.high) - 1 / table.beta
    beyond = last.unsqueeze(-1) * table.above
    tail_alpha = (beyond * (F.logsigmoid(table.high) - mean_log_x)).squeeze(-1)
    tail_beta = (beyond * (end - mean_log_not_x)).squeeze(-1)
    return in_alpha + tail_alpha, in_beta + tail_beta


class _OrderTwo(WithSlopes):
    @staticmethod
    def forward(*shapes: Tensor) -> tuple[Tensor, ...]:
        size = shapes[0].shape
        flat = [shape.reshape(-1) for shape in shapes]
        rows = _ROWS if flat[0].device.type == "cpu" else _ROWS_ELSEWHERE
        if torch.compiler.is_compiling() or flat[0].numel() <= rows:
            found = _distance(*flat)
        else:
            parts = [_distance(*part) for part in zip(*(x.split(rows) for x in flat), strict=True)]
            found = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        return tuple(values.reshape(size) for values in found)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: VmapInfo, in_dims: tuple[int | None, ...], *shapes: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Pairs are independent: a mapped dimension is one more of theirs."""
        rows = [
            shape.expand(info.batch_size, *shape.shape) if dim is None else shape.movedim(dim, 0)
            for shape, dim in zip(shapes, in_dims, strict=True)
        ]
        found: tuple[Tensor, ...] = _OrderTwo.apply(*rows)  # type: ignore[no-untyped-call]
        return found, (0,) * len(found)


def wasserstein_two(alpha_p: Tensor, beta_p: Tensor, alpha_q: Tensor, beta_q: Tensor) -> Tensor:
    """Wasserstein-2 distance of pairs, for float64 tensors of one shape, without checks."""
    outputs: tuple[Tensor, ...] = _OrderTwo.apply(alpha_p, beta_p, alpha_q, beta_q)  # type: ignore[no-untyped-call]
    return outputs[0]
