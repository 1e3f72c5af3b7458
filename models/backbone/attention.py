"""Attention of packed rows on views of them: no token is copied, and no score between two responses is computed.

A *branch* is a run of tokens that goes on from a prefix: each sees the prefix and, causally, its own branch. Attention over
both is computed in *pieces*, of queries and keys that stand together, whose results are merged by their logarithms of sums
of exponentials. So a prefix attends to itself once, however many responses go on from it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .rows import length_chunks

__all__ = ["AttentionPlan", "Branch", "Group", "Piece", "grouped_attention", "piece_attention"]

Span = tuple[int, int]
"""First place and the place after the last."""


class Branch(NamedTuple):
    """Queries, and what they see: the last of them all of it, each before it one key less."""

    queries: Span
    """Places among the queries."""
    prefix: Span
    """Places of the prefix among the keys; empty where there is none."""
    own: Span
    """Places of the branch's own tokens among the keys, up to the last query's."""


class Piece(NamedTuple):
    """Queries and keys of one call of the kernel."""

    queries: Span
    keys: Span
    causal: bool
    """Whether query r sees keys 0..r alone; there are as many keys as queries then."""
    band: int | None
    """Query r sees keys above r + band alone; None for all of them."""


class Group(NamedTuple):
    """Branches that run together, padded."""

    queries: Tensor
    """(B, n) int64: places among the queries."""
    keys: Tensor
    """(B, k) int64: places among the keys."""
    hidden: Tensor
    """(B, 1, n, k) bool: what a query does not see; one that stands for nothing sees the first key."""
    biases: dict[torch.dtype, Tensor]
    """The same as numbers to be added to scores: made once for all layers, each of which keeps it for its backward pass."""

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to scores, 0 or minus infinity, (B, 1, n, k).

        Args:
            dtype: Of the scores.
        """
        if dtype not in self.biases:
            zeros = torch.zeros_like(self.hidden, dtype=dtype)
            self.biases[dtype] = zeros.masked_fill_(self.hidden, -torch.inf)
        return self.biases[dtype]


class AttentionPlan:
    """Which keys every query of packed rows sees, in plain numbers.

    Attributes:
        branches: Of all queries, in their order.
        covers: Whether the branches' own tokens are all of the keys, each once.
        longest: Keys of the query that sees most, without a window.
        num_keys: Keys of all branches, those of a prefix once for each.
    """

    def __init__(self, branches: Sequence[Branch], *, covers: bool) -> None:
        """Keep the branches.

        Args:
            branches: As the attribute.
            covers: As the attribute.
        """
        self.branches, self.covers = list(branches), covers
        self._seen = [_length(b.prefix) + _length(b.own) for b in branches]
        self.longest, self.num_keys = max(self._seen, default=0), sum(self._seen)
        self._pieces: dict[int | None, tuple[list[Piece], list[Piece]]] = {}
        self._groups: dict[int | None, tuple[list[Group], Tensor]] = {}

    def pieces(self, window: int | None) -> tuple[list[Piece], list[Piece]]:
        """The calls that attention consists of.

        Args:
            window: How many of the last tokens a query sees, itself included; None for all.

        Returns:
            Pieces that hold each query once, and others whose results are merged into theirs.
        """
        window = self._acting(window)
        if window not in self._pieces:
            self._pieces[window] = self._whole() if window is None else self._within(window)
        return self._pieces[window]

    def groups(self, window: int | None, device: torch.device) -> tuple[list[Group], Tensor]:
        """Branches in groups of similar lengths.

        Args:
            window: As in :meth:`pieces`.
            device: Where the indices are to be.

        Returns:
            The groups, and where each query stands in their flattened, concatenated queries, (Q,) int64.
        """
        window = self._acting(window)
        if window not in self._groups:
            chunks = [[self.branches[i] for i in chunk] for chunk in length_chunks(self._seen) if chunk]
            places_of = [_query_places(branches) for branches in chunks]
            order = torch.cat([queries[real] for queries, real in places_of])
            at = torch.cat([real.flatten() for _, real in places_of]).nonzero().squeeze(1)
            self._groups[window] = (
                [self._group(branches, window, device) for branches in chunks],
                at[order.argsort()].to(device, non_blocking=True),
            )
        return self._groups[window]

    @staticmethod
    def _group(branches: Sequence[Branch], window: int | None, device: torch.device) -> Group:
        """A group, on the device: what a query sees takes far more room than the numbers that it follows from."""
        queries, real = (part.to(device, non_blocking=True) for part in _query_places(branches))
        longest = max(_length(b.prefix) + _length(b.own) for b in branches)
        spans = torch.tensor(branches).to(device, non_blocking=True)  # (B, 3, 2)
        first, (count, prefix, own) = (
            spans[:, :, 0, None].unbind(1),
            (spans[:, :, 1] - spans[:, :, 0])[..., None].unbind(1),
        )
        seen = prefix + own
        row = torch.arange(queries.shape[1], device=device)
        column = torch.arange(longest, device=device)
        keys = torch.where(column < prefix, first[1] + column, first[2] + column - prefix).where(
            column < seen, 0
        )
        last = (row + seen - count)[:, :, None]  # what a query sees ends here
        visible = (column <= last) & (column < seen[:, :, None])
        if window is not None:
            visible &= column > last - window
        visible = torch.where(real[:, :, None], visible, column == 0)
        return Group(queries, keys, ~visible[:, None], {})

    def _acting(self, window: int | None) -> int | None:
        return None if window is None or window >= self.longest else window

    def _whole(self) -> tuple[list[Piece], list[Piece]]:
        first = [Piece(b.queries, b.own, _length(b.queries) > 1, None) for b in self.branches]
        more: list[Piece] = []
        for branch in self.branches:
            if not _length(branch.prefix):
                continue
            queries = branch.queries
            if more and more[-1].keys == branch.prefix and more[-1].queries[1] == queries[0]:
                queries = (more.pop().queries[0], queries[1])  # all that go on from one prefix at once
            more.append(Piece(queries, branch.prefix, False, None))
        return first, more

    def _within(self, window: int) -> tuple[list[Piece], list[Piece]]:
        """In runs of at most as many queries as the window is wide, so that none of them misses its own run."""
        first: list[Piece] = []
        more: list[Piece] = []
        for queries, prefix, own in self.branches:
            before = _length(own) - _length(queries)  # own tokens in front of the first query
            if before:  # one query, at the end
                start = max(own[0], own[1] - window)
                first.append(Piece(queries, (start, own[1]), False, None))
                more += _behind(queries, prefix, _length(prefix) + before, 0, window)
                continue
            for offset in range(0, _length(queries), window):
                run = (queries[0] + offset, min(queries[0] + offset + window, queries[1]))
                keys = (own[0] + offset, own[0] + offset + _length(run))
                first.append(Piece(run, keys, _length(run) > 1, None))
                position = _length(prefix) + offset
                more += _behind(run, (own[0], own[0] + offset), position, _length(prefix), window)
                more += _behind(run, prefix, position, 0, window)
        return first, more


def _query_places(branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """Places of padded branches' queries, and which of them are real, (B, n) each."""
    first, stop = torch.tensor([branch.queries for branch in branches])[..., None].unbind(1)
    row = torch.arange(int((stop - first).max()))
    real = row < stop - first
    return torch.where(real, first + row, 0), real


def _length(span: Span) -> int:
    return span[1] - span[0]


def _behind(run: Span, keys: Span, position: int, first_key: int, window: int) -> Iterator[Piece]:
    """The piece of queries and those of earlier keys that the window reaches; none if it reaches no key.

    Args:
        run: Queries.
        keys: All keys of one kind that stand before them.
        position: Of the first query in its text.
        first_key: Position of the first key.
        window: Its width.
    """
    skipped = max(0, position - window + 1 - first_key)
    keys = (keys[0] + skipped, keys[1])
    number = _length(keys)
    if number <= 0:
        return
    band = position - window - (first_key + skipped)
    count = min(_length(run), number - 1 - band)  # later queries see none of these keys
    if count > 0:
        masked = count - 1 + band >= 0
        yield Piece((run[0], run[0] + count), keys, False, band if masked else None)


def _bias(piece: Piece, like: Tensor) -> Tensor | None:
    if piece.band is None:
        return None
    size = (_length(piece.queries), _length(piece.keys))
    return torch.full(size, -torch.inf, dtype=like.dtype, device=like.device).tril(piece.band)


def _precise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of 16 bits in float32: on a CPU the kernel is quicker so, and more exact; the last dimension is dense."""
    wide = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in wide)


class _Saved:
    """What autograd hands from one pass to the other."""

    saved_tensors: tuple[Tensor, ...]
    plan: tuple[list[Piece], list[Piece]]
    covers: bool
    scale: float

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors."""


class _PieceAttention(torch.autograd.Function):
    """The kernel of each piece with the merged output and logarithm gives that piece's part of the gradients."""

    @staticmethod
    def forward(
        ctx: _Saved,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        plan: AttentionPlan,
        window: int | None,
        scale: float,
    ) -> Tensor:
        q, k, v = _precise(query, key, value)
        first, more = plan.pieces(window)
        _, heads, number, size = q.shape
        out = q.new_empty((1, number, heads, size)).transpose(1, 2)
        total = q.new_empty((1, number, heads)).transpose(1, 2)  # logarithms of sums of exponentials
        for piece in first:
            own = slice(*piece.queries)
            out[:, :, own], total[:, :, own] = _forward(piece, q, k, v, scale)
        for piece in more:
            own = slice(*piece.queries)
            other, log = _forward(piece, q, k, v, scale)
            before, merged = total[:, :, own], torch.logaddexp(total[:, :, own], log)
            out[:, :, own].mul_((before - merged).exp_().unsqueeze(-1))
            out[:, :, own].addcmul_(other, (log - merged).exp_().unsqueeze(-1))
            total[:, :, own] = merged
        if sinks is not None:
            merged = torch.logaddexp(total, sinks.to(total.dtype)[None, :, None])
            out.mul_((total - merged).exp_().unsqueeze(-1))
            total = merged
        result = out.to(query.dtype)
        kept = (query, key, value, result, total)
        ctx.save_for_backward(*(kept if sinks is None else (*kept, sinks)))
        ctx.plan, ctx.covers, ctx.scale = (first, more), plan.covers, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _Saved, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, result, total, *sinks = ctx.saved_tensors
        q, k, v, out, grad = _precise(query, key, value, result, gradient)
        first, more = ctx.plan
        into_q = torch.empty_like(q)
        into_k, into_v = (torch.empty_like if ctx.covers else torch.zeros_like)(k), torch.empty_like(v)
        if not ctx.covers:
            into_v.zero_()
        for place, piece in enumerate([*first, *more]):
            queries, keys = slice(*piece.queries), slice(*piece.keys)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                total[:, :, queries],
                0.0,
                piece.causal,
                attn_mask=_bias(piece, q),
                scale=ctx.scale,
            )
            is_first = place < len(first)
            goals = (into_q[:, :, queries], into_k[:, :, keys], into_v[:, :, keys])
            for goal, part, alone in zip(
                goals, parts, (is_first, is_first and ctx.covers, is_first and ctx.covers), strict=True
            ):
                goal.copy_(part) if alone else goal.add_(part)
        into_sinks = None
        if sinks:
            shares = (sinks[0].to(total.dtype)[None, :, None] - total).exp_()
            into_sinks = -(shares * (grad * out).sum(-1)).sum((0, 2)).to(sinks[0].dtype)
        into = into_q.to(query.dtype), into_k.to(key.dtype), into_v.to(value.dtype)
        return (*into, into_sinks, None, None, None)


def _forward(piece: Piece, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    keys = slice(*piece.keys)
    return cast(
        tuple[Tensor, Tensor],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, slice(*piece.queries)],
            k[:, :, keys],
            v[:, :, keys],
            0.0,
            piece.causal,
            attn_mask=_bias(piece, q),
            scale=scale,
        ),
    )


# Calls differ from batch to batch: a graph of them would be made anew for each.
_attend = cast(Callable[..., Tensor], torch.compiler.disable(_PieceAttention.apply))


def piece_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention by pieces, on the CPU and once differentiable; 16-bit states are computed in float32.

    Args:
        query: (1, heads, Q, D), last dimension dense.
        key: (1, key heads, T, D).
        value: (1, key heads, T, D).
        plan: What every query sees.
        scale: Factor of the scores.
        window: How many of the last tokens a query sees, itself included; None for all.
        sinks: (heads,): a score of each head that takes a share of the attention and gives nothing; None without.

    Returns:
        (1, heads, Q, D), in the dtype of ``query``; heads of a token stand together in memory.
    """
    return _attend(query, key, value, sinks, plan, window, scale)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same from plain operations on copies: branches of similar lengths are padded and masked, and run together.

    On any device, with dropout or a cap, differentiable twice; and quicker than pieces where there are many small ones.

    Args:
        query: (1, heads, Q, D).
        key: (1, key heads, T, D).
        value: (1, key heads, T, V).
        plan: What every query sees.
        scale: Factor of the scores.
        window: As in :func:`piece_attention`.
        softcap: Scores s become softcap tanh(s / softcap); None for the scores themselves.
        sinks: As in :func:`piece_attention`.
        dropout: Of the attention weights, in [0, 1).

    Returns:
        (1, heads, Q, V).
    """
    groups, place = plan.groups(window, query.device)
    attended = []
    for group in groups:
        q, k, v = _taken(query, group.queries), _taken(key, group.keys), _taken(value, group.keys)
        if softcap is None and sinks is None:
            # Under autocast, which takes the values' dtype for all, queries may be float32 here.
            found = nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=group.bias(v.dtype),
                dropout_p=dropout,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        else:
            found = _written_out(q, k, v, group.hidden, scale, softcap, sinks, dropout)
        attended.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, place).transpose(0, 1)[None]


def _taken(states: Tensor, index: Tensor) -> Tensor:
    """States (1, heads, T, D) at places (B, n): (B, heads, n, D)."""
    flat = states[0].transpose(0, 1).flatten(1)
    return flat.index_select(0, index.flatten()).view(*index.shape, *states.shape[1::2]).transpose(1, 2)


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    k, v = (states.repeat_interleave(q.shape[1] // states.shape[1], dim=1) for states in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=3)
    weights = nn.functional.dropout(scores.softmax(dim=3), dropout)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v
