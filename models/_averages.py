"""What Lightning's callbacks for averaged and pruned weights need of a module whose checkpoints leave a frozen base out."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

__all__ = [
    "SAVED_STATES",
    "average_weights",
    "follow_until_updated",
    "keep_averaged_epochs",
    "permanent",
    "restore_averaged_epochs",
    "settle_averages",
    "states_of_callbacks",
]

SAVED_STATES = ("state_dict", "current_model_state")
"""Where a checkpoint has weights of the module: what Lightning restores, and beside averages those that were trained."""
AVERAGED_EPOCHS = "averaged_epochs"
"""Where the epochs of averages are kept, among what checkpoints keep for the module."""

Average = Callable[[Tensor, Tensor, Tensor | int], Tensor]
ManyAverages = Callable[[Any, Any, Tensor | int], None]


def _averages(trainer: L.Trainer) -> Iterator[tuple[WeightAveraging, AveragedModel]]:
    """Averages that are taken now; Lightning has no public name for them."""
    for callback in _callbacks(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            yield callback, callback._average_model


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set without being declared
    return callbacks


# Averaging -----------------------------------------------------------------------------------------------


def settle_averages(trainer: L.Trainer, module: nn.Module, *, share: bool) -> None:
    """Have averages leave alone what does not change, once all weights are on their devices.

    An exponential average of equal numbers, d x + (1 - d) x, is another number after rounding, and 4.99 in place of 5
    where they are whole: frozen weights would drift, those of a quantised base and the positions in a BERT's buffers
    be wrong by one. What equals its average is that average, whatever the function.

    Args:
        trainer: With the callbacks, which were set up.
        module: Whose weights are averaged.
        share: Whether averages have no copy of their own of what is frozen now, but the module's memory.
    """
    for _, average in _averages(trainer):
        if average.multi_avg_fn is None and average.avg_fn is None:
            average.multi_avg_fn = get_swa_multi_avg_fn()
        if average.avg_fn is not None:
            average.avg_fn = partial(_average_of_different, average.avg_fn)
        if average.multi_avg_fn is not None:
            many: Any = partial(_averages_of_floats, average.multi_avg_fn)
            average.multi_avg_fn = many
    if share:
        copies = [average.module for _, average in _averages(trainer)]
        copies += [
            callback._average_model
            for callback in _callbacks(trainer)
            if isinstance(callback, StochasticWeightAveraging) and callback._average_model is not None
        ]
        for copy in copies:
            _share_frozen(copy, module)


def _average_of_different(
    function: Average, averaged: Tensor, current: Tensor, number: Tensor | int
) -> Tensor:
    """The average, where it is not that of equal numbers."""
    if averaged.data_ptr() == current.data_ptr():
        return averaged
    return torch.where(averaged == current, averaged, function(averaged, current, number))


def _averages_of_floats(
    function: ManyAverages, averaged: list[Tensor], current: list[Tensor], number: Tensor | int
) -> None:
    """Averages in place of tensors of one dtype; what counts or points is taken over as it is."""
    if averaged[0].is_floating_point():
        function(averaged, current, number)
        return
    for average, value in zip(averaged, current, strict=True):
        average.copy_(value)


def _share_frozen(copy: nn.Module, module: nn.Module) -> None:
    """Let frozen weights, and buffers that are no state, of a copy be those of the module where devices agree."""
    saved = module.state_dict().keys()
    tensors = [
        *((theirs, own, not own.requires_grad) for theirs, own in _pairs(copy, module, nn.Module.parameters)),
        *(
            (theirs, own, name not in saved)
            for (name, own), theirs in zip(module.named_buffers(), copy.buffers(), strict=True)
        ),
    ]
    for theirs, own, constant in tensors:
        if constant and theirs.device == own.device:
            theirs.data = own.data


def _pairs(
    first: nn.Module, second: nn.Module, tensors: Callable[[nn.Module], Iterator[Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(tensors(first), tensors(second), strict=True)


@torch.no_grad()
def follow_until_updated(trainer: L.Trainer, module: nn.Module) -> None:
    """Let an average that nothing went into yet be the weights of now, and not those that training began with.

    Lightning validates, saves and in the end keeps what its callback holds, from the first step on, also where the
    callback is told to begin later.
    """
    for _, average in _averages(trainer):
        if int(average.n_averaged) == 0:
            for tensors in (nn.Module.parameters, nn.Module.buffers):
                for theirs, own in _pairs(average.module, module, tensors):
                    theirs.copy_(own)


def average_weights(trainer: L.Trainer) -> dict[str, Any] | None:
    """Weights by name as a checkpoint of now has them where an average is taken; None without one."""
    for _, average in _averages(trainer):
        return average.module.state_dict()
    return None


def keep_averaged_epochs(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep after which epoch each average was updated last: an end of epoch that is made up counts once."""
    epochs = [callback._latest_update_epoch for callback, _ in _averages(trainer)]
    if any(epoch >= 0 for epoch in epochs):
        checkpoint.setdefault("pluralign", {})[AVERAGED_EPOCHS] = epochs


def restore_averaged_epochs(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Take back what :func:`keep_averaged_epochs` kept."""
    epochs: list[int] = checkpoint.get("pluralign", {}).get(AVERAGED_EPOCHS, [])
    for (callback, _), epoch in zip(_averages(trainer), epochs, strict=False):
        callback._latest_update_epoch = epoch


# Checkpoints ---------------------------------------------------------------------------------------------


def states_of_callbacks(checkpoint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """States of callbacks that hold an average of the module's weights among other things."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and isinstance(state.get("average_model_state"), dict):
            yield state


def permanent(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state in which pruned weights stand under their own names, as a module that is not pruned reads them.

    Args:
        state: Values by name; torch keeps a pruned weight as ``weight_orig`` and ``weight_mask``.
    """
    pruned = [
        name.removesuffix("_mask")
        for name in state
        if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state
    ]
    values = {name: state[f"{name}_orig"] * state[f"{name}_mask"] for name in pruned}
    parts = {f"{name}_{part}" for name in pruned for part in ("orig", "mask")}
    return {name: value for name, value in state.items() if name not in parts} | values
