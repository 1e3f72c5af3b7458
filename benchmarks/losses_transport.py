"""Rows of benchmarks/losses.py: Sinkhorn's divergence, transport on a line, and the beta distance of order 2."""

import math
from collections.abc import Callable

import numpy as np
import ot
import torch
from losses_row import Row, in_turn, seconds
from scipy.special import betaincinv, ndtr
from torch import Tensor

from pluralign.losses import (
    CategoricalWassersteinLoss,
    argument_checks,
    beta_wasserstein,
    categorical_wasserstein,
    sinkhorn_divergence,
)

__all__ = ["beta_order_two", "on_a_line", "sinkhorn"]

LABELS, EPSILON, ITERATIONS = 6, 0.1, 100
PAIRS, LEVELS = (
    64,
    4001,
)  # of beta distributions whose quantiles scipy searches for, and at how many levels of each


def votes(rows: int) -> tuple[Tensor, Tensor]:
    """Two distributions over labels in each row, float64."""
    rng = np.random.default_rng(0)
    p, q = (torch.from_numpy(rng.dirichlet(np.full(LABELS, 0.7), rows)) for _ in range(2))
    return p, q


def value_and_slope(loss: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's value, and its gradient in p up to the constant that a softmax removes."""
    p = p.detach().clone().requires_grad_()
    value = loss(p, q)
    (slope,) = torch.autograd.grad(value.sum(), p)
    return value.detach(), slope - slope.mean(-1, keepdim=True)


def by_logarithms(p: Tensor, q: Tensor) -> Tensor:
    """The divergence by the same iterations on logarithms, one problem after the other, as it used to be computed."""
    cost = (torch.arange(LABELS)[:, None] - torch.arange(LABELS)).abs().to(p.dtype) / EPSILON

    def potentials(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = (torch.stack(both).log() for both in ((first, second), (second, first)))
        f, g = torch.zeros_like(log_p), torch.zeros_like(log_p)
        for step in range(ITERATIONS):
            length = 1.0 if step < 10 else 1.5
            f = f + length * (-((log_q + g).unsqueeze(-2) - cost).logsumexp(-1) - f)
            g = g + length * (-((log_p + f).unsqueeze(-1) - cost).logsumexp(-2) - g)
        f = -((log_q + g).unsqueeze(-2) - cost).logsumexp(-1)
        return EPSILON * (f[0] + g[1]) / 2, EPSILON * (g[0] + f[1]) / 2

    total = torch.zeros(p.shape[:-1], dtype=p.dtype)
    for first, second, share in ((p, q, 1.0), (p, p, -0.5), (q, q, -0.5)):
        with torch.no_grad():
            f, g = potentials(first, second)
        total = total + share * ((f * first).sum(-1) + (g * second).sum(-1))
    return total


def sinkhorn(rows: int) -> list[Row]:
    """Value and gradient in float32 beside a loop over POT's exact solver, and beside logarithms, in float64 the truth."""
    p, q = votes(rows)
    first, second = p.float().requires_grad_(), q.float()

    def ours() -> None:
        sinkhorn_divergence(first, second, epsilon=EPSILON, num_iterations=ITERATIONS).backward()

    def logarithms() -> None:
        by_logarithms(first, second).mean().backward()

    cost = (torch.arange(LABELS)[:, None] - torch.arange(LABELS)).abs().double().numpy()
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(p, q, strict=True)]

    def exact() -> None:
        for a, b in pairs:
            ot.emd2(a, b, cost)

    ours_s, logarithms_s, exact_s = in_turn([ours, logarithms, exact], 3)
    truth = value_and_slope(by_logarithms, p, q)
    found = value_and_slope(
        lambda a, b: sinkhorn_divergence(a, b, epsilon=EPSILON, num_iterations=ITERATIONS, reduction="none"),
        p.float(),
        q.float(),
    )
    errors = [float((a.double() - b).abs().max()) for a, b in zip(found, truth, strict=True)]
    return [
        Row(
            f"Sinkhorn divergence, B = {rows}",
            reference,
            rows,
            ours_s / rows * 1e6,
            other / rows * 1e6,
            other / ours_s,
            goal,
            errors[0],
            2e-6,
            errors[1],
            2e-5,
        )
        for reference, other, goal in (
            ("POT emd2 loop", exact_s, 2.0 if rows > 1000 else 0.2),
            ("on logarithms", logarithms_s, 5.0),
        )
    ]


def on_a_line(rows: int) -> list[Row]:
    """Value and gradient on a line, as a module and as a function with its checks, beside the bare formula."""
    p, q = (each.float() for each in votes(rows))
    p.requires_grad_()
    gaps = torch.arange(float(LABELS)).diff()
    module = CategoricalWassersteinLoss()

    def bare() -> None:
        ((p - q).cumsum(-1)[..., :-1].abs() * gaps).sum(-1).mean().backward()

    def by_module() -> None:
        module(p, q).backward()

    def by_function() -> None:
        categorical_wasserstein(p, q).backward()

    with argument_checks("auto"):
        times = in_turn([bare, by_module, by_function], 201)
    expected = value_and_slope(lambda a, b: ((a - b).cumsum(-1)[..., :-1].abs() * gaps).sum(-1), p, q)
    found = value_and_slope(lambda a, b: categorical_wasserstein(a, b, reduction="none"), p, q)
    errors = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    us = [each / rows * 1e6 for each in times]
    return [
        Row(what, "bare formula", rows, spent, us[0], us[0] / spent, goal, errors[0], 1e-6, errors[1])
        for what, spent, goal in (
            ("line, module", us[1], round(1 / 1.2, 3)),
            ("line, function with its checks", us[2], 0.5),
        )
    ]


def beta_order_two() -> Row:
    """Value and gradient in float64 beside quantiles that scipy searches for, gradient by central differences."""
    rng = np.random.default_rng(1)
    shapes = np.exp(rng.uniform(math.log(0.2), math.log(500), (4096, 4)))
    tensors = [torch.from_numpy(shapes[:, i].copy()).requires_grad_() for i in range(4)]

    def ours() -> Tensor:
        for tensor in tensors:
            tensor.grad = None
        value = beta_wasserstein(*tensors, order=2, reduction="none")
        value.sum().backward()
        return value

    z = np.linspace(-9, 9, LEVELS)
    u, v, weight = ndtr(z), ndtr(-z), np.exp(-(z**2) / 2)

    def quantiles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a[:, None], b[:, None]
        return np.where(u < 0.5, betaincinv(a, b, u), 1 - betaincinv(b, a, v))

    def searched(rows: np.ndarray) -> np.ndarray:
        gap = quantiles(rows[:, 0], rows[:, 1]) - quantiles(rows[:, 2], rows[:, 3])
        distance: np.ndarray = np.sqrt((weight * gap**2).sum(-1) / weight.sum())
        return distance

    few = shapes[:PAIRS]
    ours_s = seconds(ours, 3) / len(shapes)
    reference_s = (
        seconds(lambda: searched(few[:8]), 1) / 8 * 9
    )  # the value, and each of four slopes by two more
    value = ours().detach()[:PAIRS].numpy()
    slope_errors = []
    for i, tensor in enumerate(tensors):
        step = np.zeros(4)
        step[i] = 1e-4
        slope = (searched(few * (1 + step)) - searched(few * (1 - step))) / 2e-4
        assert tensor.grad is not None
        slope_errors.append(np.abs(slope - tensor.grad[:PAIRS].numpy() * few[:, i]).max())
    return Row(
        "beta W2, value and gradient",
        "scipy quantiles",
        PAIRS,
        ours_s * 1e6,
        reference_s * 1e6,
        reference_s / ours_s,
        50,
        float(np.abs(searched(few) - value).max()),
        1e-5,
        float(max(slope_errors)),
        1e-4,
    )
