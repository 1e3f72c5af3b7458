"""DoRA and stabilised ranks: what they compute, where they start, what they refuse, and gradients with recomputation."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from pluralign.models import Backbone, BackboneConfig, BradleyTerryRM, EnsembleVoteRM, LoRAConfig
from pluralign.models.backbone import merged_weight, start_magnitudes
from pluralign.tests.models.backbone.test_adapters import NETWORKS

PLAIN = LoRAConfig(rank=3, alpha=3.0)
DORA = LoRAConfig(rank=2, alpha=4.0, weight_decomposed=True)
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "bert": ["query"]}


@torch.no_grad()
def changed(module):
    """Adapters with an effect, lengths of rows included."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3, generator=generator)
        elif "lora_magnitude" in name:
            parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=generator))
    return module


def backbone(network="llama", lora=DORA, **settings):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(config=NETWORKS[network], lora=lora, **settings))


def layers(module):
    return [part for part in module.modules() if isinstance(part, LoraLayer)]


@pytest.mark.parametrize("network", ["llama", "gpt2"])
def test_a_row_has_its_trained_length_and_the_direction_of_base_and_update(network):
    """The published formula, in float64, on every adapted layer; GPT-2 keeps its weights the other way round."""
    module = changed(backbone(network))
    for layer in layers(module):
        weight, first, second = (
            each.weight.detach().double()
            for each in (layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"])
        )
        weight = weight.T if network == "gpt2" else weight
        moved = weight + 4.0 / 2 * second @ first
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
        expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
        inputs = torch.randn(5, weight.shape[1])
        bias = getattr(layer.get_base_layer(), "bias", None)
        outputs = inputs.double() @ expected.T + (0 if bias is None else bias.detach().double())
        torch.testing.assert_close(layer(inputs).double(), outputs, atol=1e-5, rtol=1e-5)
        merged = merged_weight(layer, ["default", "none"])
        merged = merged.T if network == "gpt2" else merged
        torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decomposed", [False, True], ids=["lora", "dora"])
def test_adapted_embeddings_are_merged_begin_anew_and_measured(decomposed):
    shape = LoRAConfig(rank=2, weight_decomposed=decomposed, target_modules=["q_proj", "embed_tokens"])
    module = backbone("llama", None)
    module.add_adapters(["upper"], shape)
    adapters, ids = module.adapters, torch.arange(50)
    embeddings = module.model.get_base_model().embed_tokens
    base = embeddings.get_base_layer().weight.detach().clone()
    changed(module)
    with torch.no_grad():
        embeddings.lora_embedding_A["upper"].normal_(generator=torch.Generator().manual_seed(1))
        adapters.switch("upper")
        found = embeddings(ids)
        assert not torch.allclose(found, base[ids], atol=0.1)
        torch.testing.assert_close(merged_weight(embeddings, ["upper"])[ids], found, atol=1e-5, rtol=1e-5)
        adapters.reset("upper", torch.Generator().manual_seed(0))
        torch.testing.assert_close(embeddings(ids), base[ids], atol=1e-6, rtol=1e-5)
        assert embeddings.lora_embedding_B["upper"].any()
        embeddings.get_base_layer().weight.mul_(2)
        start_magnitudes(module)
        torch.testing.assert_close(embeddings(ids), 2 * base[ids], atol=1e-6, rtol=1e-5)


def test_the_update_shrinks_with_the_root_of_a_stabilised_rank():
    plain, stable = (
        layers(backbone(lora=LoRAConfig(rank=16, alpha=8.0, rank_stabilized=s)))[0] for s in (False, True)
    )
    assert (plain.scaling["default"], stable.scaling["default"]) == (0.5, 2.0)


@pytest.mark.parametrize("network", ["llama", "gpt2", "bert"])
def test_it_begins_as_the_base_and_trains_lengths_and_factors(network, batch):
    shape = LoRAConfig(rank=2, weight_decomposed=True, target_modules=TARGETS[network], last_layers=1)
    module, data = backbone(network, shape), batch()
    base = backbone(network, None)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(data), base.eval()(data), atol=1e-5, rtol=1e-5)
    changed(module).train()(data).square().sum().backward()
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    kinds = {name.split("lora_")[-1].split(".")[0] for name in trained}
    assert kinds == {"A", "B", "magnitude_vector"}
    assert all(bool(each.grad.abs().sum() > 0) for each in trained.values())
    assert {each.dtype for each in trained.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("decomposed", [False, True], ids=["lora", "dora"])
def test_gradients_are_the_same_where_activations_are_recomputed(decomposed, dtype, batch):
    data, grads = batch(), []
    for recompute in (False, True):
        torch.manual_seed(1)
        module = BradleyTerryRM(
            BackboneConfig(
                config=NETWORKS["llama"],
                dtype=dtype,
                lora=LoRAConfig(rank=2, weight_decomposed=decomposed),
                gradient_checkpointing=recompute,
            )
        )
        module.configure_model()
        output = changed(module).train()(data)
        assert output["reward"].dtype == torch.float32 and module.head.weight.dtype == torch.float32
        module.compute_loss(output, data).backward()
        grads.append({name: each.grad for name, each in module.named_parameters() if each.requires_grad})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, grad in grads[0].items():
        assert grad.dtype == torch.float32 and bool(grad.any()), name
        torch.testing.assert_close(grads[1][name], grad, atol=0, rtol=0)


# Several adapters ------------------------------------------------------------------------------------------


def test_members_of_an_ensemble_begin_as_the_base_and_alike_on_every_machine(batch):
    data = batch()
    module = EnsembleVoteRM(
        BackboneConfig(config=NETWORKS["llama"]), num_members=2, members="lora", lora=DORA, resample="none"
    )
    torch.manual_seed(0)
    module.configure_model()
    adapters = module.backbone.adapters
    with torch.no_grad():
        states = module.backbone.eval().pooled_with(data, [None, *adapters.names])
        torch.testing.assert_close(states[1:], states[:1].expand_as(states[1:]), atol=1e-5, rtol=1e-5)
        before = {name: each.clone() for name, each in module.named_parameters() if "lora_" in name}
        changed(module)
        assert not torch.equal(*module.backbone.pooled_with(data, adapters.names))
        for number, name in enumerate(adapters.names):
            adapters.reset(name, torch.Generator().manual_seed(number))
        for name, each in module.named_parameters():
            if "lora_magnitude" in name:
                torch.testing.assert_close(each, before[name], atol=0, rtol=0)
            elif "lora_B" in name:
                assert not each.any()
    trained = {name for name, each in module.named_parameters() if each.requires_grad}
    assert sum("lora_magnitude" in name for name in trained) == 2 * len(layers(module))


@pytest.mark.parametrize("beneath", [PLAIN, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("above", [PLAIN, DORA], ids=["lora", "dora"])
def test_one_adapter_above_another_is_the_merged_network(above, beneath, batch):
    data = batch()
    module = backbone("llama", beneath)
    module.add_adapters(["upper"], above)
    changed(module).eval()
    with torch.no_grad():
        (expected,) = module.pooled_with(data, ["upper"])
        plain = backbone("llama", None).eval()
        merged = {
            name: merged_weight(part, ["default", "upper"])
            for name, part in module.model.get_base_model().named_modules()
            if isinstance(part, LoraLayer)
        }
        for name, weight in merged.items():
            plain.model.get_submodule(name).weight.copy_(weight)
        torch.testing.assert_close(plain(data), expected, atol=1e-5, rtol=1e-5)


def test_dora_with_dropout_is_refused_above_another_adapter():
    shape = LoRAConfig(rank=2, weight_decomposed=True, dropout=0.1)
    backbone("llama", None).add_adapters(["upper"], shape)  # alone it is well
    with pytest.raises(
        ValueError, match=r"weight_decomposed=true with dropout=0\.1 above the adapter of back"
    ):
        backbone("llama").add_adapters(["upper"], shape)


# Weights from elsewhere ------------------------------------------------------------------------------------


def test_new_lengths_are_those_of_the_weights_that_a_run_starts_from(tmp_path, batch):
    """They were measured on the base, before another run's weights came in."""
    torch.manual_seed(1)
    general = EnsembleVoteRM(BackboneConfig(config=NETWORKS["llama"]), num_members=2, resample="none")
    general.configure_model()
    with torch.no_grad():
        for parameter in general.backbone.parameters():
            parameter.mul_(1.5)
    path = tmp_path / "general.ckpt"
    state = {"state_dict": general.state_dict(), "hyper_parameters": dict(general.hparams)}
    torch.save({**state, "pluralign": {}, "pytorch-lightning_version": "2.6.1"}, path)
    torch.manual_seed(2)
    module = EnsembleVoteRM(
        BackboneConfig(config=NETWORKS["llama"]),
        num_members=2,
        members="lora",
        lora=DORA,
        resample="none",
        init_from=str(path),
    )
    module.configure_model()
    with torch.no_grad():
        expected = general.backbone.eval()(batch())
        for states in module.backbone.eval().pooled_with(batch(), module.backbone.adapters.names):
            torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_lengths_that_were_loaded_stay():
    module = changed(backbone())
    before = {name: each.clone() for name, each in module.named_parameters() if "magnitude" in name}
    first, *others = before
    start_magnitudes(module, {first})
    after = dict(module.named_parameters())
    assert torch.equal(after[first], before[first])
    assert not any(torch.equal(after[name], before[name]) for name in others)


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        ({}, {"weight_decomposed": True}, r"lora\.weight_decomposed=False, and it is True here"),
        ({"weight_decomposed": True}, {}, r"lora\.weight_decomposed=True, and it is False here"),
        ({"rank_stabilized": True}, {}, r"lora\.rank_stabilized=True, and it is False here"),
    ],
)
def test_adapters_of_another_kind_are_refused_by_name(saved, now, message, tmp_path):
    config = {"config": NETWORKS["llama"]}
    module = BradleyTerryRM(BackboneConfig(**config, lora=LoRAConfig(rank=2, **saved)))
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    other = BradleyTerryRM(BackboneConfig(**config, lora=LoRAConfig(rank=2, **now)))
    with pytest.raises(ValueError, match=message):
        other.on_load_checkpoint(checkpoint)
    torch.save({**checkpoint, "pluralign": {}, "pytorch-lightning_version": "2.6.1"}, tmp_path / "a.ckpt")
    started = BradleyTerryRM(
        BackboneConfig(**config, lora=LoRAConfig(rank=2, **now)), init_from=str(tmp_path / "a.ckpt")
    )
    with pytest.raises(ValueError, match=message):
        started.configure_model()
