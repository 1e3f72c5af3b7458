"""Packed rows: a batch runs as one row without padding, and only attention sees separate responses."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .rows import length_chunks

__all__ = ["PACKED", "PackedRows", "packed_attention", "packed_rows", "register"]

PACKED = "pluralign_packed"
"""Name under which transformers knows :func:`packed_attention`."""

FOREIGN = ("sliding_window", "softcap", "s_aux", "head_mask")
"""Arguments that some networks hand to attention and that would change its result."""


class PackedRows(NamedTuple):
    """Where tokens stand when a batch runs as one row without padding, and in causal rows for attention.

    T tokens of the batch; R_i responses of at most S_i tokens, prefix included, in group i.
    """

    cells: Tensor
    """(T,) int64: place of every token in the flattened (N, L) batch."""
    copies: list[Tensor]
    """Groups of responses of similar length, (R_i, S_i) int64: token in every place of their causal rows, prefixes
    repeated; any token in the padding."""
    place: Tensor
    """(T,) int64: place in the flattened, concatenated groups at which a token's attention is read; one of the
    copies of a prefix."""


def register() -> None:
    """Make :func:`packed_attention` known to transformers under :data:`PACKED`; once in every process."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_rows(batch: PreferenceBatch) -> PackedRows:
    """Places of a batch's tokens, for :func:`packed_attention`; waits for the device.

    Args:
        batch: Token batch in either layout.
    """
    segments, row, end = batch["segment_ids"], batch["response_row"], batch["response_end"]
    length = segments.shape[1]
    cells = (segments >= 0).flatten().nonzero().squeeze(1)
    token = torch.zeros(segments.numel(), dtype=torch.int64, device=segments.device)
    token[cells] = torch.arange(len(cells), device=cells.device)
    mine = (segments[row] == 0) | (segments[row] == segments[row, end][:, None])
    lengths = mine.sum(dim=1)
    # A stable sort brings a response's own columns to the front in their order.
    tokens = token[row[:, None] * length + torch.argsort(~mine, dim=1, stable=True)]
    copies = []
    place = torch.zeros_like(cells)
    offset = 0
    known = lengths.tolist()
    for group in length_chunks(known):
        index = torch.tensor(group, device=row.device)
        width = known[group[0]]
        real = torch.arange(width, device=row.device)[None] < lengths[index, None]
        chosen = tokens[index, :width].masked_fill(~real, 0)
        copies.append(chosen)
        # Every copy of a prefix has the same attention; the last one written is the one that is read.
        place[chosen[real]] = offset + real.flatten().nonzero().squeeze(1)
        offset += real.numel()
    return PackedRows(cells, copies, place)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedRows,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, to be registered with transformers.

    Everything but attention runs once per token and never on padding. For attention, queries, keys and values are
    copied into one causal row per response, so that no mask is needed and no score between two responses is
    computed: cost grows with the sum of the squared lengths of the responses, not with the square of the sum.

    Args:
        module: The attention layer; unused.
        query: (1, heads, T, D).
        key: (1, key heads, T, D).
        value: (1, key heads, T, D).
        attention_mask: Must be None.
        packed: Where the tokens stand.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        dropout: Of the attention weights, in [0, 1).
        **others: Whatever else the network hands on.

    Returns:
        (1, T, heads, D), and no weights.

    Raises:
        ValueError: If a mask is given, or an argument that would change the result.
    """
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    if attention_mask is not None or foreign:
        raise ValueError(f"packed attention takes no mask and no {', '.join(foreign or FOREIGN)}")

    def rows(states: Tensor, copies: Tensor) -> Tensor:
        _, heads, _, size = states.shape
        flat = states[0].transpose(0, 1).reshape(-1, heads * size).index_select(0, copies.flatten())
        return flat.view(*copies.shape, heads, size).transpose(1, 2)

    heads, size = query.shape[1], value.shape[3]
    attended = [
        nn.functional.scaled_dot_product_attention(
            rows(query, copies),
            rows(key, copies),
            rows(value, copies),
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        .transpose(1, 2)
        .reshape(-1, heads * size)
        for copies in packed.copies
    ]
    flat = torch.cat(attended).index_select(0, packed.place)
    return flat.view(1, -1, heads, size), None
