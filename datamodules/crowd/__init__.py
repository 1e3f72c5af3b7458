"""Votes become a target: settings, posterior, priors."""

from .config import TOLERANCE, CrowdConfig, CrowdPriors, crowd_priors, read_priors, resolve_prior
from .posterior import (
    beta_view,
    crowd_posterior,
    crowd_target,
    dirichlet_update,
    effective_votes,
    forgetting_horizon,
    smooth_certain,
)
from .priors import VotePriors
from .targets import crowd_batch_target

__all__ = [
    "TOLERANCE",
    "CrowdConfig",
    "CrowdPriors",
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
