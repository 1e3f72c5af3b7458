"""How much an optimiser keeps for each parameter, found by having it step once on a few."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["state_bytes"]

SIDE = 256
"""Rows and columns of the matrix that is stepped on: large enough for 8-bit optimisers, which leave small ones in float32."""


def state_bytes(make: Callable[[Iterable[Any]], Optimizer], trained: Mapping[str, int]) -> int:
    """Bytes of an optimiser's state over all trained parameters.

    Exact for what keeps equally much of every number, as AdamW and SGD do; what keeps rows and columns alone, as Adafactor
    does, is counted as of square matrices, and what spares small tensors as if there were none.

    Args:
        make: Makes the optimiser of parameters.
        trained: How many numbers are trained, by the name of their dtype.
    """
    return round(sum(number * _per_number(make, dtype) for dtype, number in trained.items()))


def _per_number(make: Callable[[Iterable[Any]], Optimizer], dtype: str) -> float:
    """Bytes of state of each number of a matrix; counts of steps are left out."""
    parameter = nn.Parameter(torch.zeros(SIDE, SIDE, dtype=getattr(torch, dtype)))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make([parameter])
    optimizer.step()
    kept = {tensor.untyped_storage()._cdata: tensor.nbytes for tensor in _tensors(optimizer.state[parameter])}
    return sum(kept.values()) / parameter.numel()


def _tensors(state: object) -> list[Tensor]:
    """Tensors of a state; not counts, nor tables that all parameters have alike."""
    if isinstance(state, Mapping):
        parts = [part for name, part in state.items() if not str(name).startswith("qmap")]
        return [tensor for part in parts for tensor in _tensors(part)]
    return [state] if isinstance(state, Tensor) and state.ndim > 0 else []
