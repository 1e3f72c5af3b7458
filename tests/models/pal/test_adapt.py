"""New users among fixed prototypes: against scipy one user at a time, optimality, invariances, errors."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize

from pluralign.losses import ideal_point_reward
from pluralign.models.pal.adapt import fit_mixture_logits, fit_mixture_weights, shot_ranks

D = torch.float64


def crowd(num_users, shots, num_prototypes, *, seed=0, spread=1.0):
    """Judgements in no order; user u has between 0 and ``shots`` of them."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), generator.integers(0, shots + 1, num_users))
    generator.shuffle(user)
    count = len(user)
    return {
        "differences": torch.from_numpy(generator.normal(0, spread, (count, num_prototypes))),
        "user": torch.from_numpy(user),
        "num_users": num_users,
        "preference": torch.from_numpy(generator.choice([0.0, 0.25, 0.5, 1.0], count)),
        "weight": torch.from_numpy(generator.choice([0.5, 1.0, 3.0], count)),
        "prior": torch.from_numpy(generator.dirichlet(np.full(num_prototypes, 2.0))),
    }


def objectives(weights, judged, strength, loss):
    """Every user's objective, by the formula."""
    margin = (weights[judged["user"]] * judged["differences"]).sum(1)
    pair = (lambda z: np.logaddexp(0, -z)) if loss == "logistic" else (lambda z: np.maximum(0, 1 - z))
    share = judged["preference"].numpy()
    losses = share * pair(margin.numpy()) + (1 - share) * pair(-margin.numpy())
    divergence = torch.special.xlogy(weights, weights / judged["prior"]).sum(1).numpy()
    return strength * divergence + np.bincount(
        judged["user"].numpy(), judged["weight"].numpy() * losses, judged["num_users"]
    )


def by_scipy(judged, strength, loss):
    """Lowest objective of each user."""
    found = []
    for person in range(judged["num_users"]):
        mine = (judged["user"] == person).numpy()
        d, p, c = (judged[name].numpy()[mine] for name in ("differences", "preference", "weight"))
        rows, costs = np.concatenate([d, -d]), np.concatenate([c * p, c * (1 - p)])
        found.append(person_by_scipy(rows, costs, judged["prior"].numpy(), strength, loss))
    return np.array(found)


def person_by_scipy(rows, costs, prior, strength, loss):
    """A linear programme, or SLSQP; a hinge is a slack variable."""
    size, count = len(prior), len(rows) if loss == "hinge" else 0
    sum_row = np.r_[np.ones(size), np.zeros(count)]
    if count and strength == 0:
        slacks = np.c_[-rows, -np.eye(count)]
        return linprog(
            np.r_[np.zeros(size), costs], A_ub=slacks, b_ub=-np.ones(count), A_eq=sum_row[None], b_eq=[1.0]
        ).fun

    def value(x):
        w = np.maximum(x[:size], 1e-300)
        loss_sum = costs @ (x[size:] if count else np.logaddexp(0, -rows @ x))
        return loss_sum + strength * (w * np.log(w / prior)).sum()

    def slope(x):
        own = strength * (np.log(np.maximum(x[:size], 1e-12) / prior) + 1)
        return np.r_[own, costs] if count else own - (costs / (1 + np.exp(rows @ x))) @ rows

    constraints = [LinearConstraint(sum_row, 1, 1)]
    if count:
        constraints.append(LinearConstraint(np.c_[rows, np.eye(count)], 1, np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy reports that it clips to the bounds
        return minimize(
            value,
            np.r_[prior, np.maximum(0, 1 - rows @ prior)[:count]],
            jac=slope,
            method="SLSQP",
            bounds=[(0, 1)] * size + [(0, None)] * count,
            constraints=constraints,
            options={"maxiter": 1000, "ftol": 1e-12},
        ).fun


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_prototypes=st.integers(2, 6),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    strength=st.sampled_from([0.0, 0.01, 0.3, 2.0]),
    loss=st.sampled_from(["logistic", "hinge"]),
)
def test_objectives_are_those_of_scipy(seed, num_prototypes, spread, strength, loss):
    judged = crowd(3, 6, num_prototypes, seed=seed, spread=spread)
    weights = fit_mixture_weights(**judged, prior_strength=strength, loss=loss, tolerance=1e-8)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=D))
    ours = objectives(weights, judged, strength, loss)
    theirs = by_scipy(judged, strength, loss)
    assert (ours <= theirs + 1e-6).all()  # never above, whatever scipy misses
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-3, atol=1e-4
    )  # scipy itself may miss the corner of a hinge


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_logistic_weights_meet_the_conditions_of_the_optimum(strength):
    """All gradients equal where there is weight, none lower elsewhere."""
    judged = crowd(200, 12, 5, seed=3, spread=2.0)
    weights = fit_mixture_weights(**judged, prior_strength=strength, tolerance=1e-12).requires_grad_()
    margin = (weights[judged["user"]] * judged["differences"]).sum(1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        margin, judged["preference"], reduction="none"
    )
    total = (judged["weight"] * loss).sum()
    if strength:
        total = total + strength * (weights * (weights / judged["prior"]).log()).sum()
    (gradient,) = torch.autograd.grad(total, weights)
    above = gradient - gradient.amin(1, keepdim=True)
    assert (weights.detach() * above).sum(1).max() < (1e-5 if strength else 1e-9)


def test_one_judgement_with_a_prior_is_bayes_rule_in_its_slope():
    difference, strength = torch.tensor([[2.0, -1.0, 0.5]], dtype=D), 0.7
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=D)
    weights = fit_mixture_weights(
        difference, torch.tensor([0]), 1, prior=prior, prior_strength=strength, tolerance=1e-13
    )
    slope = torch.sigmoid(-(weights * difference).sum())
    torch.testing.assert_close(
        weights, (prior.log() + slope * difference / strength).softmax(1), rtol=0, atol=1e-6
    )


def test_hinge_stops_where_the_margin_is_one():
    weights = fit_mixture_weights(
        torch.tensor([[3.0, -1.0], [-2.0, 0.5]], dtype=D),
        torch.tensor([0, 0]),
        1,
        weight=torch.tensor([2.0, 1.0], dtype=D),
        tolerance=1e-9,
        loss="hinge",
    )
    assert weights[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-7)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_no_judgements_give_the_prior_exactly(loss, strength):
    prior = torch.tensor([0.7, 0.3, 0.0], dtype=D)
    options = {"prior": prior, "prior_strength": strength, "loss": loss}
    user, weight = torch.tensor([2, 2]), torch.tensor([1.0, 0.0], dtype=D)
    differences = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]], dtype=D)

    def margins(weights):
        return (weights * differences).sum(1)

    for fitted in (
        fit_mixture_weights(differences, user, 4, weight=weight, **options),
        fit_mixture_logits(margins, user, 4, 3, weight=weight, num_steps=5, **options),
    ):
        assert torch.equal(fitted[[0, 1, 3]], prior.expand(3, 3))
        assert fitted[2, 1] > 0.3
        if strength:
            assert fitted[2, 2] == 0  # shut out
    empty = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(
        fit_mixture_weights(torch.zeros(0, 3, dtype=D), empty, 2, **options), prior.expand(2, 3)
    )
    assert torch.equal(fit_mixture_logits(margins, empty, 2, 3, **options), prior.expand(2, 3))
    nothing = fit_mixture_weights(differences, user, 4, weight=torch.zeros(2, dtype=D), **options)
    assert torch.equal(nothing, prior.expand(4, 3))


def test_prior_stays_where_judgements_tell_nothing():
    prior = torch.tensor([0.7, 0.3, 0.0], dtype=D)
    weights = fit_mixture_weights(torch.full((2, 3), 4.0, dtype=D), torch.tensor([0, 0]), 1, prior=prior)
    assert torch.equal(weights[0], prior)


def test_rounded_prior_is_scaled_to_one():
    differences, user = torch.tensor([[1.0, 0.99], [-1.0, 1.0]], dtype=D), torch.tensor([0, 1])
    prior = torch.tensor([0.6, 0.4], dtype=D)
    options = {"prior_strength": 0.5, "tolerance": 1e-12}
    exact = fit_mixture_weights(differences, user, 3, prior=prior, **options)
    rounded = fit_mixture_weights(differences, user, 3, prior=prior * 1.0009, **options)
    torch.testing.assert_close(rounded[:2], exact[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(rounded[:2].sum(1), torch.ones(2, dtype=D))


def test_default_prior_is_uniform_and_one_prototype_gets_everything():
    assert fit_mixture_weights(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1).tolist() == [
        [0.25] * 4
    ]
    weights = fit_mixture_weights(torch.tensor([[-3.0], [2.0]]), torch.tensor([0, 1]), 2, loss="hinge")
    assert weights.tolist() == [[1.0], [1.0]]
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
class TestInvariances:
    @pytest.fixture
    def judged(self):
        return crowd(40, 9, 4, seed=5)

    @pytest.fixture
    def fit(self, loss):
        def call(judged, **changes):
            arguments = {**judged, "prior_strength": 0.2, "loss": loss, "tolerance": 1e-12, **changes}
            return fit_mixture_weights(**arguments)

        return call

    def test_each_user_alone_gets_the_same(self, judged, fit):
        together = fit(judged)
        for person in (0, 7, 39):
            mine = judged["user"] == person
            alone = {name: judged[name][mine] for name in ("differences", "preference", "weight")}
            found = fit({**alone, "user": judged["user"][mine] * 0, "num_users": 1, "prior": judged["prior"]})
            torch.testing.assert_close(found[0], together[person], rtol=0, atol=1e-6)

    def test_order_of_judgements_users_and_prototypes_does_not_matter(self, judged, fit):
        together = fit(judged)
        order = torch.randperm(len(judged["user"]))
        rows = ("differences", "user", "preference", "weight")
        shuffled = {**judged, **{name: judged[name][order] for name in rows}}
        torch.testing.assert_close(fit(shuffled), together, rtol=0, atol=1e-6)

        users = torch.randperm(40)
        renamed = fit({**judged, "user": users[judged["user"]]})
        torch.testing.assert_close(renamed[users], together, rtol=0, atol=1e-6)

        columns = torch.randperm(4)
        permuted = fit(
            {**judged, "differences": judged["differences"][:, columns], "prior": judged["prior"][columns]}
        )
        torch.testing.assert_close(permuted, together[:, columns], rtol=0, atol=1e-6)

    def test_swapped_responses_and_repeated_judgements(self, judged, fit):
        together = fit(judged)
        swapped = fit(judged, differences=-judged["differences"], preference=1 - judged["preference"])
        torch.testing.assert_close(swapped, together, rtol=0, atol=1e-6)
        rows = ("differences", "user", "preference", "weight")
        doubled = {**judged, **{name: judged[name].repeat_interleave(2, 0) for name in rows}}
        halved = fit(doubled, weight=doubled["weight"] / 2)
        torch.testing.assert_close(halved, together, rtol=0, atol=1e-6)

    def test_small_blocks_give_the_same(self, judged, fit, monkeypatch):
        together = fit(judged)
        monkeypatch.setattr("pluralign.models.pal.adapt._BLOCK", {"cpu": 50})
        torch.testing.assert_close(fit(judged), together, rtol=0, atol=1e-6)


def test_vertex_from_ten_labels():
    """Three opposite tastes; every newcomer's vertex is found from ten labels of its own."""
    generator = torch.Generator().manual_seed(1)
    num_users, shots = 300, 10
    truth = torch.arange(num_users) % 3
    user = torch.arange(num_users).repeat_interleave(shots)
    differences = 4 * torch.randn(num_users * shots, 3, generator=generator)
    preference = (differences[torch.arange(len(user)), truth[user]] > 0).float()
    for loss in ("logistic", "hinge"):
        weights = fit_mixture_weights(
            differences, user, num_users, preference=preference, prior_strength=0.1, loss=loss
        )
        assert (weights.argmax(1) == truth).float().mean() > 0.97
        assert weights[torch.arange(num_users), truth].mean() > 0.8


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("strength", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("spread", [1e-300, 1e-4, 1e4])
def test_extreme_differences_reach_the_optimum(loss, strength, spread):
    judged = crowd(300, 20, 6, seed=8, spread=spread)
    # Missing the tolerance would be a warning, hence an error.
    weights = fit_mixture_weights(**judged, prior_strength=strength, loss=loss, tolerance=1e-5)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(300, dtype=D))
    vertices = [objectives(torch.eye(6, dtype=D)[[k]].expand(300, 6), judged, 0.0, loss) for k in range(6)]
    penalty = strength * torch.special.xlogy(weights, weights / judged["prior"]).sum(1).numpy()
    ours = objectives(weights, judged, strength, loss) - penalty
    assert (ours <= np.min(vertices, axis=0) - strength * judged["prior"].log().min().item() + 1e-3).all()


def test_mixed_scales_and_thirty_two_prototypes():
    judged = crowd(50, 100, 32, seed=2)
    scale = 10 ** torch.linspace(-3, 3, len(judged["user"]), dtype=D)[torch.randperm(len(judged["user"]))]
    judged["differences"] *= scale.unsqueeze(1)
    for loss in ("logistic", "hinge"):
        assert fit_mixture_weights(**judged, loss=loss).isfinite().all()


def test_missed_tolerance_is_said():
    judged = crowd(20, 9, 4, seed=5)
    message = (
        r"of 20 users with judgements did not reach tolerance=1e-06 within max_iterations=2; .* gap left is"
    )
    judged["user"] = torch.arange(len(judged["user"])) % 20
    with pytest.warns(RuntimeWarning, match=message):
        weights = fit_mixture_weights(**judged, max_iterations=2)
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=D))


class TestLogits:
    def test_linear_margins_reach_the_convex_optimum(self):
        judged = crowd(60, 9, 4, seed=11)
        differences = judged.pop("differences")

        def margins(weights):
            return (weights * differences).sum(1)

        for loss, strength in (("logistic", 0.0), ("logistic", 0.3), ("hinge", 0.3)):
            options = {**judged, "prior_strength": strength, "loss": loss}
            found = fit_mixture_logits(margins, num_prototypes=4, **options)
            again = fit_mixture_logits(margins, num_prototypes=4, **options)
            assert torch.equal(found, again)
            full = {**judged, "differences": differences}
            best = objectives(fit_mixture_weights(differences, **options), full, strength, loss)
            reached = objectives(found, full, strength, loss)
            prior = objectives(judged["prior"].expand(60, 4), full, strength, loss)
            assert (reached <= prior + 1e-12).all()
            assert (reached - best).max() < (2e-2 if loss == "logistic" else 5e-2)

    def test_smoothed_hinge_against_a_search(self):
        """Two prototypes: the best weight of a grid, by the formula with a width of 5."""
        differences = torch.tensor([[3.0, -1.0], [-2.0, 0.5], [9.0, -8.0]], dtype=D)
        user = torch.zeros(3, dtype=torch.int64)
        prior = torch.tensor([0.5, 0.5], dtype=D)
        options = {"prior": prior, "prior_strength": 0.2, "loss": "smoothed_hinge"}
        found = fit_mixture_logits(
            lambda weights: (differences * weights).sum(1), user, 1, 2, num_steps=400, **options
        )
        first = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=D)
        grid = torch.stack([first, 1 - first], 1)
        lack = (1 - grid @ differences.T).clamp_min(0)
        losses = torch.where(lack <= 5, lack.square() / 10, lack - 2.5).sum(1)
        best = grid[(losses + 0.2 * (grid * (grid / prior).log()).sum(1)).argmin()]
        torch.testing.assert_close(found[0], best, rtol=0, atol=1e-3)
        with pytest.raises(ValueError, match="loss must be one of logistic, hinge; got 'smoothed_hinge'"):
            fit_mixture_weights(differences, user, 1, **options)

    def test_first_step_of_the_fixture(self):
        """Two unit prototypes, distances, hinge: gradient (+0.6698, -0.6698) on logits (0, 0)."""
        left, right = torch.tensor([1.0, 0.0], dtype=D), torch.tensor([0.0, 2.0], dtype=D)
        asked = []

        def margins(weights):
            asked.append(weights.detach())
            point = weights @ torch.eye(2, dtype=D)
            return ideal_point_reward(right, point) - ideal_point_reward(left, point)

        prior = torch.tensor([0.5, 0.5], dtype=D)
        found = fit_mixture_logits(
            margins, torch.tensor([0]), 1, 2, prior=prior, loss="hinge", num_steps=1, lr=0.1
        )
        # Adam's first step has the length of the rate, against the gradient's signs.
        torch.testing.assert_close(found, torch.tensor([[-0.1, 0.1]], dtype=D).softmax(1), rtol=0, atol=1e-8)
        assert torch.equal(asked[0], prior.unsqueeze(0))
        logits = torch.zeros(1, 2, dtype=D, requires_grad=True)
        loss = (1 - margins(logits.softmax(1))).sum()
        loss.backward()
        assert loss.item() == pytest.approx(1.8740320, abs=1e-6)
        assert logits.grad[0].tolist() == pytest.approx([0.6698, -0.6698], abs=5e-5)

    def test_users_are_independent_and_nothing_else_moves(self):
        prototypes = torch.nn.Parameter(torch.randn(3, 5))
        first, second = torch.randn(2, 40, 5)
        user = torch.arange(40) % 4

        def fit(kept, num_users):
            def margins(weights):
                point = weights @ prototypes
                return ideal_point_reward(first[kept], point) - ideal_point_reward(second[kept], point)

            return fit_mixture_logits(margins, user[kept] % num_users, num_users, 3, num_steps=20)

        before = prototypes.detach().clone()
        together = fit(torch.arange(40), 4)
        assert together.dtype == torch.float32 and not together.requires_grad
        torch.testing.assert_close(
            fit((user == 2).nonzero().squeeze(1), 1)[0], together[2], rtol=0, atol=1e-5
        )
        assert prototypes.grad is None and torch.equal(prototypes, before)

    def test_works_without_gradients_and_in_inference_mode(self):
        difference = torch.tensor([[3.0, -3.0]])
        with torch.no_grad():
            expected = fit_mixture_logits(lambda w: (w * difference).sum(1), torch.tensor([0]), 1, 2)
        assert expected[0, 0] > 0.98
        with torch.inference_mode():
            found = fit_mixture_logits(
                lambda w: (w * difference).sum(1),
                torch.tensor([0]),
                1,
                2,
                preference=torch.ones(1, dtype=D),
                weight=torch.ones(1, dtype=D),
                prior=torch.tensor([0.5, 0.5]),
            )
        assert torch.equal(found, expected)

    def test_errors(self):
        user = torch.tensor([0, 1])
        with pytest.raises(ValueError, match=r"margins must return shape \(2,\); got \(2, 1\)"):
            fit_mixture_logits(lambda w: w[:, :1], user, 2, 3)
        with pytest.raises(ValueError, match="result of margins in step 0 must be finite; got nan at index"):
            fit_mixture_logits(lambda w: w[:, 0] * math.nan, user, 2, 3)
        for arguments, message in [
            ({"num_prototypes": 0}, "num_prototypes must be finite and >= 1; got 0"),
            ({"num_steps": -1}, "num_steps must be finite and >= 0; got -1"),
            ({"lr": 0.0}, "lr must be finite and > 0; got 0.0"),
            ({"prior": torch.tensor([0.5, 0.5])}, r"prior must have shape \(3,\); got \(2,\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                fit_mixture_logits(
                    lambda w: w[:, 0], **{"user": user, "num_users": 2, "num_prototypes": 3, **arguments}
                )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": torch.tensor([0, 2])}, r"user must be in \[0, 1\]; got 2 at index \(1,\)"),
        ({"user": torch.tensor([-1, 0])}, r"user must be in \[0, 1\]; got -1 at index \(0,\)"),
        ({"user": torch.tensor([0])}, r"user must have shape \(2,\), one for each judgement; got \(1,\)"),
        ({"user": torch.tensor([[0, 1]])}, r"user must be \(M,\); got \(1, 2\)"),
        ({"num_users": 0}, "num_users must be finite and >= 1; got 0"),
        ({"differences": torch.zeros(2)}, r"differences must be \(M, K\) with K >= 1; got \(2,\)"),
        ({"differences": torch.zeros(2, 0)}, r"differences must be \(M, K\) with K >= 1; got \(2, 0\)"),
        (
            {"differences": torch.tensor([[0.0, 1.0], [math.nan, 1.0]])},
            r"differences must be finite; got nan at index \(1, 0\)",
        ),
        (
            {"preference": torch.tensor([0.5, 1.5])},
            r"preference must be finite and in \[0, 1\]; got 1.5 at index \(1,\)",
        ),
        ({"preference": torch.tensor([0.5, math.nan])}, "preference must be finite and in .* got nan"),
        ({"preference": torch.tensor([0.5])}, r"preference must have shape \(2,\), .* got \(1,\)"),
        (
            {"weight": torch.tensor([-1.0, 1.0])},
            r"weight must be finite and in \[0, inf\); got -1.0 at index \(0,\)",
        ),
        ({"weight": torch.ones(3)}, r"weight must have shape \(2,\), .* got \(3,\)"),
        ({"prior": torch.ones(3) / 3}, r"prior must have shape \(2,\); got \(3,\)"),
        ({"prior": torch.tensor([0.5, 0.7])}, r"prior must sum to 1 within 0.001; got 1.2"),
        ({"prior": torch.tensor([1.5, -0.5])}, r"prior must be finite and in \[0, inf\); got -0.5"),
        ({"prior_strength": -1.0}, "prior_strength must be finite and >= 0; got -1.0"),
        ({"prior_strength": math.nan}, "prior_strength must be finite and >= 0; got nan"),
        ({"loss": "square"}, "loss must be one of logistic, hinge; got 'square'"),
        ({"tolerance": 0.0}, "tolerance must be finite and > 0; got 0.0"),
        ({"max_iterations": 0}, "max_iterations must be finite and >= 1; got 0"),
    ],
)
def test_errors_say_what_is_wrong(changes, message):
    arguments = {"differences": torch.zeros(2, 2), "user": torch.tensor([0, 1]), "num_users": 2, **changes}
    with pytest.raises(ValueError, match=message):
        fit_mixture_weights(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": torch.tensor([0.0, 1.0])}, "user must hold int64; got torch.float32"),
        ({"user": torch.tensor([0, 1], dtype=torch.int32)}, "user must hold int64; got torch.int32"),
        (
            {"differences": torch.zeros(2, 2, dtype=torch.int64)},
            "differences must be floating; got torch.int64",
        ),
        ({"preference": torch.tensor([True, False])}, "preference must be floating; got torch.bool"),
    ],
)
def test_errors_say_which_type_is_wrong(changes, message):
    arguments = {"differences": torch.zeros(2, 2), "user": torch.tensor([0, 1]), "num_users": 2, **changes}
    with pytest.raises(TypeError, match=message):
        fit_mixture_weights(**arguments)


class TestFirstShots:
    user = torch.tensor([0, 1, 0, 0, 1, 3, 0, 1])

    def test_counts_are_right_and_the_choice_grows(self):
        before = torch.zeros(8, dtype=torch.bool)
        for shots in range(6):
            chosen = shot_ranks(self.user, 4, seed=7) < shots
            counts = self.user[chosen].bincount(minlength=4).tolist()
            assert counts == [min(shots, 4), min(shots, 3), 0, min(shots, 1)]
            assert (before <= chosen).all()
            before = chosen

    def test_seed_decides_and_all_are_equally_likely(self):
        assert torch.equal(shot_ranks(self.user, 4, seed=3), shot_ranks(self.user, 4, seed=3))
        rate = torch.stack([shot_ranks(self.user, 4, seed=seed) < 2 for seed in range(600)]).double().mean(0)
        expected = torch.tensor([1 / 2, 2 / 3, 1 / 2, 1 / 2, 2 / 3, 1, 1 / 2, 2 / 3], dtype=D)
        torch.testing.assert_close(rate, expected, rtol=0, atol=0.08)

    def test_the_random_state_of_the_process_is_left_alone(self):
        state = torch.get_rng_state()
        shot_ranks(self.user, 4, seed=3)
        assert torch.equal(torch.get_rng_state(), state)

    def test_nobody_and_errors(self):
        assert shot_ranks(torch.zeros(0, dtype=torch.int64), 2, seed=0).tolist() == []
        with pytest.raises(ValueError, match=r"user must be in \[0, 2\]; got 3 at index \(5,\)"):
            shot_ranks(self.user, 3, seed=0)
