"""Networks that read batches: loading, rows, packing, heads."""

from .head import RewardHead
from .loading import BackboneConfig, configured_positions
from .lora import LoRAConfig, added_keys, renamed
from .network import Backbone, BackboneOutput
from .several import Several
from .stored_features import StoredFeatures

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "LoRAConfig",
    "RewardHead",
    "Several",
    "StoredFeatures",
    "added_keys",
    "configured_positions",
    "renamed",
]
