"""Ideal points: the numbers of the PAL paper's fixture, identities, references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import (
    ideal_point_cross_entropy,
    ideal_point_loss,
    ideal_point_reward,
    norm_bound_loss,
    token_window_mean,
)

D = torch.float64
LEFT, RIGHT = torch.tensor([[1.0, 0.0]], dtype=D), torch.tensor([[0.0, 2.0]], dtype=D)
PROTOTYPES = torch.eye(2, dtype=D)


def user(*logits: float) -> Tensor:
    return torch.tensor([logits], dtype=D).softmax(-1)


class TestPALOracles:
    """Numbers derived from Chen et al. 2024 (arXiv 2406.08469)."""

    u = user(0.0, math.log(3)) @ PROTOTYPES

    def test_pal_oracle_1(self):
        left, right = ideal_point_reward(LEFT, self.u), ideal_point_reward(RIGHT, self.u)
        assert left.item() == pytest.approx(-1.0606602, abs=2e-7)
        assert right.item() == pytest.approx(-1.2747549, abs=2e-7)
        assert (right - left).item() == pytest.approx(-0.2140946, abs=2e-7)

    @pytest.mark.parametrize(
        ("loss", "right_wins", "left_wins"),
        [
            ("hinge", 1.2140946, 0.7859054),
            ("logistic", 0.8059132, 0.5918185),
            ("smoothed_hinge", 0.1474026, 0.0617647),
        ],
    )
    def test_pal_oracle_2(self, loss, right_wins, left_wins):
        assert ideal_point_loss(RIGHT, LEFT, self.u, loss=loss).item() == pytest.approx(right_wins, abs=2e-7)
        assert ideal_point_loss(LEFT, RIGHT, self.u, loss=loss).item() == pytest.approx(left_wins, abs=2e-7)

    def test_pal_oracle_3(self):
        """Squared distances: the gap is the prototypes' gaps mixed by the user's weights."""

        def gap(ideal: Tensor) -> Tensor:
            return ideal_point_reward(RIGHT, ideal, score="squared_distance") - ideal_point_reward(
                LEFT, ideal, score="squared_distance"
            )

        assert gap(self.u).item() == pytest.approx(-0.5)
        assert (user(0.0, math.log(3))[0] * gap(PROTOTYPES)).sum().item() == pytest.approx(-0.5)

    def test_pal_oracle_4(self):
        items, scale = torch.stack([LEFT, RIGHT], dim=1), 1 / 0.07
        rewards = ideal_point_reward(items, self.u.unsqueeze(1), score="angle")
        assert rewards[0].tolist() == pytest.approx([0.3162278, 0.9486833], abs=2e-7)
        logits = ideal_point_reward(items, self.u.unsqueeze(1), score="angle", scale=scale)
        assert logits[0].tolist() == pytest.approx([4.5175391, 13.5526180], abs=1e-6)
        for preferred, expected in [(0, 9.0351982), (1, 1.1920e-4)]:
            loss = ideal_point_cross_entropy(items, self.u, torch.tensor([preferred]), scale=scale)
            assert loss.item() == pytest.approx(expected, abs=2e-7)
        assert math.exp(-loss.item()) == pytest.approx(0.9998808, abs=2e-7)

    def test_pal_oracle_5(self):
        logits = torch.zeros(1, 2, dtype=D, requires_grad=True)
        loss = ideal_point_loss(RIGHT, LEFT, logits.softmax(-1) @ PROTOTYPES, loss="hinge")
        loss.backward()
        assert loss.item() == pytest.approx(1.8740320, abs=2e-7)
        assert logits.grad[0].tolist() == pytest.approx([0.6698, -0.6698], abs=5e-5)

    def test_pal_oracle_6(self):
        values, mask = torch.tensor([3.0, 1.0, 2.0]), torch.ones(3, dtype=torch.bool)
        for weighting, expected in [("cumulative", 1.8333333), ("mean", 2.0), ("last", 2.0)]:
            value = token_window_mean(values, mask, weighting=weighting)
            assert value.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("right", "window"),
        [([2, 10, 20, 21, 22, 1, 1, 1], (2, 6)), ([2, 10, 11, 12, 1, 1, 1, 1], None)],
    )
    def test_pal_oracle_7(self, right, window):
        """The window of oracle 7 as a mask: from the first difference up to the later second padding."""
        column = torch.arange(8)
        left, right = torch.tensor([2, 10, 11, 12, 1, 1, 1, 1]), torch.tensor(right)
        differs = (left != right).long().cumsum(0) > 0
        padding = torch.stack([left, right]).eq(1).long().cumsum(1)
        mask = differs & (padding < 2).any(0)
        if window is None:  # identical: nothing to learn from
            assert token_window_mean(column.float(), mask).item() == 0
            return
        assert column[mask].tolist() == list(range(*window))
        values = torch.where(mask, column.float(), math.nan)
        assert token_window_mean(values, mask).item() == pytest.approx((2 + 2 * 3 + 3 * 4 + 4 * 5) / 10)
        assert token_window_mean(values, torch.zeros_like(mask)).item() == 0

    def test_pal_oracle_8(self):
        rows = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
        assert norm_bound_loss(rows, bound=4.0, reduction="sum").item() == pytest.approx(7)

    def test_pal_oracle_10_one_prototype(self):
        """With one prototype all users are the same, and their weights get no gradient."""
        logits = torch.tensor([[0.3], [-2.0]], dtype=D, requires_grad=True)
        ideal = logits.softmax(-1) @ torch.tensor([[0.5, -1.0]], dtype=D)
        loss = ideal_point_loss(LEFT.expand(2, 2), RIGHT.expand(2, 2), ideal, reduction="none")
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        assert loss[0] == loss[1]
        assert torch.equal(slope, torch.zeros_like(slope))

    def test_pal_oracle_11(self):
        """Seven users like long texts, three short ones: two prototypes tell them apart, one cannot."""
        generator = torch.Generator().manual_seed(0)
        likes = torch.tensor([1.0] * 7 + [-1.0] * 3, dtype=D)

        def pairs(judges: Tensor, liking: Tensor) -> tuple[Tensor, Tensor]:
            items = torch.randn(2, len(judges), 2, dtype=D, generator=generator)
            first = (items[0, :, 0] - items[1, :, 0]) * liking > 0
            chosen = torch.where(first.unsqueeze(-1), items[0], items[1])
            return chosen, torch.where(first.unsqueeze(-1), items[1], items[0])

        def accuracy(ideal: Tensor, chosen: Tensor, rejected: Tensor) -> float:
            wins = ideal_point_reward(chosen, ideal) > ideal_point_reward(rejected, ideal)
            return wins.double().mean().item()

        def fit(leaves: list[Tensor], judges: Tensor, chosen: Tensor, rejected: Tensor) -> None:
            prototypes, logits = leaves
            free = [leaf for leaf in leaves if leaf.requires_grad]
            optimizer = torch.optim.Adam(free, lr=0.1)
            for _ in range(150):
                loss = ideal_point_loss(chosen, rejected, logits[judges].softmax(-1) @ prototypes)
                for leaf, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                    leaf.grad = slope
                optimizer.step()

        seen, unseen = (torch.arange(10).repeat(number) for number in (40, 100))
        training, test = pairs(seen, likes[seen]), pairs(unseen, likes[unseen])
        for number, low, high in ((1, 0.6, 0.75), (2, 0.95, 1.0)):
            prototypes = torch.randn(number, 2, dtype=D, generator=generator).requires_grad_()
            logits = (0.1 * torch.randn(10, number, dtype=D, generator=generator)).requires_grad_()
            fit([prototypes, logits], seen, *training)
            weights = logits.detach().softmax(-1)
            assert low <= accuracy((weights @ prototypes.detach())[unseen], *test) <= high
        assert weights[:7].argmax(-1).unique().tolist() != weights[7:].argmax(-1).unique().tolist()
        assert weights.amax(-1).min() > 0.8
        # Two users never seen, ten labels each: only their weights move.
        fixed, new = prototypes.detach().clone(), torch.zeros(2, 2, dtype=D, requires_grad=True)
        judges = torch.arange(2).repeat_interleave(10)
        fit([fixed, new], judges, *pairs(judges, likes[[0, 9]][judges]))
        assert torch.equal(fixed, prototypes)
        assert new.argmax(-1).tolist() == [weights[0].argmax().item(), weights[9].argmax().item()]

    def test_pal_oracle_10(self):
        rng = np.random.default_rng(0)
        x, y, u, shift = (torch.from_numpy(rng.normal(size=(5, 3))) for _ in range(4))

        def gap(a: Tensor, b: Tensor, c: Tensor, **options: object) -> Tensor:
            return ideal_point_reward(a, c, **options) - ideal_point_reward(b, c, **options)

        torch.testing.assert_close(gap(x, y, u), -gap(y, x, u))
        torch.testing.assert_close(gap(x + shift, y + shift, u + shift), gap(x, y, u))
        torch.testing.assert_close(gap(3 * x, 3 * y, 7 * u, score="angle"), gap(x, y, u, score="angle"))
        prototypes, weights = torch.from_numpy(rng.normal(size=(4, 3))), torch.full((5, 4), 0.25, dtype=D)
        order = [2, 0, 3, 1]
        torch.testing.assert_close(
            gap(x, y, weights @ prototypes), gap(x, y, weights[:, order] @ prototypes[order])
        )


@pytest.mark.parametrize("score", ["distance", "squared_distance", "angle"])
def test_rewards_against_numpy(score):
    rng = np.random.default_rng(1)
    x, u = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    expected = {
        "distance": -np.linalg.norm(x - u, axis=1),
        "squared_distance": -((x - u) ** 2).sum(1),
        "angle": (x * u).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(u, axis=1),
    }[score]
    value = ideal_point_reward(torch.from_numpy(x), torch.from_numpy(u), score=score, scale=2.5)
    np.testing.assert_allclose(value.numpy(), 2.5 * expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["distance", "squared_distance", "angle"]))
def test_cross_entropy_of_two_is_logistic(seed, score):
    rng = np.random.default_rng(seed)
    first, second, u = (torch.from_numpy(rng.normal(size=(3, 4))) for _ in range(3))
    items = torch.stack([first, second], 1)
    entropy = ideal_point_cross_entropy(items, u, torch.zeros(3, dtype=torch.int64), score=score)
    torch.testing.assert_close(entropy, ideal_point_loss(first, second, u, score=score))


@pytest.mark.parametrize("score", ["distance", "squared_distance", "angle"])
def test_gradients(score):
    rng = np.random.default_rng(2)
    x, y, u = (torch.from_numpy(rng.normal(size=(4, 3))).requires_grad_() for _ in range(3))
    scale = torch.tensor(1.3, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, c, s: ideal_point_loss(a, b, c, score=score, scale=s), (x, y, u, scale)
    )


@pytest.mark.parametrize("score", ["distance", "angle"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_coinciding_tiny_and_huge_points_have_finite_gradients(score, size):
    x = torch.full((2, 3), size, requires_grad=True)
    u = torch.full((2, 3), size, requires_grad=True)
    reward = ideal_point_reward(x, u, score=score)
    reward.sum().backward()
    assert reward.isfinite().all()
    assert x.grad.isfinite().all()
    assert u.grad.isfinite().all()


x = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ideal_point_reward(x, torch.ones(2, 4)), r"item and ideal must share their last dimension"),
        (lambda: ideal_point_reward(x, x, score="dot"), "score must be one of 'distance'"),
        (lambda: ideal_point_reward(x, x, scale=-1.0), r"scale must be in \(0, inf\); got -1.0"),
        (lambda: ideal_point_reward(x * math.inf, x), "item must be finite; got inf"),
        (
            lambda: ideal_point_loss(x, x, x, loss="hinge", preference=x[:, 0]),
            "preference needs loss='logistic'",
        ),
        (lambda: ideal_point_loss(x, x, x, loss="mse"), "loss must be one of 'logistic', 'hinge'"),
        (
            lambda: ideal_point_cross_entropy(x[None], x[:1], torch.tensor([2])),
            r"preferred must be in \[0, 1\]; got 2",
        ),
        (
            lambda: ideal_point_cross_entropy(x[None, :, :], torch.ones(5, 3), torch.tensor([0])),
            r"ideal must broadcast to shape \(1, 3\); got \(5, 3\)",
        ),
        (
            lambda: ideal_point_reward(x, x, scale=torch.ones(2, 1)),
            r"scale must broadcast to shape \(2,\); got \(2, 1\)",
        ),
        (lambda: norm_bound_loss(x, bound=-1), r"bound must be in \[0, inf\); got -1"),
        (lambda: token_window_mean(x, x[0] > 0), "mask must have the shape of values"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
