"""How votes are counted: the settings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_range

__all__ = ["TOLERANCE", "WORDS", "CrowdConfig", "distribution"]

WORDS = ("none", "uniform", "mean")
TOLERANCE = 1e-3
"""How far the sum of a given distribution may be from 1; it is divided by its sum."""


@dataclass(frozen=True)
class CrowdConfig:
    """How votes become the target distribution of a response.

    That the prior weighs as much as ten votes, that it is floored, and everything below it, is our reading and not
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
            distribution(self.prior, "prior")
        elif not self.prior:
            raise ValueError(f"prior must be one of {', '.join(WORDS)}, probabilities or a file; got ''")
        check_range("prior_strength", self.prior_strength, at_least=0)
        check_range("prior_floor", self.prior_floor, at_least=0, below=1)
        check_range("smoothing", self.smoothing, at_least=0, below=0.5)
        check_range("vote_correlation", self.vote_correlation, at_least=0, below=1)
        check_range("max_votes", self.max_votes, above=0)


def distribution(values: object, name: str, num_labels: int | None = None) -> Tensor:
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
