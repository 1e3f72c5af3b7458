"""EnsembleVoteRM and what is trained on its votes: contrastive reward models, and steps that last when responses move on."""

from .contrastive_rm import ContrastiveRM
from .joined import joined_members
from .meta_rm import MetaRM
from .meta_step import MetaOutcome, MetaStep
from .module import EnsembleVoteRM

__all__ = ["ContrastiveRM", "EnsembleVoteRM", "MetaOutcome", "MetaRM", "MetaStep", "joined_members"]
