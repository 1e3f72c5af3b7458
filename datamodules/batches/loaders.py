"""Rows, a sampler and a collator become a loader."""

from dataclasses import replace

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from ..batch import FindsTokens
from ..tokens import ComparisonView, RecordTable
from .collate import PreferenceCollator
from .config import LoaderConfig
from .draws import EpochDraws
from .features import FeatureTable
from .indexed import IndexedRows, as_it_is
from .requests import RequestView
from .sampler import FixedOrderBatchSampler, PreferenceDataLoader, TokenBudgetBatchSampler

__all__ = ["DEFAULT_BUDGET", "LoaderRows", "batch_loader", "settled"]

DEFAULT_BUDGET = 8192
"""What ``loader.max_tokens: auto`` is where no training has found it."""

LoaderRows = RecordTable | ComparisonView | FeatureTable | IndexedRows | RequestView
"""What a loader reads: records of a split, whole, of some users, or the different ones; with tokens or places of features, or
as tables that batches are taken from."""


def settled(settings: LoaderConfig, module: object) -> LoaderConfig:
    """Settings with a number, or none, for ``max_tokens: auto``.

    Stored features have no tokens whose memory could be found: batches of them have the default.

    Args:
        settings: As they were given.
        module: Which trains on the batches, or did; it says what there is memory for, if it can.
    """
    if settings.max_tokens != "auto":
        return settings
    found = module.token_budget() if settings.features is None and isinstance(module, FindsTokens) else None
    return replace(settings, max_tokens=found or DEFAULT_BUDGET)


def batch_loader(
    title: str,
    rows: LoaderRows,
    collate: PreferenceCollator,
    settings: LoaderConfig,
    *,
    shuffle: bool,
    rank: tuple[int, int],
    even: bool | None = None,
    draws: EpochDraws | None = None,
) -> PreferenceDataLoader:
    """Batches of records within the bounds that settings give.

    Args:
        title: Data and split, for messages.
        rows: The records.
        collate: Makes a batch of some of them, unless they come as one.
        settings: Bounds, seed and workers.
        shuffle: Whether the order is random.
        rank: This process and the number of processes.
        even: Whether every process gets equally many batches; None for what goes with ``shuffle``.
        draws: Which of the records an epoch has; None for all.
    """
    settings = settled(settings, None)
    bound = settings.max_tokens
    assert bound != "auto"  # it is settled
    sampler = (TokenBudgetBatchSampler if shuffle else FixedOrderBatchSampler)(
        np.asarray(rows.sizes),
        layout=collate.layout,
        max_tokens=bound,
        batch_size=settings.batch_size,
        mega_batch=settings.mega_batch,
        shuffle=shuffle,
        seed=settings.seed,
        num_replicas=rank[1],
        rank=rank[0],
        even=even,
        draws=draws,
    )
    if sampler.num_oversized:
        rank_zero_warn(
            f"{title}: {sampler.num_oversized:,} records have more than loader.max_tokens="
            f"{settings.max_tokens} tokens (up to {sampler.largest_cost:,}) and form "
            "batches of their own above that bound; shorten text.max_length, or raise max_tokens"
        )
    return PreferenceDataLoader(
        rows,  # type: ignore[arg-type]  # rows; the collator makes batches of them
        batch_size=None,
        sampler=sampler,
        collate_fn=as_it_is if isinstance(rows, IndexedRows) else collate,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        timeout=settings.worker_timeout if settings.num_workers else 0,
        pin_memory=torch.cuda.is_available(),
        # A loader draws a number whenever it starts over. From the global generator, that would change dropout.
        generator=torch.Generator(),
    )
