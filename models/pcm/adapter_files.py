"""Folders of LoRA adapters, as PEFT writes them: read as low-rank factors of a network's layers, or refused.

PEFT itself loads what fits and begins with zeros where nothing does, so that an adapter of another network is no expert at all, and
nobody is told. Here every weight of a file has its place, or reading it is an error.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pluralign.datamodules.untrusted import UNREADABLE, json_object

from ..backbone import BackboneConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

__all__ = ["Factors", "LayerFactors", "adapter_digest", "check_factors", "layer_sizes", "read_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FACTOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""``init_lora_weights`` that leave the base's weights as they are."""
REFUSED = {
    "use_dora": "DoRA scales the layers' own weights, which experts share",
    "alora_invocation_tokens": "it acts from some tokens on (activated LoRA)",
    "use_qalora": "it pools its inputs (QALoRA)",
    "use_bdlora": "its factors are blocks (BD-LoRA)",
    "layer_replication": "it repeats layers",
    "arrow_config": "it routes between adapters (Arrow)",
    "trainable_token_indices": "it has embeddings of its own",
    "modules_to_save": "it has whole layers of its own",
    "lora_bias": "it has biases of its own",
    "target_parameters": "it adapts parameters that are no linear layers",
    "monteclora_config": "its factors are random (MonteCLoRA)",
    "kasa_config": "it has singular values of its own (KaSA)",
    "velora_config": "its layers are not PEFT's usual ones (VeLoRA)",
}
"""Settings of an adapter that make it more, or other, than a low-rank product beside linear layers."""


class Factors(NamedTuple):
    """A layer's low-rank update, up @ down; the scaling is in ``up``."""

    down: Tensor
    """(r, in) float32."""
    up: Tensor
    """(out, r) float32."""


LayerFactors = Mapping[str, tuple[Tensor, Tensor]]
"""Factors of an expert, A (r, in) and B (out, r) with its scaling, by the name of the layer in the causal network."""


def read_adapter(folder: str, model: "PreTrainedModel", expert: str) -> dict[str, Factors]:
    """Factors of an adapter, on the CPU.

    An adapter that was saved over the network without its language-model head has shorter names; they are made whole.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: The causal network that it is for.
        expert: Whose it is, for messages.

    Raises:
        ValueError: If the folder holds no LoRA adapter, one that is more than low-rank factors of linear layers, or one of another
            base.
    """
    where = f"experts.adapters.{expert}={folder!r}"
    config = _read_config(folder, where)
    _check_base(config, model, where)
    found = _read_factors(folder, where)
    layers = _layers(model)
    prefix = f"{model.base_model_prefix}."
    if not any(name in layers for name in found):
        found = {f"{prefix}{name}": pair for name, pair in found.items()}
    absent = [name for name in found if name not in layers]
    if absent:
        raise ValueError(
            f"{where} is of another base: it adapts {len(found)} layers, and {len(absent)} of them ({', '.join(absent[:3])}) are "
            f"no linear layers of the {model.config.model_type} beneath ({_told(model)}); it was trained on "
            f"{config.base_model_name_or_path!r}: set experts.base to that"
        )
    factors = {name: Factors(a, b * _scaling(config, name, len(a))) for name, (a, b) in found.items()}
    check_factors(factors, model, where, config.base_model_name_or_path or "an unnamed network")
    return factors


def _read_config(folder: str, where: str) -> "LoraConfig":
    """An adapter's settings, if it is a plain one."""
    from peft import PeftConfig

    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"{where} holds no adapter: there must be a folder with {CONFIG} and {WEIGHTS}, as PEFT writes it"
        )
    if not (path / WEIGHTS).is_file():
        kinds = ", ".join(sorted(file.name for file in path.glob("adapter_model*"))) or "none"
        raise ValueError(
            f"{where} has no {WEIGHTS} (weights there: {kinds}); pickled files are not read: save the adapter again with "
            "save_pretrained, which writes safetensors"
        )
    again = "save the adapter again"
    try:
        kind = json_object(path / CONFIG).get("peft_type")
    except ValueError as error:
        raise ValueError(f"{where}: {CONFIG} cannot be read ({error}): {again}") from error
    if kind != "LORA":
        raise ValueError(f"{where} is an adapter of type {kind!r}; allowed: LORA")
    try:
        config = cast("LoraConfig", PeftConfig.from_pretrained(folder))
        alphas = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
        if not all(isinstance(alpha, int | float) and math.isfinite(alpha) for alpha in alphas):
            raise ValueError(f"lora_alpha and alpha_pattern must be finite numbers, got {alphas}")
    except UNREADABLE as error:
        raise ValueError(f"{where}: {CONFIG} makes no adapter ({error}): {again}") from error
    for name, reason in REFUSED.items():
        if getattr(config, name, None):
            raise ValueError(
                f"{where} was made with {name}, and {reason}: train it as plain LoRA, or merge it into a whole model and name that "
                "in experts.models"
            )
    if config.bias != "none":
        raise ValueError(
            f"{where} was made with bias={config.bias!r}, and experts share the biases: train it with bias='none'"
        )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"{where} was made with init_lora_weights={config.init_lora_weights!r}, which changes the base's weights: save it with "
            "path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    return config


def _read_factors(folder: str, where: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Both factors of each layer, as they are saved, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(Path(folder) / WEIGHTS)
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"{where}: {WEIGHTS} cannot be read ({error}): save the adapter again") from error
    parts: dict[str, dict[str, Tensor]] = {}
    others = []
    for key, value in state.items():
        match = FACTOR.fullmatch(key)
        if match is None:
            others.append(key)
        else:
            parts.setdefault(match["layer"], {})[match["factor"]] = value.float()
    if others:
        raise ValueError(
            f"{where} holds {', '.join(others[:3])}, which are no low-rank factors of linear layers; {len(others)} weights of "
            f"{len(state)} are none: train it with target_modules that are linear layers alone; if these are the base's own, save it with "
            "save_embedding_layers=False"
        )
    halves = sorted(name for name, pair in parts.items() if len(pair) < 2)
    if halves or not parts:
        lack = f"one factor of {', '.join(halves[:3])} alone" if halves else "no factors"
        raise ValueError(f"{where} holds {lack}: the file is not whole; save the adapter again")
    return {name: (pair["A"], pair["B"]) for name, pair in parts.items()}


def _scaling(config: "LoraConfig", layer: str, rank: int) -> float:
    """What PEFT multiplies a layer's product with."""
    alphas: Mapping[str, float] = config.alpha_pattern or {}
    pattern = next((key for key in alphas if re.match(rf"(.*\.)?({key})$", layer)), None)
    alpha = config.lora_alpha if pattern is None else alphas[pattern]
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _check_base(config: "LoraConfig", model: "PreTrainedModel", where: str) -> None:
    """Look whether an adapter says that it was trained on this network.

    Raises:
        ValueError: If both are folders, and their networks differ.
    """
    theirs, ours = config.base_model_name_or_path, model.config._name_or_path
    if not theirs or not ours or theirs == ours:
        return
    if all((Path(name) / "config.json").is_file() for name in (theirs, ours)):
        digests = [(BackboneConfig(name=name).identity() or {})["digest"] for name in (theirs, ours)]
        if digests[0] != digests[1]:
            raise ValueError(
                f"{where} is of another base: it was trained on {theirs!r} (content {digests[0]}), and the network beneath is "
                f"{ours!r} (content {digests[1]}); set experts.base.name to the former"
            )
        return
    rank_zero_warn(
        f"{where} says that it was trained on {theirs!r}, and the network beneath is {ours!r}: shapes fit, and whether the weights "
        "are the same cannot be told from names"
    )


def _told(model: "PreTrainedModel") -> str:
    return model.config._name_or_path or "made from its configuration alone"


def _layers(model: "PreTrainedModel") -> dict[str, nn.Module]:
    """Linear layers of a network by name, whatever wraps them."""
    from transformers.pytorch_utils import Conv1D

    return {
        name.removesuffix(".base_layer"): part
        for name, part in model.named_modules()
        if isinstance(part, (nn.Linear, Conv1D)) and ".lora_" not in name
    }


def layer_sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, or of GPT-2's ``Conv1D``."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    size_in, size_out = layer.nx, layer.nf
    assert isinstance(size_in, int) and isinstance(size_out, int)  # of Conv1D, the other kind of layer
    return size_in, size_out


def check_factors(factors: LayerFactors, model: "PreTrainedModel", where: str, origin: str) -> None:
    """Make sure that factors fit the layers they are named for.

    Args:
        factors: By layer.
        model: The network.
        where: What they are called in the message.
        origin: What they were made for.

    Raises:
        ValueError: If there is no such layer, or sizes differ.
    """
    layers = _layers(model)
    for name, (down, up) in factors.items():
        if name not in layers:
            raise ValueError(
                f"{where} adapts {name}, and {_told(model)} ({model.config.model_type}) has no linear layer of that name"
            )
        size_in, size_out = layer_sizes(layers[name])
        if (
            (down.ndim, up.ndim) != (2, 2)
            or len(down) != up.shape[1]
            or (down.shape[1], len(up)) != (size_in, size_out)
        ):
            raise ValueError(
                f"{where} is of another base: its factors of {name} are {tuple(down.shape)} and {tuple(up.shape)}, made for "
                f"{origin!r}, and the layer of {_told(model)} ({model.config.model_type}) has {size_in} inputs and {size_out} outputs"
            )


def adapter_digest(folder: str) -> str:
    """What tells an adapter's files from others', wherever they lie: a hash of settings and weights.

    Args:
        folder: Of the adapter.

    Raises:
        ValueError: If it holds none.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise ValueError(f"{folder!r} holds no adapter: there must be {CONFIG} and {WEIGHTS} in it")
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (path / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
