"""One LightningModule per method, over one shared core."""

from .backbone import Backbone, BackboneConfig, BackboneOutput, LoRAConfig, RewardHead, StoredFeatures
from .base import BaseModule
from .bradley_terry import BradleyTerryRM
from .customized import CustomizedRM
from .dprm import DPRM
from .ensemble_vote import ContrastiveRM, EnsembleVoteRM, MetaRM
from .pal import PAL, FewShotCurve, UserAccuracy, few_shot_curve, user_accuracy
from .policy import PolicyTuner
from .restored import restored_module
from .reward import RewardModule

__all__ = [
    "DPRM",
    "PAL",
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "BaseModule",
    "BradleyTerryRM",
    "ContrastiveRM",
    "CustomizedRM",
    "EnsembleVoteRM",
    "FewShotCurve",
    "LoRAConfig",
    "MetaRM",
    "PolicyTuner",
    "RewardHead",
    "RewardModule",
    "StoredFeatures",
    "UserAccuracy",
    "few_shot_curve",
    "restored_module",
    "user_accuracy",
]
