"""Imitation: the language-model loss of responses, without ever holding all logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._check_mode import LossModule
from ._chunked import token_nll
from ._common import Reduction, check_choice, check_indices, check_mask, check_values, reduce_loss

__all__ = ["ImitationLoss", "imitation_loss", "response_nll", "token_nll"]


class _Tokens(NamedTuple):
    """Tokens that count, (T,) each: what is predicted, from which state, and for which bucket.

    Buckets are the R responses, then the N rows' prompts, then one for tokens that do not count.
    """

    target: Tensor
    place: Tensor
    bucket: Tensor
    per_response: Tensor
    """Tokens of each response, (R,) int64, its prompt's too where that counts; 0 where it does not count."""


def _counted_tokens(
    hidden: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    response_row: Tensor,
    *,
    include_prompt: bool,
    mask: Tensor | None,
) -> _Tokens:
    """Tokens of the responses in ``mask``, (R,) bool or None for all; the rest as in :func:`imitation_loss`."""
    rows, length = input_ids.shape
    responses, device = response_row.shape[0], hidden.device
    wanted = torch.ones_like(response_row, dtype=torch.bool) if mask is None else mask
    row = torch.arange(rows, device=device).unsqueeze(-1)
    column = torch.arange(length, device=device).expand(rows, length)

    before = torch.cat([torch.full_like(segment_ids[:, :1], -2), segment_ids[:, :-1]], dim=1)
    prompt_end = torch.where(segment_ids == 0, column, -1).amax(1, keepdim=True)
    source = torch.where(segment_ids == before, column - 1, torch.where(segment_ids > 0, prompt_end, -1))
    bounds = torch.searchsorted(response_row, torch.arange(rows + 1, device=device))
    check_values(
        "responses of a row (in response_row) less its segments", bounds.diff() - segment_ids.amax(1), 0
    )
    response = bounds[:-1].unsqueeze(-1) + segment_ids - 1
    in_response = (segment_ids > 0) & (source >= 0)
    if responses:
        in_response = in_response & wanted[response.clamp(0, responses - 1)]
    counted = in_response
    if include_prompt:
        wanted_in_row = wanted.new_zeros(rows, dtype=torch.int64).index_add(0, response_row, wanted.long())
        counted = counted | ((segment_ids == 0) & (source >= 0) & (wanted_in_row > 0).unsqueeze(-1))

    nowhere = responses + rows
    bucket = torch.where(in_response, response, torch.where(counted, responses + row, nowhere)).flatten()
    place = (row * length + source.clamp_min(0)).flatten()
    target = torch.where(counted, input_ids, 0).flatten()
    sizes = torch.zeros(nowhere + 1, dtype=torch.int64, device=device)
    sizes = sizes.index_add(0, bucket, torch.ones_like(bucket))
    per_response = sizes[:responses]
    if include_prompt:
        per_response = torch.where(wanted, per_response + sizes[responses:nowhere][response_row], 0)
    if not torch.compiler.is_compiling():  # leave out what does not count: most of the cost
        kept = counted.flatten().nonzero().squeeze(-1)
        target, place, bucket = target[kept], place[kept], bucket[kept]
    return _Tokens(target, place, bucket, per_response)


def _checked_rows(
    hidden: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    response_row: Tensor,
    chosen: Tensor | None,
    name: str,
) -> Tensor:
    """The row of each response as int64, once shapes and values fit; ``chosen`` is the weight or mask."""
    if hidden.ndim != 3 or input_ids.shape != hidden.shape[:2] or segment_ids.shape != hidden.shape[:2]:
        raise ValueError(
            "hidden must be (N, L, H), input_ids and segment_ids (N, L); got "
            f"{tuple(hidden.shape)}, {tuple(input_ids.shape)}, {tuple(segment_ids.shape)}"
        )
    if response_row.ndim != 1 or (chosen is not None and chosen.shape != response_row.shape):
        got = None if chosen is None else tuple(chosen.shape)
        raise ValueError(f"response_row and {name} must be (R,); got {tuple(response_row.shape)} and {got}")
    check_indices("response_row", response_row, 0, hidden.shape[0] - 1)
    response_row = response_row.long()
    check_values("steps of response_row", response_row.diff(), 0)
    check_indices("segment_ids", segment_ids, -1, response_row.shape[0])
    return response_row


def response_nll(
    hidden: Tensor,
    vocabulary: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    response_row: Tensor,
    *,
    include_prompt: bool = False,
    bias: Tensor | None = None,
    chunk_size: int = 128,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Negative log-likelihood of each response and its number of tokens: what a perplexity is made of.

    A perplexity is an exponential of a mean over tokens, so it is not a mean of perplexities: add up both
    over all batches (and processes) first.

    .. math:: \mathrm{perplexity} = \exp \frac{\sum_n \sum_{t \in T_n} -\log p(x_t | x_{<t})}{\sum_n |T_n|}

    Args:
        hidden: Final states of the backbone, (N, L, H).
        vocabulary: Weight of the language-model head, (V, H).
        input_ids: Tokens, (N, L) int64.
        segment_ids: 0 prompt, 1..k response of the row, -1 padding, (N, L) int64; as in
            :func:`imitation_loss`.
        response_row: Row of each response, (R,) int64, ascending.
        include_prompt: Whether the prompt's tokens count as well, for each of its responses.
        bias: Bias of the head, (V,).
        chunk_size: Tokens whose logits exist at one time, >= 1.
        mask: Responses to compute, (R,) bool; the others get 0 and 0, at no cost. All if None.

    Returns:
        Sums of the negative log-likelihood, (R,), >= 0, in nats, float32 (float64 for float64 states), and
        numbers of tokens, (R,) int64. A token that nothing stands before is not predicted and not counted.

    Raises:
        ValueError: If shapes do not fit, ``response_row`` descends or knows fewer responses of a row than
            ``segment_ids``, or an option is outside its range.
        TypeError: If an index tensor does not hold integers, or ``mask`` is not boolean.

    Example:
        >>> import torch
        >>> hidden, vocabulary = torch.zeros(1, 4, 2), torch.zeros(8, 2)
        >>> ids, segments = torch.tensor([[3, 1, 4, 5]]), torch.tensor([[0, 1, 1, 2]])
        >>> sums, counts = response_nll(hidden, vocabulary, ids, segments, torch.tensor([0, 0]))
        >>> counts, (sums.sum() / counts.sum()).exp()
        (tensor([2, 1]), tensor(8.))

    Source:
        Definition. Departures: none.

    .. versionadded:: 0.1
    """
    response_row = _checked_rows(hidden, input_ids, segment_ids, response_row, mask, "mask")
    check_mask(mask)
    tokens = _counted_tokens(
        hidden,
        input_ids,
        segment_ids,
        response_row,
        include_prompt=include_prompt,
        mask=mask,
    )
    nll = token_nll(
        hidden.flatten(0, 1)[tokens.place], vocabulary, tokens.target, bias=bias, chunk_size=chunk_size
    )
    responses, rows = response_row.shape[0], hidden.shape[0]
    sums = nll.new_zeros(responses + rows + 1).index_add(0, tokens.bucket, nll)
    total = sums[:responses]
    if include_prompt:
        total = total + sums[responses:-1][response_row]
    return torch.where(tokens.per_response > 0, total, 0.0), tokens.per_response


def imitation_loss(
    hidden: Tensor,
    vocabulary: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    response_row: Tensor,
    *,
    include_prompt: bool = False,
    bias: Tensor | None = None,
    chunk_size: int = 128,
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
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    response_row = _checked_rows(hidden, input_ids, segment_ids, response_row, weight, "weight")
    check_values("weight", weight, 0.0)
    mask = None if weight is None else weight > 0
    if reduction == "none":
        sums, counts = response_nll(
            hidden,
            vocabulary,
            input_ids,
            segment_ids,
            response_row,
            include_prompt=include_prompt,
            bias=bias,
            chunk_size=chunk_size,
            mask=mask,
        )
        return reduce_loss(sums / counts.clamp_min(1), reduction, weight)
    tokens = _counted_tokens(
        hidden,
        input_ids,
        segment_ids,
        response_row,
        include_prompt=include_prompt,
        mask=mask,
    )
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    share = (tokens.per_response > 0).to(dtype)
    if weight is not None:
        share = share * weight.to(dtype)
    if reduction == "mean":
        mass = share.sum()
        share = share / torch.where(mass > 0, mass, 1.0)
    share = share / tokens.per_response.clamp_min(1)
    of_rows = share.new_zeros(hidden.shape[0]).index_add(0, response_row, share)
    per_bucket = torch.cat([share, of_rows, share.new_zeros(1)])
    return token_nll(
        hidden.flatten(0, 1)[tokens.place],
        vocabulary,
        tokens.target,
        bias=bias,
        chunk_size=chunk_size,
        weight=per_bucket[tokens.bucket],
        reduction="sum",
    )


class ImitationLoss(LossModule):
    """Module form of :func:`imitation_loss`."""

    def __init__(
        self, *, include_prompt: bool = False, chunk_size: int = 128, reduction: Reduction = "mean"
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
