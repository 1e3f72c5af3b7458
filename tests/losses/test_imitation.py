"""Imitation and perplexity: against the naive form, shared rows, who counts and what is computed."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import ImitationLoss, bradley_terry_loss, imitation_loss, response_nll, token_nll

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def test_frontier_oracle_8():
    """Regularised hidden states (arXiv 2406.10216): a share of imitation in a Bradley-Terry loss."""
    zero = torch.zeros(1, dtype=D)
    ranking = bradley_terry_loss(zero + 1, zero)
    imitation = bradley_terry_loss(0.1 * (zero - 20), zero)
    assert (0.99 * ranking + 0.01 * imitation).item() == pytest.approx(0.3313984, abs=1e-7)


@pytest.mark.parametrize("include_prompt", [False, True])
def test_shared_rows_equal_separate_rows_and_loops(include_prompt):
    """Two prompts with 2 and 1 responses: once sharing a row, once a row each; states made to agree."""
    prompts, answers = [[1, 2, 3], [4, 5]], [[[6, 7], [8]], [[9, 1, 2]]]
    state = draw(12, 4)  # a state per token: position does not matter to the loss
    vocabulary = draw(12, 4, seed=1)

    def pack(rows: list[list[tuple[int, int]]]) -> tuple[Tensor, Tensor, Tensor]:
        length = max(map(len, rows))
        ids = torch.tensor([[token for token, _ in row] + [0] * (length - len(row)) for row in rows])
        segments = torch.tensor([[s for _, s in row] + [-1] * (length - len(row)) for row in rows])
        return state[ids], ids, segments

    shared = [
        [(token, 0) for token in prompt] + [(token, s + 1) for s, a in enumerate(group) for token in a]
        for prompt, group in zip(prompts, answers, strict=True)
    ]
    separate = [
        [(token, 0) for token in prompt] + [(token, 1) for token in a]
        for prompt, group in zip(prompts, answers, strict=True)
        for a in group
    ]
    expected = []
    for prompt, group in zip(prompts, answers, strict=True):
        for a in group:
            text = prompt + a
            log_p = (state[text] @ vocabulary.T).log_softmax(-1)
            first = 1 if include_prompt else len(prompt)
            expected.append(
                -sum(log_p[t - 1, text[t]].item() for t in range(first, len(text))) / (len(text) - first)
            )
    for rows, response_row in [(shared, [0, 0, 1]), (separate, [0, 1, 2])]:
        hidden, ids, segments = pack(rows)
        for weight in (None, torch.tensor([0.0, 2.0, 1.0], dtype=D)):
            options = {"include_prompt": include_prompt, "weight": weight, "chunk_size": 2}
            args = hidden, vocabulary, ids, segments, torch.tensor(response_row)
            each = imitation_loss(*args, reduction="none", **options)
            w = torch.ones(3, dtype=D) if weight is None else weight
            torch.testing.assert_close(each, torch.tensor(expected, dtype=D) * w)
            mean = imitation_loss(*args, **options)
            torch.testing.assert_close(mean, each.sum() / w.sum())


@pytest.mark.parametrize("include_prompt", [False, True])
def test_padding_on_the_left_changes_nothing(include_prompt):
    state, vocabulary = draw(6, 4), draw(6, 4, seed=1)
    text, segments = [1, 2, 3, 4, 5], [0, 0, 1, 1, 2]
    rows = [(torch.tensor([[*text, 0, 0]]), torch.tensor([[*segments, -1, -1]]))]
    rows.append((torch.tensor([[0, 0, *text]]), torch.tensor([[-1, -1, *segments]])))
    response_row = torch.zeros(2, dtype=torch.int32)
    right, left = (
        imitation_loss(
            state[i], vocabulary, i.int(), s, response_row, include_prompt=include_prompt, reduction="none"
        )
        for i, s in rows
    )
    torch.testing.assert_close(left, right)


LAYOUT = [(3, [4, 1, 2]), (5, [3]), (0, [2, 6]), (2, [0, 4])]  # tokens of the prompt and of each response
RESPONSE_ROW = torch.tensor([n for n, (_, answers) in enumerate(LAYOUT) for _ in answers])


def ragged_rows() -> tuple[Tensor, Tensor]:
    """Tokens and segments of rows of different lengths and numbers of responses."""
    tokens = torch.randint(0, 9, (4, 11), generator=torch.Generator().manual_seed(5))
    segments = torch.full((4, 11), -1)
    for n, (prompt, answers) in enumerate(LAYOUT):
        sizes = torch.tensor([prompt, *answers])
        segments[n, : sizes.sum()] = torch.arange(len(sizes)).repeat_interleave(sizes)
    return tokens, segments


def naive(
    hidden: Tensor, vocabulary: Tensor, bias: Tensor, *, include_prompt: bool = False
) -> tuple[Tensor, list[int]]:
    """Sums over each response of the ragged rows, from its own logits, and numbers of tokens."""
    tokens, segments = ragged_rows()
    sums, counts, seen = [], [], Counter[int]()
    for n in RESPONSE_ROW.tolist():
        seen[n] += 1
        prompt = (segments[n] == 0).nonzero().flatten().tolist()
        text = prompt + (segments[n] == seen[n]).nonzero().flatten().tolist()
        first = max(1 if include_prompt else len(prompt), 1)
        logits = hidden[n, text[first - 1 : -1]] @ vocabulary.T + bias
        target = tokens[n, text[first:]]
        sums.append(F.cross_entropy(logits, target, reduction="sum"))
        counts.append(len(target))
    return torch.stack(sums), counts


def head() -> tuple[Tensor, Tensor, Tensor]:
    """States of the ragged rows, a head of nine words and its bias."""
    values = draw(4, 11, 3), draw(9, 3, seed=1), draw(9, seed=2)
    return tuple(v.requires_grad_() for v in values)


@pytest.mark.parametrize("include_prompt", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ragged_rows_equal_the_naive_form_with_gradients(reduction, chunk_size, include_prompt):
    """Gradients of states, head, bias and of the weights themselves."""
    leaves = head()
    weight = torch.rand(len(RESPONSE_ROW), dtype=D, generator=torch.Generator().manual_seed(6))
    weight[1] = 0
    weight.requires_grad_()
    sums, counts = naive(*leaves, include_prompt=include_prompt)
    share = weight * (torch.tensor(counts) > 0)
    expected = sums / torch.tensor(counts).clamp_min(1) * share
    expected = expected if reduction == "none" else expected.sum()
    expected = expected / share.sum() if reduction == "mean" else expected
    hidden, vocabulary, bias = leaves
    value = imitation_loss(
        hidden, vocabulary, *ragged_rows(), RESPONSE_ROW,
        bias=bias, weight=weight, chunk_size=chunk_size, reduction=reduction, include_prompt=include_prompt,
    )  # fmt: skip
    torch.testing.assert_close(value, expected)
    slopes = torch.autograd.grad(value.sum(), (*leaves, weight))
    references = torch.autograd.grad(expected.sum(), (*leaves, weight))
    for slope, reference in zip(slopes[:3], references[:3], strict=True):
        torch.testing.assert_close(slope, reference)
    # A response without weight is not computed, so nothing says what a little weight would bring.
    torch.testing.assert_close(slopes[3][weight > 0], references[3][weight > 0])


@pytest.mark.parametrize("include_prompt", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_and_counts_of_responses(masked, include_prompt):
    leaves = head()
    sums, counts = naive(*leaves, include_prompt=include_prompt)
    mask = torch.tensor([True, False, True, True, False, True, True, False]) if masked else None
    kept = torch.ones(len(counts), dtype=torch.bool) if mask is None else mask
    hidden, vocabulary, bias = leaves
    found, numbers = response_nll(
        hidden, vocabulary, *ragged_rows(), RESPONSE_ROW, bias=bias, mask=mask, include_prompt=include_prompt
    )
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [count if k else 0 for count, k in zip(counts, kept.tolist(), strict=True)]
    torch.testing.assert_close(found, sums * kept)
    share = draw(len(counts), seed=7)
    slopes = torch.autograd.grad((found * share).sum(), leaves)
    for slope, reference in zip(
        slopes, torch.autograd.grad((sums * kept * share).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(slope, reference)


@settings(max_examples=40)
@given(st.data())
def test_any_row_of_responses_is_their_separate_rows(data):
    """Any prompt and responses, empty ones too: sharing a row changes neither sums, counts nor gradients."""
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    prompt = data.draw(st.integers(0, 4))
    include_prompt = data.draw(st.booleans())
    length, k = prompt + sum(sizes), len(sizes)
    if length == 0:
        return
    state, vocabulary = draw(7, 3).requires_grad_(), draw(7, 3, seed=1).requires_grad_()
    tokens = torch.randint(7, (length,), generator=torch.Generator().manual_seed(length))
    segments = torch.arange(k + 1).repeat_interleave(torch.tensor([prompt, *sizes]))
    mine = (segments == 0) | (segments == torch.arange(1, k + 1)[:, None])
    apart = torch.where(mine, (segments > 0).long(), -1)  # the others' tokens become padding
    order = (~mine).long().argsort(dim=1, stable=True)
    rows = tokens.expand(k, -1).gather(1, order), apart.gather(1, order)
    weight = torch.arange(k, dtype=D)
    results = []
    for (ids, parts), row in (
        ((tokens[None], segments[None]), torch.zeros(k, dtype=torch.int64)),
        (rows, torch.arange(k)),
    ):
        args = state[ids], vocabulary, ids, parts, row
        loss = imitation_loss(*args, weight=weight, include_prompt=include_prompt, chunk_size=3)
        found = response_nll(*args, include_prompt=include_prompt)
        results.append((*found, loss, *torch.autograd.grad(loss, (state, vocabulary))))
    for shared, separate in zip(*results, strict=True):
        torch.testing.assert_close(shared, separate)


def test_perplexity_of_batches_is_that_of_all_texts_together():
    hidden, vocabulary, bias = (v.detach() for v in head())
    tokens, segments = ragged_rows()
    sums, counts = naive(hidden, vocabulary, bias)
    total, number = 0.0, 0
    for n in range(len(LAYOUT)):
        row = torch.zeros(int((RESPONSE_ROW == n).sum()), dtype=torch.int64)
        part = slice(n, n + 1)
        found = response_nll(hidden[part], vocabulary, tokens[part], segments[part], row, bias=bias)
        total, number = total + found[0].sum(), number + found[1].sum()
    assert (total / number).exp().item() == pytest.approx((sums.sum() / sum(counts)).exp().item())


def test_half_precision_under_autocast():
    """States from a network under autocast and a head in float32, as a trainer has them."""
    hidden, vocabulary, bias = (v.detach().float() for v in head())
    states = hidden.bfloat16().requires_grad_()
    vocabulary.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = imitation_loss(states, vocabulary, *ragged_rows(), RESPONSE_ROW, bias=bias, chunk_size=4)
    loss.backward()
    precise = hidden.double().requires_grad_(), vocabulary.detach().double().requires_grad_()
    expected = imitation_loss(*precise, *ragged_rows(), RESPONSE_ROW, bias=bias.double())
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for value, reference in zip((states, vocabulary), precise, strict=True):
        assert value.grad.dtype == value.dtype
        assert (value.grad.double() - reference.grad).norm() <= 2e-2 * reference.grad.norm()


def test_a_copy_of_the_module_gives_the_same():
    hidden, vocabulary, _ = (v.detach() for v in head())
    module = ImitationLoss(include_prompt=True, chunk_size=3)
    args = hidden, vocabulary, *ragged_rows(), RESPONSE_ROW
    assert torch.equal(copy.deepcopy(module)(*args), module(*args))


def test_nothing_to_imitate_keeps_the_gradient_path():
    hidden, vocabulary = draw(2, 3, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    ids, segments = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    loss = imitation_loss(hidden, vocabulary, ids, segments, torch.arange(2), weight=torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(vocabulary.grad, torch.zeros_like(vocabulary))


ids = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: token_nll(draw(2, 3), draw(4, 2), ids[0, :2]),
            ValueError,
            r"hidden must be \(T, H\) and vocabulary",
        ),
        (
            lambda: token_nll(draw(2, 3), draw(4, 3), ids[0, :2] + 4),
            ValueError,
            r"target must be in \[0, 3\]; got 4",
        ),
        (lambda: token_nll(draw(2, 3), draw(4, 3), draw(2)), TypeError, "target must hold integers"),
        (
            lambda: token_nll(draw(2, 3), draw(4, 3), ids[0, :2], chunk_size=0),
            ValueError,
            "chunk_size must be in",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids[:, :2], ids[0, :2]),
            ValueError,
            r"hidden must be \(N, L, H\)",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids, ids[0, :2], weight=torch.ones(3)),
            ValueError,
            r"response_row and weight must be \(R,\)",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids, torch.tensor([0, 2])),
            ValueError,
            r"response_row must be in \[0, 1\]; got 2",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids, torch.tensor([1, 0])),
            ValueError,
            r"steps of response_row must be finite and in \[0, inf\); got -1",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids + 2, torch.tensor([0, 1])),
            ValueError,
            r"responses of a row \(in response_row\) less its segments must be .* got -1 at index \(0,\)",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, draw(2, 3), torch.tensor([0, 1])),
            TypeError,
            "segment_ids must hold integers",
        ),
        (
            lambda: response_nll(draw(2, 3, 4), draw(5, 4), ids, ids, ids[0, :2], mask=ids[0, :3] > 0),
            ValueError,
            r"response_row and mask must be \(R,\); got \(2,\) and \(3,\)",
        ),
        (
            lambda: response_nll(draw(2, 3, 4), draw(5, 4), ids, ids, ids[0, :2], mask=torch.ones(2)),
            TypeError,
            "mask must be boolean",
        ),
        (
            lambda: imitation_loss(draw(2, 3, 4), draw(5, 4), ids, ids, ids[0, :2], reduction="total"),
            ValueError,
            "reduction must be one of 'mean', 'sum', 'none'; got 'total'",
        ),
        (
            lambda: token_nll(math.nan * draw(2, 3), draw(4, 3), ids[0, :2], chunk_size=-1),
            ValueError,
            "chunk_size",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
