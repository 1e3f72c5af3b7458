"""One split's Arrow stream: chunks of records as columns, and a few numbers a row that are kept beside it."""

from array import array
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..columns import optional_columns
from .cache import TokenTable
from .merging import DIGEST, LEAST_SAVING, merge_split, record_sizes
from .report import SplitReport
from .rows import TokenRow
from .schema import schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SplitWriter"]

EQUAL_RESPONSES = "record of fewer than 2 different responses"


def _tells_apart(row: TokenRow) -> bool:
    """Whether a record has two responses of different tokens."""
    ends = np.cumsum(row.lengths).tolist()
    first = row.tokens[ends[0] : ends[1]]
    others = (row.tokens[start:stop] for start, stop in pairwise(ends[1:]))
    return any(not np.array_equal(first, other) for other in others)


class SplitWriter:
    """One split's Arrow stream, and the small arrays beside it.

    Attributes:
        path: Of the stream.
        optional: Columns that a row may lack.
        names: Names that occur in each column of names.
        present: Columns that any row has, of those that it may lack.
        ids: Hash of each row's id.
        keys: What :func:`record_key` says of each row.
        groups: Hash of what decides the side of a random split, of each row.
        judgements: Hash of what each comparison says.
        judged_rows: Row of each comparison.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Open the stream.

        Args:
            folder: Of the cache.
            split: Name of the split.
        """
        import pyarrow as pa

        self.folder, self.split = folder, split
        self.path = folder / f"{split}.arrow"
        self.schema = schema()
        self.stream = pa.ipc.new_stream(str(self.path), self.schema)
        self.sizes = array("i")
        self.ids = array("Q")
        self.keys = array("q")
        self.groups = array("Q")
        self.digests = bytearray()
        self.judgements, self.judged_rows = array("Q"), array("I")
        self.optional = tuple(entry.stored for entry in optional_columns())
        self.names: dict[str, set[str]] = {entry.stored: set() for entry in optional_columns(kind="name")}
        self.present: set[str] = set()

    def write(self, batch: "pa.RecordBatch") -> NDArray[np.int32]:
        """Append rows.

        Args:
            batch: At least one row, as :func:`chunk_schema` has them.

        Returns:
            Their sizes, as :class:`TokenTable` has them.
        """
        import pyarrow as pa

        judged = batch.column("judgements")
        numbers = np.arange(len(self.ids), len(self.ids) + len(batch), dtype=np.uint32)
        self.judged_rows.frombytes(np.repeat(numbers, judged.value_lengths().to_numpy()).tobytes())
        self.judgements.frombytes(judged.flatten().to_numpy().tobytes())
        sizes = record_sizes(pa.chunked_array([batch.column("lengths")]))
        self.sizes.frombytes(sizes.tobytes())
        self.ids.frombytes(batch.column("id_hash").to_numpy().tobytes())
        self.digests += b"".join(batch.column("digest").to_pylist())
        self.groups.frombytes(batch.column("split_key").to_numpy().tobytes())
        self.keys.frombytes(batch.column("record_key").to_numpy().tobytes())
        self.present |= {
            name for name in ("comparisons", *self.optional) if len(batch.column(name).flatten())
        }
        for name in self.names.keys() & self.present:
            self.names[name].update(set(batch.column(name).flatten().unique().to_pylist()) - {None})
        self.stream.write_batch(batch.select(self.schema.names))
        return sizes

    def close(self) -> None:
        """End the stream."""
        self.stream.close()
        self._save(np.asarray(self.sizes, dtype=np.int32).reshape(-1, 4))
        self.sizes = array("i")  # in the file from here on

    def _save(self, sizes: NDArray[np.int32]) -> None:
        np.save(self.folder / f"{self.split}.sizes.npy", sizes)

    @property
    def kept_path(self) -> Path:
        """File of the rows that count, where not all do."""
        return self.folder / f"{self.split}.keep.npy"

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Let only some rows count."""
        np.save(self.kept_path, rows)
        self._take(rows)

    def merge(
        self, report: SplitReport, max_tokens: int, *, equal_once: bool, whole_groups: bool = False
    ) -> None:
        """Merge rows of equal prompts; if there are any, the new stream holds nothing but what counts.

        Args:
            report: Of the split; what was saved is written into it.
            max_tokens: Bound on the tokens of a merged record; 0 merges none.
            equal_once: Whether equal responses of several rows become one, where one system wrote them.
            whole_groups: Whether rows are merged even where that saves no tokens.
        """
        digests = np.frombuffer(self.digests, dtype=np.uint64).reshape(-1, DIGEST // 8)
        sizes = np.load(self.folder / f"{self.split}.sizes.npy")
        kept = np.arange(len(self.ids))
        if self.kept_path.is_file():
            kept = np.load(self.kept_path)
            digests, sizes = digests[kept], sizes[kept]
        report.tokens = report.tokens_apart = int(sizes[:, 1:3].sum(dtype=np.int64))
        report.longest = int((sizes[:, 1] + sizes[:, 3]).max(initial=0))
        del sizes
        merged = merge_split(
            self.path,
            kept,
            digests,
            report,
            max_tokens=max_tokens,
            equal_once=equal_once,
            least_saving=None if whole_groups else LEAST_SAVING,
        )
        if merged is not None:
            numbers, sizes = merged
            self.kept_path.unlink(missing_ok=True)
            self._save(sizes)
            self._take(np.searchsorted(kept, numbers))

    def drop_equal(self, report: SplitReport) -> None:
        """Drop records of fewer than two different responses, in which nothing can be told apart, and count them."""
        table = TokenTable(self.folder, self.split)
        told = np.fromiter((_tells_apart(row) for row in table.rows()), bool, len(table))
        if told.all():
            return
        kept = np.load(self.kept_path) if self.kept_path.is_file() else np.arange(len(told))
        dropped, sizes = np.asarray(table.sizes)[~told], np.asarray(table.sizes)[told]
        np.save(self.kept_path, kept[told])
        self._take(np.flatnonzero(told))
        report.dropped[EQUAL_RESPONSES] += len(dropped)
        report.records -= len(dropped)
        report.responses -= int(dropped[:, 0].sum())
        report.tokens -= int(dropped[:, 1:3].sum())
        report.longest = int((sizes[:, 1] + sizes[:, 3]).max(initial=0))

    def _take(self, rows: NDArray[np.int64]) -> None:
        self.groups = array("Q", np.asarray(self.groups, np.uint64)[rows].tobytes())
        self.keys = array("q", np.asarray(self.keys, np.int64)[rows].tobytes())

    def repeated(self) -> int:
        """How many comparisons say again what was said before; they are forgotten."""
        count = len(self.judgements) - len(np.unique(self.judgements))
        self.judgements, self.judged_rows = array("Q"), array("I")
        return count

    def duplicates(self) -> NDArray[np.int64]:
        """Rows whose id occurred before, ascending."""
        ids = np.asarray(self.ids, dtype=np.uint64)
        _, first = np.unique(ids, return_index=True)
        again = np.ones(len(ids), dtype=bool)
        again[first] = False
        return np.flatnonzero(again)
