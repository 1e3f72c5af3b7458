"""What moving probability from one label to another costs."""

from typing import Literal, NamedTuple, TypeVar

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


class Ground(NamedTuple):
    """What is known of a cost matrix without reading it again."""

    span: float | None
    """Largest entry less the smallest one; None if not known."""
    symmetric: bool
    """Whether it is known to be symmetric."""


def ground_of(cost: Cost, exponent: float, labels: int) -> Ground:
    """What can be known of a cost matrix without making a device wait; tensors are read on the CPU, in eager code.

    Args:
        cost: "index", (K,) or (K, K).
        exponent: Costs are raised to this power, > 0.
        labels: K.
    """
    if isinstance(cost, str):
        return Ground(max(labels - 1, 0) ** exponent, True)
    unknown = Ground(None, cost.ndim == 1)
    if cost.device.type != "cpu" or torch.compiler.is_compiling() or not cost.numel():
        return unknown
    values = cost.detach()
    try:
        low, high = (float(extreme) for extreme in torch.aminmax(values))
        if cost.ndim == 1:
            return Ground((high - low) ** exponent, True)
        rising = low >= 0 or exponent == 1  # powers of negative costs need not keep their order
        return Ground(high**exponent - low**exponent if rising else None, torch.equal(values, values.mT))
    except RuntimeError:
        return unknown  # inside vmap
    except OverflowError:
        return Ground(None, unknown.symmetric)


def keep_bits(values: Cost | None) -> Tensor | None:
    """A float64 tensor as the integers of its bits: as a buffer, it moves with a module but is never rounded.

    ``module.bfloat16()``, which a bf16-true trainer calls, would otherwise round what is a constant.
    """
    return values.detach().double().contiguous().view(torch.int64) if isinstance(values, Tensor) else None


def kept(bits: Tensor | None, default: Default) -> Tensor | Default:
    """What :func:`keep_bits` was given, or ``default`` if that was no tensor."""
    return default if bits is None else bits.view(torch.float64)
