"""What is measured of a stage whose batches come from several loaders: of each of them, beside the whole."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import SumMetric

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.metrics import PreferenceMetrics

__all__ = ["LoaderSums"]


class _Sums:
    """Metrics and loss of one loader."""

    def __init__(self, device: torch.device) -> None:
        self.metrics = PreferenceMetrics().to(device)
        # Not a MeanMetric: see RewardModule.
        self.loss, self.weight = (SumMetric(nan_strategy="disable").to(device) for _ in range(2))

    def values(self) -> dict[str, Tensor]:
        """Values by name, over all ranks; of no batches at all there are none."""
        if not self.metrics.update_called:  # every rank has as many loaders, and looks at each
            return {}
        values = {name: value for name, value in self.metrics.compute().items() if not bool(value.isnan())}
        return values | {"loss": self.loss.compute() / self.weight.compute()}


class LoaderSums:
    """Sums of each of several loaders; they are no part of a module's state."""

    def __init__(self, number: int, device: torch.device) -> None:
        """Begin at zero.

        Args:
            number: Of loaders, each of which every rank has.
            device: Of the batches.
        """
        self._parts: Sequence[_Sums] = [_Sums(device) for _ in range(number)]

    def update(
        self, loader: int, output: RewardOutput, batch: PreferenceBatch, loss: Tensor, weight: Tensor
    ) -> None:
        """Count one batch.

        Args:
            loader: Which one it is from.
            output: What the module said of it.
            batch: The batch.
            loss: Its loss, a scalar.
            weight: What the batch counts in the loader's mean, a scalar.
        """
        part = self._parts[loader]
        part.metrics.update(output, batch)
        part.loss.update(loss * weight)
        part.weight.update(weight)

    def values(self) -> dict[str, Tensor]:
        """Values by name and loader, such as ``accuracy/loader_1``, float32 scalars equal on all ranks."""
        return {
            f"{name}/loader_{number}": value
            for number, part in enumerate(self._parts)
            for name, value in part.values().items()
        }
