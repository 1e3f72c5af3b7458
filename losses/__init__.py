"""Losses: functions of tensors, each with a thin module; torch is all they need."""

from ._common import argument_checks
from .pairwise import BradleyTerryLoss, RewardCenteringLoss, bradley_terry_loss, reward_centering_loss

__all__ = [
    "BradleyTerryLoss",
    "RewardCenteringLoss",
    "argument_checks",
    "bradley_terry_loss",
    "reward_centering_loss",
]
