"""Networks that read batches: loading, rows, packing, heads."""

from .classifier import WholeClassifier
from .dropout import attention_drops, dropout_rates, with_attention_dropout, without_dropout
from .head import RewardHead
from .kinds import views_differ
from .language_model import save_language_model
from .loading import BackboneConfig, configured_positions, load_model, network_config
from .lora import LoRAConfig, added_keys, merged_weight, network_layers, renamed, start_magnitudes
from .network import Backbone, BackboneOutput
from .packing import PackedRows, packed_rows
from .rows import repeat, separate_rows
from .several import Several
from .stored_features import StoredFeatures

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneOutput",
    "LoRAConfig",
    "PackedRows",
    "RewardHead",
    "Several",
    "StoredFeatures",
    "WholeClassifier",
    "added_keys",
    "attention_drops",
    "configured_positions",
    "dropout_rates",
    "load_model",
    "merged_weight",
    "network_config",
    "network_layers",
    "packed_rows",
    "renamed",
    "repeat",
    "save_language_model",
    "separate_rows",
    "start_magnitudes",
    "views_differ",
    "with_attention_dropout",
    "without_dropout",
]
