"""MemberCorrelation: how alike the members of an ensemble are."""

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MemberCorrelation"]

ROUNDING = 1e-12
"""Share of the mean square below which a variance is rounding."""


class MemberCorrelation(Metric):
    """Mean Pearson correlation of two members' differences, each over what both voted on, of all batches and ranks.

    Pairs of members of whom one never varies, or that have voted on nothing together, are left out; NaN if that leaves none.
    """

    full_state_update = False

    sums: Tensor

    def __init__(self, num_members: int) -> None:
        """Start at zero.

        Args:
            num_members: M, >= 1; one member has nobody to be like.
        """
        super().__init__()
        # float64, of which one subtracts: differences may lie far from zero.
        zeros = torch.zeros(4, num_members, num_members, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, differences: Tensor) -> None:
        """Count some comparisons.

        Args:
            differences: Of each member, (P, M); NaN where one does not vote.
        """
        voted = (~differences.isnan()).double()
        values = differences.nan_to_num(nan=0.0).double()
        parts = (voted.T @ voted, values.T @ voted, values.square().T @ voted, values.T @ values)
        self.sums = self.sums + torch.stack(parts)

    def matrix(self) -> Tensor:
        """Correlation of each two members on this rank, (M, M) float64; NaN where there is none."""
        number, total, squares, products = self.sums
        size = number * squares
        spread = size - total.square()  # of the row's member, over what both voted on
        spread = torch.where(spread > ROUNDING * size, spread, torch.nan)
        matrix: Tensor = (number * products - total * total.T) / (spread * spread.T).sqrt()
        return matrix

    def compute(self) -> Tensor:
        """The mean, a float64 scalar in [-1, 1]."""
        matrix = self.matrix()
        pairs = matrix[torch.ones_like(matrix, dtype=torch.bool).triu(1)]
        return pairs.nanmean().clamp(-1, 1)
