"""Imitation: the language-model loss of preferred responses, without ever holding all logits."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._common import Context, Reduction, check_indices, check_number, check_values, reduce_loss

__all__ = ["ImitationLoss", "imitation_loss", "token_nll"]


class _ChunkContext(Context, Protocol):
    """A context that holds how many tokens make a chunk."""

    chunk: int


class _TokenNLL(torch.autograd.Function):
    """Cross-entropy of a linear layer, a chunk of tokens at a time, logits computed again going back."""

    @staticmethod
    def forward(
        ctx: _ChunkContext,
        hidden: Tensor,
        vocabulary: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk: int,
    ) -> Tensor:
        matrix = vocabulary.to(hidden.dtype)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        normalizer = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
        picked = torch.empty_like(normalizer)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], matrix, bias)
            normalizer[part] = logits.logsumexp(-1)
            picked[part] = logits.gather(-1, target[part].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(hidden, vocabulary, bias, target, normalizer)
        ctx.chunk = chunk
        return normalizer - picked

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _ChunkContext, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, vocabulary, bias, target, normalizer = ctx.saved_tensors
        need_hidden, need_vocabulary, need_bias = ctx.needs_input_grad[:3]
        chunk = ctx.chunk
        matrix = vocabulary.to(hidden.dtype)
        precise = normalizer.dtype
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_vocabulary = torch.zeros_like(vocabulary, dtype=precise) if need_vocabulary else None
        d_bias = torch.zeros_like(bias, dtype=precise) if need_bias else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            slope = _logits(hidden[part], matrix, bias).sub_(normalizer[part].unsqueeze(-1)).exp_()
            index = target[part].unsqueeze(-1)
            slope.scatter_add_(-1, index, torch.full_like(index, -1, dtype=precise))
            slope *= grads[0][part].unsqueeze(-1)
            if d_bias is not None:
                d_bias += slope.sum(0)
            slope = slope.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = slope @ matrix
            if d_vocabulary is not None:
                if precise == hidden.dtype:
                    d_vocabulary.addmm_(slope.T, hidden[part])
                else:
                    d_vocabulary += slope.T @ hidden[part]
        return (
            d_hidden,
            None if d_vocabulary is None else d_vocabulary.to(vocabulary.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = (hidden @ matrix.T).to(torch.promote_types(hidden.dtype, torch.float32))
    return logits if bias is None else logits + bias.to(logits.dtype)


def token_nll(
    hidden: Tensor,
    vocabulary: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 256,
) -> Tensor:
    r"""Negative log-likelihood of tokens under a linear language-model head, in little memory.

    At no time are there more than ``chunk_size`` x V logits; going back they are computed again. Costs one
    matrix product more than the naive form.

    .. math:: \ell_t = \log \sum_v \exp(W_v \cdot h_t + b_v) - (W_{y_t} \cdot h_t + b_{y_t})

    Args:
        hidden: States that predict the tokens, (T, H).
        vocabulary: Weight W of the head, (V, H).
        target: Tokens y, (T,) integer, in 0..V-1.
        bias: Bias b of the head, (V,).
        chunk_size: Tokens whose logits exist at one time, >= 1.

    Returns:
        Negative log-likelihood >= 0, (T,), in nats, float32 (float64 for float64 states).

    Raises:
        ValueError: If shapes do not fit, a token is outside 0..V-1, or ``chunk_size`` < 1.
        TypeError: If ``target`` does not hold integers.

    Source:
        Definition. Departures: products of half-precision states are taken in their own type (the weight is
        brought to it), everything after them in float32.

    .. versionadded:: 0.1
    """
    check_number("chunk_size", chunk_size, 1)
    if hidden.ndim != 2 or vocabulary.ndim != 2 or hidden.shape[1] != vocabulary.shape[1]:
        raise ValueError(
            "hidden must be (T, H) and vocabulary (V, H); "
            f"got {tuple(hidden.shape)} and {tuple(vocabulary.shape)}"
        )
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target must be of shape {tuple(hidden.shape[:1])}; got {tuple(target.shape)}")
    if bias is not None and bias.shape != vocabulary.shape[:1]:
        raise ValueError(f"bias must be of shape {tuple(vocabulary.shape[:1])}; got {tuple(bias.shape)}")
    check_indices("target", target, 0, vocabulary.shape[0] - 1)
    target = target.long()
    result: Tensor = _TokenNLL.apply(hidden, vocabulary, bias, target, chunk_size)  # type: ignore[no-untyped-call]
    return result


def imitation_loss(
    hidden: Tensor,
    vocabulary: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    response_row: Tensor,
    *,
    include_prompt: bool = False,
    bias: Tensor | None = None,
    chunk_size: int = 256,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Language-model loss of responses, given those to imitate by their weights.

    Rows may hold one response each or several that share a prompt: a token is predicted from the token
    before it, the first token of a response from the end of the prompt. Plain rows are the case
    ``segment_ids = where(padding, -1, where(prompt, 0, 1))`` and ``response_row = arange(N)``. To imitate
    the preferred response only, weigh it 1 and the others 0: tokens of responses without weight are not
    computed. To leave them out, eager code on an accelerator waits for it once; compiled code computes all
    tokens instead.

    .. math::
        L = \frac{\sum_n w_n \ell_n}{\sum_n w_n}, \qquad
        \ell_n = \frac{1}{|T_n|} \sum_{t \in T_n} -\log p(x_t | x_{<t})

    Args:
        hidden: Final states of the backbone, (N, L, H).
        vocabulary: Weight of the language-model head, (V, H).
        input_ids: Tokens, (N, L) int64.
        segment_ids: 0 prompt, 1..k response of the row, -1 padding, (N, L) int64; each segment contiguous.
        response_row: Row of each response, (R,) int64, ascending: the s-th response of a row is its segment
            s.
        include_prompt: Whether the prompt's tokens count as well, as in the official code.
        bias: Bias of the head, (V,).
        chunk_size: Tokens whose logits exist at one time, >= 1.
        weight: Weights >= 0 of the responses, (R,); 1 if None.
        reduction: ``"mean"`` over responses (weighted), ``"sum"`` or ``"none"``.

    Returns:
        Loss >= 0, scalar or (R,), in nats per token. Nothing to imitate gives 0.

    Raises:
        ValueError: If shapes do not fit, ``response_row`` descends or knows fewer responses of a row than
            ``segment_ids``, or an option is outside its range.
        TypeError: If an index tensor does not hold integers.

    Source:
        Cheng et al., *Everyone Deserves A Reward: Learning Customized Human Preferences*, 2023,
        https://arxiv.org/abs/2309.03126, formula as in the official code (equation number not available).
        Departures: response tokens only by default, where the code counts prompt, template and end token;
        the sum of weights is not increased by 1e-7; who is imitated is a weight and not a threshold on
        scores.

    .. versionadded:: 0.1
    """
    if hidden.ndim != 3 or input_ids.shape != hidden.shape[:2] or segment_ids.shape != hidden.shape[:2]:
        raise ValueError(
            "hidden must be (N, L, H), input_ids and segment_ids (N, L); got "
            f"{tuple(hidden.shape)}, {tuple(input_ids.shape)}, {tuple(segment_ids.shape)}"
        )
    if response_row.ndim != 1 or (weight is not None and weight.shape != response_row.shape):
        got = None if weight is None else tuple(weight.shape)
        raise ValueError(f"response_row and weight must be (R,); got {tuple(response_row.shape)} and {got}")
    rows, length, width = hidden.shape
    check_indices("response_row", response_row, 0, rows - 1)
    response_row = response_row.long()
    check_values("steps of response_row", response_row.diff(), 0)
    check_indices("segment_ids", segment_ids, -1, response_row.shape[0])
    check_values("weight", weight, 0.0)
    responses = response_row.shape[0]
    row = torch.arange(rows, device=hidden.device).unsqueeze(-1)
    column = torch.arange(length, device=hidden.device).expand(rows, length)

    before = torch.cat([torch.full_like(segment_ids[:, :1], -2), segment_ids[:, :-1]], dim=1)
    prompt_end = torch.where(segment_ids == 0, column, -1).amax(1, keepdim=True)
    source = torch.where(segment_ids == before, column - 1, torch.where(segment_ids > 0, prompt_end, -1))
    bounds = torch.searchsorted(response_row, torch.arange(rows + 1, device=hidden.device))
    check_values(
        "responses of a row (in response_row) less its segments", bounds.diff() - segment_ids.amax(1), 0
    )
    response = bounds[:-1].unsqueeze(-1) + segment_ids - 1
    wanted = torch.ones(responses, dtype=torch.bool, device=hidden.device) if weight is None else weight > 0
    in_response = (segment_ids > 0) & (source >= 0)
    if responses:
        in_response = in_response & wanted[response.clamp(0, responses - 1)]
    counted = in_response
    if include_prompt:
        wanted_in_row = wanted.new_zeros(rows, dtype=torch.int64).index_add(0, response_row, wanted.long())
        counted = counted | ((segment_ids == 0) & (source >= 0) & (wanted_in_row > 0).unsqueeze(-1))

    # The bucket of a token: its response, or after all responses its row's prompt, or nowhere.
    nowhere = responses + rows
    bucket = torch.where(in_response, response, torch.where(counted, responses + row, nowhere)).flatten()
    place = (row * length + source.clamp_min(0)).flatten()
    token = input_ids.flatten()
    if not torch.compiler.is_compiling():  # leave out what does not count: most of the cost
        kept = counted.flatten().nonzero().squeeze(-1)
        bucket, place, token = bucket[kept], place[kept], token[kept]
    else:
        token = torch.where(counted.flatten(), token, 0)
    nll = token_nll(
        hidden.reshape(rows * length, width)[place], vocabulary, token, bias=bias, chunk_size=chunk_size
    )
    sums = nll.new_zeros(nowhere + 1).index_add(0, bucket, nll)
    counts = nll.new_zeros(nowhere + 1).index_add(0, bucket, torch.ones_like(nll))
    total, count = sums[:responses], counts[:responses]
    if include_prompt:
        total = total + sums[responses:nowhere][response_row]
        count = count + counts[responses:nowhere][response_row]
    share = (count > 0).to(total.dtype)
    if weight is not None:
        share = share * weight.to(total.dtype)
    return reduce_loss(total / count.clamp_min(1), reduction, share)


class ImitationLoss(nn.Module):
    """Module form of :func:`imitation_loss`."""

    def __init__(
        self, *, include_prompt: bool = False, chunk_size: int = 256, reduction: Reduction = "mean"
    ) -> None:
        """Keep the settings.

        Args:
            include_prompt: Whether the prompt's tokens count as well.
            chunk_size: Tokens whose logits exist at one time, >= 1.
            reduction: ``"mean"`` (weighted), ``"sum"`` or ``"none"``.
        """
        super().__init__()
        self.include_prompt = include_prompt
        self.chunk_size = chunk_size
        self.reduction: Reduction = reduction

    def forward(
        self,
        hidden: Tensor,
        vocabulary: Tensor,
        input_ids: Tensor,
        segment_ids: Tensor,
        response_row: Tensor,
        *,
        bias: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of the responses; arguments as in :func:`imitation_loss`."""
        return imitation_loss(
            hidden,
            vocabulary,
            input_ids,
            segment_ids,
            response_row,
            include_prompt=self.include_prompt,
            bias=bias,
            chunk_size=self.chunk_size,
            weight=weight,
            reduction=self.reduction,
        )
