"""Tokens on disk: written once under a fingerprint of their content, then memory-mapped.

A cache folder holds, per split, one Arrow stream and a few small arrays, and one ``meta.json``. It is written
(``cache_writer.py``) under a temporary name and renamed when complete, so a killed process leaves nothing half-made
behind.
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..columns import Item, optional_columns
from ..joins import SideTable
from ..records import RecordError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = [
    "CacheReader",
    "SplitReport",
    "TokenRow",
    "TokenTable",
    "fingerprint",
    "prompt_alone",
    "take_row_comparisons",
    "take_row_responses",
    "without_prompt",
]

VERSION = 4
"""Counts up when the files' content changes, so that old caches are made anew."""


def fingerprint(description: Mapping[str, object]) -> str:
    """Hash of everything that decides the tokens and the columns beside them: 16 hexadecimal digits."""
    columns = [entry.stored for entry in optional_columns()]
    text = json.dumps({"version": VERSION, "columns": columns, **description}, sort_keys=True, default=str)
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


Columns = dict[str, NDArray[np.float32] | list[str | None]]


class TokenRow(NamedTuple):
    """One record as the cache holds it; the arrays are views of what was read.

    Attributes:
        id: The record's id.
        tokens: Prefix, then each response's own tokens, int32; empty where they are not read.
        lengths: Of the prefix and of each response's own part, int32, (1 + k,).
        response_index: Original places of the responses, int32, (k,).
        comparisons: Chosen and rejected among the kept responses, int32, (p, 2).
        comparison_index: Original places of the comparisons, int32, (p,).
        preference: float32, (p,).
        columns: The optional columns the record has, by their stored names; those of a record hold one value.
        record_key: What :func:`record_key` says of the record.
        prompt_length: Leading tokens that are the prompt's own; at most the prefix.
        places: Rows of a feature store that hold the responses, int64, (k,); None without a store.
        prompt_place: Row of the feature store that holds the prompt; -1 for none.
    """

    id: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    response_index: NDArray[np.int32]
    comparisons: NDArray[np.int32]
    comparison_index: NDArray[np.int32]
    preference: NDArray[np.float32]
    columns: Columns
    record_key: int = 0
    prompt_length: int = 0
    places: NDArray[np.int64] | None = None
    prompt_place: int = -1


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

    def rows(self, chunk: int = 1024) -> Iterator[TokenRow]:
        """Every record in order."""
        for start in range(0, len(self), chunk):
            yield from _token_rows(self.dataset[start : start + chunk])

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        return _token_rows(self.dataset[rows])

    def named_items(self, item: Item) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Record key of every record, response or comparison, and its place in its record; (items,) each."""
        keys = self.column("record_key").to_numpy()
        if item == "record":
            return keys, np.zeros(len(keys), dtype=np.int64)
        places = self.column(f"{item}_index")
        return np.repeat(keys, lengths(places)), _flat(places).astype(np.int64)

    def without_votes(
        self,
        name: str,
        categories: int,
        *,
        own_prior: bool,
        known: Collection[str] = (),
        joined: SideTable | None = None,
    ) -> tuple[str, int] | None:
        """First item that nobody voted on, as record id and place in the record; None if there is none.

        Args:
            name: ``votes`` or ``comparison_votes``.
            categories: Numbers per item.
            own_prior: Whether a prior that the record brings stands for votes.
            known: Ids of records whose items need no votes.
            joined: Side table of priors, which stand for votes likewise.
        """
        of_responses = name == "votes"
        places = self.column("response_index" if of_responses else "comparison_index")
        items = lengths(places)
        sums = _item_sums(self.column(name), items, categories)
        if of_responses and own_prior:
            sums = sums + _item_sums(self.column("prior"), items, categories)
            if joined is not None:
                sums = sums + (joined.find(*self.named_items("response")) >= 0)
        ends, ids = np.cumsum(items), self.column("id")
        for item in np.flatnonzero(sums == 0).tolist():
            row = int(np.searchsorted(ends, item, side="right"))
            record: str = ids[row].as_py()
            if record not in known:
                return record, places[row].as_py()[item - int(ends[row] - items[row])]
        return None


def _token_rows(table: Any) -> list[TokenRow]:  # noqa: ANN401  a pyarrow table, which datasets does not say
    """Rows of a table; a column of which none of them has anything costs nothing."""
    lists = {name: _slices(table.column(name)) for name in table.column_names if name not in PLAIN}
    no_integers: list[Any] = [np.empty(0, np.int32)] * table.num_rows
    no_floats: list[Any] = [np.empty(0, np.float32)] * table.num_rows
    tokens = lists.get("tokens") or no_integers
    pairs, places = lists["comparisons"] or no_integers, lists["comparison_index"] or no_integers
    preferences = lists["preference"] or no_floats
    optional = [(entry.stored, lists[entry.stored]) for entry in optional_columns() if lists[entry.stored]]
    plain = [table.column(name).to_pylist() for name in PLAIN]
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


def _item_sums(column: "pa.ChunkedArray", items: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Sum of each item's numbers in a column of lists; 0 for the items of rows that lack them."""
    sums = np.zeros(int(items.sum()))
    sums[np.repeat(lengths(column) == items * width, items)] = _flat(column).reshape(-1, width).sum(1)
    return sums


PLAIN = ("id", "record_key", "prompt_length")
"""Columns of one value a record; all others are lists."""


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


def without_prompt(row: TokenRow) -> TokenRow:
    """The record as if it had no prompt: each response on its own."""
    lengths = row.lengths.copy()
    lengths[0] -= row.prompt_length
    return row._replace(tokens=row.tokens[row.prompt_length :], lengths=lengths, prompt_length=0)


def prompt_alone(row: TokenRow) -> TokenRow:
    """The prompt as a record of its own whose one response is its last token; of an empty one, a token 0."""
    tokens = row.tokens[: row.prompt_length] if row.prompt_length else np.zeros(1, np.int32)
    lengths = np.asarray([len(tokens) - 1, 1], dtype=np.int32)
    return row._replace(tokens=tokens, lengths=lengths, response_index=np.zeros(1, np.int32), columns={})


def take_row_comparisons(row: TokenRow, keep: NDArray[np.bool_]) -> TokenRow:
    """The record with some of its comparisons, (p,) of them kept or not."""
    return row._replace(
        comparisons=row.comparisons[keep],
        comparison_index=row.comparison_index[keep],
        preference=row.preference[keep],
        columns=_take("comparison", row.columns, np.flatnonzero(keep), len(keep)),
    )


def take_row_responses(row: TokenRow, kept: Sequence[int]) -> TokenRow:
    """The record with some of its responses, and without comparisons."""
    ends = np.cumsum(row.lengths)
    places = np.asarray(kept, dtype=np.int64)
    row = take_row_comparisons(row, np.zeros(len(row.comparisons), dtype=bool))
    return row._replace(
        tokens=np.concatenate([row.tokens[: ends[0]], *(row.tokens[ends[i] : ends[i + 1]] for i in kept)]),
        lengths=row.lengths[[0, *(i + 1 for i in kept)]],
        response_index=row.response_index[places],
        places=None if row.places is None else row.places[places],
        columns=_take("response", row.columns, places, len(row.response_index)),
    )


def _take(item: Item, columns: Columns, places: NDArray[np.int64], number: int) -> Columns:
    """Columns with the values at some of a record's ``number`` items of a kind."""
    taken = dict(columns)
    for entry in optional_columns(item):
        values = columns.get(entry.stored)
        if isinstance(values, list):
            taken[entry.stored] = [values[place] for place in places.tolist()]
        elif values is not None:
            taken[entry.stored] = values.reshape(number, -1)[places].reshape(-1)
    return taken


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
        import pyarrow.compute as pc

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
