"""The network that transformers loads from an exported folder: built here, written by its own ``save_pretrained``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .heads import ExportedHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .modeling_pluralign import PluralignForSequenceClassification

__all__ = ["MODELLING_FILE", "assembled", "body_fields"]

MODELLING_FILE = Path(__file__).with_name("modeling_pluralign.py")
"""What a folder ships whose head is more than a linear layer on the last token."""
NOT_OF_THE_BODY = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "transformers_version",
    )
)
"""Fields of a configuration that say nothing of a network's layers, or that a folder says itself."""


def body_fields(config: "PretrainedConfig") -> dict[str, Any]:
    """A network's own configuration as plain values, for ``PluralignConfig.body``.

    Args:
        config: Of the network.
    """
    fields: dict[str, Any] = config.to_dict()
    return {name: value for name, value in fields.items() if name not in NOT_OF_THE_BODY}


def assembled(
    body: "PreTrainedModel",
    head: ExportedHead,
    *,
    pooling: str,
    pad_token_id: int | None = None,
) -> "PluralignForSequenceClassification":
    """Network and head as one model of plain transformers, whose ``save_pretrained`` writes the modelling file beside it.

    Args:
        body: The network, without adapters; it becomes part of the model.
        head: What rates its states.
        pooling: State that the head reads, ``last``, ``mean`` or ``cls``.
        pad_token_id: Of the tokenizer that is written beside it.

    Returns:
        The model, in evaluation mode; the head is float32.
    """
    import torch

    from .modeling_pluralign import PluralignConfig, PluralignForSequenceClassification

    config = PluralignConfig(
        body=body_fields(body.config),
        pooling=pooling,
        head={"kind": head.kind, **head.settings},
        pad_token_id=pad_token_id,
        id2label=dict(enumerate(head.outputs)),
        label2id={name: place for place, name in enumerate(head.outputs)},
        problem_type="single_label_classification" if head.kind == "labels" else "regression",
    )
    with torch.device("meta"):  # the weights are there already
        model = PluralignForSequenceClassification(config)
    model.model = body
    model.score.load_state_dict(head.weights, assign=True)
    model.train(False)
    return model
