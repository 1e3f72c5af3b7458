"""One split's Arrow stream: a chunk of records becomes columns at once, and a few numbers a row are kept beside it."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain, pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Column, Item, optional_columns
from ..records import Comparison, PreferenceRecord, Response, record_key
from .cache import ORIGINS, TokenTable
from .merging import DIGEST, LEAST_SAVING, merge_split, prompt_digest
from .report import SplitReport
from .rows import TokenRow
from .schema import schema
from .text import TokenizedRecord

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SplitWriter", "WrittenRow"]

WrittenRow = tuple[PreferenceRecord, TokenizedRecord, str, int]
"""A record with its tokens, and file and line that it is from."""
EQUAL_RESPONSES = "record of fewer than 2 different responses"
Items = Sequence[PreferenceRecord] | Sequence[Response] | Sequence[Comparison]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _items(rows: Sequence[WrittenRow], split: str) -> dict[Item, list[Items]]:
    """What a column may be of, row by row: kept responses and comparisons alone; what is asked is of ``predict`` alone."""
    requests = [record.requests if split == "predict" else () for record, *_ in rows]
    return {
        "record": [(record,) for record, *_ in rows],
        "response": [[record.responses[i] for i in tokens.responses] for record, tokens, *_ in rows],
        "request": [
            [asked[i] for i in tokens.responses] if asked else ()
            for asked, (_, tokens, *_) in zip(requests, rows, strict=True)
        ],
        "comparison": [[record.comparisons[i] for i in tokens.comparisons] for record, tokens, *_ in rows],
    }


def _values(entry: Column, items: Items) -> list[object]:
    """A row's values in a column, what is missing filled in; nothing at all if everything is."""
    values = [entry.of(item) for item in items]
    known = next((value for value in values if value is not None), None)
    if known is None:
        return []
    if entry.kind == "name":
        return values
    assert entry.missing is not None  # of these columns alone an item may lack a value
    if entry.kind != "counts":
        return [entry.missing if value is None else float(value) for value in values]
    nothing = (entry.missing,) * len(known)
    return [float(count) for value in values for count in (nothing if value is None else value)]


def _pairs(record: PreferenceRecord, tokens: TokenizedRecord) -> list[int]:
    """Chosen and rejected of each kept comparison, among the kept responses."""
    place = {response: i for i, response in enumerate(tokens.responses)}
    sides = (record.comparisons[i] for i in tokens.comparisons)
    return [place[side] for each in sides for side in (each.chosen, each.rejected)]


def _judgements(record: PreferenceRecord, comparisons: Sequence[int]) -> list[int]:
    """What comparisons say, whichever side is named first: equal for two of which one repeats the other."""
    if not comparisons:
        return []
    prompt: object = record.prompt
    if not isinstance(prompt, str):
        prompt = [(message.role, message.content, message.rest) for message in record.prompt]  # type: ignore[union-attr]
    stem = blake2b(repr(prompt).encode(), digest_size=8)
    found = []
    for comparison in map(record.comparisons.__getitem__, comparisons):
        first, second = (record.responses[i].text for i in (comparison.chosen, comparison.rejected))
        share = comparison.preference
        if first > second:
            first, second, share = second, first, 1 - share
        others = (comparison.user, comparison.domain, record.source, record.aspect)
        judged = stem.copy()
        judged.update(f"{(round(share, 9), len(first), *others)!r}{first}{second}".encode())
        found.append(int.from_bytes(judged.digest(), "little"))
    return found


def _tells_apart(row: TokenRow) -> bool:
    """Whether a record has two responses of different tokens."""
    ends = np.cumsum(row.lengths).tolist()
    first = row.tokens[ends[0] : ends[1]]
    others = (row.tokens[start:stop] for start, stop in pairwise(ends[1:]))
    return any(not np.array_equal(first, other) for other in others)


def _list_array(parts: Sequence[NDArray[np.int32]]) -> "pa.ListArray[Any]":
    """Arrays as one column of lists."""
    import pyarrow as pa

    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.concatenate(parts))


class SplitWriter:
    """One split's Arrow stream, and the small arrays beside it.

    Attributes:
        path: Of the stream.
        names: Names that occur in each column of names.
        present: Columns that any row has, of those that it may lack.
        ids: Hash of each row's id.
        keys: What :func:`record_key` says of each row.
        groups: Hash of what decides the side of a random split, of each row.
        judgements: Hash of what each comparison says.
        judged_rows: Row of each comparison.
    """

    def __init__(self, folder: Path, split: str, source: str) -> None:
        """Open the stream.

        Args:
            folder: Of the cache.
            split: Name of the split.
            source: What records are of that do not say it themselves.
        """
        import pyarrow as pa

        self.folder, self.split, self.source = folder, split, source
        self.path = folder / f"{split}.arrow"
        self.schema = schema()
        self.stream = pa.ipc.new_stream(str(self.path), self.schema)
        self.sizes = array("i")
        self.ids = array("Q")
        self.keys = array("q")
        self.groups = array("Q")
        self.digests = bytearray()
        self.judgements, self.judged_rows = array("Q"), array("I")
        self.names: dict[str, set[str]] = {entry.stored: set() for entry in optional_columns(kind="name")}
        self.present: set[str] = set()

    def write(self, rows: Sequence[WrittenRow]) -> int:
        """Append rows.

        Args:
            rows: At least one.

        Returns:
            The largest token id of them.
        """
        import pyarrow as pa

        columns, largest = self._columns(rows)
        for record, tokens, _, _ in rows:
            judged = _judgements(record, tokens.comparisons)
            self.judgements.extend(judged)
            self.judged_rows.extend([len(self.ids)] * len(judged))
            prefix, *own = tokens.lengths.tolist()
            self.sizes.extend((len(own), prefix, sum(own), max(own)))
            self.ids.append(_hash(record.id))
            self.digests += prompt_digest(record, tokens.cut)
        self.groups.frombytes(columns["split_key"].tobytes())
        self.keys.extend(columns["record_key"])
        arrays = [
            column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
            for field in self.schema
        ]
        self.stream.write_batch(pa.record_batch(arrays, schema=self.schema))
        return largest

    def _columns(self, rows: Sequence[WrittenRow]) -> tuple[dict[str, Any], int]:
        """Every column of some rows as the stream has it, and the largest token id."""
        nothing: list[list[object]] = [[]] * len(rows)
        tokens = _list_array([row.tokens for _, row, _, _ in rows])
        columns: dict[str, Any] = {
            "id": [record.id for record, *_ in rows],
            "record_key": [
                record_key(self.source if record.source is None else record.source, self.split, record.id)
                for record, *_ in rows
            ],
            "split_key": np.asarray([_hash(record.split_key) for record, *_ in rows], np.uint64).view(
                np.int64
            ),
            "file": [file for *_, file, _ in rows],
            "line": [line for *_, line in rows],
            "prompt_length": [row.prompt_length for _, row, _, _ in rows],
            "tokens": tokens,
            "lengths": _list_array([row.lengths for _, row, _, _ in rows]),
            "response_index": [row.responses for _, row, _, _ in rows],
            "comparisons": [_pairs(record, row) for record, row, _, _ in rows],
            "comparison_index": [row.comparisons for _, row, _, _ in rows],
            **dict.fromkeys(ORIGINS, nothing),
        }
        items = _items(rows, self.split)
        columns["preference"] = [
            [float(record.comparisons[i].preference) for i in row.comparisons] for record, row, _, _ in rows
        ]
        if any(columns["comparisons"]):
            self.present.add("comparisons")
        for entry in optional_columns():
            assert entry.field is not None  # all of these are of the data
            every = list(map(attrgetter(entry.field), chain.from_iterable(items[entry.item])))
            lacking = all(value is None for value in every)
            columns[entry.stored] = (
                nothing if lacking else [_values(entry, each) for each in items[entry.item]]
            )
            if lacking:
                continue
            self.present.add(entry.stored)
            if entry.kind == "name":
                self.names[entry.stored].update({str(name) for name in every if name is not None})
        return columns, int(tokens.values.to_numpy().max())

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
