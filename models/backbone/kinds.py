"""What kind of network it is: causal or not, of full attention or not, and whether it runs through FlexAttention."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from pluralign.datamodules.batch import PreferenceBatch

from .dropout import attention_drops
from .rows import repeat

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["FULL_ATTENTION", "is_causal", "small_batch", "use_flex", "views_differ", "why_not_shared"]

FULL_ATTENTION = frozenset(
    ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "smollm3")
)
"""Model types whose layers are full attention unless the configuration names a window; each one tried."""


def small_batch(device: torch.device, vocab_size: int | None) -> PreferenceBatch:
    """A shared row of two responses, to try a network on."""
    lengths = torch.tensor([4, 3, 5])
    return PreferenceBatch(
        input_ids=torch.arange(12, device=device)[None] % (vocab_size or 12),
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]], device=device),
        segment_ids=torch.repeat_interleave(torch.arange(3), lengths)[None].to(device),
        response_row=torch.zeros(2, dtype=torch.int64, device=device),
        response_end=torch.tensor([6, 11], device=device),
    )


def use_flex(model: "PreTrainedModel", attention: str, *, trained: bool) -> bool:
    """Whether rows run through FlexAttention; its backward pass exists on CUDA only.

    Args:
        model: The network.
        attention: As in :class:`BackboneConfig`. ``auto`` does without it where attention has dropout, which it refuses.
        trained: Whether the network runs in training mode.

    Raises:
        ValueError: If it is asked for and the network does not support it.
    """
    on_cuda = next(model.parameters()).device.type == "cuda"
    supported = bool(getattr(model, "_supports_flex_attn", False))
    if attention == "flex_attention" and not supported:
        raise ValueError(f"backbone.attention='flex_attention': {type(model).__name__} does not support it")
    chosen = on_cuda and supported and not (trained and attention_drops(model.config))
    if attention == "flex_attention" or (attention == "auto" and chosen):
        model.set_attn_implementation("flex_attention")
        return True
    return False


@torch.no_grad()
def is_causal(model: "PreTrainedModel") -> bool:
    """Whether a later token leaves the states of earlier ones alone; found by trying."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return model.config.model_type in FULL_ATTENTION  # cannot be tried: only what is known counts
    device = next(model.parameters()).device
    vocabulary = getattr(model.config, "vocab_size", 8)
    ids = torch.arange(8, device=device)[None].repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    was_training = model.training
    model.eval()
    hidden = model(input_ids=ids).last_hidden_state[:, 0].float()
    model.train(was_training)
    return bool(torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-4))


def why_not_shared(config: "PretrainedConfig", causal: bool) -> str:
    """Reason why shared rows would not be exact, or nothing."""
    if not causal:
        return "the network is bidirectional"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"it has {', '.join(sorted(kinds))} layers"
    windowed = getattr(config, "sliding_window", None) is not None and getattr(
        config, "use_sliding_window", True
    )
    if windowed and kinds != {"full_attention"}:
        return f"its attention has a window of {config.sliding_window}"
    if not kinds and config.model_type not in FULL_ATTENTION:
        return f"the layers of {config.model_type} are not known to be full attention"
    return ""


@torch.no_grad()
def views_differ(backbone: nn.Module, vocab_size: int | None, *, copies: int = 64) -> bool:
    """Whether dropout makes two views of one input differ, in the mode that the backbone is in; found by trying.

    The state of the random numbers stays as it is.

    Args:
        backbone: Called with a token batch, gives a state per response.
        vocab_size: Of its tokens; None if it is not known.
        copies: Of a small input that are compared: a low rate may spare all of a few.
    """
    device = next(backbone.parameters()).device
    batch = small_batch(device, vocab_size)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        states = backbone(repeat(batch, copies)).unflatten(0, (copies, -1))
    return bool((states != states[0]).any())
