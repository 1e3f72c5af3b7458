"""The causal language model that a backbone and its language-model head are together: to decode with, and to save.

Rows of a batch run through the backbone alone, whose attention may be one that knows such rows. Whoever generates runs the
library's own model around the same layers, one token at a time, and for that attention has to be the library's again.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .packing import PACKED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .network import Backbone

__all__ = ["WithOwnAttention", "save_language_model"]

ROW_ATTENTION = (PACKED, "flex_attention")
"""Attention that a backbone takes for its rows, and that does not decode: it needs their places, or compiles for each length."""
DEFAULT_ADAPTER = "default"
"""What PEFT calls the adapter of ``backbone.lora``."""


class WithOwnAttention:
    """While a whole language model runs, attention is SDPA where the backbone takes another one for its rows.

    Both share their layers and one configuration, which is put back when the model has run, also by an error.
    """

    def __init__(self, network: "PreTrainedModel") -> None:
        """Have it so from now on.

        Args:
            network: The whole model.
        """
        self.config = network.config
        self.before: list[str | None] = []
        network.register_forward_pre_hook(self.enter)
        network.register_forward_hook(self.leave, always_call=True)

    def enter(self, network: "PreTrainedModel", inputs: tuple[object, ...]) -> None:
        """Take the library's attention.

        Raises:
            RuntimeError: If activations would be recomputed later, when the attention is another one again.
        """
        attention = self.config._attn_implementation
        if network.training and network.is_gradient_checkpointing and torch.is_grad_enabled():
            raise RuntimeError(
                "a backbone's language model is there to decode with and cannot be trained with "
                "backbone.gradient_checkpointing: train by Backbone.read, or run it in evaluation mode or without gradients"
            )
        self.before.append(attention)
        if attention in ROW_ATTENTION:
            self.config._attn_implementation = "sdpa"

    def leave(self, network: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Put the rows' attention back."""
        if self.before:  # nothing was taken where entering was refused
            self.config._attn_implementation = self.before.pop()


def save_language_model(backbone: "Backbone", folder: str | Path, *, adapter: str | None = None) -> None:
    """Write a backbone's language model as transformers and PEFT write theirs, in the backbone's dtype.

    With adapters these alone are written. They sit on the network below the language-model head; their names are written
    as those of the whole model's layers, since PEFT would load others as no adapter at all and warn of it, so that
    ``PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), folder)`` is the language model again.

    Args:
        backbone: Built with its language-model head.
        folder: Made unless it is there.
        adapter: Which one to write; None for that of ``backbone.lora``, or for the whole model if it has none.

    Raises:
        ValueError: If there is no language-model head, or no such adapter.
    """
    network = backbone.language_model()
    adapters = getattr(backbone.model, "peft_config", {})
    if adapter is None and DEFAULT_ADAPTER not in adapters:
        if adapters:
            raise ValueError(
                f"the backbone has several adapters: adapter must be one of {', '.join(adapters)}"
            )
        network.save_pretrained(folder)
        return
    name = adapter or DEFAULT_ADAPTER
    if name not in adapters:
        raise ValueError(f"there is no adapter {name!r}; the backbone has {', '.join(adapters) or 'none'}")
    _save_adapter(backbone, network, Path(folder), name)


def _save_adapter(backbone: "Backbone", network: "PreTrainedModel", folder: Path, name: str) -> None:
    """One adapter in PEFT's format, as if it had been put on the whole model."""
    from copy import deepcopy

    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    wrapper = backbone.model
    assert isinstance(wrapper, PeftModel)  # it has adapters
    body = wrapper.get_base_model()
    inside = next(path for path, part in network.named_modules() if part is body)
    state: dict[str, Tensor] = get_peft_model_state_dict(wrapper, adapter_name=name)
    start = "base_model.model."
    settings = deepcopy(wrapper.peft_config[name])
    assert isinstance(settings, LoraConfig)  # as lora_settings made it
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True
    settings.base_model_name_or_path, settings.revision = backbone.config.name, backbone.config.revision
    if isinstance(settings.target_modules, str):  # a pattern of whole names
        settings.target_modules = rf"{re.escape(inside)}\.(?:{settings.target_modules})"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{start}{inside}.{key.removeprefix(start)}": value.detach().cpu().contiguous()
        for key, value in state.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
