"""Items become batches: padding, order, and which preference of a prompt an epoch has."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batches import FixedOrderBatchSampler, ResumableDataLoader, TokenBudgetBatchSampler
from ..prompt_batch import PromptBatch
from .config import PromptLoaderConfig
from .items import PromptItem, PromptTable

__all__ = ["PreferenceDraws", "PromptCollator", "PromptDataLoader", "prompt_loader"]


class PromptDataLoader(ResumableDataLoader[PromptBatch]):
    """Batches of items."""


class PreferenceDraws:
    """One item of each prompt an epoch, by seed and epoch.

    Attributes:
        fewest: Items of an epoch: as many as prompts.
        whole: Whether every epoch has all items.
    """

    whole = False

    def __init__(self, starts: NDArray[np.int64], seed: int) -> None:
        """Keep the places.

        Args:
            starts: Where the items of each prompt begin, and where the last end, (prompts + 1,).
            seed: Equal on all ranks.
        """
        self.starts, self.seed, self.fewest = starts, seed, len(starts) - 1

    def records(self, epoch: int) -> NDArray[np.int64]:
        """Places of an epoch's items."""
        counts = np.diff(self.starts)
        return self.starts[:-1] + np.random.default_rng([self.seed, epoch]).integers(counts)

    def growth(self, costs: NDArray[np.int64]) -> float:
        """Epochs have equally many items, and nothing bounds their tokens."""
        return 1.0


class PromptCollator:
    """Function that makes a batch of items; picklable."""

    def __init__(self, pad_id: int, num_dimensions: int, columns: Sequence[str]) -> None:
        """Keep what batches have in common.

        Args:
            pad_id: What pads rows.
            num_dimensions: D.
            columns: Names of columns; an item that lacks one has None there.
        """
        self.pad_id, self.num_dimensions, self.columns = pad_id, num_dimensions, tuple(columns)

    def __call__(self, items: Sequence[PromptItem]) -> PromptBatch:
        """Pad on the left, each kind of row to its own longest."""
        wanted = torch.zeros(len(items), self.num_dimensions, dtype=torch.bool)
        rows: list[tuple[int, NDArray[np.int32]]] = []
        for number, item in enumerate(items):
            for dimension, ids in item.own:
                wanted[number, dimension] = True
                rows.append((number * self.num_dimensions + dimension, ids))
        input_ids, attention_mask = self._padded(list(enumerate(item.ids for item in items)), len(items))
        plain_ids, plain_mask = self._padded(list(enumerate(item.plain for item in items)), len(items))
        own_ids, own_mask = self._padded(rows, len(items) * self.num_dimensions)
        shape = len(items), self.num_dimensions, own_ids.shape[1]
        return PromptBatch(
            id=[item.id for item in items],
            item_key=torch.tensor([item.key for item in items], dtype=torch.int64),
            prompt=[item.record.given for item in items],
            preference=[item.preference for item in items],
            wanted=wanted,
            columns={name: [item.record.columns.get(name) for item in items] for name in self.columns},
            input_ids=input_ids,
            attention_mask=attention_mask,
            plain_ids=plain_ids,
            plain_mask=plain_mask,
            own_ids=own_ids.view(shape),
            own_mask=own_mask.view(shape),
        )

    def _padded(self, rows: Sequence[tuple[int, NDArray[np.int32]]], number: int) -> tuple[Tensor, Tensor]:
        """Rows by their number, padded on the left, (number, L), and their mask; a number without a row is all padding."""
        longest = max((len(ids) for _, ids in rows), default=0)
        padded = torch.full((number, longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(number, longest, dtype=torch.int64)
        for place, ids in rows:
            padded[place, longest - len(ids) :] = torch.from_numpy(ids.astype(np.int64))
            mask[place, longest - len(ids) :] = 1
        return padded, mask


def prompt_loader(
    table: PromptTable,
    collate: PromptCollator,
    settings: PromptLoaderConfig,
    *,
    shuffle: bool,
    rank: tuple[int, int],
    even: bool,
) -> PromptDataLoader:
    """Batches of items.

    Args:
        table: The items.
        collate: Makes a batch of some of them.
        settings: Size, seed and workers.
        shuffle: Whether the order is random, anew each epoch.
        rank: This process and the number of processes.
        even: Whether every process gets equally many batches, even if a few come twice; otherwise each item comes once.
    """
    ones, zeros = np.ones_like(table.sizes), np.zeros_like(table.sizes)
    sampler = (TokenBudgetBatchSampler if shuffle else FixedOrderBatchSampler)(
        np.stack([ones, table.sizes, zeros, zeros], axis=1),
        batch_size=settings.batch_size,
        mega_batch=settings.mega_batch,
        shuffle=shuffle,
        seed=settings.seed,
        num_replicas=rank[1],
        rank=rank[0],
        even=even,
        draws=PreferenceDraws(table.starts, settings.seed) if table.space.drawn else None,
    )
    return PromptDataLoader(
        table,  # type: ignore[arg-type]  # items; the collator makes batches of them
        batch_size=None,
        sampler=sampler,
        collate_fn=collate,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A loader draws a number whenever it starts over. From the global generator, that would change sampling.
        generator=torch.Generator(),
    )
