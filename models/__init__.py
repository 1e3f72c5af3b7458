"""One LightningModule per method, over one shared core."""

from .backbone import Backbone, RewardHead
from .base import RewardModule
from .bradley_terry import BradleyTerryRM
from .loading import BackboneConfig, LoRAConfig
from .metrics import PreferenceMetrics

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BradleyTerryRM",
    "LoRAConfig",
    "PreferenceMetrics",
    "RewardHead",
    "RewardModule",
]
