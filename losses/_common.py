"""What every loss shares: precision, reduction, and argument checks that never make a device wait."""

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._check_mode import reads_values

Reduction = Literal["mean", "sum", "none"]

_REDUCTIONS = ("mean", "sum", "none")


class Context(Protocol):
    """What torch hands to ``forward`` and ``backward`` of an autograd function, and leaves without types."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for ``backward``."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say which outputs have no gradient."""


class WithSlopes(torch.autograd.Function):
    """A value with its first derivatives in all arguments; these are outputs, too, so that vmap can carry them."""

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the derivatives."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, *grads: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of the arguments."""
        return tuple(grads[0] * slope for slope in ctx.saved_tensors)


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raise ``ValueError`` unless a number is finite and in [low, high]; (low, high] if ``open_low``."""
    if not math.isfinite(value) or not (low < value if open_low else low <= value) or value > high:
        raise ValueError(f"{name} must be in {_interval(low, high, open_low)}; got {value!r}")


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` unless all tensors given have the shape of the first."""
    reference_name, reference = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor is not None and reference is not None and tensor.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {reference_name}, {tuple(reference.shape)}; "
                f"got {tuple(tensor.shape)}"
            )


def check_mask(mask: Tensor | None) -> None:
    """Raise ``TypeError`` unless ``mask`` is boolean, or None."""
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean; got {mask.dtype}")


def check_broadcast(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raise ``ValueError`` unless ``tensor`` broadcasts to ``shape`` without enlarging it."""
    fits = tensor.ndim <= len(shape)
    if fits:
        for size, target in zip(reversed(tensor.shape), reversed(shape), strict=False):
            fits = fits and (size == 1 or size == target)
    if not fits:
        raise ValueError(f"{name} must broadcast to shape {tuple(shape)}; got {tuple(tensor.shape)}")


def check_values(
    name: str,
    tensor: Tensor | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Raise ``ValueError`` unless all values are finite and in [low, high]; (low, high] if ``open_low``."""
    if tensor is None or not reads_values(tensor):
        return
    values = tensor.detach()
    extremes = _read(lambda: torch.aminmax(values)) if values.numel() else None
    if extremes is None:
        return
    # One pass over the values; NaN is both extremes.
    smallest, largest = extremes
    above = low < smallest if open_low else low <= smallest
    if above and largest <= high and -math.inf < smallest and largest < math.inf:
        return

    def is_fine(values: Tensor) -> Tensor:
        fine = values.isfinite() & (values > low if open_low else values >= low)
        return fine if high == math.inf else fine & (values <= high)

    allowed = "finite"
    if low > -math.inf or high < math.inf:
        allowed = "finite and in " + _interval(low, high, open_low)
    _raise_at_first_bad(name, values, is_fine, allowed)


def check_distribution(name: str, probabilities: Tensor, *, tolerance: float = 1e-3) -> None:
    """Raise ``ValueError`` unless the last dimension holds non-negative numbers that sum to 1."""
    if not reads_values(probabilities):
        return
    values = probabilities.detach()
    sums = values.sum(-1, dtype=torch.promote_types(values.dtype, torch.float32))
    # A bfloat16 probability carries an error of up to 2^-9 of itself, hence so does their sum.
    slack = max(tolerance, torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0)
    if not values.numel():
        return
    read = _read(lambda: (values.amin(), *torch.aminmax(sums)))
    if read is None:
        return
    smallest, least, most = read  # an infinite or NaN probability shows in its sum
    if smallest >= 0 and 1 - slack <= least and most <= 1 + slack:
        return
    check_values(name, values, 0.0)
    _raise_at_first_bad(
        f"the sum of {name} over its last dimension",
        sums,
        lambda s: (s - 1).abs() <= slack,
        f"1 within {slack:g}",
    )


def check_indices(name: str, indices: Tensor, low: int, high: int) -> None:
    """Raise unless ``indices`` is an integer tensor (``TypeError``) within low..high (``ValueError``)."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers; got {indices.dtype}")
    if not reads_values(indices) or not indices.numel():
        return
    extremes = _read(lambda: torch.aminmax(indices))
    if extremes is not None and not (low <= extremes[0] and extremes[1] <= high):
        _raise_at_first_bad(
            name, indices, lambda values: (values >= low) & (values <= high), f"in [{low}, {high}]"
        )


def _interval(low: float, high: float, open_low: bool) -> str:
    left = "(" if open_low or low == -math.inf else "["
    return f"{left}{low:g}, {high:g}{')' if high == math.inf else ']'}"


def _read(numbers: Callable[[], tuple[Tensor, ...]]) -> tuple[float, ...] | None:
    """Scalars as plain numbers; None where nothing can be read: inside vmap, or of tensors without values."""
    try:
        return tuple(float(number) for number in numbers())
    except RuntimeError:
        return None


def _raise_at_first_bad(name: str, values: Tensor, is_fine: Callable[[Tensor], Tensor], allowed: str) -> None:
    """Raise ``ValueError`` with the first value that is not fine; values must be readable."""
    fine = is_fine(values)
    bad = (~fine).nonzero()
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name} must be {allowed}; got {values[where].item()!r} at index {where}")


def as_compute(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in one floating type: float64 if any is float64, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)


def broadcast_double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in float64 and in one shape; ``ValueError`` if there is none."""
    try:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"arguments must broadcast to one shape; got {shapes}") from error
    return tuple(tensor.double().expand(shape) for tensor in tensors)


def compared(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards of pairs in one floating type; ``ValueError`` unless they are finite and of one shape."""
    check_same_shape(chosen=chosen, rejected=rejected)
    check_values("chosen", chosen)
    check_values("rejected", rejected)
    first, second = as_compute(chosen, rejected)
    return first, second


def reduce_loss(loss: Tensor, reduction: Reduction, weight: Tensor | None = None) -> Tensor:
    """Weigh and reduce a loss; nothing to average gives a zero that keeps its gradient path.

    Args:
        loss: Losses of any shape.
        reduction: ``"mean"`` is sum(weight * loss) / sum(weight), ``"sum"`` and ``"none"`` multiply only.
        weight: Weights >= 0 that broadcast to the shape of ``loss``.

    Returns:
        A scalar, or for ``"none"`` the weighted losses.

    Raises:
        ValueError: If ``reduction`` is unknown, or ``weight`` does not fit or is negative.
    """
    check_choice("reduction", reduction, _REDUCTIONS)
    if weight is None:
        if reduction == "none":
            return loss
        total = loss.sum()
        return total if reduction == "sum" else total / max(loss.numel(), 1)
    check_broadcast("weight", weight, loss.shape)
    check_values("weight", weight, 0.0)
    weight = weight.to(loss.dtype).expand(loss.shape)
    loss = loss * weight
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    mass = weight.sum()
    return total / torch.where(mass > 0, mass, torch.ones_like(mass))


def safe_norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension: no overflow, and gradient zero at zero."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    squares = (x / largest).square().sum(-1)
    positive = squares > 0
    return largest.squeeze(-1) * torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def unit_vector(x: Tensor) -> Tensor:
    """``x`` at length one over the last dimension; zero stays zero, with a finite gradient."""
    tiny = torch.finfo(x.dtype).tiny
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest >= tiny, largest, 1.0)  # subnormal rows count as zero
    norm = safe_norm(x).unsqueeze(-1)
    return x / torch.where(norm >= 1, norm, 1.0)
