"""Whether two models differ on the same comparisons, prompts being what is independent; and how many such tests are made."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .clustered import clustered_means, clustered_sums
from .estimate import Estimate
from .sign_flip import sign_flip_test

__all__ = ["PairedAccuracy", "holm_correction", "paired_accuracy"]


class PairedAccuracy(NamedTuple):
    """Two models on the same comparisons."""

    difference: Estimate
    """Accuracy of the first less that of the second; the interval draws prompts."""
    p_value: float
    """Two-sided; NaN without comparisons."""
    comparisons: int
    prompts: int
    only_first: int
    """Comparisons that only the first is right about."""
    only_second: int


def paired_accuracy(
    first: Tensor, second: Tensor, cluster: Tensor, *, num_resamples: int = 2000, seed: int = 0
) -> PairedAccuracy:
    """Compare two models by which comparisons each is right about.

    Under the hypothesis that they do not differ the two could be exchanged on each prompt: differences of whole prompts change
    sign at random. McNemar's test would take the comparisons of one prompt for independent.

    Args:
        first: 1 where the first is right, 0 where it is wrong, (M,).
        second: Likewise of the second.
        cluster: Prompt of each, (M,) int64, any numbers.
        num_resamples: Resamples of the bootstrap.
        seed: Seed of bootstrap and test.

    Raises:
        ValueError: If shapes differ.
    """
    if not first.shape == second.shape == cluster.shape or first.ndim != 1:
        raise ValueError(
            f"first, second and cluster must be (M,); got {tuple(first.shape)}, {tuple(second.shape)} and "
            f"{tuple(cluster.shape)}"
        )
    gain = (first.double() - second.double()).unsqueeze(1)
    (difference,) = clustered_means(gain, cluster, num_resamples=num_resamples, seed=seed)
    sums = clustered_sums(gain, cluster)[:, 0]
    return PairedAccuracy(
        difference=difference,
        p_value=sign_flip_test(sums, seed=seed),
        comparisons=len(first),
        prompts=len(sums),
        only_first=int((gain > 0).sum()),
        only_second=int((gain < 0).sum()),
    )


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all of several tests at once: the chance of any false alarm stays below the level.

    Args:
        p_values: Each in [0, 1]; NaN where a test could not be made, which counts for none.

    Returns:
        Corrected ones in the same order, in [0, 1], NaN where they were.

    Source:
        S. Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6, 1979,
        section 3; as adjusted p-values. Departures: none.
    """
    values = torch.tensor(p_values, dtype=torch.float64)
    made = (~values.isnan()).nonzero()[:, 0]
    order = made[values[made].argsort(stable=True)]
    times = torch.arange(len(order), 0, -1, dtype=torch.float64)
    values[order] = (values[order] * times).cummax(0).values.clamp_max(1) if len(order) else values[order]
    return [float(value) for value in values]
