"""RunProgress: a progress bar that says how long the run will take, and reads the device once in a while."""

import math
import time
from datetime import timedelta
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from pluralign.datamodules.checks import check_range

__all__ = ["RunProgress"]

Shown = dict[str, int | str | float | dict[str, float]]


class Start(NamedTuple):
    """When the clock was started, and how much of the run was done by then."""

    time: float
    share: float


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
        self._start: Start | None = None
        self._shown: Shown = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget another run."""
        super().on_train_start(trainer, pl_module)
        self._start, self._read_at, self._shown = None, -math.inf, {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's own values at once."""
        self._read_at = -math.inf
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Shown:
        """Values as they were read last, or now if that is long ago; with the time left."""
        now = time.perf_counter()
        if self._start is None:  # after the first batch, which takes longer than others
            self._start = Start(now, _share(trainer))
        if now - self._read_at < self.seconds:
            return self._shown
        values = super().get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        self._shown = {name.removeprefix("train/"): _short(value) for name, value in values.items()}
        left = self._left(trainer, self._start, now)
        if left is not None:
            self._shown["left"] = str(timedelta(seconds=round(left)))
        self._read_at = now
        return self._shown

    def _left(self, trainer: L.Trainer, start: Start, now: float) -> float | None:
        """Seconds that the run will still take; None if that is not known."""
        share = _share(trainer)
        done = share - start.share
        return (now - start.time) * max(0.0, 1 - share) / done if done > 0 else None


def _short(value: str | float | dict[str, float]) -> int | str | float | dict[str, float]:
    """Of a large number no decimals."""
    return f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 100 else value


def _share(trainer: L.Trainer) -> float:
    """Share of the run that is done, by batches and by steps, whichever ends first, in [0, 1]; 0 where it has no end."""
    shares = [0.0]
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and 0 < batches < math.inf:
        epochs = trainer.fit_loop.epoch_progress.current
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        # An epoch whose end is being dealt with is not completed; in a run that goes on it may not be ready.
        shares.append((max(epochs.completed, epochs.ready - 1) + done / batches) / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(1.0, max(shares))
