"""REBEL: regress the difference of log-ratios of two responses on the difference of their rewards."""

from typing import Literal

import torch
from torch import Tensor

from ._check_mode import LossModule
from ._common import (
    Reduction,
    as_compute,
    check_choice,
    check_mask,
    check_number,
    check_same_shape,
    check_values,
    reduce_loss,
)
from ._ranked import keep_present

__all__ = ["RebelLoss", "mixture_log_prob", "rebel_loss", "relative_reward"]

Scaling = Literal["reward", "log_ratio"]


def rebel_loss(
    log_ratio: Tensor,
    other_log_ratio: Tensor,
    reward: Tensor,
    other_reward: Tensor,
    *,
    eta: float = 1.0,
    scaling: Scaling = "reward",
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared error between a difference of log-ratios and a difference of rewards.

    Two responses y, y' to one prompt are drawn from the current policy; log-ratios compare the policy being
    trained with it. Both published scalings have the same minimiser; ``"log_ratio"`` is eta squared times
    ``"reward"``, so that their learning rates are not interchangeable. Log eta times the spread of the
    reward differences: it is the step that is asked of the policy.

    .. math::
        L_{reward} = \Big(\frac{\rho - \rho'}{\eta} - (R - R')\Big)^2, \qquad
        L_{log\_ratio} = \big(\rho - \rho' - \eta \, (R - R')\big)^2, \qquad
        \rho = \log \frac{\pi_\theta(y)}{\pi_t(y)}

    Args:
        log_ratio: rho of the one response, summed over its tokens up to its first end token, (P,), in nats.
        other_log_ratio: rho of the other, (P,).
        reward: Reward R of the one, (P,).
        other_reward: Reward of the other, (P,).
        eta: Step size, > 0, in nats per unit of reward.
        scaling: ``"reward"``: error in units of reward, as the paper has it; ``"log_ratio"``: error in
            nats, as the official code has it.
        weight: Weights >= 0, broadcast to (P,).
        reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (P,).

    Raises:
        ValueError: If shapes differ, a value is not finite, ``eta`` <= 0, or an option is unknown.

    Source:
        Gao et al., *REBEL: Reinforcement Learning via Regressing Relative Rewards*, NeurIPS 2024,
        https://arxiv.org/abs/2404.16767 (equation number not available), and its official code; used by
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024,
        https://arxiv.org/abs/2407.04181, equation 3 of its conference version as cited by its public
        reviews. Departures: none.

    .. versionadded:: 0.1
    """
    check_choice("scaling", scaling, ("reward", "log_ratio"))
    check_number("eta", eta, 0.0, open_low=True)
    check_same_shape(
        log_ratio=log_ratio, other_log_ratio=other_log_ratio, reward=reward, other_reward=other_reward
    )
    check_values("log_ratio", log_ratio)
    check_values("other_log_ratio", other_log_ratio)
    check_values("reward", reward)
    check_values("other_reward", other_reward)
    first, second, gain, other_gain = as_compute(log_ratio, other_log_ratio, reward, other_reward)
    change, wanted = first - second, gain - other_gain
    error = change / eta - wanted if scaling == "reward" else change - eta * wanted
    return reduce_loss(error.square(), reduction, weight)


def relative_reward(score: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Mean probability, over preference dimensions, of beating a reference response.

    An offset that a reward model gives a prompt cancels, and no single model with large scores can dominate.

    .. math:: R = \frac{1}{|\xi|} \sum_{i \in \xi} \sigma(s_i - s_i^{ref})

    Args:
        score: Scores of the response by dimension, (..., K), in nats of log-odds.
        reference: Scores of the reference response to the same prompt, same shape.
        mask: Dimensions that are asked for, same shape, bool; None for all.

    Returns:
        Reward in (0, 1), (...,): one half for the reference itself; 0 if no dimension is asked for.

    Raises:
        ValueError: If shapes differ or a value that counts is not finite.
        TypeError: If ``mask`` is not boolean.

    Source:
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024,
        https://arxiv.org/abs/2407.04181, equation 2 of its conference version as cited by its public
        reviews. Departures: none known.

    .. versionadded:: 0.1
    """
    check_same_shape(score=score, reference=reference, mask=mask)
    check_mask(mask)
    first, second = as_compute(keep_present(score, mask), keep_present(reference, mask))
    check_values("score", first)
    check_values("reference", second)
    wins = torch.sigmoid(first - second)
    if mask is None:
        return wins.mean(-1)
    return torch.where(mask, wins, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def mixture_log_prob(logits: Tensor, log_prob: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Log-probability of tokens under experts mixed in probability space: what REBEL's log-ratios sum up.

    Only one number per expert and token is needed, so rollouts store those and training runs no expert. The
    gradient with respect to the logits is posterior less prior weight, and vanishes where experts agree. A
    token that one expert rules out stays possible.

    .. math:: \log \pi(y) = \log \sum_i \alpha_i \, p_i(y), \qquad \alpha = \mathrm{softmax}(z)

    Args:
        logits: Logits z of the weights, (..., K).
        log_prob: Log-probability of the token under each expert, broadcasts with ``logits``; may be -inf, but
            not for all experts.
        mask: Experts that take part, broadcasts with ``logits``, bool, at least one; None for all.

    Returns:
        Log-probability, (...,), in nats, float32 (float64 for float64 input).

    Raises:
        ValueError: If a logit is not finite, or a log-probability NaN or infinite other than -inf.
        TypeError: If ``mask`` is not boolean.

    Source:
        Zhou et al., *Orchestrating LLMs with Different Personalizations*, 2024,
        https://arxiv.org/abs/2407.04181, equation 1 of its conference version as cited by its public
        reviews. Departures: that weights come from a softmax, and the mask, are our reading.

    .. versionadded:: 0.1
    """
    check_values("logits", logits)
    check_mask(mask)
    z, log_p = as_compute(logits, log_prob)
    if mask is not None:
        z = z.masked_fill(~mask, -torch.inf)
    impossible = log_p == -torch.inf  # exactly no mass: kept out of the sum, whose gradient would be NaN
    possible = torch.where(impossible, 0.0, log_p)
    check_values("log_prob", possible)
    joint = z + possible
    return joint.masked_fill(impossible, -torch.inf).logsumexp(-1) - z.logsumexp(-1)


class RebelLoss(LossModule):
    """Module form of :func:`rebel_loss`."""

    def __init__(
        self, *, eta: float = 1.0, scaling: Scaling = "reward", reduction: Reduction = "mean"
    ) -> None:
        """Keep the settings.

        Args:
            eta: Step size, > 0, in nats per unit of reward.
            scaling: ``"reward"`` (the paper's) or ``"log_ratio"`` (the official code's).
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.eta = eta
        self.scaling: Scaling = scaling
        self.reduction: Reduction = reduction

    def forward(
        self,
        log_ratio: Tensor,
        other_log_ratio: Tensor,
        reward: Tensor,
        other_reward: Tensor,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the pairs; arguments as in :func:`rebel_loss`."""
        return rebel_loss(
            log_ratio,
            other_log_ratio,
            reward,
            other_reward,
            eta=self.eta,
            scaling=self.scaling,
            weight=weight,
            reduction=self.reduction,
        )
