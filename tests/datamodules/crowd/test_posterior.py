"""From votes to target: written-out numbers, the beta identity, drift, smoothing, priors of every kind."""

import json
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pluralign.datamodules.crowd import (
    CrowdConfig,
    beta_view,
    crowd_posterior,
    crowd_priors,
    crowd_target,
    dirichlet_update,
    effective_votes,
    forgetting_horizon,
    read_priors,
    resolve_prior,
    smooth_certain,
)
from pluralign.datamodules.records import RecordError

PRIOR = torch.tensor([0.3, 0.4, 0.2, 0.05, 0.03, 0.02], dtype=torch.float64)
VOTES = torch.tensor([5.0, 1.0, 4.0, 0.0, 0.0, 0.0])
REWARDS = torch.tensor([1.0, 0.5, -1.0, -1.0, -1.5, -3.0], dtype=torch.float64)

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def crowds(draw):
    """A prior, its strength and counts of votes, over the same labels."""
    size = draw(st.integers(2, 7))
    weights = draw(st.lists(st.integers(0, 50), min_size=size, max_size=size).filter(any))
    counts = draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    strength = draw(st.floats(0.01, 100))
    return tensor(weights) / sum(weights), strength, tensor(counts)


# Update ----------------------------------------------------------------------------------------------------


def test_posterior_of_the_worked_example():
    mean, strength = dirichlet_update(PRIOR, 10.0, VOTES)
    assert_close(mean, tensor([0.4, 0.25, 0.3, 0.025, 0.015, 0.01]), atol=1e-12, rtol=0)
    assert strength == 20
    assert (PRIOR @ REWARDS).item() == pytest.approx(0.145)
    assert (mean @ REWARDS).item() == pytest.approx(0.1475)


def test_beta_view_of_the_worked_example():
    mean, strength = dirichlet_update(PRIOR, 10.0, VOTES)
    a, b = beta_view(mean, strength)
    assert_close(a, tensor([8, 5, 6, 0.5, 0.3, 0.2]), atol=1e-12, rtol=0)
    assert_close(b, tensor([12, 15, 14, 19.5, 19.7, 19.8]), atol=1e-12, rtol=0)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    expected = tensor([0.0114286, 0.0089286, 0.01, 0.0011607, 0.0007036, 0.0004714])
    assert_close(variance, expected, atol=5e-8, rtol=0)


def test_forgetting_the_prior_of_the_worked_example():
    mean, strength = dirichlet_update(PRIOR, 10.0, VOTES, forgetting=0.9)
    expected = tensor([0.405263, 0.242105, 0.305263, 0.023684, 0.014211, 0.009474])
    assert_close(mean, expected, atol=5e-7, rtol=0)
    assert strength == 19
    assert (mean @ REWARDS).item() == pytest.approx(0.147632, abs=5e-7)


def test_votes_of_a_figure():
    """Two responses of the paper's overview: shares, expected rewards, and which one is preferred."""
    votes = torch.tensor([[5.0, 1, 4, 0, 0, 0], [3, 0, 5, 0, 2, 0]])
    target, strength = crowd_target(votes, CrowdConfig())
    assert_close(target, torch.tensor([[0.5, 0.1, 0.4, 0, 0, 0], [0.3, 0, 0.5, 0, 0.2, 0]]))
    assert_close(target.double() @ REWARDS, tensor([0.15, -0.5]), atol=1e-6, rtol=0)
    assert strength.tolist() == [10, 10]


@repeatable
@given(crowds())
def test_beta_update_gives_the_same_means_and_they_sum_to_one(crowd):
    prior, strength, votes = crowd
    mean, total = dirichlet_update(prior, strength, votes)
    a, b = beta_view(prior, strength)
    a, b = a + votes, b + votes.sum() - votes
    assert_close(a / (a + b), mean, atol=1e-12, rtol=0)
    assert (a / (a + b)).sum().item() == pytest.approx(1, abs=1e-12)
    assert total.item() == pytest.approx(strength + votes.sum().item())


@repeatable
@given(crowds(), st.randoms(use_true_random=False))
def test_order_and_grouping_of_votes_do_not_matter(crowd, random):
    prior, strength, votes = crowd
    labels = [label for label, count in enumerate(votes.int().tolist()) for _ in range(count)]
    random.shuffle(labels)
    mean, total = prior, tensor(strength)
    while labels:
        step, labels = labels[:3], labels[3:]
        mean, total = dirichlet_update(mean, total, torch.bincount(torch.tensor(step), minlength=len(prior)))
    assert_close((mean, total), dirichlet_update(prior, strength, votes), atol=1e-12, rtol=1e-12)


def test_updates_are_batched():
    prior = torch.softmax(torch.randn(4, 3, 5, dtype=torch.float64), -1)
    votes = torch.randint(0, 9, (4, 3, 5))
    strength = torch.rand(4, 3, dtype=torch.float64)
    mean, total = dirichlet_update(prior, strength, votes, forgetting=0.7)
    for i in range(4):
        for j in range(3):
            kept = 0.7 * strength[i, j]
            own = kept + votes[i, j].sum()
            assert_close(total[i, j], own)
            assert_close(mean[i, j], (kept * prior[i, j] + votes[i, j]) / own)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no votes and no prior at index \\(1,\\)", (tensor([0.5, 0.5]), 0.0, tensor([[1, 0], [0, 0]]))),
        ("mean must be >= 0 and sum to 1", (tensor([0.5, 0.6]), 1.0, tensor([1, 0]))),
        ("mean must be >= 0 and sum to 1", (tensor([math.nan, 1]), 1.0, tensor([1, 0]))),
        ("strength must be finite and >= 0", (tensor([0.5, 0.5]), -1.0, tensor([1, 0]))),
        ("votes must be finite and >= 0", (tensor([0.5, 0.5]), 1.0, tensor([1, -1]))),
        ("votes must be finite and >= 0", (tensor([0.5, 0.5]), 1.0, tensor([1, math.inf]))),
    ],
)
def test_updates_that_are_refused(words, arguments):
    with pytest.raises(ValueError, match=words):
        dirichlet_update(*arguments)


@pytest.mark.parametrize("forgetting", [0.0, 1.1, -0.5, math.nan])
def test_forgetting_outside_its_range(forgetting):
    with pytest.raises(ValueError, match="forgetting must be > 0 and <= 1; got"):
        dirichlet_update(PRIOR, 1.0, VOTES, forgetting=forgetting)
    with pytest.raises(ValueError, match="forgetting must be > 0 and <= 1; got"):
        forgetting_horizon(forgetting, 1.0)


# Drift -----------------------------------------------------------------------------------------------------


def test_a_sudden_change_is_followed_within_the_horizon():
    """200 steps of one taste, then another: forgetting follows as predicted, plain counting does not."""
    old, new, votes_per_step, gamma = tensor([0.7, 0.2, 0.1]), tensor([0.1, 0.3, 0.6]), 40, 0.9
    strength, steps = forgetting_horizon(gamma, votes_per_step, share=0.9)
    assert strength == pytest.approx(400)
    assert steps == pytest.approx(21.854, abs=1e-3)
    followed = {}
    for forgetting in (gamma, 1.0):
        generator = torch.Generator().manual_seed(1)
        mean, total = torch.full((3,), 1 / 3, dtype=torch.float64), tensor(10.0)
        path = []
        for step in range(200 + math.ceil(steps)):
            taste = old if step < 200 else new
            labels = torch.multinomial(taste, votes_per_step, replacement=True, generator=generator)
            counts = torch.bincount(labels, minlength=3)
            mean, total = dirichlet_update(mean, total, counts, forgetting=forgetting)
            path.append((((mean - old) @ (new - old)) / ((new - old) @ (new - old))).item())
        followed[forgetting] = path
        if forgetting == gamma:
            assert total.item() == pytest.approx(strength, rel=1e-6)
    assert abs(followed[gamma][199]) < 0.1
    assert followed[gamma][-1] == pytest.approx(0.9, abs=0.06)
    assert followed[gamma][199 + round(steps / 2)] < 0.8, "half of the time is not enough"
    assert followed[1.0][-1] == pytest.approx(22 / 222, abs=0.03)


def test_share_followed_is_exact_without_noise():
    gamma, votes = 0.8, 5.0
    mean, total = tensor([1.0, 0.0]), votes / (1 - gamma)
    for step in range(1, 8):
        mean, total = dirichlet_update(mean, total, tensor([0.0, votes]), forgetting=gamma)
        assert forgetting_horizon(gamma, votes, share=mean[1].item())[1] == pytest.approx(step)
        assert total.item() == pytest.approx(25)


def test_nothing_forgotten_is_an_endless_horizon():
    assert forgetting_horizon(1.0, 3) == (math.inf, math.inf)
    for words, settings_ in (("votes_per_step", {"votes_per_step": 0}), ("share", {"share": 1.0})):
        with pytest.raises(ValueError, match=f"{words} must be"):
            forgetting_horizon(0.9, **{"votes_per_step": 1, **settings_})


# Effective votes -------------------------------------------------------------------------------------------


def test_effective_votes_follow_the_design_effect():
    votes = tensor([[6, 4, 0], [1, 0, 0], [0, 0, 0], [0.25, 0.25, 0]])
    found = effective_votes(votes, correlation=0.25)
    assert_close(found.sum(-1), tensor([10 / (1 + 9 / 4), 1, 0, 0.5]))
    assert_close(found[0] / found[0].sum(), tensor([0.6, 0.4, 0]))
    assert_close(effective_votes(votes), votes)
    assert_close(
        effective_votes(votes, maximum=5.0), tensor([[3, 2, 0], [1, 0, 0], [0, 0, 0], [0.25, 0.25, 0]])
    )


@repeatable
@given(crowds(), st.floats(0, 0.99), st.one_of(st.none(), st.floats(0.1, 40)))
def test_effective_votes_are_at_most_the_votes(crowd, correlation, maximum):
    votes = crowd[2]
    found = effective_votes(votes, correlation=correlation, maximum=maximum)
    assert (found <= votes + 1e-12).all() and (found >= 0).all()
    if maximum is not None:
        assert found.sum() <= maximum + 1e-9
    if correlation:
        assert found.sum() <= max(1, 1 / correlation) + 1e-9
    assert_close(found * votes.sum(), votes * found.sum(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("options", [{"correlation": 1.0}, {"correlation": -0.1}, {"maximum": 0.0}])
def test_effective_votes_check_their_settings(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        effective_votes(VOTES, **options)


# Smoothing -------------------------------------------------------------------------------------------------


def test_a_certain_label_gives_to_the_next():
    mean = tensor([[0.96, 0.01, 0.03], [0.9, 0.04, 0.06], [0.5, 0.3, 0.2]])
    expected = tensor([[0.9, 0.01, 0.09], [0.9, 0.04, 0.06], [0.5, 0.3, 0.2]])
    assert_close(smooth_certain(mean, 0.1), expected)
    assert_close(smooth_certain(mean, 0.0), mean)
    assert_close(smooth_certain(mean.reshape(3, 1, 3), 0.1), expected.reshape(3, 1, 3))


def test_ties_are_broken_by_prior_then_cost_then_order():
    certain = torch.eye(4)[2]
    cost = (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    uneven, even = tensor([0.1, 0.2, 0.5, 0.2]), torch.full((4,), 0.25)
    assert smooth_certain(certain, 0.1).tolist() == pytest.approx([0.1, 0, 0.9, 0])
    assert smooth_certain(certain, 0.1, prior=uneven).tolist() == pytest.approx([0, 0.1, 0.9, 0])
    skewed = cost.clone()
    skewed[2, 1] = 3  # from label 2 to label 1; the way back does not matter
    assert smooth_certain(certain, 0.1, prior=uneven, cost=skewed).tolist() == pytest.approx([0, 0, 0.9, 0.1])
    assert smooth_certain(certain, 0.1, prior=uneven, cost=skewed.T).tolist() == pytest.approx(
        [0, 0.1, 0.9, 0]
    )
    assert smooth_certain(certain, 0.1, prior=even, cost=cost).tolist() == pytest.approx([0, 0.1, 0.9, 0])
    rows = torch.stack([certain, torch.eye(4)[0]])
    priors = torch.stack([tensor([0.4, 0.1, 0.4, 0.1]), tensor([0.2, 0.1, 0.1, 0.6])])
    assert smooth_certain(rows, 0.2, prior=priors).tolist() == [
        pytest.approx([0.2, 0, 0.8, 0]),
        pytest.approx([0.8, 0, 0, 0.2]),
    ]


@repeatable
@given(crowds(), st.floats(0, 0.49))
def test_smoothed_distributions_are_distributions(crowd, epsilon):
    mean = smooth_certain(crowd[0], epsilon)
    assert mean.sum().item() == pytest.approx(1, abs=1e-12)
    assert (mean >= 0).all() and mean.max() <= max(1 - epsilon, crowd[0].max()) + 1e-12
    assert mean.argmax() == crowd[0].argmax()
    if crowd[0].max() > 1 - epsilon:
        assert mean.max().item() == pytest.approx(1 - epsilon)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("epsilon must be >= 0 and < 0.5; got 0.5", {"epsilon": 0.5}),
        ("prior must be", {"epsilon": 0.1, "prior": torch.ones(2)}),
        ("cost must be", {"epsilon": 0.1, "cost": torch.ones(6)}),
    ],
)
def test_smoothing_checks_its_arguments(words, options):
    with pytest.raises(ValueError, match=words):
        smooth_certain(PRIOR, **options)


# Targets ---------------------------------------------------------------------------------------------------


@repeatable
@given(crowds().filter(lambda crowd: crowd[2].any()))
def test_without_a_prior_the_target_is_the_share(crowd):
    votes = crowd[2].float().unsqueeze(0)
    target, strength = crowd_target(votes, CrowdConfig())
    assert_close(target, votes / votes.sum())
    assert strength.item() == votes.sum()
    ignored, _ = crowd_target(votes, CrowdConfig(prior="uniform", prior_strength=0.0))
    assert_close(ignored, target)


@repeatable
@given(crowds(), st.floats(0, 0.9), st.floats(0, 0.4))
def test_targets_sum_to_one(crowd, correlation, epsilon):
    prior, strength, votes = crowd
    config = CrowdConfig(
        prior_strength=strength, vote_correlation=correlation, smoothing=epsilon, max_votes=20
    )
    target, total = crowd_target(votes.float().unsqueeze(0), config, prior)
    assert target.dtype == total.dtype == torch.float32
    assert target.sum().item() == pytest.approx(1, abs=1e-6)
    assert (target > 0).all() or epsilon, "a floored prior leaves every label possible"


def test_every_setting_has_its_place():
    votes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    config = CrowdConfig(prior_strength=2.0, prior_floor=0.25, vote_correlation=0.25, smoothing=0.1)
    prior = tensor([0.0, 0.5, 0.5])
    target, strength = crowd_target(votes, config, prior)
    # 9 votes count 9 / (1 + 8/4) = 3; the floored prior is (.25, .5, .5) / 1.25
    assert_close(strength, torch.tensor([5.0, 2.0]))
    assert_close(target, torch.tensor([[3.4 / 5, 0.8 / 5, 0.8 / 5], [0.2, 0.4, 0.4]]))
    capped, strength = crowd_target(
        votes, CrowdConfig(prior_strength=2.0, max_votes=2.0), tensor([0.2, 0.4, 0.4])
    )
    assert_close(capped[0], torch.tensor([0.6, 0.2, 0.2]))
    assert strength.tolist() == [4, 2]
    certain, _ = crowd_target(votes[:1], CrowdConfig(smoothing=0.1))
    assert_close(certain, torch.tensor([[0.9, 0.1, 0.0]]))
    nearest, _ = crowd_target(
        votes[:1], CrowdConfig(smoothing=0.1), cost=tensor([[0, 2, 1], [2, 0, 1], [1, 1, 0]])
    )
    assert_close(nearest, torch.tensor([[0.9, 0.0, 0.1]]))


def test_priors_for_some_rows():
    votes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [4.0, 0.0]])
    prior = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    config = CrowdConfig(prior_strength=2.0, prior_floor=0.0)
    target, strength = crowd_target(votes, config, prior)
    assert_close(target, torch.tensor([[0.75, 0.25], [0.5, 0.5], [5 / 6, 1 / 6]]))
    assert strength.tolist() == [4, 2, 6]
    mean, strength = crowd_posterior(votes, config, prior, prior_weight=tensor([0.5, 0.5, 0.0]))
    assert_close(mean, tensor([[2 / 3, 1 / 3], [0.5, 0.5], [1, 0]]))
    assert_close(strength, tensor([3, 2, 4]))


def test_the_prior_of_the_settings_is_used_if_no_other_is_given():
    votes = torch.tensor([[0.0, 0.0]])
    assert crowd_target(votes, CrowdConfig("uniform"))[0].tolist() == [[0.5, 0.5]]
    assert crowd_target(votes, CrowdConfig((0.25, 0.75)))[0].tolist() == [[0.25, 0.75]]
    with pytest.raises(ValueError, match="prior='mean' needs votes in the training split"):
        crowd_target(votes, CrowdConfig("mean"))


@pytest.mark.parametrize("config", [CrowdConfig(), CrowdConfig("uniform", prior_strength=0.0)])
def test_neither_votes_nor_prior(config):
    votes = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(
        ValueError, match=r"2 of 3 responses have no votes and no prior.*index 1: set crowd\.prior"
    ):
        crowd_target(votes, config)


def test_wrong_arguments_of_targets():
    config, votes = CrowdConfig(), torch.ones(2, 3)
    for words, arguments in {
        "votes must be \\(n, K\\), got \\(3,\\)": (votes[0], config),
        "votes must be finite": (-votes, config),
        "prior must be \\(3,\\) or \\(2, 3\\), got \\(2,\\)": (votes, config, torch.ones(2) / 2),
        "prior must be >= 0 and sum to 1": (votes, config, torch.ones(3)),
        "1 of 2 responses have no prior in 'x.jsonl', the first at index 1": (
            votes,
            CrowdConfig("x.jsonl"),
            torch.tensor([[0.2, 0.4, 0.4], [math.nan] * 3]),
        ),
    }.items():
        with pytest.raises(ValueError, match=words):
            crowd_target(*arguments)
    with pytest.raises(ValueError, match=r"prior_weight must be \(2,\) in \[0, 1\]"):
        crowd_posterior(votes, config, prior_weight=tensor([0.5, 1.5]))


def test_no_rows_give_no_targets():
    target, strength = crowd_target(torch.zeros(0, 3), CrowdConfig(smoothing=0.1))
    assert (target.shape, strength.shape) == ((0, 3), (0,))


# Settings and priors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("prior must be one of none, uniform, mean", {"prior": ""}),
        ("prior must sum to 1 \\(within 0.001\\), got 0.7", {"prior": (0.3, 0.4)}),
        ("prior must hold numbers in \\[0, 1\\], got -0.5", {"prior": (0.5, -0.5, 1.0)}),
        ("prior must hold numbers in \\[0, 1\\], got nan", {"prior": (1.0, math.nan)}),
        ("prior must be a list of probabilities, got 1.0", {"prior": 1.0}),
        ("prior_strength must be finite and >= 0; got -1", {"prior_strength": -1.0}),
        ("prior_strength must be finite and >= 0; got inf", {"prior_strength": math.inf}),
        ("prior_floor must be >= 0 and < 1; got 1.0", {"prior_floor": 1.0}),
        ("smoothing must be >= 0 and < 0.5; got 0.5", {"smoothing": 0.5}),
        ("vote_correlation must be >= 0 and < 1; got 1.0", {"vote_correlation": 1.0}),
        ("max_votes must be finite and > 0; got 0", {"max_votes": 0.0}),
    ],
)
def test_settings_outside_their_range(words, options):
    with pytest.raises(ValueError, match=words):
        CrowdConfig(**options)


def test_words_and_numbers_become_priors():
    assert resolve_prior(CrowdConfig(), 3) is None
    assert_close(resolve_prior(CrowdConfig("uniform"), 4), torch.full((4,), 0.25, dtype=torch.float64))
    assert_close(resolve_prior(CrowdConfig((0.2, 0.8)), 2), tensor([0.2, 0.8]))
    mean = tensor([0.7, 0.3])
    assert_close(resolve_prior(CrowdConfig("mean"), 2, mean), mean)
    assert_close(resolve_prior(CrowdConfig("mean"), 2, mean.numpy()), mean)


@pytest.mark.parametrize(
    ("words", "prior", "mean"),
    [
        ("prior must have 3 probabilities, got 2", (0.2, 0.8), None),
        ("prior='mean' needs votes in the training split", "mean", None),
        ("the mean of the training split must have 3 probabilities", "mean", tensor([0.5, 0.5])),
        ("prior='unifrom' is none of none, uniform, mean and no file \\(looked for /", "unifrom", None),
    ],
)
def test_priors_that_do_not_fit(words, prior, mean):
    with pytest.raises(ValueError, match=words):
        resolve_prior(CrowdConfig(prior), 3, mean)


def write(tmp_path, *rows):
    path = tmp_path / "priors.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_priors_of_a_file(tmp_path):
    path = write(tmp_path, {"id": "a", "prior": [0.5, 0.5]}, {"id": 7, "prior": [[1, 0], [0.2, 0.8]]})
    found = read_priors(path)
    assert list(found) == ["a", "7"]
    assert_close(found["a"], tensor([0.5, 0.5]))
    assert_close(found["7"], tensor([[1, 0], [0.2, 0.8]]))
    priors = pickle.loads(pickle.dumps(crowd_priors(CrowdConfig(path), 2)))
    rows = priors.of([("7", 1), ("a", 0), ("a", 4), ("b", 0)])
    assert rows.dtype == torch.float32
    expected = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.5, 0.5], [math.nan, math.nan]])
    assert_close(rows, expected, equal_nan=True)
    with pytest.raises(ValueError, match="record '7' has priors for 2 responses, but a response 2"):
        priors.of([("7", 2)])
    with pytest.raises(ValueError, match="has a prior for each record"):
        crowd_target(torch.ones(1, 2), CrowdConfig(path))


def test_priors_that_hold_for_everyone():
    assert crowd_priors(CrowdConfig(), 2).of([("a", 0)]) is None
    assert crowd_priors(CrowdConfig((0.25, 0.75)), 2).of([("a", 0), ("b", 9)]).tolist() == [[0.25, 0.75]] * 2


@pytest.mark.parametrize(
    ("reason", "field", "line", "rows"),
    [
        ("not JSON", "line", 2, [{"id": "a", "prior": [1, 0]}, "{"]),
        ("missing field", "id", 1, [{"prior": [1, 0]}]),
        ("missing field", "prior", 1, [{"id": "a"}]),
        ("wrong type", "id", 1, [{"id": 1.5, "prior": [1, 0]}]),
        ("wrong type", "prior", 1, [{"id": "a", "prior": {}}]),
        ("wrong type", "prior", 1, [{"id": "a", "prior": []}]),
        ("out of range", "prior", 1, [{"id": "a", "prior": [0.5, 0.4]}]),
        ("out of range", "prior", 1, [{"id": "a", "prior": [[1, 0], [0.5]]}]),
        ("out of range", "prior", 1, [{"id": "a", "prior": ["1", 0]}]),
        ("out of range", "prior", 1, [{"id": "a", "prior": [10**400, 0]}]),
        ("out of range", "prior", 2, [{"id": "a", "prior": [1, 0]}, {"id": "b", "prior": [1, 0, 0]}]),
        ("duplicate id", "id", 3, [{"id": "a", "prior": [1, 0]}, "", {"id": "a", "prior": [1, 0]}]),
    ],
)
def test_malformed_priors_name_file_and_line(tmp_path, reason, field, line, rows):
    path = write(tmp_path, *rows)
    with pytest.raises(RecordError) as caught:
        read_priors(path)
    error = caught.value
    assert (error.reason, error.field, error.file, error.line) == (reason, field, path, line)
