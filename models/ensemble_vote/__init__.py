"""Many reward models vote on their own labels; what is trained on the labels then."""

from .contrastive_rm import ContrastiveRM
from .module import EnsembleVoteRM

__all__ = ["ContrastiveRM", "EnsembleVoteRM"]
