"""Tokens on disk: written once under a fingerprint of their content, then memory-mapped.

A cache folder holds, per split, one Arrow stream and a few small arrays, and one ``meta.json``. It is written
(``cache_writer.py``) under a temporary name and renamed when complete, so a killed process leaves nothing half-made
behind.
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..columns import optional_columns
from ..untrusted import read_array
from .integrity import cache_damage, read_meta
from .reader import DataReader
from .report import SplitReport
from .rows import Origins, TokenRow
from .table import CHUNK, RecordTable

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["CacheReader", "TokenTable", "fingerprint"]

VERSION = 7
"""Counts up when the files' content changes, so that old caches are made anew."""


def fingerprint(description: Mapping[str, object]) -> str:
    """Hash of everything that decides the tokens and the columns beside them: 16 hexadecimal digits."""
    columns = [entry.stored for entry in optional_columns()]
    text = json.dumps({"version": VERSION, "columns": columns, **description}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TokenTable(RecordTable):
    """Records of one split, read from the memory map."""

    def __init__(self, folder: Path, split: str) -> None:
        """Map the split's files.

        Args:
            folder: A complete cache folder.
            split: Name of the split.
        """
        dataset = self.read(folder / f"{split}.arrow")
        self.sizes: NDArray[np.int32] = read_array(folder / f"{split}.sizes.npy", mapped=True)
        keep = folder / f"{split}.keep.npy"
        if keep.is_file():
            kept = read_array(keep)
            dataset, self.sizes = dataset.select(kept), self.sizes[kept]
        self.dataset = dataset.remove_columns(["file", "line"]).with_format("arrow")

    @staticmethod
    def read(path: Path) -> "datasets.Dataset":
        """Memory-map one Arrow stream."""
        from datasets import Dataset

        return Dataset.from_file(str(path))

    def without_tokens(self) -> Self:
        """The same records, whose tokens are not read."""
        other = copy.copy(self)
        other.dataset = self.dataset.remove_columns("tokens")
        return other

    def column(self, name: str) -> "pa.ChunkedArray":
        """One column of every record, and nothing else read."""
        table: Any = self.dataset.select_columns(name)[:]  # a pyarrow table, by its format
        return table.column(name)

    def rows(self, chunk: int = CHUNK) -> Iterator[TokenRow]:
        """Every record in order."""
        for start in range(0, len(self), chunk):
            yield from token_rows(self.dataset[start : start + chunk])

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        return token_rows(self.dataset[rows])


def token_rows(table: Any) -> list[TokenRow]:  # noqa: ANN401  a pyarrow table, which datasets does not say
    """Rows of a table; a column of which none of them has anything costs nothing."""
    lists = {name: _slices(table.column(name)) for name in table.column_names if name not in PLAIN}
    no_integers: list[Any] = [np.empty(0, np.int32)] * table.num_rows
    no_floats: list[Any] = [np.empty(0, np.float32)] * table.num_rows
    tokens = lists.get("tokens") or no_integers
    pairs, places = lists["comparisons"] or no_integers, lists["comparison_index"] or no_integers
    preferences = lists["preference"] or no_floats
    optional = [(entry.stored, lists[entry.stored]) for entry in optional_columns() if lists[entry.stored]]
    plain = [table.column(name).to_pylist() for name in PLAIN]
    merged = lists["merged_id"]
    return [
        TokenRow(
            id=record_id,
            tokens=tokens[i],
            lengths=lists["lengths"][i],
            response_index=lists["response_index"][i],
            comparisons=pairs[i].reshape(-1, 2),
            comparison_index=places[i],
            preference=preferences[i],
            columns={name: values[i] for name, values in optional if len(values[i])},
            record_key=key,
            split_key=group,
            prompt_length=prompt_length,
            origins=Origins(*((lists[name] or no_integers)[i] for name in ORIGINS))
            if merged and merged[i]
            else None,
        )
        for i, (record_id, key, group, prompt_length) in enumerate(zip(*plain, strict=True))
    ]


PLAIN = ("id", "record_key", "split_key", "prompt_length")
"""Columns of one value a record; all others are lists."""
ORIGINS = (
    "merged_id",
    "merged_key",
    "response_origin",
    "response_place",
    "comparison_origin",
    "comparison_place",
)
"""Columns of :class:`Origins`, in its order; empty for a record that is one row of the data."""


def _slices(column: "pa.ChunkedArray") -> list[Any]:
    """Each row's list, as a view for numbers and a Python list for strings; nothing at all if every one is empty."""
    import pyarrow as pa

    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    if not len(array) or offsets[0] == offsets[-1]:
        return []
    if pa.types.is_string(array.type.value_type):
        return list(array.to_pylist())
    values = array.values.to_numpy(zero_copy_only=True)
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]


class CacheReader(DataReader):
    """A complete cache folder."""

    def __init__(self, folder: Path) -> None:
        """Read its description, and compare its files with their sizes.

        Args:
            folder: A folder that :class:`CacheWriter` completed.

        Raises:
            ValueError: If a file is missing or was cut.
        """
        self.folder = folder
        if problem := cache_damage(folder, every_byte=False):
            raise ValueError(f"the token cache {folder} is damaged ({problem}): remove it")
        meta: dict[str, Any] = read_meta(folder)
        self.format: dict[str, object] = meta["format"]
        self.names: dict[str, list[str]] = meta["names"]
        self.num_training_users: int = meta["num_training_users"]
        self.present: frozenset[str] = frozenset(meta["present"])
        self.categories: dict[str, int] = meta["categories"]
        self.reports = {split: SplitReport(**parts) for split, parts in meta["reports"].items()}
        for report in self.reports.values():
            report.invalid, report.dropped = Counter(report.invalid), Counter(report.dropped)

    def table(self, split: str) -> TokenTable:
        """Map one split."""
        return TokenTable(self.folder, split)
