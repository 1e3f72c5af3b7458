"""Packed rows: a batch runs as one row without padding, and only attention sees separate responses.

Everything but attention runs once for each real token, on every device. Attention takes one of three forms, by what there is:

* pieces (:mod:`.attention`) on the CPU;
* FlexAttention on CUDA, with a block mask over the one row;
* plain operations on copies, branches of similar lengths together, where attention has dropout or a cap on scores, is
  differentiated twice, or where there are many small pieces.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch

from .attention import AttentionPlan, Branch, grouped_attention, piece_attention
from .rows import places, segment_lengths

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["PACKED", "KeysKnown", "PackedRows", "packed_attention", "packed_rows", "register"]

PACKED = "pluralign_packed"
"""Name under which transformers knows :func:`packed_attention`."""

HARMLESS = frozenset(("cache_position", "is_causal", "output_attentions", "position_ids", "use_cache"))
"""Arguments that networks hand to attention besides its own, and that change nothing in its result here. A name that is not
known may be a bias or a choice of keys that acts on long texts alone, so that no trial would show that it was left out."""

SMALL_PIECE = 12_500
"""Numbers of keys, and as many of values, per piece up to which it is quicker to copy them: a piece costs about 0.1 ms, both
passes together, and a number some nanoseconds."""

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
    lengths: list[list[int]]
    """Tokens of every row's prefix and of each of its responses."""
    reads: tuple[Tensor, Tensor]
    """Row and column at which each response is read, (R,) int64 each."""
    flex: bool = False
    """Whether FlexAttention is to be used where it can be."""
    plain: bool = False
    """Whether attention is to be made of plain operations in any case."""
    together: bool = True
    """Whether many small pieces run together, on copies."""
    ends_only: bool = False
    """Whether the last layer is to give states of the responses' ends alone."""
    keeps: list[Tensor] | None = None
    """Where keys and values are put in a pass that is after them alone."""
    known: tuple[Tensor, Tensor] | None = None
    """Keys and values of all tokens, in a pass whose queries are the responses' ends."""
    masks: dict[tuple[int | None, bool], "BlockMask"] = field(default_factory=dict)
    """Masks of FlexAttention that were made, by window and by whether queries are the ends alone."""

    @cached_property
    def ends_plan(self) -> AttentionPlan:
        """Of the responses' ends alone, at whatever columns the batch says; reads them from the device, which waits for it."""
        starts = _starts(self.lengths)
        at = zip(*(numbers.tolist() for numbers in self.reads), strict=True)
        ends = [_end_branch(i, self.lengths[row], starts[row], column) for i, (row, column) in enumerate(at)]
        return AttentionPlan(ends, covers=False)

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
        # What fills up the last block is a row of its own among the keys, and the first token among ends: none sees nothing.
        keys = nn.functional.pad(keys, (0, -keys.shape[1] % BLOCK), value=-1)
        queries = keys
        if chosen is not None:
            queries = keys[:, nn.functional.pad(chosen, (0, -len(chosen) % BLOCK))]

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

    Raises:
        ValueError: If the batch's ``segment_lengths`` do not fit its ``segment_ids``.
    """
    segments, row, end = batch["segment_ids"], batch["response_row"], batch["response_end"]
    width, device = segments.shape[1], segments.device
    lengths = segment_lengths(batch)
    sizes, starts = [sum(each) for each in lengths], _starts(lengths)
    rows = torch.repeat_interleave(places(sizes, device), output_size=starts[-1])
    cells = rows * width + torch.arange(starts[-1], device=device) - places(starts, device)[rows]
    _check_lengths(segments, lengths, cells)
    return PackedRows(
        cells=cells,
        ends=places(starts, device)[row] + end,
        segments=segments.flatten()[cells],
        positions=batch["position_ids"].flatten()[cells],
        rows=rows,
        plan=AttentionPlan(_branches(lengths, starts), covers=True),
        lengths=lengths,
        reads=(row, end),
        flex=flex,
        plain=plain,
    )


def _starts(lengths: Sequence[Sequence[int]]) -> list[int]:
    """Place of every row's first token among all, and their number."""
    return [0, *accumulate(sum(each) for each in lengths)]


def _branches(lengths: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Branch]:
    """Branches of all tokens."""
    branches: list[Branch] = []
    for (prefix, *own), start in zip(lengths, starts, strict=False):
        if len(own) == 1:  # nothing branches off
            whole = (start, start + prefix + own[0])
            branches.append(Branch(whole, (start, start), whole))
            continue
        shared, at = (start, start + prefix), start + prefix
        if prefix:
            branches.append(Branch(shared, (start, start), shared))
        for length in own:
            if length:
                branches.append(Branch((at, at + length), shared, (at, at + length)))
            at += length
    return branches


def _end_branch(number: int, lengths: Sequence[int], start: int, column: int) -> Branch:
    """What the token at a column of a row sees, as the query of a number."""
    query, (prefix, *own) = (number, number + 1), lengths
    stop = start + column + 1
    if column < prefix or len(own) == 1:
        return Branch(query, (start, start), (start, stop))
    before = [*accumulate(lengths)]  # columns at which the responses begin
    first = start + before[bisect_right(before, column) - 1]
    return Branch(query, (start, start + prefix), (first, stop))


def _check_lengths(segments: Tensor, lengths: Sequence[Sequence[int]], cells: Tensor) -> None:
    """Compare ``segment_ids`` with the lengths; on a GPU, which would have to be waited for, no more than their size."""
    fits = max(map(sum, lengths), default=0) <= segments.shape[1]
    if fits and segments.device.type == "cpu":
        numbers = torch.tensor([i for each in lengths for i in range(len(each))])
        sizes = torch.tensor([size for each in lengths for size in each], dtype=torch.int64)
        found = segments.flatten()[cells]
        fits = int((segments >= 0).sum()) == len(cells) and torch.equal(
            found, numbers.repeat_interleave(sizes).to(found)
        )
    if not fits:
        raise ValueError(
            "segment_lengths do not fit segment_ids: every row holds its prefix (0), then its responses (1, 2, ...), then "
            "padding (-1), and segment_lengths says how many tokens of each; change both, or leave segment_lengths out"
        )


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
        ValueError: If a mask is given, or an argument that is not known and may change the result.
        KeysKnown: In a pass that is after keys and values alone.
    """
    foreign = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    if attention_mask is not None or foreign:
        raise ValueError(f"packed attention takes no {', '.join(foreign or ['mask'])}")
    if packed.keeps is not None:
        packed.keeps += [key, value]
        raise KeysKnown
    if packed.known is not None:
        key, value = packed.known
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # The kernels are differentiable once; whoever wants more switches them off (torch.nn.attention.sdpa_kernel).
    plain = packed.plain or dropout > 0 or not torch.backends.cuda.flash_sdp_enabled()
    if packed.flex and not plain:
        return _flex(
            module, query, key, value, packed.block_mask(sliding_window), scale, softcap, s_aux
        ), None
    plan = packed.plan if packed.known is None else packed.ends_plan
    other = plain or softcap is not None or query.device.type != "cpu" or query.shape[3] != value.shape[3]
    if other or (packed.together and _small(plan, query, sliding_window)):
        attended = grouped_attention(
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


def _small(plan: AttentionPlan, query: Tensor, window: int | None) -> bool:
    """Whether pieces are so small that calls cost more than copies."""
    calls = sum(map(len, plan.pieces(window)))
    return plan.num_keys * query.shape[1] * query.shape[3] < SMALL_PIECE * calls


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
