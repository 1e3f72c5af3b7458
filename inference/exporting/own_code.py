"""A reward with a modelling file of its own, for what no classification class of transformers computes."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pluralign.models.exported import ExportedHead, assembled

from .base import refuse_own_class
from .body import Body, merged_weights
from .classification import Dtype, grown, labelled, stored

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["write_own_code"]


def write_own_code(
    folder: Path, body: Body, head: ExportedHead, config: "PretrainedConfig", dtype: Dtype
) -> None:
    """Write configuration, weights and the modelling file, which plain transformers runs with ``trust_remote_code=True``.

    Args:
        folder: That exists.
        body: With its weights in float32.
        head: Of any kind.
        config: Of the network, with the tokenizer's pad token.
        dtype: Of the network's weights; the head's are float32.

    Raises:
        ValueError: If the network itself is of a class that ships with its weights.
    """
    from transformers import AutoModel

    refuse_own_class(config)
    weights = grown(merged_weights(body.network, body.adapters), body, config.get_text_config().vocab_size)
    with torch.device("meta"):
        network = AutoModel.from_config(config)
    if getattr(network, "pooler", None) is not None:
        network.register_module("pooler", None)  # of BERT: never used, and without weights
    network.load_state_dict(stored(weights, dtype), assign=True)
    model = assembled(network, head, pooling=body.backbone.pooling, pad_token_id=config.pad_token_id)
    labelled(model.config, head)
    model.save_pretrained(folder)  # writes its modelling file beside
