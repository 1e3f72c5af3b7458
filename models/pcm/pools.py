"""Experts from their configuration: which files they are, and the pool that runs them."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ..backbone import BackboneConfig, load_model, without_dropout
from .adapter_experts import AdapterExperts
from .adapter_files import adapter_digest
from .experts import ExpertPool, ExpertsConfig
from .model_experts import ModelExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["expert_digests", "load_pool"]


def load_pool(config: ExpertsConfig, base: "PreTrainedModel | None") -> ExpertPool:
    """Load experts.

    Args:
        config: Which ones.
        base: The network beneath adapters, where ``config.base`` is None.

    Raises:
        ValueError: If there are none, files are missing or damaged, or experts do not fit together.
    """
    if config.models:
        networks = {
            name: load_model(BackboneConfig(name=path), language_head=True)
            for name, path in config.models.items()
        }
        return ModelExperts(networks)
    if not config.adapters:
        raise ValueError(
            "model.experts names no experts: set experts.adapters (LoRA folders by name) or experts.models"
        )
    if base is None:
        assert config.base is not None  # otherwise the module has given its own
        if config.base.name is None:
            raise ValueError(
                "experts.base has no name, so that its weights could not be found again: set experts.base.name"
            )
        base = load_model(without_dropout(replace(config.base, frozen=True)), language_head=True)
    return AdapterExperts(base, config.adapters, decoding=config.decoding)


def expert_digests(config: ExpertsConfig) -> dict[str, str]:
    """What tells each expert's files, and those of their base, from others, by name; a hub's name stands for itself."""
    digests = {name: adapter_digest(folder) for name, folder in config.adapters.items()}
    named = {name: BackboneConfig(name=path) for name, path in config.models.items()}
    if config.base is not None:
        named["experts.base"] = config.base
    for name, each in named.items():
        identity = each.identity() or {}
        digests[name] = identity.get("digest") or f"{identity.get('name')}@{identity.get('revision')}"
    return digests
