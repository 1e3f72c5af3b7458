"""Tokens on disk: written once under a fingerprint of their content, then memory-mapped.

A cache folder holds, per split, one Arrow stream and a few small arrays, and one ``meta.json``. It is written
(``cache_writer.py``) under a temporary name and renamed when complete, so a killed process leaves nothing half-made
behind.
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..columns import Item, optional_columns
from ..joins import SideTable
from .integrity import cache_damage, read_meta
from .report import SplitReport
from .rows import Origins, TokenRow

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["CacheReader", "TokenTable", "fingerprint", "lengths"]

VERSION = 6
"""Counts up when the files' content changes, so that old caches are made anew."""


CHUNK = 1024
"""Records read at a time where all are."""


def fingerprint(description: Mapping[str, object]) -> str:
    """Hash of everything that decides the tokens and the columns beside them: 16 hexadecimal digits."""
    columns = [entry.stored for entry in optional_columns()]
    text = json.dumps({"version": VERSION, "columns": columns, **description}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        self.dataset = dataset.remove_columns(["file", "line"]).with_format("arrow")

    @staticmethod
    def read(path: Path) -> "datasets.Dataset":
        """Memory-map one Arrow stream."""
        from datasets import Dataset

        return Dataset.from_file(str(path))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.sizes)

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

    def named_items(self, item: Item) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Key of the row of the data that holds each record, response or comparison, and its place there; (items,) each.

        A record that was merged from several rows has the key of the first.
        """
        keys = self.column("record_key").to_numpy()
        if item == "record":
            return keys, np.zeros(len(keys), dtype=np.int64)
        index = self.column(f"{item}_index")
        counts = lengths(index)
        named, places = np.repeat(keys, counts), _whole(index)
        rows = self.column("merged_id")
        merged = np.repeat(lengths(rows) > 0, counts)
        if merged.any():
            first = np.cumsum(lengths(rows)) - lengths(rows)
            row = np.repeat(first, counts)[merged] + _whole(self.column(f"{item}_origin"))
            named[merged] = _whole(self.column("merged_key"))[row]
            places[merged] = _whole(self.column(f"{item}_place"))
        return named, places

    def without_votes(
        self,
        name: str,
        categories: int,
        *,
        own_prior: bool,
        known: Collection[str] = (),
        joined: SideTable | None = None,
    ) -> tuple[str, int] | None:
        """First item that nobody voted on, as id of its row of the data and place in it; None if there is none.

        Args:
            name: ``votes`` or ``comparison_votes``.
            categories: Numbers per item.
            own_prior: Whether a prior that the record brings stands for votes.
            known: Ids of rows whose items need no votes.
            joined: Side table of priors, which stand for votes likewise.
        """
        of_responses = name == "votes"
        items = lengths(self.column("response_index" if of_responses else "comparison_index"))
        sums = _item_sums(self.column(name), items, categories)
        if of_responses and own_prior:
            sums = sums + _item_sums(self.column("prior"), items, categories)
            if joined is not None:
                sums = sums + (joined.find(*self.named_items("response")) >= 0)
        lacking, ends = np.flatnonzero(sums == 0), np.cumsum(items)
        numbers, first = np.unique(np.searchsorted(ends, lacking, side="right"), return_index=True)
        groups = np.split(lacking, first[1:])
        plain = self.without_tokens()
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK].tolist()
            for number, row, group in zip(some, plain[some], groups[start:], strict=False):
                names, _, places = row.items_of("response" if of_responses else "comparison")
                for item in (group - (ends[number] - items[number])).tolist():
                    if names[item] not in known:
                        return names[item], int(places[item])
        return None


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
            prompt_length=prompt_length,
            origins=Origins(*((lists[name] or no_integers)[i] for name in ORIGINS))
            if merged and merged[i]
            else None,
        )
        for i, (record_id, key, prompt_length) in enumerate(zip(*plain, strict=True))
    ]


def lengths(column: "pa.ChunkedArray") -> NDArray[np.int64]:
    """Length of every list."""
    parts = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([*parts, np.empty(0)]).astype(np.int64)


def _flat(column: "pa.ChunkedArray") -> NDArray[np.float64]:
    """The numbers of every list, one after the other."""
    return np.concatenate([*(chunk.flatten().to_numpy() for chunk in column.chunks), np.empty(0)])


def _whole(column: "pa.ChunkedArray") -> NDArray[np.int64]:
    """The whole numbers of every list, one after the other."""
    parts = [chunk.flatten().to_numpy().astype(np.int64) for chunk in column.chunks]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def _item_sums(column: "pa.ChunkedArray", items: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Sum of each item's numbers in a column of lists; 0 for the items of rows that lack them."""
    sums = np.zeros(int(items.sum()))
    sums[np.repeat(lengths(column) == items * width, items)] = _flat(column).reshape(-1, width).sum(1)
    return sums


PLAIN = ("id", "record_key", "prompt_length")
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


class CacheReader:
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

    def judgements_of_users(self) -> Counter[str]:
        """How many comparisons of the training split each user judged.

        Raises:
            ValueError: If there is no training split.
        """
        if "train" not in self.reports:
            raise ValueError(
                "loader.users tells seen from unseen users by the training split, and this data has none: name it, too, "
                "or leave loader.users as it is by default"
            )
        chunks = self.table("train").column("user").chunks
        counts: Counter[str] = Counter()
        for chunk in chunks:
            counts.update(name for name in chunk.flatten().to_pylist() if name is not None)
        return counts

    def groups_of_users(self) -> tuple[dict[str, str], int]:
        """Group of each user who has one in any split, and how many judgements have a group but no user.

        Raises:
            ValueError: If a user is of two groups.
        """
        import pyarrow as pa
        import pyarrow.compute

        pc: Any = pyarrow.compute  # made when it is imported, which type checkers do not see

        groups: dict[str, str] = {}
        nobody = 0
        if "group" not in self.present:
            return groups, nobody
        for split in self.reports:
            table = self.table(split)
            of_judgements = table.column("group")
            grouped = pc.greater(pc.list_value_length(of_judgements), 0)
            named = pc.greater(pc.list_value_length(users := table.column("user")), 0)
            both = pc.and_(grouped, named)
            nobody += len(pc.list_flatten(of_judgements.filter(pc.and_not(grouped, named))).drop_null())
            pairs = pa.table(
                [pc.list_flatten(column.filter(both)) for column in (users, of_judgements)], ["user", "group"]
            )
            for row in pairs.group_by(["user", "group"]).aggregate([([], "count_all")]).to_pylist():
                user, group, number = row.values()
                if user is None:
                    nobody += number * (group is not None)
                elif group is not None and groups.setdefault(user, group) != group:
                    both_names = " and ".join(repr(name) for name in sorted((group, groups[user])))
                    raise ValueError(
                        f"{split}: user {user!r} is of groups {both_names}, and a user has one: mend the data, or take the "
                        "column of groups out"
                    )
        return groups, nobody

    def mean_votes(self, name: str) -> NDArray[np.float64] | None:
        """Mean share of every category over the training split's judged items; None if there are none.

        The first response of a comparison is the majority's, so its categories are averaged with their mirror image:
        before anyone voted, neither side was the first.

        Args:
            name: ``votes`` (of responses) or ``comparison_votes``.
        """
        if "train" not in self.reports:
            return None
        counts = _flat(self.table("train").column(name)).reshape(-1, self.categories[name])
        counts = counts[counts.sum(1) > 0]
        if not len(counts):
            return None
        mean: NDArray[np.float64] = (counts / counts.sum(1, keepdims=True)).mean(0)
        return (mean + mean[::-1]) / 2 if name == "comparison_votes" else mean
