"""The meta step against closed forms and finite differences: every parameter, with and without checkpointing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pluralign.losses import bradley_terry_loss, separation_objective
from pluralign.models.ensemble_vote import MetaStep

D = torch.float64
RATE = 0.05


class Net(nn.Module):
    """Blocks with attention, normalisation and dropout over (rows, tokens, width), and a score of each row."""

    def __init__(self, *, recompute=False, dropout=0.0, layers=2):
        super().__init__()
        self.recompute, self.dropout = recompute, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(layers))
        self.mixes = nn.ModuleList(nn.Linear(8, 24) for _ in range(layers))
        self.outs = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.head = nn.Linear(8, 1, bias=False)

    def block(self, number, states):
        query, key, value = self.mixes[number](self.norms[number](states)).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        seen = nn.functional.dropout(seen, self.dropout)
        return states + torch.tanh(self.outs[number](seen))

    def forward(self, states):
        for number in range(len(self.norms)):
            if self.recompute:
                states = checkpoint(self.block, number, states, use_reentrant=False)
            else:
                states = self.block(number, states)
        return self.head(states.mean(1)).squeeze(-1)


class Problem:
    """A net with pairs to learn from and groups to climb on."""

    def __init__(self, *, seed=0, **settings):
        torch.manual_seed(seed)
        self.net = Net(**settings).double()
        self.pairs, self.samples = torch.randn(2, 3, 4, 8, dtype=D), torch.randn(2, 3, 4, 8, dtype=D)

    def loss(self):
        return bradley_terry_loss(self.net(self.pairs[0]), self.net(self.pairs[1]))

    def objective(self):
        return separation_objective(self.net(self.samples.flatten(0, 1)).view(2, 3))

    def meta_gradient(self, rate=RATE, *, check=False, **settings):
        outcome = MetaStep(rate, **settings)(self.net, self.objective, self.loss, check=check)
        self.net.zero_grad()
        outcome.loss.backward()
        return flat([parameter.grad for parameter in self.net.parameters()])

    def gradient(self, value):
        return flat(torch.autograd.grad(value(), list(self.net.parameters())))

    def at(self, weights, value):
        """What ``value`` says with other weights."""
        before = flat(self.net.parameters())
        nn.utils.vector_to_parameters(weights, self.net.parameters())
        try:
            return value()
        finally:
            nn.utils.vector_to_parameters(before, self.net.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def central(function, weights, step=1e-5):
    """Finite differences of a scalar along every weight."""
    slopes = []
    for place in range(len(weights)):
        moved = [weights.clone(), weights.clone()]
        moved[0][place] += step
        moved[1][place] -= step
        slopes.append((function(moved[0]) - function(moved[1])) / (2 * step))
    return torch.stack(slopes)


def moved_by_hand(problem, weights, rate, normalized):
    ascent = problem.at(weights, lambda: problem.gradient(problem.objective))
    return weights + rate * (ascent / ascent.norm() if normalized else ascent)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_first_order_is_the_gradient_at_the_moved_weights_of_every_parameter(recompute, normalized):
    problem = Problem(recompute=recompute)
    weights = flat(problem.net.parameters())
    moved = moved_by_hand(problem, weights, 0.5, normalized)
    differences = central(lambda w: problem.at(w, problem.loss).detach(), moved)
    found = problem.meta_gradient(0.5, normalized=normalized)
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-9)
    assert (found - problem.gradient(problem.loss)).norm() > 1e-3 * found.norm()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_second_order_is_the_true_meta_gradient_of_every_parameter(recompute, normalized):
    problem = Problem(recompute=recompute)
    weights = flat(problem.net.parameters())

    def through(start):
        return problem.at(moved_by_hand(problem, start, 0.5, normalized), problem.loss).detach()

    found = problem.meta_gradient(0.5, normalized=normalized, second_order=True)
    torch.testing.assert_close(found, central(through, weights), rtol=1e-6, atol=1e-9)
    first = problem.meta_gradient(0.5, normalized=normalized)
    assert (found - first).norm() > 1e-3 * found.norm()
