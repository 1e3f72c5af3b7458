"""A new user's place among fixed prototypes, from a few judgements; thousands of users at once."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules.checks import check_choices, check_range

from .judgements import JudgementLoss, judgement_losses
from .simplex_solver import PairLoss, Problem, solve

__all__ = ["fit_mixture_logits", "fit_mixture_weights", "shot_ranks"]

_BLOCK = {"cpu": 2**17, "other": 2**24}  # numbers in one block of differences; the former fits a cache


def shot_ranks(user: Tensor, num_users: int, *, seed: int) -> Tensor:
    """Where every judgement stands in a random order of its user's: those below n are n of them, or all there are.

    Args:
        user: Who judged, (M,) int64 in [0, num_users).
        num_users: U >= 1.
        seed: The same seed and judgements give the same order, on every device.

    Returns:
        Ranks, (M,) int64, from 0 for each user.

    Raises:
        ValueError: If a user is out of range.
        TypeError: If ``user`` does not hold int64.
    """
    _check_user(user, num_users)
    shuffled = torch.randperm(len(user), generator=torch.Generator().manual_seed(seed)).to(user.device)
    order = shuffled[user[shuffled].sort(stable=True).indices]
    counts = user.bincount(minlength=num_users)
    rank = torch.arange(len(user), device=user.device) - (counts.cumsum(0) - counts)[user[order]]
    return torch.empty_like(user).index_copy_(0, order, rank)


@torch.no_grad()
def fit_mixture_weights(
    differences: Tensor,
    user: Tensor,
    num_users: int,
    *,
    preference: Tensor | None = None,
    weight: Tensor | None = None,
    prior: Tensor | None = None,
    prior_strength: float = 0.0,
    loss: PairLoss = "logistic",
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> Tensor:
    r"""Every user's best weights of K fixed rewards: the global optimum, with a proof for each user.

    .. math::
        \min_{w \in \Delta} \sum_m c_m \big[p_m \, \ell(w \cdot d_m) + (1 - p_m) \, \ell(-w \cdot d_m)\big]
        + \lambda \, KL(w \,\|\, \pi), \qquad
        \ell(z) = \log(1 + e^{-z}) \ \text{or} \ \max(0, 1 - z)

    The divergence is zero at the prior alone, so that a user without judgements gets the prior, and what a
    judgement can move is bounded: the weights' total change is at most its c max|d| / strength. It multiplies
    where a ridge adds: w is proportional to prior times exp(evidence / strength), so that a prototype few
    people hold needs more evidence than a common one, as in Bayes' rule. A zero in the prior then shuts a
    prototype out. Strength counts like weights of judgements: 1 suits rewards in log-odds, whereas strength
    0 does worse than the prior itself on new pairs after one or two judgements. At strength 0 the optimum
    need not be unique; one is returned, and the prior wherever it is one.

    The solver is a primal-dual interior-point method with one K x K system per user and step, on
    blocks of users in float64. A user is finished when the duality gap, which bounds how far the objective
    lies above its minimum, is small enough; another user's judgements do not enter. Differences beyond
    about 1e4 may leave float64 short of a gap of 1e-6 for a few users, above all with a hinge.

    Args:
        differences: d, (M, K): the K rewards of the first response less those of the second. Finite.
        user: Who judged, (M,) int64 in [0, num_users).
        num_users: U >= 1.
        preference: Share p for the first, (M,) in [0, 1]; 1 if None.
        weight: c >= 0, (M,); 1 if None.
        prior: pi, (K,), on the simplex; uniform if None.
        prior_strength: Lambda >= 0.
        loss: ``"logistic"`` or ``"hinge"`` (margin 1; solved exactly, not smoothed).
        tolerance: Gap allowed, > 0, where the objective is divided by the total weight of the user's
            judgements; relative to the objective where that exceeds 1.
        max_iterations: Steps, >= 1; about 15 are needed.

    Returns:
        Weights, (U, K), on the simplex, in the type of ``differences``, without gradient.

    Raises:
        ValueError: If shapes do not fit, a value is not finite or outside its range, or ``loss`` is unknown.
        TypeError: If ``user`` does not hold int64, or another tensor is not floating.

    Warns:
        RuntimeWarning: If users have not reached the tolerance: how many, and the largest gap.

    Source:
        Objective: Chen et al., *PAL: Pluralistic Alignment Framework for Learning from Heterogeneous
        Preferences*, 2024, https://arxiv.org/abs/2406.08469, with squared distances, which make margins
        linear in the weights. Departures: solved on the simplex, where it is convex, and not by gradient
        steps on logits; the prior. Solver: a path-following method as in Wright, *Primal-Dual
        Interior-Point Methods*, SIAM 1997, with Newton's equations of this objective.
    """
    _check_floating("differences", differences)
    if differences.ndim != 2 or differences.shape[1] == 0:
        raise ValueError(f"differences must be (M, K) with K >= 1; got {tuple(differences.shape)}")
    check_range("tolerance", tolerance, above=0)
    check_range("max_iterations", max_iterations, at_least=1)
    check_choices(fit_mixture_weights, loss=loss)
    _check_values("differences", differences)
    judged = _judgements(
        len(differences), differences.shape[1], differences.device,
        user, num_users, preference, weight, prior, prior_strength,
    )  # fmt: skip

    # A judgement is an entry for either response that has a share in it.
    entry_weight = torch.cat([judged.weight * judged.preference, judged.weight * (1 - judged.preference)])
    entry = entry_weight.nonzero().squeeze(1)
    entry = entry[user[entry % max(len(user), 1)].sort(stable=True).indices]
    row = entry % max(len(user), 1)
    counts = user[row].bincount(minlength=num_users)
    starts = counts.cumsum(0) - counts
    sorted_counts, by_count = counts.sort(descending=True, stable=True)
    columns = judged.columns
    pi = judged.prior[columns] / judged.prior[columns].sum()
    block = _BLOCK["cpu" if differences.device.type == "cpu" else "other"]

    result = judged.prior.expand(num_users, -1).clone()
    first, last = 0, int((counts > 0).sum())
    unfinished, worst = 0, 0.0
    while first < last:  # users of similar counts side by side, so that little is padded
        longest = int(sorted_counts[first])
        users = by_count[first : min(last, first + max(1, block // (longest * len(columns))))]
        first += len(users)
        offset = torch.arange(longest, device=user.device)
        real = offset < counts[users].unsqueeze(1)
        index = torch.where(real, starts[users].unsqueeze(1) + offset, 0)
        sign = torch.where(entry[index] < len(user), 1.0, -1.0).double() * real
        total = judged.total[users].unsqueeze(1)
        problem = Problem(
            differences=differences[row[index]][..., columns].double() * sign.unsqueeze(-1),
            weight=entry_weight[entry[index]] * real / total,
            strength=prior_strength / total,
            log_prior=pi.clamp_min(1e-300).log(),  # zeros only at strength 0
            loss=loss,
        )
        weights, gap = solve(problem, pi, tolerance, max_iterations)
        result[users] = result.new_zeros(len(users), result.shape[1]).index_copy_(1, columns, weights)
        missed = gap > 0
        unfinished += int(missed.sum())
        worst = max(worst, float(gap.max()))
    if unfinished:
        warnings.warn(
            f"{unfinished} of {last} users with judgements did not reach tolerance={tolerance:g} within "
            f"max_iterations={max_iterations}; the largest relative gap left is {worst:.3g}. Their weights "
            "are the best ones met; raise max_iterations or tolerance, or give a prior_strength.",
            RuntimeWarning,
            stacklevel=2,
        )
    return result.to(differences.dtype)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_mixture_logits(
    margins: Callable[[Tensor], Tensor],
    user: Tensor,
    num_users: int,
    num_prototypes: int,
    *,
    preference: Tensor | None = None,
    weight: Tensor | None = None,
    prior: Tensor | None = None,
    prior_strength: float = 0.0,
    loss: JudgementLoss = "logistic",
    num_steps: int = 200,
    lr: float = 0.1,
) -> Tensor:
    """Every user's weights where margins are no linear function of them, by Adam on logits.

    The objective is that of :func:`fit_mixture_weights` with ``margins`` in place of products, and need not
    be convex; of all steps each user gets the best, the prior included. All users move at once, each alone.
    No random numbers; after half of the steps the rate falls
    to zero. Only the logits move, whatever else
    ``margins`` depends on.

    Args:
        margins: From weights per judgement, (M, K) on the simplex, in the type of ``prior`` (the default type
            without one), to rewards of the first response less those of the second, (M,), differentiably. A
            judgement's margin must depend on its own row only, and on no tensor made in inference mode.
        user: Who judged, (M,) int64 in [0, num_users).
        num_users: U >= 1.
        num_prototypes: K >= 1.
        preference: Share for the first, (M,) in [0, 1]; 1 if None.
        weight: Weights >= 0, (M,); 1 if None.
        prior: On the simplex, (K,), where the logits start; uniform if None. Zeros start at 1e-6 at strength
            0 and shut a prototype out otherwise.
        prior_strength: Weight of KL(w || prior), >= 0.
        loss: ``"logistic"``, ``"hinge"`` (margin 1) or ``"smoothed_hinge"``.
        num_steps: Steps, >= 0.
        lr: First rate, in logits per step, > 0.

    Returns:
        Weights, (U, K), on the simplex, in the type of ``prior``, without gradient; the prior for users
        without judgements.

    Raises:
        ValueError: If shapes do not fit, a value is not finite or outside its range (``margins``' too), or
            ``loss`` is unknown.
        TypeError: If ``user`` does not hold int64, or another tensor is not floating.

    Source:
        Chen et al., 2024, as :func:`fit_mixture_weights`: the official code fits new users' logits by 20
        epochs of AdamW from random logits. Departures: starts at the prior; all judgements in each step; the
        prior's term.
    """
    check_range("num_prototypes", num_prototypes, at_least=1)
    check_range("num_steps", num_steps, at_least=0)
    check_range("lr", lr, above=0)
    check_choices(fit_mixture_logits, loss=loss)
    _check_user(user, num_users)
    user = user.clone()  # a tensor made in inference mode must not meet autograd
    judged = _judgements(
        len(user), num_prototypes, user.device,
        user, num_users, preference, weight, prior, prior_strength,
    )  # fmt: skip
    judged = _Judgements(*(part.detach().clone() for part in judged))
    dtype = torch.get_default_dtype() if prior is None else prior.dtype
    start = judged.prior[judged.columns].clamp_min(1e-6).log()
    total = torch.where(judged.total > 0, judged.total, 1.0)

    def evaluate(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mixed = logits.softmax(1)
        weights = mixed.new_zeros(num_users, num_prototypes).index_copy(1, judged.columns, mixed)
        margin = margins(weights[user].to(dtype))
        if margin.shape != user.shape:
            raise ValueError(f"margins must return shape {tuple(user.shape)}; got {tuple(margin.shape)}")
        _check_values(f"the result of margins in step {step}", margin.detach())
        losses = judgement_losses(margin.double(), judged.preference, loss)
        divergence = (mixed * (logits.log_softmax(1) - start.log_softmax(0))).sum(1)
        summed = (prior_strength * divergence).index_add(0, user, judged.weight * losses)
        return weights.detach(), summed / total

    best = judged.prior.repeat(num_users, 1)
    logits = start.repeat(num_users, 1).requires_grad_()
    adam = torch.optim.Adam([logits], lr=lr)
    lowest = torch.full_like(total, math.inf)
    for step in range(num_steps + 1) if len(user) else ():
        weights, objective = evaluate(logits, step)
        better = (objective.detach() < lowest) & (judged.total > 0)
        best = torch.where(better.unsqueeze(1) & (step > 0), weights, best)
        lowest = torch.where(better, objective.detach(), lowest)
        if step < num_steps:
            adam.param_groups[0]["lr"] = lr * min(1.0, 2 - 2 * step / num_steps)
            (logits.grad,) = torch.autograd.grad(objective.sum(), logits)
            adam.step()
    return best.to(dtype)


class _Judgements(NamedTuple):
    """Checked arguments in float64."""

    preference: Tensor  # (M,)
    weight: Tensor  # (M,)
    total: Tensor  # (U,), sums of weights
    prior: Tensor  # (K,)
    columns: Tensor  # prototypes that may have weight


def _judgements(
    count: int,
    num_prototypes: int,
    device: torch.device,
    user: Tensor,
    num_users: int,
    preference: Tensor | None,
    weight: Tensor | None,
    prior: Tensor | None,
    prior_strength: float,
) -> _Judgements:
    check_range("prior_strength", prior_strength, at_least=0)
    _check_user(user, num_users)
    ones = torch.ones(count, dtype=torch.float64, device=device)
    preference = ones if preference is None else preference
    weight = ones if weight is None else weight
    for name, tensor in {"user": user, "preference": preference, "weight": weight}.items():
        if tensor.shape != (count,):
            raise ValueError(
                f"{name} must have shape ({count},), one for each judgement; got {tuple(tensor.shape)}"
            )
    _check_values("preference", preference, 0.0, 1.0)
    _check_values("weight", weight, 0.0)
    if prior is None:
        prior = torch.full((num_prototypes,), 1 / num_prototypes, dtype=torch.float64, device=device)
    if prior.shape != (num_prototypes,):
        raise ValueError(f"prior must have shape ({num_prototypes},); got {tuple(prior.shape)}")
    _check_values("prior", prior, 0.0)
    prior = prior.double()
    if abs(float(prior.sum()) - 1) > 1e-3:
        raise ValueError(f"prior must sum to 1 within 0.001; got {float(prior.sum()):g}")
    weight = weight.double()
    return _Judgements(
        preference=preference.double(),
        weight=weight,
        total=weight.new_zeros(num_users).index_add_(0, user, weight),
        prior=prior,
        columns=(prior > 0 if prior_strength else prior >= 0).nonzero().squeeze(1),
    )


def _check_user(user: Tensor, num_users: int) -> None:
    check_range("num_users", num_users, at_least=1)
    if user.dtype != torch.int64:
        raise TypeError(f"user must hold int64; got {user.dtype}")
    if user.ndim != 1:
        raise ValueError(f"user must be (M,); got {tuple(user.shape)}")
    _raise_unless((user >= 0) & (user < num_users), "user", user, f"in [0, {num_users - 1}]")


def _check_floating(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating; got {values.dtype}")


def _check_values(name: str, values: Tensor, low: float = -math.inf, high: float = math.inf) -> None:
    _check_floating(name, values)
    allowed = "finite" if low == -math.inf else "finite and in "
    if low > -math.inf:
        allowed += f"[{low:g}, {high:g}{')' if high == math.inf else ']'}"
    _raise_unless(values.isfinite() & (values >= low) & (values <= high), name, values, allowed)


def _raise_unless(fine: Tensor, name: str, values: Tensor, allowed: str) -> None:
    if not bool(fine.all()):
        where = tuple(int(i) for i in (~fine).nonzero()[0])
        raise ValueError(f"{name} must be {allowed}; got {values[where].item()!r} at index {where}")
