"""What runs a module over data, with or without a trainer: embedding, voting, rewards of what a policy writes."""

from .embedding import Embedder, embed_features, embed_missing
from .rewards import CheckpointReward, ModuleReward
from .trl_reward import TRLReward
from .voting import (
    Ballots,
    SplitVotes,
    cast_votes,
    check_votes,
    gather_votes,
    member_ballots,
)

__all__ = [
    "Ballots",
    "CheckpointReward",
    "Embedder",
    "ModuleReward",
    "SplitVotes",
    "TRLReward",
    "cast_votes",
    "check_votes",
    "embed_features",
    "embed_missing",
    "gather_votes",
    "member_ballots",
]
