"""Beta distances and the incomplete beta function against scipy, mpmath and quadrature."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from pluralign.losses import (
    _beta_order_two,
    beta_wasserstein,
    beta_wasserstein_to_share,
    regularized_incomplete_beta,
)

mpmath = pytest.importorskip("mpmath")
D = torch.float64


def shapes(number: int, seed: int, low: float = 0.05, high: float = 5000.0) -> Tensor:
    draws = np.random.default_rng(seed).uniform(math.log(low), math.log(high), number)
    return torch.from_numpy(np.exp(draws))


def gauss_legendre(points: np.ndarray, order: int = 20) -> tuple[np.ndarray, np.ndarray]:
    z, w = np.polynomial.legendre.leggauss(order)
    left, width = points[:-1, None], np.diff(points)[:, None]
    return left + width * (z + 1) / 2, w * width / 2


def reference_order_one(a_p: float, b_p: float, a_q: float, b_q: float) -> float:
    """Composite quadrature of |F - G| on panels that follow the quantiles of both."""
    fine = np.logspace(-12, -2.7, 50)
    levels = np.concatenate([fine, np.linspace(0, 1, 301), 1 - fine])
    parts = [
        special.betaincinv(a_p, b_p, levels),
        special.betaincinv(a_q, b_q, levels),
        np.linspace(0, 1, 101),
    ]
    x, w = gauss_legendre(np.unique(np.concatenate(parts)))
    return float((np.abs(special.betainc(a_p, b_p, x) - special.betainc(a_q, b_q, x)) * w).sum())


def reference_order_two(a_p: float, b_p: float, a_q: float, b_q: float) -> float:
    z = np.linspace(-9, 9, 4001)
    u, v = special.ndtr(z), special.ndtr(-z)
    weight = np.exp(-(z**2) / 2)

    def quantile(a: float, b: float) -> np.ndarray:
        return np.where(u < 0.5, special.betaincinv(a, b, u), 1 - special.betaincinv(b, a, v))

    gap = quantile(a_p, b_p) - quantile(a_q, b_q)
    return math.sqrt((weight * gap**2).sum() / weight.sum())


class TestIncompleteBeta:
    def test_value_against_scipy(self):
        a, b = shapes(6000, 0), shapes(6000, 1)
        x = torch.from_numpy(
            special.betaincinv(a.numpy(), b.numpy(), np.random.default_rng(2).uniform(size=6000))
        )
        x[::3] = torch.from_numpy(np.random.default_rng(3).uniform(size=2000))
        x = x.clamp(0, 1)
        value = regularized_incomplete_beta(a, b, x)
        torch.testing.assert_close(
            value, torch.from_numpy(special.betainc(a.numpy(), b.numpy(), x.numpy())), atol=1e-9, rtol=0
        )

    @pytest.mark.parametrize("seed", range(25))
    def test_derivatives_against_mpmath(self, seed):
        a, b = (shapes(1, 100 + 2 * seed + i).requires_grad_() for i in (0, 1))
        level = np.random.default_rng(seed).uniform()
        x = torch.from_numpy(np.atleast_1d(special.betaincinv(a.item(), b.item(), level))).clamp(
            1e-200, 1 - 1e-12
        )
        x.requires_grad_()
        slopes = torch.autograd.grad(regularized_incomplete_beta(a, b, x).sum(), (a, b, x))
        with mpmath.workdps(50):
            place = mpmath.mpf(x.item())

            def cdf(first: float, second: float) -> float:
                return mpmath.betainc(first, second, 0, place, regularized=True)

            ma, mb = mpmath.mpf(a.item()), mpmath.mpf(b.item())
            step = mpmath.mpf(10) ** -14
            by_a = float((cdf(ma * (1 + step), mb) - cdf(ma * (1 - step), mb)) / (2 * step))
            by_b = float((cdf(ma, mb * (1 + step)) - cdf(ma, mb * (1 - step))) / (2 * step))
        assert (slopes[0] * a).item() == pytest.approx(by_a, abs=1e-9)
        assert (slopes[1] * b).item() == pytest.approx(by_b, abs=1e-9)
        density = stats.beta.pdf(x.item(), a.item(), b.item())
        assert slopes[2].item() == pytest.approx(density, rel=1e-8)

    def test_gradcheck(self):
        a, b = shapes(12, 5, 0.3, 30).requires_grad_(), shapes(12, 6, 0.3, 30).requires_grad_()
        x = torch.linspace(0.05, 0.95, 12, dtype=D, requires_grad=True)
        assert torch.autograd.gradcheck(regularized_incomplete_beta, (a, b, x), eps=1e-5, atol=1e-7)

    def test_ends(self):
        x = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
        a = torch.tensor([0.05, 0.05, 5000.0, 5000.0], requires_grad=True)
        value = regularized_incomplete_beta(a, a.detach().flip(0), x)
        assert value.tolist() == [0, 1, 0, 1]
        value.sum().backward()
        assert x.grad.isfinite().all()
        assert a.grad.isfinite().all()

    @settings(max_examples=50, deadline=None)
    @given(st.floats(0.05, 5000), st.floats(0.05, 5000), st.integers(0, 1024))
    def test_mirror(self, a, b, step):
        first, second, place = (torch.tensor(v, dtype=D) for v in (a, b, step / 1024))  # 1 - place is exact
        total = regularized_incomplete_beta(first, second, place) + regularized_incomplete_beta(
            second, first, 1 - place
        )
        assert total.item() == pytest.approx(1, abs=1e-9)

    def test_second_derivatives_are_refused(self):
        a = torch.full((2,), 2.0, dtype=D, requires_grad=True)
        value = regularized_incomplete_beta(a, a, torch.full((2,), 0.3, dtype=D))
        (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(slope.sum(), a)


class TestBetaWasserstein:
    def pairs(self, number: int) -> list[Tensor]:
        quad = [shapes(number, 10 + i) for i in range(4)]
        near = np.random.default_rng(20).normal(scale=0.3, size=(2, number // 3))
        for i in range(2):
            quad[i + 2][: number // 3] = quad[i][: number // 3] * torch.from_numpy(np.exp(near[i]))
        return quad

    def test_order_one_against_quadrature(self):
        quad = self.pairs(90)
        value = beta_wasserstein(*quad, reduction="none")
        expected = [reference_order_one(*row) for row in torch.stack(quad, 1).tolist()]
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-7)

    def test_order_two_against_quantiles(self):
        quad = self.pairs(45)
        value = beta_wasserstein(*quad, order=2, reduction="none").numpy()
        expected = np.array([reference_order_two(*row) for row in torch.stack(quad, 1).tolist()])
        known = np.isfinite(expected)  # scipy's quantile is NaN here and there
        error = np.abs(value - expected)[known]
        assert np.median(error) < 1e-7
        assert error.max() < 1e-5

    @pytest.mark.parametrize(("order", "step"), [(1, 1e-6), (2, 1e-4)])
    def test_gradient_against_differences(self, order, step):
        quad = [v.requires_grad_() for v in (shapes(16, 30 + i, 0.3, 300) for i in range(4))]
        slopes = torch.autograd.grad(beta_wasserstein(*quad, order=order, reduction="sum"), quad)
        for i in range(4):
            up, down = ([v.detach().clone() for v in quad] for _ in range(2))
            up[i] *= 1 + step
            down[i] *= 1 - step
            change = beta_wasserstein(*up, order=order, reduction="none") - beta_wasserstein(
                *down, order=order, reduction="none"
            )
            torch.testing.assert_close(
                slopes[i] * quad[i].detach(), change / (2 * step), atol=2e-5, rtol=1e-4
            )

    def test_order_two_of_shapes_near_zero_and_far_apart(self):
        rows = [
            (0.05, 0.05, 5000, 5000),
            (0.05, 0.07, 0.06, 0.05),
            (0.05, 5000, 5000, 0.05),
            (0.1, 3000, 0.1, 30),
        ]
        quad = [torch.tensor(v, dtype=D) for v in zip(*rows, strict=True)]
        value = beta_wasserstein(*quad, order=2, reduction="none").tolist()
        assert value[0] == pytest.approx(reference_order_two(*rows[0]), abs=1e-5)
        assert value[1] == pytest.approx(reference_order_two(*rows[1]), abs=1e-5)
        assert value[2] == pytest.approx(1, abs=1e-4)
        assert value[3] == pytest.approx(reference_order_two(*rows[3]), abs=1e-5)

    def test_order_two_in_parts_of_a_large_batch(self):
        quad = [shapes(1100, 80 + i) for i in range(4)]
        whole = beta_wasserstein(*quad, order=2, reduction="none")
        rows = [value[600:603] for value in quad]
        few = beta_wasserstein(*rows, order=2, reduction="none")
        torch.testing.assert_close(whole[600:603], few, atol=1e-12, rtol=0)
        square = [value.reshape(2, 550) for value in quad]
        assert torch.equal(beta_wasserstein(*square, order=2, reduction="none").flatten(), whole)

    @pytest.mark.parametrize(("device", "parts"), [("cpu", [256, 256, 88]), ("meta", [600])])
    def test_order_two_takes_small_parts_on_the_cpu_alone(self, device, parts, monkeypatch):
        sizes, distance = [], _beta_order_two._distance
        monkeypatch.setattr(
            _beta_order_two, "_distance", lambda *rows: sizes.append(len(rows[0])) or distance(*rows)
        )
        beta_wasserstein(*(torch.ones(600, dtype=D, device=device) for _ in range(4)), order=2)
        assert sizes == parts

    def test_gradcheck(self):
        quad = [v.requires_grad_() for v in (shapes(6, 40 + i, 0.5, 30) for i in range(4))]
        assert torch.autograd.gradcheck(lambda *v: beta_wasserstein(*v), quad, eps=1e-5, atol=1e-6)

    @pytest.mark.parametrize("order", [1, 2])
    def test_extremes_and_equality_are_finite(self, order):
        rows = [
            (1e-3, 1e-3, 1e5, 1e5),
            (1e-3, 1e5, 1e5, 1e-3),
            (0.05, 5000, 5000, 0.05),
            (2, 3, 2, 3),
            (7, 7, 7.000001, 7.000001),
            (1, 1, 1, 1),
        ]
        quad = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in zip(*rows, strict=True)]
        value = beta_wasserstein(*quad, order=order, reduction="none")
        slopes = torch.autograd.grad(value.sum(), quad)
        assert value.isfinite().all()
        assert (value >= 0).all()
        assert all(slope.isfinite().all() for slope in slopes)
        assert value[3] == 0
        assert all(slope[3] == 0 for slope in slopes)
        assert value[2].item() == pytest.approx(1, abs=1e-4)

    def test_known_values(self):
        """Uniform against Beta(2, 1): F = x, G = x^2; against its mirror image; two-point limit."""
        one, two = torch.ones(1, dtype=D), torch.full((1,), 2.0, dtype=D)
        assert beta_wasserstein(one, one, two, one).item() == pytest.approx(1 / 6, abs=1e-10)
        w2 = math.sqrt(1 / 3 + 1 / 2 - 2 * 0.4)  # quantiles u and sqrt(u)
        assert beta_wasserstein(one, one, two, one, order=2).item() == pytest.approx(w2, abs=1e-6)
        assert beta_wasserstein(two, one, one, two).item() == pytest.approx(1 / 3, abs=1e-10)
        symmetric = beta_wasserstein(one, one, two, two).item()  # F - G = x - 3 x^2 + 2 x^3
        assert symmetric == pytest.approx(2 * (1 / 8 - 1 / 8 + 1 / 32), abs=1e-10)

    @settings(max_examples=40, deadline=None)
    @given(*[st.floats(0.05, 5000)] * 6)
    def test_metric_axioms_and_mean_bound(self, a, b, c, d, e, f):
        one, two, three = (torch.tensor(v, dtype=D) for v in ((a, b), (c, d), (e, f)))

        def w(p: Tensor, q: Tensor, order: int = 1) -> float:
            return beta_wasserstein(p[0], p[1], q[0], q[1], order=order).item()

        assert w(one, one) == 0
        assert w(one, two) == pytest.approx(w(two, one), abs=1e-9)
        assert w(one, three) <= w(one, two) + w(two, three) + 1e-8
        assert abs(a / (a + b) - c / (c + d)) <= w(one, two) + 1e-9
        mirrored = w(one.flip(0), two.flip(0))
        assert w(one, two) == pytest.approx(mirrored, abs=1e-8)


class TestDistanceToShare:
    def test_against_quadrature(self):
        a, b = shapes(60, 50), shapes(60, 51)
        share = torch.from_numpy(np.random.default_rng(52).uniform(size=60))
        share[:2] = torch.tensor([0.0, 1.0])
        value = beta_wasserstein_to_share(a, b, share, reduction="none")
        for i in range(60):
            s = share[i].item()
            levels = np.concatenate([np.logspace(-12, -2.7, 50), np.linspace(0, 1, 301)])
            points = np.concatenate(
                [special.betaincinv(a[i].item(), b[i].item(), levels), np.linspace(0, 1, 51), [s]]
            )
            x, w = gauss_legendre(np.unique(points))
            expected = (np.abs(special.betainc(a[i].item(), b[i].item(), x) - (x >= s)) * w).sum()
            assert value[i].item() == pytest.approx(expected, abs=1e-7)

    def test_order_two_is_the_root_mean_square(self):
        a, b, s = 2.0, 5.0, 0.4
        second = stats.beta(a, b).var() + (a / (a + b) - s) ** 2
        value = beta_wasserstein_to_share(*(torch.tensor(v, dtype=D) for v in (a, b, s)), order=2)
        assert value.item() == pytest.approx(math.sqrt(second))

    @pytest.mark.parametrize("order", [1, 2])
    def test_gradcheck(self, order):
        a, b = shapes(8, 60, 0.3, 50).requires_grad_(), shapes(8, 61, 0.3, 50).requires_grad_()
        s = torch.linspace(0.1, 0.9, 8, dtype=D, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda *v: beta_wasserstein_to_share(*v, order=order), (a, b, s), eps=1e-5, atol=1e-6
        )

    def test_is_the_limit_of_a_narrow_beta(self):
        a, b = shapes(10, 70, 0.5, 50), shapes(10, 71, 0.5, 50)
        share = torch.linspace(0.1, 0.9, 10, dtype=D)
        narrow = beta_wasserstein(a, b, share * 1e9, (1 - share) * 1e9, reduction="none")
        torch.testing.assert_close(
            beta_wasserstein_to_share(a, b, share, reduction="none"), narrow, atol=3e-5, rtol=0
        )

    def test_extremes_are_finite(self):
        a = torch.tensor([1e-3, 1e5, 0.05, 5000.0, 1.0], requires_grad=True)
        b = torch.tensor([1e5, 1e-3, 0.05, 5000.0, 1.0], requires_grad=True)
        s = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.0], requires_grad=True)
        value = beta_wasserstein_to_share(a, b, s, reduction="none")
        slopes = torch.autograd.grad(value.sum(), (a, b, s))
        assert all(v.isfinite().all() for v in (value, *slopes))


one = torch.ones(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: beta_wasserstein(0 * one, one, one, one),
            r"alpha_p must be finite and in \(0, inf\); got 0.0",
        ),
        (lambda: beta_wasserstein(one, one, one, -one), r"beta_q must be finite and in \(0, inf\); got -1.0"),
        (lambda: beta_wasserstein(one, one, one, one, order=3), "order must be one of 1, 2; got 3"),
        (
            lambda: beta_wasserstein(one, one, torch.ones(2), torch.ones(3)),
            "arguments must broadcast to one shape",
        ),
        (
            lambda: beta_wasserstein_to_share(one, one, 2 * one),
            r"share must be finite and in \[0, 1\]; got 2.0",
        ),
        (lambda: regularized_incomplete_beta(one, one, math.nan * one), "x must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
