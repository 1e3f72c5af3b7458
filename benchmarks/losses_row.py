"""A row of the table of benchmarks/losses.py, and how its times are taken."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Row", "in_turn", "seconds"]


@dataclass
class Row:
    """One line of the table."""

    what: str
    reference: str
    reference_rows: int
    ours_us: float
    reference_us: float
    ratio: float
    goal: float
    error: float
    tolerance: float
    gradient_error: float = 0.0
    gradient_tolerance: float = 1e-5

    @property
    def passes(self) -> bool:
        """Whether results agree and the goal is reached."""
        agrees = self.error <= self.tolerance and self.gradient_error <= self.gradient_tolerance
        return agrees and self.ratio >= self.goal


def seconds(
    call: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Median time of a call, after one to warm up; processor time, which a busy machine disturbs least."""
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def in_turn(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median processor time of each of several calls, made in turn so that a busy machine slows all of them down."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for turn in range(repeats):
        places = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for place in places:
            start = time.process_time()
            calls[place]()
            times[place].append(time.process_time() - start)
    return [statistics.median(each) for each in times]
