"""Ragged tensors as Arrow lists and back, bit for bit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["KEPT", "list_column", "padded"]

KEPT = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
"""Kinds of numbers that a file's float32 holds exactly."""


def list_column(values: Tensor, mask: Tensor) -> Any:  # noqa: ANN401  pyarrow has no types
    """What stands under a mask, one list a row.

    Args:
        values: (S, T, ...), int64 (kept as int32) or of a kind in :data:`KEPT` (kept as float32).
        mask: (S, T), bool, true at the beginning of each row.

    Returns:
        Arrow lists, S of them; what stands at one place is flattened.

    Raises:
        TypeError: If the numbers are of another kind, which float32 would round.
        ValueError: If an integer is out of the range of int32.
    """
    import pyarrow as pa

    values, mask = values.detach().cpu(), mask.cpu()
    size = values[0, 0].numel() if values.ndim > 2 else 1
    flat = values[mask].flatten()
    if flat.dtype == torch.int64:
        bounds = torch.iinfo(torch.int32)
        if len(flat) and (flat.max() > bounds.max or flat.min() < bounds.min):
            raise ValueError(f"integers must be within int32, got {int(flat.min())} to {int(flat.max())}")
        flat = flat.int()
    elif flat.dtype in KEPT.values():
        flat = flat.float()
    else:
        raise TypeError(
            f"numbers must be int64, {', '.join(KEPT)}; got {str(flat.dtype).removeprefix('torch.')}"
        )
    ends = (mask.sum(1) * size).cumsum(0).int()
    offsets = torch.cat([ends.new_zeros(1), ends])
    return pa.ListArray.from_arrays(pa.array(offsets.numpy()), pa.array(flat.numpy()))


def padded(
    column: Any,  # noqa: ANN401  pyarrow has no types
    lengths: Tensor,
    shape: Sequence[int],
    *,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The tensor of :func:`list_column`, as short as its longest row.

    Args:
        column: Arrow lists, S of them.
        lengths: Places of each row, (S,) int64.
        shape: Of what stands at one place.
        padding: What stands behind a row's end.
        dtype: Kind of the numbers.

    Returns:
        (S, T, *shape).

    Raises:
        ValueError: If a list's length is not that of its row.
    """
    lists = column.combine_chunks()
    size = torch.Size(shape).numel()
    there = torch.tensor(lists.value_lengths().to_numpy(zero_copy_only=False).astype("int64"))
    if not torch.equal(there, lengths * size):
        raise ValueError("lists differ in length from what the file says of them")
    longest = int(lengths.max()) if len(lengths) else 0
    values = torch.full((len(lengths), longest, *shape), padding, dtype=dtype)
    mask = torch.arange(longest) < lengths[:, None]
    flat = torch.tensor(lists.flatten().to_numpy(zero_copy_only=False))
    values[mask] = flat.to(dtype).unflatten(0, (-1, *shape)) if shape else flat.to(dtype)
    return values
