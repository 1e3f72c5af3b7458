"""Losses: functions of tensors, each with a thin module; torch is all they need."""

from ._common import argument_checks
from .pairwise import (
    BradleyTerryLoss,
    DavidsonLoss,
    HingeLoss,
    PlackettLuceLoss,
    RankedPairsLoss,
    RaoKupperLoss,
    RewardCenteringLoss,
    SmoothedHingeLoss,
    bradley_terry_loss,
    davidson_loss,
    hinge_loss,
    plackett_luce_loss,
    ranked_pairs_loss,
    rao_kupper_loss,
    reward_centering_loss,
    smoothed_hinge_loss,
)

__all__ = [
    "BradleyTerryLoss",
    "DavidsonLoss",
    "HingeLoss",
    "PlackettLuceLoss",
    "RankedPairsLoss",
    "RaoKupperLoss",
    "RewardCenteringLoss",
    "SmoothedHingeLoss",
    "argument_checks",
    "bradley_terry_loss",
    "davidson_loss",
    "hinge_loss",
    "plackett_luce_loss",
    "ranked_pairs_loss",
    "rao_kupper_loss",
    "reward_centering_loss",
    "smoothed_hinge_loss",
]
