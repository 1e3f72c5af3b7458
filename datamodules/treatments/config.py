"""What is done to a training comparison by its strength: the settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ..checks import check_choices, check_range

__all__ = ["TreatmentConfig", "TreatmentRule"]


@dataclass(frozen=True)
class TreatmentRule:
    """What is done to the comparisons whose strength is in ``[low, high)``.

    Label, smoothing and margin go together in one rule: the label is turned round first, and all else is of the label as
    it is then. A rule that does nothing is allowed, since the report counts what it covers.

    Attributes:
        low: Where it begins, that included: a quantile in [0, 1], or a strength; None for the lowest there is.
        high: Where it ends, that excluded (a quantile of 1 includes the strongest); None for the highest there is.
        label: ``keep``; ``flip``: the other side is preferred; ``drop``: no batch holds the comparison.
        smoothing: Probability a that the label is wrong, in [0, 1]: the share p becomes (1 - a) p + a (1 - p).
        margin: Scale, > 0, of the margin that the loss requires, ``margin`` x strength: the strength that the label has
            after ``flip``, so that a flipped one gets -strength. None for no margin by this rule.
        clip: Largest size of the strength in the margin, > 0; None for no bound.
    """

    low: float | None = None
    high: float | None = None
    label: Literal["keep", "flip", "drop"] = "keep"
    smoothing: float = 0.0
    margin: float | None = None
    clip: float | None = None

    @property
    def interval(self) -> str:
        """What it covers, in words."""
        if self.low is None:
            return "everything" if self.high is None else f"below {self.high:g}"
        return f"from {self.low:g}" + ("" if self.high is None else f" to below {self.high:g}")

    @property
    def treatment(self) -> str:
        """What it does, in words."""
        parts: list[str] = [self.label] if self.label != "keep" else []
        if self.smoothing:
            parts.append(f"smooth {self.smoothing:g}")
        if self.margin is not None:
            bound = "" if self.clip is None else f" within {self.clip:g}"
            parts.append(f"margin {self.margin:g} x strength{bound}")
        return " + ".join(parts) or "keep"

    def bounds(self) -> tuple[float, float]:
        """Both ends as numbers."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def check(self, where: str, *, by: Literal["quantile", "value"]) -> None:
        """Check ranges.

        Args:
            where: What messages call it.
            by: What its ends are.

        Raises:
            ValueError: Naming the setting, its value and what is allowed.
        """
        check_choices(type(self), prefix=f"{where}.", label=self.label)
        for name in ("low", "high"):
            bounds = {"at_least": 0.0, "at_most": 1.0} if by == "quantile" else {}
            check_range(f"{where}.{name} (a {by})", getattr(self, name), **bounds)
        low, high = self.bounds()
        if not low < high or (by == "quantile" and (low == 1 or high == 0)):
            raise ValueError(
                f"{where}: low must be less than high, or it covers nothing; got {self.interval}"
            )
        check_range(f"{where}.smoothing", self.smoothing, at_least=0, at_most=1)
        check_range(f"{where}.margin", self.margin, above=0)
        check_range(f"{where}.clip", self.clip, above=0)
        if self.clip is not None and self.margin is None:
            raise ValueError(
                f"{where}.clip bounds the strength in the margin: give margin as well (1 for as it is)"
            )
        if self.label == "drop" and (self.smoothing or self.margin is not None):
            raise ValueError(
                f"{where} drops comparisons, so that it has nothing to smooth and no margin: leave those out, or the label"
            )


@dataclass(frozen=True)
class TreatmentConfig:
    """Treatments of the training split's labels by their strength, joined when batches are made.

    The strength of a comparison is how much higher its first side, the one that the label prefers, is scored than the other:
    below 0 the label is doubted. Comparisons that no rule covers stay as they are, and so do ties, whose label prefers
    neither side. Other splits keep their labels.

    Attributes:
        rules: What is done where; no two cover the same strength.
        by: Whether rules begin and end at a ``quantile`` of the training split's strengths, the share of comparisons that are
            weaker, or at a ``value``.
        votes: Folder that ``pluralign vote`` wrote; None for the strengths that the data have, or ``loader.joins`` brings.
        missing: What to do with a comparison without a strength: ``error``, or ``keep`` it as it is and count it.
        margins: What to do with margins that the data have, where a rule gives one: ``error``; ``replace`` them there;
            ``add`` to them.
    """

    rules: tuple[TreatmentRule, ...] = ()
    by: Literal["quantile", "value"] = "quantile"
    votes: str | None = None
    missing: Literal["error", "keep"] = "error"
    margins: Literal["error", "replace", "add"] = "error"

    def __post_init__(self) -> None:
        """Check ranges, and that no two rules cover the same.

        Raises:
            TypeError: If ``rules`` is no list of rules.
            ValueError: Naming the setting, its value and what is allowed; of two rules that overlap, both.
        """
        prefix = "loader.treatments."
        check_choices(type(self), prefix=prefix, **vars(self))
        if not isinstance(self.rules, list | tuple):
            raise TypeError(f"{prefix}rules must be a list of rules, got {self.rules!r}")
        rules = tuple(_rule(rule, f"{prefix}rules[{i}]") for i, rule in enumerate(self.rules))
        object.__setattr__(self, "rules", rules)
        if not rules:
            raise ValueError(
                f"{prefix}rules is empty: name at least one, such as {{high: 0.1, label: flip}}, or set loader.treatments to "
                "null"
            )
        for number, rule in enumerate(rules):
            rule.check(f"{prefix}rules[{number}]", by=self.by)
        order = sorted(range(len(rules)), key=lambda number: rules[number].bounds())
        for one, other in pairwise(order):
            if rules[other].bounds()[0] < rules[one].bounds()[1]:
                first, second = sorted((one, other))
                raise ValueError(
                    f"{prefix}rules[{first}] ({rules[first].interval}) and {prefix}rules[{second}] ({rules[second].interval}) "
                    "overlap: a comparison has one treatment; put into one rule what is to go together, and let the next begin "
                    "where it ends"
                )

    @property
    def gives_margins(self) -> bool:
        """Whether any rule gives a margin."""
        return any(rule.margin is not None for rule in self.rules)


def _rule(rule: TreatmentRule | Mapping[str, Any], where: str) -> TreatmentRule:
    """A rule; a mapping of its fields also does.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(rule, TreatmentRule):
        return rule
    if not isinstance(rule, Mapping):
        raise TypeError(f"{where} must be a rule such as {{high: 0.1, label: flip}}, got {rule!r}")
    return TreatmentRule(**rule)
