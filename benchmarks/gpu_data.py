"""Networks, lengths and batches of the GPU benchmark, drawn in the script: such a machine may have no data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.batches import PreferenceCollator
from pluralign.datamodules.tokens import TokenRow

__all__ = ["HALF", "HH", "NINE", "TINY", "Texts", "batch_of", "draw", "fitting", "half_billion"]

HALF = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
"""The shape of Qwen2 and Qwen2.5 of 0.5 billion parameters, with a smaller vocabulary."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
"""A network whose numbers float64 can check; heads of 16 numbers, which every kernel takes."""


@dataclass(frozen=True)
class Texts:
    """How long texts are: mean and deviation of the logarithm of their number of tokens."""

    name: str
    responses: int
    prompt: tuple[float, float]
    own: tuple[float, float]
    prompts: int
    """In a training step."""
    longest: int = 512
    """Tokens of a prompt, or of a response."""


HH = Texts("HH pairs", 2, (4.7, 0.9), (3.9, 0.8), 32)
"""As HH-RLHF's helpful-base is with GPT-2's tokenizer."""
NINE = Texts("nine responses", 9, (4.7, 0.9), (4.5, 0.7), 4)
"""As many answers to a prompt as InstructGPT had labelled; all 36 pairs of them are compared."""


ROOM = 80e9
"""Bytes of memory for which the steps are meant: plain transformers keep activations of all their padding."""


def fitting(texts: Texts) -> Texts:
    """The same texts, fewer a step where the device has less memory."""
    if not torch.cuda.is_available():
        return texts
    share = min(1.0, torch.cuda.get_device_properties(0).total_memory / ROOM)
    return replace(texts, prompts=max(2, int(share * texts.prompts)))


def half_billion(kind: str = "qwen2") -> dict[str, object]:
    """Fields of a network of the 0.5B class.

    Args:
        kind: ``qwen2`` or ``llama``.
    """
    return {"model_type": kind, **HALF}


def draw(texts: Texts, prompts: int, vocabulary: int, *, seed: int = 0) -> list[TokenRow]:
    """Random records: every pair of a record's responses is compared, the first one preferred.

    Args:
        texts: How long they are.
        prompts: How many.
        vocabulary: Ids are from 1 up to it; 0 is padding.
        seed: Of lengths and ids.
    """
    rng, ids = random.Random(seed), np.random.default_rng(seed)
    pairs = list(combinations(range(texts.responses), 2))

    def length(mean: float, deviation: float) -> int:
        return min(texts.longest, max(2, round(rng.lognormvariate(mean, deviation))))

    rows = []
    for number in range(prompts):
        lengths = [length(*texts.prompt), *(length(*texts.own) for _ in range(texts.responses))]
        rows.append(
            TokenRow(
                id=f"{seed}-{number}",
                tokens=ids.integers(1, vocabulary, sum(lengths), dtype=np.int32),
                lengths=np.array(lengths, dtype=np.int32),
                response_index=np.arange(texts.responses, dtype=np.int32),
                comparisons=np.array(pairs, dtype=np.int32).reshape(-1, 2),
                comparison_index=np.arange(len(pairs), dtype=np.int32),
                preference=np.ones(len(pairs), dtype=np.float32),
                columns={},
                record_key=number,
                split_key=number,
            )
        )
    return rows


def batch_of(rows: Sequence[TokenRow], device: torch.device, layout: str = "shared") -> PreferenceBatch:
    """The batch of these records, on a device."""
    batch = PreferenceCollator(layout=layout)(rows)
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return PreferenceBatch(**moved)  # type: ignore[typeddict-item]
