"""The language-model head of a backbone: the linear layer that its own files hold beside the network."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["OTHERWISE", "split_language_head"]

OTHERWISE = "choose another backbone, or a method that reads no tokens (CustomizedRM with imitation=0 and perplexity=false)"
"""What to do where a network has no language-model head that is of use."""

LARGE = 100.0
"""Size of the logits on which it is tried whether they are linear: above the caps that networks have (30 in Gemma 2)."""


def split_language_head(model: "PreTrainedModel") -> tuple["PreTrainedModel", nn.Linear]:
    """A causal language model's body and head.

    Args:
        model: With its language-model head.

    Returns:
        The network below the head, and the head; they may share their weight with the embeddings.

    Raises:
        ValueError: If the network is no causal one, or its logits are not a linear map of its last states.
    """
    body, head = cast("PreTrainedModel", model.base_model), model.get_output_embeddings()
    name = model.config.model_type
    if body is model or not isinstance(head, nn.Linear):
        raise ValueError(
            f"a language-model head that is a linear layer is needed, and {name} has none: {OTHERWISE}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        return body, head
    difference, causal = _try(model, body, head)
    if not causal:
        raise ValueError(
            f"a language-model head is needed on a causal network, and {name}, as it is configured, is bidirectional: {OTHERWISE}"
        )
    if difference > (1e-4 if head.weight.dtype == torch.float32 else 5e-2):
        raise ValueError(
            f"a language-model head is needed whose logits are a linear map of the last states, and those of {name} differ "
            f"from it by {difference:.1e} on a test input (such as by a cap on logits or a scale): {OTHERWISE}"
        )
    return body, head


@torch.no_grad()
def _try(model: "PreTrainedModel", body: "PreTrainedModel", head: nn.Linear) -> tuple[float, bool]:
    """Largest difference between the network's logits and the head's, relative to their size; whether it is causal.

    The head's output is made large for this: random weights give small logits, which a cap leaves as they are.
    """
    device = next(model.parameters()).device
    vocabulary = getattr(model.config, "vocab_size", 8)
    ids = torch.arange(8, device=device)[None].repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    factor: list[Tensor] = []

    def enlarge(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not factor:
            factor.append(LARGE / output.abs().max().clamp_min(1e-3))
        return output * factor[0]

    hook, was_training = head.register_forward_hook(enlarge), model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits.float()
        own = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
    finally:
        hook.remove()
        model.train(was_training)
    scale = float(own.abs().max().clamp_min(1e-6))
    causal = bool(torch.allclose(logits[0, 0], logits[1, 0], rtol=1e-3, atol=1e-3))
    return float((logits - own).abs().max()) / scale, causal
