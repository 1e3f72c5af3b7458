"""MetaRM's objective: the numbers of the report, ties, a first-order meta step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import bradley_terry_loss, separation_objective

D = torch.float64


class TestEnsembleVoteOracles:
    """Numbers derived from Wang et al. 2024 (arXiv 2401.06080)."""

    def test_ensemble_vote_oracle_7(self):
        scores = torch.tensor([[0.2, 0.5, 1.1]], dtype=D, requires_grad=True)
        value = separation_objective(scores)
        value.backward()
        assert value.item() == pytest.approx(0.4291219, abs=1e-7)
        assert scores.grad[0].tolist() == pytest.approx([-0.1000, 0.0035, 0.0965], abs=5e-5)
        assert scores.grad.sum().item() == pytest.approx(0, abs=1e-15)
        moved = separation_objective(scores.detach().flip(-1) + 3)
        assert moved.item() == pytest.approx(0.4291219, abs=1e-7)
        tied = torch.zeros(1, 3, dtype=D, requires_grad=True)
        separation_objective(tied).backward()
        assert torch.equal(tied.grad, torch.zeros(1, 3, dtype=D))

    @pytest.mark.parametrize(("k", "tied", "apart"), [(2, 0.25, 0.5), (4, 0.375, 0.75), (5, 0.4, 0.8)])
    def test_range_of_the_objective(self, k, tied, apart):
        assert separation_objective(torch.zeros(1, k)).item() == pytest.approx(tied)
        assert separation_objective(1e4 * torch.arange(k, dtype=D)[None]).item() == pytest.approx(apart)

    def test_ensemble_vote_oracle_8(self):
        """One first-order meta step is g + eta H g_J up to eta^2; without the step it is the plain gradient."""
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(6, dtype=D, generator=generator)
        pairs = torch.randn(2, 8, 3, dtype=D, generator=generator)
        samples = torch.randn(4, 5, 3, dtype=D, generator=generator)

        def reward(theta: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(x @ theta[:3]) + (x @ theta[3:]).square() / 4

        def labelled(theta: Tensor) -> Tensor:
            return bradley_terry_loss(reward(theta, pairs[0]), reward(theta, pairs[1]))

        def separation(theta: Tensor) -> Tensor:
            return separation_objective(reward(theta, samples))

        grad = torch.autograd.functional.jacobian
        g, ascent = grad(labelled, weights), grad(separation, weights)
        curvature = torch.autograd.functional.hessian(labelled, weights)
        residual, gap = [], []
        other = torch.autograd.functional.hessian(separation, weights) @ g
        for eta in (1e-2, 1e-3, 1e-4):
            actual = grad(labelled, weights + eta * ascent)
            first_order = g + eta * curvature @ ascent
            residual.append((actual - first_order).norm().item())
            gap.append((actual - first_order - eta * other).norm().item())
        assert residual[0] / residual[1] == pytest.approx(100, rel=0.05)
        assert residual[1] / residual[2] == pytest.approx(100, rel=0.05)
        assert gap[1] / gap[2] == pytest.approx(10, rel=0.05)
        assert torch.equal(grad(labelled, weights + 0 * ascent), g)


def by_loops(scores: list[float]) -> float:
    k = len(scores)
    total = sum(1 / (1 + math.exp(-abs(scores[i] - scores[j]))) for i in range(k) for j in range(i + 1, k))
    return 2 * total / k**2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6))
def test_against_loops_with_padding(scores):
    padded = torch.tensor([[*scores, math.nan, math.nan]], dtype=D)
    mask = ~padded.isnan()
    value = separation_objective(padded, mask=mask).item()
    assert value == pytest.approx(by_loops(scores), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_flat_list_is_the_mean_over_prompts_of_two_responses_or_more(prompts):
    flat = torch.tensor([score for scores in prompts for score in scores], dtype=D)
    group = torch.tensor([i for i, scores in enumerate(prompts) for _ in scores])
    values = [by_loops(scores) for scores in prompts]
    several = sum(len(scores) > 1 for scores in prompts)
    assert separation_objective(flat, group=group).item() == pytest.approx(sum(values) / max(several, 1))
    assert separation_objective(flat, group=group, reduction="sum").item() == pytest.approx(sum(values))
    shares = separation_objective(flat, group=group, reduction="none")
    added = torch.zeros(len(prompts), dtype=D).index_add(0, group, shares)
    torch.testing.assert_close(added, torch.tensor(values, dtype=D))


def test_a_flat_list_has_the_gradients_of_padded_rows():
    padded = torch.tensor([[0.2, 0.5, 1.1], [0.4, -0.3, 0.0], [0.7, 0.7, 0.0]], dtype=D, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    weight, group = torch.tensor([1.0, 2.0, 0.5], dtype=D), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    for options in ({}, {"smoothing": 0.1}, {"break_ties": True}):
        rows = separation_objective(padded, mask=mask, weight=weight, **options)
        flat = separation_objective(padded[mask], group=group, weight=weight[group], **options)
        torch.testing.assert_close(rows, flat)
        torch.testing.assert_close(*(torch.autograd.grad(value, padded)[0] for value in (rows, flat)))


def test_a_flat_list_without_a_pair_has_no_gradient_and_a_path():
    alone = torch.tensor([0.3, 1.0], requires_grad=True)
    value = separation_objective(alone, group=torch.tensor([0, 1]))
    value.backward()
    assert float(value.detach()) == 0 and alone.grad.tolist() == [0, 0]


def test_smoothing_rounds_the_corner_but_ties_still_lack_a_gradient():
    tied = torch.zeros(1, 3, dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(separation_objective(tied, smoothing=0.1), tied)
    assert torch.equal(grad, torch.zeros(1, 3, dtype=D))
    near = torch.tensor([[0.0, 1e-6]], dtype=D, requires_grad=True)
    (rough,) = torch.autograd.grad(separation_objective(near), near)
    (smooth,) = torch.autograd.grad(separation_objective(near, smoothing=0.1), near)
    assert rough.abs().max() > 0.1
    assert 0 < smooth.abs().max() < 1e-5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_breaking_ties_parts_them_and_changes_no_value(smoothing):
    tied = torch.zeros(1, 3, dtype=D, requires_grad=True)
    broken = separation_objective(tied, smoothing=smoothing, break_ties=True)
    assert broken.item() == separation_objective(tied, smoothing=smoothing).item()
    (grad,) = torch.autograd.grad(broken, tied)
    assert grad[0, 0] > 0 > grad[0, 2]
    stepped = tied.detach() + 0.1 * grad
    assert separation_objective(stepped).item() > separation_objective(tied).item()


def test_gradcheck():
    scores = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for smoothing in (0.0, 0.3):
        assert torch.autograd.gradcheck(lambda s, e=smoothing: separation_objective(s, smoothing=e), scores)
