"""Votes of an ensemble on comparisons: written shard by shard, read as a table, held to the data and members they are of."""

from .digests import check_same_data, data_digest, described_data, members_digest
from .folder import FEWEST_VOTES, SHARD_RECORDS, VoteFolder, VoteShard, VoteSource, read_index
from .strength import vote_strengths
from .table import VoteTable

__all__ = [
    "FEWEST_VOTES",
    "SHARD_RECORDS",
    "VoteFolder",
    "VoteShard",
    "VoteSource",
    "VoteTable",
    "check_same_data",
    "data_digest",
    "described_data",
    "members_digest",
    "read_index",
    "vote_strengths",
]
