"""Whether two models differ on the same comparisons, prompts being what is independent; and how many such tests are made."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .clustered import clustered_sums, half_width_quantile
from .estimate import CONFIDENCE, Estimate
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


def paired_accuracy(first: Tensor, second: Tensor, cluster: Tensor, *, seed: int = 0) -> PairedAccuracy:
    r"""Compare two models by which comparisons each is right about.

    Under the hypothesis that they do not differ the two could be exchanged on each prompt: differences of whole prompts change
    sign at random, and all patterns of signs are counted (:func:`sign_flip_test`). With one comparison a prompt that is McNemar's
    exact test, the sign test of the comparisons that one of the two alone is right about; with several, McNemar's would take the
    comparisons of one prompt for independent.

    The interval is a t interval over prompts, around a mean drawn towards 0 by two more comparisons of either kind, half of one
    that the first alone is right about and half of one that the second is (Agresti and Min): without those, models that
    differ nowhere would have an interval without width. They weigh as much as the comparisons of a prompt depend on each
    other. Where the test does not tell the two apart the interval has 0 in it.

    Args:
        first: 1 where the first is right, 0 where it is wrong, (M,).
        second: Likewise of the second.
        cluster: Prompt of each, (M,) int64, any numbers.
        seed: Seed of the test, where it draws.

    Raises:
        ValueError: If shapes differ, or a value is neither 0 nor 1.

    Source:
        A. Agresti and Y. Min, *Simple improved confidence intervals for comparing matched proportions*, Statistics in Medicine 24,
        2005, section 3 (Wald+2). Departures: over clusters, by the design effect of the differences; the middle is not drawn,
        only the interval.
    """
    if not first.shape == second.shape == cluster.shape or first.ndim != 1:
        raise ValueError(
            f"first, second and cluster must be (M,); got {tuple(first.shape)}, {tuple(second.shape)} and "
            f"{tuple(cluster.shape)}"
        )
    for name, right in (("first", first), ("second", second)):
        if not bool(((right == 0) | (right == 1)).all()):
            raise ValueError(
                f"{name} must be 1 where the model is right and 0 where it is wrong, and nothing else"
            )
    gain = first.double() - second.double()
    columns = clustered_sums(torch.stack([gain, torch.ones_like(gain), gain.abs()], 1), cluster)
    p_value = sign_flip_test(columns[:, 0], seed=seed)
    low, high = _difference_interval(columns)
    if p_value >= 1 - CONFIDENCE:
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedAccuracy(
        difference=Estimate(float(gain.mean()), low, high),
        p_value=p_value,
        comparisons=len(first),
        prompts=len(columns),
        only_first=int((gain > 0).sum()),
        only_second=int((gain < 0).sum()),
    )


def _difference_interval(columns: Tensor) -> tuple[float, float]:
    """Ends, from differences, comparisons and comparisons that differ, of each prompt, (G, 3); NaN of fewer than two prompts."""
    prompts = len(columns)
    if prompts < 2:
        return float("nan"), float("nan")
    gains, numbers, _ = columns.unbind(1)
    _, count, differing = columns.sum(0).tolist()
    # Comparisons that an added one weighs: one where they are independent, those of a prompt where they all go together.
    together = count / prompts
    weight = together
    if differing:
        weight = min(max(1.0, float(gains.square().sum()) / differing), max(1.0, together))
    size = count + 2 * weight
    middle = float(gains.sum()) / size
    spread = float((gains - middle * numbers).square().sum())
    spread += weight**2 * ((1 - middle) ** 2 + (1 + middle) ** 2 + 2 * middle**2) / 2
    half = float(half_width_quantile(torch.tensor([prompts]))) * spread**0.5 / size
    return max(-1.0, middle - half), min(1.0, middle + half)


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
