"""What a module's step needs, from its settings alone."""

import torch

from ..base import BaseModule
from .activations import Rows, count_activations
from .networks import count_weights
from .optimizers import state_bytes
from .strategies import Load

__all__ = ["load_of"]

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def load_of(module: BaseModule, rows: Rows, *, precision: str = "32-true") -> Load:
    """Weights, optimiser's state and activations of a step.

    One pass over the batch is counted for each network or adapter that the module has. What a method runs besides, such as a
    second view of the batch or a meta step, is not: the callback ``LongestBatch`` measures all of it.

    Args:
        module: Not built, and left so.
        rows: What batches are made of.
        precision: The trainer's.
    """
    weights = count_weights(module)
    return Load(
        weights=weights,
        state=state_bytes(module.optimizer, weights.trained_by_dtype),
        activations=count_activations(
            module.backbone_config,
            rows,
            autocast=MIXED.get(precision),
            vocabulary_head=weights.vocabulary_head,
        ),
    )
