"""One LightningModule per method, over one shared core."""

from ._pal_shots import FewShotCurve, UserAccuracy, few_shot_curve, user_accuracy
from .backbone import Backbone, RewardHead, StoredFeatures
from .base import RewardModule
from .bradley_terry import BradleyTerryRM
from .dprm import DPRM
from .loading import BackboneConfig, LoRAConfig
from .pal import PAL

__all__ = [
    "DPRM",
    "PAL",
    "Backbone",
    "BackboneConfig",
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
