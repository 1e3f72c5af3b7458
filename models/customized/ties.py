"""StrictWatch: whether a run has anything to learn from, where ties say nothing."""

import lightning as L
import torch
from torch import Tensor

__all__ = ["StrictWatch"]

PATIENCE = 50
"""Training batches of ties alone before a run is stopped; an epoch that has nothing else is, too."""


class StrictWatch:
    """Counts comparisons in which one response is preferred, until there are some."""

    def __init__(self, device: torch.device) -> None:
        """Begin at zero.

        Args:
            device: Of the batches.
        """
        self._batches, self._total, self._done = 0, torch.zeros((), device=device), False

    def count(self, weight: Tensor) -> None:
        """Count a training batch.

        Args:
            weight: Of its comparisons that prefer one response, a scalar, which is not read.
        """
        if not self._done:
            self._batches, self._total = self._batches + 1, self._total + weight.detach()

    def look(self, trainer: L.Trainer) -> None:
        """Stop a run that has nothing to learn; all ranks look together.

        Raises:
            ValueError: If no comparison of many batches, or of an epoch, prefers one response.
        """
        patience = min(PATIENCE, trainer.num_training_batches)
        if self._done or not trainer.training or self._batches < patience:
            return
        if float(trainer.strategy.reduce(self._total.clone(), reduce_op="sum")) > 0:
            self._done = True
            return
        raise ValueError(
            f"every comparison of {self._batches} training batches is a tie (equal scores, or a preference of 0.5), or has "
            "weight 0, so that there is nothing to learn: give comparisons of which one response is preferred"
        )
