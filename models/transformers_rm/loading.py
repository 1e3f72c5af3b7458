"""A classification network of transformers, taken apart into what reads a text and what rates it, if that is what it computes."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from ..backbone import BackboneConfig, network_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Classifier", "files_config", "load_classifier"]

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


def files_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration that a folder or a name on the hub has, as plain values; runs none of its code.

    Raises:
        ValueError: If there is none.
    """
    from transformers import PretrainedConfig

    try:
        fields, _ = PretrainedConfig.get_config_dict(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} could not be loaded; allowed: a folder with config.json and weights, or a name on the Hugging Face hub "
            f"({error})"
        ) from error
    return dict(fields)


def load_classifier(config: BackboneConfig, *, adapter: str | None = None) -> Classifier:
    """Load a network with its classification head, or make a random one where the configuration names none.

    Args:
        config: Which network, in which state.
        adapter: Folder, or name on the hub, of an adapter of PEFT that holds the head; it is merged.

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
        return _of_pluralign(config)
    network = network_config(config)
    if config.name is None and not {"num_labels", "id2label"} & set(config.config):
        network.num_labels = 1
    model = _made(config, network) if config.name is None else _read(config, network, adapter)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return _taken_apart(model, config)


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
    with _weights_of(config.name):
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


def _read(config: BackboneConfig, network: "PretrainedConfig", adapter: str | None) -> "PreTrainedModel":
    if adapter is not None:
        fields = _adapter_labels(adapter)
        network.num_labels = fields.get("num_labels") or len(fields.get("id2label") or [0])
        if fields.get("id2label"):
            network.id2label = {int(place): name for place, name in fields["id2label"].items()}
    with _weights_of(config.name):
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


@contextmanager
def _weights_of(name: str | None) -> Iterator[None]:
    """Say whose weights cannot be read: a missing file, or one that a copy or a download has cut short.

    Raises:
        ValueError: If they cannot be read.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{name!r} has no weights that can be read ({error}): copy, download or export the folder anew"
        ) from error


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


def _adapter_labels(adapter: str) -> dict[str, Any]:
    """What an adapter's folder says of its outputs: a configuration beside it, or the shape of its head."""
    if (Path(adapter) / "config.json").is_file():
        said: dict[str, Any] = json.loads((Path(adapter) / "config.json").read_text(encoding="utf-8"))
        return said
    heads = [shape for name, shape in _adapter_shapes(adapter).items() if _is_head(name)]
    if not heads:
        raise ValueError(
            f"{adapter!r} is an adapter without a head (score or classifier in modules_to_save): it makes no reward model of its base"
        )
    return {"num_labels": heads[-1][0]}


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and ("score" in parts or "classifier" in parts)


def _adapter_shapes(adapter: str) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's weights by name; nothing where they are in a form that says none."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    path = cached_file(adapter, "adapter_model.safetensors", _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise ValueError(
            f"{adapter!r} has no adapter_model.safetensors: write the adapter anew with a PEFT that does"
        )
    with _weights_of(adapter), safe_open(path, framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def _with_adapter(model: "PreTrainedModel", adapter: str) -> "PreTrainedModel":
    """The network with an adapter merged into it, and the head that came with it.

    Raises:
        ValueError: If the adapter has no head, or is of other layers.
    """
    from peft import PeftModel

    shapes = _adapter_shapes(adapter)
    if not any(map(_is_head, shapes)):
        raise ValueError(
            f"{adapter!r} is an adapter without a head (score or classifier in modules_to_save): it makes no reward model of its base"
        )
    wrapped = PeftModel.from_pretrained(model, adapter)
    present = {
        name.replace(".default.", ".").replace(".modules_to_save.default", "")
        for name in wrapped.state_dict()
    }
    if unknown := sorted(name for name in shapes if "lora_" in name and name not in present):
        raise ValueError(
            f"{adapter!r} has weights of layers that the network does not have, such as {unknown[0]}: PEFT would leave them out. It "
            "was saved over another class"
        )
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


# What the class computes ----------------------------------------------------------------------------------


def _taken_apart(model: "PreTrainedModel", config: BackboneConfig) -> Classifier:
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
    return Classifier(model, body, _head(layer, config), "last", outputs, settings, pad, pads_with_end)


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


def _head(layer: nn.Linear, config: BackboneConfig) -> nn.Module:
    """The class's linear layer, as a head that computes in float32, in the precision that it is stored in."""
    from ..exported import RatingHead

    head = RatingHead(
        layer.in_features, kind="linear", numbers=layer.out_features, bias=layer.bias is not None
    )
    weights: dict[str, Tensor] = {
        name: _stored(f"score.{name}", config, value) for name, value in layer.state_dict().items()
    }
    head.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return head.requires_grad_(True)


def _stored(key: str, config: BackboneConfig, loaded: Tensor) -> Tensor:
    """A weight as the file has it: a float32 head over a network of 16 bits was rounded when both were loaded."""
    if config.name is None or config.dtype == "float32":
        return loaded
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    where = {"revision": config.revision or "main", "_raise_exceptions_for_missing_entries": False}
    index, name = cached_file(config.name, "model.safetensors.index.json", **where), "model.safetensors"
    if index is not None:
        name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(key, name)
    path = cached_file(config.name, name, **where)
    if path is None:
        return loaded
    with _weights_of(config.name), safe_open(path, framework="pt") as stored:
        return stored.get_tensor(key).to(loaded.device) if key in stored.keys() else loaded  # noqa: SIM118
