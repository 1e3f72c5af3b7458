"""REBEL and the relative reward: the numbers of the PCM paper."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluralign.losses import mixture_log_prob, rebel_loss, relative_reward

D = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


class TestPCMOracles:
    """Numbers derived from Zhou et al. 2024 (arXiv 2407.04181) and Gao et al. 2024 (arXiv 2404.16767)."""

    def test_pcm_oracle_1(self):
        """All weight on one expert: its own greedy and sampled text, token for token."""
        experts = torch.randn(3, 20, 20, dtype=D).log_softmax(-1)  # of the next token, given the last

        def text(step: Callable[[int], Tensor], sampled: bool) -> list[int]:
            generator, tokens = torch.Generator().manual_seed(7), [0]
            for _ in range(20):
                p = step(tokens[-1]).exp()
                token = torch.multinomial(p, 1, generator=generator) if sampled else p.argmax()
                tokens.append(int(token))
            return tokens

        for chosen in range(3):
            one_hot = torch.arange(3) == chosen
            for sampled in (False, True):
                mixed = text(
                    lambda last, m=one_hot: mixture_log_prob(t(0, 0, 0), experts[:, last].T, mask=m), sampled
                )
                assert mixed == text(lambda last, i=chosen: experts[i, last], sampled)

    def test_pcm_oracle_2(self):
        experts = torch.randn(3, 50, dtype=D).log_softmax(-1)
        logits = torch.randn(3, dtype=D)
        mass = mixture_log_prob(logits, experts.T).exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-12)
        cut = experts.masked_fill(experts < experts.topk(5).values[:, -1:], -math.inf)
        mass = mixture_log_prob(logits, cut[:, (cut > -math.inf).any(0)].T).exp().sum()
        assert mass.item() == pytest.approx((logits.softmax(-1) @ cut.exp().sum(-1)).item(), abs=1e-12)
        assert mass < 1

    def test_pcm_oracle_3(self):
        """The linear mixture, not the geometric one."""
        experts, weight = torch.stack([t(0.7, 0.2, 0.1), t(0.1, 0.2, 0.7)]), t(0.6, 0.4)
        linear = mixture_log_prob(weight.log(), experts.T.log()).exp()
        assert linear.tolist() == pytest.approx([0.46, 0.20, 0.34])
        geometric = (weight @ experts.log()).softmax(-1)
        assert geometric.tolist() == pytest.approx([0.4348, 0.2706, 0.2946], abs=5e-5)

    def test_pcm_oracle_4(self):
        """No veto: what one expert rules out stays possible, with a finite gradient."""
        experts = torch.stack([t(0.6, 0.4, 0), t(0, 0.4, 0.6)])
        logits = t(0, 0).requires_grad_()
        mixed = mixture_log_prob(logits, experts.T.log())
        mixed.sum().backward()
        assert mixed.detach().exp().tolist() == pytest.approx([0.3, 0.4, 0.3])
        assert logits.grad.isfinite().all()

    def test_pcm_oracle_5(self):
        logits = t(0.5, 0.3, 0.2).log().requires_grad_()
        value = mixture_log_prob(logits, t(0.10, 0.40, 0.05).log())
        value.backward()
        assert value.item() == pytest.approx(-1.7147984, abs=1e-7)
        assert logits.grad.tolist() == pytest.approx([-0.2222222, 0.3666667, -0.1444444], abs=1e-7)
        same = t(0.5, 0.3, 0.2).requires_grad_()
        mixture_log_prob(same, t(-1.0, -1.0, -1.0)).backward()
        assert same.grad.abs().max() < 1e-15

    def test_pcm_oracle_8(self):
        """Masked experts weigh exactly nothing; order of experts does not matter."""
        logits, log_p = t(0.3, -1.0, 2.0), t(-1.0, -0.5, -3.0)
        mask = torch.tensor([True, False, True])
        full = mixture_log_prob(logits[mask], log_p[mask])
        torch.testing.assert_close(mixture_log_prob(logits, log_p, mask=mask), full)
        torch.testing.assert_close(
            mixture_log_prob(logits.flip(0), log_p.flip(0)), mixture_log_prob(logits, log_p)
        )

    def test_frontier_oracle_7(self):
        """The weights of group DRO are the posterior over groups, with losses as evidence: q + gradient."""
        logits = t(0.5, 0.5).log().requires_grad_()
        (change,) = torch.autograd.grad(mixture_log_prob(logits, 0.01 * t(1.0, 0.2)), logits)
        assert (0.5 + change).tolist() == pytest.approx([0.5020, 0.4980], abs=5e-5)

    def test_pcm_oracle_10(self):
        """Scalars stored at rollout give the log-probabilities of mixing whole vocabularies; no expert runs."""
        experts = torch.randn(4, 6, 3, 30, dtype=D).log_softmax(-1).requires_grad_()
        logits, tokens = torch.randn(4, 6, 3, dtype=D), torch.randint(0, 30, (4, 6))
        whole = mixture_log_prob(logits.unsqueeze(-2), experts.transpose(-1, -2))
        again = whole.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(-1).detach()
        index = tokens[..., None, None].expand(-1, -1, 3, 1)
        stored = experts.gather(-1, index).squeeze(-1).detach()
        logits.requires_grad_()
        ratio = mixture_log_prob(logits, stored).sum(-1) - again
        assert ratio.abs().max() < 1e-12
        reward = torch.rand(4, dtype=D)
        loss = rebel_loss(ratio[:2], ratio[2:], reward[:2], reward[2:])
        assert loss.item() == pytest.approx((reward[:2] - reward[2:]).square().mean().item())
        loss.backward()
        assert logits.grad.abs().max() > 0
        assert experts.grad is None

    def test_pcm_oracle_11(self):
        """Expert 0 always says token 0, expert 1 token 1; a bit says which is right. REBEL finds out."""
        generator = torch.Generator().manual_seed(0)
        log_p = torch.eye(2, dtype=D).log()  # of each token, under each expert
        table = torch.zeros(2, 2, dtype=D, requires_grad=True)
        optimizer = torch.optim.Adam([table], lr=0.1)
        for _ in range(80):
            bit = torch.randint(0, 2, (64,), generator=generator)
            with torch.no_grad():
                policy = mixture_log_prob(table[bit].unsqueeze(1), log_p).exp()
                first, second = torch.multinomial(policy, 2, replacement=True, generator=generator).T
            ratios = []
            for token in (first, second):
                new = mixture_log_prob(table[bit], log_p[token])
                ratios.append(new - new.detach())
            loss = rebel_loss(*ratios, (first == bit).to(D), (second == bit).to(D), eta=5.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert table.detach().softmax(-1).diagonal().min() > 0.95
        for static in (0.0, 0.3, 1.0):  # weights that ignore the bit: right half of the time
            alike = t(static, 1 - static).log().clamp_min(-99).expand(2, 2)
            right = mixture_log_prob(alike, log_p).exp()
            assert right.mean().item() == pytest.approx(0.5)

    def test_pcm_oracle_6(self):
        difference = t(1.2, -0.3, 0.5)
        parts = [relative_reward(d[None], t(0.0)).item() for d in difference]
        assert parts == pytest.approx([0.7685248, 0.4255575, 0.6224593], abs=1e-7)
        assert relative_reward(difference, t(0, 0, 0)).item() == pytest.approx(0.6055139, abs=1e-7)
        assert relative_reward(difference, difference).item() == 0.5
        moved = relative_reward(difference + t(5, -2, 1), t(5, -2, 1)).item()
        assert moved == pytest.approx(0.6055139, abs=1e-7)
        assert relative_reward(t(4, -0.2, -0.2), t(0, 0, 0)).item() == pytest.approx(0.6274, abs=5e-5)
        assert relative_reward(t(0.3, 0.3, 0.3), t(0, 0, 0)).item() == pytest.approx(0.5744, abs=5e-5)

    def test_pcm_oracle_7(self):
        args = t(0.30), t(-0.10), t(0.62), t(0.41)
        assert rebel_loss(*args).item() == pytest.approx(0.0361)
        assert rebel_loss(*args, eta=0.5).item() == pytest.approx(0.3481)
        assert rebel_loss(*args, eta=0.5, scaling="log_ratio").item() == pytest.approx(0.087025)
        ratio = t(0.0).requires_grad_()
        start = rebel_loss(ratio, t(0.0), *args[2:])
        start.backward()
        assert start.item() == pytest.approx(0.0441)
        assert ratio.grad.item() == pytest.approx(-0.42)
        swapped = rebel_loss(args[1], args[0], args[3], args[2])
        assert swapped.item() == pytest.approx(0.0361)


reals = st.floats(-5, 5)


@settings(max_examples=50, deadline=None)
@given(reals, reals, reals, reals, st.floats(0.01, 100))
def test_scalings_differ_by_eta_squared(a, b, c, d, eta):
    args = t(a), t(b), t(c), t(d)
    code = rebel_loss(*args, eta=eta, scaling="log_ratio").item()
    assert code == pytest.approx(eta**2 * rebel_loss(*args, eta=eta).item(), rel=1e-9, abs=1e-9)
    assert code == pytest.approx((a - b - eta * (c - d)) ** 2, rel=1e-9, abs=1e-9)


def test_relative_reward_of_masked_dimensions():
    score, mask = t(1.0, float("nan"), -1.0), torch.tensor([True, False, True])
    assert relative_reward(score, t(0, 0, 0), mask=mask).item() == pytest.approx(0.5)
    assert relative_reward(score, t(0, 0, 0), mask=~mask & mask).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, r"eta must be in \(0, inf\); got 0.0"),
        ({"eta": float("inf")}, r"eta must be in \(0, inf\); got inf"),
        ({"scaling": "code"}, "scaling must be one of 'reward', 'log_ratio'; got 'code'"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rebel_loss(t(0.0), t(0.0), t(0.0), t(0.0), **options)


def test_bad_log_probabilities_are_named():
    with pytest.raises(ValueError, match=r"log_prob must be finite; got nan at index \(1,\)"):
        mixture_log_prob(t(0.0, 0.0), t(-1.0, float("nan")))
    with pytest.raises(TypeError, match="mask must be boolean"):
        mixture_log_prob(t(0.0, 0.0), t(-1.0, -1.0), mask=t(1.0, 0.0))


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"reward must have the shape of log_ratio, \(1,\); got \(2,\)"):
        rebel_loss(t(0.0), t(0.0), t(0.0, 1.0), t(0.0))
