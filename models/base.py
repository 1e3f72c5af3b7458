"""RewardModule: the steps, metrics, optimisers and checkpoints that every method shares."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from multiprocessing.util import Finalize
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn

from pluralign import __version__
from pluralign.datamodules.batch import PreferenceBatch, RewardOutput

from .backbone import Backbone, StoredFeatures
from .loading import BackboneConfig
from .metrics import PreferenceMetrics

__all__ = ["RewardModule", "default_optimizer"]

PROVIDERS = {
    "comparisons": "every data module of pairs; a LocalDataModule whose rows have chosen and rejected",
    "votes": "DICES, SQuALITY, HelpSteer2, SafeRLHF, PersonaVotes and Synthetic (judgements: ratings) data modules; a "
    "LocalDataModule whose rows have votes",
    "comparison_votes": "UKPConvArg, PandaLM, SQuALITY and Synthetic (judgements: crowd) data modules; a "
    "LocalDataModule whose comparisons have votes",
    "score": "rated data; a LocalDataModule whose rows have score or scores",
    "user_id": "data with judges, such as UKPConvArgDataModule with judgements: workers",
    "domain_id": "data with domains, such as DSPDataModule",
}
"""Who provides a key, for the message of a module that misses one."""

WATCHED_STEPS = 3
"""First training batches whose scores must not all be identical."""


def default_optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW at a rate of 1e-5, for fine-tuning pretrained networks; a function by name, so that it pickles."""
    return torch.optim.AdamW(parameters, lr=1e-5)


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


class RewardModule(L.LightningModule, ABC):
    """Base of every reward module; a method writes ``configure_model``, ``forward`` and ``compute_loss``.

    Attributes:
        requires: Batch keys that the method needs besides responses; checked on the first batch.
        backbone: The network; None before ``configure_model``.
        text_format: Format of the text it was trained on; from the data module, kept in checkpoints.
    """

    requires: frozenset[str] = frozenset({"comparisons"})

    def __init__(
        self,
        backbone: BackboneConfig | Mapping[str, Any],
        *,
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network, in which state; a mapping of its fields also does.
            optimizer: Called with the parameter groups.
            lr_scheduler: Called with the optimiser; stepped after every optimiser step (a plateau scheduler
                after every validation, on ``val/loss``). None keeps the rate.
        """
        super().__init__()
        self.backbone_config = (
            backbone if isinstance(backbone, BackboneConfig) else BackboneConfig(**backbone)
        )
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.backbone: Backbone | StoredFeatures | None = None
        self.text_format: dict[str, Any] | None = None
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": PreferenceMetrics() for stage in ("train", "val", "test")}
        )
        self._checked = False
        self._largest_gap: Tensor | None = None

    # What a method writes ------------------------------------------------------------------------------

    @abstractmethod
    def configure_model(self) -> None:
        """Build backbone and head, unless they are built."""

    @abstractmethod
    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score a batch."""

    @abstractmethod
    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Scalar loss of a batch."""

    def parameter_groups(self) -> Iterable[Any]:
        """What the optimiser gets: every parameter that is trained. Override for several rates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

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
        store = getattr(getattr(self._trainer, "datamodule", None), "features", None)
        if store is None:
            return None
        store.check_backbone(self.backbone_config.description())
        return int(store.hidden_size)

    def built_backbone(self) -> Backbone | StoredFeatures:
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

    def _metrics(self, stage: str) -> PreferenceMetrics:
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, PreferenceMetrics)  # nn.ModuleDict forgets the type
        return metrics

    # Steps ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer before anything runs.

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
        """Take over the data's text format; say so where it replaces another one."""
        current = self._data_format()
        if changes := self._format_changes(current):
            rank_zero_info(f"text format: {changes}")
        self.text_format = current or self.text_format

    def on_validation_start(self) -> None:
        """Refuse data in another text format than the model was trained with."""
        self._check_format()

    def on_test_start(self) -> None:
        """Refuse data in another text format than the model was trained with."""
        self._check_format()

    def on_predict_start(self) -> None:
        """Refuse data in another text format than the model was trained with."""
        self._check_format()

    def _data_format(self) -> dict[str, Any] | None:
        describe = getattr(getattr(self.trainer, "datamodule", None), "text_format", None)
        return None if describe is None else describe()

    def _check_format(self) -> None:
        if changes := self._format_changes(self._data_format()):
            raise ValueError(
                f"the text format differs from the one this model was trained with ({changes}); set data.text alike"
            )

    def _format_changes(self, current: Mapping[str, Any] | None) -> str:
        """What differs from the stored format; the digest stands for the tokenizer, wherever it lies."""
        kept = self.text_format
        if kept is None or current is None:
            return ""
        names = sorted({*kept, *current} - {"tokenizer", "revision", "trust_remote_code"})
        names = [name for name in names if kept.get(name) != current.get(name)]
        return "; ".join(
            f"{name}: trained with {kept.get(name)!r}, now {current.get(name)!r}" for name in names
        )

    def _check(self, batch: PreferenceBatch) -> None:
        """Once, on the first batch: does the data have what the method needs, and does it fit the network?"""
        self._checked = True
        missing = sorted(key for key in self.requires if key not in batch)
        if missing:
            wanted = "; ".join(
                f"{key!r} (provided by {PROVIDERS.get(key, 'no data module so far')})" for key in missing
            )
            raise ValueError(
                f"{type(self).__name__} needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        self._check_network(batch)

    def _check_network(self, batch: PreferenceBatch) -> None:
        backbone = self.backbone
        if backbone is None or "input_ids" not in batch:
            return
        largest = int(batch["input_ids"].max())
        if backbone.vocab_size is not None and largest >= backbone.vocab_size:
            raise ValueError(
                f"token id {largest} is outside the backbone's vocabulary of {backbone.vocab_size}: data.text.tokenizer "
                "and backbone do not belong together"
            )
        limit = backbone.max_positions
        longest = 1 + int(batch["position_ids"].max())
        allowed = (self.text_format or {}).get("max_length")
        if limit is not None and max(longest, allowed or 0) > limit:
            raise ValueError(
                f"responses may have {max(longest, allowed or 0)} tokens with their prompt, but the backbone has "
                f"{limit} positions: set data.text.max_length to at most {limit}"
            )

    def num_judged(self, batch: PreferenceBatch) -> int:
        """How many items the loss of a batch is a mean over: its weight in an epoch's mean."""
        return len(batch["comparisons"]) if "comparisons" in batch else len(batch["response_row"])

    def _step(self, batch: PreferenceBatch, stage: str) -> tuple[Tensor, RewardOutput]:
        if not self._checked:
            self._check(batch)
        output: RewardOutput = self(batch)
        loss = self.compute_loss(output, batch)
        self._metrics(stage).update(output, batch)
        size = self.num_judged(batch)
        self.log(
            f"{stage}/loss",
            loss,
            batch_size=size,
            prog_bar=True,
            on_step=stage == "train",
            on_epoch=stage != "train",
            sync_dist=stage != "train",
        )
        return loss, output

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, output = self._step(batch, "train")
        if batch_idx < WATCHED_STEPS and self.current_epoch == 0:
            self._watch(output, batch_idx)
        return loss

    @torch.no_grad()
    def _watch(self, output: RewardOutput, batch_idx: int) -> None:
        """Stop a run that cannot learn: every comparison of the first batches has equal scores."""
        if "chosen" not in output:
            return
        gap = (output["chosen"] - output["rejected"]).abs()
        if not len(gap):  # records that carry ratings only
            gap = gap.new_full((1,), torch.inf)
        gap = gap.amax()
        self._largest_gap = gap if self._largest_gap is None else torch.maximum(gap, self._largest_gap)
        if batch_idx == WATCHED_STEPS - 1 and float(self._largest_gap) == 0.0:
            raise RuntimeError(
                f"chosen and rejected have identical rewards in each of the first {WATCHED_STEPS} batches, so nothing can be "
                "learned. Likely causes: responses are read at a position they share (pooling: cls on a causal "
                "backbone), the head's weights are zero, or the data pairs equal texts. `pluralign data inspect` "
                "shows the tokens."
            )

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> RewardOutput:
        """Loss and metrics of one batch; callbacks get the rewards."""
        return self._step(batch, "val")[1]

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> RewardOutput:
        """Loss and metrics of one batch; callbacks get the rewards."""
        return self._step(batch, "test")[1]

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Rewards of one batch with the ids they belong to.

        Returns:
            ``id`` (a list), ``response_prompt`` and ``response_index`` (R,), as far as the batch has them, and the
            module's output.
        """
        if batch_idx == 0:
            self._check_network(batch)
        names = {
            name: value
            for name, value in batch.items()
            if name in ("id", "response_prompt", "response_index")
        }
        return {**names, **self(batch)}

    def _log_metrics(self, stage: str) -> None:
        metric = self._metrics(stage)
        values = {
            f"{stage}/{name}": value for name, value in metric.compute().items() if not bool(value.isnan())
        }
        metric.reset()
        shown = f"{stage}/accuracy"
        # Equal on every rank already; without sync_dist Lightning warns that they might not be.
        self.log_dict({name: value for name, value in values.items() if name != shown}, sync_dist=True)
        if shown in values:
            self.log(shown, values[shown], prog_bar=True, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch."""
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser over ``parameter_groups()``, with the scheduler if there is one."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Checkpoints ---------------------------------------------------------------------------------------

    def saved_keys(self) -> set[str]:
        """Names of the state that a checkpoint holds: what was trained, and all of a network made from nothing."""
        keys = set(self.state_dict())
        if self.backbone_config.name is None:
            return keys  # random weights cannot be loaded again from anywhere else
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name for name in keys if name in trained or not name.startswith("backbone.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out and keep the text format beside the rest."""
        keys = self.saved_keys()
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in keys
        }
        checkpoint["pluralign"] = {"version": __version__, "text_format": self.text_format}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the text format."""
        self.text_format = checkpoint.get("pluralign", {}).get("text_format")

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401  torch's own type is private
        """Load what :meth:`saved_keys` names; frozen weights come from the backbone's own files.

        Args:
            state_dict: Values by name.
            strict: Kept for the interface; a missing or unknown key is an error in any case.
            assign: As in torch.

        Raises:
            RuntimeError: If a trained value is missing or a name is unknown.
        """
        self.configure_model()  # a spawned run hands its weights to a module that was never built here
        missing = sorted(self.saved_keys() - set(state_dict))
        unknown = sorted(set(state_dict) - set(self.state_dict()))
        if missing or unknown:
            raise RuntimeError(
                f"the checkpoint does not fit {type(self).__name__}: "
                f"missing {missing[:5] or 'nothing'}{' ...' if len(missing) > 5 else ''}, "
                f"unknown {unknown[:5] or 'nothing'}{' ...' if len(unknown) > 5 else ''}"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)
