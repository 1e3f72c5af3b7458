"""How well predictions serve each user and each group, not just the crowd as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from .estimate import Estimate, bootstrap_means, bootstrap_sums, percentile_interval
from .preference import TIE, log_loss, outcomes

__all__ = ["UserAccuracy", "UserSummary", "user_margin_accuracy", "user_summary"]

LOW = 0.1
"""Share of users below the percentile that is reported."""


@dataclass(frozen=True)
class _Tally:
    """Decided judgements of each of E users, and how many of them are predicted rightly.

    Attributes:
        names: Users with a decided judgement.
        right: Judgements predicted rightly, (E,) float64.
        counts: Decided judgements, (E,) float64.
        num_ties: Ties of users, left out.
        num_anonymous: Judgements without a user, left out.
        group_of_user: Group of each user, by name; users may lack one, and others may have one.
    """

    names: list[str]
    right: Tensor
    counts: Tensor
    num_ties: int
    num_anonymous: int
    group_of_user: Mapping[str, str]

    @classmethod
    def of(
        cls, user: Tensor, outcome: Tensor, *, names: Sequence[str], group_of_user: Mapping[str, str]
    ) -> "_Tally":
        """Count judgements; arguments as :func:`user_summary` has them."""
        if len(user) and int(user.max()) >= len(names):
            raise ValueError(
                f"user_id must be below {len(names)}, the number of users; got {int(user.max())}"
            )
        named, tied = user >= 0, outcome == TIE
        counted = named & ~tied
        ids, member, counts = user[counted].unique(return_inverse=True, return_counts=True)
        right = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, member, outcome[counted].double())
        return cls(
            names=[str(names[i]) for i in ids.tolist()],
            right=right,
            counts=counts.double(),
            num_ties=int((named & tied).sum()),
            num_anonymous=int((~named).sum()),
            group_of_user=group_of_user,
        )

    @property
    def num_judgements(self) -> int:
        """Decided judgements of all users."""
        return int(self.counts.sum())

    @cached_property
    def accuracies(self) -> Tensor:
        """Of each user, (E,) float64 in [0, 1]."""
        return self.right / self.counts

    @cached_property
    def groups(self) -> list[str]:
        """Groups of these users, by name."""
        return sorted(
            {str(group) for name in self.names if (group := self.group_of_user.get(name)) is not None}
        )

    @cached_property
    def members(self) -> Tensor:
        """Who is in which group, (E, G) bool."""
        column = {group: i for i, group in enumerate(self.groups)}
        inside = torch.zeros(len(self.names), len(column), dtype=torch.bool)
        for row, name in enumerate(self.names):
            if (group := self.group_of_user.get(name)) is not None:
                inside[row, column[str(group)]] = True
        return inside

    @property
    def num_without_group(self) -> int:
        """Users in no group."""
        return int((~self.members.any(1)).sum())


@dataclass(frozen=True)
class UserSummary:
    """Accuracies on decided judgements, in [0, 1]; intervals are 95 % percentile bootstrap intervals over users.

    Attributes:
        num_users: Users with a decided judgement.
        num_judgements: Their decided judgements.
        num_ties: Ties of the users, left out.
        num_anonymous: Judgements without a user, left out.
        accuracy: Of all judgements together.
        user_accuracy: Mean over users of each one's accuracy.
        shared_accuracy: The same of one reward for all users; None where predictions are one.
        gain: What users' own rewards add to that, paired by user; None likewise.
        low_user_accuracy: 10th percentile of users' accuracies, interpolated.
        groups: Mean over each group's users.
        num_without_group: Users in no group, if there are groups.
        of_user: Accuracy and number of decided judgements of each user.
        training_accuracy: That of all judgements in training, so far; None where it is not known.
    """

    num_users: int
    num_judgements: int
    num_ties: int
    num_anonymous: int
    accuracy: Estimate
    user_accuracy: Estimate
    shared_accuracy: Estimate | None
    gain: Estimate | None
    low_user_accuracy: float
    groups: dict[str, Estimate]
    num_without_group: int
    of_user: dict[str, tuple[float, int]]
    training_accuracy: float | None = None

    @property
    def worst_group(self) -> str | None:
        """Group with the lowest accuracy, the first of several; None without groups."""
        return min(self.groups, key=lambda group: self.groups[group].value, default=None)

    def as_json(self) -> dict[str, object]:
        """Plain values, estimates by the names of their parts."""
        groups = {group: estimate._asdict() for group, estimate in self.groups.items()}
        names = ("accuracy", "user_accuracy", "shared_accuracy", "gain")
        estimates = {name: value and value._asdict() for name in names for value in [getattr(self, name)]}
        return asdict(self) | estimates | {"groups": groups, "worst_group": self.worst_group}


def user_summary(
    user: Tensor,
    outcome: Tensor,
    *,
    shared: Tensor | None = None,
    names: Sequence[str],
    group_of_user: Mapping[str, str],
    num_resamples: int,
    seed: int,
) -> UserSummary | None:
    """Accuracies by user and group, each with its interval.

    Args:
        user: Who judged, (M,) int64, below the number of ``names``; -1 for nobody.
        outcome: 1 where the prediction is right, 0 where not, ``TIE``, (M,) int64.
        shared: The same of one reward for all users, (M,) int64; None where there is no other.
        names: Users.
        group_of_user: Group of each user, by name; empty without groups.
        num_resamples: Bootstrap resamples, >= 100 or so.
        seed: Seed of the bootstrap.

    Returns:
        The summary; None if no judgement is decided and has a user.

    Raises:
        ValueError: If a user has no name.
    """
    tally = _Tally.of(user, outcome, names=names, group_of_user=group_of_user)
    if not tally.names:
        return None
    inside, accuracies = tally.members.double(), tally.accuracies
    others = accuracies
    if shared is not None:
        others = _Tally.of(user, shared, names=names, group_of_user={}).accuracies
    each = torch.ones_like(accuracies)
    columns = torch.cat(
        [
            torch.stack([accuracies, tally.right, others, accuracies - others], 1),
            accuracies.unsqueeze(1) * inside,
            torch.stack([each, tally.counts, each, each], 1),
            inside,
        ],
        1,
    )

    def means(sums: Tensor) -> Tensor:
        """Accuracy of users, of judgements, of one reward, what it lacks, and of every group, (..., 4 + G)."""
        above, below = sums.chunk(2, -1)
        return above / below

    # A group of which a resample holds nobody is NaN there.
    ends = percentile_interval(means(bootstrap_sums(columns, num_resamples=num_resamples, seed=seed)))
    rows = torch.stack([means(columns.sum(0)), *ends], 1).tolist()
    of_users, of_all, of_shared, gain, *of_groups = (Estimate(*row) for row in rows)
    shown = zip(accuracies.tolist(), tally.counts.long().tolist(), strict=True)
    return UserSummary(
        num_users=len(tally.names),
        num_judgements=tally.num_judgements,
        num_ties=tally.num_ties,
        num_anonymous=tally.num_anonymous,
        accuracy=of_all,
        user_accuracy=of_users,
        shared_accuracy=None if shared is None else of_shared,
        gain=None if shared is None else gain,
        low_user_accuracy=float(accuracies.quantile(LOW)),
        groups=dict(zip(tally.groups, of_groups, strict=True)),
        num_without_group=tally.num_without_group if tally.groups else 0,
        of_user=dict(zip(tally.names, shown, strict=True)),
    )


@dataclass(frozen=True)
class UserAccuracy:
    """How well users' rewards predict their judgements; accuracies are of decided judgements, in [0, 1].

    An equal reward is not right.

    Attributes:
        num_users: Users with a decided judgement.
        num_judgements: Decided judgements.
        num_ties: Ties of the users, which count in the log loss alone.
        num_anonymous: Judgements without a user, left out.
        accuracy: Of all judgements.
        user_accuracy: Mean over users of each one's accuracy.
        user_accuracy_low: Lower end of its 95 % percentile bootstrap interval over users.
        user_accuracy_high: Upper end.
        log_loss: Mean over judgements, in nats.
        tied_scores: Share of equal rewards.
        group_accuracy: Mean over each group's users; empty without groups.
        num_without_group: Users in no group, if there are groups.
        of_user: Each user's own accuracy, by name.
    """

    num_users: int
    num_judgements: int
    num_ties: int
    num_anonymous: int
    accuracy: float
    user_accuracy: float
    user_accuracy_low: float
    user_accuracy_high: float
    log_loss: float
    tied_scores: float
    group_accuracy: dict[str, float]
    num_without_group: int
    of_user: dict[str, float]

    @property
    def worst_group(self) -> str | None:
        """Group with the lowest accuracy, the first of several; None without groups."""
        return min(self.group_accuracy, key=self.group_accuracy.__getitem__, default=None)

    def row(self) -> dict[str, float | str]:
        """What a table shows."""
        names = ("user_accuracy", "user_accuracy_low", "user_accuracy_high", "accuracy", "log_loss")
        values: dict[str, float | str] = {name: getattr(self, name) for name in names}
        if (worst := self.worst_group) is not None:
            values |= {"worst_group": worst, "worst_group_accuracy": self.group_accuracy[worst]}
        return values


def user_margin_accuracy(
    user: Tensor,
    margin: Tensor,
    share: Tensor,
    *,
    names: Sequence[str],
    group_of_user: Mapping[str, str] | None = None,
    num_resamples: int,
    seed: int,
    num_anonymous: int = 0,
) -> UserAccuracy:
    """Compare margins with the judgements of users.

    Args:
        user: Who judged, (M,) int64 in [0, number of ``names``).
        margin: Reward of the first response less that of the second, as this user would give them, (M,) float64.
        share: Judgement for the first, (M,) float64 in [0, 1].
        names: Users.
        group_of_user: Group of each user, by name; empty or None without groups.
        num_resamples: Resamples of the bootstrap over users, >= 100 or so.
        seed: Seed of the bootstrap.
        num_anonymous: Judgements of nobody, which were left out before.

    Raises:
        ValueError: If no judgement is decided, or a user has no name.
    """
    tally = _Tally.of(user, outcomes(margin, share), names=names, group_of_user=group_of_user or {})
    if not tally.names:
        raise ValueError(f"there is nothing to measure: none of {len(user):,} judgements is decided")
    accuracies = tally.accuracies
    means = bootstrap_means(accuracies, num_resamples=num_resamples, seed=seed)
    low, high = percentile_interval(means).tolist()
    columns = zip(tally.groups, tally.members.unbind(1), strict=True)
    return UserAccuracy(
        num_users=len(tally.names),
        num_judgements=tally.num_judgements,
        num_ties=tally.num_ties,
        num_anonymous=num_anonymous,
        accuracy=float(tally.right.sum()) / tally.num_judgements,
        user_accuracy=float(accuracies.mean()),
        user_accuracy_low=low,
        user_accuracy_high=high,
        log_loss=float(log_loss(margin, share).mean()),
        tied_scores=float((margin == 0)[share != 0.5].double().mean()),
        group_accuracy={group: float(accuracies[inside].mean()) for group, inside in columns},
        num_without_group=tally.num_without_group if group_of_user else 0,
        of_user=dict(zip(tally.names, accuracies.tolist(), strict=True)),
    )
