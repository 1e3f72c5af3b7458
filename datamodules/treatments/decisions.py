"""Which rule covers which comparison of the training split, and how many each covers."""

import math
from dataclasses import dataclass

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from ..tokens import RecordTable
from .config import TreatmentConfig
from .strengths import Strengths, named_comparisons

__all__ = ["NO_RULE", "CoverReport", "Decisions", "TreatmentReport", "decide"]

NO_RULE = -1
"""In place of a rule's number, where none covers a comparison."""
NAMED = 3
"""Comparisons that a message names."""

MORE = 0.05
"""Share of the strengths by which a rule may cover more than its quantiles do, for some are equal, unsaid."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CoverReport:
    """What a rule covers, or what none does.

    Attributes:
        interval: Of the rule, in words.
        treatment: What is done, in words.
        comparisons: How many it covers.
        share: Of all comparisons of the split, in [0, 1].
        lowest: Least strength towards the side that the label prefers; NaN if it covers nothing.
        highest: Greatest strength, likewise.
        std: Mean standard deviation of the members' votes; NaN where they are not known.
    """

    interval: str
    treatment: str
    comparisons: int
    share: float
    lowest: float
    highest: float
    std: float

    def __str__(self) -> str:
        """One line."""
        line = f"{self.interval}, {self.treatment}: {self.comparisons:,} comparisons ({self.share:.1%})"
        if self.comparisons:
            line += f", strength {self.lowest:.3g} to {self.highest:.3g}"
            line += "" if np.isnan(self.std) else f", std {self.std:.3g} on average"
        return line


@dataclass(frozen=True)
class TreatmentReport:
    """How many comparisons of the training split each rule covers.

    Attributes:
        source: Where the strengths are from.
        by: ``quantile`` or ``value``.
        comparisons: Of the split.
        ties: Of them those whose label prefers neither side; they stay as they are.
        missing: Of them those without a strength; they stay as they are.
        rules: What each rule covers, in the order of the settings.
        uncovered: What no rule covers, ties and those without a strength apart.
        records: Of the split.
        dropped_records: Of them those that are not read, since every comparison is dropped.
    """

    source: str
    by: str
    comparisons: int
    ties: int
    missing: int
    rules: tuple[CoverReport, ...]
    uncovered: CoverReport
    records: int
    dropped_records: int

    def lines(self) -> list[str]:
        """It in words."""
        head = (
            f"{self.comparisons:,} comparisons are treated by {self.by} of the strength in {self.source}; {self.ties:,} tied and "
            f"{self.missing:,} without a strength stay as they are"
        )
        if self.dropped_records:
            head += f", {self.dropped_records:,} of {self.records:,} records are not read"
        return [head, *(f"rules[{i}] {rule}" for i, rule in enumerate(self.rules)), str(self.uncovered)]


@dataclass(frozen=True, eq=False)
class Decisions:
    """Rule and strength of every comparison of the training split, record after record.

    Attributes:
        config: The rules.
        rule: Number of the rule that covers it, ``NO_RULE`` for none, (n,) int16.
        strength: Of the first side over the other, as the data's label has them, (n,) float32; NaN where it is not known.
        report: How many each rule covers.
    """

    config: TreatmentConfig
    rule: NDArray[np.int16]
    strength: Floats
    report: TreatmentReport

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which comparisons are not dropped, (n,)."""
        return ~_dropped(self.config)[self.rule]


def decide(title: str, table: RecordTable, config: TreatmentConfig, strengths: Strengths) -> Decisions:
    """Find each comparison's rule, and report what was found.

    Quantiles are of the strengths in the whole split, towards the side that the label prefers; that of a comparison is the
    share of them that are lower. Equal strengths have equal quantiles, and so one treatment.

    Args:
        title: Data and split, for messages.
        table: The split's records.
        config: The rules.
        strengths: Of every comparison.

    Raises:
        ValueError: If a comparison lacks its strength where that is an error, or nothing is left.
    """
    share = table.comparison_values("preference")
    ties, known = share == 0.5, ~np.isnan(strengths.mean)
    missing, decided = ~known & ~ties, known & ~ties
    if config.missing == "error" and missing.any():
        raise ValueError(_missing(title, table, np.flatnonzero(missing), strengths.source))
    # A share below a half prefers the second side.
    towards = np.where(share < 0.5, -strengths.mean, strengths.mean)
    rule = np.full(len(share), NO_RULE, dtype=np.int16)
    rule[decided] = _rules(config, towards[decided])
    covers = [
        _cover(config, number, decided & (rule == number), towards, strengths.std)
        for number in (*range(len(config.rules)), NO_RULE)
    ]
    counts = table.comparison_counts()
    left = np.bincount(np.repeat(np.arange(len(counts)), counts), ~_dropped(config)[rule], len(counts))
    report = TreatmentReport(
        source=strengths.source,
        by=config.by,
        comparisons=len(share),
        ties=int(ties.sum()),
        missing=int(missing.sum()),
        rules=tuple(covers[:-1]),
        uncovered=covers[-1],
        records=len(counts),
        dropped_records=int(((left == 0) & (counts > 0)).sum()),
    )
    for line in report.lines():
        rank_zero_info(f"{title}: {line}")
    _warn_of_equal_strengths(title, config, report)
    if not (left > 0).any():
        raise ValueError(
            f"{title}: no comparison is left to train on: the rules of loader.treatments drop all of {len(share):,}; let them "
            "drop fewer"
        )
    return Decisions(config, rule, strengths.mean, report)


def _dropped(config: TreatmentConfig) -> NDArray[np.bool_]:
    """Whether each rule drops comparisons; the last is of those that no rule covers."""
    return np.asarray([*(rule.label == "drop" for rule in config.rules), False])


def _rules(config: TreatmentConfig, strength: Floats) -> NDArray[np.int16]:
    """Number of the rule of each strength, all of them known; ``NO_RULE`` for none."""
    rule = np.full(len(strength), NO_RULE, dtype=np.int16)
    position: NDArray[np.floating] = strength
    if config.by == "quantile":
        position = np.searchsorted(np.sort(strength), strength, side="left") / max(1, len(strength))
    for number, each in enumerate(config.rules):
        low, high = each.bounds()
        rule[(position >= low) & (position < high)] = number
    return rule


def _cover(
    config: TreatmentConfig, number: int, mask: NDArray[np.bool_], towards: Floats, std: Floats | None
) -> CoverReport:
    count, strength = int(mask.sum()), towards[mask]
    return CoverReport(
        interval="by no rule" if number == NO_RULE else config.rules[number].interval,
        treatment="keep" if number == NO_RULE else config.rules[number].treatment,
        comparisons=count,
        share=count / max(1, len(mask)),
        lowest=float(strength.min()) if count else math.nan,
        highest=float(strength.max()) if count else math.nan,
        std=float(std[mask].mean(dtype=np.float64)) if count and std is not None else math.nan,
    )


def _warn_of_equal_strengths(title: str, config: TreatmentConfig, report: TreatmentReport) -> None:
    """Say which rules cover far more than their quantiles do, since strengths are equal: all of them, at worst."""
    treated = sum(cover.comparisons for cover in (*report.rules, report.uncovered))
    for number, (rule, cover) in enumerate(zip(config.rules, report.rules, strict=True)):
        if config.by != "quantile" or cover.treatment == "keep":
            continue
        low, high = rule.bounds()
        share = min(high, 1.0) - max(low, 0.0)
        if cover.comparisons > (share + MORE) * treated + 1:
            rank_zero_warn(
                f"{title}: loader.treatments.rules[{number}] ({cover.interval}, {cover.treatment}) covers {cover.comparisons:,} of "
                f"{treated:,} strengths, where its quantiles are {share:.1%}: so many are equal, and equal ones have one "
                "treatment; set its ends by value, or take strengths that differ"
            )


def _missing(title: str, table: RecordTable, lacking: NDArray[np.int64], source: str) -> str:
    """The message for comparisons that have no strength."""
    named = named_comparisons(table, lacking[:NAMED].tolist())
    more = ", ..." if len(lacking) > NAMED else ""
    return (
        f"{title}: {len(lacking):,} of {int(table.comparison_counts().sum()):,} comparisons have no strength in {source} (comparison "
        f"{', '.join(named)}{more}): give them one (run `pluralign vote` again, which adds what is missing), or set "
        "loader.treatments.missing to keep, which leaves them as they are"
    )
