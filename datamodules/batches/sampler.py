"""Which prompts form a batch: bounded by tokens, bucketed by length, random at large, whole, resumable.

Records are shuffled, cut into mega-batches, sorted by length within each and packed greedily, so that rows
of a batch have similar lengths while the order stays random at large. A prompt's group is never divided.
Every epoch has the same number of batches on every rank, whatever the shuffle, and whichever of the records an
epoch has: what Lightning and learning rate schedules rely on.
"""

import warnings
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from ..batch import PreferenceBatch
from .draws import Draws
from .plans import BatchPlan, Integers, longest_first, pack

__all__ = [
    "BatchCycle",
    "FixedOrderBatchSampler",
    "PreferenceDataLoader",
    "ResumableDataLoader",
    "TokenBudgetBatchSampler",
]

Batch = TypeVar("Batch")
ATTEMPTS = 4


class TokenBudgetBatchSampler(DistributedSampler[list[int]]):
    """Yield lists of record indices, one list a batch, for this rank.

    It is a :class:`~torch.utils.data.DistributedSampler` so that Lightning leaves it in place and calls
    ``set_epoch``; give it to a loader as ``sampler`` with ``batch_size=None``.

    Attributes:
        largest_cost: Rows x length of the record that has most.
        beside: Batches of other records, of which every batch has one behind its own: places that begin where those of the own
            records end. None for none.
    """

    def __init__(
        self,
        sizes: NDArray[np.int32],
        *,
        layout: str = "shared",
        max_tokens: int | None = None,
        batch_size: int | None = None,
        mega_batch: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        even: bool | None = None,
        draws: Draws | None = None,
    ) -> None:
        """Plan the first epoch.

        Args:
            sizes: (n, 4) per record: responses, prefix length, sum and maximum of the responses' own lengths.
            layout: ``shared`` or ``separate`` rows; decides what a record costs.
            max_tokens: Bound on rows x padded length of a batch. A record that alone exceeds it forms a
                batch of its own; ``num_oversized`` counts them.
            batch_size: Bound on records per batch.
            mega_batch: Batches' worth of records sorted together; at most a quarter of the data.
            shuffle: Random order, anew each epoch; otherwise all records sorted by length.
            seed: Seed of the order; equal on all ranks.
            num_replicas: Number of ranks.
            rank: This rank.
            even: Whether every rank gets equally many batches, as training needs, even if a few come twice; otherwise each
                record comes once, as evaluation needs. None for what goes with ``shuffle``.
            draws: Which of the records an epoch has, without ``shuffle`` those of the first; None for all.

        Raises:
            ValueError: If neither bound is given, the layout is unknown, or there are fewer records than ranks.
        """
        super().__init__(sizes, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        if max_tokens is None and batch_size is None:
            raise ValueError("give max_tokens, batch_size or both")
        if layout not in ("shared", "separate"):
            raise ValueError(f"layout must be shared or separate, got {layout!r}")
        self.layout, self.even = layout, shuffle if even is None else even
        self.draws = draws
        self.beside: BatchCycle | None = None
        fewest = len(sizes) if draws is None else draws.fewest
        if self.even and fewest < num_replicas:
            raise ValueError(f"{fewest} records cannot be divided among {num_replicas} ranks")
        # int32, as the sizes are: a column at a time, so that a table that is mapped stays on the disk.
        responses, prefix, own_sum, own_max = np.asarray(sizes).T
        one = np.broadcast_to(np.int32(1), len(sizes))
        self.rows: NDArray[np.int32] = one if layout == "shared" else responses.copy()
        self.lengths: NDArray[np.int32] = prefix + (own_sum if layout == "shared" else own_max)
        self.max_tokens, self.max_records = max_tokens, batch_size
        cost = self.lengths if layout == "shared" else self.rows.astype(np.int64) * self.lengths
        self.largest_cost = int(cost.max(initial=0))
        self.num_oversized = int((cost > max_tokens).sum()) if max_tokens is not None else 0
        number = len(sizes) if draws is None else len(draws.records(0))
        per_batch = batch_size or number
        if max_tokens is not None and number:
            mean = (cost if draws is None else cost[draws.records(0)]).mean(dtype=np.float64)
            per_batch = min(per_batch, max(1, int(max_tokens / mean)))
        # Four mega-batches at least: sorting all of a small data set would make every epoch's batches the same.
        mega_batch = min(mega_batch, max(1, number // (4 * max(1, per_batch))))
        self.mega_size = mega_batch * per_batch if shuffle else max(1, len(sizes))
        self._position = 0
        self._start = 0
        # An epoch is planned once, however often it is asked for; the first one here, for it tells how many batches all have.
        self._first: BatchPlan | None = self._compose(0, 0)
        self._planned: tuple[int, BatchPlan] | None = None
        self._count = self._batch_count(len(self._first), number, cost)

    def _records(self, epoch: int) -> Integers:
        """Records that an epoch has, in a fixed order."""
        if self.draws is None:
            return np.arange(len(self.lengths), dtype=np.int32 if len(self.lengths) < 2**31 else np.int64)
        return self.draws.records(epoch if self.shuffle else 0)

    def _batch_count(self, number: int, records: int, cost: Integers) -> int:
        """Batches an epoch has over all ranks: the first epoch's, with slack for other shuffles and other records."""
        most, growth = records, 1.0
        if self.draws is not None and self.shuffle:
            more = self.draws.growth(np.ones(len(cost), dtype=np.int64))
            growth = max(more, self.draws.growth(cost.astype(np.int64))) if self._tokens_bind() else more
            number, most = int(np.ceil(number * growth)), int(np.ceil(records * more))
        mega_batches = -(-most // self.mega_size)
        if (mega_batches > 1 or growth > 1) and self._tokens_bind():
            number += int(np.ceil(np.sqrt(mega_batches)))
        number = min(number, most)  # more batches than records would only repeat some
        return -(-number // self.num_replicas) * self.num_replicas

    def _tokens_bind(self) -> bool:
        """Whether the token budget can end a batch before its number of records does: then counts vary."""
        if self.max_tokens is None or self.max_records is None:
            return self.max_tokens is not None
        return self.max_records * int(self.rows.max()) * int(self.lengths.max()) > self.max_tokens

    def _compose(self, epoch: int, attempt: int) -> BatchPlan:
        """Batches of all ranks, neighbours of similar length, before any is divided."""
        order = self._records(epoch)
        if self.shuffle:
            if self.draws is not None:  # it may keep what it gives
                order = order.copy()
            np.random.default_rng([self.seed, epoch, attempt]).shuffle(order)
        return self._pack(longest_first(self.lengths, order, self.mega_size), self.mega_size)

    def _pack(self, records: Integers, mega_size: int, growth: float = 1.0) -> BatchPlan:
        """Greedy batches of records sorted from long to short, within bounds so many times as large."""
        return pack(
            records,
            lengths=self.lengths,
            rows=self.rows if self.layout == "separate" else None,
            max_tokens=None if self.max_tokens is None else int(self.max_tokens * growth),
            max_records=None if self.max_records is None else int(np.ceil(self.max_records * growth)),
            mega_size=mega_size,
        )

    def plan(self, epoch: int) -> BatchPlan:
        """Every rank's batches of an epoch, in order: rank r takes r, r + ranks, r + 2 ranks, ..."""
        key = epoch if self.shuffle else 0  # without, every epoch is the first
        if self._planned is None or self._planned[0] != key:
            self._planned = key, self._plan(key)
        return self._planned[1]

    def _plan(self, epoch: int) -> BatchPlan:
        first, self._first = self._first, None
        composed = first if first is not None and epoch == 0 else self._compose(epoch, 0)
        for attempt in range(1, ATTEMPTS):
            if len(composed) <= self._count:
                break
            composed = self._compose(epoch, attempt)
        if len(composed) > self._count and (self.draws is None or self.draws.whole):
            composed = self._compose(0, 0)  # fits by construction; its order is still shuffled below
        elif len(composed) > self._count:
            composed = self._squeeze(epoch)
        batches = self._divide(composed)
        if not self.shuffle:
            return batches
        # Ranks of one step get neighbours in length, so that none waits long for another.
        steps = np.random.default_rng([self.seed, epoch, ATTEMPTS]).permutation(
            len(batches) // self.num_replicas
        )
        return batches.take((steps[:, None] * self.num_replicas + np.arange(self.num_replicas)).reshape(-1))

    def _squeeze(self, epoch: int) -> BatchPlan:
        """Batches of an epoch whose records come out longer than most: all sorted by length, and if need be larger."""
        records = self._records(epoch)
        number = max(1, len(records))
        records = longest_first(self.lengths, records, number)
        percent, batches = 0, self._pack(records, number)
        while len(batches) > self._count:
            percent += 1
            batches = self._pack(records, number, 1 + percent / 100)
        if percent:
            warnings.warn(
                f"epoch {epoch}: its records fill {self._count} batches beyond loader.max_tokens={self.max_tokens} and "
                f"batch_size={self.max_records}, by up to {percent} %",
                stacklevel=2,
            )
        return batches

    def _divide(self, batches: BatchPlan) -> BatchPlan:
        """Halve the batches with most records until the number is right; repeat some where none can be halved."""
        while len(batches) < self._count:
            missing = self._count - len(batches)
            sizes = batches.sizes
            largest = np.sort(np.argsort(-sizes, kind="stable")[:missing])
            largest = largest[sizes[largest] > 1]
            if not len(largest):
                # Every batch is one record. Training repeats a few; evaluation must count each record once.
                every = np.arange(len(batches))
                return batches.take(np.concatenate([every, every[:missing]])) if self.even else batches
            batches = batches.halved(largest)
        return batches

    def heaviest(self) -> tuple[list[int], int]:
        """Records of the batch of the current epoch that takes most memory, on whichever rank, and how many tokens it has.

        Those are the real ones of shared rows, which are packed, and of separate rows those with their padding.
        """
        plan = self.plan(self.epoch)
        each = self.lengths if self.layout == "shared" else self.rows
        before = np.concatenate([[0], np.cumsum(each[plan.records], dtype=np.int64)])
        tokens = before[plan.stops] - before[plan.starts]
        if self.layout == "separate":  # the first record of a batch is the longest
            tokens *= self.lengths[plan.records[plan.starts]]
        place = int(np.argmax(tokens))
        others = [] if self.beside is None else (self.beside[0] + len(self.lengths)).tolist()
        return [*plan[place].tolist(), *others], int(tokens[place])

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches of the current epoch, from where a restored state left off."""
        mine = self.plan(self.epoch)[self.rank :: self.num_replicas]
        start, self._start = self._start, 0
        # Which of the others a batch has follows from epoch and place alone, so that nothing else has to be resumed.
        before = self.epoch * len(mine) if self.shuffle else 0
        for number, batch in enumerate(mine[start:], before + start):
            others: list[int] = []
            if self.beside is not None:
                others = (self.beside[number] + len(self.lengths)).tolist()
            yield [*batch.tolist(), *others]

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        if self.shuffle:
            return self._count // self.num_replicas
        return len(range(self.rank, len(self.plan(0)), self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. Another one than before starts at its first batch, whatever a state restored."""
        if epoch != self.epoch:
            self._start = self._position = 0
        super().set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches of it that this rank has handed out, and what their order follows from."""
        return {"epoch": self.epoch, "position": self._position, **self._order()}

    def _order(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "ranks": self.num_replicas,
            "batches": self._count,
            "records": len(self.lengths),
            **({} if self.beside is None else self.beside.order()),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches that a saved state had handed out.

        Raises:
            ValueError: If the batches are not those of the saved state, so that no position in it means anything.
        """
        changed = {
            name: (state_dict.get(name), now)
            for name, now in self._order().items()
            if state_dict.get(name) != now
        }
        if changed:
            detail = ", ".join(f"{name} was {before}, is {now}" for name, (before, now) in changed.items())
            raise ValueError(
                f"a run cannot go on in the middle of an epoch with other batches ({detail}): restore data, loader and "
                "number of ranks, or start a new run from the model's weights"
            )
        self.epoch = state_dict["epoch"]
        self._start = self._position = state_dict["position"]


class FixedOrderBatchSampler(TokenBudgetBatchSampler, SequentialSampler):  # type: ignore[misc]  # yields lists
    """The same batches in the same order every epoch.

    It is a :class:`~torch.utils.data.SequentialSampler` by name only: Lightning replaces every other one under
    ``overfit_batches``, and what it puts there yields single records.
    """


class BatchCycle:
    """This rank's batches of a sampler, epoch after epoch without an end; the n-th follows from n and the seed alone."""

    def __init__(self, sampler: TokenBudgetBatchSampler) -> None:
        """Begin nowhere.

        Args:
            sampler: Even over the ranks; its own epoch does not matter.
        """
        self.sampler, self._length = sampler, len(sampler)

    def __len__(self) -> int:
        """Batches until the first comes again, in another order if that is random."""
        return self._length

    def __getitem__(self, number: int) -> Integers:
        """Records of the n-th batch, n >= 0."""
        epoch, place = divmod(number, self._length)
        sampler = self.sampler
        return sampler.plan(epoch)[sampler.rank + place * sampler.num_replicas]

    def order(self) -> dict[str, int]:
        """What the order follows from, besides what a sampler beside it has as well."""
        return {"unlabelled_batches": self._length, "unlabelled_records": len(self.sampler.lengths)}


class ResumableDataLoader(DataLoader[Batch]):
    """Loader whose state is what its consumer has seen, not what its workers have fetched ahead."""

    sampler: TokenBudgetBatchSampler  # pyright: ignore[reportIncompatibleVariableOverride]  what it is given

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of the current epoch; each one counts when it is handed out.

        Raises:
            RuntimeError: If a worker process has ended before its time; says which.
        """
        sampler = self.sampler
        sampler._position = sampler._start
        try:
            for batch in super().__iter__():
                sampler._position += 1
                yield batch
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # A worker that dies with a batch half handed over breaks the socket before torch looks who is there.
            workers = getattr(self._iterator, "_workers", [])
            ended = wait([worker.sentinel for worker in workers], timeout=1)
            dead = [str(worker.pid) for worker in workers if worker.sentinel in ended]
            if not dead:
                raise
            raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(dead)}) exited unexpectedly") from error
        sampler._position = 0

    def heaviest(self) -> tuple[Batch, int]:
        """The batch of the current epoch that has most tokens, and how many; the state of the loader stays as it is."""
        records, tokens = self.sampler.heaviest()
        rows: Any = self.dataset  # which takes a list of records at once
        batch: Batch = self.collate_fn(rows[records])
        return batch, tokens

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sampler."""
        self.sampler.load_state_dict(state_dict)


class PreferenceDataLoader(ResumableDataLoader[PreferenceBatch]):
    """Batches of records."""
