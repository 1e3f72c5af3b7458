"""Tokens become a batch: settings, whose judgements, stored features, order, collator."""

from .beside import with_unlabelled
from .collate import PreferenceCollator
from .config import LoaderConfig, changed
from .draws import EpochDraws, PartDraw
from .features import FeatureDtype, FeatureStore, FeatureTable, FeatureWriter, prompt_key, response_keys
from .indexed import IndexedRows
from .loaders import LoaderRows, batch_loader, settled
from .requests import RequestView
from .sampler import (
    FixedOrderBatchSampler,
    PreferenceDataLoader,
    ResumableDataLoader,
    TokenBudgetBatchSampler,
)
from .users import UserProtocol, UserView, check_known, joined, user_view

__all__ = [
    "EpochDraws",
    "FeatureDtype",
    "FeatureStore",
    "FeatureTable",
    "FeatureWriter",
    "FixedOrderBatchSampler",
    "IndexedRows",
    "LoaderConfig",
    "LoaderRows",
    "PartDraw",
    "PreferenceCollator",
    "PreferenceDataLoader",
    "RequestView",
    "ResumableDataLoader",
    "TokenBudgetBatchSampler",
    "UserProtocol",
    "UserView",
    "batch_loader",
    "changed",
    "check_known",
    "joined",
    "prompt_key",
    "response_keys",
    "settled",
    "user_view",
    "with_unlabelled",
]
