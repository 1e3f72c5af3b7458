"""PCM: experts, frozen language models that are mixed token by token."""

from .adapter_experts import AdapterExperts
from .black_boxes import BlackBoxExperts
from .experts import BASE, ExpertPool, ExpertRun, ExpertsConfig
from .model_experts import ModelExperts
from .pools import digests, load_pool

__all__ = [
    "BASE",
    "AdapterExperts",
    "BlackBoxExperts",
    "ExpertPool",
    "ExpertRun",
    "ExpertsConfig",
    "ModelExperts",
    "digests",
    "load_pool",
]
