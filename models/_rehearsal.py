"""A training step that leaves no trace: what it takes is measured before training begins.

The step runs on a twin of the module, which shares its network and has everything else for itself, so that metrics, counts
and logged values are those of a run that never rehearsed; gradients and random numbers are put back.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed

from pluralign.datamodules.batch import DataSource, HasHeaviest

from ._resumption import random_state, restore_random_state

if TYPE_CHECKING:
    from .base import BaseModule

__all__ = ["Rehearsal", "find_budget", "out_of_memory", "rehearse", "room", "settled_budget"]

FIRST, MOST = 1024, 262_144
"""Token budgets: that of the first trial, and the largest that is ever taken."""
MARGIN = 0.9
"""Share of the free memory that a step may take: the allocator loses some, and other batches have other shapes."""
GROWTH = 4
"""A trial has at most so many times the tokens of the one before, so that none runs far beyond what is known."""
CLOSE = 1.15
"""So little more than a budget that was tried is not worth a further trial."""
STEP = 64
"""Budgets are multiples of this."""
TRIALS = 8
FEWEST = 32
"""Steps that an epoch has at least: memory alone would put little data into one batch."""
MEMINFO = Path("/proc/meminfo")


class Rehearsal(NamedTuple):
    """What a step over a loader's heaviest batch took."""

    tokens: int
    """Of the batch that are not padding."""
    step: int
    """Bytes at most beside weights: gradients, the optimiser's state, activations."""
    state: int
    """Bytes of the optimiser's state among them; 0 if it was there before."""
    room: int
    """Bytes that there are beside weights."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def room(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process can still take: of the GPU, or its share of the machine's free memory.

    Args:
        device: The module's.
        processes: That share the machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if MEMINFO.is_file():
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
        found = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return found * 1024 // processes
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // processes


# The step ------------------------------------------------------------------------------------------------


def rehearse(trainer: L.Trainer, module: "BaseModule", loader: HasHeaviest) -> Rehearsal:
    """Run forward and backward over a loader's heaviest batch, and leave everything as it was.

    Room for the optimiser's state is held meanwhile, unless it is there already: the first step makes it.

    Args:
        trainer: Which is fitting.
        module: Built, on its device.
        loader: Of the training split.

    Raises:
        ValueError: If the module steps its optimisers itself, or its weights are divided over ranks.
    """
    reason = ""
    if not module.automatic_optimization:
        reason = f"{type(module).__name__} has several optimiser steps in one of its own"
    elif isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        reason = f"{type(trainer.strategy).__name__} divides weights over ranks"
    if reason:
        raise ValueError(
            f"{reason}, so that no step can be rehearsed: leave LongestBatch out, and give data.loader.max_tokens the number that "
            "`pluralign plan` says"
        )
    device = module.device
    with _unchanged(module, device):
        batch, tokens = loader.heaviest()
        state = 0 if any(each.state for each in trainer.optimizers) else _state(module, trainer)
        space = room(device, trainer.num_devices if device.type == "cpu" else 1)
        twin = _twin(module, trainer)
        if device.type != "cuda":
            step = state + _counted(lambda: _step(trainer, twin, batch))
        else:
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.empty(state, dtype=torch.uint8, device=device)
            _step(trainer, twin, batch)
            del held
            step = torch.cuda.max_memory_allocated(device) - before
    return Rehearsal(tokens, step, state, space)


def _state(module: "BaseModule", trainer: L.Trainer) -> int:
    """Bytes of state that the optimisers will make."""
    from .memory import state_bytes

    trained: dict[str, int] = {}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = str(parameter.dtype).removeprefix("torch.")
                trained[name] = trained.get(name, 0) + parameter.numel()
    return state_bytes(module.optimizer, trained)


def _counted(step: Callable[[], None]) -> int:
    from .memory import LiveBytes

    with LiveBytes() as live:
        step()
    return int(live.peak)


def _step(trainer: L.Trainer, twin: "BaseModule", batch: object) -> None:
    """Forward and backward as the trainer runs them: gradients of the step before are there until the pass backward."""
    trained = [each for each in twin.parameters() if each.requires_grad]
    for each in trained:
        each.grad = torch.zeros_like(each)
    batch = trainer.strategy.batch_to_device(batch, twin.device)
    with trainer.precision_plugin.train_step_context():
        loss = twin.training_step(batch, 0)
    assert isinstance(loss, Tensor)  # as all of ours return
    for each in trained:
        each.grad = None
    loss.backward()


def _twin(module: "BaseModule", trainer: L.Trainer) -> "BaseModule":
    """The module with parts that have weights shared, and all others for itself; it logs nothing."""
    shared: list[object] = [trainer, module.optimizer, module.lr_scheduler, *module._parameters.values()]
    shared += [part for part in module.children() if any(True for _ in part.parameters())]
    memo = {id(part): part for part in shared}
    twin = copy.copy(module)
    twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in twin.__dict__.items()})
    twin._trainer = trainer
    twin._resumption = None
    twin.__dict__["log"] = lambda *values, **settings: None
    return twin.train()


@contextmanager
def _unchanged(module: "BaseModule", device: torch.device) -> Iterator[None]:
    """Put back modes, gradients, buffers and random numbers, whatever happens; the step itself moves no weight."""
    modes = {part: part.training for part in module.modules()}
    gradients = {each: each.grad for each in module.parameters()}
    buffers = {each: each.clone() for each in module.buffers()}
    random = random_state(device)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        restore_random_state(random, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


# The budget ----------------------------------------------------------------------------------------------


def find_budget(trainer: L.Trainer, module: "BaseModule", data: DataSource) -> int:
    """Most tokens of a batch that a step has memory for on every rank; every rank has to ask.

    Args:
        trainer: Which is fitting.
        module: Built, on its device.
        data: With a training split.

    Raises:
        RuntimeError: If not even the smallest batch fits.
    """

    def loader_of(budget: int) -> HasHeaviest:
        loader = data.batches("train", shuffle=True, max_tokens=budget)
        assert isinstance(loader, HasHeaviest)  # data without one do not ask
        return loader

    def trial(budget: int) -> tuple[int, float]:
        try:
            found = rehearse(trainer, module, loader_of(budget))
        except Exception as error:
            if not out_of_memory(error):
                raise
            return _worst(trainer, 0, float("inf"))
        return _worst(trainer, found.tokens, found.step / (MARGIN * found.room))

    most = min(MOST, max(FIRST, _rounded(FIRST * len(loader_of(FIRST)) / FEWEST)))
    budget, share = settled_budget(trial, most)
    rank_zero_info(
        f"loader.max_tokens: auto found {budget:,} tokens, a step of which takes {share * MARGIN:.0%} of the free memory; checkpoints "
        f"keep it, and with loader.max_tokens={budget} batches are the same anywhere"
    )
    return budget


def settled_budget(trial: Callable[[int], tuple[int, float]], most: int) -> tuple[int, float]:
    """The largest budget under which a step takes what memory it may, and the share of that.

    What a step takes grows with its tokens along a line: two trials say where it will be full, and a third makes sure.

    Args:
        trial: Takes a budget; gives tokens of the heaviest batch under it, and the share of the memory that it took.
        most: No budget is larger.

    Raises:
        RuntimeError: If not even the smallest batch fits.
    """
    known: list[tuple[int, int, float]] = []  # budget, tokens and share of trials that fit
    budget, largest = min(FIRST, most), most
    for _ in range(TRIALS):
        tokens, share = trial(budget)
        if share > 1:
            again, largest = largest < most, budget - STEP
            if budget <= STEP or (known and largest <= known[-1][0]):
                break
            # What does not shrink with the budget (the optimiser's state, one long record) would make each trial little smaller.
            full = budget / (2.0 if again and not known else min(share, 2.0))
        else:
            if known and tokens <= known[-1][1]:
                break  # all records are in one batch
            known.append((budget, tokens, share))
            full = min(_full(known), GROWTH * budget)
            if full <= CLOSE * budget:
                break
        budget = max(STEP, min(_rounded(full), largest))
        if known and budget <= known[-1][0]:
            break
    if not known:
        raise RuntimeError(
            "loader.max_tokens: auto finds no batch that there is memory for: `pluralign plan` says what each part of it takes, "
            "and which settings would help"
        )
    return known[-1][0], known[-1][2]


def _full(known: Sequence[tuple[int, int, float]]) -> float:
    """Tokens at which the line through the last two trials reaches 1; of one trial, twice its budget."""
    if len(known) < 2:
        return 2.0 * known[-1][0]
    (_, fewer, less), (_, more, greater) = known[-2:]
    slope = (greater - less) / (more - fewer)
    return float("inf") if slope <= 0 else more + (1 - greater) / slope


def _rounded(tokens: float) -> int:
    return int(min(tokens, MOST)) // STEP * STEP


def _worst(trainer: L.Trainer, tokens: int, share: float) -> tuple[int, float]:
    """The largest of all ranks, so that all of them try and take the same."""
    if trainer.world_size == 1:
        return tokens, share
    values = torch.tensor([float(tokens), share], dtype=torch.float64, device=trainer.strategy.root_device)
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return int(values[0]), float(values[1])
