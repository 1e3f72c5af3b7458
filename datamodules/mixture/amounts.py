"""Amounts: how much an epoch takes of each source of a mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal

from ..checks import check_choices, check_range

__all__ = ["Amounts", "Unit"]

Unit = Literal["comparisons", "records"]


@dataclass(frozen=True)
class Amounts:
    """How much an epoch takes of each source: by weight, temperature or count, else all.

    Attributes:
        weights: Relative number of units of each source.
        temperature: T: units in proportion to size^(1/T).
        counts: Units of each source.
        unit: What is counted.
    """

    weights: Mapping[str, float] | None
    temperature: float | None
    counts: Mapping[str, int] | None
    unit: Unit

    def __post_init__(self) -> None:
        """Check what can be told without the data.

        Raises:
            ValueError: If more than one is given, or a value is out of range.
        """
        check_choices(type(self), unit=self.unit)
        given = [name for name in ("weights", "temperature", "counts") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of weights, temperature and counts, not {' and '.join(given)}")
        check_range("temperature", self.temperature, above=0)

    def check_names(self, sources: Sequence[str]) -> None:
        """Make sure that every source has an amount, and nothing else has.

        Raises:
            ValueError: Naming the setting, what is unknown or missing, and the value that is out of range.
        """
        for name, values in (("weights", self.weights), ("counts", self.counts)):
            if values is None:
                continue
            if unknown := sorted(set(values) - set(sources)):
                raise ValueError(
                    f"{name} names {', '.join(unknown)}, but sources are {', '.join(sources)}: name those"
                )
            if missing := [source for source in sources if source not in values]:
                raise ValueError(
                    f"{name} has nothing for {', '.join(missing)}: give a number, 0 for validation and test alone"
                )
            for source, value in values.items():
                check_range(f"{name}.{source}", value, at_least=0)
            if not any(values.values()):
                raise ValueError(
                    f"{name} are all 0, so that there is nothing to train on: give one of them more"
                )

    def trains_on(self, source: str) -> bool:
        """Whether an epoch takes anything of a source."""
        values = self.weights if self.weights is not None else self.counts
        return values is None or values[source] > 0

    def per_epoch(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Units that an epoch takes of each source.

        Weights and temperature give the largest epoch in which no source repeats anything, rounded to whole units.

        Args:
            sizes: Units that each source has, of those that are trained on; >= 1.

        Raises:
            ValueError: If a source has fewer than its count, or its share of an epoch is less than one.

        Example:
            >>> Amounts(None, 2.0, None, "records").per_epoch({"a": 900, "b": 100})
            {'a': 300, 'b': 100}
        """
        if self.counts is not None:
            for source, size in sizes.items():
                if self.counts[source] > size:
                    raise ValueError(
                        f"counts.{source}={self.counts[source]:,} {self.unit}, but its training split has {size:,}: no "
                        "epoch takes one twice, so give at most that"
                    )
            return {source: self.counts[source] for source in sizes}
        shares = self._shares(sizes)
        amounts = {
            source: round(size * share) for (source, size), share in zip(sizes.items(), shares, strict=True)
        }
        for source, amount in amounts.items():
            if not amount:
                setting = f"weights.{source}" if self.weights is not None else "temperature"
                raise ValueError(
                    f"{setting} leaves less than one of {source}'s {sizes[source]:,} {self.unit} to an epoch, which is as "
                    "long as the sources allow without repeating: raise it, or use counts"
                )
        return amounts

    def _shares(self, sizes: Mapping[str, int]) -> list[float]:
        """Share of each source that an epoch takes, in (0, 1]; of one source all."""
        if self.temperature is not None:
            # size^(1/T) per unit, by logarithms: no temperature is too low for a float then.
            logs = [(1 / self.temperature - 1) * log(size) for size in sizes.values()]
            return [exp(each - max(logs)) for each in logs]
        if self.weights is None:
            return [1.0] * len(sizes)
        rates = [self.weights[source] / size for source, size in sizes.items()]
        return [rate / max(rates) for rate in rates]
