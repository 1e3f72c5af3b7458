"""WatchedModule: a module whose runs stop where rewards, loss or trained weights are no longer finite."""

from lightning.pytorch.trainer.states import TrainerStatus

from pluralign.datamodules.batch import PreferenceBatch

from ._finite import BatchName, Finding, FiniteWatch, message
from .base import BaseModule

__all__ = ["WatchedModule"]

LOOK_EVERY = 50
"""Training batches between two looks for numbers that are not finite, where the trainer logs nothing."""


class WatchedModule(BaseModule):
    """A module that stops a run whose numbers are not finite, and says at which batch that began."""

    _finite: FiniteWatch | None = None

    @property
    def _look_every(self) -> int:
        every: int = getattr(
            self.trainer, "log_every_n_steps", 0
        )  # which Lightning sets without declaring it
        return every or LOOK_EVERY

    def on_train_start(self) -> None:
        """Go on where a run was interrupted; begin to watch for numbers that are not finite."""
        super().on_train_start()
        self._finite = FiniteWatch(self._look_every)

    def on_train_end(self) -> None:
        """Watch no longer."""
        self._finite = None

    def look(self) -> None:
        """Stop a run whose rewards, loss or trained weights are no longer finite.

        Called where the trainer logs, before every validation, at the end of every epoch and before a checkpoint is
        written, since each look waits for the device once. All ranks look together.

        Raises:
            RuntimeError: Naming the first such batch: step, epoch, records, and likely causes.
        """
        trainer = self.attached_trainer
        if self._finite is None or trainer is None or trainer.state.status != TrainerStatus.RUNNING:
            return  # what a run that is being stopped still saves is not looked at
        self._stop_at(self._finite.look(self, trainer.world_size))

    def _stop_at(self, finding: Finding | None, *, passing: bool = False) -> bool:
        """Stop a run at what was found; whether something was found that is passed over, as long as weights are finite."""
        if finding is None:
            return False
        if passing and not finding.weights:
            return True
        trainer = self.attached_trainer
        optimizers = [] if trainer is None else trainer.optimizers
        rate = optimizers[0].param_groups[0]["lr"] if optimizers else None
        precision = "32-true" if trainer is None else str(trainer.precision)
        trying = trainer is not None and self.groundwork is None  # a tuner has put callbacks aside
        hint = "; rates are being tried: lower max_lr of LearningRateFinder" if trying else ""
        raise RuntimeError(message(finding, precision=precision, rate=rate) + hint)

    def _name(self, batch: PreferenceBatch, stage: str) -> BatchName:
        """What a message would call a batch."""
        trainer, records = self.attached_trainer, batch.get("id", [])
        if trainer is None or stage != "train":
            return BatchName(f"a batch of stage {stage}", records)
        where = f"step {self.global_step} (epoch {self.current_epoch}, batch {trainer.fit_loop.batch_idx})"
        return BatchName(where, records)
