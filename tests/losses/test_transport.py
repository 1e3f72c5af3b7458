"""Transport between label distributions: the numbers of the DPRM paper, POT, and metric axioms."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import (
    CategoricalWassersteinLoss,
    SinkhornDivergenceLoss,
    _scaling,
    beta_wasserstein_to_share,
    categorical_wasserstein,
    sinkhorn_divergence,
    sinkhorn_plan,
    transport_potentials,
)

D = torch.float64
REWARDS = torch.tensor([1, 0.5, -1, -1, -1.5, -3], dtype=D)
GRID = torch.tensor(
    [
        [0, 1, 2, 1, 2, 3],
        [1, 0, 1, 2, 1, 2],
        [2, 1, 0, 3, 2, 1],
        [1, 2, 3, 0, 1, 2],
        [2, 1, 2, 1, 0, 1],
        [3, 2, 1, 2, 1, 0],
    ],
    dtype=D,
)
PAIR_A = ([0.3, 0.1, 0.4, 0.2, 0, 0], [0.2, 0.4, 0.3, 0.1, 0, 0])
TABLE = [  # p, q, index, squared index, reward, grid
    (*PAIR_A, 0.4, 0.4, 0.35, 0.4),
    ([0.9, 0.1, 0, 0, 0, 0], [0.9, 0, 0.1, 0, 0, 0], 0.1, 0.1, 0.15, 0.1),
    ([0.9, 0.1, 0, 0, 0, 0], [0.9, 0, 0, 0, 0, 0.1], 0.4, 1.6, 0.35, 0.2),
    ([0.5, 0.1, 0.4, 0, 0, 0], [0.3, 0, 0.5, 0, 0.2, 0], 0.9, 1.7, 0.65, 0.5),
    ([1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], 5, 25, 4, 3),
    ([0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], 1, 1, 0, 3),
]


def dirichlet(rows: int, labels: int, seed: int, concentration: float = 0.7) -> Tensor:
    draws = np.random.default_rng(seed).dirichlet(np.full(labels, concentration), rows)
    return torch.from_numpy(draws / draws.sum(-1, keepdims=True))


def by_pot(p: Tensor, q: Tensor, cost: Tensor) -> Tensor:
    matrix = cost.double().numpy()
    return torch.tensor(
        [
            (ot.emd(a.numpy(), b.numpy(), matrix) * matrix).sum()
            for a, b in zip(p.double(), q.double(), strict=True)
        ],
        dtype=D,
    )


def line(places: Tensor, exponent: float = 1.0) -> Tensor:
    return (places[:, None] - places).abs().pow(exponent)


class TestDPRMOracles:
    """Numbers derived from Li et al. 2024 (arXiv 2402.09764)."""

    @pytest.mark.parametrize("row", TABLE, ids=["a", "b1", "b2", "c", "d", "e"])
    def test_dprm_oracle_1(self, row):
        p, q = torch.tensor(row[0], dtype=D), torch.tensor(row[1], dtype=D)
        values = [
            categorical_wasserstein(p, q),
            categorical_wasserstein(p, q, exponent=2),
            categorical_wasserstein(p, q, cost=REWARDS),
            categorical_wasserstein(p, q, cost=GRID),
        ]
        assert [float(v) for v in values] == pytest.approx(row[2:], abs=1e-12)

    def test_dprm_oracle_2(self):
        """Cross-entropy finds B1 and B2 equally wrong; transport does not."""
        entropies = []
        for p, q, index, *_ in TABLE[1:3]:
            floored = torch.tensor(q, dtype=D) + 1e-6
            entropies.append(-(torch.tensor(p, dtype=D) * (floored / floored.sum()).log()).sum().item())
            assert categorical_wasserstein(torch.tensor(q), torch.tensor(p)).item() == pytest.approx(index)
        assert entropies == pytest.approx([1.476381, 1.476381], abs=5e-7)

    def test_dprm_oracle_3(self):
        p, q = dirichlet(500, 6, 0), dirichlet(500, 6, 1)
        error = ((p - q) @ REWARDS).abs()
        reward = categorical_wasserstein(p, q, cost=REWARDS, reduction="none")
        index = categorical_wasserstein(p, q, reduction="none")
        assert (error <= reward + 1e-12).all()
        assert (reward <= 1.5 * index + 1e-12).all()
        p, q = (torch.tensor([row[i] for row in TABLE], dtype=D) for i in (0, 1))
        error = ((p - q) @ REWARDS).abs()
        reward = categorical_wasserstein(p, q, cost=REWARDS, reduction="none")
        assert error.tolist() == pytest.approx([0.25, 0.15, 0.35, 0.65, 4, 0])
        assert ((reward - error) > 1e-9).tolist() == [True, False, False, False, False, False]

    prior = torch.tensor([0.3, 0.4, 0.2, 0.05, 0.03, 0.02], dtype=D)

    def beta_moments(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean: distance to the share 0. Variance: squared distance (order 2) to the mean."""
        mean = beta_wasserstein_to_share(alpha, beta, torch.zeros_like(alpha), reduction="none")
        return mean, beta_wasserstein_to_share(alpha, beta, mean, order=2, reduction="none").square()

    def test_dprm_oracle_4(self):
        """Posterior of a label each as a beta distribution; their means are the Dirichlet's."""
        votes = torch.tensor([5.0, 1, 4, 0, 0, 0], dtype=D)
        alpha, beta = 10 * self.prior + votes, 10 * (1 - self.prior) + votes.sum() - votes
        assert alpha.tolist() == pytest.approx([8, 5, 6, 0.5, 0.3, 0.2])
        assert beta.tolist() == pytest.approx([12, 15, 14, 19.5, 19.7, 19.8])
        mean, variance = self.beta_moments(alpha, beta)
        assert mean.tolist() == pytest.approx([0.4, 0.25, 0.3, 0.025, 0.015, 0.01], abs=1e-9)
        expected = [0.0114286, 0.0089286, 0.01, 0.0011607, 0.0007036, 0.0004714]
        assert variance.tolist() == pytest.approx(expected, abs=6e-8)
        assert (self.prior @ REWARDS).item() == pytest.approx(0.145)
        assert (mean @ REWARDS).item() == pytest.approx(0.1475)
        moved = categorical_wasserstein(self.prior, mean, cost=REWARDS).item()
        assert moved >= 0.1475 - 0.145

    def test_dprm_oracle_5(self):
        """The order of votes does not matter, but forgetting the prior does."""
        votes = [0, 2, 0, 1, 2, 0, 2, 0, 2, 0]
        for order in (votes, votes[::-1], sorted(votes)):
            alpha, beta = 10 * self.prior, 10 * (1 - self.prior)
            for vote in order:
                hit = torch.nn.functional.one_hot(torch.tensor(vote), 6)
                alpha, beta = alpha + hit, beta + 1 - hit
            mean, _ = self.beta_moments(alpha, beta)
            assert mean.tolist() == pytest.approx([0.4, 0.25, 0.3, 0.025, 0.015, 0.01], abs=1e-9)
        counts = torch.bincount(torch.tensor(votes), minlength=6)
        mean, _ = self.beta_moments(9 * self.prior + counts, 9 * (1 - self.prior) + 10 - counts)
        expected = [0.405263, 0.242105, 0.305263, 0.023684, 0.014211, 0.009474]
        assert mean.tolist() == pytest.approx(expected, abs=6e-7)
        assert (mean @ REWARDS).item() == pytest.approx(0.147632, abs=6e-7)

    def test_dprm_oracle_6(self):
        z = torch.tensor([0.2, -0.1, 0.4, 0, -0.5, 0.3], dtype=D, requires_grad=True)
        probabilities = z.softmax(-1)
        expected = torch.tensor([0.185780, 0.137629, 0.226912, 0.152104, 0.092256, 0.205319], dtype=D)
        torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=0)
        slope = torch.tensor([-0.453932, -0.198652, -0.100609, 0.084664, 0.143607, 0.524922], dtype=D)
        target = torch.tensor(PAIR_A[0], dtype=D)
        for cost in ("index", line(torch.arange(6.0, dtype=D))):
            loss = categorical_wasserstein(z.softmax(-1), target, cost=cost)
            (grad,) = torch.autograd.grad(loss, z)
            assert loss.item() == pytest.approx(0.943382, abs=1e-6)
            torch.testing.assert_close(grad, slope, atol=1e-6, rtol=0)

    def test_dprm_oracle_7(self):
        p, q = (torch.tensor(x, dtype=D) for x in PAIR_A)
        cost = line(torch.arange(6.0, dtype=D))
        for epsilon, value in [(1, 0.63424), (0.5, 0.44334), (0.1, 0.4), (0.05, 0.4)]:
            plan = sinkhorn_plan(p, q, epsilon=epsilon, num_iterations=500)
            assert (plan * cost).sum().item() == pytest.approx(value, abs=6e-6)

    def test_dprm_oracle_8(self):
        """Expected reward of two rows of the paper's table 2: what they lack of the best label's."""
        rows = torch.tensor(
            [[37.55, 58.33, 2.91, 0.83, 0.24, 0.15], [28.66, 59.54, 7.93, 1.40, 0.69, 1.78]], dtype=D
        )
        best = torch.eye(6, dtype=D)[0].expand(2, 6)
        p = rows / rows.sum(-1, keepdim=True)
        lack = categorical_wasserstein(p, best, cost=REWARDS, reduction="none")
        assert (rows / 100 @ REWARDS).tolist() == pytest.approx([0.6216, 0.4272], abs=6e-5)
        assert (1 - lack).tolist() == pytest.approx([0.6216, 0.4272], abs=2e-4)

    def test_dprm_oracle_9(self):
        """The grid is the city-block metric of helpfulness and harmlessness."""
        help_, safe = torch.tensor([2.0, 1, 0, 2, 1, 0]), torch.tensor([1.0, 1, 1, 0, 0, 0])
        assert torch.equal((line(help_) + line(safe)).double(), GRID)

    def test_dprm_oracle_10(self):
        """The figure's votes: response A has the higher expected reward."""
        p, q = (torch.tensor(x, dtype=D) for x in TABLE[3][:2])
        assert (p @ REWARDS).item() == pytest.approx(0.15)
        assert (q @ REWARDS).item() == pytest.approx(-0.5)


ASYMMETRIC_METRIC = torch.tensor([[0.0, 1, 3], [2, 0, 2], [1, 1.5, 0]], dtype=D)


@pytest.mark.parametrize(
    "cost",
    [
        GRID,
        line(REWARDS) + 0.1 * GRID,
        ASYMMETRIC_METRIC,
        line(torch.arange(6.0, dtype=D), 2),
        torch.from_numpy(np.random.default_rng(3).uniform(size=(6, 6))),
        torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, size=(4, 4))),
        torch.cdist(
            torch.from_numpy(np.random.default_rng(5).normal(size=(8, 2))), torch.zeros(1, 2, dtype=D)
        )
        + 0 * torch.eye(8, dtype=D),
        line(torch.from_numpy(np.random.default_rng(6).normal(size=9)))
        + line(torch.arange(9.0, dtype=D).cos()),
    ],
    ids=["grid", "reward+grid", "asymmetric metric", "squared", "any 6", "any 4, signed", "star 8", "pot 9"],
)
def test_matrices_against_pot(cost):
    if cost.shape == (8, 8):  # distances through a hub: d_i + d_j
        cost = (cost + cost.T) * (1 - torch.eye(8, dtype=D))
    labels = len(cost)
    p, q = dirichlet(60, labels, 0), dirichlet(60, labels, 1, 0.3)
    p[0], q[1] = q[0], torch.eye(labels, dtype=D)[0]
    value = categorical_wasserstein(p, q, cost=cost, reduction="none")
    torch.testing.assert_close(value, by_pot(p, q, cost), atol=1e-12, rtol=0)
    z = torch.randn(3, labels, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.randn(3, labels, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: categorical_wasserstein(a.softmax(-1), b.softmax(-1), cost=cost, reduction="none"),
        (z, y),
    )


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("labels", [2, 5, 6])
def test_lines_against_pot(exponent, labels):
    places = torch.from_numpy(np.random.default_rng(labels).normal(size=labels))
    p, q = dirichlet(40, labels, 2), dirichlet(40, labels, 3)
    value = categorical_wasserstein(p, q, cost=places, exponent=exponent, reduction="none")
    torch.testing.assert_close(value, by_pot(p, q, line(places, exponent)), atol=1e-12, rtol=0)
    z = torch.randn(2, labels, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: categorical_wasserstein(a.softmax(-1), p[:2], cost=places, exponent=exponent), z
    )


def test_two_labels():
    p, q = torch.tensor([0.3, 0.7]), torch.tensor([0.9, 0.1])
    assert categorical_wasserstein(p, q).item() == pytest.approx(0.6)


def test_orientation_of_an_asymmetric_cost():
    cost = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert categorical_wasserstein(first, second, cost=cost).item() == 1
    assert categorical_wasserstein(second, first, cost=cost).item() == 5


def test_a_metric_rounded_to_float32_is_still_one():
    cost = (line(REWARDS) + 0.1 * GRID).float()
    assert transport_potentials(cost).shape[1] == 6
    p, q = dirichlet(50, 6, 0).float(), dirichlet(50, 6, 1).float()
    value = categorical_wasserstein(p, q, cost=cost, reduction="none")
    torch.testing.assert_close(value.double(), by_pot(p, q, cost), atol=1e-6, rtol=0)
    integers = transport_potentials(GRID.long())
    assert torch.equal(integers, transport_potentials(GRID))


def test_known_numbers_of_vertices():
    assert transport_potentials(GRID).shape == (18, 6)
    assert transport_potentials(line(REWARDS) + 0.1 * GRID).shape == (94, 6)
    discrete = 1 - torch.eye(5)  # vertices: indicator functions of the proper subsets
    assert transport_potentials(discrete).shape == (2**5 - 2, 5)
    assert transport_potentials(torch.rand(9, 9)) is None


simplex = st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda x: sum(x) > 1e-3)


def normal(values: list[float]) -> Tensor:
    p = torch.tensor(values, dtype=D)
    return p / p.sum()


@settings(max_examples=50, deadline=None)
@given(simplex, simplex, simplex, st.sampled_from(["index", "reward", "grid"]))
def test_metric_axioms(first, second, third, name):
    cost = {"index": "index", "reward": REWARDS, "grid": GRID}[name]
    p, q, s = normal(first), normal(second), normal(third)

    def w(a: Tensor, b: Tensor) -> float:
        return float(categorical_wasserstein(a, b, cost=cost))

    assert w(p, p) == pytest.approx(0, abs=1e-12)
    assert w(p, q) >= -1e-12
    assert w(p, q) == pytest.approx(w(q, p), abs=1e-12)
    assert w(p, s) <= w(p, q) + w(q, s) + 1e-12


@settings(max_examples=50, deadline=None)
@given(simplex, simplex, st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_kantorovich_rubinstein_bound(first, second, values):
    """No 1-Lipschitz function tells two distributions further apart than their distance."""
    p, q, f = normal(first), normal(second), torch.tensor(values, dtype=D)
    steepest = ((f[:, None] - f).abs() / (GRID + torch.eye(6, dtype=D))).max()
    gap = ((p - q) @ f).abs().item()
    assert gap <= steepest.item() * float(categorical_wasserstein(p, q, cost=GRID)) + 1e-10


@settings(max_examples=30, deadline=None)
@given(simplex, st.floats(0.1, 10), st.floats(-5, 5))
def test_moving_and_scaling_the_line(first, scale, shift):
    p, q = normal(first), normal(first[::-1])
    base = float(categorical_wasserstein(p, q, cost=REWARDS))
    moved = float(categorical_wasserstein(p, q, cost=scale * REWARDS + shift))
    assert moved == pytest.approx(scale * base, abs=1e-9)


class TestSinkhorn:
    @pytest.mark.parametrize("cost", ["index", GRID])
    def test_is_zero_at_equality_and_positive_elsewhere(self, cost):
        p, q = dirichlet(50, 6, 0), dirichlet(50, 6, 1)
        assert sinkhorn_divergence(p, p, cost=cost, reduction="none").abs().max() < 1e-12
        assert (sinkhorn_divergence(p, q, cost=cost, reduction="none", num_iterations=500) > 0).all()

    @pytest.mark.parametrize("cost", ["index", REWARDS, GRID])
    @pytest.mark.parametrize("num_iterations", [1, 7, 100])
    def test_has_no_gradient_at_equality_however_few_iterations(self, cost, num_iterations):
        z = torch.randn(20, 6, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
        target = z.detach().softmax(-1)
        value = sinkhorn_divergence(
            z.softmax(-1), target, cost=cost, num_iterations=num_iterations, reduction="none"
        )
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert value.abs().max() < 1e-12
        assert slope.abs().max() < 1e-12

    @pytest.mark.parametrize("cost", ["index", GRID, ASYMMETRIC_METRIC])
    def test_defaults_are_close_to_convergence(self, cost):
        labels = 6 if isinstance(cost, str) else len(cost)
        p, q = dirichlet(40, labels, 0, 2.0), dirichlet(40, labels, 1, 2.0)
        value = sinkhorn_divergence(p, q, cost=cost, reduction="none")
        converged = sinkhorn_divergence(p, q, cost=cost, num_iterations=2000, reduction="none")
        torch.testing.assert_close(value, converged, atol=1e-2, rtol=0)

    @pytest.mark.parametrize("cost", ["index", GRID, ASYMMETRIC_METRIC])
    def test_approaches_the_exact_cost(self, cost):
        labels = 6 if isinstance(cost, str) else len(cost)
        p, q = dirichlet(20, labels, 0, 2.0), dirichlet(20, labels, 1, 2.0)
        exact = categorical_wasserstein(p, q, cost=cost, reduction="none")
        close = sinkhorn_divergence(p, q, cost=cost, epsilon=0.01, num_iterations=3000, reduction="none")
        torch.testing.assert_close(close, exact, atol=0.01 * math.log(labels), rtol=0)

    @pytest.mark.parametrize(
        "cost", ["index", REWARDS, GRID, ASYMMETRIC_METRIC, -GRID + 0.3 * GRID.cumsum(0)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_products_and_logarithms_take_the_same_steps(self, cost, dtype, monkeypatch):
        """The same after few iterations as after many, in value and gradient."""
        labels = 6 if isinstance(cost, str) else len(cost)
        p, q = dirichlet(30, labels, 0).to(dtype), dirichlet(30, labels, 1).to(dtype)
        p[0], q[1], p[2] = torch.eye(labels)[0], torch.eye(labels)[1], q[2]
        p.requires_grad_()
        for epsilon, steps in ((0.1, 3), (0.1, 60), (2.0, 400)):
            found = []
            for largest in (_scaling._LARGEST_SPAN, {}):
                monkeypatch.setattr(_scaling, "_LARGEST_SPAN", largest)
                value = sinkhorn_divergence(
                    p, q, cost=cost, epsilon=epsilon, num_iterations=steps, reduction="none"
                )
                found.append((value, torch.autograd.grad(value.sum(), p)[0]))
                monkeypatch.undo()
            close = {"atol": 2e-5 if dtype == torch.float32 else 1e-10, "rtol": 1e-5}
            torch.testing.assert_close(*(value for value, _ in found), **close)
            slopes = [slope - slope.mean(-1, keepdim=True) for _, slope in found]
            torch.testing.assert_close(*slopes, **close)

    @pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.012, 1e-3, 1e-5])
    def test_small_epsilon_neither_overflows_nor_vanishes(self, epsilon):
        """Products in float32, in float64 and logarithms, on rows with zeros."""
        p, q = dirichlet(200, 6, 0, 0.2).float(), dirichlet(200, 6, 1, 0.2).float()
        p[:6], q[6:12] = torch.eye(6), torch.eye(6)
        p.requires_grad_()
        value = sinkhorn_divergence(p, q, epsilon=epsilon, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), p)
        assert value.isfinite().all() and slope.isfinite().all()
        assert value.max() <= 5.1 and slope.abs().max() < 50

    def test_plan_against_pot(self):
        p, q = dirichlet(1, 6, 0, 2.0)[0], dirichlet(1, 6, 1, 2.0)[0]
        plan = sinkhorn_plan(p, q, cost=GRID, epsilon=0.3, num_iterations=1000)
        reference = ot.sinkhorn(p.numpy(), q.numpy(), GRID.numpy(), 0.3, numItermax=5000, stopThr=1e-14)
        np.testing.assert_allclose(plan.numpy(), reference, atol=1e-10)

    def test_gradient_is_that_of_the_value(self):
        z = torch.randn(3, 5, dtype=D, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = torch.randn(3, 5, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda a, b: sinkhorn_divergence(a.softmax(-1), b.softmax(-1), epsilon=0.5, num_iterations=200),
            (z, y),
        )

    def test_gradient_fades_at_the_optimum_where_the_exact_one_jumps(self):
        z = torch.zeros(4, dtype=D, requires_grad=True)
        target = torch.tensor([0.26, 0.24, 0.25, 0.25], dtype=D)
        (soft,) = torch.autograd.grad(sinkhorn_divergence(z.softmax(-1), target, epsilon=0.5), z)
        (hard,) = torch.autograd.grad(categorical_wasserstein(z.softmax(-1), target), z)
        assert soft.norm() < 0.1 * hard.norm()

    def test_one_hot_rows_keep_finite_gradients(self):
        z = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
        loss = sinkhorn_divergence(z.softmax(-1), torch.eye(3)[:2], epsilon=0.05)
        loss.backward()
        assert loss.isfinite()
        assert z.grad.isfinite().all()


def test_module_keeps_potentials_out_of_checkpoints():
    module = CategoricalWassersteinLoss(cost=GRID)
    assert not module.state_dict()
    p, q = dirichlet(10, 6, 0), dirichlet(10, 6, 1)
    torch.testing.assert_close(module(p, q), categorical_wasserstein(p, q, cost=GRID))


@pytest.mark.parametrize("cost", [GRID / 3, REWARDS / 3])
def test_casting_a_module_does_not_round_its_cost(cost):
    p, q = dirichlet(10, 6, 0), dirichlet(10, 6, 1)
    for module in (CategoricalWassersteinLoss(cost=cost), SinkhornDivergenceLoss(cost=cost)):
        assert torch.equal(module(p, q), module.bfloat16()(p, q))


half = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: categorical_wasserstein(half * 1.2, half),
            r"the sum of p over its last dimension must be 1 within",
        ),
        (
            lambda: categorical_wasserstein(half, torch.tensor([-0.5, 1.5])),
            r"q must be finite and in \[0, inf\); got -",
        ),
        (
            lambda: categorical_wasserstein(half, torch.ones(3) / 3),
            r"q must have the shape of p, \(2,\); got \(3,\)",
        ),
        (
            lambda: categorical_wasserstein(half, half, cost=torch.ones(3)),
            r"cost must be 'index' or of shape",
        ),
        (lambda: categorical_wasserstein(half, half, cost="grid"), r"cost must be 'index', positions"),
        (lambda: categorical_wasserstein(half, half, exponent=0.0), r"exponent must be in \(0, inf\)"),
        (
            lambda: categorical_wasserstein(half, half, potentials=torch.ones(3, 3)),
            "potentials must be of shape",
        ),
        (lambda: categorical_wasserstein(half * math.nan, half), r"p must be finite"),
        (lambda: sinkhorn_divergence(half, half, epsilon=0.0), r"epsilon must be in \(0, inf\)"),
        (lambda: transport_potentials(torch.ones(2, 3)), "cost must be a square matrix"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
