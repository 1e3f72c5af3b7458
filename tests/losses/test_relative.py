"""REBEL and the relative reward: the numbers of the PCM paper."""

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

    def test_pcm_oracle_2(self):
        experts = torch.randn(3, 50, dtype=D).log_softmax(-1)
        mass = mixture_log_prob(torch.randn(3, dtype=D), experts.T).exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-12)

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
    score, mask = t(1.0, 50.0, -1.0), torch.tensor([True, False, True])
    assert relative_reward(score, t(0, 0, 0), mask=mask).item() == pytest.approx(0.5)
    assert relative_reward(score, t(0, 0, 0), mask=~mask & mask).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, r"eta must be in \(0, inf\); got 0.0"),
        ({"scaling": "code"}, "scaling must be one of 'reward', 'log_ratio'; got 'code'"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rebel_loss(t(0.0), t(0.0), t(0.0), t(0.0), **options)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"reward must have the shape of log_ratio, \(1,\); got \(2,\)"):
        rebel_loss(t(0.0), t(0.0), t(0.0, 1.0), t(0.0))
