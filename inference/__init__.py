"""What runs a module over data, with or without a trainer: embedding, voting, what a policy writes, and its rewards."""

from .embedding import Embedder, embed_features, embed_missing
from .responding import ResponseFile, response_printer, write_responses
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
    "ResponseFile",
    "SplitVotes",
    "TRLReward",
    "cast_votes",
    "check_votes",
    "embed_features",
    "embed_missing",
    "gather_votes",
    "member_ballots",
    "response_printer",
    "write_responses",
]
