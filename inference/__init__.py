"""What runs a module over data, with or without a trainer: embedding, voting, rewards of what a policy writes, and judging it."""

from .checkpoint_reward import CheckpointReward
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
from .opening import OpenedModel, open_model, run_checkpoint
from .responding import ResponseFile, response_printer, write_responses
from .responses import JoinedResponses, PairedResponse, WrittenResponse, join_responses, read_responses
from .rewards import ModuleReward
from .scorer import Judgement, Scorer, load
from .scoring import ScoredParts, Scores, num_rows, score_records
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
    "Judgement",
    "ModuleReward",
    "OpenedModel",
    "PairedResponse",
    "ResponseFile",
    "RewardJudge",
    "ScoredParts",
    "Scorer",
    "Scores",
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
    "load",
    "member_ballots",
    "num_rows",
    "open_model",
    "pair_verdicts",
    "read_responses",
    "response_printer",
    "run_checkpoint",
    "score_records",
    "words_of",
    "write_responses",
]
