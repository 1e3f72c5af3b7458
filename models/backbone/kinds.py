"""What kind of network it is: causal or not, of layers that packed attention knows or not."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from pluralign.datamodules.batch import PreferenceBatch

from .rows import repeat

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["FULL_ATTENTION", "is_causal", "small_batch", "views_differ", "why_not_shared"]

FULL_ATTENTION = {
    "gemma": True,
    "gpt2": False,
    "gpt_neox": True,
    "llama": True,
    "mistral": True,
    "olmo2": True,
    "opt": True,
    "phi3": True,
    "qwen2": True,
    "qwen3": True,
    "smollm3": True,
}
"""Model types whose packed rows were tried, for networks whose weights are not there yet; and whether their last layer can run
for the responses' ends alone."""

KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that packed attention knows."""


def small_batch(device: torch.device, vocab_size: int | None) -> PreferenceBatch:
    """Shared rows of two responses, of one and of two, to try a network on."""
    lengths = [[4, 3, 5], [3, 4], [2, 1, 6]]
    width = max(map(sum, lengths))
    segments = torch.full((len(lengths), width), -1)
    positions = torch.zeros_like(segments)
    for row, (prefix, *own) in enumerate(lengths):
        at = prefix
        segments[row, :prefix], positions[row, :prefix] = 0, torch.arange(prefix)
        for number, length in enumerate(own, start=1):
            segments[row, at : at + length] = number
            positions[row, at : at + length] = prefix + torch.arange(length)
            at += length
    ids = torch.arange(1, segments.numel() + 1).view_as(segments) % (vocab_size or segments.numel())
    return PreferenceBatch(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        segment_ids=segments.to(device),
        segment_lengths=lengths,
        response_row=torch.tensor([0, 0, 1, 2, 2], device=device),
        response_end=torch.tensor([6, 11, 6, 2, 8], device=device),
    )


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
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - KINDS:
        return f"it has {', '.join(sorted(kinds - KINDS))} layers"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "its attention runs in chunks"
    if getattr(
        config, "attn_temperature_tuning", False
    ):  # acts from thousands of tokens on, so no trial shows it
        return "its attention depends on a token's place in the row"
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
    spread = (states - states[0]).abs().max()
    return bool(spread > 1e-3 * states.abs().max())  # rounding alone differs by less, dropout by far more
