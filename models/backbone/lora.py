"""Low-rank adapters: their shape, where in a network they sit, and what PEFT calls the layers that it wraps."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pluralign.datamodules.checks import check_range

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.dora import DoraLinearLayer
    from transformers import PreTrainedModel

__all__ = [
    "LoRAConfig",
    "added_keys",
    "lora_settings",
    "merged_weight",
    "network_layers",
    "renamed",
    "start_magnitudes",
]

WRAPPED = ("base_layer", "original_module", "base_model")
"""What PEFT calls what it wraps."""


@dataclass(frozen=True)
class LoRAConfig:
    r"""Low-rank adapters (PEFT) on a frozen base; the reward head is always trained and saved beside them.

    .. math:: W' = W + s B A, \qquad W' = \frac{m}{\lVert W + s B A \rVert} (W + s B A) \ \text{(DoRA)}

    with the norm of each row, that of the weights of one output.

    Attributes:
        rank: Rank of the update, >= 1.
        alpha: Scale; the update is multiplied by s = alpha / rank.
        dropout: Dropout on the adapter's input, in [0, 1).
        target_modules: Names of the adapted layers; None for every linear layer.
        last_layers: Adapt the last so many layers of the network alone, >= 1; None for all of them. What lies beneath is
            the same whichever adapter is asked for, so several adapters over one network share its cost.
        weight_decomposed: DoRA: each row's length m is trained apart from its direction. One number more for each output, and a
            step that costs more, since the rows' norms are computed anew in every pass.
        rank_stabilized: The update is multiplied by s = alpha / sqrt(rank), so that it does not shrink as ranks grow.

    Source:
        Hu et al., *LoRA*, ICLR 2022, equation 3, https://arxiv.org/abs/2106.09685; Liu et al., *DoRA*, ICML 2024, equation 5,
        https://arxiv.org/abs/2402.09353; Kalajdzievski, *A rank stabilization scaling factor*, 2023,
        https://arxiv.org/abs/2312.03732. Departures: none; DoRA's norm is a constant in the gradient, as in its section 4.3, so
        that a gradient is not that of finite differences.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    last_layers: int | None = None
    weight_decomposed: bool = False
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        check_range("lora.rank", self.rank, at_least=1)
        check_range("lora.dropout", self.dropout, at_least=0, below=1)
        check_range("lora.last_layers", self.last_layers, at_least=1)


def network_layers(model: "PreTrainedModel") -> nn.ModuleList | None:
    """The stack of a network's layers, from the first to the last; None if it cannot be told.

    Args:
        model: Without a PEFT wrapper; layers within may be wrapped.
    """
    config = model.config.get_text_config()
    depth: int | None = getattr(config, "num_hidden_layers", None)
    stacks = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == depth and "lora_" not in name
    }
    outer = [
        part for name, part in stacks.items() if not any(name.startswith(f"{other}.") for other in stacks)
    ]
    return outer[0] if len(outer) == 1 else None


def lora_settings(model: "PreTrainedModel", shape: LoRAConfig) -> "LoraConfig":
    """What PEFT is told of adapters of a shape.

    Args:
        model: Which they are for; it may have other adapters already.
        shape: Their shape.

    Raises:
        ValueError: If the network has fewer layers than ``last_layers``, they cannot be found, or none of their parts is
            among ``target_modules``.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets: list[str] | str = shape.target_modules or "all-linear"
    if shape.last_layers is not None:
        # A pattern of whole names: PEFT would take a list for the ends of names.
        targets = "|".join(name.replace(".", r"\.") for name in _names_in_last_layers(model, shape))
    return LoraConfig(
        r=shape.rank,
        lora_alpha=cast(int, shape.alpha),  # PEFT divides it, any number will do
        lora_dropout=shape.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),  # as GPT-2 stores weights
        use_dora=shape.weight_decomposed,
        use_rslora=shape.rank_stabilized,
    )


def _names_in_last_layers(model: "PreTrainedModel", shape: LoRAConfig) -> list[str]:
    """Names of the parts of the last layers that are adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    count = shape.last_layers
    assert count is not None  # the caller looked
    layers = network_layers(model)
    if layers is None:
        raise ValueError(
            f"lora.last_layers is {count}, and the layers of {model.config.model_type} cannot be told from its "
            "other parts: leave it null, which adapts all of them"
        )
    if count > len(layers):
        raise ValueError(
            f"lora.last_layers must be at most {len(layers)}, the layers of this {model.config.model_type}; "
            f"got {count}"
        )
    top = {id(part) for layer in layers[len(layers) - count :] for part in layer.modules()}
    wrapped = {
        id(inner)
        for part in model.modules()
        if isinstance(part, BaseTunerLayer)
        for inner in part.modules()
        if inner is not part
    }
    names: list[str] = []
    for name, part in model.named_modules():
        if id(part) not in top or id(part) in wrapped:
            continue
        if shape.target_modules is None:
            if isinstance(part, (nn.Linear, Conv1D, BaseTunerLayer)):
                names.append(name)
        elif any(name == target or name.endswith(f".{target}") for target in shape.target_modules):
            names.append(name)
    if not names:
        raise ValueError(
            f"lora.target_modules names {', '.join(shape.target_modules or ['nothing'])}, and nothing in the last "
            f"{count} layers of {model.config.model_type} is called so"
        )
    return names


def merged_weight(layer: "LoraLayer", adapters: Iterable[str]) -> Tensor:
    """The weight of one plain layer that does what a layer does with adapters on it, one after the other.

    PEFT's own merge changes the layer; this one leaves it as it is.

    Args:
        layer: As PEFT wraps it; its own weight is not quantised.
        adapters: Names, in the order in which they are active; those that the layer lacks are passed over.

    Returns:
        In the form of the layer's own weight, float32.
    """
    base = cast(Tensor, layer.get_base_layer().weight).detach().float()
    weight = base
    for name in adapters:
        embeds = name in layer.lora_embedding_A
        if name not in layer.lora_A and not embeds:
            continue
        update = cast(Tensor, layer.get_delta_weight(name)).detach().float()  # type: ignore[attr-defined]  # of its subclasses
        weight = weight + update
        if name in layer.lora_magnitude_vector:
            # PEFT measures rows without the adapters beneath, and scales these, too.
            outputs = 1 if embeds or getattr(layer, "fan_in_fan_out", False) else 0
            norm = torch.linalg.vector_norm(base + update, dim=1 - outputs, keepdim=True)
            magnitude = cast("DoraLinearLayer", layer.lora_magnitude_vector[name]).weight.detach().float()
            weight = weight * (magnitude.view(norm.shape) / norm)
    return weight


@torch.no_grad()
def start_magnitudes(model: nn.Module, loaded: Collection[str] = ()) -> None:
    """Have DoRA's magnitudes be the lengths that rows have, so that they change nothing; others are of weights of before.

    Args:
        model: With adapters, or without any.
        loaded: Names in its state of magnitudes that stay as they are.
    """
    for path, part in model.named_modules():
        for name in getattr(part, "lora_magnitude_vector", ()):
            if f"{path}.lora_magnitude_vector.{name}.weight" not in loaded:
                start_magnitude(cast("LoraLayer", part), name)


@torch.no_grad()
def start_magnitude(layer: "LoraLayer", name: str) -> None:
    """The same for one adapter of one layer.

    Args:
        layer: As PEFT wraps it.
        name: Of an adapter with magnitudes.
    """
    from peft.utils.integrations import dequantize_module_weight

    if name in layer.lora_embedding_A:
        first, second = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    else:
        first, second = (cast(nn.Linear, factors[name]).weight for factors in (layer.lora_A, layer.lora_B))
    decomposed = cast("DoraLinearLayer", layer.lora_magnitude_vector[name])
    weight = cast(Tensor, dequantize_module_weight(layer.get_base_layer())).to(first)
    decomposed.weight.copy_(decomposed.get_weight_norm(weight, second @ first, layer.scaling[name]))


def added_keys(module: nn.Module, keys: Iterable[str]) -> set[str]:
    """Which names of a state are of what PEFT puts beside a network's own layers: adapters, copies of layers, prompts.

    Args:
        module: With the network somewhere inside.
        keys: Names in its state dict.
    """
    base_of = {
        path: name
        for path, part in module.named_modules()
        for name, _ in part.named_children()
        if name in WRAPPED
    }

    def is_added(key: str) -> bool:
        parts = key.split(".")
        return any(base_of.get(".".join(parts[:i]), part) != part for i, part in enumerate(parts))

    return {key for key in keys if is_added(key)}


def renamed(theirs: Iterable[str], ours: Iterable[str], prefix: str = "backbone.model.") -> Mapping[str, str]:
    """What weights of a network are called here that were saved with other wrappers of PEFT around it.

    A network that was trained itself has ``layers.0.q_proj.weight``, one with adapters
    ``base_model.model.layers.0.q_proj.base_layer.weight``: the same weight.

    Args:
        theirs: Names in a checkpoint.
        ours: Names in the module's state.
        prefix: What the network's names begin with; others stay as they are.

    Returns:
        Our name by theirs, of those that differ and are here.

    Raises:
        ValueError: If two of theirs would be one of ours.
    """
    own = set(ours)
    by_plain = {_plain(name, prefix): name for name in own}
    present = set(theirs)
    names = {
        name: by_plain[_plain(name, prefix)]
        for name in present
        if name not in own and name.startswith(prefix) and _plain(name, prefix) in by_plain
    }
    twice = sorted(
        here for here in set(names.values()) if here in present or [*names.values()].count(here) > 1
    )
    if twice:
        raise ValueError(
            f"the checkpoint has two values for {', '.join(twice[:3])}, one of them under another name"
        )
    return names


def _plain(name: str, prefix: str) -> str:
    """A name without the wrappers."""
    if not name.startswith(prefix):
        return name
    parts = name.removeprefix(prefix).removeprefix("base_model.model.").split(".")
    return prefix + ".".join(part for part in parts if part not in WRAPPED)
