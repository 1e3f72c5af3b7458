"""Networks that read batches: loading, rows, packing, heads."""

from .head import RewardHead
from .loading import BackboneConfig, LoRAConfig, added_keys, configured_positions
from .network import Backbone, BackboneOutput, StoredFeatures

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "LoRAConfig",
    "RewardHead",
    "StoredFeatures",
    "added_keys",
    "configured_positions",
]
