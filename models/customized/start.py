"""StartWeights: the weights that a run started from, and how far it has moved from them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["StartWeights"]


class StartWeights:
    """Copies of trained weights as they were at the start; no part of a module's state.

    Attributes:
        digest: Number that tells these weights from others: the sum of their squares, in float64.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """Copy the weights.

        Args:
            weights: As they are at the start.

        Raises:
            ValueError: If they are sharded over ranks.
        """
        self._weights = list(weights)
        if any(isinstance(weight, DTensor) for weight in self._weights):
            raise ValueError(
                "l2_sp is not there for weights that are sharded over ranks: use trainer.strategy=ddp"
            )
        self._start = [weight.detach().clone() for weight in self._weights]
        self.digest = float(sum(float(weight.double().square().sum()) for weight in self._start))

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._weights)

    def squared_distance(self) -> Tensor:
        """Sum of squared differences between now and the start: a scalar with its graph, float32, on the weights' device."""
        device = self._weights[0].device
        if self._start[0].device != device:
            self._start = [
                start.to(weight.device) for start, weight in zip(self._start, self._weights, strict=True)
            ]
        pairs = zip(self._weights, self._start, strict=True)
        return torch.stack([(weight.float() - start.float()).square().sum() for weight, start in pairs]).sum()
