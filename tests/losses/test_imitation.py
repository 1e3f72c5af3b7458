"""Imitation: against the naive form, the paper's numbers, shared rows, memory of the graph."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pluralign.losses import bradley_terry_loss, imitation_loss, token_nll

D = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_token_nll_against_cross_entropy(chunk_size, with_bias):
    hidden, vocabulary = draw(7, 4).requires_grad_(), draw(11, 4, seed=1).requires_grad_()
    bias = draw(11, seed=2).requires_grad_() if with_bias else None
    target = torch.randint(0, 11, (7,), generator=torch.Generator().manual_seed(3))
    weight = draw(7, seed=4)
    leaves = [v for v in (hidden, vocabulary, bias) if v is not None]
    value = token_nll(hidden, vocabulary, target, bias=bias, chunk_size=chunk_size)
    expected = F.cross_entropy(F.linear(hidden, vocabulary, bias), target, reduction="none")
    torch.testing.assert_close(value, expected)
    slopes = torch.autograd.grad((value * weight).sum(), leaves)
    for slope, reference in zip(slopes, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(slope, reference)


def test_token_nll_gradcheck():
    target = torch.tensor([2, 0, 4])
    args = draw(3, 2).requires_grad_(), draw(5, 2, seed=1).requires_grad_(), draw(5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, v, b: token_nll(h, v, target, bias=b, chunk_size=2), args)


def test_token_nll_of_half_precision_and_extremes():
    hidden = (100 * draw(6, 8)).bfloat16().requires_grad_()
    vocabulary = (100 * draw(9, 8, seed=1)).requires_grad_()
    value = token_nll(hidden, vocabulary.float(), torch.arange(6))
    value.sum().backward()
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert hidden.grad.dtype == torch.bfloat16
    assert hidden.grad.isfinite().all()
    assert vocabulary.grad.isfinite().all()


def plain_rows(mask: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(mask, torch.where(prompt, 0, 1), -1), torch.arange(mask.shape[0])


class TestCustomizedRMOracles:
    """Numbers derived from Cheng et al. 2023 (arXiv 2309.03126)."""

    def rows(self) -> tuple[Tensor, ...]:
        """Two texts whose tokens have the negative log-likelihoods of oracle 7, over a vocabulary of two."""
        nll = torch.tensor([[1.0, 2, 3, 4], [0.5, 0.5, 0.5, 0.5]], dtype=D)
        score = torch.log(torch.expm1(nll))  # softplus(score) = nll: the score of the token not taken
        hidden = torch.cat([score, torch.zeros(2, 1, dtype=D)], dim=1).unsqueeze(-1)
        vocabulary = torch.tensor([[0.0], [1.0]], dtype=D)
        mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
        return hidden, vocabulary, torch.zeros(2, 5, dtype=torch.int64), mask

    def test_customized_rm_oracle_7(self):
        hidden, vocabulary, ids, mask = self.rows()
        prompt = torch.zeros_like(mask)
        prompt[:, 0] = True
        segments, row = plain_rows(mask, prompt)
        each = imitation_loss(hidden, vocabulary, ids, segments, row, include_prompt=True, reduction="none")
        assert each.tolist() == pytest.approx([2.0, 0.5])
        score = torch.tensor([0.99999, 0.0])
        imitated = imitation_loss(hidden, vocabulary, ids, segments, row, weight=(score > 0.85).to(D))
        assert imitated.item() == pytest.approx(2.0)
        ranking = bradley_terry_loss(torch.tensor([2.0], dtype=D), torch.tensor([0.5], dtype=D))
        for coefficient, total in [(0, 0.2014133), (0.1, 0.4014133), (0.3, 0.8014132), (1, 2.2014131)]:
            assert (ranking + coefficient * imitated).item() == pytest.approx(total, abs=3e-7)

    def test_customized_rm_oracle_6_threshold(self):
        for raw, imitated in [((5, 4.25), False), ((5, 4.3), True)]:
            assert (raw[1] / (max(raw) + 1e-5) > 0.85) is imitated


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


def test_ragged_rows_equal_the_naive_form_with_gradients():
    """Rows of different lengths and numbers of responses; gradients of states, head and bias."""
    generator = torch.Generator().manual_seed(5)
    hidden, vocabulary, bias = (
        v.requires_grad_() for v in (draw(4, 11, 3), draw(9, 3, seed=1), draw(9, seed=2))
    )
    layout = [(3, [4, 1, 2]), (5, [3]), (0, [2, 6]), (2, [0, 4])]  # tokens of the prompt and of each response
    tokens = torch.randint(0, 9, (4, 11), generator=generator)
    segments = torch.full((4, 11), -1)
    response_row, naive = [], []
    for n, (prompt, answers) in enumerate(layout):
        segments[n, :prompt] = 0
        start = prompt
        for s, size in enumerate(answers):
            segments[n, start : start + size] = s + 1
            sources = [prompt - 1, *range(start, start + size - 1)][:size]
            counted = [(i, j) for i, j in zip(sources, range(start, start + size), strict=True) if i >= 0]
            logits = hidden[n, [i for i, _ in counted]] @ vocabulary.T + bias
            target = tokens[n, [j for _, j in counted]]
            naive.append(F.cross_entropy(logits, target, reduction="sum") / max(len(counted), 1))
            response_row.append(n)
            start += size
    weight = torch.rand(len(naive), dtype=D, generator=generator)
    weight[1] = 0
    has_tokens = torch.tensor([size > 0 for _, answers in layout for size in answers])
    expected = (torch.stack(naive) * weight).sum() / (weight * has_tokens).sum()
    leaves = hidden, vocabulary, bias
    slopes = torch.autograd.grad(expected, leaves)
    for chunk_size in (1, 4, 1000):
        value = imitation_loss(
            hidden,
            vocabulary,
            tokens,
            segments,
            torch.tensor(response_row),
            bias=bias,
            weight=weight,
            chunk_size=chunk_size,
        )
        torch.testing.assert_close(value, expected)
        for slope, reference in zip(torch.autograd.grad(value, leaves), slopes, strict=True):
            torch.testing.assert_close(slope, reference)


def test_nothing_to_imitate_keeps_the_gradient_path():
    hidden, vocabulary = draw(2, 3, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    ids, segments = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    loss = imitation_loss(hidden, vocabulary, ids, segments, torch.arange(2), weight=torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(vocabulary.grad, torch.zeros_like(vocabulary))


def test_no_tensor_of_all_logits_is_kept():
    """The graph holds states and normalisers, nothing of size tokens x vocabulary."""
    hidden, vocabulary = draw(64, 4).requires_grad_(), draw(1000, 4, seed=1).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
        token_nll(hidden, vocabulary, torch.zeros(64, dtype=torch.int64), chunk_size=8)
    assert max(kept) < 64 * 1000 / 10


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
            lambda: token_nll(math.nan * draw(2, 3), draw(4, 3), ids[0, :2], chunk_size=-1),
            ValueError,
            "chunk_size",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
