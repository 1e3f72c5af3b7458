"""Batches of records without judgements beside those with them: every training batch has one as ``unlabelled``."""

from collections.abc import Callable
from typing import Any, cast

import torch

from ..batch import PreferenceBatch
from ..tokens import TokenRow
from .loaders import LoaderRows
from .sampler import BatchCycle, PreferenceDataLoader

__all__ = ["with_unlabelled"]

SomeRows = list[TokenRow] | PreferenceBatch
"""Records as a loader's rows give them: one by one, or a batch already."""
BothKinds = tuple[SomeRows, SomeRows]
"""Records with judgements, and records without."""
Collate = Callable[[Any], PreferenceBatch]


class BothRows(torch.utils.data.Dataset[BothKinds]):
    """Records of two kinds, read together: places of the second kind begin where those of the first end."""

    def __init__(self, rows: LoaderRows, unlabelled: LoaderRows) -> None:
        """Read nothing."""
        self.rows, self.unlabelled = rows, unlabelled

    def __len__(self) -> int:
        """Number of records with judgements, which decide how long an epoch is."""
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> BothKinds:
        """Read several records of each kind at once."""
        number = len(self.rows)
        others = [place - number for place in places if place >= number]
        return self.rows[[place for place in places if place < number]], self.unlabelled[others]


class BothCollator:
    """Build a batch of records with judgements, and in it one of those without; picklable."""

    def __init__(self, collate: Collate, unlabelled: Collate) -> None:
        """Keep both collators."""
        self.collate, self.unlabelled = collate, unlabelled

    def __call__(self, kinds: BothKinds) -> PreferenceBatch:
        """Build one batch.

        Args:
            kinds: Records with judgements, and without, at least one of each.

        Returns:
            The batch of the first kind, with that of the second as ``unlabelled``, on the CPU.
        """
        batch = self.collate(kinds[0])
        batch["unlabelled"] = self.unlabelled(kinds[1])
        return batch


def with_unlabelled(loader: PreferenceDataLoader, unlabelled: PreferenceDataLoader) -> PreferenceDataLoader:
    """A loader whose every batch has one of another loader as ``unlabelled``.

    The n-th batch of a run, counted over its epochs, has the n-th of an endless walk through the other loader's batches, which
    is shuffled anew whenever it has come through. Where ``loader`` has the same batches every epoch, they have the same beside
    them.

    Args:
        loader: Which decides how long an epoch is; not used itself afterwards.
        unlabelled: Even over the ranks, of records without judgements; likewise.
    """
    loader.sampler.beside = BatchCycle(unlabelled.sampler)
    # A loader's types say what it gives; it was made of these.
    rows = (cast(LoaderRows, each.dataset) for each in (loader, unlabelled))
    collators = (cast(Collate, each.collate_fn) for each in (loader, unlabelled))
    return PreferenceDataLoader(
        BothRows(*rows),  # type: ignore[arg-type]  # rows, likewise
        batch_size=None,
        sampler=loader.sampler,
        collate_fn=BothCollator(*collators),  # type: ignore[arg-type]  # of such rows
        num_workers=loader.num_workers,
        persistent_workers=loader.persistent_workers,
        timeout=loader.timeout,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
    )
