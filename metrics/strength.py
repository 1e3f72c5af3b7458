"""What an ensemble's votes say of labels: signed strengths, how they agree with people, and whether their spread is honest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .distribution import StrengthHistogram, quantile_shares, strength_histogram
from .estimate import Estimate, bootstrap_sums, percentile_interval
from .member_correlation import MemberCorrelation
from .uncertainty import ErrorPrediction, error_predictions

__all__ = ["StrengthGroup", "StrengthRow", "StrengthSummary", "strength_summary"]


class StrengthGroup(NamedTuple):
    """An equal part of the comparisons, in the order of a value; one on a border counts in part on each side.

    Estimates are None where nothing of the kind is known.
    """

    number: float
    """Comparisons, which need not be whole."""
    low: float
    """Least and greatest value of them."""
    high: float
    center: float
    """Mean value."""
    std: Estimate | None
    """Mean standard deviation of the members."""
    label_share: Estimate | None
    """Mean share of annotators who are on the side of the label, in [0.5, 1]; None where all are unanimous."""
    label_agreement: Estimate | None
    """Share of the labels on the judge's side."""
    accuracy: Estimate | None
    """Share of the comparisons in which the ensemble is on the side of the reference: the judge, without one the label (of which
    groups by strength say nothing)."""

    def content(self) -> dict[str, object]:
        """Plain values."""
        return {
            name: value._asdict() if isinstance(value, Estimate) else value
            for name, value in self._asdict().items()
        }


class StrengthRow(NamedTuple):
    """A line of a table."""

    title: str
    key: str
    value: float
    interval: Estimate | None


@dataclass(frozen=True)
class StrengthSummary:
    """Strengths of decided comparisons, in the unit of the rewards (nats); intervals are of a bootstrap over records.

    Attributes:
        num_comparisons: Comparisons counted.
        num_members: M.
        num_tied: Comparisons left out, since the annotators called them ties.
        num_without_votes: Comparisons left out, since no member may vote on them.
        num_single_votes: Comparisons of one member's vote, which has no spread.
        has_judge: Whether there is a judge; the reference of errors is the label otherwise.
        num_judged: Comparisons that the reference decides.
        share_negative: Share of the comparisons whose strength is below 0: the ensemble contradicts the label.
        strength: Mean strength.
        std: Mean over comparisons of the members' population standard deviation; None if every vote is single.
        correlation: Mean over pairs of members of the correlation of their differences; None where none is defined.
        accuracy: Share in which the ensemble is on the side of the reference, a strength of 0 on neither; None without one.
        label_agreement: Share in which the label is on the judge's side; None without a judge.
        histogram: Of the strengths.
        deciles: Groups by strength, the most negative first.
        std_groups: More and smaller ones, for the spread.
        size_groups: Groups by the strength without its sign.
        errors: How well each score of uncertainty predicts the ensemble's errors, by the name of the score.
    """

    num_comparisons: int
    num_members: int
    num_tied: int
    num_without_votes: int
    num_single_votes: int
    has_judge: bool
    num_judged: int
    share_negative: Estimate
    strength: Estimate
    std: Estimate | None
    correlation: float | None
    accuracy: Estimate | None
    label_agreement: Estimate | None
    histogram: StrengthHistogram
    deciles: tuple[StrengthGroup, ...]
    std_groups: tuple[StrengthGroup, ...]
    size_groups: tuple[StrengthGroup, ...]
    errors: dict[str, ErrorPrediction]

    def values(self) -> dict[str, float]:
        """The numbers to follow, by name; what is not known is left out."""
        return {row.key: row.value for row in self.rows()}

    def rows(self) -> list[StrengthRow]:
        """A table of what is found, without groups."""
        reference = "judge" if self.has_judge else "label"
        rows = [
            ("strength below 0: against the label", "share_negative", self.share_negative),
            ("mean strength (nats)", "strength", self.strength),
            ("mean std of the members (nats)", "std", self.std),
            ("correlation of members, mean of pairs", "correlation", self.correlation),
            ("label agrees with the judge", "label_agreement", self.label_agreement),
            (f"ensemble agrees with the {reference}", "accuracy", self.accuracy),
        ]
        for name, title in SCORES.items():
            if (found := self.errors.get(name)) is not None:
                suffix = "" if name == "std" else f"/{name}"
                rows += [
                    (f"errors by {title}: AUROC", f"error_auroc{suffix}", found.auroc),
                    ("  area of risk and coverage", f"aurc{suffix}", found.area),
                    ("  above the least possible", f"excess_aurc{suffix}", found.excess),
                ]
        return [
            StrengthRow(title, key, *((value.value, value) if isinstance(value, Estimate) else (value, None)))
            for title, key, value in rows
            if value is not None
        ]

    def content(self) -> dict[str, object]:
        """Plain values for a JSON file."""
        plain: dict[str, object] = {
            name: value._asdict() if isinstance(value, Estimate | StrengthHistogram) else value
            for name, value in vars(self).items()
        }
        groups = {"deciles": self.deciles, "std_groups": self.std_groups, "size_groups": self.size_groups}
        plain |= {name: [group.content() for group in some] for name, some in groups.items()}
        return plain | {"errors": {name: found.content() for name, found in self.errors.items()}}


SCORES = {"std": "std", "std_to_strength": "std / |strength|", "weakness": "small |strength|"}
"""Scores of uncertainty, by name, as tables call them."""


def strength_summary(
    differences: Tensor,
    share: Tensor,
    *,
    judge: Tensor | None = None,
    record: Tensor | None = None,
    num_groups: int = 10,
    num_std_groups: int = 20,
    num_resamples: int = 1000,
    seed: int = 0,
) -> StrengthSummary:
    r"""Summarise what the members of an ensemble say of labelled comparisons.

    With differences :math:`d_{im} = r_m(\text{preferred}) - r_m(\text{other})` of the :math:`M_i` members that vote on
    comparison i, preferred as the *label* says (differences are turned where its share is below a half), in float64:

    .. math::
        \hat\mu_i = \tfrac{1}{M_i} \textstyle\sum_m d_{im}, \qquad
        \hat\sigma_i = \sqrt{\tfrac{1}{M_i} \textstyle\sum_m (d_{im} - \hat\mu_i)^2}

    the strength and its spread. Scores of uncertainty are :math:`\hat\sigma`, :math:`\hat\sigma / |\hat\mu|` and
    :math:`-|\hat\mu|`; they predict errors, which are comparisons whose strength is not on the side of the
    reference: the judge's where there is a judge, otherwise the label's, which may itself be wrong. Ties of the label are
    left out and counted; where the judge has none or a tie, a comparison counts in what needs no judge.

    Args:
        differences: Of each comparison and member, first less second, (P, M) float, finite; NaN where a member has no vote.
        share: Share of annotators who prefer the first, (P,) in [0, 1]; 0.5 is a tie.
        judge: Likewise of an independent judge, (P,); NaN where there is none. None for no judge at all.
        record: What is drawn by the bootstrap, such as ``record_key``, (P,) int64, any numbers; None for each comparison by itself.
        num_groups: Groups by strength, and by its size; at most the number of comparisons are made.
        num_std_groups: Groups by strength in which the spread is told.
        num_resamples: Resamples of the bootstrap, >= 1.
        seed: Seed of the bootstrap.

    Returns:
        The summary. Groups stay those of all comparisons when records are drawn.

    Raises:
        ValueError: If shapes do not fit, M is below 2, a value is outside its range, or no comparison is left.

    Example:
        >>> differences = torch.tensor([[0.8, 0.3, -0.4, 1.5], [-1.0, -0.6, -0.2, -1.4]])
        >>> summary = strength_summary(differences, torch.ones(2))
        >>> round(summary.strength.value, 3), summary.share_negative.value
        (-0.125, 0.5)

    Source:
        B. Wang, R. Zheng, L. Chen et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024,
        https://arxiv.org/abs/2401.06080, section 2.2 (strength), figures 2 and 3 (spread in 20 groups, agreement). Departures:
        intervals; groups of equal size, in which equal strengths are shared out evenly; whether the spread predicts errors.

    .. versionadded:: 0.1
    """
    _check(differences, share, judge, record, num_groups=num_groups, num_std_groups=num_std_groups)
    votes = _Votes.of(differences.double(), share.double(), judge, record)
    draw = {"num_resamples": num_resamples, "seed": seed}
    table = _Means(votes.record)
    whole = [table.add(column) for column in votes.columns()]
    means = votes.means
    by_size = _Groups(votes.strength.abs(), num_groups, table, means)
    if judge is None:  # by strength it is 0 or 1: its sign against the label
        means.pop("accuracy")
    by_strength = _Groups(votes.strength, num_groups, table, means)
    by_spread = _Groups(votes.strength, num_std_groups, table, {"std": votes.std})
    estimates = table.estimates(**draw)
    negative, strength, std, accuracy, agreement = (estimates[place] for place in whole)
    assert negative is not None and strength is not None  # of all comparisons, of which there are some
    judged = ~votes.right.isnan()
    spread = votes.std[judged]
    size = votes.strength[judged].abs()
    errors = error_predictions(
        {
            "std": spread,
            "std_to_strength": torch.where(size > 0, spread / size, spread + torch.inf),
            "weakness": -size,
        },
        votes.right[judged] == 0,
        record=votes.record[judged],
        **draw,
    )
    return StrengthSummary(
        num_comparisons=len(votes.strength),
        num_members=differences.shape[1],
        num_tied=votes.num_tied,
        num_without_votes=votes.num_without_votes,
        num_single_votes=int(votes.std.isnan().sum()),
        has_judge=judge is not None,
        num_judged=int(judged.sum()),
        share_negative=negative,
        strength=strength,
        std=std,
        correlation=_correlation(votes.differences),
        accuracy=accuracy,
        label_agreement=agreement,
        histogram=strength_histogram(votes.strength),
        deciles=by_strength.found(estimates),
        std_groups=by_spread.found(estimates),
        size_groups=by_size.found(estimates),
        errors=errors,
    )


class _Votes(NamedTuple):
    """Decided comparisons with a vote, N of them, turned so that the label prefers the first; float64, NaN unknown."""

    differences: Tensor
    strength: Tensor
    std: Tensor
    label_share: Tensor
    agrees: Tensor
    """Whether the label is on the judge's side."""
    right: Tensor
    """Whether the ensemble is on the reference's side."""
    record: Tensor
    num_tied: int
    num_without_votes: int

    @classmethod
    def of(cls, differences: Tensor, share: Tensor, judge: Tensor | None, record: Tensor | None) -> "_Votes":
        record = torch.arange(len(share)) if record is None else record
        tied, voted = share == 0.5, ~differences.isnan().all(1)
        counted = voted & ~tied
        if not bool(counted.any()):
            raise ValueError(
                f"of {len(share):,} comparisons, {int(tied.sum()):,} of them ties, {int((~voted).sum()):,} without a vote, "
                "none is left"
            )
        side = torch.where(share < 0.5, -1.0, 1.0)[counted].double()
        differences, share = differences[counted] * side.unsqueeze(1), share[counted]
        strength = differences.nanmean(1)
        std = (differences - strength.unsqueeze(1)).square().nanmean(1).sqrt()
        std[(~differences.isnan()).sum(1) < 2] = torch.nan
        agrees, reference = torch.full_like(strength, torch.nan), torch.ones_like(strength)
        if judge is not None:
            reference = (judge.double()[counted] - 0.5) * side
            agrees = torch.where(reference.isnan() | (reference == 0), torch.nan, (reference > 0).double())
            reference = torch.where(reference == 0, torch.nan, reference)
        right = torch.where(reference.isnan(), torch.nan, (strength * reference > 0).double())
        return cls(
            differences=differences,
            strength=strength,
            std=std,
            label_share=torch.maximum(share, 1 - share),
            agrees=agrees,
            right=right,
            record=record[counted],
            num_tied=int(tied.sum()),
            num_without_votes=int((~voted & ~tied).sum()),
        )

    def columns(self) -> Sequence[Tensor]:
        """What the whole is a mean of."""
        return (self.strength < 0).double(), self.strength, self.std, self.right, self.agrees

    @property
    def means(self) -> dict[str, Tensor]:
        """What groups are told of, as far as anything of it is known."""
        named = {
            "std": self.std,
            "label_agreement": self.agrees,
            "accuracy": self.right,
        }
        if bool((self.label_share < 1).any()):
            named["label_share"] = self.label_share
        return {name: column for name, column in named.items() if not bool(column.isnan().all())}


class _Means:
    """Weighted means of columns, all estimated with one bootstrap over records."""

    def __init__(self, record: Tensor) -> None:
        records, self._of_record = record.unique(return_inverse=True)
        self._zeros = torch.zeros(len(records), dtype=torch.float64)
        self._sums: list[Tensor] = []

    def add(self, values: Tensor, weight: Tensor | None = None) -> int:
        """Which mean is that of these values, (N,), NaN left out, with these weights."""
        known = (~values.isnan()).double() if weight is None else weight * ~values.isnan()
        for column in (values.nan_to_num() * known, known):
            self._sums.append(self._zeros.index_add(0, self._of_record, column))
        return len(self._sums) // 2 - 1

    def estimates(self, *, num_resamples: int, seed: int) -> list[Estimate | None]:
        """Every mean; None of nothing."""
        columns = torch.stack(self._sums, 1)
        drawn = bootstrap_sums(columns, num_resamples=num_resamples, seed=seed)
        ends = percentile_interval(drawn[:, 0::2] / drawn[:, 1::2])  # NaN where a resample has none of it
        sums = columns.sum(0)
        rows: list[list[float]] = torch.stack([sums[0::2] / sums[1::2], *ends], 1).tolist()
        return [Estimate(*row) if row[0] == row[0] else None for row in rows]


class _Groups:
    """Groups of equal size by a value; means of them are asked of a table."""

    def __init__(self, values: Tensor, num_groups: int, table: _Means, means: dict[str, Tensor]) -> None:
        shares = quantile_shares(values, min(num_groups, len(values)))
        inside = shares > 0
        self.number = len(values) / shares.shape[1]
        self.low: list[float] = torch.where(inside, values.unsqueeze(1), torch.inf).amin(0).tolist()
        self.high: list[float] = torch.where(inside, values.unsqueeze(1), -torch.inf).amax(0).tolist()
        self.center: list[float] = ((values.unsqueeze(1) * shares).sum(0) / shares.sum(0)).tolist()
        self.places = [
            {name: table.add(mean, weight) for name, mean in means.items()} for weight in shares.unbind(1)
        ]

    def found(self, estimates: list[Estimate | None]) -> tuple[StrengthGroup, ...]:
        """The groups, lowest values first."""

        def group(low: float, high: float, center: float, places: dict[str, int]) -> StrengthGroup:
            means = {name: estimates[place] for name, place in places.items()}
            known = (means.get(name) for name in ("std", "label_share", "label_agreement", "accuracy"))
            return StrengthGroup(self.number, low, high, center, *known)

        return tuple(map(group, self.low, self.high, self.center, self.places))


def _check(
    differences: Tensor,
    share: Tensor,
    judge: Tensor | None,
    record: Tensor | None,
    *,
    num_groups: int,
    num_std_groups: int,
) -> None:
    if differences.ndim != 2 or differences.shape[1] < 2:
        raise ValueError(
            f"differences must be (P, M) with two members at least; got {tuple(differences.shape)}"
        )
    for name, column in (("share", share), ("judge", judge), ("record", record)):
        if column is not None and column.shape != differences.shape[:1]:
            raise ValueError(
                f"{name} must be ({len(differences)},), as differences; got {tuple(column.shape)}"
            )
    if bool(differences.isinf().any()):
        raise ValueError("differences must be finite, or NaN where a member has no vote; got an infinite one")
    for name, column in (("share", share), ("judge", judge)):
        if column is None:
            continue
        outside = ~((column >= 0) & (column <= 1)) & ~(
            column.isnan() if name == "judge" else torch.zeros_like(column) > 0
        )
        if bool(outside.any()):
            raise ValueError(f"{name} must be in [0, 1]; got {float(column[outside][0]):g}")
    for name, number in (("num_groups", num_groups), ("num_std_groups", num_std_groups)):
        if number < 1:
            raise ValueError(f"{name} must be >= 1; got {number}")


def _correlation(differences: Tensor) -> float | None:
    """Mean correlation of two members' differences; None where none is defined."""
    metric = MemberCorrelation(differences.shape[1])
    metric.update(differences)
    mean = float(metric.compute())
    return None if math.isnan(mean) else mean
