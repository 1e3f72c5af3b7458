"""What a run needs, besides weights, optimisers and place in the data, to go on as if it had never been interrupted.

Lightning's checkpoints leave out the state of the random numbers and what was summed up since the epoch began. And when
a run goes on from one that was written right after a batch, Lightning takes for done all that was still to come for that
batch: its row in the log, a validation, the end of the epoch. All of it is kept here, and made up.
"""

import math
import random
from typing import Any, NotRequired, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, distributed

__all__ = ["ResumableModule"]

Progress = dict[str, Any]
"""How far Lightning's loop over training has come, by the names its own checkpoints have."""

EPOCHS, BATCHES = "epoch_progress", "epoch_loop.batch_progress"
VALIDATION, LOOP = "epoch_loop.val_loop.batch_progress", "epoch_loop.state_dict"
LOGGED = "_batches_that_stepped"
"""Lightning's count of optimiser steps, by which rows of the log are numbered."""


class RandomState(TypedDict, total=False):
    """State of every source of random numbers in one process, as plain values and tensors."""

    python: tuple[Any, ...]
    numpy: tuple[str, list[int], int, int, float]
    torch: Tensor
    cuda: Tensor


class RunState(TypedDict):
    """What a checkpoint keeps of the run that wrote it.

    Attributes:
        random: State of the random numbers, by rank.
        sums: What the module has summed up since the epoch began, by rank.
        shown: Latest value of every metric; what monitors and plateau schedulers look at.
        validated: Optimiser steps at the latest validation, whose metrics are shown; None if there was none. Checkpoints of
            earlier versions do not say.
        values: What the last step has logged; the logger may not have had it yet.
        validation_due: Whether a validation follows the last batch.
        validation_rule: What decides when there are validations.
        between_steps: Whether gradients were being gathered.
    """

    random: list[RandomState]
    sums: list[dict[str, Tensor]]
    shown: dict[str, Tensor]
    validated: NotRequired[int | None]
    values: dict[str, float]
    validation_due: bool
    validation_rule: str
    between_steps: bool


class Resumption(TypedDict):
    """What remains to be done when a run goes on, once everything stands.

    Attributes:
        random: State of this process's random numbers; None to leave them.
        sums: This process's sums of an epoch that is not over.
        shown: As in :class:`RunState`.
        validated: Likewise; None also if the checkpoint does not say.
        row: Values of a step that is to be logged, and its number; None if it was.
        unfinished: Whether something follows the last batch, were it the last of all.
    """

    random: RandomState | None
    sums: dict[str, Tensor]
    shown: dict[str, Tensor]
    validated: int | None
    row: tuple[dict[str, float], int] | None
    unfinished: bool


# Random numbers ----------------------------------------------------------------------------------------


def random_state(device: torch.device) -> RandomState:
    """State of the random numbers of Python, NumPy, torch and, if it is a CUDA device, of ``device``."""
    import numpy as np

    name, keys, place, has_gauss, gauss = cast(
        tuple[str, Any, int, int, float], np.random.get_state(legacy=True)
    )
    numpy = name, keys.tolist(), place, has_gauss, gauss
    state = RandomState(python=random.getstate(), numpy=numpy, torch=torch.get_rng_state())
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """Go on with random numbers where another process was; says so if the device's own cannot be."""
    import numpy as np

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, place, has_gauss, waiting = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), place, has_gauss, waiting))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type != "cpu" or "cuda" in state:
        rank_zero_warn(
            f"the checkpoint has no random state of a device like {device}: dropout goes on with other numbers than an "
            "uninterrupted run would have drawn"
        )


# What is kept ------------------------------------------------------------------------------------------


def run_state(
    trainer: L.Trainer,
    sums: dict[str, Tensor],
    values: dict[str, Tensor],
    validated: int | None,
    device: torch.device,
) -> RunState:
    """What a checkpoint of now keeps; every rank has to ask.

    Args:
        trainer: Which is fitting.
        sums: What the module has summed up since the epoch began.
        values: What the last step has logged.
        validated: Optimiser steps at the latest validation.
        device: The module's.
    """
    mine = random_state(device), {name: value.detach().cpu().clone() for name, value in sums.items()}
    ranks = [mine]
    if trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized():
        ranks = [mine] * distributed.get_world_size()
        distributed.all_gather_object(ranks, mine)
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return RunState(
        random=[state for state, _ in ranks],
        sums=[summed for _, summed in ranks],
        shown={name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()},
        validated=validated,
        values={name: float(value) for name, value in values.items()},
        validation_due=_validation_due(trainer),
        validation_rule=_validation_rule(trainer),
        between_steps=not batches.is_last_batch
        and batches.current.ready % trainer.accumulate_grad_batches != 0,
    )


def _validation_rule(trainer: L.Trainer) -> str:
    return f"every {trainer.val_check_interval!r} of an epoch, {trainer.check_val_every_n_epoch!r} epochs"


def _validation_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the batch that was trained last; never where a clock decides."""
    epochs, interval, loop = trainer.check_val_every_n_epoch, trainer.val_check_batch, trainer.fit_loop
    if not trainer.enable_validation or interval is None:
        return False
    if epochs is not None and (trainer.current_epoch + 1) % epochs != 0:
        return False
    if math.isinf(interval):
        return loop.epoch_loop.batch_progress.is_last_batch
    place = loop.total_batch_idx if epochs is None else loop.batch_idx
    return (place + 1) % int(interval) == 0


# What is made up ---------------------------------------------------------------------------------------


def resumption(trainer: L.Trainer, checkpoint: dict[str, Any], state: RunState | None) -> Resumption | None:
    """Mend how far a checkpoint says that training had come, and name what remains to be done.

    Args:
        trainer: Which goes on.
        checkpoint: As it was loaded; Lightning reads its ``loops`` later.
        state: What it keeps of the run; None of a checkpoint by an earlier version.

    Returns:
        What to do before the first batch; None if nothing was kept.
    """
    if state is None:
        rank_zero_info("The checkpoint keeps no random state: dropout goes on with other numbers.")
        return None
    progress: Progress = checkpoint["loops"]["fit_loop"]
    row = None
    if _batch_is_open(progress) and not state["between_steps"]:
        number: int = progress[LOOP][LOGGED]
        if state["values"] and (number + 1) % max(1, vars(trainer)["log_every_n_steps"]) == 0:
            row = {**state["values"], "epoch": checkpoint["epoch"]}, number
    if state["validation_rule"] == _validation_rule(trainer):
        _mend(progress, due=state["validation_due"], stepped=not state["between_steps"])
    elif state["validation_due"] and _batch_is_open(progress):
        rank_zero_warn(
            f"a validation was due when the checkpoint was written ({state['validation_rule']}) and is not made up, since "
            f"there are validations {_validation_rule(trainer)} now"
        )
    if state["between_steps"]:
        rank_zero_warn(
            "the checkpoint was written between two optimiser steps: the gradients gathered until then are lost. Save every "
            "so many steps (every_n_train_steps) rather than by time where gradients are accumulated"
        )
    epochs = progress[EPOCHS]["current"]
    ranks = len(state["random"])
    own = trainer.global_rank if ranks == trainer.world_size else None
    if own is None:
        rank_zero_warn(
            f"the checkpoint keeps the random state of {ranks} processes and there are {trainer.world_size} now: dropout "
            "goes on with other numbers, and metrics of the interrupted epoch count its rest alone"
        )
    return Resumption(
        random=None if own is None else state["random"][own],
        sums=state["sums"][own] if own is not None and epochs["ready"] != epochs["processed"] else {},
        shown=state["shown"],
        validated=state.get("validated"),
        row=row,
        unfinished=epochs["ready"] != epochs["processed"],
    )


def _batch_is_open(progress: Progress) -> bool:
    """Whether it is from the end of a batch, before anything that follows a batch."""
    current = progress[BATCHES]["current"]
    return bool(current["ready"] == current["processed"] == current["completed"] + 1)


def _mend(progress: Progress, *, due: bool, stepped: bool) -> None:
    """Have Lightning do what was still to come for the last batch when the checkpoint was written.

    Lightning adds to its count of steps in some of its ways on and not in others; it is set such that the count is right
    afterwards in each.

    Args:
        progress: What the checkpoint says; changed in place.
        due: Whether a validation follows the last batch.
        stepped: Whether the last batch ended in an optimiser step.
    """
    batches, epochs, loop = progress[BATCHES], progress[EPOCHS], progress[LOOP]
    if epochs["current"]["processed"] == epochs["current"]["completed"] + 1:
        # From the hooks at the end of an epoch: they run again, with what comes after them.
        for counts in (epochs["total"], epochs["current"]):
            counts["processed"] -= 1
        loop[LOGGED] -= due
    elif _batch_is_open(progress):
        if due:
            # A validation that has begun and not ended is run, from its first batch.
            validation = progress[VALIDATION]
            ended = validation["total"]["completed"]
            validation["total"] |= {
                "ready": ended + 1,
                "started": ended + 1,
                "processed": ended,
            }
            validation["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["is_last_batch"] = False
        if batches["is_last_batch"]:
            for counts in (batches["total"], batches["current"]):
                counts["completed"] += 1
            loop[LOGGED] += not due
        elif due:
            loop[LOGGED] -= stepped


class ResumableModule(L.LightningModule):
    """A module whose runs go on bit for bit, in the middle of an epoch too, whatever interrupted them.

    Attributes:
        step_values: What the last training step has logged; a checkpoint keeps it until the logger has it.
        validated_step: Optimiser steps at the latest validation of the fit; None if there was none.
    """

    def __init__(self) -> None:
        """Begin with nothing to make up."""
        super().__init__()
        self.step_values: dict[str, Tensor] = {}
        self.validated_step: int | None = None
        self._resumption: Resumption | None = None

    def running_sums(self) -> dict[str, Tensor]:
        """What this process has summed up since the epoch began; kept in checkpoints. Nothing, unless overridden."""
        return {}

    def restore_sums(self, sums: dict[str, Tensor]) -> None:
        """Take back what :meth:`running_sums` said."""

    def keep_run(self, checkpoint: dict[str, Any]) -> None:
        """Put into a checkpoint what its run needs to go on, unless it holds weights alone; every rank has to ask."""
        if "optimizer_states" not in checkpoint:
            return
        for logger in self.trainer.loggers:
            logger.save()  # a run that goes on logs what comes after, and nothing before
        state = run_state(
            self.trainer, self.running_sums(), self.step_values, self.validated_step, self.device
        )
        checkpoint.setdefault("pluralign", {})["run"] = state

    def resume_run(self, checkpoint: dict[str, Any]) -> None:
        """See what there is to do for a run that goes on; before the trainer reads how far it had come."""
        if "optimizer_states" in checkpoint:
            self._resumption = resumption(
                self.trainer, checkpoint, checkpoint.get("pluralign", {}).get("run")
            )

    def on_train_start(self) -> None:
        """Go on as the run that wrote the checkpoint would have: with its random numbers, sums and metrics."""
        state, self._resumption = self._resumption, None
        self.validated_step = None if state is None else state["validated"]
        if state is None:
            return
        self.trainer.callback_metrics.update(state["shown"])
        if state["sums"]:
            self.restore_sums(state["sums"])
        if state["row"] is not None:
            values, step = state["row"]
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step)
                logger.save()
        if state["random"] is not None:
            restore_random_state(state["random"], self.device)

    def check_resumed(self) -> None:
        """Make sure, in a training step, that nothing is left to make up.

        Raises:
            RuntimeError: If a subclass's ``on_train_start`` left it out, so that the run would go on with other numbers.
        """
        if self._resumption is not None:
            raise RuntimeError(
                f"{type(self).__name__}.on_train_start does not call that of its base class, which restores the random "
                "numbers, sums and metrics of a run that goes on"
            )

    def on_fit_end(self) -> None:
        """Say where a run had nothing left to train, so that Lightning made up for nothing."""
        if self._resumption is not None and self._resumption["unfinished"]:
            rank_zero_info(
                "All steps were trained when the checkpoint was written, but its epoch had not ended: that epoch's metrics, "
                "and a validation that was due, are not made up. `pluralign validate` measures the model."
            )
        self._resumption = None

    def on_train_epoch_end(self) -> None:
        """Have a plateau scheduler see the end of the epoch in which a run went on; Lightning leaves that one out."""
        self.trainer.fit_loop._restarting = False  # its setter would begin anew under max_steps
