"""What moving probability from one label to another costs."""

from typing import Literal, TypeVar

import torch
from torch import Tensor

from ._common import check_number, check_values

Cost = Literal["index"] | Tensor
Default = TypeVar("Default")


def positions_on_line(cost: Cost, like: Tensor) -> Tensor | None:
    """Where the labels lie if the cost is a line's, (K,) in the type of ``like``; None for a matrix.

    Raises:
        ValueError: If ``cost`` is neither "index" nor a (K,) or (K, K) tensor for the K labels of ``like``.
    """
    labels = like.shape[-1] if like.ndim else 0
    if labels == 0:
        raise ValueError(
            f"p must have at least one label in its last dimension; got shape {tuple(like.shape)}"
        )
    if isinstance(cost, str):
        if cost != "index":
            raise ValueError(f"cost must be 'index', positions (K,) or a matrix (K, K); got {cost!r}")
        return torch.arange(labels, dtype=like.dtype, device=like.device)
    if cost.shape not in ((labels,), (labels, labels)):
        raise ValueError(
            f"cost must be 'index' or of shape {(labels,)} or {(labels, labels)}; "
            f"got shape {tuple(cost.shape)}"
        )
    check_values("cost", cost)
    return cost.detach().to(like.device, like.dtype) if cost.ndim == 1 else None


def cost_matrix(cost: Cost, exponent: float, like: Tensor) -> Tensor:
    """The (K, K) matrix of a cost, raised to ``exponent``, in the type of ``like``."""
    check_number("exponent", exponent, 0.0, open_low=True)
    positions = positions_on_line(cost, like)
    if positions is not None:
        matrix = (positions.unsqueeze(1) - positions.unsqueeze(0)).abs()
    else:
        matrix = torch.as_tensor(cost).detach().to(like.device, like.dtype)
    return matrix if exponent == 1 else matrix.pow(exponent)


def keep_bits(values: Cost | None) -> Tensor | None:
    """A float64 tensor as the integers of its bits: as a buffer, it moves with a module but is never rounded.

    ``module.bfloat16()``, which a bf16-true trainer calls, would otherwise round what is a constant.
    """
    return values.detach().double().contiguous().view(torch.int64) if isinstance(values, Tensor) else None


def kept(bits: Tensor | None, default: Default) -> Tensor | Default:
    """What :func:`keep_bits` was given, or ``default`` if that was no tensor."""
    return default if bits is None else bits.view(torch.float64)
