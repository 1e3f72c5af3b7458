"""A reward as a classification class of transformers: its configuration, whether the class computes it, its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from pluralign.models.exported import ExportedHead

from .body import Body, merged_weights
from .tokenizer_files import ExportedTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "Dtype",
    "exported_config",
    "grown",
    "labelled",
    "split_class",
    "stored",
    "why_not_plain",
    "write_classification",
]

Dtype = Literal["float32", "bfloat16", "float16"]

TOLERANCE = 1e-4
"""Of the trial whether a class computes a reward, relative to the largest one; what differs by kind differs by far more."""
CROSS_ENCODER = {"activation_fn": "torch.nn.modules.linear.Identity"}
"""What CrossEncoder of sentence-transformers reads in a configuration: without it, it applies a sigmoid."""


def labelled(config: "PretrainedConfig", head: ExportedHead) -> None:
    """Say in a configuration what the logits are, so that no pipeline takes rewards for logits of classes.

    Args:
        config: Changed in place.
        head: With the outputs' names.
    """
    config.num_labels = len(head.outputs)
    config.id2label = dict(enumerate(head.outputs))
    config.label2id = {name: place for place, name in enumerate(head.outputs)}
    shares = head.kind == "labels" or head.settings.get("gives") == "labels"
    config.problem_type = "single_label_classification" if shares else "regression"
    if not shares:
        config.sentence_transformers = dict(CROSS_ENCODER)


def exported_config(body: Body, tokenizer: ExportedTokenizer, dtype: Dtype) -> "PretrainedConfig":
    """The network's own configuration, with the tokenizer's pad token and rows enough for it.

    Args:
        body: Of the reward.
        tokenizer: As it is written.
        dtype: Of the weights.
    """
    from copy import deepcopy

    config: PretrainedConfig = deepcopy(body.network.config)
    text = config.get_text_config()
    text.pad_token_id = config.pad_token_id = tokenizer.pad_id
    text.vocab_size = max(text.vocab_size, tokenizer.size)
    config.dtype = dtype
    return config


def grown(weights: dict[str, Tensor], body: Body, rows: int) -> dict[str, Tensor]:
    """Weights with as many rows of embeddings as the tokenizer has tokens; new ones are zero and stand for padding alone.

    Args:
        weights: Of the network.
        body: Whose they are.
        rows: That there are to be.
    """
    embeddings = body.network.get_input_embeddings()
    name = next(name for name, part in body.network.named_modules() if part is embeddings)
    key = f"{name.removesuffix('.base_layer')}.weight"
    missing = rows - len(weights[key])
    return weights if missing <= 0 else {**weights, key: nn.functional.pad(weights[key], (0, 0, 0, missing))}


# Whether the class computes the reward ----------------------------------------------------------------------


def split_class(config: "PretrainedConfig") -> tuple["PreTrainedModel", str, str] | None:
    """The family's classification class, without weights, and what its network and its linear layer are called.

    Args:
        config: Of the network, with its labels.

    Returns:
        None if there is no such class, or more in it than a linear layer without bias behind the network.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    kind = cast("type[PreTrainedModel]", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])
    with torch.device("meta"):
        model = kind(config)
    prefix = str(kind.base_model_prefix)
    heads = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    if len(heads) != 1 or not heads[0].endswith(".weight"):
        return None
    return model, prefix, heads[0].removesuffix(".weight")


@torch.no_grad()
def why_not_plain(body: Body, head: ExportedHead, config: "PretrainedConfig") -> str:
    """Why the family's own classification class does not compute a reward; nothing if it does, which is tried.

    Args:
        body: With its weights in float32.
        head: Of the reward.
        config: As it is to be written, with its labels.
    """
    family = config.model_type
    if not head.linear:
        what = (
            "is not linear in the last token's state"
            if body.causal
            else f"is read from the {body.backbone.pooling} of the states"
        )
        return f"the reward {what}"
    found = split_class(config)
    if found is None:
        return f"{family} has no classification class of one linear layer on the last token"
    model, prefix, place = found
    rows = body.rows
    before = config.get_text_config().pad_token_id
    pad = config.pad_token_id = config.get_text_config().pad_token_id = rows - 1
    try:
        with body.active():
            setattr(model, prefix, body.network)
            model.get_submodule(place).register_parameter(
                "weight", nn.Parameter(_weight(head), requires_grad=False)
            )
            model.eval()
            difference = _largest_difference(model, body, _weight(head), pad)
    finally:
        config.pad_token_id = config.get_text_config().pad_token_id = before
    if difference > TOLERANCE:
        return f"the classification class of {family} gives other rewards in a padded batch (by {difference:.1e} of the largest)"
    return ""


def _largest_difference(model: "PreTrainedModel", body: Body, weight: Tensor, pad: int) -> float:
    """Between the class on padded rows, left and right, and the network on each row alone; relative to the largest reward."""
    device = weight.device
    rows = [
        torch.arange(start, start + length, device=device) % max(1, pad) for start, length in ((3, 9), (5, 4))
    ]
    network = body.network
    # A mask of ones, or transformers asks for one wherever a text ends like padding.
    whole = [network(input_ids=row[None], attention_mask=torch.ones_like(row[None])) for row in rows]
    alone = [states.last_hidden_state[0, -1].float() @ weight.T for states in whole]
    expected = torch.stack(alone)
    worst = 0.0
    for left in (False, True):
        width = max(map(len, rows))
        sides = [(width - len(row), 0) if left else (0, width - len(row)) for row in rows]
        ids = torch.stack(
            [nn.functional.pad(row, side, value=pad) for row, side in zip(rows, sides, strict=True)]
        )
        logits = model(input_ids=ids, attention_mask=(ids != pad).long()).logits
        worst = max(worst, float((logits - expected).abs().max()))
    return worst / float(expected.abs().max().clamp_min(1e-6))


def _weight(head: ExportedHead) -> Tensor:
    """The one matrix of a linear head, (outputs, H) float32."""
    (weight,) = (value for value in head.weights.values() if value.ndim == 2)
    return weight


# Writing ----------------------------------------------------------------------------------------------------


def write_classification(
    folder: Path, body: Body, head: ExportedHead, config: "PretrainedConfig", dtype: Dtype
) -> None:
    """Write the family's own classification class: configuration and weights; the head's are float32 in any dtype.

    Args:
        folder: That exists.
        body: With its weights in float32.
        head: A linear one.
        config: With its labels.
        dtype: Of the network's weights.
    """
    found = split_class(config)
    assert found is not None  # it was tried
    model, prefix, place = found
    weights = grown(merged_weights(body.network, body.adapters), body, config.get_text_config().vocab_size)
    state = {f"{prefix}.{key}": value for key, value in stored(weights, dtype).items()}
    state[f"{place}.weight"] = _weight(head).cpu()
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder)


def stored(weights: dict[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """Weights in the dtype that they are written in.

    Args:
        weights: Of the network, float32.
        dtype: Of those that are floating point.
    """
    target: torch.dtype = getattr(torch, dtype)
    return {key: value.to(target) if value.is_floating_point() else value for key, value in weights.items()}
