"""What is measured of a validation or a test: means over the split, and each loader by itself where there are several."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import SumMetric

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.metrics import PreferenceMetrics

__all__ = ["LoaderSums", "Means", "Summed"]

Summed = Mapping[str, tuple[Tensor, Tensor]]
"""By name, what a batch adds to a sum, and to what the sum is divided by in the end: scalars on the batch's device."""


class Means:
    """Means of named values over all batches and ranks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, tuple[SumMetric, SumMetric]] = {}

    def update(self, values: Summed) -> None:
        """Count one batch; every batch and rank has the same names."""
        for name, pair in values.items():
            if name not in self._sums:
                # Not a MeanMetric, which takes no weights where it looks for no NaN, and waits for the device where it does.
                first, second = (SumMetric(nan_strategy="disable").to(self._device) for _ in range(2))
                self._sums[name] = first, second
            for metric, value in zip(self._sums[name], pair, strict=True):
                metric.update(value)

    def values(self) -> dict[str, Tensor]:
        """Means by name, over all ranks."""
        return {name: total.compute() / weight.compute() for name, (total, weight) in self._sums.items()}


class LoaderSums:
    """Means over a split, and metrics and means of each of several loaders; no part of a module's state."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Begin at zero.

        Args:
            names: Of the loaders, each of which every rank has; of a single one nothing is told beside the whole.
            device: Of the batches.
        """
        self._whole = Means(device)
        several = len(names) > 1
        self._loaders = {name: (PreferenceMetrics().to(device), Means(device)) for name in names if several}
        self._names = tuple(names)

    def update(self, loader: int, output: RewardOutput, batch: PreferenceBatch, values: Summed) -> None:
        """Count one batch.

        Args:
            loader: Which one it is from.
            output: What the module said of it.
            batch: The batch.
            values: What is measured of it, the loss among it.
        """
        self._whole.update(values)
        if self._loaders:
            metrics, means = self._loaders[self._names[loader]]
            metrics.update(output, batch)
            means.update(values)

    def whole(self) -> dict[str, Tensor]:
        """Means over the split by name, float32 scalars equal on all ranks; of nothing only ``loss`` is one, NaN."""
        values = self._whole.values()
        return {name: value for name, value in values.items() if name == "loss" or not bool(value.isnan())}

    def of_each(self, shown: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Values by name and loader, such as ``accuracy/loader_1``, float32 scalars equal on all ranks.

        Args:
            shown: What to make of the values of one loader.
        """
        found: dict[str, Tensor] = {}
        for loader, (metrics, means) in self._loaders.items():
            if not metrics.update_called:  # every rank has as many loaders, and looks at each
                continue
            values = {**metrics.compute(), **means.values()}  # NaN where there was nothing to measure
            values = {name: value for name, value in values.items() if not bool(value.isnan())}
            found |= {f"{name}/{loader}": value for name, value in shown(values).items()}
        return found
