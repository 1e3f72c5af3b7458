"""One LightningModule per method, over one shared core."""

from ._pal_shots import FewShotCurve, UserAccuracy, few_shot_curve, user_accuracy
from .backbone import Backbone, BackboneOutput, RewardHead, StoredFeatures
from .base import BaseModule
from .bradley_terry import BradleyTerryRM
from .dprm import DPRM
from .loading import BackboneConfig, LoRAConfig
from .pal import PAL
from .reward import RewardModule

__all__ = [
    "DPRM",
    "PAL",
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "BaseModule",
    "BradleyTerryRM",
    "FewShotCurve",
    "LoRAConfig",
    "RewardHead",
    "RewardModule",
    "StoredFeatures",
    "UserAccuracy",
    "few_shot_curve",
    "user_accuracy",
]
