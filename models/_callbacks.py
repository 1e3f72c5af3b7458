"""How modules get on with Lightning's own callbacks: weights that exist in time, refusals by name, a rate to be found."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import lightning_hasattr
from torch import nn
from torch.optim import Optimizer

from . import _averages as averages
from ._resumption import ResumableModule
from .backbone import BackboneConfig

if TYPE_CHECKING:
    from .base import BaseModule

__all__ = ["Groundwork", "HostModule"]

HOLDS_WEIGHTS = (BaseFinetuning, ModelPruning, StochasticWeightAveraging, WeightAveraging)
"""Callbacks that copy, average, replace or choose weights, each of them whole."""
OF_EPOCHS = (GradientAccumulationScheduler, StochasticWeightAveraging)
"""Callbacks that prepare something at the start of an epoch, which is over where a run goes on within one."""


class Groundwork(L.Callback):
    """The first of a trainer's callbacks: has the weights built before the others look at them, or refuses the others.

    Lightning calls ``setup`` of callbacks before ``configure_model`` of the module. What copies or selects weights in its
    ``setup`` would find none, and some say nothing. Modules bring this callback with them (``configure_callbacks``).

    Attributes:
        settled: Whether the fit has begun: a checkpoint that is restored now is a tuner's.
    """

    def __init__(self) -> None:
        """Nothing is settled yet."""
        self.settled = False

    def setup(self, trainer: L.Trainer, pl_module: "BaseModule", stage: str) -> None:  # type: ignore[override]
        """Refuse callbacks that cannot work here, and build the weights in the contexts that Lightning would.

        Raises:
            ValueError: Naming the callback, or the strategy's setting, and what to use.
        """
        self.settled = False
        pl_module.check_trainer()
        check_deepspeed(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if reason := refusal(callback, trainer, pl_module):
                raise ValueError(f"{type(callback).__name__} cannot be used here: {reason}")
        with (
            trainer.strategy.tensor_init_context(),
            trainer.strategy.model_sharded_context(),
            trainer.precision_plugin.module_init_context(),
        ):
            pl_module.configure_model()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Settle what averages leave alone; the weights are on their devices by now.

        Raises:
            ValueError: If one learning rate is to be found for parameter groups that have several.
        """
        self.settled = True
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        rates = {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups}
        for callback in callbacks:
            if isinstance(callback, LearningRateFinder) and callback._update_attr and len(rates) > 1:
                raise ValueError(
                    f"LearningRateFinder would give one rate to all parameter groups, and {type(pl_module).__name__} has "
                    f"several rates ({', '.join(f'{rate:g}' for rate in sorted(rates))}): set its update_attr=false, and "
                    "read optimal_lr.suggestion() after the fit"
                )
        unfreezes = any(isinstance(callback, BaseFinetuning) for callback in callbacks)
        averages.settle_averages(trainer, pl_module, share=not unfreezes)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have an average that is still empty be measured as the weights of now."""
        averages.follow_until_updated(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know when this was, before a checkpoint is written of it; metrics of a sanity check are not kept."""
        if not trainer.sanity_checking and isinstance(pl_module, ResumableModule):
            pl_module.validated_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have an average that is still empty leave the weights as they are."""
        averages.follow_until_updated(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what Lightning's averages forget."""
        averages.follow_until_updated(trainer, pl_module)
        averages.keep_averaged_epochs(trainer, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it back.

        Raises:
            ValueError: If a run with pruning is to go on.
        """
        averages.restore_averaged_epochs(trainer, checkpoint)
        pruning = (each for each in trainer.callbacks if isinstance(each, ModelPruning))  # type: ignore[attr-defined]
        if not self.settled and trainer.state.fn == "fit" and (callback := next(pruning, None)):
            raise ValueError(
                f"a run with {type(callback).__name__} cannot go on from a checkpoint, which holds no masks: start a new one "
                "from its weights (model.init_from), or leave the callback out"
            )


def check_deepspeed(trainer: L.Trainer) -> None:
    """Make sure that DeepSpeed does not look for a batch size.

    Args:
        trainer: Which is about to run.

    Raises:
        ValueError: If it would; says what to set.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy) and "train_micro_batch_size_per_gpu" not in (
        strategy.config or {}
    ):
        raise ValueError(
            "DeepSpeedStrategy asks the loader for its batch size, and batches here have as many prompts as their lengths allow: "
            "set trainer.strategy to {class_path: DeepSpeedStrategy, init_args: {stage: 2, logging_batch_size_per_gpu: 1}}, or "
            "to fsdp2"
        )


def _ordered(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Callbacks in an order in which they fit together.

    What is saved at the end of training has the weights that :class:`StochasticWeightAveraging` leaves, which comes first.
    Reports on a validation are made while the averages that were validated are in place, and checkpoints written after
    they were updated: averages come between the two.
    """
    first = [each for each in callbacks if isinstance(each, StochasticWeightAveraging)]
    last = [each for each in callbacks if isinstance(each, WeightAveraging)]
    others = [each for each in callbacks if each not in first and each not in last]
    place = next((i for i, each in enumerate(others) if isinstance(each, Checkpoint)), len(others))
    return [*first, *others[:place], *last, *others[place:]]


def refusal(callback: L.Callback, trainer: L.Trainer, module: "BaseModule") -> str | None:
    """Why a callback cannot be used, and what to do; None if it can.

    Args:
        callback: Any.
        trainer: Which is about to run.
        module: Which it is about to run on; need not be built.
    """
    name, base, strategy = type(callback).__name__, _frozen_by(module.backbone_config), trainer.strategy
    sharded = isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))
    if isinstance(callback, HOLDS_WEIGHTS) and sharded:
        return (
            f"it looks at whole weights, and {type(strategy).__name__} gives each rank a part of them; use another "
            f"trainer.strategy, such as ddp, or leave {name} out"
        )
    if isinstance(callback, ModelPruning) and base:
        return (
            f"{base} keeps the base as its own files have it, and checkpoints leave it out, pruned or not; train all of the "
            f"network, or leave {name} out"
        )
    if isinstance(callback, ModelPruning) and module.unprunable:
        return f"{module.unprunable}; leave {name} out"
    if isinstance(callback, BaseFinetuning):
        return _why_not_unfrozen(callback, trainer, module)
    if isinstance(callback, BatchSizeFinder) and not lightning_hasattr(module, callback._batch_arg_name):
        return (
            "it tries a few batches, and batches here are of texts of like length, so that the largest may come later; "
            "loader.max_tokens bounds every batch, however long its texts are: raise it until memory is full, and leave "
            f"{name} out"
        )
    return None


def _frozen_by(config: BackboneConfig) -> str | None:
    return "backbone.frozen" if config.frozen else "backbone.lora" if config.lora is not None else None


def _why_not_unfrozen(callback: BaseFinetuning, trainer: L.Trainer, module: "BaseModule") -> str | None:
    """Why what a callback unfreezes would not be trained, or should not be."""
    config = module.backbone_config
    if module.keeps_network:
        return (
            "it unfreezes a network that domains' adapters leave as it is, and that scores in general as it did before; leave "
            f"{type(callback).__name__} out"
        )
    if config.frozen:
        return (
            "backbone.frozen=true builds no graph in the backbone, so that nothing of it is trained once it is unfrozen; set "
            "backbone.frozen=false, and let the callback freeze it"
        )
    if isinstance(callback, BackboneFinetuning) and config.lora is not None:
        return (
            "it unfreezes all of the backbone, and backbone.lora trains adapters on a frozen one; leave one of them out, or "
            "derive from BaseFinetuning and unfreeze the adapters"
        )
    if trainer.world_size > 1:
        return (
            f"of {trainer.world_size} processes each would train by itself what is unfrozen after the start, which is not "
            "among the gradients that they exchange; set trainer.devices=1"
        )
    return None


def _at_rate(make: OptimizerCallable, rate: float, parameters: Iterable[Any]) -> Optimizer:
    """An optimiser with another rate where parameter groups have none of their own."""
    given = list(parameters)
    optimizer = make(given)
    sources = given if given and isinstance(given[0], dict) else [{}]
    for group, source in zip(optimizer.param_groups, sources, strict=True):
        if "lr" not in source:
            group["lr"] = rate
    return optimizer


class HostModule(ResumableModule):
    """A module that Lightning's callbacks can work on.

    Attributes:
        unprunable: Why its weights cannot be pruned; None if they can.
        keeps_network: Whether adapters are trained over a network that stays as it is.
        optimizer: Called with the parameter groups.
        lr_scheduler: Called with the optimiser; None keeps the rate.
    """

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    unprunable: str | None = None
    keeps_network: bool = False

    def __init__(self) -> None:
        """Begin with the rates as they are set."""
        super().__init__()
        self._found_rate: float | None = None

    @property
    def attached_trainer(self) -> L.Trainer | None:
        """The trainer that runs the module; None where there is none, which ``trainer`` refuses."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    @property
    def fitting(self) -> bool:
        """Whether a trainer is fitting, or about to: its validations count."""
        trainer = self.attached_trainer
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    @property
    def groundwork(self) -> Groundwork | None:
        """The callback that came with the module; None outside a run, and while a tuner has put all callbacks aside."""
        trainer = self.attached_trainer
        callbacks: list[L.Callback] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, Groundwork)), None)

    def configure_callbacks(self) -> list[L.Callback]:
        """Put :class:`Groundwork` before the trainer's callbacks, and these in an order in which they fit together."""
        given: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        others = _ordered([each for each in given if not isinstance(each, Groundwork)])
        self.trainer.callbacks = [Groundwork(), *others]  # type: ignore[attr-defined]
        return []

    def on_train_start(self) -> None:
        """Go on as the run that wrote the checkpoint would have; callbacks too, within an epoch whose start they missed."""
        goes_on, loop = self._resumption is not None, self.trainer.fit_loop
        super().on_train_start()
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if loop.restarted_mid_epoch or loop.restarted_on_epoch_end:
            for callback in callbacks:
                if isinstance(callback, OF_EPOCHS):
                    callback.on_train_epoch_start(self.trainer, self)
        if goes_on and any(isinstance(callback, BaseFinetuning) for callback in callbacks):
            # It has frozen what it freezes before training, and gives the optimiser back what it had unfrozen by then.
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(True)

    # The rate --------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> float:
        """Rate that the optimiser is made with; setting it makes it with another one, as ``LearningRateFinder`` does."""
        trial = self.optimizer([nn.Parameter(torch.zeros(1, 1))])
        rate: float = trial.param_groups[0]["lr"]
        return rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        make: Callable[..., Optimizer] = partial(_at_rate, self.optimizer, rate)
        self.optimizer, self._found_rate = make, rate

    def take_found_rate(self) -> None:
        """Begin a fit at the rate that was found for it, with a scheduler that knows it."""
        rate, self._found_rate = self._found_rate, None
        if rate is None:
            return
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
                group.pop("initial_lr", None)
        if self.lr_scheduler is not None:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler = self.lr_scheduler(self.trainer.optimizers[0])
