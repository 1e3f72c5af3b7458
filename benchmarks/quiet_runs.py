"""Fits that benchmarks make by the hundred: on the CPU, and nothing else."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch

__all__ = ["adamw", "quiet_trainer"]


def adamw(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    """AdamW without decay."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)


def quiet_trainer(steps: int, *callbacks: L.Callback, validates: bool = False) -> L.Trainer:
    """So many steps on the CPU.

    Args:
        steps: Of the optimiser.
        callbacks: What looks on.
        validates: Whether validation is run, too.
    """
    return L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        limit_val_batches=None if validates else 0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
