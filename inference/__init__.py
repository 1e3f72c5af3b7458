"""What runs a module over data, with or without a trainer: embedding, voting."""

from .embedding import Embedder, embed_features, embed_missing
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
    "Embedder",
    "SplitVotes",
    "cast_votes",
    "check_votes",
    "embed_features",
    "embed_missing",
    "gather_votes",
    "member_ballots",
]
