"""EnsembleVoteRM: many reward models vote on their own labels."""

from .joined import joined_members
from .module import EnsembleVoteRM

__all__ = ["EnsembleVoteRM", "joined_members"]
