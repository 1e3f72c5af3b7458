"""Random splits that are the same on every machine: by the SHA-1 of a key, never by a random generator.

The formulas differ between data sets, and none may change: a row would go to another split. So each data set gives
its own as arguments.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from hashlib import sha1
from itertools import accumulate

from .record import RecordError
from .rows import SourceRow, parse_rows

__all__ = ["PERCENT", "PER_10_000", "hash_share", "hash_split", "ordered_split", "rows_of_split"]

PERCENT = {"train": 80, "validation": 10, "test": 10}
"""Most releases without splits: 80% training, 10% validation, 10% test."""

PER_10_000 = {"train": 8_000, "validation": 1_000, "test": 1_000}
"""The same shares in finer parts, which are other rows."""


def hash_split(key: str, parts: Mapping[str, int], seed: int = 0) -> str:
    """Split of a key.

    Args:
        key: What stays on one side, such as the prompt.
        parts: Size of each split, >= 0 and not all 0, in the order in which they divide the numbers from 0 to the sum of the sizes:
            a key's number is its hash modulo that sum.
        seed: Other values give other splits.
    """
    number = _number(_seeded(key, seed)) % sum(parts.values())
    return next(split for split, end in zip(parts, accumulate(parts.values()), strict=True) if number < end)


def rows_of_split(
    rows: Iterable[SourceRow | RecordError],
    split: str,
    key: Callable[[SourceRow], str],
    parts: Mapping[str, int] = PERCENT,
) -> Iterator[SourceRow | RecordError]:
    """Rows of one split, of a release that has none; errors of rows without a key are training's.

    Args:
        rows: Of the whole release.
        split: ``train``, ``validation`` or ``test``.
        key: What stays on one side, such as the prompt; raises a :class:`RecordError` where it cannot be read.
        parts: As :func:`hash_split` has them.
    """
    for row in parse_rows(rows, lambda row: (hash_split(key(row), parts), row)):
        if isinstance(row, RecordError):
            if split == "train":
                yield row
        elif row[0] == split:
            yield row[1]


def ordered_split(names: Collection[str], seed: int = 0, *, one_in: int, what: str) -> dict[str, str]:
    """Split of each of a few names: by the order of their hashes the first to test, the next to validation.

    Args:
        names: Different names of what is held out as a whole.
        seed: Other values give other splits.
        one_in: One in so many names goes to each of test and validation, at least one.
        what: Plural of what is named, for the error.

    Raises:
        ValueError: If there are fewer than three.
    """
    if len(names) < 3:
        raise ValueError(f"at least 3 {what} are needed to hold some out; there are {len(names)}")
    held = max(1, round(len(names) / one_in))
    order = sorted(names, key=lambda name: _number(_seeded(name, seed)))
    held_out = ["test"] * held + ["validation"] * held
    return dict(zip(order, held_out + ["train"] * (len(order) - 2 * held), strict=True))


def hash_share(key: str) -> float:
    """Where a key is among all keys, in [0, 1), by the first 48 bits of its hash."""
    return (_number(key) >> 112) / 2**48


def _seeded(key: str, seed: int) -> str:
    return f"{seed}:{key}" if seed else key


def _number(key: str) -> int:
    return int.from_bytes(sha1(key.encode()).digest(), "big")
