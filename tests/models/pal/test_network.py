import math

import pytest
import torch
from torch import nn

from pluralign.models.pal.network import PALNetwork, Projectors, ProjectorShape
from pluralign.models.pal.user_table import UserTable


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp2-relu-dropout0-residual", ProjectorShape(3, residual=True)),
        ("mlp2-gelu-dropout0", ProjectorShape(3, "gelu")),
        ("mlp1-relu-dropout5-batchnorm", ProjectorShape(2, dropout=0.5, batchnorm=True)),
        ("mlp12-silu-dropout75-nobias-residual", ProjectorShape(13, "silu", 0.75, residual=True, bias=False)),
        ("mlp3-tanh-dropout05", ProjectorShape(4, "tanh", 0.05)),
        ("linear", ProjectorShape(1)),
        ("identity", ProjectorShape(0)),
    ],
)
def test_names_of_projectors(name, shape):
    assert ProjectorShape.parse(name) == shape


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mlp",
        "mlp0-relu-dropout0",
        "mlp2-swish-dropout0",
        "mlp2-relu",
        "mlp2-relu-dropout",
        "mlp2-relu-dropout0-wide",
        "mlp2-relu-dropout0-residual-residual",
        "mlp2-relu-dropout0.5",
        "linear-residual",
    ],
)
def test_other_names_are_errors_that_say_what_is_allowed(name):
    with pytest.raises(
        ValueError, match=r"projector must be identity, linear, or mlp<layers>.*relu, gelu"
    ) as error:
        ProjectorShape.parse(name)
    assert repr(name) in str(error.value)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "parameters"), [(512, 787_968), (768, 1_771_776), (1024, 3_148_800)])
def test_parameters_of_a_projector_are_as_many_as_in_the_original(size, parameters):
    shape = ProjectorShape.parse("mlp2-relu-dropout0-residual")
    assert count(Projectors(shape, size, size)) == parameters


def network(**settings):
    defaults = {
        "hidden_size": 4,
        "preference_size": 4,
        "num_prototypes": 3,
        "by_prompt": False,
        "mix": "f(P)w",
        "score": "distance",
        "projector": "mlp2-gelu-dropout0",
        "initial_scale": 1 / 0.07,
        "max_scale": 100.0,
    }
    return PALNetwork(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("size", "prototypes", "projector", "parameters"),
    [(512, 2, "mlp2-gelu-dropout0", 2_363_904), (1024, 1, "mlp2-relu-dropout5-residual", 6_297_600)],
)
def test_parameters_of_version_b_are_as_many_as_in_the_original(size, prototypes, projector, parameters):
    built = network(
        hidden_size=size, preference_size=size, num_prototypes=prototypes, by_prompt=True, projector=projector
    )
    assert count(built) == parameters
    scaled = network(
        hidden_size=size,
        preference_size=size,
        num_prototypes=prototypes,
        by_prompt=True,
        projector=projector,
        score="angle",
    )
    assert count(scaled) == parameters + 1, "and one scale"


@pytest.mark.parametrize("flags", ["", "-residual", "-batchnorm", "-nobias", "-batchnorm-residual-nobias"])
@pytest.mark.parametrize("training", [True, False])
def test_projectors_side_by_side_are_so_many_plain_networks(flags, training):
    shape = ProjectorShape.parse(f"mlp2-gelu-dropout0{flags}")
    stack = Projectors(shape, 4, 4, count=3).train(training)
    x = torch.randn(7, 4)
    outputs = []
    for k in range(3):
        layers = []
        for i, linears in enumerate(stack.linears):
            plain = nn.Linear(4, 4, bias=shape.bias)
            plain.weight.data = linears.weight[k].detach()
            if shape.bias:
                plain.bias.data = linears.bias[k].detach()
            layers.append(plain)
            if i < 2:
                layers += [nn.BatchNorm1d(4)] if shape.batchnorm else []
                layers.append(nn.GELU())
        out = nn.Sequential(*layers).train(training)(x)
        outputs.append(out + x if shape.residual else out)
    torch.testing.assert_close(stack(x), torch.stack(outputs, 1), atol=1e-6, rtol=1e-5)


def test_projectors_start_as_linear_layers_do():
    weight = Projectors(ProjectorShape(1), 64, 256, count=2).linears[0].weight.detach()
    assert float(weight.abs().max()) <= 1 / 8 < 1.02 * float(weight.abs().max())
    assert float(weight.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)


def test_dropout_falls_in_training_alone():
    stack, x = Projectors(ProjectorShape.parse("mlp1-relu-dropout5"), 4, 4), torch.ones(2, 4)
    assert not torch.equal(stack(x), stack(x))
    assert torch.equal(stack.eval()(x), stack(x))


@pytest.mark.parametrize("projector", ["identity", "mlp1-relu-dropout0-residual"])
def test_sizes_that_cannot_be_added_are_an_error(projector):
    with pytest.raises(
        ValueError, match=r"needs preference_size equal to the backbone's hidden size 4, got 5"
    ):
        network(preference_size=5, projector=projector)


@pytest.mark.parametrize("mix", ["f(P)w", "f(Pw)", "Pw"])
def test_prototypes_start_at_unit_length(mix):
    prototypes = network(mix=mix, preference_size=6).prototypes
    assert prototypes.shape == (3, 6 if mix == "Pw" else 4)
    torch.testing.assert_close(prototypes.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("mix", ["f(P)w", "f(Pw)", "Pw"])
def test_ideal_points_by_the_order_of_mixing(mix):
    built, weights = network(mix=mix), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    points = built(torch.randn(5, 4))
    p = built.prototypes
    expected = {
        "f(P)w": weights @ built.project(p),
        "f(Pw)": built.project(weights @ p),
        "Pw": weights @ p,
    }[mix]
    torch.testing.assert_close(built.ideal(points, weights, torch.tensor([0, 3])), expected)


def test_prompts_have_prototypes_of_their_own():
    built, weights = network(by_prompt=True), torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    prompts, prompt = torch.randn(2, 4), torch.tensor([0, 0, 1, 1])
    points = built(torch.randn(4, 4), prompts, prompt)
    g = built.prompt_projectors(prompts)
    assert g.shape == (2, 3, 4)
    expected = torch.stack([weights[0] @ g[0], weights[1] @ g[1]])
    torch.testing.assert_close(built.ideal(points, weights, torch.tensor([1, 2])), expected)
    assert built.basis(points).shape == (4, 3)
    torch.testing.assert_close(
        built.basis(points)[2, 1], built.reward(points.items[2], g[1, 1]), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("mix", ["f(P)w", "Pw"])
def test_squared_distances_differ_as_the_prototypes_rewards_do(mix):
    """The identity by which a new user's problem is convex."""
    built = network(mix=mix, score="squared_distance")
    points, weights = built(torch.randn(6, 4)), torch.rand(3).softmax(0)
    ideal = built.ideal(points, weights[None], torch.tensor([0]))
    exact = built.reward(points.items, ideal)
    mixed = built.common_reward(points, weights)
    torch.testing.assert_close(exact - exact[0], mixed - mixed[0], atol=1e-5, rtol=1e-4)
    assert bool((mixed < exact).all()), "by a constant"


def test_translation_leaves_distances_and_scaling_leaves_angles_unchanged():
    items, ideal, shift = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4)
    near, turned = network(), network(score="angle")
    torch.testing.assert_close(near.reward(items + shift, ideal + shift), near.reward(items, ideal))
    torch.testing.assert_close(turned.reward(3 * items, 0.2 * ideal), turned.reward(items, ideal))


def test_the_scale_is_bounded_and_can_come_down_from_its_bound():
    built = network(score="angle")
    assert float(built.scale().detach()) == pytest.approx(14.2857143)
    assert float(built.log_scale.detach()) == pytest.approx(2.65926, abs=1e-5)
    with torch.no_grad():
        built.log_scale.fill_(9.0)
    assert float(built.scale().detach()) == pytest.approx(100.0, rel=1e-6)
    with torch.no_grad():
        built.log_scale.clamp_(max=math.log(100.0))
    built.scale().backward()
    assert float(built.log_scale.grad) == pytest.approx(100.0, rel=1e-5)


def test_coinciding_points_have_finite_gradients():
    for score in ("distance", "squared_distance", "angle"):
        built = network(score=score, projector="identity")
        weights = torch.zeros(1, 3, requires_grad=True)
        points = built(built.prototypes.detach()[:1] * 0)
        built.reward(points.items, built.ideal(points, weights, torch.tensor([0]))).sum().backward()
        assert bool(weights.grad.isfinite().all()) and bool(built.prototypes.grad.isfinite().all())


def table(names=("ada", "bo", "cy"), **settings):
    built = UserTable(2, **{"temperature": 1.0, "init": "zeros", "unknown": "mean", **settings})
    built.assign(names)
    return built


def test_the_table_starts_even_or_at_random():
    rows = torch.tensor([0, 2])
    assert table()(rows).tolist() == [[0.5, 0.5]] * 2
    assert float(table(init="normal").logits.weight.detach().std()) > 0.1
    cold = table(temperature=0.5)
    cold.logits.weight.data[1] = torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(cold(torch.tensor([1])), torch.tensor([[0.1, 0.9]]))


def test_ids_are_matched_by_name():
    users = table()
    assert users.rows(torch.tensor([2, -1, 0])).tolist() == [2, -1, 0], "without data: rows of the table"
    users.match(["ada", "bo"])
    assert users.rows(torch.tensor([1, -1])).tolist() == [1, -1]
    users.match(["ada", "bo", "cy", "dee"])
    assert users.rows(torch.tensor([3, 2, -1])).tolist() == [-1, 2, -1]
    users.match(["cy", "dee", "ada"])
    assert users.rows(torch.tensor([0, 1, 2, -1])).tolist() == [2, -1, 0, -1]
    users.put(["dee"], torch.tensor([[0.25, 0.75]]))
    assert users.rows(torch.tensor([0, 1, 2, -1])).tolist() == [2, 3, 0, -1], "matched anew with the new user"


def test_names_of_any_kind():
    names = ["a.b.c", "ユーザー 7", "12", "", "weights"]
    users = table(names)
    assert users.rows_of([*names, "nobody"]).tolist() == [0, 1, 2, 3, 4, -1]
    with pytest.raises(ValueError, match="user names must differ; 2 hold 1 different ones"):
        users.assign(["a", "a"])
    with pytest.raises(ValueError, match="num_prototypes must be at most the number of users, 1; got 2"):
        users.assign(["a"])
    assert users.names == names


def test_unknown_users_have_the_mean_which_they_do_not_move():
    users = table()
    users.logits.weight.data = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, -math.log(3)]])
    weights = users(torch.tensor([-1, 1]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    weights[0, 0].backward()
    assert not bool(users.logits.weight.grad.any())


def test_an_evaluation_computes_the_mean_once():
    users = table().eval()
    users.hold()
    before = users.population()
    users.logits.weight.data[0, 0] = 5.0
    assert users.population() is before
    users.eval()
    assert not torch.equal(users.population(), before)
    users.hold()
    assert users.population() is users.population()
    users.put(["bo"], torch.tensor([[0.0, 1.0]]))
    assert float(users.population()[1]) == pytest.approx((1 / (1 + math.exp(5)) + 1 + 0.5) / 3, abs=1e-5)
    held = users.population()
    users.set_extra_state(users.get_extra_state())
    assert users.population() is not held, "other weights are on their way"
    users.train()
    assert users.population() is not users.population()


def test_unknown_users_may_be_an_error_that_names_them():
    users = table(unknown="error")
    users.match(["ada", "bo", "cy", "dee", "eli"])
    assert users.rows(torch.tensor([0, 1])).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"no weights for 'dee', 'eli': give them weights with adapt\(\)"):
        users.rows(torch.tensor([4, 0, 3]))
    with pytest.raises(ValueError, match="judgements without a judge"):
        users.rows(torch.tensor([-1]))
    with pytest.raises(ValueError, match="no weights for 'zoe'"):
        users.rows_of(["ada", "zoe"])


def test_ids_that_stand_for_nobody_are_an_error():
    users = table()
    with pytest.raises(ValueError, match=r"user_id must be in \[-1, 2\] for 3 users, got 3"):
        users.rows(torch.tensor([0, 3]))
    users.match(["ada", "bo", "cy", "dee"])
    users.check(torch.tensor([3, -1]))
    with pytest.raises(ValueError, match=r"user_id must be in \[-1, 3\] for 4 users, got -2"):
        users.check(torch.tensor([-2, 0]))


def test_writing_one_row_leaves_the_others_bit_for_bit():
    users = table(init="normal", temperature=2.0)
    before = users.logits.weight.detach().clone()
    users.put(["bo", "new"], torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert users.names == ["ada", "bo", "cy", "new"]
    assert torch.equal(users.logits.weight[[0, 2]], before[[0, 2]])
    written = users(torch.tensor([1, 3]))
    torch.testing.assert_close(written, torch.tensor([[0.25, 0.75], [1.0, 0.0]]), atol=2e-6, rtol=0)
    assert users.logits.weight.requires_grad
    users.assign([*users.names, "more"])
    assert users.logits.weight.shape == (5, 2)


def test_a_hundred_thousand_users_match_and_mix_in_no_time():
    names = [f"user.{i}" for i in range(100_000)]
    users = table(names)
    users.match(names[::-1])
    assert users.rows(torch.tensor([0, 99_999])).tolist() == [99_999, 0]
    assert users(torch.tensor([5, -1])).tolist() == [[0.5, 0.5]] * 2
