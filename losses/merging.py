"""Merging: one next-token distribution out of those of several experts, for tokens of one vocabulary."""

import torch
from torch import Tensor

from ._common import as_compute, check_broadcast, check_mask, check_values

__all__ = ["forward_kl_mixture", "geometric_mixture", "linear_mixture"]

LEAST = -690.0
"""Log-probability below which a token counts as impossible where probabilities are divided: 1e-300, all that float64 has."""
HALVINGS, NEWTON_STEPS = 12, 6
"""After the first the bracket's ends are within a fifth of each other, whatever they were; the second is exact from there."""
LARGE = 30.0
"""Where exp(-x) is lost beside 1 in float64, nearly."""


def linear_mixture(log_weights: Tensor, log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Log-probabilities of experts mixed in probability space: a token is as likely as the experts say on average.

    What one expert rules out stays possible. With all weight on one expert it is that expert.

    .. math:: \log \pi(y) = \log \sum_i \alpha_i \, p_i(y), \qquad \alpha = \mathrm{softmax}(z)

    Args:
        log_weights: Logits z, or logarithms of weights, (..., n); -inf is a weight of exactly 0. Broadcast to the experts'
            leading dimensions, as (n,) for all rows or one for each.
        log_probs: Log-probabilities of the experts, (..., n, V), in nats; -inf for what an expert rules out. Of black boxes
            that give their top tokens alone, -inf elsewhere: then the result sums to the weighted mass that was given.
        mask: Experts that take part, broadcasts as the weights do, bool; None for all. The others' numbers are not read.

    Returns:
        Log-probabilities, (..., V), float32 (float64 for float64 input).

    Raises:
        ValueError: If shapes do not fit, no expert takes part, a logit is NaN or inf, or a log-probability NaN or inf.
        TypeError: If ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> experts = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
        >>> linear_mixture(torch.tensor([0.6, 0.4]).log(), experts.log()).exp()
        tensor([0.4600, 0.2000, 0.3400])

    Source:
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024, https://arxiv.org/abs/2407.04181, equation 1
        of its conference version as cited by its public reviews. Departures: that weights come from a softmax, and the
        mask, are our reading.

    .. versionadded:: 0.1
    """
    z, log_p = _taking_part("log_weights", log_weights, log_probs, mask)
    z = z if mask is None else z.masked_fill(~mask, -torch.inf)
    weighty = z != -torch.inf
    check_values("log_weights", torch.where(weighty, z, 0.0))
    check_values("number of experts that take part", weighty.sum(-1), 1)
    joint = z.log_softmax(-1).unsqueeze(-1) + log_p
    possible = (joint > -torch.inf).any(-2, keepdim=True)
    # Of nothing but -inf the gradient would be NaN.
    mixed = torch.where(possible, joint, 0.0).logsumexp(-2)
    return mixed.masked_fill(~possible.squeeze(-2), -torch.inf)


def geometric_mixture(weights: Tensor, log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Log-probabilities of experts multiplied: a weighted sum of their log-probabilities, normalised.

    An expert with a weight has a veto: what it rules out has no mass at all. Weights that sum to 1 merge policies that were
    tuned to one reward each (MOD, reverse KL); a base at 1 and an autoregressive reward model at 1/beta is GenARM's rule.

    .. math:: \log \pi(y) = \sum_i w_i \log p_i(y) - \log \sum_{y'} \prod_i p_i(y')^{w_i}

    Args:
        weights: Weights w >= 0, (..., n), which need not sum to 1; broadcast to the experts' leading dimensions.
        log_probs: Log-probabilities of the experts, (..., n, V), in nats, up to a constant of each expert; -inf for what an
            expert rules out.
        mask: Experts that take part, broadcasts as the weights do, bool; None for all. The others' numbers are not read.

    Returns:
        Log-probabilities, (..., V), float32 (float64 for float64 input). Where values are not checked, a row without a token
        that all experts allow is -inf throughout.

    Raises:
        ValueError: If shapes do not fit, a weight is negative or not finite, all are 0, a log-probability is NaN or inf, or no
            token is possible under all experts that have a weight.
        TypeError: If ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> experts = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
        >>> geometric_mixture(torch.tensor([0.6, 0.4]), experts.log()).exp()
        tensor([0.4348, 0.2706, 0.2946])

    Source:
        Shi et al., *Decoding-Time Language Model Alignment with Multiple Objectives*, NeurIPS 2024,
        https://arxiv.org/abs/2406.18853, reverse KL, formula as in the official code (equation number not available); Xu et
        al., *GenARM*, ICLR 2025, https://arxiv.org/abs/2410.08193, whose rule it is with weights (1, 1/beta). Departures:
        none.

    .. versionadded:: 0.1
    """
    w, log_p = _taking_part("weights", weights, log_probs, mask)
    w = _weights(w, mask)
    impossible = (
        log_p == -torch.inf
    )  # kept out of the product: its gradient, and that of a weight of 0, would be NaN
    score = (w.unsqueeze(-1) * log_p.masked_fill(impossible, 0.0)).sum(-2)
    vetoed = (impossible & (w > 0).unsqueeze(-1)).any(-2)
    allowed = _some_allowed(vetoed)
    merged = torch.where(allowed, score.masked_fill(vetoed, -torch.inf), 0.0).log_softmax(-1)
    return merged.masked_fill(~allowed, -torch.inf)


def forward_kl_mixture(
    weights: Tensor, log_probs: Tensor, reference_log_probs: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    r"""Log-probabilities of experts merged as policies that were kept near a reference by the forward KL divergence.

    Of experts :math:`p_i` that are each the best of their reward less :math:`\mathrm{KL}(p_{ref} \| p_i)`, this is the best of
    the weighted rewards under the same divergence. With :math:`f(x) = -\log x`, :math:`p = p_{ref} \, (f')^{-1}(-Z +
    \sum_i w_i f'(p_i / p_{ref}))` is

    .. math:: \frac{1}{\pi(y)} = \frac{Z}{p_{ref}(y)} + \sum_i \frac{w_i}{p_i(y)}, \qquad Z : \sum_y \pi(y) = 1

    The mass falls in Z, so there is one solution. It is found in float64, on any device that has it, by halving and Newton's method, and its gradient is
    that of the equation. With all weight on one expert, or equal experts, Z = 0 and the result is that expert.

    Args:
        weights: Weights w >= 0, (..., n); divided by their sum. Broadcast to the experts' leading dimensions.
        log_probs: Log-probabilities of the experts, (..., n, V), normalised, in nats.
        reference_log_probs: Those of the reference, (..., V), broadcasts to the result.
        mask: Experts that take part, broadcasts as the weights do, bool; None for all. The others' numbers are not read.

    Returns:
        Log-probabilities, (..., V), float32 (float64 for float64 input). A token to which the reference, or an expert with a
        weight, gives less than 1e-300 has none. Where values are not checked, a row without any other is -inf throughout.

    Raises:
        ValueError: If shapes do not fit, a weight is negative or not finite, all are 0, a log-probability is NaN or inf, or no
            token is possible under the reference and all experts that have a weight.
        TypeError: If ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> experts = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log()
        >>> forward_kl_mixture(torch.tensor([0.6, 0.4]), experts, torch.full((3,), 1 / 3).log()).exp()
        tensor([0.3930, 0.3721, 0.2348])

    Source:
        Shi et al., *Decoding-Time Language Model Alignment with Multiple Objectives*, NeurIPS 2024,
        https://arxiv.org/abs/2406.18853, general f-divergence (equation number not available). Departures: the official code
        leaves Z out, so that its score, :math:`-\log \sum_i w_i / p_i`, is no log-probability and knows nothing of the
        reference; here it is solved for.

    .. versionadded:: 0.1
    """
    w, log_p = _taking_part("weights", weights, log_probs, mask)
    w = _weights(w, mask)
    output = log_p.dtype
    check_broadcast("reference_log_probs", reference_log_probs, log_p[..., 0, :].shape)
    (reference,) = as_compute(reference_log_probs)
    check_values("reference_log_probs", torch.where(reference == -torch.inf, 0.0, reference))
    # Differences are taken of ratios that may be large.
    log_p, reference = log_p.double(), reference.double().expand(log_p[..., 0, :].shape)
    w = (w / w.sum(-1, keepdim=True)).double().expand(log_p.shape[:-1])
    counts = (w > 0).unsqueeze(-1)
    vetoed = (counts & (log_p < LEAST)).any(-2) | (reference < LEAST)
    allowed = _some_allowed(vetoed)
    vetoed = vetoed & allowed  # a row of nothing else is computed like others, and given up at the end
    log_p = log_p.clamp_min(LEAST)
    reference = reference.clamp_min(LEAST)
    ratios = torch.where(counts, reference.unsqueeze(-2) - log_p, -torch.inf)
    merged = _solved(reference, (w.clamp_min(1e-300).log().unsqueeze(-1) + ratios).logsumexp(-2), vetoed)
    return merged.masked_fill(vetoed | ~allowed, -torch.inf).to(output)


def _solved(reference: Tensor, log_ratio: Tensor, vetoed: Tensor) -> Tensor:
    """Log-probabilities p / (Z + a) that sum to 1, of log p and log a, (..., V); tokens that are vetoed have no mass.

    In t = Z + min a, which lies between 0 and 1, and the distances d of a from its smallest.
    """
    least = torch.where(vetoed, torch.inf, log_ratio).amin(-1, keepdim=True)
    above = torch.where(vetoed, LARGE, log_ratio - least)
    p = torch.where(vetoed, 0.0, reference.exp())
    smallest = least.exp()
    near, far = above.clamp_max(LARGE), above.clamp_min(LARGE)
    is_near = above < LARGE

    def log_denominator(t: Tensor) -> Tensor:
        beyond = least + far + torch.log1p((-far).exp() * (t / smallest - 1))
        return torch.where(is_near, (t + smallest * near.expm1()).log(), beyond)

    distance = (smallest * above.expm1()).detach()
    t = _root(p.detach(), distance)
    # One more step, now with a graph: at the root its derivative is the root's.
    share = p * (-log_denominator(t)).exp()
    slope = (share.detach() / (t + distance)).sum(-1, keepdim=True)
    t = t + (share.sum(-1, keepdim=True) - 1) / slope
    return torch.where(vetoed, -torch.inf, reference - log_denominator(t)).log_softmax(-1)


def _root(p: Tensor, distance: Tensor) -> Tensor:
    """The t > 0 at which the sum of p / (t + distance) over the last dimension is 1, (..., 1); the sum falls in t.

    Its reciprocal is concave, so Newton's method stays on the left of the root, where it begins.
    """
    low, high = (p - distance).amax(-1, keepdim=True), p.sum(-1, keepdim=True)
    for _ in range(HALVINGS):
        middle = low.sqrt() * high.sqrt()
        is_left = (p / (middle + distance)).sum(-1, keepdim=True) >= 1
        low, high = torch.where(is_left, middle, low), torch.where(is_left, high, middle)
    t = low
    for _ in range(NEWTON_STEPS):
        share = p / (t + distance)
        mass = share.sum(-1, keepdim=True)
        t = t + mass * (mass - 1) / (share / (t + distance)).sum(-1, keepdim=True)
    return t


def _taking_part(name: str, weights: Tensor, log_probs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and log-probabilities in one floating type, the latter 0 where an expert takes no part, once they fit."""
    check_mask(mask)
    if log_probs.ndim < 2 or 0 in log_probs.shape[-2:]:
        raise ValueError(
            f"log_probs must be (..., n, V), of an expert and a token at least; got {tuple(log_probs.shape)}"
        )
    if weights.ndim == 0 or weights.shape[-1] != log_probs.shape[-2]:
        raise ValueError(
            f"{name} must have one entry for each of the {log_probs.shape[-2]} experts; got shape {tuple(weights.shape)}"
        )
    check_broadcast(name, weights, log_probs.shape[:-1])
    if mask is not None:
        check_broadcast("mask", mask, log_probs.shape[:-1])
    w, log_p = as_compute(weights, log_probs)
    if mask is not None:
        log_p = log_p.masked_fill(~mask.unsqueeze(-1), 0.0)
    check_values("log_probs", torch.where(log_p == -torch.inf, 0.0, log_p))
    return w, log_p


def _weights(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Weights, exactly 0 where the mask leaves an expert out."""
    check_values("weights", weights, 0.0)
    weights = weights if mask is None else torch.where(mask, weights, 0.0)
    check_values("the sum of the weights of those who take part", weights.sum(-1), 0.0, open_low=True)
    return weights


def _some_allowed(vetoed: Tensor) -> Tensor:
    """Whether a row has a token that is not vetoed, (..., 1)."""
    allowed = (~vetoed).any(-1, keepdim=True)
    check_values("number of tokens that all experts with a weight find possible", (~vetoed).sum(-1), 1)
    return allowed
