"""Convex fits on the simplex by a primal-dual interior-point method, a block of users at once."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PairLoss", "Problem", "solve"]

PairLoss = Literal["logistic", "hinge"]

_CENTRING = 0.1  # each step aims at this share of the products that are zero at the optimum
_TO_THE_BOUNDARY = 0.99  # of the way to where a positive number would become zero


class Problem(NamedTuple):
    """The objective of U users, each divided by the total weight of the user's judgements."""

    differences: Tensor  # (U, n, K), zero where padded
    weight: Tensor  # (U, n), zero where padded
    strength: Tensor  # (U, 1)
    log_prior: Tensor  # (K,)
    loss: PairLoss

    def margin(self, vector: Tensor) -> Tensor:
        """(U, n) of (U, K)."""
        return torch.matmul(self.differences, vector.unsqueeze(-1)).squeeze(-1)

    def evidence(self, slope: Tensor) -> Tensor:
        """(U, K) of (U, n)."""
        return torch.matmul(slope.unsqueeze(1), self.differences).squeeze(1)

    def certificate(self, weights: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and duality gap, (U,) each, at weights on the simplex; slopes as shares of the weight."""
        margin, evidence = self.margin(weights), self.evidence(share * self.weight)
        if self.loss == "logistic":
            primal, dual = -F.logsigmoid(margin), torch.special.entr(share) + torch.special.entr(1 - share)
        else:
            primal, dual = (1 - margin).clamp_min(0), share
        divergence = (weights * -self.log_prior - torch.special.entr(weights)).sum(1, keepdim=True)
        held = torch.where(self.strength > 0, self.strength, 1.0)
        bound = torch.where(
            self.strength > 0,
            self.strength * (self.log_prior + evidence / held).logsumexp(1, keepdim=True),
            evidence.amax(1, keepdim=True),
        )
        objective = (self.weight * primal).sum(1) + (self.strength * divergence).squeeze(1)
        return objective, objective - (self.weight * dual).sum(1) + bound.squeeze(1)

    def keep(self, users: Tensor) -> "Problem":
        """The problem of some users."""
        return self._replace(
            differences=self.differences[users], weight=self.weight[users], strength=self.strength[users]
        )


class _State(NamedTuple):
    """Point inside all bounds; the product of each of three with its dual is zero at the optimum."""

    weights: Tensor  # w, (U, K)
    weights_dual: Tensor
    slope: Tensor  # a, minus the losses' derivatives, (U, n), between 0 and the weight
    slope_dual: Tensor
    rest: Tensor  # weight - slope
    rest_dual: Tensor
    level: Tensor  # multiplier of sum(w) = 1, (U, 1)


def solve(problem: Problem, prior: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Weights (U, K) on the simplex, and the relative gap (U,) of those who missed the tolerance, else 0."""
    margin = problem.margin(prior.expand(len(problem.weight), -1))
    share = torch.sigmoid(-margin) if problem.loss == "logistic" else (margin < 1).to(margin.dtype)
    best = prior.repeat(len(margin), 1)
    objective, gap = problem.certificate(best, share)
    gap = gap / objective.clamp_min(1)
    users = (~(gap <= tolerance)).nonzero().squeeze(1)
    problem = problem.keep(users)
    state = _start(problem, prior)
    for _ in range(max_iterations):
        if not len(users):
            break
        state = _stepped(problem, state)
        weights = state.weights / state.weights.sum(1, keepdim=True)
        share = state.slope / (state.slope + state.rest)
        objective, found = problem.certificate(weights, share)
        found = found / objective.clamp_min(1)
        better = found < gap[users]
        best[users[better]], gap[users[better]] = weights[better], found[better]
        going = ~(gap[users] <= tolerance)
        if not bool(going.all()):
            users, problem = users[going], problem.keep(going)
            state = _State(*(part[going] for part in state))
    return best, torch.where(gap <= tolerance, 0.0, gap)


def _start(problem: Problem, prior: Tensor) -> _State:
    """A point well inside all bounds that meets every equation but the products."""
    weights = ((prior + 1 / len(prior)) / 2).repeat(len(problem.weight), 1)
    real = problem.weight > 0
    slope = torch.where(real, problem.weight, 1.0) / 2
    pull = problem.evidence(slope * real) - problem.strength * (weights.log() - problem.log_prior)
    highest = pull.amax(1, keepdim=True)
    level = highest + (highest - pull.amin(1, keepdim=True)).clamp_min(1e-2)
    beyond = problem.margin(weights) - float(problem.loss == "hinge")
    room = (problem.weight * beyond.abs()).sum(1, keepdim=True).clamp_min(0.1)
    return _State(
        weights=weights,
        weights_dual=level - pull,
        slope=slope,
        slope_dual=beyond.clamp_min(0) + room,
        rest=slope,
        rest_dual=(-beyond).clamp_min(0) + room,
        level=level,
    )


def _stepped(problem: Problem, state: _State) -> _State:
    """One Newton step towards products of a tenth of their mean, as far as the bounds allow.

    Solved are, with the margin z = D w: strength log(w / prior) - D'a - weights_dual + level = 0, and
    z + log(a / rest) (hinge: z - 1) = slope_dual - rest_dual.
    """
    w, w_dual, a, a_dual, rest, rest_dual, level = state
    real = problem.weight > 0
    products = (w * w_dual).sum(1) + (real * (a * a_dual + rest * rest_dual)).sum(1)
    aim = _CENTRING * (products / (w.shape[1] + 2 * real.sum(1))).unsqueeze(1)

    stationarity = problem.strength * (w.log() - problem.log_prior) - problem.evidence(a * real) + level
    link, width = problem.margin(w), a_dual / a + rest_dual / rest
    if problem.loss == "logistic":
        link, width = link + (a / rest).log(), width + 1 / a + 1 / rest
    else:
        link = link - 1
    # Eliminate the duals and a; what remains is K x K, and positive definite.
    push = aim / a - aim / rest - link
    curvature = real / width
    matrix = problem.differences.mT @ (curvature.unsqueeze(-1) * problem.differences)
    matrix.diagonal(dim1=1, dim2=2).add_((problem.strength + w_dual) / w)
    # Steps sum to zero, so a constant added to the matrix changes none; it bounds the condition where
    # the optimum is a vertex or an edge.
    matrix = matrix + matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    scale = matrix.diagonal(dim1=1, dim2=2).rsqrt().unsqueeze(-1)
    target = aim / w - stationarity + problem.evidence(curvature * push)
    sides = torch.stack([target, torch.ones_like(target)], dim=2)
    solved = torch.linalg.solve_ex(scale * matrix * scale.mT, scale * sides)[0] * scale
    sums = solved.sum(1)
    level_step = ((sums[:, 0] - 1 + w.sum(1)) / sums[:, 1]).unsqueeze(1)

    w_step = solved[..., 0] - level_step * solved[..., 1]
    a_step = curvature * (push - problem.margin(w_step))
    steps = _State(
        weights=w_step,
        weights_dual=(aim - w_dual * w_step) / w - w_dual,
        slope=a_step,
        slope_dual=real * ((aim - a_dual * a_step) / a - a_dual),
        rest=-a_step,
        rest_dual=real * ((aim + rest_dual * a_step) / rest - rest_dual),
        level=level_step,
    )
    bounded = list(zip(state[:-1], steps[:-1], strict=True))
    fastest = torch.stack([(-step / part).amax(1) for part, step in bounded]).amax(0)
    length = (_TO_THE_BOUNDARY / fastest.clamp_min(_TO_THE_BOUNDARY)).unsqueeze(1)
    moved = _State(*(part + length * step for part, step in zip(state, steps, strict=True)))
    # A user whose equations can no longer be solved in float64 stays put.
    fine = torch.stack([part.isfinite().all(1) for part in moved]).all(0).unsqueeze(1)
    return _State(*(torch.where(fine, new, old) for new, old in zip(moved, state, strict=True)))
