"""VoteTable: all votes of a folder, found by comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..joins import SideTable
from .digests import DescribedData, Description, check_same_data
from .folder import VERSION, ReadShard, read_index, read_shard, shard_paths

__all__ = ["VoteTable"]


@dataclass(frozen=True, eq=False)
class VoteTable:
    """Votes on comparisons by record key and place in the record, in the order of the splits.

    Attributes:
        record_key: Key of the row of the data that holds each comparison, (n,) int64.
        index: Place of the comparison there, (n,) int64.
        differences: The first response's reward minus the second's by each member, (n, M) float32; NaN where a member does
            not vote.
        mean: Over the members that vote, (n,) float32: the signed strength of the preference; NaN where nobody votes.
        std: Their population standard deviation, (n,) float32, >= 0; NaN where nobody votes.
        num_votes: How many members vote, (n,) int32.
        splits: Number of comparisons of each split, in their order.
        path: Folder that they were loaded from.
        data: Digest of the data.
        members: Digest of the members' weights and settings.
        resample: What of the comparisons each member saw: ``none``, ``bootstrap`` or ``folds``.
        description: What ``data`` is the digest of.
    """

    record_key: NDArray[np.int64]
    index: NDArray[np.int64]
    differences: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    num_votes: NDArray[np.int32]
    splits: dict[str, int]
    path: Path
    data: str
    members: str
    resample: str
    description: Description
    _items: SideTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare to find.

        Raises:
            ValueError: If a comparison has two entries.
        """
        mean = np.where(self.num_votes > 0, self.mean, 0)
        items = SideTable("strength", self.record_key, self.index, mean, path=str(self.path))
        object.__setattr__(self, "_items", items)

    def __len__(self) -> int:
        """Number of comparisons."""
        return len(self.record_key)

    @property
    def num_members(self) -> int:
        """M."""
        return int(self.differences.shape[1])

    def find(self, record_key: ArrayLike, index: ArrayLike) -> NDArray[np.int64]:
        """Entries of comparisons, (m,); -1 where one has none.

        Args:
            record_key: Keys of their rows of the data, (m,).
            index: Their places there, (m,).
        """
        return self._items.find(record_key, index)

    def side_table(self, column: str = "strength") -> SideTable:
        """The mean as a side table, for ``loader.joins``; comparisons that nobody votes on are left out.

        Args:
            column: Which column of comparisons it is to be, a number.

        Raises:
            ValueError: If there is no such column, or it cannot hold the values.
        """
        voted = self.num_votes > 0
        return SideTable(column, self.record_key[voted], self.index[voted], self.mean[voted])

    def check_data(self, data: DescribedData) -> None:
        """Refuse data on which these votes were not cast; a mixture may have other sources besides.

        Raises:
            ValueError: Saying what differs, and what to do.
        """
        check_same_data(self.description, data, f"the votes in {self.path} are")

    @classmethod
    def load(cls, folder: str | Path, splits: Sequence[str] | None = None) -> "VoteTable":
        """Read the votes of some splits.

        Args:
            folder: Where ``pluralign vote`` wrote them.
            splits: Which splits; None for all that were voted on.

        Raises:
            FileNotFoundError: If there are none, or a shard is missing; names it.
            ValueError: If they are not complete, a shard is damaged or of other data or members, a split was not voted on,
                or a comparison has two entries; names file or split.
        """
        path = Path(folder)
        said = read_index(path)
        if not said["complete"]:
            raise ValueError(
                f"the votes in {path} are not complete: run the same `pluralign vote --output {path}` again, which goes on "
                "where it was"
            )
        wanted = list(said["splits"]) if splits is None else list(splits)
        if unknown := [split for split in wanted if split not in said["splits"]]:
            raise ValueError(
                f"{path} holds no votes on the {unknown[0]} split, only on {', '.join(said['splits'])}: vote on it with "
                f"`pluralign vote --splits {unknown[0]} --output {path}`"
            )
        shards: list[ReadShard] = []
        counts: dict[str, int] = {}
        for split in wanted:
            mine = _shards(path, said, split)
            counts[split] = sum(len(shard.mean) for shard in mine)
            shards += mine
        width = said["num_members"]
        empty = np.empty(0, np.int64)
        return cls(
            np.concatenate([*(shard.votes.record_key for shard in shards), empty]),
            np.concatenate([*(shard.votes.index for shard in shards), empty]),
            np.concatenate([*(each.votes.differences for each in shards), np.empty((0, width), np.float32)]),
            np.concatenate([*(shard.mean for shard in shards), np.empty(0, np.float32)]),
            np.concatenate([*(shard.std for shard in shards), np.empty(0, np.float32)]),
            np.concatenate([*(shard.num_votes for shard in shards), np.empty(0, np.int32)]),
            splits=counts,
            path=path,
            description=said["description"],
            **{name: said[name] for name in ("data", "members", "resample")},
        )


def _shards(path: Path, said: dict[str, Any], split: str) -> list[ReadShard]:
    """Every shard of a split.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one does not fit the others.
    """
    told = {"version": VERSION, "num_members": said["num_members"], "split": split}
    metadata = {name: str(value) for name, value in told.items()}
    metadata |= {name: said[name] for name in ("data", "members")}
    entry = said["splits"][split]
    shards = []
    for number, file in enumerate(shard_paths(path, said, split)):
        first = number * said["shard_records"]
        stop = min(first + said["shard_records"], entry["records"])
        shards.append(read_shard(file, {**metadata, "records": f"{first}-{stop}"}))
    if (number := sum(len(shard.mean) for shard in shards)) != entry["comparisons"]:
        raise ValueError(
            f"{path}: the shards of {split} hold {number:,} comparisons, and votes.json says {entry['comparisons']:,}: vote "
            "anew with --overwrite"
        )
    return shards
