"""Targets of a batch whose items were not all judged."""

import torch
from torch import Tensor

from .config import CrowdConfig
from .posterior import crowd_target

__all__ = ["crowd_batch_target"]


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
