"""Packed rows: a batch runs as one row without padding, and only attention sees separate responses.

Everything but attention runs once for each real token, on every device. Attention takes one of three forms, by what there is:

* pieces (:mod:`.attention`) on the CPU;
* FlexAttention on CUDA, with a block mask over the one row;
* branch by branch from plain operations, where attention has dropout or a cap on scores, or is differentiated twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .attention import AttentionPlan, Branch, branch_attention, piece_attention
from .rows import places, segment_lengths

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["PACKED", "KeysKnown", "PackedRows", "packed_attention", "packed_rows", "register"]

PACKED = "pluralign_packed"
"""Name under which transformers knows :func:`packed_attention`."""

FOREIGN = ("head_mask", "position_bias", "block_mask")
"""Arguments that some networks hand to attention and that would change its result."""

BLOCK = 128
"""Tokens in a block of FlexAttention's mask."""


class KeysKnown(Exception):
    """Raised by attention in a pass that is after keys and values alone; :class:`PackedRows` holds them then."""


@dataclass(eq=False)
class PackedRows:
    """Where tokens stand when a batch runs as one row without padding, and what each of them sees.

    T tokens of the batch, R responses.
    """

    cells: Tensor
    """(T,) int64: place of every token in the flattened (N, L) batch."""
    ends: Tensor
    """(R,) int64: token at which each response is read."""
    segments: Tensor
    """(T,) int64: 0 prefix, 1..k response."""
    positions: Tensor
    """(T,) int64: place in its text."""
    rows: Tensor
    """(T,) int64: row of the batch."""
    plan: AttentionPlan
    """Of all tokens."""
    ends_plan: AttentionPlan
    """Of the responses' ends alone."""
    flex: bool = False
    """Whether FlexAttention is to be used where it can be."""
    plain: bool = False
    """Whether attention is to be made of plain operations in any case."""
    ends_only: bool = False
    """Whether the last layer is to give states of the responses' ends alone."""
    keeps: list[Tensor] | None = None
    """Where keys and values are put in a pass that is after them alone."""
    known: tuple[Tensor, Tensor] | None = None
    """Keys and values of all tokens, in a pass whose queries are the responses' ends."""
    masks: dict[tuple[int | None, bool], "BlockMask"] = field(default_factory=dict)
    """Masks of FlexAttention that were made, by window and by whether queries are the ends alone."""

    def block_mask(self, window: int | None) -> "BlockMask":
        """The mask for FlexAttention: blocks in which nothing may look are never computed.

        Args:
            window: How many of the last tokens a query sees, itself included; None for all.
        """
        if window is not None and window >= self.plan.longest:
            window = None
        kind = (window, self.known is not None)
        if kind not in self.masks:
            self.masks[kind] = self._make_mask(window, self.ends if self.known is not None else None)
        return self.masks[kind]

    def _make_mask(self, window: int | None, chosen: Tensor | None) -> "BlockMask":
        from torch.nn.attention.flex_attention import create_block_mask

        places_of_keys = torch.arange(len(self.cells), device=self.cells.device)
        keys = torch.stack([self.rows, self.segments, self.positions, places_of_keys])
        queries = keys if chosen is None else keys[:, chosen]
        # What fills up the last block is a row of its own, so that no query sees nothing.
        keys, queries = (nn.functional.pad(x, (0, -x.shape[1] % BLOCK), value=-1) for x in (keys, queries))

        def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = queries[0, query] == keys[0, key]
            seen = (queries[1, query] == keys[1, key]) | (keys[1, key] == 0)
            mine = same & seen & (queries[3, query] >= keys[3, key])
            if window is not None:
                mine = mine & (queries[2, query] - keys[2, key] < window)
            return mine

        return create_block_mask(
            allowed, None, None, queries.shape[1], keys.shape[1], device=str(self.cells.device)
        )

    def after_keys(self, keeps: list[Tensor]) -> "PackedRows":
        """The same rows for a pass that is after a layer's keys and values alone, which are appended to ``keeps``."""
        return replace(self, keeps=keeps)

    def at_ends(self, key: Tensor, value: Tensor) -> "PackedRows":
        """The same rows for a pass whose queries are the responses' ends.

        Args:
            key: (1, key heads, T, D), of all tokens.
            value: (1, key heads, T, V).
        """
        return replace(self, known=(key, value))


def register() -> None:
    """Make :func:`packed_attention` known to transformers under :data:`PACKED`; once in every process."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_rows(batch: PreferenceBatch, *, flex: bool = False, plain: bool = False) -> PackedRows:
    """Places of a batch's tokens, for :func:`packed_attention`.

    Waits for no device where the batch says ``segment_lengths``.

    Args:
        batch: Token batch in either layout.
        flex: As in :class:`PackedRows`.
        plain: Likewise.
    """
    segments, row, end = batch["segment_ids"], batch["response_row"], batch["response_end"]
    width, device = segments.shape[1], segments.device
    lengths = segment_lengths(batch)
    sizes = [sum(each) for each in lengths]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    rows = places([i for i, size in enumerate(sizes) for _ in range(size)], device)
    cells = rows * width + torch.arange(starts[-1], device=device) - places(starts, device)[rows]
    branches, ends = _branches(lengths, starts)
    if device.type == "cpu":  # read at whatever columns the batch says
        at = list(zip(row.tolist(), end.tolist(), strict=True))
        ends = [_end_branch(i, lengths[r], starts[r], column) for i, (r, column) in enumerate(at)]
    return PackedRows(
        cells=cells,
        ends=places(starts, device)[row] + end,
        segments=segments.flatten()[cells],
        positions=batch["position_ids"].flatten()[cells],
        rows=rows,
        plan=AttentionPlan(branches, covers=True),
        ends_plan=AttentionPlan(ends, covers=False),
        flex=flex,
        plain=plain,
    )


def _branches(lengths: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[list[Branch], list[Branch]]:
    """Branches of all tokens, and those of every response's last token."""
    branches: list[Branch] = []
    ends: list[Branch] = []
    for (prefix, *own), start in zip(lengths, starts, strict=False):
        if len(own) == 1:  # nothing branches off
            whole = (start, start + prefix + own[0])
            branches.append(Branch(whole, (start, start), whole))
            ends.append(Branch((len(ends), len(ends) + 1), (start, start), whole))
            continue
        shared, at = (start, start + prefix), start + prefix
        if prefix:
            branches.append(Branch(shared, (start, start), shared))
        for length in own:
            mine = (at, at + length)
            branches.append(Branch(mine, shared, mine))
            ends.append(Branch((len(ends), len(ends) + 1), shared, mine))
            at += length
    return branches, ends


def _end_branch(number: int, lengths: Sequence[int], start: int, column: int) -> Branch:
    """What the token at a column of a row sees, as the query of a number."""
    query, (prefix, *own) = (number, number + 1), lengths
    stop = start + column + 1
    if column < prefix or len(own) == 1:
        return Branch(query, (start, start), (start, stop))
    first = start + prefix
    for length in own:
        if stop <= first + length:
            break
        first += length
    return Branch(query, (start, start + prefix), (first, stop))


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, to be registered with transformers.

    Args:
        module: The attention layer.
        query: (1, heads, T, D); (1, heads, R, D) where keys are known and queries are the responses' ends.
        key: (1, key heads, T, D).
        value: (1, key heads, T, V).
        attention_mask: Must be None.
        packed: Where the tokens stand.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        dropout: Of the attention weights, in [0, 1).
        sliding_window: How many of the last tokens a token sees, itself included; None for all.
        softcap: Bound of the scores, by a hyperbolic tangent; None without.
        s_aux: (heads,) scores of attention sinks; None without.
        **others: Whatever else the network hands on.

    Returns:
        (1, T or R, heads, V), and no weights.

    Raises:
        ValueError: If a mask is given, or an argument that would change the result.
        KeysKnown: In a pass that is after keys and values alone.
    """
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    if attention_mask is not None or foreign:
        raise ValueError(f"packed attention takes no mask and no {', '.join(foreign or FOREIGN)}")
    if packed.keeps is not None:
        packed.keeps += [key, value]
        raise KeysKnown
    plan = packed.plan
    if packed.known is not None:
        (key, value), plan = packed.known, packed.ends_plan
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # The kernels are differentiable once; whoever wants more switches them off (torch.nn.attention.sdpa_kernel).
    plain = packed.plain or dropout > 0 or not torch.backends.cuda.flash_sdp_enabled()
    if packed.flex and not plain:
        return _flex(
            module, query, key, value, packed.block_mask(sliding_window), scale, softcap, s_aux
        ), None
    if plain or softcap is not None or query.device.type != "cpu" or query.shape[3] != value.shape[3]:
        attended = branch_attention(
            query,
            key,
            value,
            plan,
            scale=scale,
            window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
            dropout=dropout,
        )
    else:
        attended = piece_attention(query, key, value, plan, scale=scale, window=sliding_window, sinks=s_aux)
    return attended.transpose(1, 2), None


def _flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: "BlockMask",
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """FlexAttention as transformers compiles it, (1, Q, heads, V); whole blocks, so that few shapes are compiled."""
    from transformers.integrations.flex_attention import flex_attention_forward

    number = query.shape[2]
    # Under autocast, rotary embeddings leave queries and keys in float32 beside values of 16 bits.
    query, key = query.to(value.dtype), key.to(value.dtype)
    query, key, value = (
        nn.functional.pad(x, (0, 0, 0, -x.shape[2] % BLOCK)) if x.shape[2] % BLOCK else x
        for x in (query, key, value)
    )
    attended, _ = flex_attention_forward(
        module, query, key, value, mask, scaling=scale, softcap=softcap, s_aux=sinks
    )
    return attended[:, :number]
