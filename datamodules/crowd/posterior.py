r"""From the votes of a crowd to a distribution over labels: prior, Bayesian update, drift, smoothing.

Counts of votes are updated as a Dirichlet-categorical model: with a prior mean :math:`\pi` that weighs as much as s
votes, and c votes per label, n in all,

.. math:: \mu_i = \frac{s \pi_i + c_i}{s + n}

K, the number of labels, is the width of the data throughout. Everything is computed in float64 and for all responses
at once.

Source: Li et al., *Aligning Crowd Feedback via Distributional Preference Reward Modeling*, 2024,
https://arxiv.org/abs/2402.09764, updates a distribution of labels in a Bayesian way with the opinions of personas, and
smooths it. Its formulas for that were not available to us: the update with pseudo-votes, the default strength 10, the
floor of the prior, forgetting, the rule that smooths towards the second label, and the correction for correlated votes
are our reading, not the paper's.
"""

import math

import torch
from torch import Tensor

from ..checks import check_range
from .config import TOLERANCE, CrowdConfig
from .priors import resolve_prior

__all__ = [
    "beta_view",
    "crowd_batch_target",
    "crowd_posterior",
    "crowd_target",
    "dirichlet_update",
    "effective_votes",
    "forgetting_horizon",
    "smooth_certain",
]


def effective_votes(votes: Tensor, *, correlation: float = 0.0, maximum: float | None = None) -> Tensor:
    r"""Counts scaled down to the number of independent votes that they are worth; shares stay as they are.

    .. math:: n' = \min\left(\frac{n}{1 + \max(n - 1, 0) \, \rho}, n_{max}\right)

    Args:
        votes: Counts per label, (..., K), >= 0; may be fractions.
        correlation: Correlation rho of two votes on the same response, in [0, 1). With any rho > 0 no number of votes
            counts as more than 1 / rho.
        maximum: Most that they may count in all, > 0; None for no limit.

    Returns:
        Counts, (..., K) float64.

    Raises:
        ValueError: If a count is negative or not finite, or a setting is outside its range.

    Source:
        The denominator is the design effect of a cluster sample: Kish, *Survey Sampling*, 1965, section 5.4.
        Departures: below one vote nothing is scaled, where the formula would count a fraction of a vote as more.
        Its use for votes of personas is our reading.

    Example:
        >>> effective_votes(torch.tensor([8.0, 2.0, 0.0]), correlation=1 / 9)
        tensor([4., 1., 0.], dtype=torch.float64)

    .. versionadded:: 0.1
    """
    check_range("correlation", correlation, at_least=0, below=1)
    check_range("maximum", maximum, above=0)
    votes = _counts(votes)
    number = votes.sum(-1, keepdim=True)
    scale = 1 / (1 + (number - 1).clamp_min(0) * correlation)
    if maximum is not None:
        scale = torch.minimum(scale, maximum / number.clamp_min(torch.finfo(torch.float64).tiny))
    return votes * scale


def dirichlet_update(
    mean: Tensor, strength: Tensor | float, votes: Tensor, *, forgetting: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Posterior of a categorical distribution after one step of votes.

    .. math::
        s' = \gamma s + n \qquad \mu' = \frac{\gamma s \mu + c}{s'}

    With :math:`\gamma = 1` this is the conjugate update: votes may come one at a time, in any order, or all at once.
    With less, what was believed before counts less at each step, so that the mean follows a crowd that changes its
    mind (see :func:`forgetting_horizon`).

    Args:
        mean: Distribution believed so far, (..., K); sums to 1.
        strength: Number of votes s that it weighs as much as, scalar or (...,), >= 0; 0 for no prior.
        votes: Counts c per label, (..., K), >= 0; may be fractions.
        forgetting: Share gamma of the former strength that is kept, in (0, 1].

    Returns:
        The new mean, (..., K), and its strength, (...,), both float64.

    Raises:
        ValueError: If there are neither votes nor a prior, or an argument is outside its range.

    Source:
        Our reading; the paper's rule was not available to us (see the module).

    Example:
        >>> mean, strength = dirichlet_update(torch.tensor([0.5, 0.5]), 10.0, torch.tensor([9.0, 1.0]))
        >>> mean, strength
        (tensor([0.7000, 0.3000], dtype=torch.float64), tensor(20., dtype=torch.float64))

    .. versionadded:: 0.1
    """
    check_range("forgetting", forgetting, above=0, at_most=1)
    mean, votes = _simplex("mean", mean), _counts(votes)
    kept = forgetting * _strength(strength, mean)
    new = kept + votes.sum(-1)
    if bool((new <= 0).any()):
        where = tuple(int(i) for i in (new <= 0).nonzero()[0])
        raise ValueError(f"no votes and no prior at index {where}: give votes, or a strength > 0")
    return (kept.unsqueeze(-1) * mean + votes) / new.unsqueeze(-1), new


def beta_view(mean: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Each label against the rest: parameters :math:`a_i = s \mu_i, b_i = s (1 - \mu_i)` of its beta distribution.

    These are the marginals of the Dirichlet distribution. Updating each one by itself, to
    :math:`a_i + c_i, b_i + n - c_i`, gives the means of :func:`dirichlet_update`, and they still sum to 1, because all
    labels share one strength.

    Args:
        mean: Distribution, (..., K); sums to 1.
        strength: Number of votes s that it weighs as much as, scalar or (...,), >= 0.

    Returns:
        a and b, (..., K) each, float64, >= 0.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        The first version of the paper speaks of beta distributions, the third of a categorical one; that the two are
        one and the same in this way is our reading.

    Example:
        >>> beta_view(torch.tensor([0.25, 0.75]), 8.0)
        (tensor([2., 6.], dtype=torch.float64), tensor([6., 2.], dtype=torch.float64))

    .. versionadded:: 0.1
    """
    mean = _simplex("mean", mean)
    weight = _strength(strength, mean).unsqueeze(-1)
    return weight * mean, weight * (1 - mean)


def forgetting_horizon(
    forgetting: float, votes_per_step: float, *, share: float = 0.9
) -> tuple[float, float]:
    r"""How strongly and how long a crowd is remembered that is updated with forgetting at every step.

    With n votes at each step the strength settles at :math:`n / (1 - \gamma)`. From there, k steps after a sudden
    change, old votes have the weight :math:`\gamma^k`, so the expected mean has gone the given share of the way after
    :math:`\log(1 - share) / \log \gamma` steps. The more is forgotten, the faster it follows and the noisier it is.

    Args:
        forgetting: Share gamma of the former strength that is kept at each step, in (0, 1].
        votes_per_step: Votes n at each step, > 0.
        share: Share of the way from the old to the new distribution, in (0, 1).

    Returns:
        The strength, in votes, and the number of steps; both infinite if nothing is forgotten.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Follows from :func:`dirichlet_update`, whose forgetting is our reading.

    Example:
        >>> strength, steps = forgetting_horizon(0.9, votes_per_step=10)
        >>> round(strength), round(steps, 2)
        (100, 21.85)

    .. versionadded:: 0.1
    """
    check_range("forgetting", forgetting, above=0, at_most=1)
    check_range("votes_per_step", votes_per_step, above=0)
    check_range("share", share, above=0, below=1)
    if forgetting == 1:
        return math.inf, math.inf
    return votes_per_step / (1 - forgetting), math.log1p(-share) / math.log(forgetting)


def smooth_certain(
    mean: Tensor, epsilon: float, *, prior: Tensor | None = None, cost: Tensor | None = None
) -> Tensor:
    """Distributions that are certain of one label, softened towards the next most likely one.

    Where the top label has more than 1 - epsilon it gets 1 - epsilon, and all that it loses goes to one other label:
    the most likely; of equals the one with the greater prior; of those the one nearest to the top label; of those the
    first. Other distributions stay as they are.

    Args:
        mean: Distributions, (..., K); sum to 1.
        epsilon: Mass that the top label leaves, in [0, 0.5).
        prior: Decides between equally likely labels, (K,) or (..., K); None for no such rule.
        cost: Cost of taking the row's label for the column's, (K, K); decides after the prior. None for no such rule.

    Returns:
        Distributions, (..., K) float64.

    Raises:
        ValueError: If an argument is outside its range or shapes do not fit.

    Source:
        That smoothing favours the next most likely label is reported of the paper; this rule is our reading.

    Example:
        >>> smooth_certain(torch.tensor([[1.0, 0.0, 0.0]]), 0.1, prior=torch.tensor([0.5, 0.2, 0.3]))
        tensor([[0.9000, 0.0000, 0.1000]], dtype=torch.float64)

    .. versionadded:: 0.1
    """
    check_range("epsilon", epsilon, at_least=0, below=0.5)
    mean = _simplex("mean", mean)
    size = mean.shape[-1]
    largest, top = mean.max(-1, keepdim=True)
    if size < 2 or not epsilon:
        return mean
    candidates = torch.ones_like(mean, dtype=torch.bool).scatter(-1, top, False)
    rankings = [mean]
    if prior is not None:
        rankings.append(_fitted("prior", prior, mean))
    if cost is not None:
        if cost.shape != (size, size):
            raise ValueError(f"cost must be ({size}, {size}), got {tuple(cost.shape)}")
        rankings.append(-cost.to(mean)[top.squeeze(-1)])
    for ranking in rankings:
        best = ranking.masked_fill(~candidates, -math.inf).amax(-1, keepdim=True)
        candidates = candidates & (ranking == best)
    second = candidates.to(torch.uint8).argmax(-1, keepdim=True)
    removed = (largest - (1 - epsilon)).clamp_min(0)
    return mean.scatter_add(-1, top, -removed).scatter_add(-1, second, removed)


def crowd_posterior(
    votes: Tensor,
    config: CrowdConfig,
    prior: Tensor | None = None,
    *,
    prior_weight: Tensor | None = None,
    cost: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Distribution over labels that votes and a prior give: effective votes, update, smoothing.

    Args:
        votes: Counts per label of n responses, (n, K), >= 0; may be fractions.
        config: How to count and to smooth; its ``prior`` is used only if no other is given.
        prior: Prior means, (K,) or (n, K); a row of zeros has no prior. None takes ``config.prior``, unless that
            needs the training split or a file (see :func:`crowd_priors`).
        prior_weight: Share of ``config.prior_strength`` that is left, (n,), in [0, 1]; None for all of it.
        cost: Cost between labels, (K, K), for ties in smoothing (see :func:`smooth_certain`).

    Returns:
        Means, (n, K), and strengths in votes, (n,), both float64.

    Raises:
        ValueError: If a response has neither votes nor a prior (says what to change), or an argument is outside its
            range.

    Example:
        >>> mean, strength = crowd_posterior(torch.tensor([[5.0, 0.0]]), CrowdConfig("uniform", prior_strength=5))
        >>> mean, strength
        (tensor([[0.7500, 0.2500]], dtype=torch.float64), tensor([10.], dtype=torch.float64))

    .. versionadded:: 0.1
    """
    if votes.ndim != 2 or not votes.shape[1]:
        raise ValueError(f"votes must be (n, K), got {tuple(votes.shape)}")
    counts = effective_votes(votes, correlation=config.vote_correlation, maximum=config.max_votes)
    mean, strength = _prior(counts, config, prior, prior_weight)
    empty = strength + counts.sum(-1) <= 0
    if bool(empty.any()):
        raise ValueError(
            f"{int(empty.sum())} of {len(votes)} responses have no votes and no prior, the first at index "
            f"{int(empty.nonzero()[0])}: set crowd.prior to uniform, mean, probabilities or a file (with "
            f"crowd.prior_strength > 0; it is {config.prior_strength:g}), or leave these responses out"
        )
    posterior, total = dirichlet_update(mean, strength, counts)
    return smooth_certain(posterior, config.smoothing, prior=mean, cost=cost), total


def crowd_target(
    votes: Tensor,
    config: CrowdConfig,
    prior: Tensor | None = None,
    *,
    cost: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Target distribution of each response: :func:`crowd_posterior`, with all of its prior, in float32.

    Args:
        votes: Counts per label of n responses, (n, K).
        config: How to count and to smooth.
        prior: Prior means, (K,) or (n, K).
        cost: Cost between labels, (K, K).

    Returns:
        Targets, (n, K) float32, which sum to 1; strengths in votes, (n,) float32.

    Raises:
        ValueError: As :func:`crowd_posterior`.

    Example:
        >>> target, strength = crowd_target(torch.tensor([[3.0, 1.0]]), CrowdConfig("uniform", prior_strength=4))
        >>> target, strength
        (tensor([[0.6250, 0.3750]]), tensor([8.]))

    .. versionadded:: 0.1
    """
    mean, strength = crowd_posterior(votes, config, prior, cost=cost)
    return mean.float(), strength.float()


def crowd_batch_target(votes: Tensor, config: CrowdConfig, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distribution to learn and its weight in votes; NaN and 0 for an item with neither votes nor prior.

    Data may hold items that nobody judged beside others; that a method needs every item judged is for the method to say.

    Args:
        votes: (n, K).
        config: How votes count.
        prior: (n, K), zeros where there is none, NaN where a file of priors lacks one (which votes alone need); None
            for none at all.

    Returns:
        (n, K) and (n,), float32.
    """
    prior = torch.zeros_like(votes) if prior is None else prior
    known = (prior > 0).any(-1)  # and not NaN
    judged = (votes.sum(-1) > 0) | (known & (config.prior_strength > 0))
    target, num_votes = torch.full_like(votes, torch.nan), votes.new_zeros(len(votes))
    target[judged], num_votes[judged] = crowd_target(votes[judged], config, prior[judged])
    return target, num_votes


def _prior(
    counts: Tensor, config: CrowdConfig, prior: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Floored means, (n, K), uniform where there is no prior; strengths, (n,), 0 there."""
    number, size = counts.shape
    if prior is None:
        resolved = resolve_prior(config, size)
        if isinstance(resolved, dict):
            raise ValueError(f"prior={config.prior!r} has a prior for each record: give those of these rows")
        prior = counts.new_zeros(size) if resolved is None else resolved
    prior = _fitted("prior", prior, counts)
    lost = prior.isnan().any(-1)
    if bool(lost.any()):
        raise ValueError(
            f"{int(lost.sum())} of {number} responses have no prior in {config.prior!r}, the first at index "
            f"{int(lost.nonzero()[0])}: add their records to that file"
        )
    known = prior.ne(0).any(-1)
    strength = config.prior_strength * known.double()
    if weight is not None:
        if weight.shape != (number,) or not bool(((weight >= 0) & (weight <= 1)).all()):
            raise ValueError(
                f"prior_weight must be ({number},) in [0, 1], got {tuple(weight.shape)}: {weight}"
            )
        strength = strength * weight.to(strength)
    mean = _simplex("prior", torch.where(known.unsqueeze(-1), prior, 1 / size)).clamp_min(config.prior_floor)
    return mean / mean.sum(-1, keepdim=True), strength


def _counts(votes: Tensor) -> Tensor:
    votes = votes.double()
    if not bool((votes.isfinite() & (votes >= 0)).all()):
        raise ValueError("votes must be finite and >= 0 everywhere")
    return votes


def _simplex(name: str, mean: Tensor) -> Tensor:
    """Distributions over the last dimension in float64, divided by their sums."""
    mean = mean.double()
    sums = mean.sum(-1, keepdim=True)
    if not bool((mean >= 0).all() & ((sums - 1).abs() <= TOLERANCE).all()):
        raise ValueError(f"{name} must be >= 0 and sum to 1 (within {TOLERANCE:g}) over the last dimension")
    return mean / sums


def _strength(strength: Tensor | float, mean: Tensor) -> Tensor:
    value = torch.as_tensor(strength, dtype=torch.float64, device=mean.device)
    if not bool((value.isfinite() & (value >= 0)).all()):
        raise ValueError("strength must be finite and >= 0 everywhere")
    return value


def _fitted(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape != like.shape and tensor.shape != like.shape[-1:]:
        raise ValueError(
            f"{name} must be {tuple(like.shape[-1:])} or {tuple(like.shape)}, got {tuple(tensor.shape)}"
        )
    return tensor.to(like).expand_as(like)
