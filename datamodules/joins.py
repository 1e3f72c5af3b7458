"""Side tables: values for records, responses or comparisons that are joined when batches are made.

Strengths, margins, weights or priors that somebody computes after the data were tokenised need no new token cache: they
are a file beside it. An entry names its item by the key of its row of the data
(:func:`pluralign.datamodules.records.record.record_key`) and the item's place in that row (0 for the record itself), whatever
the row was merged with: :func:`batch_items` says both of what is in a batch. The order of the entries means nothing.

The file is Parquet with three columns: ``record_key`` (int64), ``index`` (int64), and the values under the name of
their column, numbers or equally long lists of numbers, so that any program can write one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .batch import PreferenceBatch
from .columns import Column, Item, optional_columns
from .records import FLOAT32_MAX, readable

__all__ = ["SideTable", "batch_items", "joinable_columns", "load_joins", "report_joins"]

Keys = NDArray[np.int64]
LARGEST_INDEX = 2**31 - 1
"""No record has so many items; beyond it, the numbers of entries would no longer fit into 64 bits."""
BLOCK = 1_000_000
"""Items that are looked up at a time."""
TOLERANCE = 1e-3
"""How far the sum of a given distribution may be from 1."""


def joinable_columns() -> dict[str, Item]:
    """Columns that a side table may hold, with what they are of: numbers, and what the collator alone reads.

    Votes are not among them: how many categories they have is settled when the data are read.
    """
    return {
        entry.stored: entry.item
        for entry in optional_columns()
        if entry.kind == "number" or not entry.in_batch
    }


@dataclass(frozen=True, eq=False)
class SideTable:
    """Values of one column by record key and place in the record.

    Attributes:
        column: Name in the table of columns, one of :func:`joinable_columns`.
        record_key: Keys of the entries' records, (n,) int64.
        index: Places of the entries' items in their records, (n,) in [0, 2^31 - 1]; kept as int32.
        values: (n,) of a number, (n, C) of a column of C categories; float32, finite.
        path: File it was loaded from, for messages.
    """

    column: str
    record_key: Keys
    index: NDArray[np.signedinteger[Any]]
    values: NDArray[np.float32]
    path: str = ""
    _records: Keys = field(init=False, repr=False)
    _entries: NDArray[np.signedinteger[Any]] = field(init=False, repr=False)
    _order: NDArray[np.signedinteger[Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check and sort.

        Raises:
            ValueError: If there is no such column, shapes do not fit, a value is not finite, an index is out of range or
                an item has two entries; names the file.
        """
        where = f"side table {self.path or self.column}"
        if self.column not in joinable_columns():
            allowed = ", ".join(joinable_columns())
            raise ValueError(f"{where}: column must be one of {allowed}; got {self.column!r}")
        keys, index = np.asarray(self.record_key, np.int64), np.asarray(self.index, np.int64)
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            values = np.asarray(self.values, np.float32)
        dimensions = 1 if self.kind == "number" else 2
        if (
            keys.ndim != 1
            or index.shape != keys.shape
            or values.ndim != dimensions
            or len(values) != len(keys)
        ):
            raise ValueError(
                f"{where}: record_key and index must be (n,) and {self.column} {'(n,)' if dimensions == 1 else '(n, C)'}, got "
                f"{keys.shape}, {index.shape} and {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"{where}: values must be finite in float32; leave an entry out where its value is unknown"
            )
        if self.entry.low == 0 and not float(values.sum(dtype=np.float64)) <= FLOAT32_MAX:
            raise ValueError(f"{where}: the sum of {self.column} must be at most {FLOAT32_MAX:.3g} (float32)")
        low = 0.0 if dimensions == 2 else self.entry.low
        if len(values) and float(values.min()) < low:
            raise ValueError(f"{where}: {self.column} must be >= {low:g}, got {float(values.min()):g}")
        if dimensions == 2 and bool((np.abs(values.sum(1) - 1) > TOLERANCE).any()):
            raise ValueError(f"{where}: every list must sum to 1 (within {TOLERANCE:g})")
        if len(index) and int(index.min()) < 0:
            raise ValueError(f"{where}: index must be >= 0, got {int(index.min())}")
        if len(index) and int(index.max()) > LARGEST_INDEX:
            raise ValueError(f"{where}: index must be at most {LARGEST_INDEX}, got {int(index.max())}")
        # An entry's number is the rank of its record, then its place: one sorted column to search.
        stride = self._stride(index)
        order = np.lexsort((index, keys)) if stride > 1 else np.argsort(keys, kind="stable")
        records = keys[order]
        first_of = np.concatenate([np.ones(min(1, len(records)), bool), records[1:] != records[:-1]])
        # Tables have millions of entries: every column is as narrow as its numbers allow.
        entries = np.cumsum(first_of, dtype=np.min_scalar_type(-max(1, len(order) * stride)))
        entries -= 1
        if stride > 1:
            entries *= stride
            entries += index[order].astype(entries.dtype)
        if not first_of.all():
            records = records[first_of]
        order = order.astype(np.min_scalar_type(-max(1, len(order))))
        index = index.astype(np.int32)
        if again := np.flatnonzero(entries[1:] == entries[:-1]).tolist():
            first = order[again[0]]
            raise ValueError(
                f"{where}: {len(again):,} entries are of an item that has one already (first: record_key "
                f"{keys[first]}, index {index[first]})"
            )
        named = {"record_key": keys, "index": index, "values": values}
        for name, value in {**named, "_records": records, "_entries": entries, "_order": order}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.record_key)

    @property
    def item(self) -> Item:
        """What the values are of."""
        return joinable_columns()[self.column]

    @property
    def kind(self) -> str:
        """``number`` or ``counts``."""
        return self.entry.kind

    @property
    def entry(self) -> Column:
        """Its column."""
        return next(entry for entry in optional_columns() if entry.stored == self.column)

    @staticmethod
    def _stride(index: NDArray[np.signedinteger[Any]]) -> int:
        return int(index.max(initial=0)) + 1

    def find(self, record_key: ArrayLike, index: ArrayLike) -> Keys:
        """Entries of items, (m,); -1 where an item has none.

        Args:
            record_key: Keys of the items' records, (m,).
            index: Their places in them, (m,).
        """
        keys, places = np.asarray(record_key, np.int64), np.asarray(index, np.int64)
        found = np.full(len(keys), -1, dtype=np.int64)
        if len(self):
            for start in range(0, len(keys), BLOCK):  # of a whole split there are millions
                part = slice(start, start + BLOCK)
                found[part] = self._find(keys[part], places[part])
        return found

    def _find(self, keys: Keys, places: Keys) -> Keys:
        stride = self._stride(self.index)
        rank = np.minimum(np.searchsorted(self._records, keys), len(self._records) - 1)
        # As narrow as what is searched, which would be copied otherwise; a place beyond the stride is none, whatever it becomes.
        number = (rank * stride + places).astype(self._entries.dtype)
        entry = np.minimum(np.searchsorted(self._entries, number), len(self._entries) - 1)
        same = (self._records[rank] == keys) & (places < stride) & (self._entries[entry] == number)
        return np.where(same, self._order[entry].astype(np.int64), -1)

    def join(self, values: Tensor, record_key: ArrayLike, index: ArrayLike) -> Tensor:
        """Values of items with those of the entries in their places.

        Args:
            values: What the data have, (m,) or (m, C).
            record_key: Keys of the items' records, (m,).
            index: Their places in them, (m,).

        Returns:
            A new tensor of that shape.

        Raises:
            ValueError: If the table is of another number of categories.
        """
        if values.shape[1:] != self.values.shape[1:]:
            raise ValueError(
                f"side table {self.path or self.column}: {self.column} has {self.values.shape[1]} categories, the data "
                f"have {values.shape[1]}"
            )
        entries = torch.from_numpy(self.find(record_key, index))
        has = entries >= 0
        joined = values.clone()
        joined[has] = torch.from_numpy(self.values)[entries[has]]
        return joined

    def save(self, path: str | Path) -> None:
        """Write it as Parquet."""
        import pyarrow as pa
        from pyarrow import parquet

        values = self.values if self.kind == "number" else list(self.values)
        columns = {"record_key": self.record_key, "index": self.index, self.column: values}
        parquet.write_table(pa.table(columns), str(path))

    @classmethod
    def load(cls, path: str | Path) -> "SideTable":
        """Read a Parquet file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is no Parquet file, its columns are not those of a side table, or what ``SideTable`` raises.
        """
        import pyarrow as pa
        from pyarrow import ArrowException, parquet

        if not Path(path).is_file():
            raise FileNotFoundError(f"loader.joins names {str(path)!r}, which is no file")
        with readable(Path(path), "a side table, which is a Parquet file", ArrowException, ValueError):
            table: Any = parquet.read_table(str(path))
            columns: list[str] = table.column_names  # which are read as text only here
        names = [name for name in columns if name not in ("record_key", "index")]
        if len(names) != 1 or len(columns) != 3:
            raise ValueError(
                f"side table {path}: has columns {', '.join(columns)}; needs record_key, index and one of "
                f"{', '.join(joinable_columns())}"
            )
        keys, index = (table.column(name).to_numpy() for name in ("record_key", "index"))
        if not keys.dtype.kind == index.dtype.kind == "i":
            raise ValueError(
                f"side table {path}: record_key and index must be int64, got {keys.dtype}, {index.dtype}"
            )
        try:
            with np.errstate(over="ignore"):  # as above
                column = table.column(names[0])
                flat = (
                    pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
                ) and not column.null_count
                values = np.array(column.to_numpy() if flat else column.to_pylist(), np.float32)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"side table {path}: a value is no number, or lists differ in length ({error})"
            ) from error
        return cls(names[0], keys, index, values, path=str(path))


def batch_items(batch: PreferenceBatch, item: Item) -> tuple[Tensor, Tensor]:
    """What a side table calls the records, responses or comparisons of a batch: keys and places, (n,) int64 each."""
    if item == "record":
        return batch["record_key"], torch.zeros_like(batch["record_key"])
    if item == "response":
        if "response_key" in batch:
            return batch["response_key"], batch["response_place"]
        return batch["record_key"][batch["response_prompt"]], batch["response_index"]
    if "comparison_key" in batch:
        return batch["comparison_key"], batch["comparison_place"]
    prompts = batch["response_prompt"][batch["comparisons"][:, 0]]
    return batch["record_key"][prompts], batch["comparison_index"]


def load_joins(paths: Iterable[str]) -> tuple[SideTable, ...]:
    """Side tables of files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is no side table, or two are of the same column.
    """
    tables: dict[str, SideTable] = {}
    for path in paths:
        table = SideTable.load(path)
        if table.column in tables:
            raise ValueError(f"loader.joins: {tables[table.column].path} and {path} both hold {table.column}")
        tables[table.column] = table
    return tuple(tables.values())


class Items(Protocol):
    """What is asked of a split's records."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def named_items(self, item: Item, start: int = 0, stop: int | None = None) -> tuple[Keys, Keys]:
        """Record key of every item of the records from start to stop, and its place in its record."""
        ...


def report_joins(
    name: str, tables: Iterable[SideTable], splits: Mapping[str, Items], categories: Mapping[str, int]
) -> None:
    """Say how many entries of every side table belong to an item of each split.

    Args:
        name: Of the data, for messages.
        tables: The side tables.
        splits: Records of the splits that are opened together.
        categories: Number of categories of the data's votes.

    Raises:
        ValueError: If the data have no votes for priors, or no entry belongs to any of the splits; rows to be scored
            need none.
    """
    for table in tables:
        votes = table.entry.votes
        if table.kind == "counts" and categories.get(votes) != table.values.shape[1]:
            raise ValueError(
                f"{name}: {table.path} holds {table.column} of {table.values.shape[1]} categories, {votes} of the data have "
                f"{categories.get(votes, 0)}"
            )
        matched = {}
        for split, records in splits.items():
            matched[split] = number = 0
            for start in range(0, len(records), BLOCK):
                entries = table.find(*records.named_items(table.item, start, start + BLOCK))
                matched[split] += int((entries >= 0).sum())
                number += len(entries)
            rank_zero_info(
                f"{name} {split}: {matched[split]:,} of {len(table):,} entries of {table.path} are joined as {table.column}, "
                f"to {number:,} {table.item}s"
            )
        if matched.keys() - {"predict"} and not any(matched.values()):
            raise ValueError(
                f"{name}: no entry of {table.path} belongs to the {' or '.join(matched)} split: its record_key and index "
                "must be those of the batches, by the same source, split and ids; a table of other splits is left out of "
                "loader.joins for this stage"
            )
