"""A classification network of transformers, taken apart into what reads a text and what rates it, if that is what it computes."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from ..backbone import BackboneConfig, network_config
from .adapter import Adapter, merged, takes_over
from .files import files_config, readable_weights, stored_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Classifier", "load_classifier"]

TOLERANCE = 1e-4
"""Of the trial whether a class is network and linear layer, relative to the largest number; other pooling differs by far more."""


class Classifier(NamedTuple):
    """What a folder holds."""

    whole: "PreTrainedModel"
    """The class with everything in it."""
    body: "PreTrainedModel | None"
    """The network beneath, where body, pooling and head are what the class computes; None where it is more than that."""
    head: nn.Module | None
    """What rates a state, (..., H) to (..., outputs), float32; None likewise."""
    pooling: str
    """State that the head reads."""
    outputs: tuple[str, ...]
    """Names of the numbers."""
    settings: dict[str, Any]
    """Kind and settings of the head, as :func:`rating_head` of the modelling file takes them; empty without a head."""
    pad_id: int | None
    """Token that the class takes for padding wherever it stands at a text's end; None where it looks at no token for that."""
    pads_with_end: bool = False
    """Whether that is a token that texts end with."""


def load_classifier(config: BackboneConfig, *, adapter: Adapter | None = None) -> Classifier:
    """Load a network with its classification head, or make a random one where the configuration names none.

    Args:
        config: Which network, in which state.
        adapter: Of PEFT, with the head; it is merged.

    Raises:
        ValueError: If there is no head, weights are missing, or the network has no classification class.
    """
    if config.quantization is not None:
        raise ValueError(
            f"backbone.quantization={config.quantization!r}: a network with its head is loaded whole; set backbone.dtype=bfloat16"
        )
    if (
        config.name is not None
        and files_config(config.name, config.revision).get("model_type") == "pluralign"
    ):
        if adapter is not None:
            raise ValueError(
                f"{adapter.name!r} is an adapter over {config.name!r}, whose modelling file is pluralign's: adapters are put on classes of "
                "transformers alone"
            )
        return _of_pluralign(config)
    network = network_config(config)
    if config.name is None and not {"num_labels", "id2label"} & set(config.config):
        network.num_labels = 1
    model = _made(config, network) if config.name is None else _read(config, network, adapter)
    if adapter is not None:
        model = merged(model, adapter)
    return _taken_apart(model, config, adapter)


def _outputs(config: "PretrainedConfig") -> tuple[str, ...]:
    names = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    return tuple(names.get(i, f"LABEL_{i}") for i in range(config.num_labels or 1))


def _settings(config: BackboneConfig) -> dict[str, Any]:
    """What every way of loading is told."""
    attention = config.attention if config.attention in ("sdpa", "eager") else None
    return {"dtype": getattr(torch, config.dtype), "attn_implementation": attention}


def _of_pluralign(config: BackboneConfig) -> Classifier:
    """A folder whose modelling file is ours: the class of this installation, and no code of the folder, reads it."""
    from ..exported import PluralignForSequenceClassification

    reader: Any = PluralignForSequenceClassification  # what it gives depends on output_loading_info
    if config.config:
        raise ValueError(
            f"backbone.config={config.config!r}: {config.name!r} was exported by pluralign, and its network is taken as it is: leave "
            "backbone.config out"
        )
    with readable_weights(config.name):
        model, report = reader.from_pretrained(
            config.name, revision=config.revision or "main", output_loading_info=True, **_settings(config)
        )
    _check_complete(report, config.name)
    network = model.config
    return Classifier(
        model, model.model, model.score, network.pooling, _outputs(network), dict(network.head), None
    )


def _class(network: "PretrainedConfig", config: BackboneConfig) -> Any:  # noqa: ANN401  transformers types its classes so
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    own = config.trust_remote_code and "AutoModelForSequenceClassification" in (
        getattr(network, "auto_map", None) or {}
    )
    if network.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not own:
        remote = getattr(network, "auto_map", None)
        advice = ": its own code would have to run, which trust_remote_code=true allows" if remote else ""
        raise ValueError(
            f"{config.name or 'the network'!r} is a {network.model_type}, of which transformers has no class with a classification "
            f"head{advice}"
        )
    return AutoModelForSequenceClassification


def _made(config: BackboneConfig, network: "PretrainedConfig") -> "PreTrainedModel":
    model: PreTrainedModel = _class(network, config).from_config(network, **_settings(config))
    return model


def _read(config: BackboneConfig, network: "PretrainedConfig", adapter: Adapter | None) -> "PreTrainedModel":
    if adapter is not None:
        takes_over(network, adapter, frozenset(config.config))
    with readable_weights(config.name):
        model, report = _class(network, config).from_pretrained(
            config.name,
            config=network,
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **_settings(config),
        )
    if adapter is None:
        _check_complete(report, str(config.name))
    found: PreTrainedModel = model
    return found


def _check_complete(report: dict[str, Any], name: str | None) -> None:
    """Refuse a network part of which is new, the head above all.

    Raises:
        ValueError: Names what is missing.
    """
    mismatched = [str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"]]
    missing = sorted({*report["missing_keys"], *mismatched})
    if missing:
        raise ValueError(
            f"{name!r} has no weights for {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}, which would be random: it "
            "holds no reward model. A network without a head is what BradleyTerryRM and the other methods start from"
        )


# What the class computes ----------------------------------------------------------------------------------


def _taken_apart(model: "PreTrainedModel", config: BackboneConfig, adapter: Adapter | None) -> Classifier:
    """Body and head where these, on the last token, are what the class computes, which is tried."""
    network = model.config
    outputs, pad = _outputs(network), network.get_text_config().pad_token_id
    body, layer = getattr(model, model.base_model_prefix, None), getattr(model, "score", None)
    whole = Classifier(model, None, None, "last", outputs, {}, pad)
    if body is None or not isinstance(layer, nn.Linear):
        return whole
    meta = any(parameter.is_meta for parameter in model.parameters())
    if not meta and (difference := _difference(model, body, layer, pad)) > TOLERANCE:
        rank_zero_info(
            f"{type(model).__name__}: separate rows through the whole class (differs by {difference:.1e})"
        )
        return whole
    ends = network.get_text_config().eos_token_id
    pads_with_end = pad is not None and pad in (ends if isinstance(ends, list) else [ends])
    if pads_with_end:
        rank_zero_warn(
            f"{config.name}: its configuration pads with an end token ({pad}), so that plain transformers reads the reward at the "
            "token before a text's last end token, and so does TransformersRM"
        )
    settings = {"kind": "linear", "numbers": layer.out_features, "bias": layer.bias is not None}
    return Classifier(
        model, body, _head(layer, config, adapter), "last", outputs, settings, pad, pads_with_end
    )


@torch.no_grad()
def _difference(model: "PreTrainedModel", body: nn.Module, layer: nn.Linear, pad: int | None) -> float:
    """Between the class, and its layer on the last token's state, of a text alone; relative to the largest number."""
    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    worst = 0.0
    for length in (5, 9):
        ids = torch.arange(1, 2 * length + 1, device=device) % vocabulary
        ids = ids[ids != (-1 if pad is None else pad)][None, :length]
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        state = body(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        apart = layer(state.to(layer.weight.dtype)).float()
        worst = max(worst, float((logits - apart).abs().max() / logits.abs().max().clamp_min(1e-6)))
    model.train(was_training)
    return worst


def _head(layer: nn.Linear, config: BackboneConfig, adapter: Adapter | None) -> nn.Module:
    """The class's linear layer, as a head that computes in float32, in the precision that it is stored in."""
    from ..exported import RatingHead

    head = RatingHead(
        layer.in_features, kind="linear", numbers=layer.out_features, bias=layer.bias is not None
    )
    weights: dict[str, Tensor] = {
        name: _stored(f"score.{name}", config, value, adapter) for name, value in layer.state_dict().items()
    }
    head.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return head.requires_grad_(True)


def _stored(key: str, config: BackboneConfig, loaded: Tensor, adapter: Adapter | None) -> Tensor:
    """A weight as its file has it: a float32 head over a network of 16 bits was rounded when both were loaded."""
    if config.name is None or config.dtype == "float32":
        return loaded
    found = stored_weight(config.name, key, config.revision) if adapter is None else adapter.head(key)
    return loaded if found is None else found.to(loaded.device)
