"""Members that are one and the same model: told by how their differences are correlated."""

import torch
from torch import Tensor, distributed

__all__ = ["PairSums", "check_different"]


class PairSums:
    """Sums over comparisons from which the correlations of the members' differences follow, of all ranks together.

    Attributes:
        device: Where the sums are.
    """

    def __init__(self, num_members: int, device: torch.device) -> None:
        """Begin at zero.

        Args:
            num_members: M, >= 2.
            device: Where the differences will be.
        """
        self.device = device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(num_members + 1, num_members + 1, dtype=dtype, device=device)

    @torch.no_grad()
    def update(self, differences: Tensor) -> None:
        """Count some comparisons.

        Args:
            differences: Of each member, (P, M).
        """
        values = torch.nn.functional.pad(differences.detach().to(self._sums.dtype), (0, 1), value=1.0)
        self._sums += values.T @ values

    def correlation(self) -> Tensor:
        """Mean correlation of two members' differences that both vary, a float32 scalar in [-1, 1]; NaN where no two do."""
        sums = self._sums.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        number, means = sums[-1, -1], sums[-1, :-1] / sums[-1, -1]
        covariance = sums[:-1, :-1] / number - means[:, None] * means
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        correlations = covariance / (deviation[:, None] * deviation)
        above = torch.ones_like(correlations, dtype=torch.bool).triu(1)
        return correlations[above].nanmean().clamp(-1, 1).float()


def check_different(correlation: float, largest: float) -> None:
    """Refuse members that are one model.

    Args:
        correlation: Mean correlation of two members' differences; NaN says nothing.
        largest: Which it may have at most.

    Raises:
        RuntimeError: If it is larger, with what to change.
    """
    if correlation > largest:
        raise RuntimeError(
            f"the members' differences are correlated by {correlation:.6f} on the average, more than largest_correlation="
            f"{largest}: they are one model, and its votes say nothing of its doubts. Give members more of their own: data "
            "(resample=bootstrap or folds), dropout, or weights (members=lora or full, whose last layers or all differ; heads "
            "over one network that they train together become alike); largest_correlation=1 lets them pass"
        )
