"""One LightningModule per method, over one shared core."""

from .autoregressive_rm import AutoregressiveRM
from .backbone import Backbone, BackboneConfig, BackboneOutput, LoRAConfig, RewardHead, StoredFeatures
from .base import BaseModule
from .bradley_terry import BradleyTerryRM
from .customized import CustomizedRM
from .dprm import DPRM
from .ensemble_vote import ContrastiveRM, EnsembleVoteRM, MetaRM
from .pal import PAL, FewShotCurve, UserAccuracy, few_shot_curve, user_accuracy
from .reward import RewardModule

__all__ = [
    "DPRM",
    "PAL",
    "AutoregressiveRM",
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
    "RewardHead",
    "RewardModule",
    "StoredFeatures",
    "UserAccuracy",
    "few_shot_curve",
    "user_accuracy",
]
