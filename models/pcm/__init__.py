"""PCM: frozen experts, mixed token by token by a small control network."""

from .adapter_experts import AdapterExperts
from .black_boxes import BlackBox, BlackBoxExperts
from .experts import BASE, ExpertPool, ExpertRun, ExpertsConfig
from .model_experts import ModelExperts
from .module import PCM
from .soup import factor_soup, product_soup

__all__ = [
    "BASE",
    "PCM",
    "AdapterExperts",
    "BlackBox",
    "BlackBoxExperts",
    "ExpertPool",
    "ExpertRun",
    "ExpertsConfig",
    "ModelExperts",
    "factor_soup",
    "product_soup",
]
