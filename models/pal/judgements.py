"""What judgements cost, one by one: the losses that the network is trained by and users' weights are fitted by."""

from typing import Literal

import torch
from torch import Tensor

from pluralign.losses import bradley_terry_loss, hinge_loss, smoothed_hinge_loss

__all__ = ["JudgementLoss", "judgement_losses"]

JudgementLoss = Literal["logistic", "hinge", "smoothed_hinge"]


def judgement_losses(gap: Tensor, preference: Tensor | None, loss: JudgementLoss) -> Tensor:
    """Loss of every judgement; a hinge of a share is the mean of both hinges, each by its share.

    Args:
        gap: Reward of the first response less that of the second, less the required margin if there is one, (M,).
        preference: Share for the first, (M,) in [0, 1]; 1 if None.
        loss: ``logistic``; ``hinge``, margin 1; or ``smoothed_hinge``, whose corner is a parabola of width 5.

    Returns:
        (M,) >= 0, unweighted.
    """
    none = torch.zeros_like(gap)
    if loss == "logistic":
        return bradley_terry_loss(gap, none, preference=preference, reduction="none")
    lack = hinge_loss if loss == "hinge" else smoothed_hinge_loss
    losses = lack(gap, none, reduction="none")
    if preference is None:
        return losses
    return preference * losses + (1 - preference) * lack(none, gap, reduction="none")
