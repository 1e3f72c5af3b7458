import lightning as L
import pytest
import torch

from pluralign.losses import bradley_terry_loss
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM, LoRAConfig
from pluralign.models.backbone import packing
from pluralign.models.ensemble_vote.members import draws, left_out

LORA = {"members": "lora", "lora": LoRAConfig(rank=2, last_layers=1)}


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name)
            for name in list(settings)
            if name in BackboneConfig.__dataclass_fields__ and name != "lora"
        }
        module = EnsembleVoteRM(llama(**backbone), **{"num_members": 3, **settings})
        module.configure_model()
        return module

    return build


def loaded(*batches):
    return torch.utils.data.DataLoader(batches, batch_size=None, num_workers=0)


def gradients(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("settings", [{}, LORA], ids=["head", "lora"])
@pytest.mark.parametrize("combine", ["mean", "min", "lower_bound"])
def test_the_basis_are_the_members_and_the_reward_combines_them(model, batch, settings, combine):
    module, data = model(combine=combine, deviations=0.5, **settings).eval(), batch()
    output = module(data)
    rewards = output["basis"].rewards
    assert rewards.shape == (6, 3) and rewards.dtype == output["reward"].dtype == torch.float32
    assert output["basis"].names == ("member_0", "member_1", "member_2")
    assert output["basis"].title == "member_rewards" and output["basis"].linear == (combine == "mean")
    mean, deviation = rewards.mean(1), ((rewards - rewards.mean(1, keepdim=True)) ** 2).mean(1).sqrt()
    expected = {"mean": mean, "min": rewards.min(1).values, "lower_bound": mean - 0.5 * deviation}
    torch.testing.assert_close(output["reward"], expected[combine])
    assert torch.equal(output["chosen"], output["reward"][data["comparisons"][:, 0]])
    differences = module.member_differences(output, data)
    first, second = data["comparisons"].T
    torch.testing.assert_close(differences, rewards[first] - rewards[second])


@pytest.mark.parametrize("settings", [{}, LORA], ids=["head", "lora"])
@pytest.mark.parametrize("resample", ["none", "bootstrap"])
def test_the_loss_is_the_sum_of_those_that_members_would_have(model, batch, settings, resample):
    module, data = model(resample=resample, label_smoothing=0.1, **settings), batch((2, 3, 2, 4))
    data["weight"] = torch.rand(len(data["comparisons"])) + 0.5
    data["margin"] = torch.randn(len(data["comparisons"]))
    output = module(data)
    key = data["split_key"][data["response_prompt"][data["comparisons"][:, 0]]]
    drawn = draws(key, 3, resample, num_folds=3, seed=0)
    expected = 0.0
    for member in range(3):
        reward = output["basis"].rewards[:, member]
        chosen, rejected = reward[data["comparisons"]].unbind(1)
        each = bradley_terry_loss(
            chosen,
            rejected,
            preference=data["preference"],
            margin=data["margin"],
            label_smoothing=0.1,
            reduction="none",
        )
        expected = expected + (data["weight"] * drawn[:, member] * each).sum() / data["weight"].sum()
    torch.testing.assert_close(module.compute_loss(output, data), expected)


def test_in_validation_every_member_judges_all(model, batch):
    module, data = model(resample="bootstrap").eval(), batch((2, 3, 2, 4))
    output = module(data)
    same = model(resample="none").eval()
    same.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.compute_loss(output, data), same.compute_loss(same(data), data))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_every_parameter_of_every_adapter_has_the_gradient_of_a_run_of_its_own(
    model, llama, batch, checkpointing, monkeypatch
):
    monkeypatch.setattr(packing, "SMALL_PIECE", 0)
    module, data = model(**LORA, gradient_checkpointing=checkpointing), batch((2, 3, 2, 4))
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # at zero, lora_A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    module.compute_loss(module(data), data).backward()
    together = gradients(module)
    state = module.state_dict()
    for member in range(3):
        alone = BradleyTerryRM(llama(lora=LoRAConfig(rank=2, last_layers=1)))
        alone.configure_model()
        own = alone.state_dict()
        for name in own:
            if name.startswith("backbone."):
                own[name] = state[name.replace(".default.", f".member_{member}.")]
        own["head.weight"] = state["head.weight"][member : member + 1]
        alone.load_state_dict(own)
        key = data["split_key"][data["response_prompt"][data["comparisons"][:, 0]]]
        drawn = draws(key, 3, "bootstrap", num_folds=3, seed=0)[:, member]
        output = alone(data)
        loss = bradley_terry_loss(
            output["chosen"], output["rejected"], preference=data["preference"], reduction="none"
        )
        ((loss * drawn).sum() / len(loss)).backward()
        found = 0
        for name, gradient in gradients(alone).items():
            if gradient is None:
                continue
            if name == "head.weight":
                mine = together[name][member : member + 1]
            else:
                mine = together[name.replace(".default.", f".member_{member}.")]
            assert float(gradient.abs().max()) > 0, name
            torch.testing.assert_close(
                mine, gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
            found += 1
        assert found == 1 + 2 * 7  # the head, and two factors of each of the last layer's seven maps
    frozen = [name for name, gradient in together.items() if "member_" not in name and name != "head.weight"]
    assert all(together[name] is None for name in frozen)


def test_heads_have_the_gradient_of_runs_of_their_own_and_the_network_their_sum(model, batch):
    module, data = model(), batch((2, 3, 2, 4))
    module.compute_loss(module(data), data).backward()
    together = gradients(module)
    total = {name: torch.zeros_like(value) for name, value in together.items()}
    key = data["split_key"][data["response_prompt"][data["comparisons"][:, 0]]]
    for member in range(3):
        module.zero_grad()
        reward = module(data)["basis"].rewards[:, member]
        chosen, rejected = reward[data["comparisons"]].unbind(1)
        loss = bradley_terry_loss(chosen, rejected, preference=data["preference"], reduction="none")
        drawn = draws(key, 3, "bootstrap", num_folds=3, seed=0)[:, member]
        ((loss * drawn).sum() / len(loss)).backward()
        for name, value in gradients(module).items():
            total[name] += value
    for name, value in together.items():
        torch.testing.assert_close(value, total[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, LORA], ids=["head", "lora"])
def test_a_member_starts_alike_among_few_or_many_and_no_two_start_alike(model, settings):
    few, many = model(num_members=2, **settings), model(num_members=4, **settings)
    torch.testing.assert_close(few.head.weight, many.head.weight[:2], rtol=0, atol=0)
    assert len({tuple(row) for row in many.head.weight.tolist()}) == 4
    other, shifted = few.state_dict(), model(num_members=2, seed=1, **settings).state_dict()
    for name in [name for name in other if "member_" in name]:
        assert torch.equal(other[name], many.state_dict()[name]), name
        if "lora_A" in name and "member_0" in name:
            assert torch.equal(shifted[name], other[name.replace("member_0", "member_1")])
            assert not torch.equal(other[name], shifted[name])


def test_a_run_of_one_full_member_is_one_column(model, batch):
    whole, data = model(num_members=4), batch((2, 3, 2, 4))
    member = model(num_members=4, members="full", member=2)
    torch.testing.assert_close(member.head.weight, whole.head.weight[2:3], rtol=0, atol=0)
    output = member(data)
    assert output["basis"].rewards.shape == (11, 1) and output["basis"].names == ("member_2",)
    torch.testing.assert_close(output["reward"], output["basis"].rewards[:, 0])
    torch.testing.assert_close(member.member_weights(data), whole.member_weights(data)[:, 2:3])
    assert member.seen(data).shape == (7, 1)


def test_members_see_what_their_folds_leave_them(model, batch):
    data = batch((2,) * 40)
    module = model(num_members=6, num_folds=2, resample="folds", frozen=True)
    key = data["split_key"][data["response_prompt"][data["comparisons"][:, 0]]]
    out = left_out(key, 6, 2, 0)
    assert torch.equal(module.seen(data), ~out)
    assert torch.equal(module.member_weights(data) > 0, ~out)
    assert bool(module.eval().member_weights(data).eq(1).all())
    assert bool(model().seen(data).all())


def test_folds_of_heads_over_a_trained_network_are_warned_of(llama):
    with pytest.warns(UserWarning, match=r"the network that all share has learned.*backbone.frozen=true"):
        EnsembleVoteRM(llama(), resample="folds")
    EnsembleVoteRM(llama(frozen=True), resample="folds")


def test_dropout_has_a_mask_for_each_member(model, batch):
    module, data = model(dropout=0.5), batch()
    with torch.no_grad():
        module.head.weight.copy_(module.head.weight[:1].expand(3, -1).clone())
    first, second = module(data)["basis"].rewards, module(data)["basis"].rewards
    assert not torch.equal(first[:, 0], first[:, 1]) and not torch.equal(first, second)
    module.eval()
    rewards = module(data)["basis"].rewards
    assert torch.equal(rewards, module(data)["basis"].rewards)
    torch.testing.assert_close(rewards[:, 0], rewards[:, 1])


@pytest.mark.parametrize("settings", [{}, LORA], ids=["head", "lora"])
def test_every_trained_parameter_moves_and_no_other(model, batch, settings):
    module, data = model(**settings), batch((2, 3, 2, 4))
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        module.compute_loss(module(data), data).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize(
    "settings", [{}, {"members": "lora", "lora": LoRAConfig(rank=8)}], ids=["head", "lora"]
)
def test_every_member_overfits_eight_pairs(model, batch, settings):
    module, data = model(resample="none", **settings), batch((2,) * 8)
    data["preference"] = torch.ones_like(data["preference"])
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        optimizer.step()
    assert bool((module.member_differences(output, data) > 0.2).all())


def test_permuting_the_records_permutes_the_members_rewards(model, rows):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    module, records = model().eval(), rows((2, 3, 1))
    collate = PreferenceCollator()
    one, two = module(collate(records)), module(collate(records[::-1]))
    order = torch.tensor([5, 2, 3, 4, 0, 1])
    torch.testing.assert_close(one["basis"].rewards[order], two["basis"].rewards, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_members": 1}, "num_members must be at least 2.*got 1.*BradleyTerryRM"),
        ({"member": 0}, "members='full' and member go together"),
        ({"members": "full", "member": 3}, "member must be.*got 3"),
        ({"lora": {"rank": 2}}, "members='head' has none: set members=lora"),
        (
            {"num_members": 8, "resample": "folds"},
            "num_folds=3 leaves each prompt out of 2 members.*at least 3",
        ),
        ({"dropout": 1.0}, "dropout"),
        ({"resample": "jackknife"}, "resample"),
        ({"largest_correlation": 0.0}, "largest_correlation"),
        ({"num_folds": 1}, "num_folds"),
    ],
)
def test_settings_that_do_not_do(llama, settings, message):
    with pytest.raises(ValueError, match=message):
        EnsembleVoteRM(llama(), **{"num_members": 3, **settings})


def test_members_that_are_one_model_end_the_run(model, batch, trainer):
    module, data = model(dropout=0.0, resample="none"), batch((2, 3, 2, 4))
    loader = loaded(data)
    run = trainer(max_epochs=0)
    run.validate(module, loader, verbose=False)
    assert -1 <= float(run.callback_metrics["val/member_correlation"]) < 0.999
    assert float(run.callback_metrics["val/member_std"]) > 0
    with torch.no_grad():
        module.head.weight.copy_(module.head.weight[:1].expand(3, -1).clone())
    with pytest.raises(RuntimeError, match="they are one model"):
        trainer().validate(module, loader, verbose=False)
    module.largest_correlation = 1.0
    trainer().validate(module, loader, verbose=False)


def test_a_validation_without_comparisons_says_nothing_of_members(model, batch, trainer, rows):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    data = PreferenceCollator(present=["comparisons"])(rows((2, 3), pairs=False))
    run = trainer()
    run.validate(model(), loaded(data), verbose=False)
    assert "val/member_correlation" not in run.callback_metrics


def test_a_checkpoint_of_members_that_saw_other_data_is_refused(model, batch, trainer, tmp_path, llama):
    module, data = model(), batch((2, 3, 2, 4))
    run = trainer()
    run.fit(module, loaded(data), loaded(data))
    run.save_checkpoint(tmp_path / "members.ckpt")
    same = EnsembleVoteRM(llama(), num_members=3)
    trainer().validate(same, loaded(data), ckpt_path=tmp_path / "members.ckpt", verbose=False)
    torch.testing.assert_close(same.head.weight, module.head.weight)
    for name, value in {"seed": 1, "resample": "none", "num_folds": 2}.items():
        other = EnsembleVoteRM(llama(), **{"num_members": 3, name: value})
        with pytest.raises(ValueError, match=f"{name}: .* there, now {value}.*which member has seen what"):
            trainer().validate(other, loaded(data), ckpt_path=tmp_path / "members.ckpt", verbose=False)


def test_adapters_start_from_a_reward_model_without_them(llama, batch, trainer, tmp_path):
    general, data = BradleyTerryRM(llama()), batch((2, 3, 2, 4))
    run = trainer()
    run.fit(general, loaded(data), loaded(data))
    run.save_checkpoint(tmp_path / "general.ckpt")
    start = {"init_from": str(tmp_path / "general.ckpt"), "init_may_differ": ["head"]}
    module = EnsembleVoteRM(llama(), num_members=3, **LORA, **start)
    module.configure_model()
    pooled = module.backbone.pooled_with(data, ["member_0", "member_2"])
    torch.testing.assert_close(pooled[0], general.backbone(data))  # adapters are without effect at first
    torch.testing.assert_close(pooled[0], pooled[1])
    later = EnsembleVoteRM(llama(), num_members=3, **LORA)
    run = trainer()
    run.fit(module, loaded(data), loaded(data))
    run.save_checkpoint(tmp_path / "members.ckpt")
    trainer().validate(later, loaded(data), ckpt_path=tmp_path / "members.ckpt", verbose=False)
    torch.testing.assert_close(later.eval()(data)["basis"].rewards, module.eval()(data)["basis"].rewards)


def test_a_batch_that_does_not_name_prompts_is_refused(model, batch, trainer):
    data = batch()
    del data["split_key"]
    with pytest.raises(ValueError, match="split_key"):
        trainer().fit(model(), loaded(data), loaded(data))
    trainer().fit(model(resample="none"), loaded(data), loaded(data))


def test_hyperparameters_are_plain_and_rebuild_the_module(llama):
    module = EnsembleVoteRM(llama(), members="lora", seed=3)
    assert module.hparams["lora"] == {
        "rank": 8,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": None,
        "last_layers": 2,
        "weight_decomposed": False,
        "rank_stabilized": False,
    }
    again = EnsembleVoteRM(**module.hparams)
    assert again.lora == module.lora and again.num_members == 10 and again.seed == 3


@pytest.mark.slow
def test_two_processes_measure_what_one_does(model, batch, tmp_path):
    batches = [batch((2, 3, 2, 4), seed=seed) for seed in range(4)]
    values = []
    for devices in (1, 2):
        L.seed_everything(0, verbose=False)
        run = L.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp_spawn" if devices > 1 else "auto",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        values.append(run.validate(model(), loaded(*batches), verbose=False)[0])
    for name in ("val/member_correlation", "val/member_std", "val/loss"):
        assert values[0][name] == pytest.approx(values[1][name], rel=1e-5), name
