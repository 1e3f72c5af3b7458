"""What a module is made of, counted on networks without data: parameters, trained ones, and one layer's share."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backbone import Backbone, BackboneConfig, RewardHead, Several, network_config
from ..base import BaseModule

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Weights", "bare", "count_weights", "depth_of", "shallow", "without_weights"]

OF_FILES = frozenset(
    ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
)
"""What a configuration says of the files that it came with."""
BITS = {"4bit": 4.5, "8bit": 8.0}
"""Bits of a quantised weight: nf4 keeps a float32 scale for every 64 weights; int8 one for a row, which is next to nothing."""


@dataclass(frozen=True)
class Weights:
    """Parameters of a module, in numbers and bytes.

    Attributes:
        parameters: All of them.
        trained: Those that an optimiser gets.
        weight_bytes: Of all of them, in the dtype they are kept in; a quantised base is smaller.
        gradient_bytes: Of the trained ones' gradients.
        trained_by_dtype: Number of trained parameters by name of their dtype, such as ``float32``.
        tensors: Number of trained tensors.
        layer_bytes: Weights of one layer of the network: what a sharded strategy gathers at a time.
        layer_gradient_bytes: Gradients of that layer.
        outer_bytes: Weights outside the layers, such as embeddings and heads, which are gathered together.
        largest_bytes: The largest parameter.
        layers: Layers of the network; 0 where they cannot be told.
        embedded: Parameters of embeddings, which are looked up and multiply nothing.
        vocabulary_head: Whether there is a language-model head.
        networks: Networks that a step runs one after the other, or adapters, each with a pass of its own.
        outer_dtypes: Dtypes of trained parameters outside the layers, by name.
        guessed_head: Why the head is a linear layer of one output and not the method's own; empty if it is its own.
    """

    parameters: int
    trained: int
    weight_bytes: int
    gradient_bytes: int
    trained_by_dtype: dict[str, int]
    tensors: int
    layer_bytes: int
    layer_gradient_bytes: int
    outer_bytes: int
    largest_bytes: int
    layers: int
    embedded: int = 0
    vocabulary_head: bool = False
    networks: int = 1
    outer_dtypes: tuple[str, ...] = ()
    guessed_head: str = ""


def depth_of(network: "PretrainedConfig") -> int:
    """Layers of a network; 0 if its configuration does not say."""
    return int(getattr(network.get_text_config(), "num_hidden_layers", 0) or 0)


def bare(config: BackboneConfig) -> BackboneConfig:
    """The same network made from its configuration alone: no weights are read, none are quantised.

    Args:
        config: Which network; of one with a name, its ``config.json`` is read.
    """
    if config.name is None:
        return replace(config, quantization=None)
    network = network_config(config)
    fields = {"model_type": network.model_type, **network.to_diff_dict()}
    fields = {name: value for name, value in fields.items() if name not in OF_FILES}
    return replace(config, name=None, quantization=None, config=fields)


def shallow(config: BackboneConfig, layers: int) -> BackboneConfig:
    """A bare network with so many layers, adapters in each of them."""
    fields = {**config.config}
    network = network_config(config)
    names = {"num_hidden_layers", network.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    for name in names:
        fields.pop(name, None)
    fields["num_hidden_layers"] = layers
    kinds = getattr(network, "layer_types", None)
    if kinds is not None:
        fields["layer_types"] = list(kinds)[:layers]
    lora = config.lora
    if lora is not None and lora.last_layers is not None:
        lora = replace(lora, last_layers=None)
    return replace(config, config=fields, lora=lora)


def without_weights(module: BaseModule) -> tuple[BaseModule | None, str]:
    """A copy of a module that is not built, built without data on the meta device; or None, and why not.

    Args:
        module: Stays as it is.
    """
    twin = copy.deepcopy(module)
    twin.backbone_config, twin.init_from = bare(module.backbone_config), None
    try:
        with torch.device("meta"):
            twin.configure_model()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return None, str(error)
    return twin, ""


def count_weights(module: BaseModule) -> Weights:
    """Count what a module would have, without reading a weight.

    A method that needs its data to be built, or whose network is not one backbone, is counted as its backbone under a head
    of one output.

    Args:
        module: Not built; stays as it is.
    """
    config = module.backbone_config
    twin, reason = without_weights(module)
    if twin is not None and isinstance(twin.backbone, Backbone | Several):
        whole: nn.Module = twin
        backbone: Backbone | Several = twin.backbone
    else:
        with torch.device("meta"):
            backbone = Backbone(bare(config))
            whole = nn.ModuleDict({"backbone": backbone, "head": RewardHead(backbone.hidden_size)})
        reason = reason or "the method has no backbone of its own"
    first = backbone.networks[0] if isinstance(backbone, Several) else backbone
    assert isinstance(first, Backbone)  # nothing is stored without data
    networks = len(backbone.networks) if isinstance(backbone, Several) else 1
    if first.adapters is not None:
        networks = len(first.adapters.names)
    return _counted(whole, first, config, networks=networks, reason=reason)


def _counted(
    whole: nn.Module, backbone: Backbone, config: BackboneConfig, *, networks: int, reason: str
) -> Weights:
    layers = _stack(backbone)
    quantised = _quantised(backbone, config)
    parameters = _unique(whole.parameters())
    trained = [each for each in parameters if each.requires_grad]
    by_dtype: dict[str, int] = {}
    for each in trained:
        name = str(each.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + each.numel()

    def size(given: Iterable[nn.Parameter]) -> int:
        return math.ceil(
            sum(
                each.numel()
                * (BITS[config.quantization or "8bit"] / 8 if id(each) in quantised else each.itemsize)
                for each in given
            )
        )

    layer = max((_unique(part.parameters()) for part in layers), key=size, default=[])
    inside = {id(each) for part in layers for each in part.parameters()}
    return Weights(
        parameters=sum(each.numel() for each in parameters),
        trained=sum(each.numel() for each in trained),
        weight_bytes=size(parameters),
        gradient_bytes=sum(each.nbytes for each in trained),
        trained_by_dtype=by_dtype,
        tensors=len(trained),
        layer_bytes=size(layer),
        layer_gradient_bytes=sum(each.nbytes for each in layer if each.requires_grad),
        outer_bytes=size(each for each in parameters if id(each) not in inside),
        largest_bytes=max((size([each]) for each in parameters), default=0),
        layers=len(layers),
        embedded=sum(
            part.weight.numel() for part in backbone.model.modules() if isinstance(part, nn.Embedding)
        ),
        outer_dtypes=tuple(
            sorted({str(each.dtype).removeprefix("torch.") for each in trained if id(each) not in inside})
        ),
        vocabulary_head=backbone.language_head is not None,
        networks=networks,
        guessed_head=reason,
    )


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(each): each for each in parameters}.values())


def _stack(backbone: Backbone) -> list[nn.Module]:
    """The layers of a network, whatever PEFT wraps around it."""
    depth = depth_of(_inner(backbone).config)
    stacks = [
        part for part in backbone.model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth
    ]
    return list(stacks[0]) if stacks and depth else []


def _inner(backbone: Backbone) -> Any:  # noqa: ANN401  a network, whose attributes are transformers' own
    model: Any = backbone.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _quantised(backbone: Backbone, config: BackboneConfig) -> set[int]:
    """Weights that bitsandbytes keeps in fewer bits: those of linear layers, adapters and heads apart."""
    if config.quantization is None:
        return set()
    return {
        id(part.weight)
        for name, part in backbone.model.named_modules()
        if isinstance(part, nn.Linear) and "lora_" not in name
    }
