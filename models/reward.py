"""RewardModule: the steps, metrics and checks that every method which scores responses shares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.columns import COLUMNS, provided_by, with_requests
from pluralign.metrics import PreferenceMetrics

from ._finite import finding_now, reads_freely
from ._loader_sums import LoaderSums, Summed
from ._step_weights import StepWeights, weight_total
from ._watching import WatchedModule
from .backbone import BackboneConfig
from .base import ModuleSettings

__all__ = ["RewardModule", "compared"]

WATCHED_STEPS = 3
"""First training batches whose scores must not all be identical."""

ASKED = frozenset(column.name for column in COLUMNS if column.item == "request")
"""Entries of a batch that say whose reward of which response is asked for."""
NAMES = {"id", "response_prompt", "response_index", "comparisons", "comparison_index", "comparison_prompt"}
"""Entries of a batch that say which response or comparison is meant."""


def compared(output: RewardOutput, batch: PreferenceBatch) -> RewardOutput:
    """The output with ``chosen`` and ``rejected`` (P,), read from ``reward`` where the batch has comparisons."""
    if "comparisons" in batch:
        output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(dim=1)
    return output


class RewardModule(WatchedModule, ABC):
    """Base of every reward module; a method writes ``configure_model``, ``forward`` and ``compute_loss``.

    Attributes:
        requires: Batch keys that the method needs besides responses; checked on the first batch.
        reads_unlabelled: Whether it trains on groups without judgements, too, where batches have ``unlabelled``.
        reads_requests: Keys of requests that its rewards depend on, such as ``request_user_id``.
    """

    requires: frozenset[str] = frozenset({"comparisons"})
    reads_requests: frozenset[str] = frozenset()
    reads_unlabelled: bool = False

    def __init__(
        self, backbone: BackboneConfig | Mapping[str, Any], **settings: Unpack[ModuleSettings]
    ) -> None:
        """Keep the settings; builds no weights and reads no file.

        Args:
            backbone: Which network, in which state; a mapping of its fields also does.
            **settings: As :class:`BaseModule` has them.
        """
        super().__init__(backbone, **settings)
        self.metrics = nn.ModuleDict(
            {f"{stage}_metrics": PreferenceMetrics() for stage in ("train", "val", "test")}
        )
        self._checked = False
        self._largest_gap: Tensor | None = None
        self._step_weights = StepWeights()
        self._ended_sums: dict[str, Tensor] | None = None
        self._loader_sums: LoaderSums | None = None

    # What a method writes ------------------------------------------------------------------------------

    @abstractmethod
    def configure_model(self) -> None:
        """Build backbone and head, unless they are built; end with :meth:`load_initial_weights`."""

    @abstractmethod
    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score a batch."""

    @abstractmethod
    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor | dict[str, Tensor]:
        """Scalar loss of a batch: a mean over what it judges, divided by :meth:`denominator`, in each of its terms.

        Returns:
            The loss, or its terms by name, of the same names in every batch: they are added, and logged besides.
        """

    def measure(self, output: RewardOutput, batch: PreferenceBatch) -> Summed:
        """What is measured of a batch of validation or test besides loss and metrics; nothing, unless overridden."""
        return {}

    def shown(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of the values of a split or of one of its loaders; as they are, unless overridden."""
        return values

    # Steps ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer, and later the first batch of this stage: other data than those of before."""
        super().setup(stage)
        self._checked = False

    def check_batch(self, batch: PreferenceBatch) -> None:
        """On the first batch: does the data have what the method needs, and does it fit the network?

        Raises:
            TypeError: If it is several batches, of loaders that are read side by side.
            ValueError: If it does not.
        """
        self._checked = True
        if "response_row" not in batch:
            several = len(batch) if isinstance(batch, (Mapping, list, tuple)) else 0
            raise TypeError(
                f"{type(self).__name__} takes one batch at a time, a dictionary with response_row, and got a "
                f"{type(batch).__name__} of {several}: loaders are read one after the other, so give training one loader, and "
                "validation or test a list of loaders (CombinedLoader: mode='sequential')"
            )
        missing = sorted(key for key in self.requires if key not in batch)
        if missing:
            wanted = "; ".join(f"{key!r} (provided by {provided_by(key)})" for key in missing)
            raise ValueError(
                f"{type(self).__name__} needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        if "unlabelled" in batch and not self.reads_unlabelled:
            rank_zero_warn(
                f"{type(self).__name__} does not read the unlabelled groups beside its batches: leave data.unlabelled out"
            )
        self.check_network(batch)

    def training_accuracy(self) -> float | None:
        """Accuracy on the judgements of this epoch's training so far, over all ranks; None before there are any."""
        metric = self._metrics("train")
        if not metric.update_called:
            return None
        accuracy = float(metric.compute()["accuracy"])
        return None if math.isnan(accuracy) else accuracy

    def num_judged(self, batch: PreferenceBatch) -> int:
        """How many items the loss of a batch is a mean over: its weight in an epoch's mean."""
        return len(batch["comparisons"]) if "comparisons" in batch else len(batch["response_row"])

    def denominator(self, batch: PreferenceBatch) -> Tensor:
        """What the loss of a batch is a sum divided by: the weights of its comparisons, or how many items there are.

        The step's gradient is that of the sums of all its batches, over ranks and accumulated ones, divided by the sum of
        their denominators; a method whose loss is a mean over something else overrides this.

        Returns:
            A scalar >= 0 on the batch's device, which is not read.
        """
        return weight_total(batch.get("weight"), self.num_judged(batch), batch["response_row"].device)

    def step(self, batch: PreferenceBatch, stage: str, loader: int = 0) -> tuple[Tensor, RewardOutput]:
        """Score a batch, measure and log it; losses read the values of their arguments in a loader's first batch only.

        Args:
            batch: A batch.
            stage: ``train``, ``val`` or ``test``: which metrics count it, and the beginning of the logged names.
            loader: Which of the stage's loaders it is from.

        Returns:
            The scalar loss, with its graph in training, and what the module said of the batch.
        """
        with self.argument_checks.of((stage, loader)):
            return self._step(batch, stage, loader)

    def _step(self, batch: PreferenceBatch, stage: str, loader: int) -> tuple[Tensor, RewardOutput]:
        if not self._checked:
            self.check_batch(batch)
        output: RewardOutput = self(batch)
        passing, batch_name = self.passes_over and stage == "train", partial(self._name, batch, stage)
        at_once = passing or reads_freely(output)
        # Before the loss refuses such numbers, and knows nothing of steps and records.
        unfit = at_once and self._stop_at(finding_now(self, output, None, batch_name), passing=passing)
        found = self.compute_loss(output, batch)
        terms = {} if isinstance(found, Tensor) else found
        loss = found if isinstance(found, Tensor) else torch.stack([*terms.values()]).sum()
        if at_once:
            unfit |= self._stop_at(finding_now(self, RewardOutput(), loss, batch_name), passing=passing)
        if self._finite is not None and stage == "train":
            self._finite.note(output, loss, batch_name(), fine=at_once)
        self._metrics(stage).update(RewardOutput() if unfit else output, batch)
        if stage == "train":
            logged = {"train/loss": loss, **{f"train/{name}": term for name, term in terms.items()}}
            self.step_values = {name: value.detach() for name, value in logged.items()}
            for name, value in logged.items():
                self.log(name, value, batch_size=self.num_judged(batch), prog_bar=name == "train/loss")
        else:  # the split's mean, however its judgements are put into batches
            weight = self.denominator(batch)
            values = {name: (term * weight, weight) for name, term in {"loss": loss, **terms}.items()}
            if self._loader_sums is None:  # a step by itself, without a trainer's evaluation
                self._loader_sums = LoaderSums(("",), loss.device)
            self._loader_sums.update(loader, output, batch, values | dict(self.measure(output, batch)))
        output.pop("tokens", None)  # nobody outside may hold on to them
        return loss, output

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, scaled by what the batch weighs in its optimiser step (:class:`StepWeights`)."""
        self.check_resumed()
        if not self._checked:
            self.check_batch(batch)
        trainer = self.attached_trainer
        if trainer is None or not self.automatic_optimization:
            return self._train_on(batch, batch_idx)
        accumulated, ranks = trainer.accumulate_grad_batches, trainer.world_size
        if accumulated == ranks == 1:
            return self._train_on(batch, batch_idx)
        if accumulated > 1 and trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                f"{type(trainer.strategy).__name__} accumulates gradients itself, where judgements of batches with few "
                "others would weigh more: set trainer.accumulate_grad_batches=1 and larger batches "
                "(data.loader.max_tokens), or another trainer.strategy, such as ddp or fsdp"
            )
        if batch_idx % accumulated == 0:  # where the trainer sets the gradients to zero
            if self._step_weights.batches >= accumulated > 1:
                raise RuntimeError(
                    f"{type(self).__name__}.on_before_optimizer_step does not call that of RewardModule, which "
                    "divides accumulated gradients by what they are the sum of"
                )
            self._step_weights.reset()
        self._step_weights.begin_batch(self.denominator(batch), ranks)
        return self._step_weights.scaled(self._train_on(batch, batch_idx), ranks)

    def _train_on(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, watched."""
        loss, output = self.step(batch, "train")
        if batch_idx < WATCHED_STEPS and self.current_epoch == 0:
            self.watch(output, batch_idx)
        if self._finite is not None and self._finite.number % self._look_every == 0:
            self.look()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make accumulated gradients the mean's, before they are clipped."""
        self._step_weights.end_step(optimizer, self.trainer.accumulate_grad_batches)

    # Numbers that are not finite --------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Go on where a run was interrupted; begin to watch for numbers that are not finite, with no step under way."""
        super().on_train_start()
        self._step_weights.reset()

    def on_validation_start(self) -> None:
        """Begin an evaluation, of weights that are finite."""
        self.look()
        super().on_validation_start()
        trainer = self.trainer
        self._begin_sums(
            "val", trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    def on_test_start(self) -> None:
        """Begin an evaluation."""
        super().on_test_start()
        self._begin_sums("test", self.trainer.num_test_batches)

    def _begin_sums(self, stage: str, batches: Sequence[float]) -> None:
        """Begin at zero, and with each loader by itself if there are several, of so many batches."""
        names = self.data.loader_names("validation" if stage == "val" else "test") if self.data else ()
        if len(names) != len(batches):  # of loaders that a trainer was given by itself
            names = tuple(f"loader_{number}" for number in range(len(batches)))
        self._loader_sums = LoaderSums(names, self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write no weights that are not finite; as every module besides."""
        self.look()
        super().on_save_checkpoint(checkpoint)

    @torch.no_grad()
    def watch(self, output: RewardOutput, batch_idx: int) -> None:
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

    def validation_step(
        self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> RewardOutput:
        """Loss and metrics of one batch of one of the loaders; callbacks get the rewards."""
        if batch_idx == 0 and dataloader_idx > 0:
            self.check_batch(batch)  # other data than those of before
        return self.step(batch, "val", dataloader_idx)[1]

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> RewardOutput:
        """Loss and metrics of one batch of one of the loaders; callbacks get the rewards."""
        if batch_idx == 0 and dataloader_idx > 0:
            self.check_batch(batch)  # other data than those of before
        return self.step(batch, "test", dataloader_idx)[1]

    def predict_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Rewards of one batch with the names of what they belong to.

        Returns:
            The module's output and, as far as the batch has them, ``id`` (a list of N), ``response_prompt`` and
            ``response_index`` (R,), ``comparisons`` (P, 2), ``comparison_index`` and ``comparison_prompt`` (P,): which
            record a comparison belongs to, an index into ``id`` as ``response_prompt`` is; ``request_response``,
            ``request_prompt`` and ``request_index`` (Q,), one for each response if the batch asks for none.
        """
        if batch_idx == 0:
            self.check_network(batch)
            self._name_unread(batch)
        batch = with_requests(batch)
        names: dict[str, Any] = {name: value for name, value in batch.items() if name in NAMES | ASKED}
        if "comparisons" in batch and "response_prompt" in batch and "comparison_prompt" not in batch:
            names["comparison_prompt"] = batch["response_prompt"][batch["comparisons"][:, 0]]
        output: RewardOutput = self(batch)
        output.pop("tokens", None)
        return {**names, **output}

    def _name_unread(self, batch: PreferenceBatch) -> None:
        """Say which columns the rows to predict have and this method does not read."""
        given = {column.name: column.names for column in COLUMNS if column.names and column.name in batch}
        if unread := [str(field) for name, field in given.items() if name not in self.reads_requests]:
            rank_zero_warn(
                f"rows to predict have {' and '.join(unread)}, which {type(self).__name__} does not read: its rewards are "
                "the same whatever stands there"
            )

    def _log_metrics(self, stage: str) -> None:
        metric, sums = self._metrics(stage), self._loader_sums
        values = {name: value for name, value in metric.compute().items() if not bool(value.isnan())}
        metric.reset()
        shown = f"{stage}/accuracy"
        if stage != "train":
            self._warn_of_ties(stage, values)
            assert sums is not None  # the evaluation began them
            values = self.shown(values | sums.whole()) | sums.of_each(self.shown)
        named = {f"{stage}/{name}": value for name, value in values.items()}
        bar = {name: named.pop(name) for name in (shown, f"{stage}/loss") if name in named}
        # Equal on every rank already; without sync_dist Lightning warns that they might not be.
        self.log_dict(named, sync_dist=True)
        self.log_dict(bar, prog_bar=True, sync_dist=True)

    def _warn_of_ties(self, stage: str, values: Mapping[str, Tensor]) -> None:
        """Say that a model tells no two responses apart: its accuracy is 0, and its loss that of a coin."""
        trainer = self.attached_trainer
        tied = values.get("tied_scores")
        if not self.tells_apart or tied is None or (trainer is not None and trainer.sanity_checking):
            return
        if float(tied) == 1.0:
            rank_zero_warn(
                f"{stage}: the two responses of every comparison have equal rewards, so that accuracy is 0 whatever the loss "
                "says. Likely causes: a learning rate so high that the network answers alike to everything, or weights that "
                "were not loaded"
            )

    @property
    def tells_apart(self) -> bool:
        """Whether the method, as it is set, may give different responses different rewards."""
        return True

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        self._ended_sums = None

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch; a checkpoint written while it ends still has their sums."""
        super().on_train_epoch_end()
        self.look()
        self._ended_sums = self.running_sums()
        if self._metrics(
            "train"
        ).update_called:  # or a run went on at the very end, without the sums of before
            self._log_metrics("train")

    def running_sums(self) -> dict[str, Tensor]:
        """Sums of the training metrics."""
        return self._ended_sums or self._metrics("train").sums_by_name()

    def restore_sums(self, sums: dict[str, Tensor]) -> None:
        """Go on counting."""
        self._metrics("train").add_sums(sums)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def _metrics(self, stage: str) -> PreferenceMetrics:
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, PreferenceMetrics)  # nn.ModuleDict forgets the type
        return metrics
