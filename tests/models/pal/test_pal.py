import copy
import json
import math
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from pluralign.datamodules import LoaderConfig, LocalDataModule, SyntheticDataModule
from pluralign.datamodules.batches.users import UserProtocol
from pluralign.datamodules.columns import take_comparisons
from pluralign.models import PAL, BackboneConfig, LoRAConfig, StoredFeatures

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        module = PAL(llama(**backbone), **{"num_users": 4, **settings})
        if backbone.get("frozen"):  # read features: no network is needed
            module.make_backbone = lambda: StoredFeatures(32)
        module.configure_model()
        return module

    return build


def judged(data, users=4):
    """The batch with a judge for every comparison."""
    data["user_id"] = torch.arange(len(data["comparisons"])) % users
    return data


def on_features(size, **settings):
    """A module whose backbone is whatever features it is given."""
    module = PAL(BackboneConfig(config=TINY, frozen=True), **{"num_users": 1, **settings})
    module.make_backbone = lambda: StoredFeatures(size)
    module.configure_model()
    return module


def pairs(first, second, **columns):
    """A feature batch: each row of ``first`` against the same row of ``second``, a prompt each."""
    count = len(first)
    number = torch.arange(count)
    return {
        "features": torch.stack([first, second], 1).flatten(0, 1),
        "response_row": number.repeat_interleave(2),
        "response_prompt": number.repeat_interleave(2),
        "comparisons": torch.stack([2 * number, 2 * number + 1], 1),
        "id": [str(i) for i in range(count)],
        **columns,
    }


LEFT, RIGHT = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])


def fixture(logits=(0.0, 1.0986123), **settings):
    """Two prototypes at the unit vectors, items as they are, one user."""
    module = on_features(2, **{"projector": "identity", "num_users": 2, **settings})
    with torch.no_grad():
        module.network.prototypes.copy_(torch.eye(2))
        module.table.logits.weight.copy_(torch.tensor([logits]))
    return module


def chose(first, second, **columns):
    return pairs(first, second, user_id=torch.zeros(len(first), dtype=torch.int64), **columns)


def loss_of(module, batch):
    return float(module.compute_loss(module(batch), batch).detach())


# Numbers worked out by hand ------------------------------------------------------------------------------


def test_distances_of_the_worked_example():
    output = fixture()(chose(LEFT, RIGHT))
    assert output["of_comparisons"]["user_weights"][0].tolist() == pytest.approx([0.25, 0.75])
    assert float(output["chosen"].detach()) == pytest.approx(-1.0606602)
    assert float(output["rejected"].detach()) == pytest.approx(-1.2747549)


@pytest.mark.parametrize(
    ("loss", "right", "left"),
    [
        ("hinge", 1.2140946, 0.7859054),
        ("smoothed_hinge", 0.1474026, 0.0617647),
        ("logistic", 0.8059132, 0.5918185),
        ("cross_entropy", 0.8059132, 0.5918185),
    ],
)
def test_losses_of_the_worked_example(loss, right, left):
    module = fixture(loss=loss)
    assert loss_of(module, chose(LEFT, RIGHT)) == pytest.approx(left, abs=2e-7)
    assert loss_of(module, chose(RIGHT, LEFT)) == pytest.approx(right, abs=2e-7)
    for share, expected in ((0.0, right), (1.0, left), (0.25, 0.25 * left + 0.75 * right)):
        batch = chose(LEFT, RIGHT, preference=torch.tensor([share]))
        assert loss_of(module, batch) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("mix", ["f(P)w", "Pw", "f(Pw)"])
def test_squared_distances_of_the_worked_example(mix):
    output = fixture(score="squared_distance", mix=mix)(chose(LEFT, RIGHT))
    assert float((output["chosen"] - output["rejected"]).detach()) == pytest.approx(0.5)


def test_angles_of_the_worked_example_disagree_with_its_distances():
    module = fixture(score="angle", loss="cross_entropy")
    output = module(chose(LEFT, RIGHT))
    assert float(output["chosen"].detach()) == pytest.approx(4.5175391)
    assert float(output["rejected"].detach()) == pytest.approx(13.5526180)
    assert loss_of(module, chose(LEFT, RIGHT)) == pytest.approx(9.0351982)
    assert loss_of(module, chose(RIGHT, LEFT)) == pytest.approx(1.1920e-4, rel=1e-3)


def test_first_few_shot_gradient_of_the_worked_example():
    module = fixture(logits=(0.0, 0.0), loss="hinge")
    batch = chose(RIGHT, LEFT)
    loss = module.compute_loss(module(batch), batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.8740320)
    gradient = module.table.logits.weight.grad[0]
    assert gradient.tolist() == pytest.approx([0.6698, -0.6698], abs=1e-4)
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-6)


def test_bound_on_norms():
    module = on_features(
        2, num_prototypes=3, num_users=3, projector="identity", norm_bound=4.0, norm_bound_weight=3.0
    )
    with torch.no_grad():
        module.network.prototypes.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
    module.set_weights(["0", "1", "2"], torch.eye(3))
    batch = pairs(LEFT.repeat(3, 1), RIGHT.repeat(3, 1), user_id=torch.arange(3))
    output = module(batch)
    excess = module.compute_loss(output, batch).detach()
    module.norm_bound = None
    excess = excess - module.compute_loss(output, batch).detach()
    assert float(excess) == pytest.approx(1 + 0 + 6, abs=1e-3), "3 times the mean of three"


def test_balanced_users_count_equally():
    """Of 6 named judgements the first user has 4 and the second 2: 6 / (2 * 4) and 6 / (2 * 2); of nobody, 1."""
    first, second = torch.randn(5, 2), torch.randn(5, 2)
    user = torch.tensor([0, 0, 0, 1, -1])
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.5])
    module = fixture(balance_users=True)
    batch = pairs(first, second, user_id=user)
    with pytest.raises(RuntimeError, match=r"balance_users needs to know how many judgements each user has"):
        loss_of(module, batch)
    plain = fixture()
    parts = [
        loss_of(plain, pairs(first[i : i + 1], second[i : i + 1], user_id=user[i : i + 1])) for i in range(5)
    ]
    module.balance({"0": 4, "1": 2, "somebody else": 9})
    own = [0.75, 0.75, 0.75, 1.5, 1.0]
    whole = sum(w * p for w, p in zip(own, parts, strict=True))
    assert loss_of(module, batch) == pytest.approx(whole / 5, rel=1e-5), "not over the balancing weights"
    whole = sum(w * v * p for w, v, p in zip(own, weight.tolist(), parts, strict=True))
    assert loss_of(module, {**batch, "weight": weight}) == pytest.approx(whole / 5.5, rel=1e-5)
    assert module.table.judgement_weights(torch.tensor([0] * 4 + [1] * 2)).mean() == 1
    module.set_weights(["new"], torch.tensor([[0.5, 0.5]]))
    weights = dict(zip(module.users, module.table.judgement_weights(torch.arange(3)).tolist(), strict=True))
    assert weights == {"0": 0.75, "1": 1.5, "new": 1.0}, "of whom nothing is known"


def uneven(folder, **splits):
    """A judge with 90 % of the rows, and one with 10 %."""
    for name, number in (("train", 400), ("validation", 20)):
        rows = [
            {"id": f"r{i}", "prompt": f"{name} {i}", "chosen": f"a{i}", "rejected": f"b{i}",
             "user": "rare" if i % 10 == 3 else "busy"} for i in range(number)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = splits or {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    loader = LoaderConfig(batch_size=4, max_tokens=None)
    return LocalDataModule(**splits, text=crowd().text, cache_dir=str(folder / "cache"), loader=loader)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_balanced_shares_are_those_of_the_training_split(tmp_path, ranks, batch_size):
    """Shares of the gradient over an epoch, where rewards are all equal: half each, whatever a batch holds."""
    data = uneven(tmp_path)
    data.loader = replace(data.loader, batch_size=batch_size)
    data.setup("fit")
    assert data.judgements_of_users() == {"busy": 360, "rare": 40}
    module = fixture(balance_users=True)
    module.set_weights(["busy", "rare"], torch.full((2, 2), 0.5))
    module.table.match(data.users)
    module.balance(data.judgements_of_users())
    shares = torch.zeros(2)
    for rank in range(ranks):
        for batch in data.batches("train", shuffle=True, rank=(rank, ranks)):
            gap = torch.zeros(len(batch["comparisons"]), requires_grad=True)
            loss = module.compute_loss({"chosen": gap, "rejected": torch.zeros_like(gap)}, batch)
            (gradient,) = torch.autograd.grad(loss, gap)
            shares.index_add_(0, batch["user_id"], gradient.abs())
    assert (shares / shares.sum()).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_fit_asks_its_data_how_many_judgements_there_are(tmp_path):
    module = pal(balance_users=True)
    trainer(tmp_path, limit_train_batches=3, limit_val_batches=1).fit(module, data := uneven(tmp_path))
    weights = dict(
        zip(module.users, module.table.judgement_weights(torch.tensor([0, 1])).tolist(), strict=True)
    )
    assert weights == {"busy": pytest.approx(400 / 720), "rare": pytest.approx(400 / 80)}
    alone = uneven(tmp_path, validation=str(data.paths["validation"]))
    with pytest.warns(UserWarning, match="balance_users: these data have no training split"):
        trainer(tmp_path, limit_val_batches=1).validate(module, alone, verbose=False)
    loader = DataLoader([chose(LEFT, RIGHT)], batch_size=None)
    with pytest.raises(ValueError, match="balance_users needs data that say how many judgements"):
        trainer(tmp_path).fit(pal(balance_users=True, num_users=2), loader, loader)


# Every version and score ---------------------------------------------------------------------------------

VARIANTS = [
    {"version": "A", "mix": mix, "score": score}
    for mix in ("f(P)w", "f(Pw)", "Pw")
    for score in ("distance", "squared_distance", "angle")
] + [{"version": "B", "score": score} for score in ("distance", "squared_distance", "angle")]


def by_feature(data, size=32):
    """The same records with features in place of tokens."""
    generator = torch.Generator().manual_seed(0)
    number = len(data["response_row"])
    kept = {
        name: value
        for name, value in data.items()
        if name not in ("input_ids", "position_ids", "segment_ids", "response_end", "row_lengths")
    }
    kept["features"] = torch.randn(number, size, generator=generator)
    kept["prompt_features"] = torch.randn(len(data["id"]), size, generator=generator)
    return kept


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_loss_of_one_batch_is_the_written_out_formula(model, batch, settings):
    data = judged(by_feature(batch((2, 4, 3))))
    data["margin"] = torch.linspace(-0.2, 0.5, len(data["comparisons"]))
    data["weight"] = torch.linspace(0.5, 2, len(data["comparisons"]))
    module = model(
        frozen=True, num_prototypes=3, projector="mlp1-gelu-dropout0", user_init="normal", **settings
    )
    output = module(data)
    network, scale = module.network, 1 / 0.07
    total = 0.0
    with torch.no_grad():
        for p, (i, j) in enumerate(data["comparisons"].tolist()):
            w = (module.table.logits.weight[data["user_id"][p]]).softmax(0)
            if settings["version"] == "B":
                u = sum(
                    w[k] * network.prompt_projectors(data["prompt_features"])[data["response_prompt"][i], k]
                    for k in range(3)
                )
            elif settings["mix"] == "f(Pw)":
                u = network.project((w @ network.prototypes)[None])[0]
            else:
                points = (
                    network.project(network.prototypes) if settings["mix"] == "f(P)w" else network.prototypes
                )
                u = sum(w[k] * points[k] for k in range(3))
            x = network.project(data["features"])
            reward = {
                "distance": lambda n, x=x, u=u: -(x[n] - u).norm(),
                "squared_distance": lambda n, x=x, u=u: -(x[n] - u).square().sum(),
                "angle": lambda n, x=x, u=u: scale * torch.cosine_similarity(x[n], u, 0),
            }[settings["score"]]
            gap = float(reward(i) - reward(j))
            assert float(output["chosen"][p] - output["rejected"][p]) == pytest.approx(
                gap, rel=1e-3, abs=1e-5
            )
            m, share = gap - float(data["margin"][p]), float(data["preference"][p])
            loss = share * math.log1p(math.exp(-m)) + (1 - share) * math.log1p(math.exp(m))
            total += float(data["weight"][p]) * loss
    expected = total / float(data["weight"].sum())
    assert float(module.compute_loss(output, data).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_every_parameter_moves(model, batch, settings):
    data = judged(by_feature(batch((2, 3, 2, 4))))
    module = model(frozen=True, projector="mlp1-gelu-dropout0", **settings)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    module.compute_loss(module(data), data).backward()
    optimizer.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_adapters_move_with_the_rest_and_nothing_that_is_frozen(model, batch):
    module, data = model(lora=LoRAConfig(rank=2), layout="separate"), judged(batch((2, 3, 2, 4)))
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        module.compute_loss(module(data), data).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("settings", VARIANTS[::4], ids=lambda s: "-".join(s.values()))
def test_overfits_a_few_pairs(model, batch, settings):
    module, data = model(**settings), judged(batch((2,) * 8))
    data["preference"] = torch.ones(8)
    if settings["version"] == "B":
        data["prompt_features"] = torch.randn(8, 32)
    optimizer = torch.optim.AdamW([{**group, "lr": 1e-2} for group in module.parameter_groups()])
    for _ in range(40):
        optimizer.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        optimizer.step()
    assert bool((output["chosen"] > output["rejected"] + 1).all())


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_prototypes_have_no_order(model, batch, settings):
    data = judged(by_feature(batch((2, 4, 3))))
    module = model(frozen=True, num_prototypes=3, user_init="normal", **settings).eval()
    output, order = module(data), torch.tensor([2, 0, 1])
    with torch.no_grad():
        module.table.logits.weight.copy_(module.table.logits.weight[:, order])
        network = module.network
        ordered = (
            network.prompt_projectors.parameters() if settings["version"] == "B" else [network.prototypes]
        )
        for parameter in ordered:
            parameter.copy_(parameter[order])
    again = module(data)
    for name in ("chosen", "rejected", "reward"):
        torch.testing.assert_close(again[name], output[name], atol=1e-5, rtol=1e-5)
    for mine, theirs in (
        (again["of_comparisons"]["user_weights"], output["of_comparisons"]["user_weights"]),
        (again["basis"].rewards, output["basis"].rewards),
    ):
        torch.testing.assert_close(mine, theirs[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_comparisons_have_no_order_and_sides_are_exchangeable(model, batch, tensors_of, settings):
    data = judged(by_feature(batch((2, 4, 3))))
    module = model(frozen=True, user_init="normal", loss="hinge", **settings)
    output, order = module(data), torch.tensor([3, 0, 5, 1, 4, 2])
    loss = module.compute_loss(output, data)
    shuffled = dict(data)
    for name in ("comparisons", "preference", "user_id"):
        shuffled[name] = data[name][order]
    again = module(shuffled)
    mine, theirs = tensors_of(again), tensors_of(output)
    for name in ("chosen", "rejected", "user_weights"):
        torch.testing.assert_close(mine[name], theirs[name][order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.compute_loss(again, shuffled), loss)
    swapped = {**data, "comparisons": data["comparisons"].flip(1), "preference": 1 - data["preference"]}
    torch.testing.assert_close(module.compute_loss(module(swapped), swapped), loss)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_one_prototype_is_one_reward_for_everyone(model, batch, settings):
    data = judged(by_feature(batch((2, 4, 3))))
    module = model(frozen=True, num_prototypes=1, user_init="normal", **settings)
    output = module(data)
    assert output["of_comparisons"]["user_weights"].tolist() == [[1.0]] * 6
    for side, name in enumerate(("chosen", "rejected")):
        torch.testing.assert_close(output[name], output["reward"][data["comparisons"][:, side]])
    module.compute_loss(output, data).backward()
    assert not bool(module.table.logits.weight.grad.any())
    del data["user_id"]
    torch.testing.assert_close(module(data)["chosen"], output["chosen"])


def test_one_prototype_needs_no_users(llama, batch):
    module = PAL(llama(frozen=True), num_prototypes=1)
    module.configure_model()
    assert module.users == ["0"] and module.requires == {"comparisons"}
    assert bool(module(by_feature(batch()))["chosen"].isfinite().all())


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_a_users_reward_module_is_that_users_reward(model, batch, settings):
    data = judged(by_feature(batch((2, 4, 3))))
    module = model(frozen=True, num_prototypes=3, user_init="normal", **settings).eval()
    output = module(data)
    for p, user in enumerate(data["user_id"].tolist()):
        reward = module.user_reward_module(str(user))(data)
        assert reward.shape == (9,)
        chosen, rejected = reward[data["comparisons"][p]]
        torch.testing.assert_close(chosen, output["chosen"][p], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rejected, output["rejected"][p], atol=1e-5, rtol=1e-5)
    everyone = module.user_reward_module(module.users)
    torch.testing.assert_close(everyone(data), output["reward"], atol=1e-5, rtol=1e-5)
    names = [name for name, _ in everyone.named_parameters()]
    assert not any("logits" in name for name in names) and next(iter(everyone.state_dict())) == "weights"
    torch.testing.assert_close(module.basis_rewards(data), output["basis"].rewards)
    if settings["version"] == "B":
        del data["prompt_features"]
        with pytest.raises(ValueError, match="this batch has no prompts apart"):
            everyone(data)


def test_squared_distances_are_a_low_rank_reward_model():
    """Bose et al.'s r = w . V'h on features of unit length, with V twice the prototypes and an offset."""
    module = on_features(6, num_prototypes=3, num_users=5, projector="identity", score="squared_distance", user_init="normal")  # fmt: skip
    first, second = (torch.nn.functional.normalize(torch.randn(20, 6), dim=-1) for _ in range(2))
    user = torch.arange(20) % 5
    output = module(pairs(first, second, user_id=user))
    with torch.no_grad():
        weights, basis = module.table.logits.weight.softmax(-1), 2 * module.network.prototypes
        low_rank = ((first - second) @ basis.T * weights[user]).sum(-1)
    torch.testing.assert_close(
        (output["chosen"] - output["rejected"]).detach(), low_rank, atol=1e-5, rtol=1e-4
    )
    group = module.user_reward_module(["1", "4"])(pairs(first, second))
    members = [module.user_reward_module(name)(pairs(first, second)) for name in ("1", "4")]
    torch.testing.assert_close(group, torch.stack(members).mean(0))


# Output, precision, settings -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"version": "B"}, {"score": "squared_distance", "norm_bound": 1.0}])
def test_what_comes_out_is_float32_and_of_the_right_shape(model, batch, tensors_of, settings):
    module, data = model(dtype="bfloat16", **settings), judged(batch())
    data["prompt_features"] = torch.randn(3, 32, dtype=torch.bfloat16)
    shapes = {"chosen": (3,), "rejected": (3,), "user_weights": (3, 2)}
    shapes |= {"ideal_points": (3, 32)} if settings.get("norm_bound") else {}
    with torch.autocast("cpu", torch.bfloat16):
        output = tensors_of(module(data))
    assert {name: tuple(value.shape) for name, value in output.items()} == shapes
    assert {value.dtype for value in output.values()} == {torch.float32}
    told = module.eval()(data)
    output = tensors_of(told)
    assert told["basis"].names == ("0", "1") and told["basis"].title == "prototype_rewards"
    assert told["basis"].linear == (settings.get("score") == "squared_distance")
    shapes |= {"reward": (6,), "basis.rewards": (6, 2)}
    assert {name: tuple(value.shape) for name, value in output.items()} == shapes
    assert {value.dtype for value in output.values()} == {torch.float32}
    del data["comparisons"]
    assert set(module(data)) == {"reward", "basis"}


def test_judges_without_a_name_are_unknown(model, batch):
    module, data = model(user_init="normal").eval(), batch()
    mean = module.table.logits.weight.softmax(-1).mean(0)
    torch.testing.assert_close(module(data)["of_comparisons"]["user_weights"], mean.expand(3, 2))


def test_no_comparisons_give_a_loss_of_zero_with_a_gradient(model, batch):
    for loss in ("logistic", "hinge"):
        module, data = model(loss=loss, norm_bound=1.0), judged(batch())
        for name in ("comparisons", "user_id", "preference"):
            data[name] = data[name][:0]
        result = module.compute_loss(module(data), data)
        result.backward()
        assert float(result.detach()) == 0.0
        assert module.table.logits.weight.grad is not None


def test_the_last_step_of_training_keeps_the_scale_within_its_bound(model):
    module = model(score="angle", max_scale=20.0)
    with torch.no_grad():
        module.network.log_scale.fill_(5.0)
    module.on_train_batch_end(None, None, 0)
    assert float(module.network.log_scale.detach()) == pytest.approx(math.log(20.0))
    model().on_train_batch_end(None, None, 0)


def test_rates_and_decay_by_group(model):
    settings = {"projector_lr": 1.0, "prototype_lr": 2.0, "user_lr": 3.0, "scale_lr": 4.0, "score": "angle"}
    module = model(**settings)
    groups = module.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [1e-5, 1.0, 2.0, 3.0, 4.0]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01, 0.0, 0.0, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    prompted = model(**settings, version="B", frozen=True)
    groups = prompted.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [1.0, 3.0, 4.0]
    assert len(groups[0]["params"]) == 12, "f and all g"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "C"}, "version must be one of A, B; got 'C'"),
        ({"mix": "|f(P)|w"}, "mix must be one of"),
        ({"score": "norm"}, "score must be one of distance, squared_distance, angle; got 'norm'"),
        ({"loss": "ce"}, "loss must be one of logistic, hinge, smoothed_hinge, cross_entropy; got 'ce'"),
        ({"user_init": "ones"}, "user_init must be one of"),
        ({"unknown_users": "skip"}, "unknown_users must be one of mean, error; got 'skip'"),
        ({"num_prototypes": 0}, "num_prototypes must be finite and >= 1; got 0"),
        ({"preference_size": 0}, "preference_size must be finite and >= 1; got 0"),
        ({"num_users": 0}, "num_users must be finite and >= 1; got 0"),
        ({"temperature": 0.0}, "temperature must be finite and > 0; got 0.0"),
        ({"initial_scale": -1.0}, "initial_scale must be finite and > 0; got -1.0"),
        ({"max_scale": 10.0}, r"max_scale must be finite and >= 14\.2857; got 10\.0"),
        ({"norm_bound": -1.0}, "norm_bound must be finite and >= 0; got -1.0"),
        ({"norm_bound_weight": math.inf}, "norm_bound_weight must be finite and >= 0; got inf"),
        ({"user_lr": -1e-3}, "user_lr must be finite and >= 0; got -0.001"),
        ({"projector": "mlp"}, "projector must be identity, linear, or mlp"),
        ({"version": "B", "projector": "identity"}, "makes all prototypes of version B equal"),
    ],
)
def test_settings_out_of_range(llama, settings, message):
    with pytest.raises(ValueError, match=message):
        PAL(llama(), **settings)


def test_users_must_be_known_and_at_least_as_many_as_prototypes(llama, batch):
    module = PAL(llama(frozen=True))
    module.configure_model()  # a checkpoint may still name them
    with pytest.raises(RuntimeError, match=r"nothing says who the users are: .* or set num_users"):
        module(by_feature(batch()))
    with pytest.raises(ValueError, match="num_prototypes must be at most the number of users, 2; got 3"):
        PAL(llama(), num_prototypes=3, num_users=2).configure_model()
    with pytest.raises(
        ValueError, match="needs preference_size equal to the backbone's hidden size 32, got 8"
    ):
        PAL(llama(), num_users=2, preference_size=8).configure_model()


def test_prompts_that_are_not_there_are_asked_for(model, batch):
    with pytest.raises(ValueError, match=r"set loader\.prompts=true"):
        model(version="B")(judged(batch()))


def test_ids_beyond_the_users_are_an_error(model, batch):
    module, data = model(), judged(batch())
    data["user_id"][0] = 4
    for call in (module, module.check_batch):
        with pytest.raises(ValueError, match=r"user_id must be in \[-1, 3\] for 4 users, got 4"):
            call(data)


def test_hyperparameters_are_plain_and_rebuild_the_module(llama):
    module = PAL(llama(), num_users=3, score="angle", norm_bound=2.0, projector="linear")
    again = PAL(**module.hparams)
    assert again.hparams == module.hparams
    assert "optimizer" not in module.hparams


# Users ---------------------------------------------------------------------------------------------------


def test_weights_can_be_read_and_written_and_nothing_else_changes(model):
    module = model(user_init="normal")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.set_weights(["2", "Ünal.7"], torch.tensor([[0.1, 0.9], [1.0, 0.0]]))
    assert module.users == ["0", "1", "2", "3", "Ünal.7"]
    written = module.weights_of(["Ünal.7", "2"])
    torch.testing.assert_close(written, torch.tensor([[1.0, 0.0], [0.1, 0.9]]), atol=2e-6, rtol=0)
    mean = module.table.logits.weight.detach().softmax(-1).mean(0)
    torch.testing.assert_close(module.weights_of(["nobody"])[0], mean)
    for name, value in module.state_dict().items():
        if name == "table.logits.weight":
            assert torch.equal(value[[0, 1, 3]], before[name][[0, 1, 3]])
        elif name != "table._extra_state":  # the names
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("users", "weights", "message"),
    [
        (["0", "0"], [[0.5, 0.5]] * 2, "users must be different; got 2 names, 1 different ones"),
        (["0"], [[0.5, 0.5]] * 2, r"weights must have shape \(1, 2\).*got \(2, 2\)"),
        (["0"], [[0.5, 0.4]], "weights must be >= 0 and sum to 1 in every row"),
        (["0"], [[1.5, -0.5]], "weights must be >= 0 and sum to 1"),
        (["0"], [[math.nan, 1.0]], "weights must be >= 0 and sum to 1"),
    ],
)
def test_weights_that_do_not_fit(model, users, weights, message):
    with pytest.raises(ValueError, match=message):
        model().set_weights(users, torch.tensor(weights))


def test_effective_prototypes_are_the_exponential_of_the_entropy(model):
    module = model(num_prototypes=3)
    assert float(module.effective_prototypes()) == pytest.approx(3.0)
    module.set_weights(list("0123"), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]]))
    assert float(module.effective_prototypes()) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s.values()))
def test_adapting_finds_new_users_and_leaves_all_else_bit_for_bit(model, batch, settings):
    """Labels by a user at the first prototype and by one at the second."""
    data = by_feature(batch((12,) * 4))
    count = len(data["comparisons"])
    module = model(frozen=True, projector="linear", preference_size=6, **settings)
    network = module.network
    for parameter in (
        network.prompt_projectors.parameters() if settings["version"] == "B" else [network.prototypes]
    ):
        parameter.data[0] *= 8
        parameter.data[1] = -parameter.data[0]  # as far apart as can be
    before = copy.deepcopy(module.state_dict())
    gap = module.eval()(data)["basis"].rewards[data["comparisons"]].diff(dim=1)[:, 0].detach()
    module.train()
    data["user_id"] = torch.arange(count) % 2 + 1
    data["preference"] = (gap[torch.arange(count), data["user_id"] - 1] < 0).float()
    weights = module.adapt(data, ["nobody", "first", "second"], prior_strength=0.01)
    assert weights.tolist()[0] == [0.5, 0.5]
    assert float(weights[1, 0]) > 0.52 and float(weights[2, 1]) > 0.52  # any majority has the same angle
    assert module.users == [*"0123", "first", "second"]
    assert module.training
    torch.testing.assert_close(module.weights_of(["first", "second"]), weights[1:], atol=2e-6, rtol=0)
    after = module.state_dict()
    assert torch.equal(after["table.logits.weight"][:4], before.pop("table.logits.weight"))
    del before["table._extra_state"]  # the names
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert all(parameter.grad is None for parameter in module.parameters())


def test_adapting_takes_one_user_without_ids_and_several_batches(model, batch):
    module = model(score="squared_distance", frozen=True)
    parts = [by_feature(batch((3, 3), seed=seed)) for seed in range(3)]
    several = module.adapt(parts, ["Ada"])
    assert module.users[-1] == "Ada" and several.shape == (1, 2)
    users = [*module.users, "Bo"]
    for part in parts:
        part["user_id"] = torch.full((4,), 5)
    torch.testing.assert_close(
        module.adapt(iter(parts), users)[5], module.weights_of(["Bo"])[0], atol=2e-6, rtol=0
    )
    table = module.table
    table.match(users)
    torch.testing.assert_close(module.adapt(parts)[5:], module.weights_of(["Bo"]), atol=2e-6, rtol=0)


def two_camps():
    """A table in which most like the first prototype, and one answer of a new user for what the second stands for."""
    module = fixture(score="squared_distance", num_users=10)
    module.set_weights([str(i) for i in range(10)], torch.tensor([[0.95, 0.05]] * 7 + [[0.05, 0.95]] * 3))
    return module, pairs(2 * RIGHT, LEFT, user_id=torch.tensor([10]))


def test_users_who_are_named_without_an_answer_stay_peers():
    alone, answer = two_camps()
    expected = alone.adapt({**answer, "user_id": torch.tensor([0])}, ["new"])[0]
    named, answer = two_camps()
    before = named.weights_of(named.users)
    torch.testing.assert_close(named.adapt(answer, [*named.users, "new"])[10], expected)
    assert torch.equal(named.weights_of(named.users[:10]), before), "and keep their weights"
    without, answer = two_camps()
    own = without.adapt(answer, [*without.users, "new"], peers=False)[10]
    assert float((own - expected).abs().max()) > 0.005, "peers have a say"


def test_who_is_fitted_again_is_compared_with_others_alone():
    module, answer = two_camps()
    users = [*module.users, "new"]
    first = module.adapt(answer, users)[10]
    torch.testing.assert_close(module.adapt(answer, users)[10], first)
    module, answer = two_camps()
    answer["user_id"] = torch.tensor([9])
    again = module.adapt(answer, module.users)[9]
    rest = fixture(score="squared_distance", num_users=9)
    rest.set_weights([str(i) for i in range(9)], module.weights_of([str(i) for i in range(9)]))
    answer["user_id"] = torch.tensor([0])
    torch.testing.assert_close(again, rest.adapt(answer, ["9"])[0], atol=1e-6, rtol=0)


def test_nobody_left_to_compare_with_is_said():
    module = fixture(score="squared_distance")
    answers = pairs(RIGHT.repeat(2, 1), LEFT.repeat(2, 1), user_id=torch.arange(2))
    with pytest.warns(UserWarning, match="everybody whom the model knows is fitted anew"):
        module.adapt(answers, module.users)
    module.adapt(answers, module.users, peers=False)


def test_what_adapting_needs(model, batch):
    module, data = model(frozen=True), by_feature(batch())
    with pytest.raises(ValueError, match=r"give users, such as data\.users"):
        module.adapt(data)
    with pytest.raises(ValueError, match="the batch has no user_id, so adapt needs one user; got 2"):
        module.adapt(data, ["a", "b"])
    with pytest.raises(ValueError, match=r"user_id must be in \[0, 0\] for 1 users, got -1"):
        module.adapt({**data, "user_id": torch.tensor([0, -1, 0])}, ["a"])
    empty = {name: data[name][:0] for name in ("comparisons", "preference")}
    with pytest.raises(ValueError, match="have no comparisons"):
        module.adapt({**data, **empty}, ["a"])
    with pytest.raises(ValueError, match="adapt needs batches with comparisons; this one has"):
        module.adapt({name: value for name, value in data.items() if name != "comparisons"}, ["a"])
    with pytest.raises(ValueError, match="users must name at least one user"):
        module.user_reward_module([])
    assert module.users == [*"0123"] and module.training


# With a trainer ------------------------------------------------------------------------------------------


def crowd(cls=SyntheticDataModule, **settings):
    users = settings.pop("users", UserProtocol())
    loader = LoaderConfig(batch_size=4, prompts=settings.pop("prompts", False), users=users)
    sizes = {"num_train": 24, "num_validation": 9, "num_test": 9, "num_predict": 4, "num_users": 6}
    return cls(**{**sizes, **settings}, loader=loader)


def trainer(tmp_path, **settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(
        default_root_dir=tmp_path, **{**quiet, "max_epochs": 1, "log_every_n_steps": 1, **settings}
    )


def pal(**settings):
    return PAL(BackboneConfig(config=TINY), **{"user_lr": 0.5, "score": "angle", **settings})


class Reversed(SyntheticDataModule):
    """The same judgements with users in another order."""

    def setup(self, stage=None):
        super().setup(stage)
        self.users = ["somebody else", *self.users[::-1]]


def test_names_of_any_kind_travel_with_the_weights(model, llama, tmp_path):
    module = model(user_init="normal")
    module.table.assign(["a.b.c", "ユーザー 7", "12", "", '\\ "quoted"'])
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    again = PAL(llama())
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert again.users == module.users
    assert torch.equal(again.weights_of(["12"]), module.weights_of(["12"]))


@pytest.fixture
def fitted(tmp_path):
    module, data = pal(), crowd()
    run = trainer(tmp_path)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    return module, run, tmp_path / "model.ckpt"


def test_users_come_from_the_data_and_return_with_the_checkpoint(tmp_path, fitted):
    module, run, path = fitted
    assert sorted(module.users) == [f"user{i}" for i in range(6)]
    assert module.users == run.datamodule.users[: run.datamodule.num_training_users]
    assert len(module.table.logits.weight.unique(dim=0)) == 6, "every user has moved, each elsewhere"
    content = torch.load(path, weights_only=True)
    assert bytes(content["state_dict"]["table._extra_state"].tolist()).decode() == json.dumps(module.users)
    again = PAL.load_from_checkpoint(path, weights_only=True)
    assert again.users == module.users
    for name, value in again.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    rewards = [
        torch.cat([batch["reward"] for batch in trainer(tmp_path).predict(one, crowd())])
        for one in (module, again)
    ]
    assert torch.equal(*rewards) and len(rewards[0]) == 16
    assert [name for name in run.callback_metrics if name == "val/accuracy"]


def test_users_are_found_by_name_whatever_their_order(tmp_path, fitted):
    _, run, path = fitted
    results = []
    for data in (crowd(), crowd(Reversed)):
        module = PAL.load_from_checkpoint(path, weights_only=True)
        results.append(trainer(tmp_path).validate(module, data, verbose=False)[0])
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    assert results[0]["val/log_loss"] == pytest.approx(float(run.callback_metrics["val/log_loss"]), rel=1e-6)


def test_a_checkpoint_of_fewer_users_fits_data_of_more(tmp_path, fitted):
    module, _, path = fitted
    fresh = pal()
    found = trainer(tmp_path).test(
        fresh, crowd(num_users=9), ckpt_path=path, weights_only=True, verbose=False
    )
    assert fresh.users == module.users
    assert math.isfinite(found[0]["test/log_loss"])
    strict = PAL.load_from_checkpoint(path, weights_only=True, unknown_users="error")
    with pytest.raises(ValueError, match=r"the model has no weights for 'user[678]'"):
        trainer(tmp_path).test(strict, crowd(num_users=9), verbose=False)


def test_fit_goes_on_with_the_same_users_and_with_no_others(tmp_path, fitted):
    module, _, path = fitted
    run = trainer(tmp_path, max_epochs=2)
    again = pal()
    run.fit(again, crowd(), ckpt_path=path, weights_only=True)
    assert again.users == module.users and run.global_step == 12
    warm = PAL.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(
        ValueError, match=r"3 users of the training split have no weights in this model \(first: 'user"
    ):
        trainer(tmp_path).fit(warm, crowd(num_users=9))
    warm = PAL.load_from_checkpoint(path, weights_only=True)
    warm.set_weights(["user6", "user7", "user8"], torch.full((3, 2), 0.5))
    trainer(tmp_path).fit(warm, crowd(num_users=9))
    assert len(warm.users) == 9 and len(warm.table.logits.weight.unique(dim=0)) == 9


def test_a_run_that_goes_on_with_other_users_is_refused(tmp_path):
    run = trainer(tmp_path)
    run.fit(pal(), crowd(users=UserProtocol(unseen=("user1", "user4"))))
    path = str(tmp_path / "divided.ckpt")
    run.save_checkpoint(path)
    with pytest.raises(ValueError, match="users of the training split have no weights in this model"):
        trainer(tmp_path, max_epochs=2).fit(pal(), crowd(), ckpt_path=path, weights_only=True)


def test_users_cannot_be_added_while_an_optimizer_holds_the_table(tmp_path):
    class Adds(PAL):
        def on_train_batch_start(self, batch, batch_idx):
            self.set_weights([self.users[0]], torch.tensor([[0.5, 0.5]]))
            self.set_weights(["new"], torch.tensor([[0.5, 0.5]]))

    with pytest.raises(RuntimeError, match="users cannot be added during fit"):
        trainer(tmp_path).fit(Adds(BackboneConfig(config=TINY)), crowd())


def test_data_without_judges_need_a_number_of_users(tmp_path):
    with pytest.raises(ValueError, match="nothing says who the users are"):
        trainer(tmp_path).fit(pal(), crowd(judgements="crowd", num_users=8))
    trainer(tmp_path, max_steps=2).fit(pal(num_prototypes=1), crowd(judgements="crowd", num_users=8))


def test_a_checkpoint_scores_data_that_name_no_users_or_too_few(tmp_path, fitted):
    module, _, path = fitted
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
    data = LocalDataModule(
        predict=str(tmp_path / "answers.jsonl"), text=crowd().text, cache_dir=str(tmp_path / "cache")
    )
    fresh = pal()
    (batch,) = trainer(tmp_path).predict(fresh, data, ckpt_path=path, weights_only=True)
    assert fresh.users == module.users and batch["reward"].isfinite().all()
    few = pal()
    trainer(tmp_path).test(
        few, crowd(num_users=1, num_groups=1), ckpt_path=path, weights_only=True, verbose=False
    )
    assert few.users == module.users
    with pytest.raises(RuntimeError, match="nothing says who the users are"):
        trainer(tmp_path).predict(pal(), data)


def test_three_lines_adapt_to_new_users(tmp_path, fitted):
    _, _, path = fitted
    module, data = PAL.load_from_checkpoint(path, weights_only=True), crowd(num_users=9)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    batch = take_comparisons(batch, batch["user_id"] >= 6)  # of those that the fit has not seen
    model = module
    model.adapt(batch, data.users)
    reward = model.user_reward_module(data.users[-1])
    assert len(module.users) == 9
    assert reward(batch).shape == batch["response_row"].shape


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_version_b_reads_prompts_apart(tmp_path, precision):
    module = pal(version="B")
    run = trainer(tmp_path, precision=precision)
    run.fit(module, crowd(prompts=True))
    assert bool(torch.isfinite(run.callback_metrics["val/log_loss"]))
    rewards = torch.cat([batch["reward"] for batch in run.predict(module, crowd(prompts=True))])
    assert rewards.dtype == torch.float32 and len(rewards.unique()) > 12


@pytest.mark.slow
def test_spawned_processes_hand_users_and_weights_back(tmp_path):
    module = pal()
    run = trainer(tmp_path, strategy="ddp_spawn", devices=2)
    run.fit(module, crowd())
    content = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert sorted(module.users) == [f"user{i}" for i in range(6)]
    for name, value in module.state_dict().items():
        assert torch.equal(value, content["state_dict"][name]), name


# What it is for ------------------------------------------------------------------------------------------


def two_tastes(num_users, judgements, seed):
    """Users 0..6 of ten like one direction, the others its opposite; every pair differs in it."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, num_users * judgements, 8, generator=generator)
    user = torch.arange(num_users * judgements) % num_users
    wins = torch.where(user % 10 < 7, 1.0, -1.0) * (first - second)[:, 0] > 0
    chosen = torch.where(wins.unsqueeze(1), first, second)
    rejected = torch.where(wins.unsqueeze(1), second, first)
    return pairs(chosen, rejected, user_id=user)


@pytest.mark.parametrize("score", ["distance", "squared_distance", "angle"])
def test_two_prototypes_find_two_opposite_tastes_and_one_cannot(score):
    accuracy, modules = {}, {}
    train, held_out = two_tastes(10, 200, 0), two_tastes(10, 200, 1)
    for k in (1, 2):
        torch.manual_seed(0)
        module = on_features(8, num_prototypes=k, num_users=10, score=score, projector="linear")
        optimizer = torch.optim.AdamW([{**group, "lr": 3e-2} for group in module.parameter_groups()])
        for _ in range(120):
            optimizer.zero_grad()
            module.compute_loss(module(train), train).backward()
            optimizer.step()
        with torch.no_grad():
            output = module.eval()(held_out)
        accuracy[k], modules[k] = float((output["chosen"] > output["rejected"]).float().mean()), module
    assert 0.6 < accuracy[1] < 0.72 and accuracy[2] > (0.92 if score == "angle" else 0.97), accuracy
    weights = modules[2].weights_of([str(i) for i in range(10)])
    most = weights.argmax(-1)
    assert float(weights.amax(-1).min()) > (0.7 if score == "angle" else 0.9)
    assert len(set(most[:7].tolist())) == len(set(most[7:].tolist())) == 1 and most[0] != most[9]
    few = two_tastes(10, 10, 2)
    adapted = modules[2].adapt(few, [f"new {i}" for i in range(10)], prior_strength=0.1)
    assert int((adapted.argmax(-1) == most).sum()) >= (9 if score == "angle" else 10)


# Requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "squared_distance"},
        {"score": "distance"},
        {"score": "angle"},
        {"score": "distance", "version": "B"},
        {"score": "squared_distance", "mix": "f(Pw)"},
    ],
    ids=str,
)
def test_a_request_has_the_reward_of_its_user(llama, batch, settings):
    model = PAL(llama(), num_prototypes=3, num_users=4, user_init="normal", **settings)
    model.configure_model()
    model.eval()
    data = batch((2, 3, 1), prompts=settings.get("version") == "B")
    asking = {
        **data,
        "request_response": torch.tensor([5, 0, 0, 3, 2]),
        "request_prompt": torch.tensor([0, 0, 0, 1, 2]),
        "request_index": torch.zeros(5, dtype=torch.int64),
        "request_user_id": torch.tensor([2, 0, 3, -1, 1]),
    }
    with torch.no_grad():
        output = model(asking)
        rewards = {user: model.user_reward_module(str(user))(data) for user in range(4)}
    assert output["personal"].tolist() == [True, True, True, False, True]
    for n, (response, user) in enumerate(((5, 2), (0, 0), (0, 3), (3, None), (2, 1))):
        expected = output["reward"][response] if user is None else rewards[user][response]
        torch.testing.assert_close(output["requested"][n], expected, atol=1e-5, rtol=1e-5)
    assert float(output["requested"][3]) == float(output["reward"][3]), "to the last bit"
    assert "requested" not in model.train()(asking), "training asks for nobody's reward of a response"


def test_one_prototype_has_one_reward_for_everybody(llama, batch):
    model = PAL(llama(), num_prototypes=1)
    model.configure_model()
    data = {**batch(), "request_user_id": torch.zeros(6, dtype=torch.int64)}
    with pytest.warns(UserWarning, match="rows to predict have user, which PAL does not read"):
        output = model.eval().predict_step(data, 0)
    assert torch.equal(output["requested"], output["reward"]) and not output["personal"].any()
