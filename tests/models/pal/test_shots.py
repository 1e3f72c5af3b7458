"""Few-shot curves: numbers worked out by hand, what is measured on what, and that query judgements choose nothing."""

import json
import math

import pytest
import torch

from pluralign.metrics import PreferenceMetrics
from pluralign.models import PAL, BackboneConfig, StoredFeatures
from pluralign.models.pal import shots as few_shots
from pluralign.models.pal.shots import few_shot_curve, user_accuracy

TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32}  # fmt: skip
A, B = [1.0, 0.0], [0.0, 1.0]


class Counted(StoredFeatures):
    calls = 0

    def forward(self, batch):
        self.calls += 1
        return super().forward(batch)


def on_features(size, **settings):
    module = PAL(
        BackboneConfig(config=TINY, frozen=True),
        **{"num_users": 2, "projector": "identity", "score": "squared_distance", **settings},
    )
    module.make_backbone = lambda: Counted(size)
    module.configure_model()
    return module


def corners(weights=((0.75, 0.25), (0.75, 0.25)), **settings):
    """Prototypes at the unit vectors: of A against B the reward differs by 2 (w0 - w1)."""
    module = on_features(2, **settings)
    with torch.no_grad():
        module.network.prototypes.copy_(torch.eye(2))
    module.set_weights(["0", "1"], torch.tensor(weights))
    return module.eval()


def judgements(*rows):
    """A batch of (user, first, second) or (user, first, second, share), a prompt each."""
    number = torch.arange(len(rows))
    return {
        "features": torch.tensor([place for row in rows for place in row[1:3]]).view(-1, len(rows[0][1])),
        "response_row": number.repeat_interleave(2),
        "response_prompt": number.repeat_interleave(2),
        "comparisons": torch.stack([2 * number, 2 * number + 1], 1),
        "user_id": torch.tensor([row[0] for row in rows]),
        "preference": torch.tensor([row[3] if len(row) > 3 else 1.0 for row in rows]),
        "id": [f"{row}" for row in number],
    }


def softplus(x):
    return math.log1p(math.exp(x))


def fitted(first, second, strength, prior=0.75):
    """Weight of the first corner after so many judgements for A and for B: a search."""
    best = torch.linspace(1e-6, 1 - 1e-6, 1_000_001, dtype=torch.float64)
    margin = 2 * (2 * best - 1)
    losses = first * torch.nn.functional.softplus(-margin) + second * torch.nn.functional.softplus(margin)
    divergence = best * (best / prior).log() + (1 - best) * ((1 - best) / (1 - prior)).log()
    return float(best[(losses + strength * divergence).argmin()])


# Numbers worked out by hand ------------------------------------------------------------------------------

USERS = ["ann", "bob", "eve", "tim", "zoe"]
SUPPORT = [judgements((0, A, B), (0, A, B), (1, B, A)), judgements((0, A, B), (4, A, B))]
QUERY = [
    judgements((0, A, B), (0, B, A), (1, B, A)),
    judgements((0, A, B), (1, A, B, 0.25), (2, A, B), (3, A, B, 0.5), (0, A, B, 0.5)),
]


def test_the_worked_example():
    curve = few_shot_curve(corners(), SUPPORT, QUERY, USERS, shots=(0, 1, 2, 3, 4, 50), peers=False)
    none, one, two, many = (point.query for point in curve.points)
    # Of the prior, A's margin is 1: ann is right 2 of 3 times, bob never, eve always; tim only calls ties.
    assert none.of_user == {"ann": pytest.approx(2 / 3), "bob": 0.0, "eve": 1.0}
    assert (none.num_users, none.num_judgements, none.num_ties) == (3, 6, 2)
    assert none.user_accuracy == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert none.accuracy == pytest.approx(3 / 6)
    low, high = softplus(-1), softplus(1)
    losses = [low, high, high, low, 0.25 * low + 0.75 * high, low, (low + high) / 2, (low + high) / 2]
    assert none.log_loss == pytest.approx(sum(losses) / 8, abs=1e-6)
    assert (none.user_accuracy_low, none.user_accuracy_high) == (0.0, 1.0), "three users drawn again"
    assert none.tied_scores == 0

    ann, bob = (2 * (2 * fitted(*counts, 1.0) - 1) for counts in ((1, 0), (0, 1)))
    assert bob < 0 < ann, "one judgement turns bob round"
    assert one.of_user == {"ann": pytest.approx(2 / 3), "bob": 1.0, "eve": 1.0}
    losses = [softplus(-ann), softplus(ann), softplus(bob), softplus(-ann)]
    losses += [0.25 * softplus(-bob) + 0.75 * softplus(bob), low, (low + high) / 2]
    losses += [(softplus(ann) + softplus(-ann)) / 2]
    assert one.log_loss == pytest.approx(sum(losses) / 8, abs=1e-4)
    assert two.of_user == one.of_user and two.log_loss != one.log_loss

    assert [point.shots for point in curve.points] == [0, 1, 2, 3]
    assert curve.left_out == (4, 50), "nobody has so many"
    assert [point.num_users_with_shots for point in curve.points] == [3, 2, 1, 1]
    assert [point.mean_shots for point in curve.points] == pytest.approx([0, 2 / 3, 1, 4 / 3])
    assert curve.support_of_user == {"ann": 3, "bob": 1, "eve": 0}
    assert curve.num_unmeasured_users == 1, "zoe"
    assert (curve.prior_strength, curve.held_out_log_loss) == (1.0, {})

    def of_ann(count):
        x = 2 * (2 * fitted(count, 0, 1.0) - 1)
        return 2.5 * softplus(-x) + 1.5 * softplus(x)

    assert many.log_loss - two.log_loss == pytest.approx((of_ann(3) - of_ann(2)) / 8, abs=1e-4)


def test_groups_count_users_equally_and_may_be_lacking():
    groups = {"ann": "many", "bob": "few", "eve": "many", "nobody": "none"}
    curve = few_shot_curve(corners(), SUPPORT, QUERY, USERS, shots=(0, 1), group_of_user=groups, peers=False)
    none, one = (point.query for point in curve.points)
    assert none.group_accuracy == {"few": 0.0, "many": pytest.approx(5 / 6)}
    assert (none.worst_group, one.worst_group) == ("few", "many")
    assert one.group_accuracy == {"few": 1.0, "many": pytest.approx(5 / 6)}
    del groups["eve"]
    found = user_accuracy(corners(), QUERY, USERS, group_of_user=groups)
    assert (found.num_without_group, found.group_accuracy["many"]) == (1, pytest.approx(2 / 3))
    found = user_accuracy(corners(), QUERY, USERS, group_of_user={"zoe": "none of these"})
    assert (found.num_without_group, found.group_accuracy, found.worst_group) == (3, {}, None)
    with pytest.raises(ValueError, match=r"group_of_user names none of the 5 users .*'ann'.* \['Ann'\]"):
        user_accuracy(corners(), QUERY, USERS, group_of_user={"Ann": "x"})


def test_known_users_have_a_say_unless_told_otherwise():
    """As in ``adapt``, whose weights these are."""
    found = []
    for peers in (True, False):
        module = corners(((0.9, 0.1), (0.05, 0.95)))
        curve = few_shot_curve(module, SUPPORT, QUERY[:1], USERS, shots=(3,), peers=peers)
        module.adapt(SUPPORT, USERS, peers=peers)
        found.append(curve.points[0].query.log_loss)
        assert user_accuracy(module, QUERY[:1], USERS).log_loss == pytest.approx(found[-1], abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-3


def test_known_users_are_measured_as_if_they_were_new():
    """What the model knows of them is neither their prior nor a peer."""
    known = ((0.9, 0.1), (0.8, 0.2), (0.02, 0.98))
    module = on_features(2, num_users=3)
    with torch.no_grad():
        module.network.prototypes.copy_(torch.eye(2))
    module.set_weights(list("012"), torch.tensor(known))
    rest = corners(known[:2])
    answers, asked = [judgements((2, B, A), (2, A, B))], [judgements((2, B, A))]
    for peers in (True, False):
        curves = [
            few_shot_curve(some, answers, asked, list("012"), shots=(0, 1, 2), peers=peers)
            for some in (module, rest)
        ]
        assert curves[0] == curves[1]
    assert curves[0].points[0].query.of_user == {"2": 0.0}, "the others' mean, not that of all"


def test_equal_rewards_are_not_right():
    module = corners(((0.5, 0.5), (0.5, 0.5)))
    found = user_accuracy(module, [judgements((0, A, B), (1, B, A))], ["0", "1"])
    assert (found.accuracy, found.tied_scores, found.log_loss) == (0, 1, pytest.approx(math.log(2)))


def test_rows_and_json_are_plain():
    groups = {"ann": "a", "bob": "b", "eve": "a"}
    curve = few_shot_curve(
        corners(),
        SUPPORT,
        QUERY,
        USERS,
        shots=(0, 1),
        peers=False,
        group_of_user=groups,
        prior_strength=(1, 2),
    )
    content = json.loads(json.dumps(curve.to_json(), allow_nan=False))
    assert [point["shots"] for point in content["points"]] == [0, 1]
    assert content["points"][1]["query"]["of_user"]["bob"] == 1.0
    assert set(content["held_out_log_loss"]) == {"1.0", "2.0"}
    first, second = curve.rows()
    assert (first["shots"], first["worst_group"], first["worst_group_accuracy"]) == (0, "b", 0.0)
    assert second["accuracy"] == curve.points[1].query.accuracy
    assert set(first) == set(second) and all(isinstance(x, int | float | str) for x in first.values())


def test_intervals_are_percentiles_of_resampled_users():
    rows = [(user, A, B, float(user % 4 > 0)) for user in range(40)]
    found = user_accuracy(corners(), [judgements(*rows)], [str(i) for i in range(40)], num_resamples=4000)
    assert found.user_accuracy == 0.75
    assert 0.75 - 1.96 * math.sqrt(0.75 * 0.25 / 40) == pytest.approx(found.user_accuracy_low, abs=0.02)
    again = user_accuracy(corners(), [judgements(*rows)], [str(i) for i in range(40)], num_resamples=4000)
    assert again == found
    other = user_accuracy(
        corners(), [judgements(*rows)], [str(i) for i in range(40)], seed=1, num_resamples=4000
    )
    assert other.user_accuracy_high == pytest.approx(found.user_accuracy_high, abs=0.03)


# What is used for what -----------------------------------------------------------------------------------


def crowd(num_users, each, seed, size=8, noise=0.0):
    """Two groups with opposite ideal points; users of odd number belong to the second."""
    generator = torch.Generator().manual_seed(seed)
    ideal = torch.zeros(2, size)
    ideal[0, 0], ideal[1, 0] = 3.0, -3.0
    items = torch.randn(num_users * each, 2, size, generator=generator)
    user = torch.arange(num_users).repeat_interleave(each)
    near = (items - ideal[user % 2].unsqueeze(1)).square().sum(-1)
    swap = (near[:, 0] > near[:, 1]) ^ (torch.rand(len(user), generator=generator) < noise)
    items = torch.where(swap[:, None, None], items.flip(1), items)
    order = torch.randperm(len(user), generator=generator)
    return [
        judgements(*((int(user[i]), items[i, 0].tolist(), items[i, 1].tolist()) for i in part.tolist()))
        for part in order.split(64)
    ]


def names(number):
    return [f"new {i}" for i in range(number)]


SETTINGS = [
    {},
    {"score": "distance"},
    {"score": "angle", "loss": "cross_entropy"},
    {"loss": "hinge", "mix": "f(Pw)"},
    {"version": "B", "projector": "linear"},
    {"loss": "smoothed_hinge"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_measuring_changes_nothing_and_scores_every_response_once(settings):
    module = on_features(8, **settings)
    support, query = crowd(6, 12, 0), crowd(6, 12, 1)
    if module.version == "B":
        for batch in support + query:
            batch["prompt_features"] = torch.ones(len(batch["id"]), 8)
    module.train()
    module.backbone.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    random = torch.get_rng_state()
    settings = {"shots": (0, 1, 9), "prior_strength": (0.5, 2.0)}
    curve = few_shot_curve(module, support, query, names(6), **settings)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and len(after) == len(
        before
    )
    assert module.users == ["0", "1"]
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.backbone.calls == len(support) + len(query)
    assert len({point.query.log_loss for point in curve.points}) == 3


def test_it_works_inside_a_trainers_hooks():
    """Where gradients are off for good, and numbers are rounded."""
    module = on_features(8, score="distance")
    settings = {"shots": (0, 9), "users": names(6)}
    curve = few_shot_curve(module, crowd(6, 12, 0), crowd(6, 12, 1), **settings)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert few_shot_curve(module, crowd(6, 12, 0), crowd(6, 12, 1), **settings) == curve


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_accuracies_are_those_of_the_module_itself(settings):
    """Its own forward with the adapted users, and its own metrics."""
    module = on_features(8, **settings).eval()
    support, query = crowd(6, 12, 0), crowd(6, 12, 1)
    query[0]["preference"][:5] = 0.5
    curve = few_shot_curve(module, support, query, names(6), shots=(0, 12), prior_strength=0.5)
    module.adapt(support, names(6), prior_strength=0.5)
    known = user_accuracy(module, query, names(6))
    module.table.match(names(6))
    metrics = PreferenceMetrics()
    for batch in query:
        metrics.update(module(batch), batch)
    expected = {name: float(value) for name, value in metrics.compute().items()}
    for found in (known, curve.points[-1].query):
        assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-6)
        assert found.log_loss == pytest.approx(expected["log_loss"], abs=1e-4)
    assert known.num_ties == 5


def test_more_shots_add_to_fewer_and_another_seed_draws_others(monkeypatch):
    chosen = []

    def spy(network, judged, num_users, **settings):
        chosen.append(torch.cat([part.points.items[part.comparisons[:, 0]] for part in judged]))
        return torch.full((num_users, 2), 0.5)

    monkeypatch.setattr(few_shots, "fit_users", spy)
    for seed in (0, 1):
        few_shot_curve(
            on_features(8), crowd(6, 12, 0), crowd(6, 1, 1), names(6), shots=(0, 1, 5, 12, 20), seed=seed
        )
    assert [len(rows) for rows in chosen] == [6, 30, 72] * 2, "nothing is fitted anew where nothing is added"
    sets = [{tuple(row) for row in rows.tolist()} for rows in chosen]
    assert sets[0] < sets[1] < sets[2] and sets[0] != sets[3]


def test_query_judgements_choose_nothing(monkeypatch):
    """Neither weights nor the prior's strength depend on them: not on labels, items or users."""
    found = []
    original = few_shots.fit_users

    def spy(*words, **settings):
        found[-1].append(original(*words, **settings))
        return found[-1][-1]

    monkeypatch.setattr(few_shots, "fit_users", spy)
    support, query = crowd(6, 12, 0, noise=0.1), crowd(6, 12, 1)
    flipped = [{**batch, "comparisons": batch["comparisons"].flip(1)} for batch in query]
    curves = []
    for asked in (query, flipped, crowd(3, 40, 7), query[:1]):
        found.append([])
        module = on_features(8)
        with torch.no_grad():
            module.network.prototypes.copy_(torch.eye(8)[:2])
        curves.append(
            few_shot_curve(module, support, asked, names(6), shots=(0, 2, 8), prior_strength=(0.1, 1.0, 10.0))
        )
    for weights, curve in zip(found[1:], curves[1:], strict=True):
        assert len(weights) == len(found[0]) == 3 * 2 + 2
        assert all(torch.equal(one, other) for one, other in zip(weights, found[0], strict=True))
        assert curve.held_out_log_loss == curves[0].held_out_log_loss
        assert curve.prior_strength == curves[0].prior_strength
    right, wrong = curves[0].points[2].query, curves[1].points[2].query
    assert right.accuracy + wrong.accuracy == pytest.approx(1)


@pytest.mark.parametrize(("noise", "wanted"), [(0.0, 0.1), (0.5, 100.0)])
def test_the_prior_holds_more_where_judgements_say_less(noise, wanted):
    """Of coin flips nothing can be learned: the strongest prior is best."""
    module = on_features(8)
    with torch.no_grad():
        module.network.prototypes.zero_()
        module.network.prototypes[:, 0] = torch.tensor([1.0, -1.0])
    curve = few_shot_curve(
        module, crowd(20, 20, 0, noise=noise), crowd(20, 5, 1), names(20), prior_strength=(100.0, 0.1, 5.0)
    )
    assert curve.prior_strength == wanted == min(curve.held_out_log_loss, key=curve.held_out_log_loss.get)
    assert list(curve.held_out_log_loss) == [100.0, 0.1, 5.0]


def test_held_out_judgements_are_not_fitted(monkeypatch):
    sizes = []

    def spy(network, judged, num_users, **settings):
        sizes.append(sum(len(part.user) for part in judged))
        return torch.full((num_users, 2), 0.5)

    monkeypatch.setattr(few_shots, "fit_users", spy)
    # The third user has a single judgement, of which nothing can be held out.
    support = [*crowd(2, 10, 0), judgements((2, [0.0] * 8, [1.0] * 8))]
    few_shot_curve(
        on_features(8), support, crowd(3, 1, 1), names(3), shots=(0, 4, 8, 9), prior_strength=(1, 2)
    )
    assert sizes == [9, 17, 9, 17, 9, 17, 19]
    with pytest.raises(ValueError, match=r"no user has two support judgements.*give one of \[1.0, 2.0\]"):
        few_shot_curve(on_features(8), crowd(3, 1, 0), crowd(3, 1, 1), names(3), prior_strength=(1, 2))


# What it is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["squared_distance", "distance"])
def test_ten_labels_find_a_new_users_group(score):
    """Unseen users come within two points of seen ones, who gave a hundred labels each."""
    module = on_features(8, score=score, num_users=10)
    train, held = crowd(10, 100, 0), crowd(10, 100, 1)
    optimizer = torch.optim.AdamW(
        [{**group, "lr": 3e-2} for group in module.parameter_groups()], weight_decay=0.0
    )
    for _ in range(12):
        for batch in train:
            optimizer.zero_grad()
            module.compute_loss(module(batch), batch).backward()
            optimizer.step()
    seen = user_accuracy(module, held, module.users)
    new, asked = crowd(40, 10, 2), crowd(40, 50, 3)
    groups = {name: "odd" if i % 2 else "even" for i, name in enumerate(names(40))}
    curve = few_shot_curve(
        module,
        new,
        asked,
        names(40),
        shots=(0, 1, 10),
        prior_strength=(0.1, 0.3, 1.0),
        group_of_user=groups,
    )
    none, one, ten = (point.query for point in curve.points)
    assert seen.user_accuracy > 0.95
    assert none.user_accuracy < 0.75
    assert none.user_accuracy + 0.05 < one.user_accuracy < ten.user_accuracy - 0.05
    assert ten.user_accuracy > seen.user_accuracy - 0.02
    assert ten.group_accuracy[ten.worst_group] > seen.user_accuracy - 0.03
    module.adapt(new, names(40))
    weights = module.weights_of(names(40))
    own = module.weights_of(["0"]).argmax()
    assert torch.equal(weights.argmax(1) == own, torch.arange(40) % 2 == 0), "the right vertex, every one"


# Errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": ()}, r"shots must be one or more numbers >= 0, ascending; got \[\]"),
        ({"shots": (1, -1)}, r"shots must be .* got \[1, -1\]"),
        ({"shots": (2, 1)}, r"shots must be .* ascending; got \[2, 1\]"),
        ({"shots": (1, 1)}, r"shots must be .* ascending; got \[1, 1\]"),
        ({"prior_strength": -1.0}, r"prior_strength must be finite and >= 0; got -1.0"),
        ({"prior_strength": [1.0, math.inf]}, r"prior_strength must be finite and >= 0; got inf"),
        ({"prior_strength": []}, r"prior_strength must be one or more different numbers; got \[\]"),
        (
            {"prior_strength": [1, 1.0]},
            r"prior_strength must be one or more different numbers; got \[1.0, 1.0\]",
        ),
        ({"num_resamples": 99}, "num_resamples must be finite and >= 100; got 99"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        few_shot_curve(corners(), SUPPORT, QUERY, USERS, **settings)


def test_nothing_to_measure():
    for query in ([], [judgements((3, A, B, 0.5))]):
        with pytest.raises(
            ValueError, match=rf"query has {len(query)} judgements, and none of them is decided"
        ):
            few_shot_curve(corners(), SUPPORT, query, USERS)


def test_judgements_of_nobody():
    nobody = judgements((0, A, B), (-1, A, B), (-1, B, A), (1, A, B))
    with pytest.raises(ValueError, match=r"user_id must be in \[0, 4\] for 5 users, got -1"):
        few_shot_curve(corners(), [nobody], QUERY, USERS)
    found = user_accuracy(corners(), [nobody], ["0", "1"])
    assert (found.num_anonymous, found.num_judgements, found.of_user) == (2, 2, {"0": 1.0, "1": 1.0})


def test_users_without_a_judgement_have_the_prior():
    """Nobody has support judgements at all."""
    curve = few_shot_curve(corners(), [], QUERY, USERS, shots=(0, 10))
    assert [point.mean_shots for point in curve.points] == [0]
    assert curve.left_out == (10,)
