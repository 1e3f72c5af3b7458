"""Merged experts: the numbers of the papers, plain loops and scipy, vetoes, masks, gradients, and what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

from pluralign.losses import (
    forward_kl_mixture,
    geometric_mixture,
    linear_mixture,
    mixture_log_prob,
)

D = torch.float64
INF = math.inf


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def forward_kl_uniform(weights: Tensor, log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Near a reference that prefers nothing."""
    size = log_probs.shape[-1]
    reference = torch.full((size,), 1 / size, dtype=log_probs.dtype).log()
    return forward_kl_mixture(weights, log_probs, reference, mask=mask)


def linear_of_weights(weights: Tensor, log_probs: Tensor, *, mask: Tensor | None = None) -> Tensor:
    return linear_mixture(weights.log(), log_probs, mask=mask)


MIXTURES = {
    "linear": linear_of_weights,
    "geometric": geometric_mixture,
    "forward_kl": forward_kl_uniform,
}
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = D) -> Tensor:
    """Log-probabilities over the last dimension."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=D, generator=generator)).log_softmax(-1).to(dtype)


class TestPCMOracles:
    """Numbers derived from Zhou et al. 2024 (arXiv 2407.04181) and Shi et al. 2024 (arXiv 2406.18853)."""

    experts = torch.stack([t(0.7, 0.2, 0.1), t(0.1, 0.2, 0.7)]).log()

    def test_pcm_oracle_2(self):
        """Mass 1 for any weights; of truncated experts the weighted mass that is there."""
        experts, weights = drawn(4, 3, 50, scale=3.0, dtype=torch.float32), drawn(4, 3, seed=1).exp().float()
        for merge in MIXTURES.values():
            mass = merge(weights, experts).exp().sum(-1)
            torch.testing.assert_close(mass, torch.ones(4), atol=1e-5, rtol=0)
        cut = experts.masked_fill(experts < experts.topk(5).values[..., -1:], -INF)
        given = linear_mixture(weights.log(), cut).exp().sum(-1)
        torch.testing.assert_close(given, (weights * cut.exp().sum(-1)).sum(-1), atol=1e-6, rtol=1e-5)
        assert (given < 1).all()

    def test_pcm_oracle_3(self):
        weights = t(0.6, 0.4)
        assert linear_mixture(weights.log(), self.experts).exp().tolist() == pytest.approx([0.46, 0.20, 0.34])
        geometric = geometric_mixture(weights, self.experts).exp().tolist()
        assert geometric == pytest.approx([0.4348, 0.2706, 0.2946], abs=5e-5)

    def test_pcm_oracle_4(self):
        """What one expert rules out stays possible in the linear mixture, and in no other."""
        experts, weights = torch.stack([t(0.6, 0.4, 0), t(0, 0.4, 0.6)]).log(), t(0.5, 0.5)
        assert linear_mixture(weights.log(), experts).exp().tolist() == pytest.approx([0.3, 0.4, 0.3])
        for merge in (geometric_mixture, forward_kl_uniform):
            assert merge(weights, experts).exp().tolist() == [0.0, 1.0, 0.0]

    @every_mixture
    def test_pcm_oracle_8(self, name):
        """The order of experts does not matter; masked ones weigh exactly nothing, whatever stands there."""
        merge, experts, weights = MIXTURES[name], drawn(2, 4, 9), drawn(2, 4, seed=1).exp()
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(merge(weights[:, order], experts[:, order]), merge(weights, experts))
        mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
        for row in range(2):
            some = mask[row]
            wanted = merge(weights[row, some], experts[row, some])
            torch.testing.assert_close(merge(weights[row], experts[row], mask=some), wanted)
        rubbish = experts.masked_fill(~mask.unsqueeze(-1), math.nan)
        assert torch.equal(merge(weights, rubbish, mask=mask), merge(weights, experts, mask=mask))

    def test_temperature_before_and_after_mixing_differ(self):
        weights = t(0.6, 0.4).log()
        after = (linear_mixture(weights, self.experts) / 0.5).softmax(-1)
        assert after.tolist() == pytest.approx([0.5763, 0.1089, 0.3148], abs=5e-5)
        before = linear_mixture(weights, (self.experts / 0.5).log_softmax(-1)).exp()
        assert before.tolist() == pytest.approx([0.5519, 0.0741, 0.3741], abs=5e-5)


class TestAgainstPlainLoops:
    def test_linear(self):
        logits, experts = torch.randn(5, 3, dtype=D), drawn(5, 3, 7)
        mixed = linear_mixture(logits, experts).numpy()
        for row in range(5):
            weights, p = softmax(logits[row].numpy()), experts[row].exp().numpy()
            for token in range(7):
                wanted = math.log(sum(weights[i] * p[i, token] for i in range(3)))
                assert mixed[row, token] == pytest.approx(wanted, rel=1e-12)

    def test_linear_is_what_stored_log_probabilities_replay(self):
        logits, experts = torch.randn(4, 3, dtype=D), drawn(4, 3, 7)
        mask = torch.tensor([True, True, False])
        each = [mixture_log_prob(logits, experts[..., token], mask=mask) for token in range(7)]
        torch.testing.assert_close(linear_mixture(logits, experts, mask=mask), torch.stack(each, -1))

    def test_geometric(self):
        weights, experts = torch.rand(5, 3, dtype=D) * 2, drawn(5, 3, 7)
        merged = geometric_mixture(weights, experts).numpy()
        for row in range(5):
            score = [
                sum(float(weights[row, i]) * float(experts[row, i, y]) for i in range(3)) for y in range(7)
            ]
            np.testing.assert_allclose(merged[row], np.array(score) - logsumexp(score), rtol=1e-12)

    def test_geometric_of_logits_is_that_of_log_probabilities(self):
        logits = torch.randn(2, 6, dtype=D)
        weights = t(1.0, 0.25)
        merged = geometric_mixture(weights, logits)
        torch.testing.assert_close(merged, geometric_mixture(weights, logits.log_softmax(-1)))

    def test_rule_of_an_autoregressive_reward_model(self):
        """GenARM: log p = log p_base + log p_r / beta, less a constant."""
        base, reward, beta = torch.randn(8, dtype=D), torch.randn(8, dtype=D), 0.2
        merged = geometric_mixture(t(1.0, 1 / beta), torch.stack([base, reward]).log_softmax(-1))
        torch.testing.assert_close(merged, (base + reward / beta).log_softmax(-1))

    @pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 8.0])
    def test_forward_kl(self, scale):
        weights, experts = drawn(5, 3, seed=1).exp(), drawn(5, 3, 7, scale=scale)
        reference = drawn(5, 7, seed=2, scale=scale)
        merged = forward_kl_mixture(weights, experts, reference).exp().numpy()
        for row in range(5):
            w, p, q = weights[row].numpy(), experts[row].exp().numpy(), reference[row].exp().numpy()
            ratio = np.array([sum(w[i] * q[y] / p[i, y] for i in range(3)) for y in range(7)])
            distance = ratio - ratio.min()
            low = (q - distance).max()
            z = np.exp(brentq(lambda u, d=distance, q=q: (q / (np.exp(u) + d)).sum() - 1, np.log(low), 0))
            np.testing.assert_allclose(merged[row], q / (z + distance), rtol=1e-6, atol=1e-9)

    def test_forward_kl_is_the_best_policy_of_the_weighted_rewards(self):
        """Each expert is the best of its reward less the divergence; the result that of the rewards together."""
        weights, experts, reference = t(0.7, 0.3), drawn(2, 5), drawn(5, seed=2)
        q = reference.exp().numpy()
        reward = (weights.unsqueeze(-1) * -(reference - experts).exp()).sum(0).numpy()

        def loss(logits: np.ndarray) -> float:
            p = softmax(logits)
            return float(-(p * reward).sum() - (q * np.log(p)).sum())

        best = softmax(minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-10}).x)
        merged = forward_kl_mixture(weights, experts, reference).exp().numpy()
        np.testing.assert_allclose(merged, best, atol=1e-5)

    def test_forward_kl_is_not_the_score_that_leaves_the_normaliser_out(self):
        weights, experts, reference = t(0.6, 0.4), drawn(2, 5), drawn(5, seed=2)
        score = -(weights.log().unsqueeze(-1) - experts).logsumexp(0)
        merged = forward_kl_mixture(weights, experts, reference)
        assert (merged - score.log_softmax(-1)).abs().max() > 0.05
        assert score.exp().sum() < 0.95


class TestLimits:
    @every_mixture
    @pytest.mark.parametrize("dtype", [torch.float32, D])
    def test_all_weight_on_one_expert_is_that_expert(self, name, dtype):
        experts = drawn(3, 20, scale=4.0, dtype=dtype)
        for chosen in range(3):
            merged = MIXTURES[name](torch.eye(3, dtype=dtype)[chosen], experts)
            torch.testing.assert_close(merged, experts[chosen])
        if name == "linear":
            assert torch.equal(merged, experts[2])

    @every_mixture
    def test_equal_experts_stay_what_they_are(self, name):
        expert = drawn(1, 9).expand(3, 9)
        torch.testing.assert_close(MIXTURES[name](t(0.2, 0.3, 0.5), expert), expert[0])

    def test_forward_kl_divides_weights_by_their_sum(self):
        experts = drawn(2, 6)
        torch.testing.assert_close(
            forward_kl_uniform(t(3.0, 1.0), experts), forward_kl_uniform(t(0.75, 0.25), experts)
        )

    @every_mixture
    def test_weights_of_all_rows_or_of_each(self, name):
        merge, experts, weights = MIXTURES[name], drawn(2, 4, 3, 6), t(0.2, 0.5, 0.3)
        each = merge(weights.expand(2, 4, 3), experts)
        torch.testing.assert_close(merge(weights, experts), each)
        torch.testing.assert_close(merge(weights, experts[1, 2]), each[1, 2])

    @every_mixture
    def test_no_rows(self, name):
        assert MIXTURES[name](t(0.5, 0.5), torch.zeros(0, 2, 6, dtype=D)).shape == (0, 6)

    @every_mixture
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        experts, weights = drawn(3, 30, dtype=dtype), torch.tensor([0.25, 0.5, 0.25], dtype=dtype)
        merged = MIXTURES[name](weights, experts)
        assert merged.dtype == torch.float32
        wanted = MIXTURES[name](weights.double(), experts.double())
        torch.testing.assert_close(merged.double(), wanted, atol=1e-3, rtol=1e-3)

    @every_mixture
    @pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
    def test_extremes_are_finite_in_mass_and_gradient(self, name, size):
        signs = torch.randn(6, 3, 5).sign()
        signs[..., 0] = 1  # one token that all find possible
        scores = (size * signs).requires_grad_()
        weights = torch.tensor([0.2, 0.3, 0.5]).requires_grad_()
        merged = MIXTURES[name](weights, scores.log_softmax(-1))
        torch.testing.assert_close(merged.exp().sum(-1), torch.ones(6), atol=1e-5, rtol=0)
        merged.exp().square().sum().backward()
        assert scores.grad.isfinite().all() and weights.grad.isfinite().all()

    @every_mixture
    def test_vetoes_have_finite_gradients(self, name):
        experts = torch.stack([t(0.5, 0.3, 0.2, 0, 0), t(0, 0.3, 0.3, 0.4, 0)]).log().requires_grad_()
        weights = t(0.4, 0.6).requires_grad_()
        merged = MIXTURES[name](weights, experts)
        assert merged[4] == -INF
        merged[1:3].sum().backward()
        assert experts.grad.isfinite().all() and weights.grad.isfinite().all()
        assert experts.grad.any()

    def test_a_weight_of_zero_has_no_veto(self):
        experts = torch.stack([t(0.5, 0.3, 0.2), t(0, 0.5, 0.5)]).log()
        for merge in (geometric_mixture, forward_kl_uniform):
            torch.testing.assert_close(merge(t(1.0, 0.0), experts), experts[0])


class TestGradients:
    mask = torch.tensor([[True, True, True], [True, False, True]])

    def test_linear(self):
        args = [torch.randn(2, 3, dtype=D).requires_grad_(), torch.randn(2, 3, 5, dtype=D).requires_grad_()]
        assert torch.autograd.gradcheck(
            lambda z, x: linear_mixture(z, x.log_softmax(-1), mask=self.mask), args
        )

    def test_geometric(self):
        args = [torch.rand(2, 3, dtype=D).requires_grad_(), torch.randn(2, 3, 5, dtype=D).requires_grad_()]
        assert torch.autograd.gradcheck(
            lambda w, x: geometric_mixture(w, x.log_softmax(-1), mask=self.mask), args
        )

    def test_forward_kl(self):
        args = [
            (torch.rand(2, 3, dtype=D) + 0.1).requires_grad_(),
            torch.randn(2, 3, 5, dtype=D).requires_grad_(),
            torch.randn(2, 5, dtype=D).requires_grad_(),
        ]
        assert torch.autograd.gradcheck(
            lambda w, x, q: forward_kl_mixture(w, x.log_softmax(-1), q.log_softmax(-1), mask=self.mask), args
        )

    def test_weights_learn_by_how_much_better_an_expert_is_than_the_mixture(self):
        """The gradient of REBEL's log-ratio: posterior less prior weight."""
        logits = t(0.5, 0.3, 0.2).log().requires_grad_()
        others = t(0.90, 0.60, 0.95)
        experts = torch.stack([t(0.10, 0.40, 0.05), others], -1).log()
        linear_mixture(logits, experts)[0].backward()
        assert logits.grad.tolist() == pytest.approx([-0.2222222, 0.3666667, -0.1444444], abs=1e-7)


@every_mixture
def test_vmap(name):
    experts, weights = drawn(4, 3, 6), drawn(4, 3, seed=1).exp()
    mapped = torch.func.vmap(MIXTURES[name])(weights, experts)
    torch.testing.assert_close(mapped, MIXTURES[name](weights, experts))


@every_mixture
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()
    experts, weights = drawn(4, 3, 6, dtype=torch.float32), drawn(4, 3, seed=1).exp().float()
    compiled = torch.compile(MIXTURES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weights, experts), MIXTURES[name](weights, experts))


@every_mixture
def test_nothing_in_common_is_refused_where_values_are_read(name):
    experts, weights = torch.eye(2, dtype=D).log(), t(0.5, 0.5)
    if name == "linear":
        assert linear_of_weights(weights, experts).exp().tolist() == pytest.approx([0.5, 0.5])
        return
    with pytest.raises(
        ValueError, match=r"number of tokens that all experts with a weight find possible must be"
    ):
        MIXTURES[name](weights, experts)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (t(-0.1, 1.1), r"weights must be finite and in \[0, inf\); got -0.1 at index \(0,\)"),
        (t(0.0, 0.0), r"the sum of the weights of those who take part must be .* got 0.0"),
        (t(1.0, 1.0, 1.0), r"weights must have one entry for each of the 2 experts; got shape \(3,\)"),
    ],
)
def test_bad_weights_are_named(weights, message):
    for merge in (geometric_mixture, forward_kl_uniform):
        with pytest.raises(ValueError, match=message):
            merge(weights, drawn(2, 5))


def test_bad_input_is_named():
    experts, logits = drawn(2, 5), t(0.0, 0.0)
    with pytest.raises(ValueError, match=r"log_weights must be finite; got nan at index \(1,\)"):
        linear_mixture(t(0.0, math.nan), experts)
    with pytest.raises(ValueError, match="number of experts that take part must be"):
        linear_mixture(logits, experts, mask=torch.tensor([False, False]))
    with pytest.raises(ValueError, match=r"log_probs must be finite; got nan at index \(1, 3\)"):
        linear_mixture(logits, torch.where(torch.arange(10).view(2, 5) == 8, math.nan, experts))
    with pytest.raises(ValueError, match=r"log_probs must be \(\.\.\., n, V\).*got \(5,\)"):
        linear_mixture(logits, experts[0])
    with pytest.raises(TypeError, match="mask must be boolean"):
        linear_mixture(logits, experts, mask=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"mask must broadcast to shape \(2,\); got \(3,\)"):
        linear_mixture(logits, experts, mask=torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match=r"reference_log_probs must broadcast to shape \(5,\); got \(4,\)"):
        forward_kl_mixture(t(0.5, 0.5), experts, drawn(4))
