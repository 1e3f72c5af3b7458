"""Responses that are to be scored: those of equal content once, for all who ask about them."""

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..columns import optional_columns
from ..tokens import ComparisonView, RecordTable, TokenRow, take_row_responses
from .features import FeatureTable

__all__ = ["RequestView", "ScoredRows", "scored_rows"]

LARGEST = 1024
"""Records of equal content that stay together at most: a batch must not grow with their number."""

Integers = NDArray[np.int64]


def _judged(row: TokenRow) -> bool:
    """Whether responses have scores or votes: such a record stays as it is."""
    said = (entry.stored for entry in optional_columns("response") if entry.kind != "name")
    return any(name in row.columns for name in said)


class RequestView(torch.utils.data.Dataset[list[TokenRow]]):
    """Records of which those of equal content count, and are read, as one; the collator then scores them once.

    Attributes:
        sizes: As those of :class:`RecordTable`, of the different contents.
    """

    def __init__(
        self, rows: RecordTable | ComparisonView | FeatureTable, table: RecordTable | ComparisonView
    ) -> None:
        """Find what is equal, by a hash of 64 bits of the tokens; some tens of bytes a record stay in memory.

        Args:
            rows: What is read.
            table: The same records with their tokens.
        """
        self.rows = rows
        digests = [
            blake2b(str(place).encode() if _judged(row) else _content(row), digest_size=8).digest()
            for place, row in enumerate(table.rows())
        ]
        keys = np.frombuffer(b"".join(digests), dtype=np.uint64)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        leader = first[group]
        self._order: Integers = np.argsort(leader, kind="stable")
        leaders = leader[self._order]
        starts = np.flatnonzero(np.diff(leaders, prepend=-1))
        ends = np.append(starts[1:], len(leaders))
        starts = np.concatenate(
            [np.arange(start, end, LARGEST) for start, end in zip(starts, ends, strict=True)]
            or [np.empty(0, np.int64)]
        )
        self._bounds: Integers = np.append(starts, len(leaders))
        self.sizes: NDArray[np.int32] = np.asarray(rows.sizes)[self._order[starts]]

    def __len__(self) -> int:
        """Number of different contents."""
        return len(self.sizes)

    def __getitem__(self, contents: list[int]) -> list[TokenRow]:
        """Every record of several contents."""
        parts = [self._order[self._bounds[i] : self._bounds[i + 1]] for i in contents]
        return self.rows[np.concatenate(parts).tolist()]


def _content(row: TokenRow) -> bytes:
    return row.lengths.tobytes() + row.tokens.tobytes() + repr(row.response_names()).encode()


class ScoredRows(NamedTuple):
    """What is scored for a batch of records."""

    rows: list[TokenRow]
    """Records with the responses that are scored."""
    records: Integers
    """(S,): which of the batch's records each of them is."""
    where: list[Integers]
    """Of every record of the batch: index of the scored response that each of its responses is equal to."""


def scored_rows(rows: Sequence[TokenRow], *, merge: bool) -> ScoredRows:
    """The responses that are scored for records of a batch.

    Args:
        rows: The records; equal ones stand together.
        merge: Whether a response that equals another one of its record, or of an equal record before, is left out.
    """
    scored: list[TokenRow] = []
    records: list[int] = []
    where: list[Integers] = []
    content: tuple[Hashable, ...] | None = None
    count = 0
    for number, row in enumerate(rows):
        size = len(row.response_index)
        own = _texts(row) if merge and not _judged(row) else None
        if own is not None and own == content:
            where.append(where[-1])
            continue
        content = own
        parts: list[Hashable] = list(range(size)) if own is None else list(own[2:])
        kept = list(dict.fromkeys(parts))
        place = {part: count + i for i, part in enumerate(kept)}
        where.append(np.asarray([place[part] for part in parts], dtype=np.int64))
        if len(kept) < size:
            row = take_row_responses(row, [parts.index(part) for part in kept])
        scored.append(row)
        records.append(number)
        count += len(kept)
    return ScoredRows(scored, np.asarray(records, dtype=np.int64), where)


def _texts(row: TokenRow) -> tuple[Hashable, ...]:
    """Prompt's length, the prefix, and each response, by what tells them apart: who wrote them, and tokens or stored features."""
    names = row.response_names()
    if row.places is not None:
        return row.prompt_length, row.prompt_place, *zip(row.places.tolist(), names, strict=True)
    bounds = pairwise(np.cumsum(row.lengths).tolist())
    prefix = row.tokens[: row.lengths[0]].tobytes()
    tokens = (row.tokens[start:stop].tobytes() for start, stop in bounds)
    return row.prompt_length, prefix, *zip(tokens, names, strict=True)
