"""How votes are counted: the settings, and what is expected of a crowd before its votes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_range
from ..records import RecordError, SourceRow, read_json_lines

__all__ = ["TOLERANCE", "CrowdConfig", "CrowdPriors", "crowd_priors", "read_priors", "resolve_prior"]

WORDS = ("none", "uniform", "mean")
TOLERANCE = 1e-3
"""How far the sum of a given distribution may be from 1; it is divided by its sum."""


@dataclass(frozen=True)
class CrowdConfig:
    """How votes become the target distribution of a response.

    That the prior weighs as much as ten votes, that it is floored, and everything below it, is our inference and not
    the paper's (see the module).

    Attributes:
        prior: What to expect before anyone voted, for responses that bring no prior of their own: ``none``;
            ``uniform``; ``mean``, the mean distribution of the training split; K probabilities; or a JSON Lines file
            of ``{"id": record id, "prior": [K numbers], or one such list per response}``.
        prior_strength: Votes that the prior weighs as much as, >= 0.
        prior_floor: Least probability of a label in the prior, in [0, 1); what a prior rules out could otherwise not
            come back without votes. The prior is divided by its sum afterwards.
        smoothing: Mass that a target which is certain of one label gives to the next most likely one, in [0, 0.5).
        vote_correlation: Correlation rho of the votes on a response, in [0, 1): n votes count as
            n / (1 + (n - 1) rho), since personas of one language model are not independent people.
        max_votes: Most that the votes on a response may count in all, > 0; None for no limit.
    """

    prior: str | tuple[float, ...] = "none"
    prior_strength: float = 10.0
    prior_floor: float = 1e-3
    smoothing: float = 0.0
    vote_correlation: float = 0.0
    max_votes: float | None = None

    def __post_init__(self) -> None:
        """Check ranges; whether a file of priors is there shows when it is read.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        if not isinstance(self.prior, str):
            _distribution(self.prior, "prior")
        elif not self.prior:
            raise ValueError(f"prior must be one of {', '.join(WORDS)}, probabilities or a file; got ''")
        check_range("prior_strength", self.prior_strength, at_least=0)
        check_range("prior_floor", self.prior_floor, at_least=0, below=1)
        check_range("smoothing", self.smoothing, at_least=0, below=0.5)
        check_range("vote_correlation", self.vote_correlation, at_least=0, below=1)
        check_range("max_votes", self.max_votes, above=0)


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
        return _distribution(prior, "prior", num_labels)
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
        return _distribution(mean.tolist(), "the mean of the training split", num_labels)
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
            return str(name), _distribution(value, "prior", num_labels)
        size = len(value[0]) if num_labels is None else num_labels
        parts = [_distribution(part, f"prior[{i}]", size) for i, part in enumerate(value)]
        return str(name), torch.stack(parts)
    except ValueError as error:
        raise RecordError("prior", value, f"probabilities ({error})", reason="out of range") from None


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


def _distribution(values: object, name: str, num_labels: int | None = None) -> Tensor:
    """Probabilities as a tensor, (K,) float64, divided by their sum."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name} must be a list of probabilities, got {values!r}")
    if num_labels is not None and len(values) != num_labels:
        raise ValueError(f"{name} must have {num_labels} probabilities, got {len(values)}: {values!r}")
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 1 + TOLERANCE:
            raise ValueError(f"{name} must hold numbers in [0, 1], got {value!r}")
    if abs(sum(values) - 1) > TOLERANCE:
        raise ValueError(f"{name} must sum to 1 (within {TOLERANCE:g}), got {sum(values):g}: {values!r}")
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()
