"""The meta step against closed forms and finite differences: every parameter, with and without checkpointing."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pluralign.losses import bradley_terry_loss, separation_objective
from pluralign.models.ensemble_vote import MetaStep

D = torch.float64
RATE = 0.5
WIDTH = 4


class Net(nn.Module):
    """Blocks with attention, normalisation and dropout over (rows, tokens, width), and a score of each row."""

    def __init__(self, *, recompute=False, dropout=0.0, layers=2):
        super().__init__()
        self.recompute, self.dropout = recompute, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(layers))
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(layers))
        self.outs = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 1, bias=False)

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
        self.pairs, self.samples = torch.randn(2, 3, 4, WIDTH, dtype=D), torch.randn(2, 3, 4, WIDTH, dtype=D)

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


def moved_by_hand(problem, weights, rate, normalized=False):
    ascent = problem.at(weights, lambda: problem.gradient(problem.objective))
    return weights + rate * (ascent / ascent.norm() if normalized else ascent)


@cache
def differences(second_order, normalized):
    """Finite differences of the meta step, along every weight."""
    problem = Problem()
    weights = flat(problem.net.parameters())
    if not second_order:
        moved = moved_by_hand(problem, weights, RATE, normalized)
        return central(lambda w: problem.at(w, problem.loss).detach(), moved)
    return central(
        lambda w: problem.at(moved_by_hand(problem, w, RATE, normalized), problem.loss).detach(), weights
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("second_order", [False, True])
def test_every_parameter_has_the_gradient_of_finite_differences(second_order, normalized, recompute):
    problem = Problem(recompute=recompute)
    found = problem.meta_gradient(normalized=normalized, second_order=second_order)
    torch.testing.assert_close(found, differences(second_order, normalized), rtol=1e-6, atol=1e-9)
    other = problem.meta_gradient(normalized=normalized, second_order=not second_order)
    for wrong in (problem.gradient(problem.loss), other):
        assert (found - wrong).norm() > 1e-3 * found.norm()


def test_ensemble_vote_oracle_8_on_a_network():
    """First order is g + eta H g_J but for eta^2, and falls short of all of the meta-gradient by a term in eta."""
    problem = Problem()
    weights = list(problem.net.parameters())
    slopes = torch.autograd.grad(problem.objective(), weights)
    plain = problem.gradient(problem.loss)
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(problem.loss(), weights, create_graph=True)
        curved = flat(torch.autograd.grad(gradient, weights, slopes))
    residual, gap = [], []
    for rate in (1e-1, 1e-2, 1e-3):
        first = problem.meta_gradient(rate)
        residual.append((first - plain - rate * curved).norm().item())
        gap.append((first - problem.meta_gradient(rate, second_order=True)).norm().item())
    assert [a / b for a, b in pairwise(residual)] == pytest.approx([100, 100], rel=0.1)
    assert [a / b for a, b in pairwise(gap)] == pytest.approx([10, 10], rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
def test_second_order_and_checks_see_the_dropout_of_the_ascent(recompute):
    found = []
    for check in (False, True):
        problem = Problem(recompute=recompute, dropout=0.4)
        torch.manual_seed(5)
        found.append(problem.meta_gradient(check=check, second_order=True))
        after = torch.get_rng_state()
    assert torch.equal(*found)
    # By hand: one mask for J wherever it is evaluated, the next one for L.
    problem = Problem(dropout=0.4)
    torch.manual_seed(5)
    first = torch.get_rng_state()
    problem.objective()
    second = torch.get_rng_state()
    problem.loss()
    assert torch.equal(torch.get_rng_state(), after), "no other random numbers are drawn"

    def seeded(value, state):
        def call():
            torch.set_rng_state(state)
            return value()

        return call

    problem.loss, problem.objective = seeded(problem.loss, second), seeded(problem.objective, first)
    weights = flat(problem.net.parameters())
    by_hand = central(lambda w: problem.at(moved_by_hand(problem, w, RATE), problem.loss).detach(), weights)
    torch.testing.assert_close(found[0], by_hand, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("second_order", [False, True])
def test_weights_and_gathered_gradients_are_what_they_were_to_the_bit(second_order):
    problem = Problem()
    before = flat(problem.net.parameters())
    for parameter in problem.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    gathered = flat(parameter.grad for parameter in problem.net.parameters())
    step = MetaStep(RATE, second_order=second_order)
    outcome = step(problem.net, problem.objective, problem.loss, check=True)
    assert torch.equal(flat(problem.net.parameters()), before)
    assert torch.equal(flat(parameter.grad for parameter in problem.net.parameters()), gathered)
    (3 * outcome.loss).backward()  # as a trainer scales it
    added = flat(parameter.grad for parameter in problem.net.parameters()) - gathered
    torch.testing.assert_close(added, 3 * problem.meta_gradient(second_order=second_order))
    assert torch.equal(flat(problem.net.parameters()), before)


@pytest.mark.parametrize("where", ["objective", "loss"])
def test_a_failure_leaves_everything_as_it_was(where):
    problem = Problem()
    before, state = flat(problem.net.parameters()), torch.get_rng_state()

    def fails():
        raise KeyError("nothing here")

    values = {"objective": problem.objective, "loss": problem.loss, where: fails}
    with pytest.raises(KeyError, match="nothing here"):
        MetaStep(RATE)(problem.net, **values, check=True)
    assert torch.equal(flat(problem.net.parameters()), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checked_step_tells_the_rise_and_what_was_expected():
    problem = Problem()
    slope = problem.gradient(problem.objective)
    low = problem.objective().detach()
    for rate, normalized in ((1e-4, False), (1e-4, True)):
        outcome = MetaStep(rate, normalized=normalized)(
            problem.net, problem.objective, problem.loss, check=True
        )
        moved = moved_by_hand(problem, flat(problem.net.parameters()), rate, normalized)
        torch.testing.assert_close(outcome.rise, problem.at(moved, problem.objective).detach() - low)
        expected = rate * (slope.norm() if normalized else slope.square().sum())
        torch.testing.assert_close(outcome.expected, expected)
        torch.testing.assert_close(outcome.rise, outcome.expected, rtol=1e-2, atol=0)
    assert MetaStep(RATE)(problem.net, problem.objective, problem.loss).rise is None


def test_the_normalised_ascent_has_the_length_that_was_asked_for():
    problem = Problem()
    before, lengths = flat(problem.net.parameters()), []

    def loss():
        lengths.append((flat(problem.net.parameters()) - before).norm().item())
        return problem.loss()

    MetaStep(0.25, normalized=True)(problem.net, problem.objective, loss)
    assert lengths == pytest.approx([0.25])


def test_tied_rewards_ascend_nowhere():
    problem = Problem()
    nn.init.zeros_(problem.net.head.weight)
    for settings in ({}, {"normalized": True}):
        outcome = MetaStep(RATE, **settings)(problem.net, problem.objective, problem.loss, check=True)
        assert outcome.expected == 0 and outcome.rise == 0
        torch.testing.assert_close(problem.meta_gradient(**settings), problem.gradient(problem.loss))


@pytest.mark.parametrize("cached", [False, True])
def test_autocast_goes_on_with_no_copies_of_weights_that_were_moved(cached):
    problem = Problem()
    problem.net.float()
    problem.pairs, problem.samples = problem.pairs.float(), problem.samples.float()
    ascent = problem.gradient(problem.objective)
    rate = 1 / ascent.norm().item()
    expected = problem.meta_gradient(rate)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        outcome = MetaStep(rate)(problem.net, problem.objective, problem.loss)
        later = problem.loss()
    problem.net.zero_grad()
    outcome.loss.backward()
    found = flat(parameter.grad for parameter in problem.net.parameters())
    plain = problem.gradient(problem.loss)
    assert (found - expected).norm() < 0.1 * (expected - plain).norm()
    assert later.item() == pytest.approx(problem.loss().item(), abs=1e-2)


def test_only_trained_parameters_move_and_one_without_a_gradient_stays():
    problem = Problem()
    problem.net.mixes.requires_grad_(False)
    problem.net.idle = nn.Parameter(torch.ones(2))
    frozen, seen = flat(problem.net.mixes.parameters()), []

    def loss():
        seen.append((flat(problem.net.mixes.parameters()), problem.net.idle.detach().clone()))
        return problem.loss()

    outcome = MetaStep(RATE, second_order=True)(problem.net, problem.objective, loss)
    outcome.loss.backward()
    assert torch.equal(seen[0][0], frozen) and torch.equal(seen[0][1], torch.ones(2))
    assert problem.net.idle.grad is None
    assert all(parameter.grad is None for parameter in problem.net.mixes.parameters())
    with pytest.raises(ValueError, match="parameters that are trained"):
        MetaStep(RATE)(problem.net.requires_grad_(False), problem.objective, problem.loss)
