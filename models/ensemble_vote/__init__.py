"""EnsembleVoteRM: many reward models vote on their own labels."""

from .module import EnsembleVoteRM

__all__ = ["EnsembleVoteRM"]
