import math

import lightning as L
import pytest
import torch

from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig


@pytest.fixture
def model(llama):
    def build(**settings):
        backbone = {
            name: settings.pop(name) for name in list(settings) if name in BackboneConfig.__dataclass_fields__
        }
        module = BradleyTerryRM(llama(**backbone), **settings)
        module.configure_model()
        return module

    return build


def test_loss_of_one_batch_is_the_written_out_formula(model, batch):
    module, data = model(label_smoothing=0.1, reward_centering=0.01), batch()
    data["margin"] = torch.tensor([0.5, 0.0, -0.2])
    data["weight"] = torch.tensor([1.0, 2.0, 0.5])
    output = module(data)
    output = {name: value.detach() for name, value in output.items()}
    total = weights = 0.0
    for p, (i, j) in enumerate(data["comparisons"].tolist()):
        r_i, r_j = float(output["reward"][i]), float(output["reward"][j])
        share = 0.9 * float(data["preference"][p]) + 0.1 * (1 - float(data["preference"][p]))
        m = r_i - r_j - float(data["margin"][p])
        # the margin is asked of the chosen side; seen from the other side it is asked the other way round
        loss = -share * math.log(1 / (1 + math.exp(-m))) - (1 - share) * math.log(1 / (1 + math.exp(m)))
        total += float(data["weight"][p]) * loss
        weights += float(data["weight"][p])
        total += float(data["weight"][p]) * 0.01 * (r_i + r_j) ** 2  # of the same mean
    assert float(module.compute_loss(output, data)) == pytest.approx(total / weights, rel=1e-5)


def test_rewards_are_read_by_index_and_float32(model, batch):
    module, data = model(dtype="bfloat16"), batch()
    output = module(data)
    assert output["reward"].shape == (6,)
    assert {value.dtype for value in output.values()} == {torch.float32}
    assert torch.equal(output["chosen"], output["reward"][data["comparisons"][:, 0]])
    assert torch.equal(output["rejected"], output["reward"][data["comparisons"][:, 1]])


def test_every_trained_parameter_moves_and_no_frozen_one(model, batch):
    module, data = model(lora=LoRAConfig(rank=2)), batch((2, 3, 2, 4))
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for _ in range(2):  # LoRA's A moves once B is no longer zero
        optimizer.zero_grad()
        module.compute_loss(module(data), data).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("settings", [{}, {"layout": "separate"}])
def test_overfits_a_few_pairs(model, batch, settings):
    module, data = model(**settings), batch((2,) * 8)
    data["preference"] = torch.ones_like(data["preference"])
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        optimizer.step()
    assert bool((output["chosen"] > output["rejected"] + 1).all())


def test_layouts_give_equal_rewards_and_gradients(model, batch):
    module = model()
    gradients = []
    for layout in ("shared", "separate"):
        data = batch((2, 4, 1), layout=layout)
        module.zero_grad()
        output = module(data)
        module.compute_loss(output, data).backward()
        gradients.append(
            [output["reward"].detach(), *(parameter.grad.clone() for parameter in module.parameters())]
        )
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_scores_responses_without_comparisons(model, batch):
    data = batch((1, 1))
    assert "comparisons" not in data
    assert set(model()(data)) == {"reward"}


@pytest.mark.parametrize("settings", [{"label_smoothing": 1.5}, {"reward_centering": -1}])
def test_settings_out_of_range(llama, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        BradleyTerryRM(llama(), **settings)


def test_building_needs_no_weights_until_asked(llama, batch):
    module = BradleyTerryRM(llama())
    assert module.backbone is None and module.layout is None
    with pytest.raises(RuntimeError, match="configure_model"):
        module(batch())
    assert isinstance(module, L.LightningModule)


def test_hyperparameters_are_plain_and_rebuild_the_module(llama):
    module = BradleyTerryRM(llama(lora=LoRAConfig(rank=3)), label_smoothing=0.2)
    again = BradleyTerryRM(**module.hparams)
    assert again.backbone_config == module.backbone_config
    assert again.label_smoothing == 0.2
    assert "optimizer" not in module.hparams
