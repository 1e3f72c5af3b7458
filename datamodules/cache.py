"""Tokens on disk: written once under a fingerprint of their content, then memory-mapped.

A cache folder holds, per split, one Arrow stream and a few small arrays, and one ``meta.json``. It is written
under a temporary name and renamed when complete, so a killed process leaves nothing half-made behind.
"""

import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .record import PreferenceRecord, RecordError
from .text import TokenizedRecord

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["CacheReader", "CacheWriter", "SplitReport", "TokenRow", "TokenTable", "fingerprint"]

VERSION = 1
"""Counts up when the files' content changes, so that old caches are made anew."""

OPTIONAL = ("user", "domain", "margin", "weight", "strength", "score", "votes", "comparison_votes")
"""Columns that a split may lack; a batch holds a key if any record of any split has it."""

PRESENT = frozenset((*OPTIONAL, "comparisons"))
"""What a data set is asked about, so that all of its batches have the same keys."""


def fingerprint(description: Mapping[str, object]) -> str:
    """Hash of everything that decides the tokens: 16 hexadecimal digits."""
    text = json.dumps({"version": VERSION, **description}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class SplitReport:
    """What became of a split's rows; every loss is counted by reason.

    Attributes:
        rows: Rows read.
        records: Records kept.
        responses: Responses kept.
        comparisons: Comparisons kept.
        cut_prompts: Records whose prompt was cut from the left.
        cut_tokens: Tokens cut in all.
        invalid: Rows skipped, by reason.
        dropped: Parts of valid rows dropped, by reason.
        in_train: Records whose prompt (or group) also occurs in the training split.
        first_errors: The first messages of skipped rows.
    """

    rows: int = 0
    records: int = 0
    responses: int = 0
    comparisons: int = 0
    cut_prompts: int = 0
    cut_tokens: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    in_train: int = 0
    first_errors: list[str] = field(default_factory=list)

    def skip(self, error: RecordError) -> None:
        """Count a row that is skipped."""
        self.invalid[error.reason] += 1
        if len(self.first_errors) < 5:
            self.first_errors.append(str(error))

    def __str__(self) -> str:
        """One line: what was kept, then every loss by reason."""
        parts = [
            f"{self.records:,} records of {self.rows:,} rows, {self.responses:,} responses, {self.comparisons:,} comparisons"
        ]
        for title, counts in (("skipped", self.invalid), ("dropped", self.dropped)):
            if counts:
                parts.append(
                    f"{title}: "
                    + ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
                )
        if self.cut_prompts:
            parts.append(f"{self.cut_prompts:,} prompts cut by {self.cut_tokens:,} tokens")
        if self.in_train:
            parts.append(f"{self.in_train:,} records share a prompt with the training split")
        return "; ".join(parts)


class TokenRow(NamedTuple):
    """One record as the cache holds it; the arrays are views of the memory map.

    Attributes:
        id: The record's id.
        tokens: Prefix, then each response's own tokens, int32.
        lengths: Of the prefix and of each response's own part, int32, (1 + k,).
        response_index: Original places of the responses, int32, (k,).
        comparisons: Chosen and rejected among the kept responses, int32, (p, 2).
        comparison_index: Original places of the comparisons, int32, (p,).
        preference: float32, (p,).
        columns: The optional columns the record has.
    """

    id: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    response_index: NDArray[np.int32]
    comparisons: NDArray[np.int32]
    comparison_index: NDArray[np.int32]
    preference: NDArray[np.float32]
    columns: dict[str, NDArray[np.float32] | list[str | None]]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    integers = ("tokens", "lengths", "response_index", "comparisons", "comparison_index")
    floats = ("preference", "margin", "weight", "strength", "score", "votes", "comparison_votes")
    return pa.schema(
        [("id", pa.string()), ("file", pa.string()), ("line", pa.int64())]
        + [(name, pa.list_(pa.int32())) for name in integers]
        + [(name, pa.list_(pa.float32())) for name in floats]
        + [(name, pa.list_(pa.string())) for name in ("user", "domain")]
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _flat(values: Sequence[float | None], missing: float) -> list[float]:
    """Values with ``missing`` in place of None, or nothing at all if every one is None."""
    if all(value is None for value in values):
        return []
    return [missing if value is None else value for value in values]


def _flat_votes(field_name: str, votes: Sequence[tuple[float, ...] | None]) -> list[float]:
    sizes = {len(counts) for counts in votes if counts is not None}
    if not sizes:
        return []
    size = sizes.pop()
    return [count for counts in votes for count in (counts if counts is not None else (0.0,) * size)]


def _columns(record: PreferenceRecord, tokens: TokenizedRecord) -> dict[str, list[object]]:
    """Everything of a record but its tokens, for the kept responses and comparisons."""
    place = {response: i for i, response in enumerate(tokens.responses)}
    responses = [record.responses[i] for i in tokens.responses]
    comparisons = [record.comparisons[i] for i in tokens.comparisons]
    users, domains = [c.user for c in comparisons], [c.domain for c in comparisons]
    columns: dict[str, Sequence[object]] = {
        "response_index": tokens.responses,
        "comparisons": [place[side] for c in comparisons for side in (c.chosen, c.rejected)],
        "comparison_index": tokens.comparisons,
        "preference": [c.preference for c in comparisons],
        "margin": _flat([c.margin for c in comparisons], 0.0),
        "weight": _flat([c.weight for c in comparisons], 1.0),
        "strength": _flat([c.strength for c in comparisons], float("nan")),
        "comparison_votes": _flat_votes("comparisons", [c.votes for c in comparisons]),
        "score": _flat([r.score for r in responses], float("nan")),
        "votes": _flat_votes("responses", [r.votes for r in responses]),
        "user": users if any(user is not None for user in users) else [],
        "domain": domains if any(domain is not None for domain in domains) else [],
    }
    return {name: list(values) for name, values in columns.items()}


class _SplitWriter:
    """One split's Arrow stream, and the small arrays beside it."""

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow as pa

        self.folder, self.split = folder, split
        self.path = folder / f"{split}.arrow"
        self.schema = _schema()
        self.stream = pa.ipc.new_stream(str(self.path), self.schema)
        self.sizes = array("i")
        self.ids = array("Q")
        self.groups = array("Q")
        self.names: dict[str, set[str]] = {"user": set(), "domain": set()}
        self.present: set[str] = set()

    def write(self, rows: Sequence[tuple[PreferenceRecord, TokenizedRecord, str, int]]) -> None:
        import pyarrow as pa

        data: dict[str, list[object]] = {name: [] for name in self.schema.names}
        for record, tokens, file, line in rows:
            columns = _columns(record, tokens)
            data["id"].append(record.id)
            data["file"].append(file)
            data["line"].append(line)
            data["tokens"].append(tokens.tokens)
            data["lengths"].append(tokens.lengths)
            for name, values in columns.items():
                data[name].append(values)
                if values and name in PRESENT:
                    self.present.add(name)
            for name, names in self.names.items():
                names.update(str(value) for value in columns[name] if value is not None)
            prefix, own = int(tokens.lengths[0]), tokens.lengths[1:]
            self.sizes.extend((len(own), prefix, int(own.sum()), int(own.max())))
            self.ids.append(_hash(record.id))
            self.groups.append(_hash(record.split_key))
        self.stream.write_batch(
            pa.record_batch([pa.array(data[f.name], f.type) for f in self.schema], schema=self.schema)
        )

    def close(self) -> None:
        self.stream.close()
        np.save(
            self.folder / f"{self.split}.sizes.npy", np.asarray(self.sizes, dtype=np.int32).reshape(-1, 4)
        )

    def duplicates(self) -> NDArray[np.int64]:
        """Rows whose id occurred before, ascending."""
        ids = np.asarray(self.ids, dtype=np.uint64)
        _, first = np.unique(ids, return_index=True)
        again = np.ones(len(ids), dtype=bool)
        again[first] = False
        return np.flatnonzero(again)


def _remove_left_overs(folder: Path) -> None:
    """Remove what processes of this machine left unfinished when they were killed."""
    prefix = f"{folder.name}.{socket.gethostname()}."
    for path in folder.parent.glob(f"{glob.escape(prefix)}*.partial"):
        try:
            os.kill(int(path.name.removeprefix(prefix).split(".")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # alive under another user, or not ours


class CacheWriter:
    """Write a cache folder; use as a context manager, which completes or removes it."""

    def __init__(self, folder: Path, splits: Sequence[str], *, on_invalid: str) -> None:
        """Open the streams under a temporary name.

        Args:
            folder: Where the cache will stand.
            splits: Names of the splits.
            on_invalid: ``error`` or ``skip``.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder, self.on_invalid = folder, on_invalid
        _remove_left_overs(folder)
        owner = f"{folder.name}.{socket.gethostname()}.{os.getpid()}."
        self.partial = Path(tempfile.mkdtemp(prefix=owner, suffix=".partial", dir=folder.parent))
        self.reports = {split: SplitReport() for split in splits}
        self._splits = {split: _SplitWriter(self.partial, split) for split in splits}
        self._categories: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def skip(self, split: str, error: RecordError) -> None:
        """Count an invalid row, or stop if the user did not choose to skip.

        Raises:
            RecordError: If ``on_invalid`` is ``error``.
        """
        if self.on_invalid == "error":
            raise error
        self.reports[split].skip(error)

    def write(self, split: str, rows: Sequence[tuple[PreferenceRecord, TokenizedRecord, str, int]]) -> None:
        """Append records with their tokens and places.

        Raises:
            RecordError: If votes have another number of categories than those before, unless skipped.
        """
        rows = [row for row in rows if self._same_categories(split, *row)]
        if not rows:
            return
        report = self.reports[split]
        for _, tokens, _, _ in rows:
            report.records += 1
            report.responses += len(tokens.responses)
            report.comparisons += len(tokens.comparisons)
            report.cut_prompts += tokens.cut > 0
            report.cut_tokens += tokens.cut
            report.dropped.update(tokens.dropped)
        self._splits[split].write(rows)

    def finish(self, format_description: Mapping[str, object]) -> None:
        """Check what only the whole shows, write ``meta.json`` and put the folder in place.

        Raises:
            RecordError: For an id that occurs twice, if ``on_invalid`` is ``error``.
        """
        for writer in self._splits.values():
            writer.close()
        for split, writer in self._splits.items():
            self._settle_duplicates(split, writer)
        train = self._splits.get("train")
        for split, writer in self._splits.items():
            if train is not None and writer is not train:
                shared = np.isin(np.asarray(writer.groups, np.uint64), np.asarray(train.groups, np.uint64))
                self.reports[split].in_train = int(shared.sum())
        named = {
            name: sorted(
                set().union(*(writer.names[name] for writer in [train or next(iter(self._splits.values()))]))
            )
            for name in ("user", "domain")
        }
        meta = {
            "format": dict(format_description),
            "reports": {split: vars(report) for split, report in self.reports.items()},
            "users": named["user"],
            "domains": named["domain"],
            "present": sorted(set().union(*(writer.present for writer in self._splits.values()))),
            "categories": self._categories,
        }
        (self.partial / "meta.json").write_text(json.dumps(meta))
        try:
            os.replace(self.partial, self.folder)
        except OSError:
            if (self.folder / "meta.json").is_file():
                return  # another process finished the same cache first; its content is the same by its fingerprint
            # What stands there is no complete cache: someone deleted parts of it.
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.partial, self.folder)

    def _same_categories(
        self, split: str, record: PreferenceRecord, tokens: TokenizedRecord, file: str, line: int
    ) -> bool:
        votes = {
            "votes": [response.votes for response in record.responses],
            "comparison_votes": [comparison.votes for comparison in record.comparisons],
        }
        sizes = {
            name: next(len(count) for count in counts if count is not None)
            for name, counts in votes.items()
            if any(count is not None for count in counts)
        }
        for name, size in sizes.items():
            if size != self._categories.get(name, size):
                allowed = f"{self._categories[name]} categories, as in the records before"
                self.skip(
                    split, RecordError(name, size, allowed, reason="out of range", file=file, line=line)
                )
                return False
        self._categories.update(sizes)  # only a record that is kept decides
        return True

    def _settle_duplicates(self, split: str, writer: _SplitWriter) -> None:
        again = writer.duplicates()
        if not len(again):
            return
        table = TokenTable.read(writer.path)
        for row in again.tolist():
            place = table[row : row + 1]
            allowed = "an id that occurs once in its split"
            self.skip(
                split,
                RecordError(
                    "id",
                    place["id"][0],
                    allowed,
                    reason="duplicate id",
                    file=place["file"][0],
                    line=place["line"][0],
                ),
            )
        keep = np.setdiff1d(np.arange(len(writer.ids)), again)
        np.save(self.partial / f"{split}.keep.npy", keep)
        writer.groups = array("Q", np.asarray(writer.groups, np.uint64)[keep].tolist())
        removed = table.select(again)
        report = self.reports[split]
        report.records -= len(again)
        report.responses -= sum(map(len, removed["response_index"]))
        report.comparisons -= sum(map(len, removed["comparison_index"]))


class TokenTable(torch.utils.data.Dataset[list[TokenRow]]):
    """Rows of one split, read from the memory map; indexed by a list of rows at a time; picklable."""

    def __init__(self, folder: Path, split: str) -> None:
        """Map the split's files.

        Args:
            folder: A complete cache folder.
            split: Name of the split.
        """
        dataset = self.read(folder / f"{split}.arrow")
        self.sizes: NDArray[np.int32] = np.load(folder / f"{split}.sizes.npy", mmap_mode="r")
        keep = folder / f"{split}.keep.npy"
        if keep.is_file():
            kept = np.load(keep)
            dataset, self.sizes = dataset.select(kept), self.sizes[kept]
        self.dataset = dataset.with_format("arrow")

    @staticmethod
    def read(path: Path) -> "datasets.Dataset":
        """Memory-map one Arrow stream."""
        from datasets import Dataset

        return Dataset.from_file(str(path))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.sizes)

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        table: Any = self.dataset[rows]  # a pyarrow table, by its format
        ids = table.column("id").to_pylist()
        lists = {name: list(_slices(table.column(name))) for name in table.column_names if name not in PLAIN}
        out = []
        for i, record_id in enumerate(ids):
            row: dict[str, Any] = {name: values[i] for name, values in lists.items()}
            out.append(
                TokenRow(
                    id=record_id,
                    tokens=row["tokens"],
                    lengths=row["lengths"],
                    response_index=row["response_index"],
                    comparisons=row["comparisons"].reshape(-1, 2),
                    comparison_index=row["comparison_index"],
                    preference=row["preference"],
                    columns={name: row[name] for name in OPTIONAL if len(row[name])},
                )
            )
        return out


PLAIN = ("id", "file", "line")


def _slices(column: "pa.ChunkedArray") -> Iterator[NDArray[np.generic] | list[str | None]]:
    """Each row's list: a view for numbers, a Python list for strings."""
    import pyarrow as pa

    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        if pa.types.is_string(chunk.type.value_type):
            yield from chunk.to_pylist()
            continue
        values = chunk.values.to_numpy(zero_copy_only=True)
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            yield values[start:stop]


class CacheReader:
    """A complete cache folder."""

    def __init__(self, folder: Path) -> None:
        """Read its description.

        Args:
            folder: A folder that :class:`CacheWriter` completed.
        """
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text())
        self.format: dict[str, object] = meta["format"]
        self.users: list[str] = meta["users"]
        self.domains: list[str] = meta["domains"]
        self.present: frozenset[str] = frozenset(meta["present"])
        self.categories: dict[str, int] = meta["categories"]
        self.reports = {split: SplitReport(**parts) for split, parts in meta["reports"].items()}
        for report in self.reports.values():
            report.invalid, report.dropped = Counter(report.invalid), Counter(report.dropped)

    def table(self, split: str) -> TokenTable:
        """Map one split."""
        return TokenTable(self.folder, split)
