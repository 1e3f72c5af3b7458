"""Pairs, lists, ties: oracles of the papers, independent references, identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit, xlogy
from torch import Tensor

from pluralign.losses import (
    bradley_terry_loss,
    categorical_wasserstein,
    davidson_loss,
    hinge_loss,
    plackett_luce_loss,
    ranked_pairs_loss,
    rao_kupper_loss,
    reward_centering_loss,
    smoothed_hinge_loss,
)

D = torch.float64
reals = st.floats(-30, 30)
shares = st.floats(0, 1)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def bt(gap: float, **settings_: object) -> float:
    return float(bradley_terry_loss(t(gap), t(0.0), **settings_))


class TestBradleyTerryOracles:
    """Numbers derived from Wang et al. 2024 (arXiv 2401.06080)."""

    def test_ensemble_vote_oracle_1(self):
        """Strength is the mean of the models' gaps; its spread, the distance to that point, divides by M."""
        gaps = t(1.2, 0.9, -0.1, 2.0) - t(0.4, 0.6, 0.3, 0.5)
        strength = gaps.mean()
        assert gaps.tolist() == pytest.approx([0.8, 0.3, -0.4, 1.5])
        assert strength.item() == pytest.approx(0.55)
        models, point = t(0.25, 0.25, 0.25, 0.25, 0), t(0, 0, 0, 0, 1)
        places = torch.cat([gaps, strength[None]])
        variance = categorical_wasserstein(models, point, cost=places, exponent=2)
        assert variance.sqrt().item() == pytest.approx(0.6946222, abs=1e-7)

    def test_ensemble_vote_oracle_11(self):
        """Ten linear models find planted flips by their mean gap, and learn from them once flipped back."""
        generator = torch.Generator().manual_seed(0)
        truth = torch.randn(8, dtype=D, generator=generator)
        gap = torch.randn(800, 8, dtype=D, generator=generator)  # chosen less rejected, by the truth
        gap = gap * (gap @ truth).sign().unsqueeze(-1)
        flipped = torch.arange(800) < 120
        gap = torch.where(flipped.unsqueeze(-1), -gap, gap)
        held_out = torch.randn(1000, 8, dtype=D, generator=generator)
        held_out = held_out * (held_out @ truth).sign().unsqueeze(-1)

        def trained(rows: Tensor) -> Tensor:
            theta = torch.zeros(8, dtype=D, requires_grad=True)
            optimizer = torch.optim.Adam([theta], lr=0.1)
            for _ in range(60):
                loss = bradley_terry_loss(rows @ theta, torch.zeros(len(rows), dtype=D))
                (theta.grad,) = torch.autograd.grad(loss, theta)
                optimizer.step()
            return theta.detach()

        halves = [torch.randperm(800, generator=generator)[:400] for _ in range(10)]
        strength = torch.stack([gap @ trained(gap[half]) for half in halves]).mean(0)
        order = strength.argsort()
        assert flipped[order[:120]].double().mean() > 0.8  # by chance 0.15
        lowest = gap[order[:80]]
        assert (held_out @ trained(lowest) > 0).double().mean() < 0.3
        assert (held_out @ trained(-lowest) > 0).double().mean() > 0.7

    def test_ensemble_vote_oracle_2(self):
        values = [
            bt(0.5),
            bt(0.5, preference=t(0.0)),
            bt(0.5, margin=t(1.5)),
            bt(0.5, margin=t(-1.5)),
            bt(0.5, label_smoothing=0.2),
            bt(0.5, label_smoothing=0.2, margin=t(1.5)),
        ]
        expected = [0.4740770, 0.9740770, 1.3132617, 0.1269280, 0.5740770, 1.1132617]
        assert values == pytest.approx(expected, abs=1.5e-7)

    def test_ensemble_vote_oracle_3(self):
        gap, mu = 0.7, -1.3
        assert bt(gap, label_smoothing=1.0) == bt(-gap) == bt(gap, preference=t(0.0))
        assert bt(gap, label_smoothing=0.5) == pytest.approx(bt(-gap, label_smoothing=0.5), rel=1e-15)
        assert bt(gap, margin=t(0.0)) == bt(gap) == bt(gap, label_smoothing=0.0)
        assert bt(gap, preference=t(0.0), label_smoothing=1.0) == pytest.approx(bt(gap), rel=1e-15)
        assert bt(gap, margin=t(mu), preference=t(0.0)) == pytest.approx(bt(-gap, margin=t(-mu)), rel=1e-15)

    def test_ensemble_vote_oracle_4(self):
        flipped = bradley_terry_loss(t(0.0), t(0.5), margin=t(1.5))
        forgotten = bradley_terry_loss(t(0.0), t(0.5), margin=t(-1.5))
        assert float(flipped) == pytest.approx(2.1269281, abs=1.5e-7)
        assert float(forgotten) == pytest.approx(0.3132617, abs=1.5e-7)

    @pytest.mark.parametrize(
        ("smoothing", "margin", "optimum", "entropy"),
        [
            (0.1, 0.0, math.log(9), 0.3250830),
            (0.2, 0.0, 1.3862944, 0.5004024),
            (0.2, 1.5, 2.8862944, 0.5004024),
            (0.2, -1.5, -0.1137056, 0.5004024),
        ],
    )
    def test_ensemble_vote_oracle_5(self, smoothing, margin, optimum, entropy):
        gap = t(optimum).requires_grad_()
        loss = bradley_terry_loss(gap, t(0.0), margin=t(margin), label_smoothing=smoothing)
        loss.backward()
        assert loss.item() == pytest.approx(entropy, abs=1.5e-7)
        assert gap.grad.abs().item() < 1e-7

    def test_ensemble_vote_oracle_6(self):
        mu = t(0.8, -0.4, 1.5, -2.0)
        loss = bradley_terry_loss(torch.zeros_like(mu), torch.zeros_like(mu), margin=mu)
        assert float(loss) == pytest.approx(sum(math.log1p(math.exp(m)) for m in mu.tolist()) / 4)
        assert ((0 - mu) > 0).double().mean() == 0.5  # what accuracy measured with the margin would say

    def test_frontier_oracle_3(self):
        """LoRe (arXiv 2504.14439) is Bradley-Terry on a mixed gap."""
        gap = t(0.25 * 2 - 0.75)
        assert float(bradley_terry_loss(gap, 0 * gap)) == pytest.approx(0.8259395, abs=1.5e-7)
        assert float(bradley_terry_loss(gap / 100, 0 * gap)) == pytest.approx(0.6943980, abs=1.5e-7)

    def test_frontier_oracle_5(self):
        """Margins of Touvron et al. 2023 (arXiv 2307.09288)."""
        assert bt(1.5, margin=t(1.0)) == pytest.approx(0.4740770, abs=1.5e-7)
        assert bt(1.5) == pytest.approx(0.2014133, abs=1.5e-7)

    def test_frontier_oracle_2(self):
        """Categorical distributional preference learning: Bradley-Terry at the log-odds of its probability."""
        for chosen, rejected, probability, loss in [
            (t(0, 0, 0), t(0, 0, 0), 0.5, 0.6931472),
            (t(0, 0, math.log(2)), t(math.log(2), 0, 0), 0.65625, 0.4212135),
        ]:
            better = torch.ones(3, 3, dtype=D).tril(-1) + torch.eye(3, dtype=D) / 2
            wins = chosen.softmax(-1) @ better @ rejected.softmax(-1)
            assert wins.item() == pytest.approx(probability)
            assert bt(torch.logit(wins).item()) == pytest.approx(loss, abs=1.5e-7)

    def test_frontier_oracle_6(self):
        """The pinball loss of a quantile is two hinges without margin, weighed by the level."""
        zero = t(0.0, 0.0, 0.0)
        level, error = t(0.9, 0.9, 0.1), t(2.0, -2.0, 2.0)
        above = hinge_loss(zero, error, margin=0.0, weight=level, reduction="none")
        below = hinge_loss(error, zero, margin=0.0, weight=1 - level, reduction="none")
        assert (above + below).tolist() == pytest.approx([1.8, 0.2, 0.2])

    def test_frontier_oracle_1(self):
        """The logistic stand-in of distributional preference learning (arXiv 2312.08358)."""
        deviation = math.log(1 + math.exp(math.log(math.e - 1)))
        z = 1.0 / math.hypot(deviation, deviation)
        assert z == pytest.approx(0.7071068, abs=1.5e-7)
        assert bt(math.sqrt(2 * math.pi) * z) == pytest.approx(0.1569315, abs=1.5e-7)


@settings(max_examples=60, deadline=None)
@given(reals, reals, shares, reals, shares)
def test_bradley_terry_against_scipy(first, second, preference, margin, smoothing):
    share = (1 - smoothing) * preference + smoothing * (1 - preference)
    z = first - second - margin
    expected = -share * log_expit(z) - (1 - share) * log_expit(-z)
    loss = bradley_terry_loss(
        t(first), t(second), preference=t(preference), margin=t(margin), label_smoothing=smoothing
    )
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@settings(max_examples=60, deadline=None)
@given(reals, reals, reals, shares)
def test_bradley_terry_properties(first, second, shift, preference):
    loss = bradley_terry_loss(t(first), t(second), preference=t(preference))
    shifted = bradley_terry_loss(t(first + shift), t(second + shift), preference=t(preference))
    swapped = bradley_terry_loss(t(second), t(first), preference=t(1 - preference))
    entropy = -float(xlogy(preference, preference) + xlogy(1 - preference, 1 - preference))
    assert float(loss) == pytest.approx(float(shifted), abs=1e-12)
    assert float(loss) == pytest.approx(float(swapped), abs=1e-12)
    assert float(loss) >= entropy - 1e-12


def test_bradley_terry_learns_badly_wrong_pairs():
    """A wrong pair keeps its full gradient, where log(sigmoid + 1e-5) loses it."""
    gap = t(-10.0, -15.0, -1e4).requires_grad_()
    bradley_terry_loss(gap, torch.zeros_like(gap), reduction="sum").backward()
    torch.testing.assert_close(gap.grad, t(-1.0, -1.0, -1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("average", ["pair", "prompt"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranked_pairs_against_loops_in_both_layouts(average, weighted):
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(4, 5, generator=generator, dtype=D)
    score = torch.randint(0, 4, (4, 5), generator=generator)
    mask = torch.rand(4, 5, generator=generator) > 0.25
    mask[2] = False
    weight = torch.rand(4, generator=generator, dtype=D) if weighted else torch.ones(4, dtype=D)
    numerator = denominator = 0.0
    for b in range(4):
        terms = [
            -float(log_expit(float(reward[b, i] - reward[b, j])))
            for i in range(5)
            for j in range(5)
            if mask[b, i] and mask[b, j] and score[b, i] > score[b, j]
        ]
        each = 1.0 if average == "pair" else 1 / max(len(terms), 1)
        numerator += float(weight[b]) * each * sum(terms)
        denominator += float(weight[b]) * each * len(terms)
    padded = ranked_pairs_loss(
        reward.masked_fill(~mask, float("nan")),
        score,
        mask=mask,
        average=average,
        weight=weight[:, None, None],
    )
    group = torch.arange(4).repeat_interleave(5)
    row = weight.repeat_interleave(5)[:, None]
    flat = ranked_pairs_loss(
        reward.flatten(), score.flatten(), group=group, mask=mask.flatten(), average=average, weight=row
    )
    assert float(padded) == pytest.approx(numerator / denominator, rel=1e-12)
    assert float(flat) == pytest.approx(numerator / denominator, rel=1e-12)


def test_ranked_pairs_matrix_sums_to_sum():
    reward, score = torch.randn(3, 4, dtype=D), torch.randn(3, 4, dtype=D)
    for average in ("pair", "prompt"):
        matrix = ranked_pairs_loss(reward, score, average=average, reduction="none")
        total = ranked_pairs_loss(reward, score, average=average, reduction="sum")
        assert matrix.shape == (3, 4, 4)
        torch.testing.assert_close(matrix.sum(), total)


def test_scores_only_order_the_responses():
    """Neither rounded to the type of the rewards nor deciding the type of the loss."""
    reward = torch.tensor([[0.0, 1.0, math.nan]])
    mask = torch.tensor([[True, True, False]])
    for score in (
        torch.tensor([[2**24 + 1, 2**24, 2**24 + 2]]),
        torch.tensor([[1 + 1e-12, 1.0, 2.0]], dtype=D),
        torch.tensor([[True, False, True]]),
    ):
        for loss in (ranked_pairs_loss, plackett_luce_loss):
            value = loss(reward, score, mask=mask)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(math.log1p(math.e), rel=1e-6)


def test_plackett_luce_against_loops():
    generator = torch.Generator().manual_seed(1)
    reward = torch.randn(3, 5, generator=generator, dtype=D)
    score = torch.rand(3, 5, generator=generator, dtype=D)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    for top in (None, 1, 2):
        expected = []
        for b in range(3):
            left = sorted((i for i in range(5) if mask[b, i]), key=lambda i: -float(score[b, i]))
            total, draws = 0.0, 0
            while left and (top is None or draws < top):
                total -= float(reward[b, left[0]]) - math.log(sum(math.exp(reward[b, i]) for i in left))
                left, draws = left[1:], draws + 1
            expected.append(total)
        hidden = reward.masked_fill(~mask, float("nan"))
        loss = plackett_luce_loss(hidden, score, mask=mask, top=top, reduction="none")
        torch.testing.assert_close(loss, t(*expected))


@settings(max_examples=40, deadline=None)
@given(reals, reals)
def test_plackett_luce_of_two_is_bradley_terry(first, second):
    pair = plackett_luce_loss(t(first, second)[None], t(1.0, 0.0)[None])
    assert float(pair) == pytest.approx(float(bradley_terry_loss(t(first), t(second))), rel=1e-12, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.floats(-8, 8), st.floats(0.01, 4))
def test_ties_are_distributions(gap, width):
    zero, one = t(0.0), t(1.0)
    for loss, setting in ((rao_kupper_loss, "threshold"), (davidson_loss, "prevalence")):
        options = {setting: width}
        win = float(loss(t(gap), zero, zero, **options))
        lose = float(loss(t(gap), zero, zero, preference=zero, **options))
        tie = float(loss(t(gap), zero, one, **options))
        assert sum(math.exp(-x) for x in (win, lose, tie)) == pytest.approx(1.0)
        assert win == pytest.approx(float(loss(zero, t(gap), zero, preference=zero, **options)))


def test_ties_against_written_probabilities():
    d, h, nu = 0.7, 0.4, 1.7
    worth, theta = math.exp(d), math.exp(h)
    tie = (theta**2 - 1) * worth / ((worth + theta) * (1 + theta * worth))
    assert float(rao_kupper_loss(t(d), t(0.0), t(1.0), threshold=h)) == pytest.approx(-math.log(tie))
    win = worth / (worth + 1 + nu * math.sqrt(worth))
    assert float(davidson_loss(t(d), t(0.0), t(0.0), prevalence=nu)) == pytest.approx(-math.log(win))
    tiny = rao_kupper_loss(t(d), t(0.0), t(0.0), threshold=1e-12)
    assert float(tiny) == pytest.approx(bt(d))


def test_thresholds_can_be_learnt():
    h = torch.tensor(0.3, dtype=D, requires_grad=True)
    rao_kupper_loss(t(0.2, -1.0), t(0.0, 0.0), t(1.0, 0.0), threshold=h).backward()
    nu = torch.tensor(0.3, dtype=D, requires_grad=True)
    davidson_loss(t(0.2, -1.0), t(0.0, 0.0), t(1.0, 0.0), prevalence=nu).backward()
    assert h.grad != 0
    assert nu.grad != 0


def test_pal_oracle_2():
    """Hinge, logistic and smoothed hinge of Chen et al. 2024 (arXiv 2406.08469) at oracle 1's distances."""
    left, right = t(-1.0606602), t(-1.2747549)
    for chosen, rejected, hinge, logistic, smooth in [
        (right, left, 1.2140946, 0.8059132, 0.1474026),
        (left, right, 0.7859054, 0.5918185, 0.0617647),
    ]:
        assert float(hinge_loss(chosen, rejected)) == pytest.approx(hinge, abs=2e-7)
        assert float(bradley_terry_loss(chosen, rejected)) == pytest.approx(logistic, abs=2e-7)
        assert float(smoothed_hinge_loss(chosen, rejected)) == pytest.approx(smooth, abs=2e-7)


@settings(max_examples=40, deadline=None)
@given(reals, st.floats(-3, 3), st.floats(0.05, 10))
def test_smoothed_hinge_pieces(gap, margin, gamma):
    z = margin - gap
    expected = max(z, 0) ** 2 / (2 * gamma) if z <= gamma else z - gamma / 2
    loss = smoothed_hinge_loss(t(gap), t(0.0), margin=margin, smoothing=gamma)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(loss) <= float(hinge_loss(t(gap), t(0.0), margin=margin)) + 1e-12


def test_reward_centering_is_zero_for_symmetric_pairs():
    assert float(reward_centering_loss(t(1.5, -2.0), t(-1.5, 2.0))) == 0
    assert float(reward_centering_loss(t(1.0, 2.0), t(1.0, -1.0))) == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bradley_terry_loss(t(1.0, 2.0), t(1.0)),
            r"rejected must have the shape of chosen, \(2,\); got",
        ),
        (lambda: bradley_terry_loss(t(math.nan), t(1.0)), r"chosen must be finite; got nan at index \(0,\)"),
        (
            lambda: bradley_terry_loss(t(1.0), t(1.0), preference=t(1.5)),
            r"preference must be finite and in \[0, 1\]",
        ),
        (
            lambda: bradley_terry_loss(t(1.0), t(1.0), weight=t(-1.0)),
            r"weight must be finite and in \[0, inf\); got -1",
        ),
        (
            lambda: bradley_terry_loss(t(1.0), t(1.0), margin=t(1.0, 2.0)),
            r"margin must broadcast to shape \(1,\)",
        ),
        (
            lambda: bradley_terry_loss(t(1.0), t(1.0), label_smoothing=1.5),
            r"label_smoothing must be in \[0, 1\]",
        ),
        (
            lambda: rao_kupper_loss(t(1.0), t(1.0), t(0.0), threshold=0.0),
            r"threshold must be in \(0, inf\); got 0",
        ),
        (lambda: hinge_loss(t(1.0), t(1.0), margin=math.nan), r"margin must be in \(-inf, inf\); got nan"),
        (lambda: smoothed_hinge_loss(t(1.0), t(1.0), smoothing=0.0), r"smoothing must be in \(0, inf\)"),
        (lambda: plackett_luce_loss(t(1.0), t(1.0), top=0), r"top must be in \[1, inf\); got 0"),
        (
            lambda: ranked_pairs_loss(t(1.0), t(1.0), average="list"),
            "average must be one of 'pair', 'prompt'; got",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mask_must_be_boolean():
    with pytest.raises(TypeError, match="mask must be boolean"):
        ranked_pairs_loss(t(1.0), t(1.0), mask=t(1.0))
