"""DataReader: what every reader of tokenised data can say of it, whatever it is read from."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .report import SplitReport
from .table import RecordTable, flat

__all__ = ["DataReader"]


class DataReader(ABC):
    """Tokenised data of several splits.

    Attributes:
        names: What indices point at, by stored column; those of the training split come first.
        num_training_users: How many of the users are the training split's.
        present: Optional columns that some record has.
        categories: Number of categories of each column of votes.
        reports: What became of the rows of each split.
    """

    names: dict[str, list[str]]
    num_training_users: int
    present: frozenset[str]
    categories: dict[str, int]
    reports: Mapping[str, SplitReport]

    @abstractmethod
    def table(self, split: str) -> RecordTable:
        """Records of one split."""

    @property
    def training_domains(self) -> list[str]:
        """Domains of the training split."""
        return self.names["domain"]

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
        counts = flat(self.table("train").column(name)).reshape(-1, self.categories[name])
        counts = counts[counts.sum(1) > 0]
        if not len(counts):
            return None
        mean: NDArray[np.float64] = (counts / counts.sum(1, keepdims=True)).mean(0)
        return (mean + mean[::-1]) / 2 if name == "comparison_votes" else mean
