"""Throughput: pairs (or items) and real tokens per second, and the share of padding."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from pluralign.datamodules.checks import check_range

__all__ = ["Throughput"]

COUNTED = ("comparisons", "response_row", "id")
"""What is counted of a batch: the first that it has."""


class Throughput(L.Callback):
    """Log training speed to the progress bar and the logger, without waiting for the device.

    ``pairs/s`` counts comparisons (responses where there are none) of this rank, ``tokens/s`` tokens that are
    not padding, ``padding`` is the share of the row cells that are. Of batches of prompts ``items/s`` counts the items alone:
    how many tokens there will be is not known before a policy has answered. Each value covers the steps since the last one,
    across epochs; the time between two batches, loading included, belongs to the later one, and that of validation
    to none.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        """Fix how often the values are renewed.

        Args:
            every_n_steps: Training batches per value, >= 1.

        Raises:
            ValueError: If it is below 1.
        """
        check_range("every_n_steps", every_n_steps, at_least=1)
        self.every_n_steps = every_n_steps
        self._started: float | None = None
        self._training = False
        self._unit = "pairs"
        self._reset()

    def _reset(self) -> None:
        self._seconds = 0.0
        self._steps = self._pairs = self._tokens = self._cells = 0

    def _resume(self) -> None:
        self._started = time.perf_counter()

    def _pause(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget another run; start the clock, as a run that goes on within an epoch starts no epoch."""
        self._reset()
        self._resume()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._resume()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock: what happens between epochs does not count."""
        self._pause()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock: validation does not count."""
        self._training = self._started is not None
        self._pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again, within training."""
        if self._training:
            self._resume()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the batch and log when it is time."""
        self._steps += 1
        self._unit = "items" if "plain_ids" in batch else "pairs"
        self._pairs += len(next(batch[key] for key in COUNTED if key in batch))
        if "row_lengths" in batch:  # a batch made by hand may leave it out
            self._tokens += sum(batch["row_lengths"])
            self._cells += batch["input_ids"].numel()
        if self._steps < self.every_n_steps:
            return
        self._pause()
        values = {f"{self._unit}/s": self._pairs / self._seconds}
        if self._cells:
            values |= {"tokens/s": self._tokens / self._seconds, "padding": 1 - self._tokens / self._cells}
        # Lightning would copy plain numbers to the device, which waits for all that runs there.
        logged = {f"train/{name}": torch.tensor(value) for name, value in values.items()}
        pl_module.log_dict(logged, prog_bar=True, batch_size=1)
        self._reset()
        self._resume()
