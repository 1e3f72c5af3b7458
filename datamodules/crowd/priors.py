"""What data expect of their crowd before its votes, and whether every item has something to learn from."""

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_info

from ..joins import SideTable
from ..tokens import CacheReader, TokenTable
from .config import CrowdConfig, CrowdPriors, crowd_priors

__all__ = ["VotePriors"]


class VotePriors:
    """Priors of every kind of votes of a token cache."""

    def __init__(self, name: str, reader: CacheReader) -> None:
        """Look at nothing yet.

        Args:
            name: Of the data, for messages.
            reader: The cache.
        """
        self.name, self.reader = name, reader
        self._priors: dict[str, tuple[CrowdConfig, CrowdPriors]] = {}

    def mean_votes(self, name: str) -> list[float] | None:
        """Mean share of every category over the training split's judged items; None if it has no such votes."""
        if name not in self.reader.categories:
            return None
        mean = self.reader.mean_votes(name)
        return None if mean is None else [float(share) for share in mean]

    def of(self, name: str, crowd: CrowdConfig) -> CrowdPriors:
        """Priors of one kind of votes.

        Args:
            name: ``votes`` or ``comparison_votes``.
            crowd: Names the prior.

        Raises:
            ValueError: If the prior does not fit the votes, or is the mean of votes that training does not have.
        """
        if name not in self._priors or self._priors[name][0] != crowd:
            mean = self.reader.mean_votes(name) if crowd.prior == "mean" else None
            self._priors[name] = crowd, crowd_priors(crowd, self.reader.categories[name], mean=mean)
        return self._priors[name][1]

    def of_all(self, crowd: CrowdConfig) -> dict[str, CrowdPriors]:
        """Priors for every kind of votes; what is given for so many categories need not fit both kinds."""
        priors: dict[str, CrowdPriors] = {}
        errors: dict[str, ValueError] = {}
        for name in self.reader.categories:
            try:
                priors[name] = self.of(name, crowd)
            except ValueError as error:
                errors[name] = error
        for name, reason in errors.items():
            if not priors:
                raise reason
            rank_zero_info(f"{self.name}: loader.crowd.prior is not for {name}: {reason}")
        return priors

    def check_judged(
        self, name: str, crowd: CrowdConfig, tables: Mapping[str, TokenTable], joined: SideTable | None
    ) -> None:
        """Make sure that every item of some splits has votes or a prior.

        Args:
            name: ``votes`` or ``comparison_votes``.
            crowd: Names the prior.
            tables: The splits' records.
            joined: Side table of priors, if there is one.

        Raises:
            ValueError: Naming split, record and item that has neither, and what to change; or if the data have no
                such votes at all, or the prior does not fit them.
        """
        if name not in self.reader.categories:
            raise ValueError(f"{self.name} has no {name}")
        counts, priors = crowd.prior_strength > 0, self.of(name, crowd)
        if priors.shared is not None and counts:
            return
        for split, table in tables.items():
            if split == "predict":
                continue
            lacking = table.without_votes(
                name,
                self.reader.categories[name],
                own_prior=counts,
                known=priors.rows if counts else (),
                joined=joined,
            )
            if lacking is not None:
                record, item = lacking
                raise ValueError(
                    f"{self.name} {split}: item {item} of record {record!r} has no {name} and no prior, so there is "
                    "nothing to learn from it: set loader.crowd.prior (uniform, mean, probabilities or a file) with "
                    "loader.crowd.prior_strength > 0, or leave such items out of the data"
                )
