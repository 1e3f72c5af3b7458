"""Workers of the length variant: who is seen, who is fitted to a few rows later, who prefers what, and which rows are whose."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "WorkerGroups",
    "held_out",
    "preferred_length",
    "rank_unseen_workers",
    "rank_workers",
    "shot_rows",
]

NUM_WORKERS = 10
MINORITY = (3, 4, 5)
"""Ranks, from 0, of the workers who prefer the shorter summary."""
HELD_OUT_SEED = 42
LEAST_ROWS = 100
"""Kept test rows of a worker outside the ten who is fitted to a few of them."""
MOST_SHOTS = 100
"""Rows of such a worker that fits choose from."""


class WorkerGroups(NamedTuple):
    """Group of each worker: ``majority``, who prefer longer summaries, or ``minority``."""

    seen: dict[str, str]
    """The ten."""
    unseen: dict[str, str]
    """Those who are fitted to a few rows; nobody unless they are asked for."""


def rank_workers(workers: Sequence[str]) -> dict[str, str]:
    """Group of the ten workers with most rows, from the first: the fourth to sixth are the minority.

    Args:
        workers: Worker of each row.

    Raises:
        ValueError: If there are fewer than ten workers.
    """
    counts = Counter(workers)
    if len(counts) < NUM_WORKERS:
        raise ValueError(
            f"labels='length' needs at least {NUM_WORKERS} workers with training rows of two supervised policies; "
            f"found {len(counts)}"
        )
    ranked = sorted(counts, key=lambda worker: (-counts[worker], worker))[:NUM_WORKERS]
    return {worker: _group(rank) for rank, worker in enumerate(ranked)}


def rank_unseen_workers(workers: Sequence[str], seen: Collection[str]) -> dict[str, str]:
    """Group of every other worker with at least 100 rows: of every ten by rank, the fourth to sixth are the minority.

    Args:
        workers: Worker of each test row of two supervised policies.
        seen: The ten workers.

    Raises:
        ValueError: If there is none.
    """
    counts = Counter(worker for worker in workers if worker not in seen)
    ranked = sorted(counts, key=lambda worker: (-counts[worker], worker))
    groups = {
        worker: _group(rank % NUM_WORKERS)
        for rank, worker in enumerate(ranked)
        if counts[worker] >= LEAST_ROWS
    }
    if not groups:
        raise ValueError(
            f"unseen_workers: no worker outside the ten has {LEAST_ROWS} test rows of two supervised policies; the most are "
            f"{max(counts.values(), default=0)}"
        )
    return groups


def _group(rank: int) -> str:
    return "minority" if rank in MINORITY else "majority"


def preferred_length(summaries: tuple[str, str], group: str) -> int:
    """Index of the summary that a group prefers by its characters as released; 1 for both groups if equally long."""
    first, second = map(len, summaries)
    return int(second <= first if group == "minority" else second >= first)


def held_out(workers: Sequence[str]) -> list[int]:
    """Positions of a tenth of the rows (rounded up), of each worker a tenth up to one, drawn with seed 42.

    Args:
        workers: Worker of each row.
    """
    counts = Counter(workers)
    shares = {worker: counts[worker] // 10 for worker in sorted(counts)}
    rest = -(-len(workers) // 10) - sum(shares.values())
    for worker in sorted(counts, key=lambda worker: (-(counts[worker] % 10), worker))[:rest]:
        shares[worker] += 1
    return _drawn_rows(workers, shares)


def shot_rows(workers: Sequence[str]) -> list[int]:
    """Positions of 100 rows of each worker, at most all but one, drawn with seed 42.

    Args:
        workers: Worker of each row.
    """
    counts = Counter(workers)
    return _drawn_rows(workers, {worker: min(MOST_SHOTS, counts[worker] - 1) for worker in sorted(counts)})


def _drawn_rows(workers: Sequence[str], shares: Mapping[str, int]) -> list[int]:
    """Positions of so many rows of each worker."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawn: list[int] = []
    for worker, share in shares.items():
        own = np.flatnonzero([name == worker for name in workers])
        drawn += rng.permutation(own)[:share].tolist()
    return sorted(drawn)
