"""Networks that read batches: loading, rows, packing, heads."""

from .loading import BackboneConfig, LoRAConfig, added_keys
from .network import Backbone, BackboneOutput, RewardHead, StoredFeatures

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "LoRAConfig",
    "RewardHead",
    "StoredFeatures",
    "added_keys",
]
