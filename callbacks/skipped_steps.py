"""SkippedSteps: optimiser steps whose gradient is not finite are left out and counted; too many of them end the run."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pluralign.datamodules.checks import check_range
from pluralign.models.base import BaseModule

__all__ = ["SkippedSteps"]

SHOWN_RECORDS, SHOWN_WEIGHTS = 8, 3
"""Records and weights that a message names."""


class SkippedSteps(L.Callback):
    """Leave out optimiser steps whose gradient is NaN or infinite, count them, and end the run where too many come in a row.

    Without this callback such a gradient ruins the weights, and the run stops at the next look at them. With it the step is
    left out as a whole: weights and all that the optimiser keeps (moments, counts of steps) stay as they were to the bit, and
    the gradients of every batch gathered for the step are dropped. All else goes on as if the step had been taken: it counts in
    ``global_step``, ``max_steps`` and the log, and the learning rate follows its schedule. Training batches whose rewards or
    loss are not finite no longer end the run either, and no training metric counts them; weights that are not finite
    still do. All ranks leave out the same steps, with sharded weights, too.

    ``train/skipped_steps`` is the number of steps left out since the run began; ``run.json`` keeps it, and so do checkpoints.

    The scaler of ``16-mixed`` leaves out steps by itself while it looks for its scale. Those are counted, and count as in a
    row only once the scale is down to 1, where no smaller one would help.

    To know whether a gradient is finite a process has to wait for the device at each optimiser step, and for the rewards and
    the loss at each batch. Runs without this callback never wait.
    """

    def __init__(self, patience: int = 10) -> None:
        """Fix how much is borne.

        Args:
            patience: Steps in a row that may be left out, >= 0. One more ends the run, with the weights as they were
                before the first of them; 0 ends it at the first gradient that is not finite.

        Raises:
            ValueError: If it is below 0.

        .. versionadded:: 0.1
        """
        check_range("patience", patience, at_least=0)
        self.patience = patience
        self.total = self.in_a_row = 0
        self._records: list[str] = []
        self._warned = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that gradients can be seen.

        Raises:
            ValueError: If the strategy keeps them to itself.
        """
        self._records, self._warned = [], False
        strategy = trainer.strategy
        if strategy.handles_gradient_accumulation:  # that of DeepSpeed, whose engine owns the gradients
            raise ValueError(
                f"SkippedSteps sees no gradients under {type(strategy).__name__}, which steps by itself: leave the callback "
                "out, or use another trainer.strategy, such as ddp or fsdp2"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have the module pass over batches that are not finite."""
        if isinstance(pl_module, BaseModule):
            pl_module.passes_over = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have it pass over none, and say how many steps were left out."""
        if isinstance(pl_module, BaseModule):
            pl_module.passes_over = False
        if self.total:
            rank_zero_info(
                f"{self.total:,} of {trainer.global_step:,} optimiser steps were left out: their gradients were not finite"
            )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Have it pass over none: what is run next may not have this callback."""
        if isinstance(pl_module, BaseModule):
            pl_module.passes_over = False

    # A step --------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401  Lightning's type
        batch_idx: int,
    ) -> None:
        """Know whose gradients are gathered."""
        if isinstance(batch, Mapping):
            self._records += batch.get("id", [])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients away from an optimiser if one of them is not finite.

        Raises:
            RuntimeError: If more steps than ``patience`` would be left out in a row; names steps, weights and records.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        flag = _unfit(parameters, pl_module.device)
        if (
            trainer.world_size > 1
        ):  # shards differ over the ranks, and one rank's decision has to be that of all
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        records, self._records = self._records, []
        if not bool(flag):
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += _lowest_scale(trainer)
        weights = _unfit_names(pl_module, parameters)
        where = (
            f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        )
        told = where + (f", records {_few(map(repr, records), SHOWN_RECORDS)}" if records else "")
        if self.in_a_row > self.patience:
            raise RuntimeError(_ending(self.in_a_row, told, weights, optimizer))
        for parameter in parameters:
            parameter.grad = None  # optimisers pass over what has no gradient, with all that they keep of it
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"the gradient is NaN or infinite at {told}{_of(weights)}: the step is left out; train/skipped_steps counts on"
            )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type
        batch: Any,  # noqa: ANN401  Lightning's type
        batch_idx: int,
    ) -> None:
        """Log the count."""
        # As a tensor of the CPU: Lightning would copy a plain number to the device.
        pl_module.log("train/skipped_steps", torch.tensor(float(self.total)), batch_size=1)

    # A run that goes on ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """What was left out so far."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Count on."""
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _unfit(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """1 if a gradient that this rank has is not finite, else 0; a float scalar on a device."""
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    there = [gradient for gradient in gradients if gradient.numel()]  # a shard may be empty
    if not there:
        return torch.zeros((), device=device)
    # The largest size, which is NaN if one is, in one pass over all; a sum of squares may overflow.
    largest = nn.utils.get_total_norm(there, norm_type=float("inf"))
    return (~largest.isfinite()).to(device, torch.float32)


def _unfit_names(module: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    """Names of the parameters whose gradients are not finite, of sharded ones as far as this rank has them."""
    asked = set(parameters)
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter in asked and parameter.grad is not None and not _local(parameter.grad).isfinite().all()
    ]


def _lowest_scale(trainer: L.Trainer) -> bool:
    """Whether gradients have no scale that could still be lowered."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return scaler is None or scaler.get_scale() <= 1.0


def _few(names: Iterable[str], number: int) -> str:
    listed = list(names)
    rest = len(listed) - number
    return ", ".join(listed[:number]) + (f" and {rest} more" if rest > 0 else "")


def _of(weights: list[str]) -> str:
    return f", of {_few(weights, SHOWN_WEIGHTS)}" if weights else ""


def _ending(number: int, told: str, weights: list[str], optimizer: Optimizer) -> str:
    """The message of a run that ends."""
    steps = "" if number == 1 else f" in {number:,} steps in a row, the last of them"
    return (
        f"the gradient is NaN or infinite{steps} at {told}{_of(weights)}; the weights are as they were before. Likely causes: "
        f"a learning rate (now {optimizer.param_groups[0]['lr']:g}) that has led the weights where numbers overflow: lower it, "
        "warm it up, or set trainer.gradient_clip_val (such as 1.0), and go on from an earlier checkpoint; weights, margins or "
        "shares of these records that are out of proportion; float16 (use bf16-mixed or 32-true)"
    )
