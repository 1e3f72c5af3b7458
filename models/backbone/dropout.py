"""Dropout within networks: by which settings they have it, and a setting for those that have none."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from .loading import BackboneConfig

__all__ = ["attention_drops", "dropout_rates", "with_attention_dropout", "without_dropout"]

ATTENTION = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")
"""What architectures call the dropout of attention weights."""

ELSEWHERE = ("classif", "summary", "qa_", "pooler", "layerdrop")
"""Parts of names of settings for task heads, which no backbone has, and of skipped layers, the same for a whole batch."""


def dropout_rates(network: "PretrainedConfig") -> dict[str, float]:
    """Rates of dropout between embeddings and last state, by the fields of a network's configuration."""
    return {
        name: float(value)
        for name, value in vars(network).items()
        if "drop" in name and isinstance(value, int | float) and not any(part in name for part in ELSEWHERE)
    }


def attention_drops(network: "PretrainedConfig") -> bool:
    """Whether a network drops attention weights in training."""
    rates = dropout_rates(network)
    return any(rates.get(name, 0.0) > 0 for name in ATTENTION)


def with_attention_dropout(config: "BackboneConfig", rate: float) -> tuple["BackboneConfig", str | None]:
    """The backbone with dropout of attention weights, where neither its network nor its adapters have any dropout.

    A field that ``config.config`` gives is left as it is, and so is a frozen backbone, which stays in evaluation mode.

    Args:
        config: Which network; its own configuration is read, its weights are not.
        rate: In [0, 1).

    Returns:
        The backbone to build, and the field that was set; None if none was.
    """
    from .loading import network_config

    if config.frozen or (config.lora is not None and config.lora.dropout > 0):
        return config, None
    rates = dropout_rates(network_config(config))
    if any(rates.values()):
        return config, None
    field = next((name for name in ATTENTION if name in rates and name not in config.config), None)
    if field is None:
        return config, None
    return replace(config, config={**config.config, field: rate}), field


def without_dropout(config: "BackboneConfig") -> "BackboneConfig":
    """The backbone without any dropout: for a policy, whose log-probabilities must be those that it wrote with.

    Args:
        config: Which network; its own configuration is read, its weights are not.

    Raises:
        ValueError: If its adapters have dropout.
    """
    from .loading import network_config

    if config.lora is not None and config.lora.dropout > 0:
        raise ValueError(
            f"backbone.lora.dropout must be 0 in a policy, got {config.lora.dropout}: its steps compare log-probabilities with "
            "those that responses were drawn by"
        )
    rates = {name: 0.0 for name, rate in dropout_rates(network_config(config)).items() if rate}
    return replace(config, config={**config.config, **rates}) if rates else config
