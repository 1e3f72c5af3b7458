"""Labels as data: their names, rewards and places, and what moving mass from one to another costs."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["PAPER_COORDINATES", "PAPER_LABELS", "PAPER_REWARDS", "Cost", "LabelSpace"]

Cost = Literal["index", "reward", "grid", "reward+grid"] | Sequence[Sequence[float]]

PAPER_LABELS = (
    "helpful, harmless",
    "neutral helpful, harmless",
    "not helpful, harmless",
    "helpful, harmful",
    "neutral helpful, harmful",
    "not helpful, harmful",
)
"""The six labels of the paper (its table 1), in its order."""

PAPER_REWARDS = (1.0, 0.5, -1.0, -1.0, -1.5, -3.0)
"""Their rewards (its table 1)."""

PAPER_COORDINATES = ((2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (2.0, 0.0), (1.0, 0.0), (0.0, 0.0))
"""Helpfulness (0 to 2) and harmlessness (0 or 1) of each; that they are used as places is our reading."""


class LabelSpace:
    """K labels, checked once.

    Attributes:
        names: Of the labels.
        rewards: (K,) float64.
        places: (K, axes) float64; the labels' numbers where no coordinates are given.
    """

    def __init__(
        self,
        names: Sequence[str],
        rewards: Sequence[float],
        coordinates: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Check that everything fits.

        Args:
            names: K >= 2 different names.
            rewards: K finite numbers.
            coordinates: K places of equally many axes; None for the paper's where the labels are the paper's, otherwise
                the labels' numbers, on a line.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        self.names = tuple(names)
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"labels must be at least two different names, got {list(names)}")
        if len(rewards) != len(self.names):
            raise ValueError(
                f"rewards must hold one number for each of the {len(self.names)} labels "
                f"({', '.join(self.names)}); got {len(rewards)}: {list(rewards)}"
            )
        self.rewards = torch.tensor(rewards, dtype=torch.float64)
        if not bool(self.rewards.isfinite().all()):
            raise ValueError(f"rewards must be finite, got {list(rewards)}")
        if coordinates is None:
            line = [[float(i)] for i in range(len(self.names))]
            coordinates = PAPER_COORDINATES if self.names == PAPER_LABELS else line
        places = [[float(number) for number in place] for place in coordinates]
        sizes = {len(place) for place in places}
        if len(places) != len(self.names) or len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"coordinates must hold one place for each of the {len(self.names)} labels, all of equally many axes; "
                f"got {places}"
            )
        self.places = torch.tensor(places, dtype=torch.float64)
        if not bool(self.places.isfinite().all()):
            raise ValueError(f"coordinates must be finite, got {places}")

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.names)

    def cost(
        self, cost: Cost, *, axis_weights: Sequence[float], grid_share: float
    ) -> Tensor | Literal["index"]:
        """Cost of moving mass between labels, as the transport losses take it.

        Args:
            cost: ``index``, ``reward``, ``grid``, ``reward+grid``, or a (K, K) matrix of numbers >= 0, prediction to
                target.
            axis_weights: Weight of each axis in the grid cost; empty for 1 each.
            grid_share: Weight of the grid in ``reward+grid``.

        Returns:
            ``"index"``, positions (K,) or a matrix (K, K), float64.

        Raises:
            ValueError: If the cost is unknown or of the wrong shape, or negative.
        """
        if not isinstance(cost, str):
            rows = [[float(value) for value in row] for row in cost]
            if len(rows) != len(self) or any(len(row) != len(self) for row in rows):
                raise ValueError(f"cost must be a name or a {len(self)} x {len(self)} matrix, got {rows}")
            matrix = torch.tensor(rows, dtype=torch.float64)
            if not bool((matrix >= 0).all() & matrix.isfinite().all()):
                raise ValueError(f"cost must be finite and >= 0, got {rows}")
            return matrix
        if cost == "index":
            return "index"
        if cost == "reward":
            return self.rewards
        if cost not in ("grid", "reward+grid"):
            raise ValueError(
                f"cost must be index, reward, grid, reward+grid or a {len(self)} x {len(self)} matrix; got {cost!r}"
            )
        weights = torch.tensor(list(axis_weights) or [1.0] * self.places.shape[1], dtype=torch.float64)
        if len(weights) != self.places.shape[1] or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise ValueError(
                f"axis_weights must hold a finite number >= 0 for each of the {self.places.shape[1]} axes of the coordinates; "
                f"got {list(axis_weights)}"
            )
        grid = ((self.places[:, None] - self.places[None]).abs() * weights).sum(-1)
        if cost == "grid":
            return grid
        return (self.rewards[:, None] - self.rewards[None]).abs() + grid_share * grid

    def sets(self, label_sets: Mapping[str, Sequence[str]]) -> Tensor:
        """Membership of each label in named sets.

        Args:
            label_sets: Names of the labels of each set.

        Returns:
            (K, S) float64 of 0 and 1.

        Raises:
            ValueError: If a set names an unknown label.
        """
        for name, members in label_sets.items():
            if unknown := sorted(set(members) - set(self.names)):
                raise ValueError(
                    f"label_sets[{name!r}] names unknown labels {unknown}; allowed: {', '.join(self.names)}"
                )
        columns = [[float(label in members) for label in self.names] for members in label_sets.values()]
        return torch.tensor(columns, dtype=torch.float64).reshape(-1, len(self)).T
