"""Loss of tokens under a language-model head: against all logits at once, what it computes, what it keeps."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pluralign.losses import token_nll

D = torch.float64
PRODUCTS = ("mm", "addmm", "addmm_")


class Operations(TorchDispatchMode):
    """Which operations run, and the size of the largest tensor that they make anew."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {v.untyped_storage().data_ptr() for v in args if isinstance(v, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.count[func.overloadpacket.__name__] += 1
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, value.numel())
        return result

    @property
    def products(self) -> int:
        return sum(self.count[name] for name in PRODUCTS)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = D, scale: float = 1.0) -> Tensor:
    values = scale * torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_()


def inputs(
    tokens: int, width: int, words: int, dtype: torch.dtype = D
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, head, bias and targets."""
    target = torch.randint(words, (tokens,), generator=torch.Generator().manual_seed(3))
    return (
        draw(tokens, width, dtype=dtype),
        draw(words, width, seed=1, dtype=dtype),
        draw(words, seed=2),
        target,
    )


def plain(hidden: Tensor, vocabulary: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight x loss with all logits at once."""
    each = F.cross_entropy(F.linear(hidden, vocabulary, bias), target, reduction="none")
    return (each * weight).sum()


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 11),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["sum", "mean", "none"]),
    st.sampled_from([-3.0, 0.0, 0.1, 65536.0]),
)
def test_value_and_gradients_equal_those_of_all_logits(
    tokens, width, words, chunk, biased, reduction, factor
):
    hidden, vocabulary, bias, target = inputs(tokens, width, words)
    weight = draw(tokens, seed=4).detach().clamp_min(0)
    leaves = [hidden, vocabulary, *([bias] if biased else [])]
    head = bias if biased else None
    value = token_nll(
        hidden, vocabulary, target, bias=head, chunk_size=chunk, weight=weight, reduction=reduction
    ).sum()
    share = weight / weight.sum().clamp_min(1e-300) if reduction == "mean" else weight
    expected = plain(hidden, vocabulary, head, target, share)
    torch.testing.assert_close(value, expected)
    slopes = torch.autograd.grad(factor * value, leaves)
    for slope, reference in zip(slopes, torch.autograd.grad(factor * expected, leaves), strict=True):
        torch.testing.assert_close(slope, reference)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_gradcheck_of_every_argument(reduction):
    hidden, vocabulary, bias, target = inputs(4, 2, 5)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=D, requires_grad=True)

    def loss(h: Tensor, v: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return token_nll(h, v, target, bias=b, chunk_size=3, weight=w, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (hidden, vocabulary, bias, weight))


def test_without_weights_every_token_counts_the_same():
    hidden, vocabulary, bias, target = inputs(7, 3, 5)
    each = token_nll(hidden, vocabulary, target, bias=bias)
    torch.testing.assert_close(token_nll(hidden, vocabulary, target, bias=bias, reduction="sum"), each.sum())
    torch.testing.assert_close(
        token_nll(hidden, vocabulary, target, bias=bias, reduction="mean"), each.mean()
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("tokens", "weight"), [(0, None), (0, torch.zeros(0)), (4, torch.zeros(4))])
def test_nothing_that_counts_gives_zero_with_a_gradient_path(tokens, weight, reduction):
    hidden, vocabulary, bias, target = inputs(tokens, 3, 5)
    loss = token_nll(hidden, vocabulary, target, bias=bias, weight=weight, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(v.grad, torch.zeros_like(v)) for v in (hidden, vocabulary, bias))


class TestWhatIsComputed:
    tokens, width, words, chunk = 64, 4, 500, 8

    def run(
        self, *, frozen: bool = False, reduction: str = "sum", grad: bool = True
    ) -> tuple[Operations, Operations]:
        hidden, vocabulary, _, target = inputs(self.tokens, self.width, self.words, torch.float32)
        vocabulary.requires_grad_(not frozen)
        with torch.set_grad_enabled(grad), Operations() as forward:
            value = token_nll(hidden, vocabulary, target, chunk_size=self.chunk, reduction=reduction).sum()
        with Operations() as backward:
            if grad:
                value.backward()
        return forward, backward

    def test_three_matrix_products_in_all_and_none_going_back(self):
        forward, backward = self.run()
        assert forward.products == 3 * self.tokens / self.chunk
        assert backward.products == 0

    def test_single_tokens_take_a_fourth(self):
        forward, backward = self.run(reduction="none")
        assert forward.products == self.tokens / self.chunk
        assert backward.products == 3 * self.tokens / self.chunk

    def test_no_gradient_is_computed_that_nobody_needs(self):
        forward, backward = self.run(frozen=True)
        assert forward.products == 2 * self.tokens / self.chunk
        assert max(forward.largest, backward.largest) < self.words * self.chunk + 1
        forward, _ = self.run(grad=False)
        assert forward.products == self.tokens / self.chunk

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_never_more_logits_than_a_chunk(self, reduction):
        forward, backward = self.run(reduction=reduction)
        assert max(forward.largest, backward.largest) == self.words * self.chunk
        assert self.words * self.chunk == self.tokens * self.words / 8

    def test_the_head_s_gradient_is_handed_on_in_the_memory_it_has(self):
        _, backward = self.run()
        assert backward.largest < self.words * self.width


def test_nothing_of_the_size_of_all_logits_is_kept():
    hidden, vocabulary, _, target = inputs(64, 4, 1000)
    kept: list[int] = []
    for reduction in ("sum", "none"):
        with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
            token_nll(hidden, vocabulary, target, chunk_size=8, reduction=reduction)
    assert max(kept) < 64 * 1000 / 10


def test_a_graph_that_was_kept_gives_the_same_gradients_again():
    """The first pass hands its memory on; what becomes of it there must not reach the second."""
    hidden, vocabulary, bias, target = inputs(6, 3, 7)
    weight = draw(6, seed=4).detach().abs()
    loss = token_nll(hidden, vocabulary, target, bias=bias, chunk_size=4, weight=weight, reduction="sum")
    leaves = hidden, vocabulary, bias
    first = torch.autograd.grad(2 * loss, leaves, retain_graph=True)
    copies = [slope.clone() for slope in first]
    for slope in first:
        slope.zero_()
    for slope, copy in zip(torch.autograd.grad(2 * loss, leaves, retain_graph=True), copies, strict=True):
        torch.testing.assert_close(slope, copy)
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, copy in zip(leaves, copies, strict=True):
        torch.testing.assert_close(leaf.grad, copy)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_no_second_derivative_is_made_up():
    hidden, vocabulary, _, target = inputs(3, 2, 4)
    loss = token_nll(hidden, vocabulary, target, reduction="sum")
    for value, message in ((loss, "does not require grad"), (loss.square(), "once_differentiable")):
        (slope,) = torch.autograd.grad(value, hidden, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            slope.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_inside_gradient_checkpointing(use_reentrant):
    hidden, vocabulary, bias, target = inputs(6, 3, 7)

    def loss(h: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return token_nll(h.tanh(), v, target, bias=b, chunk_size=4, reduction="mean")

    leaves = hidden, vocabulary, bias
    expected = torch.autograd.grad(3 * loss(*leaves), leaves)
    (3 * checkpoint(loss, *leaves, use_reentrant=use_reentrant)).backward()
    for leaf, slope in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, slope)


def test_weights_tied_to_the_embedding():
    table, target = draw(7, 3), torch.tensor([1, 2, 3, 4, 6])
    given_ = torch.tensor([0, 1, 2, 3, 4])
    loss = token_nll(F.embedding(given_, table).tanh(), table, target, chunk_size=2, reduction="mean")
    expected = F.cross_entropy(F.embedding(given_, table).tanh() @ table.T, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, table), torch.autograd.grad(expected, table))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("factor", [1.0, 2.0**16])
def test_half_precision(dtype, tolerance, reduction, factor):
    """Many tokens, so that each counts little: their coefficients must not vanish in float16."""
    tokens = 3000
    hidden, vocabulary, _, target = inputs(tokens, 8, 20, dtype)
    value = token_nll(hidden, vocabulary, target, reduction=reduction, weight=torch.full((tokens,), 1e-4))
    if reduction == "none":
        value = value.sum() / (tokens * 1e-4)
    assert value.dtype == torch.float32
    slopes = torch.autograd.grad(factor * value, (hidden, vocabulary))
    assert [slope.dtype for slope in slopes] == [dtype, dtype]
    precise = [v.detach().double().requires_grad_() for v in (hidden, vocabulary)]
    expected = plain(*precise, None, target, torch.full((tokens,), 1 / tokens, dtype=D))
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    for slope, reference in zip(slopes, torch.autograd.grad(factor * expected, precise), strict=True):
        assert (slope.double() - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_extremes_are_finite(reduction):
    for dtype, scale in ((torch.float32, 1e15), (torch.bfloat16, 1e15), (torch.float32, 0.0)):
        hidden = draw(6, 8, dtype=dtype, scale=scale)
        vocabulary = draw(9, 8, seed=1, dtype=torch.float32, scale=scale)
        value = token_nll(hidden, vocabulary, torch.arange(6), reduction=reduction).sum()
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert hidden.grad.dtype == dtype
        assert all(v.grad.isfinite().all() for v in (hidden, vocabulary))


def test_a_token_is_never_so_unlikely_that_its_loss_is_infinite():
    """The loss of a probability that underflows is the gap of the logits, not -log 0."""
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    loss = token_nll(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]), reduction="sum")
    loss.backward()
    assert loss.item() == 2000
    assert hidden.grad.item() == 2


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_changes_neither_value_nor_gradients(reduction):
    hidden, vocabulary, _, target = inputs(6, 8, 9, torch.float32)

    def value_and_slopes() -> tuple[Tensor, ...]:
        value = token_nll(hidden, vocabulary, target, reduction=reduction).sum()
        return value.detach(), *torch.autograd.grad(value, (hidden, vocabulary))

    outside = value_and_slopes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_slopes()
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_weights_and_reductions_that_do_not_fit_are_named():
    hidden, vocabulary, _, target = inputs(3, 2, 4)
    with pytest.raises(ValueError, match=r"weight must be of shape \(3,\); got \(2,\)"):
        token_nll(hidden, vocabulary, target, weight=torch.ones(2))
    with pytest.raises(
        ValueError, match=r"weight must be finite and in \[0, inf\); got -1.0 at index \(2,\)"
    ):
        token_nll(hidden, vocabulary, target, weight=torch.tensor([1.0, 1, -1]))
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none'; got 'total'"):
        token_nll(hidden, vocabulary, target, reduction="total")
