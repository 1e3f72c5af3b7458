"""A folder of votes: what it is of, and its shards, each written whole or not at all.

``votes.json`` says which data and members the votes are of (:mod:`.digests`), which splits, in which shards, and whether all of
them are there. A shard, ``train-00000.parquet`` and so on, holds the votes on the comparisons of so many records, in the order
of the split: ``record_key`` and ``index`` (int64), what :func:`pluralign.datamodules.joins.batch_items` calls the comparison;
``differences`` (M float32, the first response's reward minus the second's by each member, NaN where a member does not vote),
their ``mean`` and population ``std`` (float32), and ``num_votes`` (int32). Its schema's metadata repeat the digests.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..untrusted import UNREADABLE, check_rows, json_object, path_inside
from ..whole_files import written_whole
from .digests import Description, description_digest
from .strength import vote_strengths

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FEWEST_VOTES",
    "INDEX",
    "SHARD_RECORDS",
    "VERSION",
    "VoteFolder",
    "VoteShard",
    "VoteSource",
    "read_index",
    "read_shard",
    "shard_paths",
]

VERSION = 1
"""Of the format."""
INDEX = "votes.json"
SHARD_RECORDS = 4096
"""Records of a shard: what a killed run scores again at most."""
KINDS = {
    "data": str,
    "members": str,
    "num_members": int,
    "resample": str,
    "splits": dict,
    "complete": bool,
    "shard_records": int,
    "description": dict,
}
"""What ``votes.json`` says besides its version, and of which type it is."""
FEWEST_VOTES = 3
"""Members that must vote on a comparison where those that have seen it do not."""


@dataclass(frozen=True, eq=False)
class VoteShard:
    """Votes on some comparisons, in the order of the split.

    Attributes:
        record_key: Key of the row of the data that holds each comparison, (n,).
        index: Place of the comparison there, (n,).
        differences: The first response's reward minus the second's by each member, (n, M); NaN where one does not vote.
    """

    record_key: NDArray[np.int64]
    index: NDArray[np.int64]
    differences: NDArray[np.float32]


@dataclass(frozen=True)
class VoteSource:
    """What votes are of.

    Attributes:
        data: As :func:`described_data` gives it.
        members: As :func:`members_digest` gives it.
        num_members: M, >= 1.
        resample: What of the comparisons each member saw: ``none``, ``bootstrap`` or ``folds``.
    """

    data: Description
    members: str
    num_members: int
    resample: str

    @property
    def digests(self) -> dict[str, str]:
        """Of data and members."""
        return {"data": description_digest(self.data), "members": self.members}


class VoteFolder:
    """Writes votes; goes on in a folder that an interrupted run left.

    Attributes:
        path: The folder.
        shard_records: Records of a shard.
        damaged: Shards that were there and could not be read: they are made anew.
    """

    def __init__(
        self,
        path: str | Path,
        source: VoteSource,
        records: Mapping[str, int],
        *,
        shard_records: int = SHARD_RECORDS,
        overwrite: bool = False,
    ) -> None:
        """Open the folder, or make it.

        Args:
            path: Where it lies or will lie.
            source: What the votes are of.
            records: Number of records of each split that is voted on; what the folder has of other splits stays.
            shard_records: Records of a shard, >= 1; a folder that is gone on with keeps its own.
            overwrite: Whether votes of other data or members are replaced.

        Raises:
            ValueError: If votes of other data or members are there; says which of the two, and what to do.
        """
        self.path, self.source, self.records = Path(path), source, dict(records)
        self.shard_records, self.damaged = shard_records, list[Path]()
        splits: dict[str, Any] = {}
        if (self.path / INDEX).is_file() and (before := self._before(overwrite)):
            self.shard_records = before["shard_records"]
            splits = before["splits"]
        self.path.mkdir(parents=True, exist_ok=True)
        self._splits: dict[str, dict[str, Any]] = splits | {
            split: {"shards": self.names(split)} for split in self.records
        }
        self._write_index(complete=False)

    def _before(self, overwrite: bool) -> dict[str, Any] | None:
        """What is there, if these votes go on with it; without it, all of it is put away."""
        try:
            before = read_index(self.path)
            there = {name: before[name] for name in self.source.digests}
        except ValueError:
            if not overwrite:
                raise
            before, there = {"splits": {}}, {}
        if there == self.source.digests:
            return before
        if not overwrite:
            other = " and ".join(
                name for name, digest in self.source.digests.items() if there[name] != digest
            )
            raise ValueError(
                f"{self.path} holds votes of other {other}: name another folder, or add --overwrite to replace them"
            )
        shards = [path for split in before["splits"] for path in shard_paths(self.path, before, split)]
        (self.path / INDEX).unlink()  # first: without it nothing is taken for votes
        for path in shards:
            path.unlink(missing_ok=True)
        return None

    def names(self, split: str) -> list[str]:
        """Files of a split's shards, in order."""
        number = -(-self.records[split] // self.shard_records)
        return [f"{split}-{shard:05d}.parquet" for shard in range(number)]

    def span(self, split: str, shard: int) -> tuple[int, int]:
        """First record of a shard, and the one after its last."""
        first = shard * self.shard_records
        return first, min(first + self.shard_records, self.records[split])

    def pending(self, split: str) -> list[int]:
        """Shards of a split that are not there yet, ascending; one that is damaged counts as such."""
        return [shard for shard in range(len(self.names(split))) if not self._has(split, shard)]

    def _has(self, split: str, shard: int) -> bool:
        from pyarrow import ArrowException, parquet

        path = self.path / self.names(split)[shard]
        if not path.is_file():
            return False
        try:
            told = _told(parquet.read_schema(str(path)))
        except (ArrowException, SystemError, *UNREADABLE):
            self.damaged.append(path)
            return False
        return told == self._metadata(split, shard)

    def _metadata(self, split: str, shard: int) -> dict[str, str]:
        first, stop = self.span(split, shard)
        told = {"version": VERSION, "num_members": self.source.num_members, "split": split}
        return {**self.source.digests, **{name: str(value) for name, value in told.items()}} | {
            "records": f"{first}-{stop}"
        }

    def write(self, split: str, shard: int, votes: VoteShard) -> None:
        """Write a shard: it is there once all of it is on the disk.

        Args:
            split: Of its records.
            shard: Its number.
            votes: On their comparisons.

        Raises:
            ValueError: If a difference is infinite, or shapes do not fit.
        """
        from pyarrow import parquet

        if votes.differences.shape != (len(votes.record_key), self.source.num_members):
            raise ValueError(
                f"differences of {len(votes.record_key):,} comparisons must be ({len(votes.record_key)}, "
                f"{self.source.num_members}), got {votes.differences.shape}"
            )
        if np.isinf(votes.differences).any():
            raise ValueError(f"{self.path}: a difference of shard {shard} of {split} is infinite")
        table = _table(votes).replace_schema_metadata(self._metadata(split, shard))
        with written_whole(self.path / self.names(split)[shard]) as stream:
            parquet.write_table(table, stream, write_page_checksum=True)

    def read(self, split: str, shard: int) -> VoteShard:
        """A shard that is there."""
        return read_shard(self.path / self.names(split)[shard], self._metadata(split, shard)).votes

    def finish(self, **said: object) -> None:
        """Say that all is there.

        Args:
            **said: What else ``votes.json`` is to hold, plain values.

        Raises:
            ValueError: If a shard is missing.
        """
        from pyarrow import parquet

        for split in self.records:
            if missing := self.pending(split):
                raise ValueError(f"{self.path}: {len(missing):,} shards of {split} are missing")
            files = [self.path / name for name in self.names(split)]
            self._splits[split]["comparisons"] = sum(parquet.read_metadata(file).num_rows for file in files)
            self._splits[split]["records"] = self.records[split]
        self._write_index(complete=all("comparisons" in entry for entry in self._splits.values()), **said)

    def _write_index(self, *, complete: bool, **said: object) -> None:
        content = {
            "version": VERSION,
            **self.source.digests,
            "num_members": self.source.num_members,
            "resample": self.source.resample,
            "splits": self._splits,
            "shard_records": self.shard_records,
            "complete": complete,
            **said,
            "description": self.source.data,
        }
        with written_whole(self.path / INDEX) as stream:
            stream.write(f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())


class ReadShard(NamedTuple):
    """All that a shard holds."""

    votes: VoteShard
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    num_votes: NDArray[np.int32]


def read_index(folder: Path) -> dict[str, Any]:
    """What ``votes.json`` says.

    Raises:
        FileNotFoundError: If there is none; says how to make one.
        ValueError: If it is damaged, or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no votes (looked for {path.absolute()}): write some with `pluralign vote --output {folder}`"
        )
    try:
        content = json_object(path)
        version = content["version"]
        missing = [name for name in KINDS if name not in content]
        wrong = [name for name, kind in KINDS.items() if name in content and type(content[name]) is not kind]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): vote anew with `pluralign vote --overwrite`"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version!r}, this program reads {VERSION}: vote anew into another folder"
        )
    if missing:
        raise ValueError(
            f"{path} is damaged (it lacks {', '.join(missing)}): vote anew with `pluralign vote --overwrite`"
        )
    for name in wrong:
        raise ValueError(
            f"{path} is damaged ({name} must be of type {KINDS[name].__name__}, got {content[name]!r:.80}): vote anew with "
            "`pluralign vote --overwrite`"
        )
    for split in content["splits"]:
        shard_paths(folder, content, split)
    return content


def shard_paths(folder: Path, said: Mapping[str, Any], split: str) -> list[Path]:
    """Files of a split's shards, as ``votes.json`` names them: all of them the folder's own.

    Args:
        folder: Of the votes.
        said: What ``votes.json`` says.
        split: One of its splits.

    Raises:
        ValueError: If one is not, or what is said of the split is nothing of the kind.
    """
    entry = said["splits"][split]
    try:
        counts = [entry.get(name, 0) for name in ("records", "comparisons")]
        if any(type(count) is not int or count < 0 for count in counts) or said["shard_records"] < 1:
            raise ValueError(f"records and comparisons of {split} must be whole numbers, got {counts}")
        if said["complete"] and not {"records", "comparisons"} <= entry.keys():
            raise ValueError(f"it does not say how many records and comparisons {split} has")
        return [path_inside(folder, name, links=False) for name in entry["shards"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / INDEX} is damaged ({error}): remove the folder, and vote anew with `pluralign vote`"
        ) from error


def read_shard(path: Path, metadata: Mapping[str, str]) -> ReadShard:
    """Read one shard, every byte of it compared with its checksums.

    Args:
        path: Its file.
        metadata: What its schema must say; what it says besides counts for nothing.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or of other data or members; names it.
    """
    from pyarrow import ArrowException, parquet

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run the `pluralign vote` of its folder again, which makes what is missing"
        )
    try:
        with parquet.ParquetFile(str(path), page_checksum_verification=True) as file:
            check_rows(file.metadata.num_rows, file.metadata.num_columns, path.stat().st_size)
            table: Any = file.read()
        told = _told(table.schema)
        shard = _arrays(table)
    except (ArrowException, SystemError, *UNREADABLE) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it and run the `pluralign vote` of its folder again, which makes what is "
            "missing"
        ) from error
    if other := [name for name, value in metadata.items() if told.get(name) != value]:
        raise ValueError(
            f"{path} is of other votes than its folder's {INDEX} ({', '.join(other)} differ): remove it and vote again"
        )
    return shard


def _told(schema: "pa.Schema") -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}


def _table(votes: VoteShard) -> "pa.Table":
    import pyarrow as pa

    mean, std, num_votes = vote_strengths(votes.differences)
    values = pa.array(np.ascontiguousarray(votes.differences, np.float32).reshape(-1))
    columns = {
        "record_key": pa.array(np.asarray(votes.record_key, np.int64)),
        "index": pa.array(np.asarray(votes.index, np.int64)),
        "differences": pa.FixedSizeListArray.from_arrays(values, votes.differences.shape[1]),
        "mean": pa.array(mean),
        "std": pa.array(std),
        "num_votes": pa.array(num_votes),
    }
    return pa.table(columns)


def _arrays(table: "pa.Table") -> ReadShard:
    """Columns of a shard's table.

    Raises:
        KeyError: If one is missing.
        ValueError: If one is of another type, or a value is missing or does not fit the others.
    """
    import pyarrow as pa

    kinds = {"record_key": pa.int64(), "index": pa.int64(), "mean": pa.float32(), "std": pa.float32()}
    kinds["num_votes"] = pa.int32()
    for name, kind in kinds.items():
        if table.column(name).type != kind or table.column(name).null_count:
            raise ValueError(f"{name} is {table.column(name).type} and not {kind} throughout")
    lists: Any = table.column("differences").combine_chunks()
    if not pa.types.is_fixed_size_list(lists.type) or lists.type.value_type != pa.float32():
        raise ValueError(f"differences is {lists.type} and not a fixed-size list of float32")
    plain = {name: table.column(name).to_numpy() for name in kinds}
    differences = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, lists.type.list_size)
    voted = np.isfinite(differences).sum(1)
    mean, num_votes = plain["mean"], plain["num_votes"]
    if not np.array_equal(voted, num_votes):
        raise ValueError("num_votes is not how many of the differences are numbers")
    if not np.isfinite(np.stack([mean, plain["std"]])[:, num_votes > 0]).all():
        raise ValueError("a mean or std of voted comparisons is not finite")
    votes = VoteShard(plain["record_key"], plain["index"], differences)
    return ReadShard(votes, mean, plain["std"], num_votes)
