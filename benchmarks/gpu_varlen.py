"""Variable-length attention for packed rows, a candidate beside what the package runs: measured here, used nowhere else.

Every token runs once, in one row. Attention calls flash attention's kernel for sequences of different lengths: on copies, one
causal sequence for each response with its prefix repeated; or on pieces, where prefix and responses each attend to themselves,
responses to their prefix besides, and the two are merged by their logarithms of sums of exponentials.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pluralign.datamodules.tokens import TokenRow

__all__ = ["VARLEN", "PackedTexts", "Sequences", "packed_texts", "register", "varlen_states"]

VARLEN = "pluralign_benchmark_varlen"
"""Name under which transformers knows this attention."""


class Sequences(NamedTuple):
    """Bounds of sequences in a row, as flash attention takes them."""

    bounds: Tensor
    """(S + 1,) int32."""
    longest: int

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> "Sequences":
        """Sequences of these lengths, one behind the other."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Sequences(bounds.to(device), max(lengths))


class PackedTexts(NamedTuple):
    """Records in one row: of each its prefix, then its responses. T tokens, O of responses, P of prefixes, C of copies."""

    ids: Tensor
    """(T,) int64."""
    positions: Tensor
    """(T,) int64; restart after the prefix for every response."""
    ends: Tensor
    """(R,) int64: last token of each response."""
    parts: Sequences
    """Prefixes and responses, in their order."""
    own: Tensor
    """(O,) int64: tokens of responses."""
    prefix: Tensor
    """(P,) int64: tokens of prefixes."""
    of_records: Sequences
    """A record's responses together, among the O."""
    of_prefixes: Sequences
    """Prefixes, among the P."""
    copies: Tensor
    """(C,) int64: token in every place of the responses' causal sequences, prefixes repeated."""
    of_copies: Sequences
    """Those sequences."""
    place: Tensor
    """(T,) int64: place among the C at which a token is read."""


def packed_texts(rows: Sequence[TokenRow], device: torch.device) -> PackedTexts:
    """Records as one row; all places are known on the host, so that a step waits for no device."""
    lengths = [row.lengths.tolist() for row in rows]
    ids, positions, ends, own, prefix, copies, copied, place = ([] for _ in range(8))
    start = 0
    for row, (first, *responses) in zip(rows, lengths, strict=True):
        ids += row.tokens.tolist()
        positions += range(first)
        shared = list(range(start, start + first))
        prefix += shared
        place += range(len(copies), len(copies) + first)
        at = start + first
        for length in responses:
            mine = list(range(at, at + length))
            positions += range(first, first + length)
            place += range(len(copies) + first, len(copies) + first + length)
            own += mine
            copies += shared + mine
            copied.append(first + length)
            at += length
            ends.append(at - 1)
        start = at
    numbers = (torch.tensor(each).to(device) for each in (ids, positions, ends, own, prefix, copies, place))
    ids_, positions_, ends_, own_, prefix_, copies_, place_ = numbers
    return PackedTexts(
        ids=ids_,
        positions=positions_,
        ends=ends_,
        parts=Sequences.of([length for each in lengths for length in each], device),
        own=own_,
        prefix=prefix_,
        of_records=Sequences.of([sum(each[1:]) for each in lengths], device),
        of_prefixes=Sequences.of([each[0] for each in lengths], device),
        copies=copies_,
        of_copies=Sequences.of(copied, device),
        place=place_,
    )


class Call(NamedTuple):
    """Which queries meet which keys, and how."""

    queries: Sequences
    keys: Sequences
    causal: bool
    scale: float


# The kernel --------------------------------------------------------------------------------------------


class Saved(NamedTuple):
    """Result of the kernel for queries of some sequences and keys of others."""

    out: Tensor
    """(T, heads, D)."""
    total: Tensor
    """(heads, T) float32: logarithms of sums of exponentials."""
    random: tuple[Tensor, ...]
    """What the backward pass is handed unread, for there is no dropout."""


def kernel(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Saved:
    """Flash attention of sequences; on the CPU, where it has no kernel, in plain operations."""
    if q.device.type == "cpu":
        return _plain(q, k, v, call)
    out, total, *random, _ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        call.queries.bounds,
        call.keys.bounds,
        call.queries.longest,
        call.keys.longest,
        0.0,
        call.causal,
        False,
        scale=call.scale,
    )
    return Saved(out, total, tuple(random))


def kernel_backward(
    gradient: Tensor, states: tuple[Tensor, Tensor, Tensor], saved: Saved, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; output and logarithms may be those of more keys than these."""
    if gradient.device.type == "cpu":
        return _plain_backward(gradient, states, saved, call)
    into_q, into_k, into_v = torch.ops.aten._flash_attention_backward(
        gradient,
        *states,
        saved.out,
        saved.total,
        call.queries.bounds,
        call.keys.bounds,
        call.queries.longest,
        call.keys.longest,
        0.0,
        call.causal,
        *saved.random,
        scale=call.scale,
    )
    return into_q, into_k, into_v


def _scores(q: Tensor, k: Tensor, call: Call) -> Tensor:
    """Scores of one sequence, (heads, queries, keys)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * call.scale
    if call.causal:
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    return scores


def _spans(call: Call) -> list[tuple[slice, slice]]:
    both = []
    for bounds in (call.queries.bounds.tolist(), call.keys.bounds.tolist()):
        both.append([slice(a, b) for a, b in pairwise(bounds)])
    return list(zip(*both, strict=True))


def _plain(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Saved:
    out, total = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]))
    repeated = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    for own, seen in _spans(call):
        scores = _scores(q[own], k[seen], call)
        total[:, own] = scores.logsumexp(dim=2)
        out[own] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=2), repeated[seen])
    return Saved(out, total, ())


def _plain_backward(
    gradient: Tensor, states: tuple[Tensor, Tensor, Tensor], saved: Saved, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = states
    groups = q.shape[1] // k.shape[1]
    into_q, into_k, into_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    inner = torch.einsum("qhd,qhd->hq", gradient, saved.out)
    for own, seen in _spans(call):
        weights = (_scores(q[own], k[seen], call) - saved.total[:, own, None]).exp()
        values = v[seen].repeat_interleave(groups, dim=1)
        slope = torch.einsum("qhd,khd->hqk", gradient[own], values) - inner[:, own, None]
        slope = weights * slope * call.scale
        into_q[own] = torch.einsum("hqk,khd->qhd", slope, k[seen].repeat_interleave(groups, dim=1))
        per_head = torch.einsum("hqk,qhd->khd", slope, q[own])
        into_k[seen] = per_head.unflatten(1, (-1, groups)).sum(2)
        per_head = torch.einsum("hqk,qhd->khd", weights, gradient[own])
        into_v[seen] = per_head.unflatten(1, (-1, groups)).sum(2)
    return into_q, into_k, into_v


# Attention ---------------------------------------------------------------------------------------------


class _Causal(torch.autograd.Function):
    """Causal attention of sequences that stand one behind the other."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, of: Sequences, scale: float) -> Tensor:  # noqa: ANN401
        call = Call(of, of, True, scale)
        saved = kernel(q, k, v, call)
        ctx.save_for_backward(q, k, v, saved.out, saved.total, *saved.random)
        ctx.call = call
        return saved.out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, out, total, *random = ctx.saved_tensors
        saved = Saved(out, total, tuple(random))
        return (*kernel_backward(gradient.contiguous(), (q, k, v), saved, ctx.call), None, None)


class _Pieces(torch.autograd.Function):
    """Parts attend to themselves, responses to their prefix as well; backward has the merged output and logarithms."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, texts: PackedTexts, scale: float) -> Tensor:  # noqa: ANN401
        own, prefix = texts.own, texts.prefix
        within = Call(texts.parts, texts.parts, True, scale)
        on_prefix = Call(texts.of_records, texts.of_prefixes, False, scale)
        alone = kernel(q, k, v, within)
        beside = kernel(q[own], k[prefix], v[prefix], on_prefix)
        before = alone.total[:, own]
        merged = torch.logaddexp(before, beside.total)
        weight, other = ((each - merged).exp().T.unsqueeze(2) for each in (before, beside.total))
        joined = alone.out[own] * weight + beside.out * other
        out = alone.out.index_copy(0, own, joined.to(q.dtype))
        total = alone.total.index_copy(1, own, merged)
        ctx.save_for_backward(q, k, v, out, total, *alone.random)
        ctx.texts, ctx.calls = texts, (within, on_prefix)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, out, total, *random = ctx.saved_tensors
        own, prefix, gradient = ctx.texts.own, ctx.texts.prefix, gradient.contiguous()
        within, on_prefix = ctx.calls
        whole = Saved(out, total, tuple(random))
        into = kernel_backward(gradient, (q, k, v), whole, within)
        some = Saved(out[own], total[:, own].contiguous(), tuple(random))
        apart = (q[own], k[prefix], v[prefix])
        more = kernel_backward(gradient[own], apart, some, on_prefix)
        places = (own, prefix, prefix)
        summed = (a.index_add(0, at, b) for a, at, b in zip(into, places, more, strict=True))
        return (*summed, None, None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    texts: PackedTexts,
    copied: bool,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """What transformers calls: (1, heads, T, D) in, (1, T, heads, D) out, for networks of full attention without dropout."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # Under autocast, rotary embeddings leave queries and keys in float32.
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    if copied:
        rows = (states.index_select(0, texts.copies) for states in (q, k, v))
        attended = _Causal.apply(*rows, texts.of_copies, scale).index_select(0, texts.place)
    else:
        attended = _Pieces.apply(q, k, v, texts, scale)
    return attended[None], None


def register() -> None:
    """Make :func:`attention` known to transformers; once in every process."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, attention)


def varlen_states(model: nn.Module, texts: PackedTexts, *, copied: bool) -> Tensor:
    """Last states of the responses, (R, H).

    Args:
        model: A network of transformers whose attention is :data:`VARLEN`.
        texts: What it reads.
        copied: Whether prefixes are copied for attention; in pieces otherwise.
    """
    states: Tensor = model(
        input_ids=texts.ids[None],
        position_ids=texts.positions[None],
        use_cache=False,
        texts=texts,
        copied=copied,
    ).last_hidden_state
    return states[0].index_select(0, texts.ends)
