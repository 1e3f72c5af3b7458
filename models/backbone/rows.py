"""Tensor operations on rows: masks of shared rows, separating them, pooling by index."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.columns import COLUMNS

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = [
    "attention_bias",
    "block_mask",
    "length_chunks",
    "pad_to_multiple",
    "places",
    "pool",
    "repeat",
    "separate_rows",
    "take_rows",
    "with_tokens",
]

REPEATED = frozenset(column.name for column in COLUMNS if column.item in ("record", "response")) | {
    "input_ids",
    "position_ids",
    "segment_ids",
    "prompt_features",
}
"""Entries of a batch that hold something for each row, record or response."""


def attention_bias(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask of shared rows: a token sees its own segment and the prefix, causally.

    Args:
        segment_ids: (N, L) int64; 0 prefix, 1..k response, -1 padding.
        dtype: Of the result: an additive mask is right with SDPA and with eager attention alike, and SDPA
            would convert a boolean one anew in every layer.

    Returns:
        (N, 1, L, L); 0 where a token may look, the dtype's lowest value elsewhere. Padding sees padding, so
        that no row of the softmax is empty.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    allowed = ((key == query) | ((key == 0) & (query > 0))).tril()
    bias = torch.zeros(allowed.shape, dtype=dtype, device=segment_ids.device)
    return bias.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def block_mask(segment_ids: Tensor) -> "BlockMask":
    """The same mask for FlexAttention: blocks in which nothing may look are never computed.

    Args:
        segment_ids: (N, L) int64.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = segment_ids[row, query], segment_ids[row, key]
        return (query >= key) & ((mine == other) | ((other == 0) & (mine > 0)))

    rows, length = segment_ids.shape
    return create_block_mask(allowed, rows, None, length, length, device=str(segment_ids.device))


def pad_to_multiple(batch: PreferenceBatch, multiple: int) -> PreferenceBatch:
    """Lengthen the rows with padding to a multiple of ``multiple`` columns; indices stay as they are."""
    missing = -batch["input_ids"].shape[1] % multiple
    if not missing:
        return batch
    columns = cast(Mapping[str, Tensor], batch)
    padded = {
        name: nn.functional.pad(columns[name], (0, missing), value=fill)
        for name, fill in (("input_ids", 0), ("position_ids", 0), ("segment_ids", -1))
    }
    return cast(PreferenceBatch, {**batch, **padded})


def separate_rows(batch: PreferenceBatch) -> PreferenceBatch:
    """One row per response instead of shared ones; same keys, equal scores.

    Meant for batches that were collated for another network: it reads the longest length back from the
    device once. A data module that knows the layout builds such rows in the collator.

    Args:
        batch: Token batch in the shared layout.

    Returns:
        The batch with (R, L') rows; every other entry is kept.
    """
    row, end = batch["response_row"], batch["response_end"]
    segments = batch["segment_ids"]
    segment = segments[row, end]  # the response's number in its row
    mine = (segments[row] == 0) | (segments[row] == segment[:, None])
    lengths = mine.sum(dim=1)
    width = int(lengths.max())  # waits for the device
    # A stable sort brings the row's own columns to the front in their order.
    columns = torch.argsort(~mine, dim=1, stable=True)[:, :width]
    real = torch.arange(width, device=row.device)[None] < lengths[:, None]

    def take(name: str, fill: int) -> Tensor:
        values = cast(Mapping[str, Tensor], batch)[name][row].gather(1, columns)
        return values.masked_fill(~real, fill)

    separate = {
        "input_ids": take("input_ids", 0),
        "position_ids": take("position_ids", 0),
        "segment_ids": take("segment_ids", -1).clamp(max=1),
        "response_row": torch.arange(len(row), device=row.device),
        "response_end": lengths - 1,
        "row_lengths": lengths.tolist(),
    }
    return cast(PreferenceBatch, {**batch, **separate})


def length_chunks(lengths: Sequence[int], *, overhead: int = 256) -> list[list[int]]:
    """Rows in groups of similar length, so that short ones are not run at the longest one's width.

    Args:
        lengths: Tokens of each row.
        overhead: Padded tokens that must be saved to be worth another pass.

    Returns:
        Row numbers of each group, longest rows first; a single group where nothing is worth dividing.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    chunks: list[list[int]] = [[]]
    for place, row in enumerate(order):
        if chunks[-1]:
            longest = lengths[chunks[-1][0]]
            remaining = len(order) - place
            if lengths[row] < 0.75 * longest and remaining * (longest - lengths[row]) > overhead:
                chunks.append([])
        chunks[-1].append(row)
    return chunks


def places(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers that the host knows, as indices on a device, int64; the host does not wait until they are there."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def row_order(chunks: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Where every row stands among the rows of the chunks, (N,) int64."""
    return torch.argsort(places([row for rows in chunks for row in rows], device))


def with_tokens(batch: PreferenceBatch) -> PreferenceBatch:
    """The batch, unless it holds stored features."""
    if "features" in batch:
        raise ValueError("stored features tell no states of tokens: set loader.features=null")
    return batch


def take_rows(batch: PreferenceBatch, rows: Sequence[int]) -> PreferenceBatch:
    """Some rows of a batch in the separate layout, no wider than the longest of them.

    Args:
        batch: One response in each row; ``row_lengths`` must be there.
        rows: Row numbers.
    """
    lengths = [batch["row_lengths"][row] for row in rows]
    index = places(rows, batch["input_ids"].device)
    part: dict[str, object] = {
        name: batch[name][index, : max(lengths)] for name in ("input_ids", "position_ids", "segment_ids")
    }
    part["response_row"] = torch.arange(len(rows), device=index.device)
    part["response_end"] = batch["response_end"][index]
    return cast(PreferenceBatch, {**part, "row_lengths": lengths})


def repeat(batch: PreferenceBatch, times: int) -> PreferenceBatch:
    """The batch with every row several times: one pass gives each response as often, under dropout masks of their own.

    Copies follow each other whole: response r of copy c is response c R + r, of row c N + n and prompt likewise.
    Judgements and requests are not repeated; they point at the first copy's responses.

    Args:
        batch: Token batch, in either layout.
        times: Number of copies, >= 1.

    Returns:
        The batch with ``times`` as many rows, records and responses; every other entry is kept.
    """
    steps = {"response_row": len(batch["input_ids"]), "response_prompt": len(batch.get("id", ()))}
    entries = cast(Mapping[str, object], batch)
    copies: dict[str, object] = dict(entries)
    for name, value in entries.items():
        if name in REPEATED and isinstance(value, Tensor):
            copies[name] = value.repeat(times, *[1] * (value.ndim - 1))
            if step := steps.get(name):
                offset = step * torch.arange(times, device=value.device)
                copies[name] = (value + offset[:, None]).flatten()
        elif isinstance(value, list) and name in ("id", "row_lengths"):
            copies[name] = value * times
    if "prompts" in batch:
        copies["prompts"] = repeat(batch["prompts"], times)
    return cast(PreferenceBatch, copies)


def pool(hidden: Tensor, batch: PreferenceBatch, pooling: str) -> Tensor:
    """One state per response, found by index and never by token id.

    Args:
        hidden: (N, L, H).
        batch: The rows that gave it.
        pooling: ``last``, ``mean`` (over the prefix and the response's own tokens) or ``cls``.

    Returns:
        (R, H), in the dtype of ``hidden`` (means are taken in float32).

    Raises:
        ValueError: If ``pooling`` is unknown.
    """
    row, end = batch["response_row"], batch["response_end"]
    if pooling == "last":
        return hidden[row, end]
    if pooling == "cls":
        return hidden[row, 0]
    if pooling != "mean":
        raise ValueError(f"pooling must be last, mean or cls, got {pooling!r}")
    rows, length, size = hidden.shape
    segments = batch["segment_ids"]
    # Slots: every response, then every row's prefix, then one for padding.
    first = torch.searchsorted(row, torch.arange(rows, device=row.device))
    responses = len(row)
    slot = torch.where(
        segments > 0,
        first[:, None] + segments - 1,
        responses + torch.arange(rows, device=row.device)[:, None],
    )
    slot = slot.masked_fill(segments < 0, responses + rows).flatten()
    sums = hidden.new_zeros((responses + rows + 1, size), dtype=torch.float32)
    sums = sums.index_add(0, slot, hidden.reshape(-1, size).float())
    counts = torch.zeros(responses + rows + 1, device=hidden.device).index_add(
        0, slot, torch.ones(rows * length, device=hidden.device)
    )
    total = sums[:responses] + sums[responses + row]
    return (total / (counts[:responses] + counts[responses + row])[:, None]).to(hidden.dtype)
