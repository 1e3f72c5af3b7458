"""What a backbone is made of: its configuration, its weights, its adapters."""

import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

from pluralign.datamodules.checks import check_choices
from pluralign.datamodules.untrusted import safetensors_header

from .language_head import OTHERWISE
from .lora import LoRAConfig, lora_settings

__all__ = [
    "BackboneConfig",
    "adapt_model",
    "configured_positions",
    "load_model",
    "load_network",
    "network_config",
    "num_positions",
]

HEADS = frozenset(("score", "classifier"))
"""What classes of transformers call their head."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, in which state. Plain values only: it is part of every checkpoint.

    Attributes:
        name: Hugging Face name or local folder; None builds a randomly initialised network from ``config``.
        config: Fields of the network's configuration: all of them with ``model_type`` if ``name`` is None,
            otherwise those to change (such as dropout).
        tokenizer: Tokenizer to use; None for ``name``, or the built-in byte-level one if that is None too.
            Kept here so that it is written once; the command line passes it on to the data.
        revision: Branch, tag or commit on the hub.
        dtype: Of the backbone's weights; heads, rewards and losses are float32 in any case.
        pooling: State that represents a response: ``last`` token, ``mean`` over prompt and response, ``cls``
            for the first token; ``auto`` is last for causal networks and mean for bidirectional ones.
        layout: ``auto`` decides as the module's docstring says; ``shared`` insists and raises if it is wrong.
        frozen: Train the head alone; the backbone stays in evaluation mode and builds no graph.
        lora: Adapters; None trains the whole backbone unless it is frozen.
        quantization: ``4bit`` or ``8bit`` base through bitsandbytes; needs ``frozen`` or ``lora``.
        gradient_checkpointing: Recompute activations in the backward pass.
        attention: Of shared rows, ``auto`` is FlexAttention on CUDA and a kernel on pieces of the row on the CPU; ``sdpa`` does without
            FlexAttention, ``eager`` is made of plain operations.
        length_chunks: Run separate rows in several passes of similar lengths where that saves padding. Turn it
            off under fully sharded training, where every rank must make equally many passes.
        trust_remote_code: Whether code that ships with the weights may run.
    """

    name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pooling: Literal["auto", "last", "mean", "cls"] = "auto"
    layout: Literal["auto", "shared", "separate"] = "auto"
    frozen: bool = False
    lora: LoRAConfig | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    gradient_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    length_chunks: bool = True
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without loading.

        Raises:
            ValueError: Naming the argument, its value and what is allowed.
        """
        if isinstance(self.lora, dict):  # from a checkpoint's plain hyperparameters
            object.__setattr__(self, "lora", LoRAConfig(**self.lora))
        check_choices(type(self), prefix="backbone.", **vars(self))
        if self.name is None and "model_type" not in self.config:
            raise ValueError("backbone.name is null, so backbone.config must hold model_type (such as llama)")
        if self.frozen and self.lora is not None:
            raise ValueError("backbone.frozen=true trains no adapters: leave out backbone.lora, or frozen")
        if self.quantization is not None and not self.frozen and self.lora is None:
            raise ValueError(
                "a quantized backbone cannot be trained itself: set backbone.lora or backbone.frozen"
            )
        if self.quantization is not None and self.name is None:
            raise ValueError("backbone.quantization needs pretrained weights: set backbone.name")

    def description(self) -> dict[str, object]:
        """What the features of this network, frozen, depend on; kept with a feature store.

        Raises:
            ValueError: If it has no weights that could be found again, or they are trained.
        """
        if self.name is None or not self.frozen:
            raise ValueError(
                "stored features belong to a frozen, pretrained backbone: set backbone.frozen=true and backbone.name "
                f"(now frozen={self.frozen}, name={self.name!r}), or train from text with loader.features=null"
            )
        return {
            "weights": _weights_digest(self.name),
            "revision": self.revision,
            "config": self.config,
            "dtype": self.dtype,
            "pooling": self.pooling,
            "quantization": self.quantization,
        }

    def identity(self) -> dict[str, str | None] | None:
        """Which base it is whose files a checkpoint relies on; None for a network that has none.

        A folder is known by its content, wherever it lies; a network on the hub by its name and revision.

        Returns:
            ``name`` and, of a folder, ``digest``, of one on the hub ``revision``; the other of these is None.

        Raises:
            ValueError: If the folder holds no network.
        """
        if self.name is None:
            return None
        digest = _weights_digest(self.name)
        if digest == self.name:
            return {"name": self.name, "revision": self.revision or "main", "digest": None}
        return {"name": self.name, "revision": None, "digest": digest}


def _weights_digest(name: str) -> str:
    """What tells one network's weights from another's: the name on the hub, or a hash over a folder's files.

    Weight files are told by their size and by samples of their bytes, whole ones having gigabytes: evenly over the
    file, and the beginning of every tensor where the file says where that is.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    if not (folder / "config.json").is_file():
        raise ValueError(f"backbone.name={name!r} is a folder without config.json, so it holds no network")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as stream:
                for place in [*range(0, size, max(1, size // 64)), *_tensor_places(path)]:
                    stream.seek(place)
                    digest.update(stream.read(4096))
    return digest.hexdigest()[:16]


def _tensor_places(path: Path) -> list[int]:
    """Where every tensor of a safetensors file begins, in bytes; nothing for other files."""
    if path.suffix != ".safetensors":
        return []
    try:
        header = safetensors_header(path)
    except ValueError as error:
        raise ValueError(
            f"{path} has no weights that can be read ({error}): copy or download the folder anew"
        ) from error
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")  # of the header
    return [8 + size + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"]


def load_model(config: BackboneConfig, *, language_head: bool = False) -> "PreTrainedModel":
    """Load or initialise the network that a configuration names.

    Args:
        config: Which network.
        language_head: Whether it is to have its language-model head, from the same files.

    Raises:
        ValueError: If it cannot be loaded, lacks weights, or is an encoder-decoder.
    """
    return load_network(config, language_head=language_head)[0]


def load_network(
    config: BackboneConfig, *, language_head: bool = False
) -> tuple["PreTrainedModel", tuple[str, ...]]:
    """The network of :func:`load_model`, and the names of weights of a classification head that its files hold besides.

    Args:
        config: As there.
        language_head: As there.

    Raises:
        ValueError: As there.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    # Both have the same class methods; that of all of them is not typed.
    network_class = cast(type[AutoModel], AutoModelForCausalLM if language_head else AutoModel)
    dtype: torch.dtype = getattr(torch, config.dtype)
    network = network_config(config)
    left_out: tuple[str, ...] = ()
    # FlexAttention is set later, when the device is known; otherwise transformers takes the best it has.
    attention = config.attention if config.attention in ("sdpa", "eager") else None
    if language_head and not _has_causal_form(network, config):
        raise ValueError(
            f"a language-model head is needed on a causal network, and {network.model_type} has no language-model head: "
            f"{OTHERWISE}"
        )
    if config.name is None:
        model: PreTrainedModel = network_class.from_config(
            network, dtype=dtype, attn_implementation=attention
        )
    else:
        model, report = network_class.from_pretrained(
            config.name,
            config=network,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=_quantization(config, dtype),
            output_loading_info=True,
            **_origin(config),
        )
        missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
        if missing:
            also = " with a language-model head" if language_head else ""
            raise ValueError(
                f"backbone.name={config.name!r} has no weights for {', '.join(missing[:5])}, ...: not a "
                f"checkpoint of this architecture{also}"
            )
        left_out = tuple(key for key in sorted(report["unexpected_keys"]) if HEADS & set(key.split(".")))
    _check_fields(network, set(config.config) - {"model_type"})
    if network.is_encoder_decoder:
        raise ValueError(
            f"encoder-decoder networks ({network.model_type}) are not supported; use a causal or BERT-type one"
        )
    body = model.base_model
    if getattr(body, "pooler", None) is not None:
        # BERT's own pooler is never used here, and unused parameters stall distributed training.
        body.register_module("pooler", None)
    return model, left_out


def _has_causal_form(network: "PretrainedConfig", config: BackboneConfig) -> bool:
    """Whether there is a class for the network with a language-model head, of the library or of its own files."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = getattr(network, "auto_map", None) or {}
    return network.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        config.trust_remote_code and "AutoModelForCausalLM" in own
    )


def _origin(config: BackboneConfig) -> dict[str, Any]:
    return {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}


def network_config(config: BackboneConfig) -> "PretrainedConfig":
    """The configuration of a network, with the fields that are set here; reads no weights.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from transformers import AutoConfig

    if config.name is None:
        fields = dict(config.config)
        kind = fields.pop("model_type")
        try:
            made: PretrainedConfig = AutoConfig.for_model(kind, **fields)
        except (
            Exception
        ) as error:  # fields are checked by a class of its own for each kind, and of its own errors
            raise ValueError(f"backbone.config makes no network of model_type {kind!r}: {error}") from error
        return made
    try:
        network: PretrainedConfig = AutoConfig.from_pretrained(
            config.name, **_origin(config), **config.config
        )
    except Exception as error:  # likewise
        raise ValueError(
            f"backbone.name={config.name!r} could not be loaded; allowed: a folder with config.json and weights, "
            f"or a name on the Hugging Face hub ({error})"
        ) from error
    return network


def num_positions(model: "PreTrainedModel") -> int | None:
    """Longest text that a network has positions for; None if its configuration names no bound."""
    size: int | None = getattr(model.config, "max_position_embeddings", None)
    offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    # RoBERTa counts positions from after the padding's id.
    return size if size is None or offset is None else size - (offset + 1)


def configured_positions(config: BackboneConfig) -> int | None:
    """The same of the network that a configuration names, without its weights; None also where it cannot be found.

    What is wrong with the configuration is said where the network is loaded.
    """
    from transformers import AutoModel

    try:
        network = network_config(config)
        if getattr(network, "max_position_embeddings", None) is None:
            return None
        with torch.device("meta"):
            return num_positions(AutoModel.from_config(network, trust_remote_code=config.trust_remote_code))
    except (ImportError, OSError, ValueError):
        return None


def _check_fields(network: "PretrainedConfig", given: set[str]) -> None:
    """Warn of fields that the architecture does not have: transformers keeps them and nothing reads them."""
    from inspect import signature

    from transformers import PretrainedConfig

    known = {*signature(type(network).__init__).parameters, *network.attribute_map, *vars(PretrainedConfig())}
    known |= {"rope_theta", "rope_scaling"}  # names of transformers 4, still understood
    for name in sorted(given - known):
        alike = get_close_matches(name, known, n=1)
        rank_zero_warn(
            f"backbone.config.{name}: {network.model_type} has no such field, so it has no effect"
            + (f"; did you mean {alike[0]}?" if alike else "")
        )


def _quantization(config: BackboneConfig, dtype: torch.dtype) -> object:
    if config.quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def adapt_model(model: "PreTrainedModel", config: BackboneConfig) -> nn.Module:
    """Freeze the network, or put adapters on it, as the configuration says."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.frozen:
        return model.requires_grad_(False)
    if config.lora is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if config.quantization is not None:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    return get_peft_model(model, lora_settings(model, config.lora))
