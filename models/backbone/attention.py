"""Attention of packed rows on views of them: no token is copied, and no score between two responses is computed.

A *branch* is a run of tokens that goes on from a prefix: each sees the prefix and, causally, its own branch. Attention over
both is computed in *pieces*, of queries and keys that stand together, whose results are merged by their logarithms of sums
of exponentials. So a prefix attends to itself once, however many responses go on from it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = ["AttentionPlan", "Branch", "Piece", "branch_attention", "piece_attention"]

Span = tuple[int, int]
"""First place and the place after the last."""

TOGETHER = 64
"""Keys up to which short branches share one call, under a mask: a call costs more than the scores that are masked."""


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
    together: tuple[Branch, ...] = ()
    """Several branches, each of which sees its own tokens alone; empty for one."""


class AttentionPlan:
    """Which keys every query of packed rows sees, in plain numbers.

    Attributes:
        branches: Of all queries, in their order.
        covers: Whether the branches' own tokens are all of the keys, each once.
        longest: Keys of the query that sees most, without a window.
    """

    def __init__(self, branches: Sequence[Branch], *, covers: bool) -> None:
        """Keep the branches.

        Args:
            branches: As the attribute.
            covers: As the attribute.
        """
        self.branches, self.covers = list(branches), covers
        self.longest = max((_length(b.prefix) + _length(b.own) for b in branches), default=0)
        self._pieces: dict[int | None, tuple[list[Piece], list[Piece]]] = {}
        self._masks: dict[Piece, Tensor] = {}

    def pieces(self, window: int | None) -> tuple[list[Piece], list[Piece]]:
        """The calls that attention consists of.

        Args:
            window: How many of the last tokens a query sees, itself included; None for all.

        Returns:
            Pieces that hold each query once, and others whose results are merged into theirs.
        """
        if window is not None and window >= self.longest:
            window = None
        if window not in self._pieces:
            self._pieces[window] = self._whole() if window is None else self._within(window)
        return self._pieces[window]

    def _whole(self) -> tuple[list[Piece], list[Piece]]:
        first = [_own_piece(group) for group in _groups(self.branches)]
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

    def bias(self, piece: Piece, like: Tensor) -> Tensor | None:
        """What is added to a piece's scores: 0 where a key is seen, else minus infinity; None where the kernel knows.

        Args:
            piece: Of this plan.
            like: Of its dtype and device.
        """
        size = (_length(piece.queries), _length(piece.keys))
        if piece.band is not None:
            return torch.full(size, -torch.inf, dtype=like.dtype, device=like.device).tril(piece.band)
        if not piece.together:
            return None
        if piece not in self._masks:  # small, and the same in every layer
            bounds = [
                (b.own[0], b.own[1] - i) for b in piece.together for i in reversed(range(_length(b.queries)))
            ]
            first, last = torch.tensor(bounds, device=like.device).T[:, :, None]
            places = torch.arange(*piece.keys, device=like.device)
            hidden = (places < first) | (places >= last)
            self._masks[piece] = torch.zeros(size, dtype=like.dtype, device=like.device).masked_fill_(
                hidden, -torch.inf
            )
        return self._masks[piece]


def _groups(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Branches that follow each other, as long as their own tokens are few."""
    group: list[Branch] = []
    for branch in branches:
        if group and _length(_reach([*group, branch])) > TOGETHER:
            yield group
            group = []
        group.append(branch)
    if group:
        yield group


def _reach(branches: Sequence[Branch]) -> Span:
    return min(b.own[0] for b in branches), max(b.own[1] for b in branches)


def _own_piece(group: Sequence[Branch]) -> Piece:
    """The call in which branches see their own tokens."""
    queries, keys = (group[0].queries[0], group[-1].queries[1]), _reach(group)
    if len(group) == 1:
        return Piece(queries, keys, _length(queries) > 1, None)
    return Piece(queries, keys, False, None, tuple(group))


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


def _precise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of 16 bits in float32: on a CPU the kernel is quicker so, and more exact; the last dimension is dense."""
    wide = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in wide)


class _Saved:
    """What autograd hands from one pass to the other."""

    saved_tensors: tuple[Tensor, ...]
    plan: AttentionPlan
    window: int | None
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
            out[:, :, own], total[:, :, own] = _forward(piece, plan, q, k, v, scale)
        for piece in more:
            own = slice(*piece.queries)
            other, log = _forward(piece, plan, q, k, v, scale)
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
        ctx.plan, ctx.window, ctx.scale = plan, window, scale
        return result

    @staticmethod
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, total, *sinks = ctx.saved_tensors
        q, k, v, out, grad = _precise(query, key, value, result, gradient)
        plan = ctx.plan
        first, more = plan.pieces(ctx.window)
        into_q = torch.empty_like(q)
        into_k, into_v = ((torch.empty_like if plan.covers else torch.zeros_like)(x) for x in (k, v))
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
                attn_mask=plan.bias(piece, q),
                scale=ctx.scale,
            )
            is_first = place < len(first)
            goals = (into_q[:, :, queries], into_k[:, :, keys], into_v[:, :, keys])
            for goal, part, alone in zip(
                goals, parts, (is_first, is_first and plan.covers, is_first and plan.covers), strict=True
            ):
                goal.copy_(part) if alone else goal.add_(part)
        into_sinks = None
        if sinks:
            shares = (sinks[0].to(total.dtype)[None, :, None] - total).exp_()
            into_sinks = -(shares * (grad * out).sum(-1)).sum((0, 2)).to(sinks[0].dtype)
        return (
            into_q.to(query.dtype),
            into_k.to(key.dtype),
            into_v.to(value.dtype),
            into_sinks,
            None,
            None,
            None,
        )


def _forward(
    piece: Piece, plan: AttentionPlan, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    keys = slice(*piece.keys)
    return cast(
        tuple[Tensor, Tensor],
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, slice(*piece.queries)],
            k[:, :, keys],
            v[:, :, keys],
            0.0,
            piece.causal,
            attn_mask=plan.bias(piece, q),
            scale=scale,
        ),
    )


@torch.compiler.disable  # calls differ from batch to batch: a graph of them would be made anew for each
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
    return cast(Tensor, _PieceAttention.apply(query, key, value, sinks, plan, window, scale))


def branch_attention(
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
    """The same, branch by branch from plain operations: on any device, with dropout or a cap, differentiable twice.

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
    attended = []
    for queries, prefix, own in plan.branches:
        q = query[:, :, slice(*queries)]
        k, v = (_seen(states, prefix, own) for states in (key, value))
        hidden = _hidden(q.shape[2], k.shape[2], window, q.device)
        if softcap is None and sinks is None:
            bias = (
                None
                if hidden is None
                else torch.zeros_like(hidden, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
            )
            attended.append(
                nn.functional.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=bias,
                    dropout_p=dropout,
                    scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )
            )
            continue
        k, v = (states.repeat_interleave(q.shape[1] // states.shape[1], dim=1) for states in (k, v))
        scores = q @ k.transpose(2, 3) * scale
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], dim=3)
        weights = nn.functional.dropout(scores.softmax(dim=3), dropout)[..., : k.shape[2]]
        attended.append(weights.to(v.dtype) @ v)
    return torch.cat(attended, dim=2)


def _seen(states: Tensor, prefix: Span, own: Span) -> Tensor:
    """Keys or values of a branch: its prefix and its own."""
    if prefix[1] == own[0] or not _length(prefix):
        start = prefix[0] if _length(prefix) else own[0]
        return states[:, :, start : own[1]]
    return torch.cat([states[:, :, slice(*prefix)], states[:, :, slice(*own)]], dim=2)


def _hidden(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys a query does not see, (queries, keys) bool; None if all see all."""
    last = keys - queries
    windowed = window is not None and window < keys
    if queries == 1 and not windowed:
        return None
    shape = torch.ones((queries, keys), dtype=torch.bool, device=device)
    hidden = shape.triu(last + 1)
    return hidden | shape.tril(last - cast(int, window)) if windowed else hidden
