"""Votes become a target: settings, posterior, priors."""

from .config import TOLERANCE, CrowdConfig
from .posterior import (
    beta_view,
    crowd_batch_target,
    crowd_posterior,
    crowd_target,
    dirichlet_update,
    effective_votes,
    forgetting_horizon,
    smooth_certain,
)
from .priors import CrowdPriors, ItemPriors, VotePriors, crowd_priors, read_priors, resolve_prior

__all__ = [
    "TOLERANCE",
    "CrowdConfig",
    "CrowdPriors",
    "ItemPriors",
    "VotePriors",
    "beta_view",
    "crowd_batch_target",
    "crowd_posterior",
    "crowd_priors",
    "crowd_target",
    "dirichlet_update",
    "effective_votes",
    "forgetting_horizon",
    "read_priors",
    "resolve_prior",
    "smooth_certain",
]
