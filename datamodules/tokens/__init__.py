"""A record becomes tokens: text formats, the cache and its preparation."""

from .cache import CacheReader, TokenTable, fingerprint
from .cache_writer import CacheWriter, remove_left_overs
from .config import BYTE, WORDS, TextConfig
from .decoded import decoded_responses
from .integrity import cache_damage
from .preparation import Shard, report_split, tokenise
from .prompt_tokens import TOO_LONG, PromptText, PromptTokenizer, PromptTokens
from .reader import DataReader
from .rendering import ChatRendering, PlainRendering, without_keys
from .report import SplitReport
from .rows import (
    TokenRow,
    TreatedComparisons,
    prompt_alone,
    take_row_comparisons,
    take_row_responses,
    without_prompt,
)
from .shards import CacheShards
from .table import CHUNK, RecordTable, lengths
from .text import RecordTokenizer, TokenizedRecord, byte_tokenizer
from .views import ComparisonView
from .words import VOCABULARY, word_tokenizer

__all__ = [
    "BYTE",
    "CHUNK",
    "TOO_LONG",
    "VOCABULARY",
    "WORDS",
    "CacheReader",
    "CacheShards",
    "CacheWriter",
    "ChatRendering",
    "ComparisonView",
    "DataReader",
    "PlainRendering",
    "PromptText",
    "PromptTokenizer",
    "PromptTokens",
    "RecordTable",
    "RecordTokenizer",
    "Shard",
    "SplitReport",
    "TextConfig",
    "TokenRow",
    "TokenTable",
    "TokenizedRecord",
    "TreatedComparisons",
    "byte_tokenizer",
    "cache_damage",
    "decoded_responses",
    "fingerprint",
    "lengths",
    "prompt_alone",
    "remove_left_overs",
    "report_split",
    "take_row_comparisons",
    "take_row_responses",
    "tokenise",
    "without_keys",
    "without_prompt",
    "word_tokenizer",
]
