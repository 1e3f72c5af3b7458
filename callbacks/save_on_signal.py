"""SaveOnSignal: a run that is told to end writes a checkpoint first, all processes after the same step."""

import os
import signal
import threading
from types import FrameType

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

__all__ = ["SaveOnSignal"]

SIGNALS = ("SIGTERM", "SIGUSR1")
"""What schedulers send; a system may lack the second."""
STATUS = 128
"""What shells add to the number of the signal that ended a process."""
NO_SAVER = "stopped.ckpt"
"""Where the run is kept if no callback keeps its latest state."""


class SaveOnSignal(Checkpoint):
    """Write a checkpoint when a signal says that the run is to end, after the optimiser step that is under way; then end it.

    Clusters send a signal before they take a machine away. Lightning's own handlers end the run without a checkpoint (SIGTERM),
    or write one in the middle of whatever the process is doing (SIGUSR1 on SLURM), and talk to other processes while these
    may be in the midst of something else. Here a handler takes the signal down and nothing more. At the end of each step the processes
    add up what they have received, without waiting for the device: the sum is looked at one step later. So one signal to one process
    is enough, and all of them write and end after the same step, with gradients gathered in full. A validation is
    finished first: the signal has to come that much earlier.

    The checkpoint is the ``last.ckpt`` of the :class:`ModelCheckpoint` that keeps the latest state, and ``--ckpt_path last``
    goes on from it as if nothing had happened. Without such a callback it is ``checkpoints/stopped.ckpt`` in the run's folder. The
    process ends in status 128 and the signal's number: 143 after SIGTERM, 138 after SIGUSR1. A signal that comes before training
    ends the process at once, in the same status. The command line's ``fit`` uses this callback by itself.

    A run that has no step left to train is finished instead.
    """

    def __init__(self) -> None:
        """Nothing was received yet."""
        super().__init__()
        self._received = 0
        self._reports: _Largest | None = None
        self._listens = False

    # Signals -------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to listen: Lightning has set its own handlers by now."""
        self._listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise, without a sanity check."""
        self._listen()

    def _listen(self) -> None:
        if self._listens or threading.current_thread() is not threading.main_thread():
            return  # Python lets the first thread alone listen
        self._received, self._reports, self._listens = 0, None, True
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._take_down)

    def _take_down(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or number

    # The end -------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Save and end, if a process was told to and a step is done.

        Raises:
            SIGTERMException: Then; its code is the status.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if not progress.is_last_batch and progress.current.ready % trainer.accumulate_grad_batches:
            return
        number = self._told(trainer)
        if not number or 0 <= trainer.max_steps <= trainer.global_step:
            return
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = self._path(trainer)
            trainer.save_checkpoint(path)
            name = signal.Signals(number).name
            rank_zero_info(f"{name}: the run is kept in {path} (step {trainer.global_step:,}), and ends")
        raise SIGTERMException(_status(trainer, number))

    def _told(self, trainer: L.Trainer) -> int:
        """The signal that some process had received a step ago, or this one if it is alone; 0 for none."""
        if trainer.world_size == 1:
            return self._received
        told = 0 if self._reports is None else self._reports.read()
        self._reports = _Largest(self._received, trainer.strategy.root_device)
        return told

    def _path(self, trainer: L.Trainer) -> str:
        """Where the run is kept; every rank has to ask."""
        for callback in trainer.checkpoint_callbacks:
            if (
                not isinstance(callback, ModelCheckpoint)
                or callback.save_last is not True
                or callback.save_weights_only
            ):
                continue
            path, version = callback.last_model_path, callback.STARTING_VERSION
            if not path:  # nothing was written yet; another run may have been here
                path = callback.format_checkpoint_name({}, callback.CHECKPOINT_NAME_LAST)
                while callback.file_exists(path, trainer):
                    path = callback.format_checkpoint_name({}, callback.CHECKPOINT_NAME_LAST, ver=version)
                    version += 1
            callback.last_model_path = path
            return path
        return os.path.join(trainer.log_dir or trainer.default_root_dir, "checkpoints", NO_SAVER)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last report, so that no process leaves while another one is sending."""
        if self._reports is not None:
            self._reports.read()
        self._listens = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take no notice of further signals: Lightning, which is about to leave, puts back the handlers that it has found."""
        self._listens = False


def _status(trainer: L.Trainer, number: int) -> int:
    """The status to end in: 0 where Lightning has started the process, since it kills the others where one fails."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    ours = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
    return 0 if ours else STATUS + number


class _Largest:
    """The largest of a number over all ranks: asked for now, and read a step later without waiting for the device."""

    def __init__(self, number: int, device: torch.device) -> None:
        """Ask for it; every rank has to."""
        self._number = torch.full((1,), number, dtype=torch.int32, device=device)
        self._work = distributed.all_reduce(self._number, distributed.ReduceOp.MAX, async_op=True)
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            # On a queue of its own, so that training does not wait for the slowest rank.
            with torch.cuda.stream(torch.cuda.Stream(device)):
                self._wait()
                self._on_host = torch.empty(1, dtype=torch.int32, pin_memory=True)
                self._on_host.copy_(self._number, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()

    def _wait(self) -> None:
        assert self._work is not None  # every rank is in the group of all
        self._work.wait()

    def read(self) -> int:
        """What it came to."""
        if self._copied is None:
            self._wait()
            return int(self._number)
        self._copied.synchronize()
        return int(self._on_host)
