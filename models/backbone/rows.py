"""Tensor operations on rows: separating them, taking some, repeating them, pooling by index."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.columns import COLUMNS

__all__ = [
    "length_chunks",
    "places",
    "pool",
    "repeat",
    "segment_lengths",
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


def segment_lengths(batch: PreferenceBatch) -> list[list[int]]:
    """Tokens of every row's prefix and of each of its responses, in their order.

    Read from the device, which waits for it, where the batch does not say.

    Args:
        batch: Token batch in either layout.
    """
    segments = batch["segment_ids"]
    given = batch.get("segment_lengths")
    if given is not None and len(given) == len(segments):
        return given
    numbers: list[int] = (1 + segments.amax(1).clamp_min(0)).tolist()
    slots = segments.new_zeros((len(segments), 1 + max(numbers, default=1)))
    counts: list[list[int]] = slots.scatter_add_(1, segments + 1, torch.ones_like(segments)).tolist()
    return [own[1 : 1 + number] for own, number in zip(counts, numbers, strict=True)]


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
    lengths, shared = mine.sum(dim=1), (segments[row] == 0).sum(dim=1)
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
        "segment_lengths": torch.stack([shared, lengths - shared], dim=1).tolist(),
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
    if "segment_lengths" in batch:
        part["segment_lengths"] = [batch["segment_lengths"][row] for row in rows]
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
        elif isinstance(value, list) and name in ("id", "row_lengths", "segment_lengths"):
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
