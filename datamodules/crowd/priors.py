"""What is expected of a crowd before its votes, and whether every item has something to learn from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from ..joins import SideTable
from ..records import RecordError, SourceRow, read_json_lines
from ..tokens import DataReader, RecordTable
from .config import WORDS, CrowdConfig, distribution

__all__ = ["CrowdPriors", "ItemPriors", "VotePriors", "crowd_priors", "read_priors", "resolve_prior"]


def resolve_prior(
    config: CrowdConfig, num_labels: int, mean: Tensor | NDArray[np.float64] | None = None
) -> Tensor | dict[str, Tensor] | None:
    """Turn ``config.prior`` into numbers.

    Args:
        config: Names the prior.
        num_labels: Number of labels K.
        mean: Mean distribution of the training split, (K,); needed for ``prior: mean`` alone.

    Returns:
        None for ``none``; a distribution, (K,) float64; or, of a file, what :func:`read_priors` reads.

    Raises:
        ValueError: If there is no such word and no such file, if the prior has not K probabilities, or the mean is
            missing.
        RecordError: If a line of the file is no prior.

    Example:
        >>> resolve_prior(CrowdConfig(prior="uniform"), 4)
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)

    .. versionadded:: 0.1
    """
    prior = config.prior
    if not isinstance(prior, str):
        return distribution(prior, "prior", num_labels)
    if prior == "none":
        return None
    if prior == "uniform":
        return torch.full((num_labels,), 1 / num_labels, dtype=torch.float64)
    if prior == "mean":
        if mean is None:
            raise ValueError(
                "prior='mean' needs votes in the training split, and there are none: set prior to uniform, "
                "probabilities or a file"
            )
        return distribution(mean.tolist(), "the mean of the training split", num_labels)
    if not Path(prior).is_file():
        raise ValueError(
            f"prior={prior!r} is none of {', '.join(WORDS)} and no file (looked for {Path(prior).absolute()})"
        )
    return read_priors(prior, num_labels)


def read_priors(path: str | Path, num_labels: int | None = None) -> dict[str, Tensor]:
    """Read priors from a JSON Lines file of ``{"id": record id, "prior": ...}``.

    Args:
        path: The file; may be compressed with gzip. ``prior`` holds K numbers, or one list of K per response.
        num_labels: Number of labels K; None for that of the first line.

    Returns:
        Record id to a distribution for all its responses, (K,), or one per response, (R, K); float64.

    Raises:
        RecordError: Naming file, line and field, if a line is malformed or an id occurs twice.

    .. versionadded:: 0.1
    """
    priors: dict[str, Tensor] = {}
    for row in read_json_lines(Path(path)):
        if isinstance(row, RecordError):
            raise row
        try:
            name, prior = _prior_line(row, num_labels)
            if name in priors:
                raise RecordError("id", name, "an id that occurs once in the file", reason="duplicate id")
        except RecordError as error:
            raise error.at(row.file, row.line) from None
        priors[name], num_labels = prior, prior.shape[-1]
    return priors


def _prior_line(row: SourceRow, num_labels: int | None) -> tuple[str, Tensor]:
    name, value = row.get("id"), row.get("prior")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RecordError("id", name, "text or a whole number", reason="wrong type")
    if not isinstance(value, list) or not value:
        allowed = "a list of probabilities, or one such list per response"
        raise RecordError("prior", value, allowed, reason="wrong type")
    try:
        if not isinstance(value[0], list):
            return str(name), distribution(value, "prior", num_labels)
        size = len(value[0]) if num_labels is None else num_labels
        parts = [distribution(part, f"prior[{i}]", size) for i, part in enumerate(value)]
        return str(name), torch.stack(parts)
    except ValueError as error:
        raise RecordError("prior", value, f"probabilities ({error})", reason="out of range") from None


class ItemPriors(Protocol):
    """What is asked of priors when a batch is made."""

    def of(self, places: Sequence[tuple[str, int]]) -> Tensor | None:
        """Prior means of items, named by record id and place in it, (n, K); NaN for one without, None for none at all."""
        ...


@dataclass(frozen=True)
class CrowdPriors:
    """What is expected of each response before anyone voted; picklable. Made by :func:`crowd_priors`.

    Attributes:
        shared: One distribution for every response, (K,); None for none.
        table: Distributions of single responses or of all responses of a record, one after the other, and a row of NaN
            for records that have none, (T + 1, K); None if the priors are not per record.
        rows: Record id to the first row of its distributions in ``table`` and their number; 0 for one that holds for
            every response.
    """

    shared: Tensor | None = None
    table: Tensor | None = None
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, places: Sequence[tuple[str, int]]) -> Tensor | None:
        """Priors of some responses.

        Args:
            places: Record id and index of each response in its record.

        Returns:
            Prior means, (n, K) float32; NaN for a record without a prior where priors are per record. None if there
            is no prior at all.

        Raises:
            ValueError: If a record has priors for fewer responses than that.
        """
        if self.table is None:
            return None if self.shared is None else self.shared.float().expand(len(places), -1)
        rows = [self._row(name, index) for name, index in places]
        return self.table[torch.tensor(rows, dtype=torch.int64)]

    def _row(self, name: str, index: int) -> int:
        if name not in self.rows:
            return -1
        first, number = self.rows[name]
        if number and index >= number:
            raise ValueError(f"record {name!r} has priors for {number} responses, but a response {index}")
        return first + (index if number else 0)


def crowd_priors(
    config: CrowdConfig, num_labels: int, mean: Tensor | NDArray[np.float64] | None = None
) -> CrowdPriors:
    """Priors as ``config.prior`` says, ready to be asked for single responses.

    Args:
        config: Names the prior.
        num_labels: Number of labels K.
        mean: Mean distribution of the training split, (K,); needed for ``prior: mean`` alone.

    Returns:
        The priors.

    Raises:
        ValueError: As :func:`resolve_prior`.
        RecordError: If a line of a file of priors is malformed.

    Example:
        >>> crowd_priors(CrowdConfig(prior=(0.25, 0.75)), 2).of([("a", 0), ("b", 3)])
        tensor([[0.2500, 0.7500],
                [0.2500, 0.7500]])

    .. versionadded:: 0.1
    """
    resolved = resolve_prior(config, num_labels, mean)
    if not isinstance(resolved, dict):
        return CrowdPriors(shared=resolved)
    rows: dict[str, tuple[int, int]] = {}
    first = 0
    for name, prior in resolved.items():
        rows[name] = first, len(prior) if prior.ndim == 2 else 0
        first += rows[name][1] or 1
    parts = [torch.atleast_2d(prior) for prior in resolved.values()]
    nothing = torch.full((1, num_labels), math.nan, dtype=torch.float64)
    return CrowdPriors(table=torch.cat([*parts, nothing]).float(), rows=rows)


class VotePriors:
    """Priors of every kind of votes of a token cache."""

    def __init__(self, name: str, reader: DataReader) -> None:
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

    def of_all(self, crowd: CrowdConfig) -> Mapping[str, ItemPriors]:
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
        self, name: str, crowd: CrowdConfig, tables: Mapping[str, RecordTable], joined: SideTable | None
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
