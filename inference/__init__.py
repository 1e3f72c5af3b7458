"""What runs a module over data, with or without a trainer: embedding, voting, rewards of what a policy writes, and judging it."""

from .embedding import Embedder, embed_features, embed_missing
from .judging import (
    OVERALL,
    Judge,
    JudgeOfCriteria,
    RewardJudge,
    WordShare,
    criteria_of,
    pair_verdicts,
    words_of,
)
from .responding import ResponseFile, response_printer, write_responses
from .responses import JoinedResponses, PairedResponse, WrittenResponse, join_responses, read_responses
from .rewards import CheckpointReward, ModuleReward
from .trl_reward import TRLReward
from .voting import Ballots, SplitVotes, cast_votes, check_votes, gather_votes, member_ballots

__all__ = [
    "OVERALL",
    "Ballots",
    "CheckpointReward",
    "Embedder",
    "JoinedResponses",
    "Judge",
    "JudgeOfCriteria",
    "ModuleReward",
    "PairedResponse",
    "ResponseFile",
    "RewardJudge",
    "SplitVotes",
    "TRLReward",
    "WordShare",
    "WrittenResponse",
    "cast_votes",
    "check_votes",
    "criteria_of",
    "embed_features",
    "embed_missing",
    "gather_votes",
    "join_responses",
    "member_ballots",
    "pair_verdicts",
    "read_responses",
    "response_printer",
    "words_of",
    "write_responses",
]
