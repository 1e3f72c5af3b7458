"""LongestBatch: a dry run of the heaviest batch, before hours are spent on the others."""

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pluralign.datamodules.batch import HasHeaviest
from pluralign.models.base import BaseModule, out_of_memory

__all__ = ["LongestBatch"]

GB = 1e9
CLOSE = 0.95
"""Share of the memory beyond which a step is said to be close to its end."""


class LongestBatch(L.Callback):
    """Run forward and backward over the heaviest batch before the first step, and say what memory it takes.

    The batch is the one with most tokens of the epoch that begins, on every rank. Room for the optimiser's state, which the
    first step makes, is held meanwhile. Weights, gradients, metrics, random numbers and the order of the data are afterwards what they
    were: the run is the same bit for bit. What does not fit ends it, in a message that says what to change.

    On a GPU the number is the allocator's peak; on the CPU it is the bytes of all tensors that the step holds at once.
    """

    def __init__(self, stop: bool = False) -> None:
        """Say whether that is all.

        Args:
            stop: Whether the run ends after it, with nothing trained.
        """
        self.stop = stop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rehearse.

        Raises:
            RuntimeError: If the step does not fit into the memory.
        """
        loader = trainer.train_dataloader
        if not isinstance(pl_module, BaseModule) or not isinstance(loader, HasHeaviest):
            rank_zero_warn(
                "LongestBatch looks at nothing: it needs a module and a data module of pluralign, whose loader knows how long its "
                "texts are"
            )
            return
        try:
            found = pl_module.rehearse(loader)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise RuntimeError(
                "the longest batch does not fit into the memory, and the run would have ended there: lower "
                "data.loader.max_tokens or data.text.max_length, set backbone.gradient_checkpointing=true, "
                "backbone.dtype=bfloat16, backbone.lora or another trainer.strategy; `pluralign plan` says what each takes"
            ) from error
        share = found.step / max(1, found.room)
        rank_zero_info(
            f"longest batch: {found.tokens:,} tokens; a step takes {found.step / GB:.3g} GB beside the weights, "
            f"{found.state / GB:.3g} GB of it the optimiser's state, of {found.room / GB:.3g} GB that there are ({share:.0%})"
        )
        if share > CLOSE:
            rank_zero_warn(
                f"longest batch: a step takes {share:.0%} of the memory, and another epoch's may take more: lower "
                "data.loader.max_tokens"
            )
        if self.stop:
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step
