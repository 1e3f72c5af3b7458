"""Draw the pictures of docs/losses.md from the losses themselves: ``python docs/draw_losses.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pluralign.losses import (
    beta_wasserstein,
    beta_wasserstein_to_share,
    bradley_terry_loss,
    categorical_wasserstein,
    hinge_loss,
    separation_objective,
    sinkhorn_divergence,
    smoothed_hinge_loss,
)

FOLDER = Path(__file__).parent / "images"
BLUE, ORANGE, GREY = "#2a6f97", "#d1603d", "#8a8a8a"
REWARDS = torch.tensor([1, 0.5, -1, -1, -1.5, -3], dtype=torch.float64)


def new(columns: int, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A row of plots without clutter."""
    figure, axes = plt.subplots(1, columns, figsize=(3.4 * columns, height), layout="constrained")
    row = list(axes.flat) if columns > 1 else [axes]
    for axis in row:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, row


def save(figure: Figure, name: str) -> None:
    """A small file, the same bytes at each run."""
    figure.savefig(FOLDER / f"losses_{name}.png", dpi=90, metadata={"Software": None})
    plt.close(figure)


def near_and_far() -> None:
    """Two predictions that cross-entropy finds equally wrong, and transport does not."""
    target = torch.tensor([0.9, 0.1, 0, 0, 0, 0], dtype=torch.float64)
    predictions = {
        "near": torch.tensor([0.9, 0, 0.1, 0, 0, 0], dtype=torch.float64),
        "far": torch.tensor([0.9, 0, 0, 0, 0, 0.1], dtype=torch.float64),
    }
    figure, axes = new(3)
    for axis, (name, prediction), colour in zip(axes, predictions.items(), (BLUE, ORANGE), strict=False):
        place = torch.arange(1, 7)
        axis.bar(place - 0.2, target, 0.4, color=GREY, label="target")
        axis.bar(place + 0.2, prediction, 0.4, color=colour, label=f"prediction, {name}")
        axis.set(xlabel="label", ylim=(0, 1.15), ylabel="share of people")
        axis.legend(frameon=False, fontsize=8)
    measures = {"cross-\nentropy": [], "W index": [], "W reward": []}
    for prediction in predictions.values():
        floored = prediction + 1e-6
        measures["cross-\nentropy"].append(-(target * (floored / floored.sum()).log()).sum().item())
        measures["W index"].append(categorical_wasserstein(prediction, target).item())
        measures["W reward"].append(categorical_wasserstein(prediction, target, cost=REWARDS).item())
    for shift, column, colour in ((-0.2, 0, BLUE), (0.2, 1, ORANGE)):
        bars = axes[2].bar(
            [i + shift for i in range(3)], [m[column] for m in measures.values()], 0.4, color=colour
        )
        axes[2].bar_label(bars, fmt="%.2f", fontsize=8)
    axes[2].set_xticks(range(3), list(measures))
    axes[2].set(ylabel="loss")
    save(figure, "near_far")


def comparisons() -> None:
    """Margin, smoothing and hinges as functions of the reward gap."""
    gap = torch.linspace(-4, 6, 301)
    zero = torch.zeros_like(gap)
    figure, axes = new(3)

    def one(margin: float = 0.0, smoothing: float = 0.0, share: float = 1.0) -> Tensor:
        return bradley_terry_loss(
            gap,
            zero,
            margin=zero + margin,
            label_smoothing=smoothing,
            preference=zero + share,
            reduction="none",
        )

    for margin, colour in ((-1.5, ORANGE), (0.0, GREY), (1.5, BLUE)):
        axes[0].plot(gap, one(margin), color=colour, label=f"margin {margin:g}")
    for smoothing, colour in ((0.0, GREY), (0.1, BLUE), (0.2, ORANGE)):
        curve = one(smoothing=smoothing)
        axes[1].plot(gap, curve, color=colour, label=f"smoothing {smoothing:g}")
        if smoothing:
            axes[1].plot(gap[curve.argmin()], curve.min(), "o", color=colour, markersize=4)
    axes[2].plot(gap, one(), color=GREY, label="logistic")
    axes[2].plot(gap, hinge_loss(gap, zero, reduction="none"), color=BLUE, label="hinge")
    axes[2].plot(gap, smoothed_hinge_loss(gap, zero, reduction="none"), color=ORANGE, label="smoothed hinge")
    for axis in axes:
        axis.set(xlabel="reward gap, chosen less rejected", ylim=(0, 5))
        axis.legend(frameon=False, fontsize=8)
    axes[0].set(ylabel="loss")
    save(figure, "comparisons")


def betas() -> None:
    """Beta distributions: what is measured, and how the distance moves."""
    x = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    figure, axes = new(3)
    wide, narrow = (2.0, 2.0), (20.0, 20.0)
    cdf = [torch.distributions.Beta(a, b).log_prob(x).exp().cumsum(0) / len(x) for a, b in (wide, narrow)]
    axes[0].plot(x, cdf[0], color=BLUE, label="Beta(2, 2)")
    axes[0].plot(x, cdf[1], color=ORANGE, label="Beta(20, 20)")
    axes[0].fill_between(x, cdf[0], cdf[1], color=GREY, alpha=0.3, label="area = W1")
    axes[0].set(xlabel="share x", ylabel="distribution function")
    strength = torch.logspace(-1, 3, 200, dtype=torch.float64)
    for mean, colour in ((0.5, GREY), (0.6, BLUE), (0.8, ORANGE)):
        other = [torch.full_like(strength, v) for v in (5.0, 5.0)]
        value = beta_wasserstein(strength * mean, strength * (1 - mean), *other, reduction="none")
        axes[1].plot(strength, value, color=colour, label=f"mean {mean:g}")
    axes[1].set(xscale="log", xlabel="alpha + beta", ylabel="W1 to Beta(5, 5)", ylim=(0, None))
    share = torch.linspace(0, 1, 200, dtype=torch.float64)
    for total, colour in ((1.0, GREY), (5.0, BLUE), (50.0, ORANGE)):
        shapes = [torch.full_like(share, total * m) for m in (0.7, 0.3)]
        value = beta_wasserstein_to_share(*shapes, share, reduction="none")
        axes[2].plot(share, value, color=colour, label=f"alpha + beta = {total:g}")
    axes[2].set(xlabel="observed share", ylabel="W1 from mean 0.7", ylim=(0, None))
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    save(figure, "betas")


def corners() -> None:
    """Where gradients come from: the exact cost has corners, the entropic divergence and smoothing do not."""
    figure, axes = new(3)
    share = torch.linspace(0.01, 0.99, 400, dtype=torch.float64)
    p = torch.stack([share, 1 - share], dim=-1)
    q = torch.tensor([0.4, 0.6], dtype=torch.float64).expand_as(p)
    axes[0].plot(share, categorical_wasserstein(p, q, reduction="none"), color=GREY, label="exact")
    for epsilon, colour in ((0.2, BLUE), (1.0, ORANGE)):
        value = sinkhorn_divergence(p, q, epsilon=epsilon, reduction="none")
        axes[0].plot(share, value, color=colour, label=f"Sinkhorn, epsilon {epsilon:g}")
    axes[0].set(xlabel="predicted share of label 1 (target 0.4)", ylabel="transport cost")
    gap = torch.linspace(-2, 2, 401, dtype=torch.float64).requires_grad_()
    pair = torch.stack([gap, torch.zeros_like(gap)], dim=-1)
    for smoothing, colour in ((0.0, GREY), (0.5, ORANGE)):
        value = separation_objective(pair, smoothing=smoothing, reduction="none")
        (slope,) = torch.autograd.grad(value.sum(), gap, retain_graph=True)
        label = f"smoothing {smoothing:g}"
        axes[1].plot(gap.detach(), value.detach(), color=colour, label=label)
        axes[2].plot(gap.detach(), slope, color=colour, label=label)
    axes[1].set(xlabel="gap of two rewards", ylabel="separation objective")
    axes[2].set(xlabel="gap of two rewards", ylabel="its gradient")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    save(figure, "corners")


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    near_and_far()
    comparisons()
    betas()
    corners()


if __name__ == "__main__":
    main()
