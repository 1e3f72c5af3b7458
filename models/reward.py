"""RewardModule: the steps, metrics and checks that every method which scores responses shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.columns import provided_by
from pluralign.metrics import PreferenceMetrics

from .backbone import BackboneConfig
from .base import BaseModule, ModuleSettings

__all__ = ["RewardModule", "compared"]

WATCHED_STEPS = 3
"""First training batches whose scores must not all be identical."""

NAMES = frozenset({"id", "response_prompt", "response_index", "comparisons", "comparison_index"})
"""Entries of a batch that say which response or comparison is meant."""


def compared(output: RewardOutput, batch: PreferenceBatch) -> RewardOutput:
    """The output with ``chosen`` and ``rejected`` (P,), read from ``reward`` where the batch has comparisons."""
    if "comparisons" in batch:
        output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(dim=1)
    return output


class RewardModule(BaseModule, ABC):
    """Base of every reward module; a method writes ``configure_model``, ``forward`` and ``compute_loss``.

    Attributes:
        requires: Batch keys that the method needs besides responses; checked on the first batch.
    """

    requires: frozenset[str] = frozenset({"comparisons"})

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
        self._ended_sums: dict[str, Tensor] | None = None

    # What a method writes ------------------------------------------------------------------------------

    @abstractmethod
    def configure_model(self) -> None:
        """Build backbone and head, unless they are built; end with :meth:`load_initial_weights`."""

    @abstractmethod
    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Score a batch."""

    @abstractmethod
    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """Scalar loss of a batch."""

    # Steps ---------------------------------------------------------------------------------------------

    def check_batch(self, batch: PreferenceBatch) -> None:
        """Once, on the first batch: does the data have what the method needs, and does it fit the network?

        Raises:
            ValueError: If it does not.
        """
        self._checked = True
        missing = sorted(key for key in self.requires if key not in batch)
        if missing:
            wanted = "; ".join(f"{key!r} (provided by {provided_by(key)})" for key in missing)
            raise ValueError(
                f"{type(self).__name__} needs batch keys that this data lacks: {wanted}; it has {sorted(batch)}"
            )
        self.check_network(batch)

    def num_judged(self, batch: PreferenceBatch) -> int:
        """How many items the loss of a batch is a mean over: its weight in an epoch's mean."""
        return len(batch["comparisons"]) if "comparisons" in batch else len(batch["response_row"])

    def step(self, batch: PreferenceBatch, stage: str) -> tuple[Tensor, RewardOutput]:
        """Score a batch, measure and log it.

        Args:
            batch: A batch.
            stage: ``train``, ``val`` or ``test``: which metrics count it, and the beginning of the logged names.

        Returns:
            The scalar loss, with its graph in training, and what the module said of the batch.
        """
        if not self._checked:
            self.check_batch(batch)
        output: RewardOutput = self(batch)
        loss = self.compute_loss(output, batch)
        self._metrics(stage).update(output, batch)
        size = self.num_judged(batch)
        if stage == "train":
            self.step_values = {"train/loss": loss.detach()}
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
        loss, output = self.step(batch, "train")
        if batch_idx < WATCHED_STEPS and self.current_epoch == 0:
            self.watch(output, batch_idx)
        return loss

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

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> RewardOutput:
        """Loss and metrics of one batch; callbacks get the rewards."""
        return self.step(batch, "val")[1]

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> RewardOutput:
        """Loss and metrics of one batch; callbacks get the rewards."""
        return self.step(batch, "test")[1]

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Rewards of one batch with the names of what they belong to.

        Returns:
            The module's output and, as far as the batch has them, ``id`` (a list of N), ``response_prompt`` and
            ``response_index`` (R,), ``comparisons`` (P, 2), ``comparison_index`` and ``comparison_prompt`` (P,): which
            record a comparison belongs to, an index into ``id`` as ``response_prompt`` is.
        """
        if batch_idx == 0:
            self.check_network(batch)
        names: dict[str, Any] = {name: value for name, value in batch.items() if name in NAMES}
        if "comparisons" in batch and "response_prompt" in batch:
            names["comparison_prompt"] = batch["response_prompt"][batch["comparisons"][:, 0]]
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

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        self._ended_sums = None

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch; a checkpoint written while it ends still has their sums."""
        super().on_train_epoch_end()
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
