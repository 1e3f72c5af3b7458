"""EnsembleVoteRM and what is trained on its votes: members that vote on labels, and steps that last when responses move on."""

from .meta_rm import MetaRM
from .meta_step import MetaOutcome, MetaStep
from .module import EnsembleVoteRM

__all__ = ["EnsembleVoteRM", "MetaOutcome", "MetaRM", "MetaStep"]
