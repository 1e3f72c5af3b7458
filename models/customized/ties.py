"""TieWatch: whether the comparisons that a run begins with have anything to teach."""

import lightning as L
import torch
from torch import Tensor

__all__ = ["TieWatch"]

PATIENCE = 50
"""Training batches of ties alone before a run is stopped; an epoch that has nothing else is, too."""


class TieWatch:
    """Counts the weights of comparisons that prefer one response, until there are some; reads them where a module looks."""

    def __init__(self, device: torch.device) -> None:
        """Begin to count.

        Args:
            device: Of the batches.
        """
        self._batches, self._total = 0, torch.zeros((), device=device)

    def count(self, weight: Tensor) -> None:
        """Count a training batch.

        Args:
            weight: Sum of the weights of its comparisons that prefer one response, which is not read.
        """
        self._batches, self._total = self._batches + 1, self._total + weight.detach()

    def settled(self, trainer: L.Trainer) -> bool:
        """Whether there is something to learn; all ranks ask together.

        Args:
            trainer: Which is training.

        Raises:
            ValueError: If no comparison of many batches, or of an epoch, prefers one response.
        """
        if self._batches < min(PATIENCE, trainer.num_training_batches):
            return False  # too early to say
        if float(trainer.strategy.reduce(self._total.clone(), reduce_op="sum")) > 0:
            return True
        raise ValueError(
            f"every comparison of {self._batches} training batches is a tie (equal scores, or a preference of 0.5), or has "
            "weight 0, so that there is nothing to learn: give comparisons of which one response is preferred"
        )
