"""Whose judgements a run sees: seen users train and validate, unseen ones wait until they are adapted to."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from ..checks import check_choices, check_range
from ..records import hash_share
from ..tokens import ComparisonView, RecordTable, lengths

__all__ = ["UserProtocol", "UserView", "check_known", "joined", "user_view"]


@dataclass(frozen=True)
class UserProtocol:
    """Which users are seen, which are unseen, and whose judgements the loaders show.

    Who is seen is told by the training split alone: users without a judgement there are neither seen nor unseen, and
    are left out of every split as soon as users are divided at all. A user is unseen in every split. To evaluate
    unseen users, train with ``show: seen``; their own judgements of the training split are what they are adapted
    with, those of the test split what they are tested on, and nothing is ever chosen by the latter
    (``pluralign adapt`` does all of it).

    Attributes:
        unseen_share: Share of the users of the training split who are unseen, in [0, 1): the nearest whole number of
            them, 6 of 24 at 0.25 (halves up). They are those whose names have the lowest hashes, so that a larger share
            only adds users, and a user more or less in the data moves one other at most.
        unseen: Names of unseen users, besides those.
        min_judgements: Users with fewer judgements in the training split are left out of every split, >= 0.
        seed: Other values choose other unseen users.
        show: ``seen``, ``unseen`` or ``all`` of these. Judgements without a user count as seen; scores and votes of
            responses stay with their record.
    """

    unseen_share: float = 0.0
    unseen: tuple[str, ...] = ()
    min_judgements: int = 0
    seed: int = 0
    show: Literal["seen", "unseen", "all"] = "seen"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            TypeError: If ``unseen`` is a name and no list of names.
            ValueError: Naming the argument, its value and what is allowed.
        """
        if isinstance(self.unseen, str):
            raise TypeError(f"loader.users.unseen must be a list of names, got {self.unseen!r}")
        object.__setattr__(self, "unseen", tuple(self.unseen))
        check_range("loader.users.unseen_share", self.unseen_share, at_least=0, below=1)
        check_range("loader.users.min_judgements", self.min_judgements, at_least=0)
        check_choices(type(self), prefix="loader.users.", **vars(self))

    @property
    def active(self) -> bool:
        """Whether any judgement may be left out."""
        return bool(self.unseen_share or self.unseen or self.min_judgements or self.show == "unseen")

    def divide(self, counts: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """Seen and unseen users.

        Args:
            counts: Judgements of every user in the training split.

        Returns:
            Both in the order of ``counts``; users with too few judgements are in neither.

        Raises:
            ValueError: If ``unseen`` names someone who does not occur, the share is less than half a user, or nobody is
                seen.
        """
        named = set(self.unseen)
        check_known(named, counts)
        enough = [user for user, count in counts.items() if count >= self.min_judgements]
        number = math.floor(self.unseen_share * len(enough) + 0.5)
        if self.unseen_share and enough and not number:
            raise ValueError(
                f"loader.users.unseen_share: {self.unseen_share:g} of {len(enough):,} users is less than half a user; give at "
                f"least {0.5 / len(enough):.2g}, or 0 for none"
            )
        drawn = sorted(enough, key=lambda user: (hash_share(f"{self.seed}:{user}"), user))[:number]
        unseen = set(drawn) | (named & set(enough))
        seen = [user for user in enough if user not in unseen]
        if counts and not seen:
            raise ValueError(
                f"no user is left to train on: of {len(counts):,} users {len(enough):,} have at least "
                f"{self.min_judgements} judgements, and all of those are unseen; change loader.users"
            )
        return seen, [user for user in enough if user in unseen]


def check_known(users: Collection[str], judged: Collection[str]) -> None:
    """Refuse unseen users who have no judgements.

    Args:
        users: Who is to be unseen.
        judged: Who has judgements in the training split.

    Raises:
        ValueError: Naming them.
    """
    if unknown := sorted(set(users) - set(judged), key=str):
        raise ValueError(
            f"loader.users.unseen names {unknown[:5]}, who have no judgements in the training split"
        )


class UserView(ComparisonView):
    """Records of a split with the judgements of some users; records of which none is left are not read."""

    def __init__(self, table: RecordTable, users: Collection[str], *, anonymous: bool) -> None:
        """Find the judgements.

        Args:
            table: The records.
            users: Whose judgements stay.
            anonymous: Whether judgements without a user stay, and records without any comparison.
        """
        counts = lengths(table.column("comparison_index"))
        column = table.column("user")
        names = [name for chunk in column.chunks for name in chunk.flatten().to_pylist()]
        # Records that name no user at all have an empty list.
        mask = np.full(int(counts.sum()), anonymous)
        mask[np.repeat(lengths(column) > 0, counts)] = [
            anonymous if name is None else name in users for name in names
        ]
        super().__init__(table, mask, keeps_unjudged=anonymous)


def joined(first: Sequence[str], others: Sequence[str]) -> list[str]:
    """The first names, then those of the others that are not among them."""
    return list(dict.fromkeys([*first, *others]))


def user_view(
    name: str,
    split: str,
    table: RecordTable,
    protocol: UserProtocol,
    seen: Sequence[str],
    unseen: Sequence[str],
) -> UserView:
    """The judgements of a split that a protocol shows.

    Args:
        name: Of the data, for messages.
        split: Name of the split, likewise.
        table: Its records.
        protocol: Whose judgements are shown.
        seen: Seen users.
        unseen: Unseen users.

    Raises:
        ValueError: If none is left.
    """
    users = {"seen": seen, "unseen": unseen, "all": [*seen, *unseen]}[protocol.show]
    view = UserView(table, set(users), anonymous=protocol.show != "unseen")
    if not len(view):
        raise ValueError(
            f"{name} {split}: no judgement of {protocol.show} users is left; change loader.users"
        )
    rank_zero_info(
        f"{name} {split}: {view.num_kept:,} of {view.num_judgements:,} judgements are of "
        f"{protocol.show} users, in {len(view):,} of {len(table):,} records"
    )
    return view
