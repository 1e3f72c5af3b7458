"""BaseModule: the settings, optimisers, data, text format and checkpoints that every module shares."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed

from pluralign.datamodules.batch import DataSource, HasHeaviest, PreferenceBatch, TextFormat
from pluralign.losses import ArgumentChecksOnce

from ._data_source import AdaptedData
from ._extents import batch_extents, check_extents
from ._few_bits import keep_in_32_bits
from ._initial_weights import check_file
from ._rehearsal import Rehearsal, find_budget, out_of_memory, rehearse
from ._saving import SavedModule
from .backbone import (
    Backbone,
    BackboneConfig,
    Several,
    StoredFeatures,
    configured_positions,
    save_language_model,
)
from .sharding import STEPS, FullyShardedStrategy

__all__ = ["BaseModule", "ModuleSettings", "data_of", "datamodule_of", "default_optimizer", "out_of_memory"]

NOT_SAVED = ("optimizer", "lr_scheduler", "backbone", "init_from", "init_may_differ")
"""Arguments that no module keeps as hyperparameters: functions, files that may be gone, what is kept in plain form."""


def default_optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW at a rate of 1e-5, for fine-tuning pretrained networks; a function by name, so that it pickles."""
    return torch.optim.AdamW(parameters, lr=1e-5)


def datamodule_of(trainer: L.Trainer | None) -> object:
    """A trainer's data module, whatever it is, or None; the one place where it is looked for."""
    datamodule: object = getattr(trainer, "datamodule", None)  # which Lightning sets without declaring it
    return datamodule


def data_of(trainer: L.Trainer | None) -> DataSource | None:
    """What a trainer's data say of themselves.

    Args:
        trainer: Any, or None.

    Returns:
        The data module; one that lacks part of the contract answers as if its data had none of that. None without a
        data module, where loaders alone were given.
    """
    datamodule = datamodule_of(trainer)
    if datamodule is None or isinstance(datamodule, DataSource):
        return datamodule
    return AdaptedData(datamodule)


class ModuleSettings(TypedDict, total=False):
    """What every module takes besides its backbone and passes on; :class:`BaseModule` says what it means."""

    init_from: str | None
    init_may_differ: Sequence[str]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


class BaseModule(SavedModule):
    """Base of every module with a backbone; a subclass writes ``configure_model`` and its steps.

    What the constructor of a subclass is given becomes its hyperparameters; only plain values may be among them.

    Attributes:
        not_saved: Arguments of a method that are no plain values, and are not kept as hyperparameters.
        sharded_entries: Methods during which weights outside of layers are whole where they are sharded over ranks, besides
            ``forward``; one of them must neither move weights nor pass backward itself.
        backbone: The network; None before ``configure_model``.
        text_format: Format of the text it was trained on; from the data module, kept in checkpoints.
        init_from: Checkpoint that weights start from; None once others were loaded.
        passes_over: Whether training goes on after a batch whose rewards or loss are not finite, because something else sees
            to it that no weight learns from it (the callback ``SkippedSteps``). Weights that are not finite end a run all
            the same.
        max_tokens: Most tokens of a batch that a fit found memory for; None if it was not asked to.
        argument_checks: Which steps' losses have read the values of their arguments since a run's stage began.
    """

    not_saved: ClassVar[tuple[str, ...]] = ()
    sharded_entries: ClassVar[tuple[str, ...]] = STEPS
    passes_over: bool = False

    def __init_subclass__(cls, **keywords: object) -> None:
        """Let the command line read shared settings from the constructor below, where they have defaults and help.

        ``**settings: Unpack[ModuleSettings]`` tells type checkers which settings there are; jsonargparse would take it
        for all that is known of them.
        """
        super().__init_subclass__(**keywords)
        cls.__init__.__annotations__.pop("settings", None)

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        init_from: str | None = None,
        init_may_differ: Sequence[str] = (),
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network, in which state; a mapping of its fields also does.
            init_from: Checkpoint of another run, of this method or another one, whose weights this module starts from;
                a run that goes on has those of its own checkpoint in their place.
            init_may_differ: Names of weights, or their beginnings up to a dot, that are not taken over and may be
                missing there, or of another shape; all others must fit. To start from another method's backbone, these
                are ``head``, of DPRM also ``bias``, of PAL ``network`` and ``table``.
            optimizer: Called with the parameter groups.
            lr_scheduler: Called with the optimiser; stepped after every optimiser step (a plateau scheduler
                after every validation, on ``val/loss``). None keeps the rate.

        Raises:
            TypeError: If ``init_may_differ`` is one name and no list.
        """
        super().__init__()
        if isinstance(init_may_differ, str):
            raise TypeError(f"init_may_differ must be a list of names, got {init_may_differ!r}")
        self.backbone_config = (
            backbone if isinstance(backbone, BackboneConfig) else BackboneConfig(**backbone)
        )
        self.save_hyperparameters(
            ignore=[*NOT_SAVED, *self.not_saved]
        )  # with the arguments of every subclass
        self.save_hyperparameters({"backbone": asdict(self.backbone_config)})
        self.init_from, self.init_may_differ = init_from, tuple(init_may_differ)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.backbone: Backbone | Several | StoredFeatures | None = None
        self.text_format: TextFormat | None = None
        self.max_tokens: int | None = None
        self.argument_checks = ArgumentChecksOnce()
        self._max_positions: tuple[int | None, ...] = ()  # once they were looked up

    def parameter_groups(self) -> Iterable[Any]:
        """What the optimiser gets: every parameter that is trained. Override for several rates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # Trainer and data ----------------------------------------------------------------------------------

    @property
    def data(self) -> DataSource | None:
        """The trainer's data; None without a trainer or a data module."""
        return data_of(self.attached_trainer)

    # Memory --------------------------------------------------------------------------------------------

    def token_budget(self) -> int | None:
        """Most tokens of a batch that training has memory for, where ``loader.max_tokens`` is ``auto``; data modules ask for it.

        Found when the data of a fit are first read, by steps that leave no trace, and kept in checkpoints.

        Returns:
            The budget; None if it was never found and no fit is under way.
        """
        data, trainer = self.data, self.attached_trainer
        if self.max_tokens is None and self.fitting and data is not None and trainer is not None:
            self.max_tokens = find_budget(trainer, self, data)
        return self.max_tokens

    def rehearse(self, loader: HasHeaviest) -> Rehearsal:
        """Run forward and backward over a loader's heaviest batch, and leave everything as it was.

        Args:
            loader: Of the training split of the fit that is under way.

        Returns:
            What the step took.

        Raises:
            ValueError: If the module steps its optimisers itself.
        """
        return rehearse(self.trainer, self, loader)

    # Parts ---------------------------------------------------------------------------------------------

    @property
    def layout(self) -> str | None:
        """Layout of rows the backbone takes; data modules ask for it. None before ``configure_model``."""
        return None if self.backbone is None else self.backbone.layout

    def make_backbone(self) -> Backbone | StoredFeatures:
        """The network, or what stands for it where the trainer's data come from a feature store.

        Raises:
            ValueError: If the store's features are of another backbone than ``backbone_config`` describes.
        """
        size = self._check_store()
        return Backbone(self.backbone_config) if size is None else StoredFeatures(size)

    def _check_store(self) -> int | None:
        """Size of the stored features that the trainer's data come with, if they do; raises if they do not fit."""
        data = self.data
        if data is None or data.features is None:
            return None
        data.features.check_backbone(self.backbone_config.description())
        return data.features.hidden_size

    def built_backbone(self) -> Backbone | Several | StoredFeatures:
        """The backbone, once it is there.

        Raises:
            RuntimeError: If ``configure_model`` has not run.
        """
        if self.backbone is None:
            raise RuntimeError(
                f"{type(self).__name__} has no weights yet: call configure_model(), or let a Trainer do it"
            )
        return self.backbone

    def prompt_states(self, batch: PreferenceBatch) -> Tensor:
        """States of the prompts alone, (N, H).

        Raises:
            ValueError: If the batch holds none.
        """
        if "prompt_features" in batch:
            return batch["prompt_features"]
        if "prompts" not in batch:
            raise ValueError(
                f"{type(self).__name__} reads prompts apart, and this data has none apart: set loader.prompts=true, or "
                "write the feature store with `pluralign embed --prompts`"
            )
        states: Tensor = self.built_backbone()(batch["prompts"])
        return states

    def save_language_model(
        self, folder: str | Path, *, end_id: int | None = None, pad_id: int | None = None
    ) -> None:
        """Write the backbone's language model in transformers' format; of one with adapters these alone, in PEFT's.

        Args:
            folder: Made unless it is there.
            end_id: What ends a response, for the folder's generation settings; None for those that the network came with.
            pad_id: What pads.

        Raises:
            ValueError: If the module has no language-model head.
            RuntimeError: If ``configure_model`` has not run.
        """
        save_language_model(self.language_backbone(), folder)
        if end_id is not None and (Path(folder) / "generation_config.json").is_file():
            from transformers import GenerationConfig

            GenerationConfig(eos_token_id=end_id, pad_token_id=pad_id).save_pretrained(str(folder))

    def language_backbone(self) -> Backbone:
        """The backbone, with its language-model head.

        Raises:
            ValueError: If it has none.
            RuntimeError: If ``configure_model`` has not run.
        """
        backbone = self.built_backbone()
        if not isinstance(backbone, Backbone) or backbone.language_head is None:
            raise ValueError(
                f"{type(self).__name__} has no language-model head: what it trains is no language model that could be written"
            )
        return backbone

    # Stages --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer before anything runs, and in the first steps of this stage the arguments of losses."""
        self.check_trainer()
        self.argument_checks.reset()

    def check_trainer(self) -> None:
        """Make sure that the module can run as the trainer is set; before anything is built, too.

        Raises:
            ValueError: If the precision would round labels, or stored features are of another backbone.
        """
        self._check_store()  # a network that was loaded before is not built anew
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"trainer.precision={self.trainer.precision!r} would round shares, votes and rewards to 16 bits; "
                "use 32-true with backbone.dtype=bfloat16, or bf16-mixed"
            )

    def teardown(self, stage: str) -> None:
        """Have the process leave a gloo group before it exits; Lightning does so for NCCL only.

        Without this, about one spawned process in ten aborts while the interpreter takes the group's threads down.
        """
        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            Finalize(None, _leave_group, exitpriority=0)

    def on_fit_start(self) -> None:
        """Take over the data's text format; say so where it replaces another one.

        Raises:
            ValueError: If it differs from that of the run that this one starts from, or the network cannot read the data.
            FileNotFoundError: If there is no file that ``init_from`` names, and no checkpoint was restored.
            RuntimeError: If ``configure_model`` left ``init_from`` aside, or ``configure_callbacks`` what callbacks need.
        """
        if self.groundwork is None:
            raise RuntimeError(
                f"{type(self).__name__}.configure_callbacks does not call that of its base class, which has the weights built "
                "before callbacks look at them"
            )
        self.take_found_rate()
        if self.init_from is not None:
            self._check_format()
            self._check_start()
        if isinstance(self.backbone, Backbone) and self.backbone.left_out and not self._loaded_keys:
            rank_zero_warn(
                f"backbone.name={self.backbone_config.name!r} is a reward model or classifier with a head of its own "
                f"({self.backbone.left_out[0]}), which is left out, and a new head is trained: TransformersRM goes on with its own"
            )
        self.check_data(self.data)
        current = self._data_format()
        if changes := self.format_changes(current):
            rank_zero_info(f"text format: {changes}")
        self.text_format = current or self.text_format

    def begin_evaluation(self) -> None:
        """Refuse data in another text format than was trained with, or that the network cannot read, and no weights.

        Raises:
            ValueError: If it is to be refused, or sharded ranks would evaluate unequal numbers of batches.
        """
        if isinstance(self.trainer.strategy, FullyShardedStrategy):
            self.trainer.strategy.check_evaluation(self.trainer)
        self._check_format()
        self._check_start()
        self.check_data(self.data)

    def on_validation_start(self) -> None:
        """Begin an evaluation."""
        self.begin_evaluation()

    def on_test_start(self) -> None:
        """Begin an evaluation."""
        self.begin_evaluation()

    def on_predict_start(self) -> None:
        """Begin an evaluation."""
        self.begin_evaluation()

    def _check_start(self) -> None:
        if self.init_from is None or self._started:
            return
        check_file(self.init_from)
        raise RuntimeError(
            f"{type(self).__name__} has init_from, but its weights did not start from there: call "
            "load_initial_weights() at the end of configure_model, and fit a module that is not built yet"
        )

    def _data_format(self) -> TextFormat | None:
        data = self.data
        return None if data is None else data.text_format()

    def _check_format(self) -> None:
        if changes := self.format_changes(self._data_format()):
            raise ValueError(
                f"the text format differs from the one this model was trained with ({changes}); set data.text alike"
            )

    def format_changes(self, current: TextFormat | None) -> str:
        """What differs from the stored format, for a message; the digest stands for the tokenizer, wherever it lies.

        Args:
            current: Another format; None for one that is not known.

        Returns:
            Each difference; empty if there is none, or one of the formats is not known.
        """
        stored = self.text_format
        if stored is None or not current:
            return ""
        names = sorted({*stored, *current} - {"tokenizer", "revision", "trust_remote_code"})
        names = [name for name in names if stored.get(name) != current.get(name)]
        return "; ".join(
            f"{name}: trained with {stored.get(name)!r}, now {current.get(name)!r}" for name in names
        )

    @property
    def max_positions(self) -> int | None:
        """Longest text that the backbone has positions for, known before it is built; None for no bound."""
        if isinstance(self.backbone, Backbone):
            return self.backbone.max_positions
        if self._max_positions == ():
            self._max_positions = (configured_positions(self.backbone_config),)
        return self._max_positions[0]

    def check_data(self, data: DataSource | None) -> None:
        """Make sure that the network can read every split, to the last row.

        Raises:
            ValueError: If it cannot; names the split.
        """
        if data is not None and self.backbone is not None:
            check_extents(self.backbone, {f"the {split} split": of for split, of in data.extents.items()})

    def check_network(self, batch: PreferenceBatch) -> None:
        """Make sure of the same for a batch, whose data may not say how far they go.

        Raises:
            ValueError: If the network cannot read it.
        """
        if self.backbone is not None:
            check_extents(self.backbone, batch_extents(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser over ``parameter_groups()``, with the scheduler if there is one.

        Raises:
            ValueError: If the optimiser is one of bitsandbytes and weights are sharded over ranks.
        """
        optimizer = self.optimizer(self.parameter_groups())
        keep_in_32_bits(optimizer, self)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
