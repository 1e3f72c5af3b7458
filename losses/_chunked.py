"""Cross-entropy of a linear language-model head a chunk of tokens at a time, with its gradients."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import Context, Reduction, check_choice, check_indices, check_number, check_values

__all__ = ["token_nll"]

Needs = tuple[bool, bool, bool]


class _Gradients(NamedTuple):
    """Gradients of sum(coefficient * nll), each None where it is not needed; all but the bias's are large."""

    hidden: Tensor | None
    vocabulary: Tensor | None
    bias: Tensor | None


class _ChunkContext(Context, Protocol):
    """A context that holds how many tokens make a chunk, and gradients until they are handed on."""

    chunk: int
    gradients: _Gradients | None


def _precise(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _without_autocast(hidden: Tensor) -> torch.autocast:
    return torch.autocast(hidden.device.type, enabled=False)


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = (hidden @ matrix.T).to(_precise(hidden))
    return logits if bias is None else logits.add_(bias.to(logits.dtype))


def _exponentials(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token (T, 1), and exp(logits - largest) with its sums (T, 1), in the place of the logits."""
    top = logits.amax(-1, keepdim=True)
    nll = top - logits.gather(-1, target)
    powers = logits.sub_(top).exp_()
    total = powers.sum(-1, keepdim=True)
    return nll + total.log(), powers, total


def _values(hidden: Tensor, vocabulary: Tensor, bias: Tensor | None, target: Tensor, chunk: int) -> Tensor:
    """Losses of the tokens, (T,); one matrix product."""
    nll = torch.empty(hidden.shape[0], dtype=_precise(hidden), device=hidden.device)
    with _without_autocast(hidden):
        matrix = vocabulary.to(hidden.dtype)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], matrix, bias)
            nll[part] = _exponentials(logits, target[part].unsqueeze(-1))[0].squeeze(-1)
    return nll


def _values_and_gradients(
    hidden: Tensor,
    vocabulary: Tensor,
    bias: Tensor | None,
    target: Tensor,
    coefficient: Tensor,
    chunk: int,
    needs: Needs,
) -> tuple[Tensor, _Gradients]:
    """Losses of the tokens and gradients of sum(coefficient * nll), in one pass; three matrix products.

    Gradients are float32 at least, whatever the type of the inputs.
    """
    precise = _precise(hidden)
    nll = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
    d_hidden = torch.empty_like(hidden, dtype=precise) if needs[0] else None
    d_vocabulary = torch.zeros_like(vocabulary, dtype=precise) if needs[1] else None
    d_bias = torch.zeros_like(bias, dtype=precise) if needs[2] and bias is not None else None
    with _without_autocast(hidden):
        matrix = vocabulary.to(hidden.dtype)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            index, share = target[part].unsqueeze(-1), coefficient[part].unsqueeze(-1)
            losses, slope, total = _exponentials(_logits(hidden[part], matrix, bias), index)
            nll[part] = losses.squeeze(-1)
            slope *= share / total
            slope.scatter_add_(-1, index, -share)
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
    return nll, _Gradients(d_hidden, d_vocabulary, d_bias)


def _in_units(coefficient: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients divided by the largest, and the largest: small ones would vanish in float16."""
    largest = coefficient.abs().amax() if coefficient.numel() else coefficient.new_ones(())
    largest = torch.where(largest > 0, largest, 1.0)
    return coefficient / largest, largest


def _handed_on(
    gradients: _Gradients, factor: Tensor, inputs: tuple[Tensor, Tensor, Tensor | None]
) -> _Gradients:
    """Gradients times a number, in their own memory, in the types of the inputs."""
    return _Gradients(
        *(
            None if gradient is None or value is None else gradient.mul_(factor).to(value.dtype)
            for gradient, value in zip(gradients, inputs, strict=True)
        )
    )


class _TokenNLL(torch.autograd.Function):
    """Losses of single tokens; their coefficients are known going back, so logits are computed again there."""

    @staticmethod
    def forward(
        ctx: _ChunkContext,
        hidden: Tensor,
        vocabulary: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden, vocabulary, bias, target)
        ctx.chunk = chunk
        return _values(hidden, vocabulary, bias, target, chunk)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _ChunkContext, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, vocabulary, bias, target = ctx.saved_tensors
        coefficient, factor = _in_units(grads[0])
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        _, gradients = _values_and_gradients(hidden, vocabulary, bias, target, coefficient, ctx.chunk, needs)
        d_hidden, d_vocabulary, d_bias = _handed_on(gradients, factor, (hidden, vocabulary, bias))
        return d_hidden, d_vocabulary, d_bias, None, None


class _WeighedNLL(torch.autograd.Function):
    """Sum of coefficient * loss over tokens; gradients come with the value, so no logits are computed again.

    They are kept beside the graph and not as saved tensors, since the first pass back scales and hands them on
    in the memory they have: a second copy of (V, H) would cost more than a chunk of logits. A further pass over
    a graph that was kept computes them again.
    """

    @staticmethod
    def forward(
        ctx: _ChunkContext,
        hidden: Tensor,
        vocabulary: Tensor,
        bias: Tensor | None,
        target: Tensor,
        coefficient: Tensor,
        chunk: int,
        differentiable: bool,
    ) -> Tensor:
        ctx.chunk = chunk
        ctx.gradients = None
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        if differentiable and any(needs):
            nll, ctx.gradients = _values_and_gradients(
                hidden, vocabulary, bias, target, _in_units(coefficient)[0], chunk, needs
            )
        else:
            nll = _values(hidden, vocabulary, bias, target, chunk)
        ctx.save_for_backward(hidden, vocabulary, bias, target, coefficient, nll)
        return (nll * coefficient).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _ChunkContext, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, Tensor | None, None, None]:
        hidden, vocabulary, bias, target, coefficient, nll = ctx.saved_tensors
        units, largest = _in_units(coefficient)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
            _, gradients = _values_and_gradients(hidden, vocabulary, bias, target, units, ctx.chunk, needs)
        d_coefficient = grads[0] * nll if ctx.needs_input_grad[4] else None
        factor = grads[0] * largest
        d_hidden, d_vocabulary, d_bias = _handed_on(gradients, factor, (hidden, vocabulary, bias))
        return d_hidden, d_vocabulary, d_bias, None, d_coefficient, None, None


def token_nll(
    hidden: Tensor,
    vocabulary: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 128,
    weight: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    r"""Negative log-likelihood of tokens under a linear language-model head, in little memory.

    At no time are there more than ``chunk_size`` x V logits. A sum or mean computes its gradients together
    with its value: the three matrix products of the naive form, and none twice. Losses of single tokens
    (``reduction="none"``) cost a fourth, since what they count for is known only going back; so does every
    further pass back over a graph that was kept.

    .. math:: \ell_t = \log \sum_v \exp(W_v \cdot h_t + b_v) - (W_{y_t} \cdot h_t + b_{y_t})

    Args:
        hidden: States that predict the tokens, (T, H).
        vocabulary: Weight W of the head, (V, H).
        target: Tokens y, (T,) integer, in 0..V-1.
        bias: Bias b of the head, (V,).
        chunk_size: Tokens whose logits exist at one time, >= 1.
        weight: Weights >= 0 of the tokens, (T,); 1 if None.
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over tokens (weighted).

    Returns:
        Negative log-likelihood >= 0, (T,) or scalar, in nats, float32 (float64 for float64 states). No tokens
        give 0.

    Raises:
        ValueError: If shapes do not fit, a token is outside 0..V-1, or an option is outside its range.
        TypeError: If ``target`` does not hold integers.

    Example:
        >>> import torch
        >>> hidden, vocabulary = torch.zeros(3, 2), torch.zeros(8, 2)
        >>> token_nll(hidden, vocabulary, torch.tensor([0, 5, 7]), reduction="mean")  # log 8
        tensor(2.0794)

    Source:
        Definition; gradients in the forward pass as in Hsu et al., *Liger Kernel: Efficient Triton Kernels for
        LLM Training*, 2024, https://arxiv.org/abs/2410.10989 (fused linear cross-entropy).
        Departures: products of half-precision states are taken in their own type (the weight is brought to
        it), everything after them in float32.

    .. versionadded:: 0.1
    """
    check_number("chunk_size", chunk_size, 1)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if hidden.ndim != 2 or vocabulary.ndim != 2 or hidden.shape[1] != vocabulary.shape[1]:
        raise ValueError(
            "hidden must be (T, H) and vocabulary (V, H); "
            f"got {tuple(hidden.shape)} and {tuple(vocabulary.shape)}"
        )
    for name, given in (("target", target), ("weight", weight)):
        if given is not None and given.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be of shape {tuple(hidden.shape[:1])}; got {tuple(given.shape)}")
    if bias is not None and bias.shape != vocabulary.shape[:1]:
        raise ValueError(f"bias must be of shape {tuple(vocabulary.shape[:1])}; got {tuple(bias.shape)}")
    check_indices("target", target, 0, vocabulary.shape[0] - 1)
    check_values("weight", weight, 0.0)
    target = target.long()
    coefficient = torch.ones(hidden.shape[0], dtype=_precise(hidden), device=hidden.device)
    if weight is not None:
        coefficient = coefficient * weight.to(coefficient.dtype)
    if reduction == "mean":
        mass = coefficient.sum()
        coefficient = coefficient / torch.where(mass > 0, mass, 1.0)
    result: Tensor
    if reduction == "none":
        result = _TokenNLL.apply(hidden, vocabulary, bias, target, chunk_size)  # type: ignore[no-untyped-call]
        return result if weight is None else result * coefficient
    result = _WeighedNLL.apply(  # type: ignore[no-untyped-call]
        hidden, vocabulary, bias, target, coefficient, chunk_size, torch.is_grad_enabled()
    )
    return result
