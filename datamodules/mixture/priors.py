"""JoinedPriors: what is expected of the votes of several sources, each by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..crowd import CrowdConfig, CrowdPriors, ItemPriors, VotePriors
from ..joins import SideTable
from ..tokens import RecordTable
from .reader import JoinedReader
from .tables import JoinedTable

__all__ = ["JoinedPriors"]


@dataclass(frozen=True)
class PriorsBySource:
    """Priors of items whose record ids begin with their source; picklable.

    Attributes:
        sources: Priors of each source that has votes, by its name.
        num_labels: Number of labels K.
    """

    sources: Mapping[str, ItemPriors]
    num_labels: int

    def of(self, places: Sequence[tuple[str, int]]) -> Tensor | None:
        """Prior means, (n, K) float32; NaN for an item without one. None if there is no prior at all."""
        items: dict[str, list[tuple[int, tuple[str, int]]]] = {}
        for number, (name, index) in enumerate(places):
            source, _, own = name.partition("/")
            items.setdefault(source, []).append((number, (own, index)))
        values = torch.full((len(places), self.num_labels), torch.nan)
        known = False
        for source, priors in self.sources.items():
            numbers, own_places = zip(*items.get(source, ()), strict=True) if source in items else ((), ())
            found = priors.of(own_places)
            if found is not None:
                values[list(numbers)], known = found, True
        return values if known else None


class JoinedPriors(VotePriors):
    """Priors of every kind of votes; ``mean`` is each source's own, and a file of priors names records as the sources do."""

    reader: JoinedReader

    def __init__(self, name: str, reader: JoinedReader) -> None:
        """Look at nothing yet.

        Args:
            name: Of the mixture, for messages.
            reader: What the sources say together.
        """
        super().__init__(name, reader)
        self.parts = {source: VotePriors(f"{name} {source}", part) for source, part in reader.parts.items()}

    def of_all(self, crowd: CrowdConfig) -> Mapping[str, ItemPriors]:
        """Priors for every kind of votes.

        Raises:
            ValueError: If they do not fit the votes, or a file of priors names a record that two sources have.
        """
        found = {source: priors.of_all(crowd) for source, priors in self.parts.items()}
        for name in self.reader.categories:
            self._check_file({source: priors[name] for source, priors in found.items() if name in priors})
        return {
            name: PriorsBySource({source: of[name] for source, of in found.items() if name in of}, number)
            for name, number in self.reader.categories.items()
        }

    def _check_file(self, priors: Mapping[str, ItemPriors]) -> None:
        """Refuse ids of a file that could be of either of two sources."""
        named = {
            source: self._ids(source) & each.rows.keys()
            for source, each in priors.items()
            if isinstance(each, CrowdPriors) and each.rows
        }
        for (one, first), (other, second) in combinations(named.items(), 2):
            if both := sorted(first & second):
                raise ValueError(
                    f"loader.crowd.prior has a prior of record {both[0]!r}, which {one} and {other} both have, and "
                    f"{len(both) - 1:,} more such: give one of the sources other ids"
                )

    def _ids(self, source: str) -> set[str]:
        part = self.reader.parts[source]
        tables = [part.table(split) for split in part.reports]
        merged = [names for table in tables for names in table.column("merged_id").to_pylist()]
        return {name for table in tables for name in table.column("id").to_pylist()}.union(*merged)

    def check_judged(
        self,
        name: str,
        crowd: CrowdConfig,
        tables: Mapping[str, RecordTable],
        joined: SideTable | None,
    ) -> None:
        """Make sure that every item of some splits has votes or a prior, source by source.

        Args:
            name: ``votes`` or ``comparison_votes``.
            crowd: Names the prior.
            tables: The splits' records.
            joined: Side table of priors, if there is one.

        Raises:
            ValueError: Naming source, split, record and item that has neither.
        """
        for source, priors in self.parts.items():
            own = {
                split: table.parts[source].table
                for split, table in tables.items()
                if isinstance(table, JoinedTable) and source in table.parts
            }
            if own.keys() - {"predict"}:
                priors.check_judged(name, crowd, own, joined)
