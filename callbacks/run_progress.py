"""RunProgress: a progress bar that says how long the run will take, and reads the device once in a while."""

import math
import time
from datetime import timedelta

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from pluralign.datamodules.checks import check_range

__all__ = ["RunProgress"]

Shown = dict[str, int | str | float | dict[str, float]]


class RunProgress(RichProgressBar):
    """Lightning's bar for terminals, with the time left of the whole run, and without waiting for the device at each step.

    Lightning's reads every value that it shows from the device after each batch, and so waits until the step is done. This one
    does so once in so many seconds. ``left`` is the time that the run will still take, validations included, at the speed so
    far; a run without an end has none. Values of training are shown without ``train/``.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        """Fix how often values are renewed.

        Args:
            seconds: Time between two readings of values, > 0; the bar itself moves at each batch.

        Raises:
            ValueError: If it is not above 0.
        """
        check_range("seconds", seconds, above=0)
        super().__init__()
        self.seconds = seconds
        self._read_at = -math.inf
        self._started: float | None = None
        self._share_at_start = 0.0
        self._shown: Shown = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started, self._share_at_start = time.perf_counter(), _share(trainer)
        self._read_at, self._shown = -math.inf, {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Shown:
        """Values as they were read last, or now if that is long ago; with the time left."""
        now = time.perf_counter()
        if now - self._read_at < self.seconds:
            return self._shown
        values = super().get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        self._shown = {name.removeprefix("train/"): value for name, value in values.items()}
        left = self._left(trainer, now)
        if left is not None:
            self._shown["left"] = str(timedelta(seconds=round(left)))
        self._read_at = now
        return self._shown

    def _left(self, trainer: L.Trainer, now: float) -> float | None:
        """Seconds that the run will still take; None if that is not known."""
        share = _share(trainer)
        done = share - self._share_at_start
        if self._started is None or done <= 0:
            return None
        return (now - self._started) * max(0.0, 1 - share) / done


def _share(trainer: L.Trainer) -> float:
    """Share of the run that is done, by batches and by steps, whichever ends first, in [0, 1]; 0 where it has no end."""
    shares = [0.0]
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and 0 < batches < math.inf:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        # At the end of an epoch its batches are counted still, and the next one's not yet.
        epochs = trainer.fit_loop.epoch_progress.current.completed + (done % batches) / batches
        shares.append(epochs / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(1.0, max(shares))
