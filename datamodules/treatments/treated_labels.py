"""A batch whose labels are treated, all of its comparisons at once."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import PreferenceBatch
from ..tokens import TokenRow
from .config import TreatmentConfig

__all__ = ["treated_batch", "treated_comparisons"]

MIRRORED = ("comparison_votes", "comparison_target")
"""Columns with a category a side, whose mirror image is what the other side's label would be."""


def treated_batch(
    batch: PreferenceBatch, rows: Sequence[TokenRow], config: TreatmentConfig
) -> PreferenceBatch:
    r"""The batch with the labels of its comparisons treated.

    A flipped comparison has its sides swapped, and what counts sides (votes, the target) reversed; its share stays, which is
    now that of the other side; strength and a margin that the data have are negated. Smoothing by a makes
    :math:`(1 - a) p + a (1 - p)` of the share p, and mixes votes and target with their mirror images alike. A margin is the
    scale times the strength after the flip, bounded by ``clip``.

    Args:
        batch: With comparisons and their columns, side tables joined.
        rows: Its records, each with the rules of its comparisons.
        config: The rules.

    Returns:
        A new batch; ``strength`` (P,) is that of the treated label, and ``margin`` (P,) is there if any rule gives one.

    Raises:
        ValueError: If a record does not say which rules cover its comparisons.

    Source:
        Wang et al., *Secrets of RLHF in Large Language Models Part II: Reward Modeling*, 2024, section 2.2 and equations 5
        (smoothing) and 6 (margin), https://arxiv.org/abs/2401.06080. Departures: that a flipped label's margin is the
        negated strength is our reading; bound and scale are ours.

    .. versionadded:: 0.1
    """
    decided = [row.treated for row in rows if row.treated is not None]
    if len(decided) < len(rows):
        raise ValueError("treated_batch needs records of a TreatedView, which say which rules cover them")
    rule = np.concatenate([each.rule for each in decided])
    strength = np.concatenate([each.strength for each in decided])
    return treated_comparisons(batch, rule, strength, config)


def treated_comparisons(
    batch: PreferenceBatch, rule: NDArray[np.int16], strength: NDArray[np.float32], config: TreatmentConfig
) -> PreferenceBatch:
    """As :func:`treated_batch`, of comparisons whose rules are given.

    Args:
        batch: With ``comparisons`` and ``preference``, and their other columns as far as there are any.
        rule: Number of each comparison's rule, ``NO_RULE`` for none, (P,).
        strength: Of each comparison, (P,); NaN where it is not known, which no rule covers.
        config: The rules.
    """
    numbers, strengths = torch.from_numpy(rule.astype(np.int64)), torch.from_numpy(strength)
    # Of every rule, and last of what no rule covers, whose number is -1.
    flip = torch.tensor([*(each.label == "flip" for each in config.rules), False])[numbers]
    smoothing = torch.tensor([*(each.smoothing for each in config.rules), 0.0])[numbers]
    treated = batch.copy()
    pairs = batch["comparisons"]
    treated["comparisons"] = torch.where(flip.unsqueeze(-1), pairs.flip(-1), pairs)
    treated["preference"] = _mixed(batch["preference"], 1 - batch["preference"], smoothing)
    for name in MIRRORED:
        if name in batch:
            values: Tensor = batch[name]  # type: ignore[literal-required]
            values = torch.where(flip.unsqueeze(-1), values.flip(-1), values)
            treated[name] = _mixed(values, values.flip(-1), smoothing.unsqueeze(-1))  # type: ignore[literal-required]
    treated["strength"] = torch.where(flip, -strengths, strengths)
    margin = batch.get("margin")
    if margin is not None:
        margin = torch.where(flip, -margin, margin)
        treated["margin"] = margin
    if config.gives_margins:
        treated["margin"] = _margins(config, numbers, treated["strength"], margin)
    return treated


def _mixed(value: Tensor, mirror: Tensor, smoothing: Tensor) -> Tensor:
    """What is expected of a label that is wrong with this probability; exactly the value where that is 0."""
    return torch.where(smoothing > 0, (1 - smoothing) * value + smoothing * mirror, value)


def _margins(config: TreatmentConfig, rule: Tensor, strength: Tensor, own: Tensor | None) -> Tensor:
    """Margins by the rules that give one, (P,); elsewhere those of the data, or 0."""
    rules = config.rules
    scale = torch.tensor([*(each.margin or 0.0 for each in rules), 0.0])[rule]
    bound = torch.tensor([*(math.inf if each.clip is None else each.clip for each in rules), 0.0])[rule]
    own = torch.zeros_like(strength) if own is None else own
    # A strength that is not known is covered by no rule.
    wanted = scale * strength.nan_to_num().clamp(-bound, bound)
    added = own + wanted if config.margins == "add" else wanted
    return torch.where(scale > 0, added, own)
