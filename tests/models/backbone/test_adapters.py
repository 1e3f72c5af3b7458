"""Several adapters over one network: equal to one network each, with the trunk run once, and in their gradients."""

import copy
import pickle

import numpy as np
import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import Backbone, BackboneConfig, LoRAConfig
from pluralign.models.backbone import network
from pluralign.models.backbone.lora import network_layers, renamed

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 64}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NETWORKS = {
    "llama": {**SIZES, "model_type": "llama"},
    "qwen3": {**SIZES, **GROUPED, "model_type": "qwen3"},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 64, "bos_token_id": 1,
             "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma3_text": {**SIZES, **GROUPED, "model_type": "gemma3_text"},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 4, "model_type": "mistral"},
    "bert": {**SIZES, **NO_DROPOUT, "model_type": "bert"},
    "electra": {**SIZES, **NO_DROPOUT, "embedding_size": 16, "model_type": "electra"},
}  # fmt: skip
FAMILIES = [
    pytest.param(name, marks=[] if name in ("llama", "gpt2", "bert") else pytest.mark.slow)
    for name in NETWORKS
]
NAMES = ["first", "second", "third"]


def filled(backbone):
    """Adapters with an effect, each with one of its own, the same whatever else is there."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_" in name:
                seed = sum(map(ord, name.replace("base_model.model.", "")))
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return backbone


def built(config, names=NAMES, last_layers=2, **settings):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(config=config, **settings))
    if names:
        backbone.add_adapters(names, LoRAConfig(rank=2, alpha=4.0, last_layers=last_layers))
    return filled(backbone)


def pooled(backbone, batch, adapters):
    with torch.no_grad():
        return backbone.eval().pooled_with(batch, adapters)


@pytest.fixture
def long_batch(rows):
    """Separate rows of such different lengths that they run in chunks."""
    records = rows((3, 3, 3, 3), seed=4)
    for i, record in enumerate(records[:2]):
        tokens, lengths = (
            np.concatenate([np.full(150, i + 1, dtype=np.int32), record.tokens]),
            record.lengths.copy(),
        )
        lengths[0] += 150
        records[i] = record._replace(tokens=tokens, lengths=lengths)
    return PreferenceCollator(layout="separate")(records)


@pytest.mark.parametrize("network", FAMILIES)
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_each_adapter_gives_what_it_gives_alone(network, layout, batch):
    data = batch((2, 3, 1), layout=layout)
    backbone = built(NETWORKS[network])
    assert backbone.adapters.trunk == 2
    together = pooled(backbone, data, [None, *NAMES])
    alone = [pooled(built(NETWORKS[network], [name], last_layers=2), data, [name])[0] for name in NAMES]
    plain = built(NETWORKS[network], []).eval()
    with torch.no_grad():
        assert torch.equal(together[0], plain(data)), "without adapters it is the network as it was"
        assert torch.equal(backbone(data), plain(data))
    for column, single in zip(together[1:], alone, strict=True):
        assert torch.equal(column, single)
    assert len({float(column.abs().sum()) for column in together}) == 4, "they differ"
    backwards = pooled(backbone, data, [*NAMES[::-1], None])
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # packed
        {"attention": "eager"},
        {"layout": "separate"},
        {"layout": "separate", "length_chunks": False},
        {"dtype": "bfloat16"},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_the_trunk_runs_once_whatever_the_rows(settings, batch, long_batch):
    backbone = built(NETWORKS["llama"], **settings)
    layers, calls = network_layers(backbone.model.get_base_model()), [0, 0, 0, 0]
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    for data in (batch((2, 3, 1)), long_batch):
        calls[:] = [0, 0, 0, 0]
        once = pooled(backbone, data, [None, *NAMES])
        passes = calls[0]
        assert calls == [passes, passes, 4 * passes, 4 * passes] and passes >= 1
        backbone.adapters.trunk = 0
        assert torch.equal(pooled(backbone, data, [None, *NAMES]), once)
        assert calls[0] == 5 * passes
        backbone.adapters.trunk = 2
        for output, states in zip(backbone.read_with(data, [None, *NAMES]), once, strict=True):
            torch.testing.assert_close(
                output.pooled, states, atol=0.05 if states.dtype == torch.bfloat16 else 1e-5, rtol=0
            )
            assert output.tokens.shape[:2] == output.rows["input_ids"].shape
    assert list(layers) == list(network_layers(backbone.model.get_base_model())) and not layers[0]._parameters


def test_adapters_in_all_layers_and_a_network_that_is_adapted_itself(batch):
    data = batch()
    config = NETWORKS["llama"]
    general = built(config, [], lora=LoRAConfig(rank=3, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        expected = general.eval()(data)
    for last_layers, trunk in ((None, 0), (4, 0), (1, 3)):
        backbone = built(
            config, last_layers=last_layers, lora=LoRAConfig(rank=3, target_modules=["q_proj", "down_proj"])
        )
        assert backbone.adapters.trunk == trunk
        together = pooled(backbone, data, [None, "second", "first"])
        assert torch.equal(together[0], expected), "the general adapter stays beneath"
        trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        assert trained and all(any(f".{name}." in key for name in NAMES) for key in trained)
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if ".default." in name:
                    parameter.zero_()
        assert not torch.equal(pooled(backbone, data, ["second"])[0], together[1])


def loss(states, number):
    """Something that the gradient of every state enters; sums of squares are constant after a normalisation."""
    weights = torch.linspace(-1, 1, states.numel()).view_as(states)
    return (states.float() * weights).sin().sum() * (number + 1)


def gradients(backbone, data, adapters):
    """Of each adapter's own loss, summed over those that are asked for, by parameter."""
    backbone.train().zero_grad()
    states = backbone.pooled_with(data, adapters)
    sum(loss(column, k) for k, column in enumerate(states)).backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("network", "last_layers"), [("llama", 2), ("llama", None), ("gpt2", 1), ("bert", 2)]
)
@pytest.mark.parametrize(
    "lora", [None, pytest.param(LoRAConfig(rank=3), marks=pytest.mark.slow)], ids=["plain", "adapted"]
)
def test_every_gradient_is_that_of_a_run_of_its_own(network, last_layers, lora, checkpointing, batch):
    data = batch((2, 3, 1))
    settings = {"lora": lora, "gradient_checkpointing": checkpointing}
    found = gradients(built(NETWORKS[network], last_layers=last_layers, **settings), data, NAMES)
    for k, name in enumerate(NAMES):
        single = built(NETWORKS[network], [name], last_layers=last_layers, lora=lora).train()
        loss(single.pooled_with(data, [name])[0], k).backward()
        own = {key: p.grad for key, p in single.named_parameters() if p.requires_grad}
        assert own and all(f".{name}." in key for key in own)
        for key, grad in own.items():
            assert float(grad.abs().max()) > 1e-5
            assert float((found[key] - grad).norm() / grad.norm()) < 1e-5, key
    assert all(grad is None for key, grad in found.items() if "lora_" not in key or ".default." in key)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_that_are_not_asked_for_have_no_gradient(checkpointing, batch):
    backbone = built(NETWORKS["llama"], gradient_checkpointing=checkpointing)
    found = gradients(backbone, batch(), [None, "second"])
    assert {key.split(".")[-2] for key, grad in found.items() if grad is not None} == {"second"}
    assert all(p.requires_grad for key, p in backbone.named_parameters() if ".first." in key)


def test_a_second_backward_pass_recomputes_under_the_same_adapter(batch):
    backbone = built(NETWORKS["llama"], gradient_checkpointing=True)
    states = backbone.pooled_with(batch(), NAMES)
    found = []
    for _ in range(2):
        backbone.zero_grad()
        loss(states, 0).backward(retain_graph=True)
        found.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True)) and backbone.adapters.current is None


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copy_switches_its_own_adapters(how, batch):
    # transformers puts a hook on networks with checkpointing that cannot be pickled.
    backbone = built(NETWORKS["llama"], gradient_checkpointing=how == "copied")
    again = copy.deepcopy(backbone) if how == "copied" else pickle.loads(pickle.dumps(backbone))
    assert torch.equal(pooled(again, batch(), NAMES), pooled(backbone, batch(), NAMES))
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            if "lora_B.first." in name:
                parameter.zero_()
    changed, kept = pooled(again, batch(), NAMES), pooled(backbone, batch(), NAMES)
    assert not torch.equal(changed[0], kept[0]) and torch.equal(changed[1:], kept[1:])
    for name, grad in gradients(again, batch(), NAMES).items():
        assert (grad is not None) == ("lora_" in name)


def test_a_frozen_network_may_carry_adapters(batch):
    backbone = built(NETWORKS["llama"], frozen=True)
    assert not backbone.frozen and backbone.train().training
    assert any(grad is not None for grad in gradients(backbone, batch(), NAMES).values())


def test_a_trunk_that_is_not_exact_is_run_by_each(batch, monkeypatch, caplog):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    original = LlamaDecoderLayer.forward

    def odd(self, hidden_states, *args, **kwargs):
        """Reads what is left by an earlier layer, beside its input."""
        output = original(self, hidden_states, *args, **kwargs)
        counted = self.self_attn.layer_idx == 0
        LlamaDecoderLayer.left = output if counted else LlamaDecoderLayer.left * 0.5
        return output + 0.1 * LlamaDecoderLayer.left

    monkeypatch.setattr(LlamaDecoderLayer, "left", 0.0, raising=False)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", odd)
    with caplog.at_level("INFO"):
        backbone = built(NETWORKS["llama"])
    assert backbone.adapters.trunk == 0
    assert "each adapter makes a pass of its own through all layers (it differs by" in caplog.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda each: each.add_adapters(["x"], LoRAConfig()), "has adapters already: first, second, third"),
        (lambda each: each.pooled_with({}, []), "allowed: at least one"),
        (
            lambda each: each.adapters.switch("fourth"),
            "no adapter 'fourth'; allowed: first, second, third, null",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message, batch):
    backbone = built(NETWORKS["llama"])
    backbone._passes = lambda _: (batch(), [[]])
    with pytest.raises(ValueError, match=message):
        call(backbone)


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (["a", "a"], LoRAConfig(), "names of their own; got a twice"),
        (["a"], LoRAConfig(last_layers=5), r"last_layers must be at most 4, the layers of this llama; got 5"),
        (
            ["a"],
            LoRAConfig(last_layers=1, target_modules=["query"]),
            "names query, and nothing in the last 1",
        ),
        (["default"], LoRAConfig(), "got default twice"),
    ],
)
def test_names_and_shapes_that_do_not_fit(names, shape, message):
    lora = LoRAConfig(rank=2) if names == ["default"] else None
    with pytest.raises(ValueError, match=message):
        Backbone(BackboneConfig(config=NETWORKS["llama"], lora=lora)).add_adapters(names, shape)


def test_no_adapters_were_added(batch):
    with pytest.raises(ValueError, match="allowed: none, for add_adapters was not called"):
        built(NETWORKS["llama"], []).pooled_with(batch(), [None])


# The last layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", FAMILIES)
def test_the_backbone_s_own_adapters_may_be_in_the_last_layers(network):
    config = BackboneConfig(config=NETWORKS[network], lora=LoRAConfig(rank=2, last_layers=1))
    backbone = Backbone(config)
    layers = network_layers(backbone.model.get_base_model())
    trained = {id(p) for p in backbone.parameters() if p.requires_grad}
    assert trained and trained <= {id(p) for p in layers[3].parameters()}
    whole = Backbone(BackboneConfig(config=NETWORKS[network], lora=LoRAConfig(rank=2)))
    everywhere = [name for name, p in whole.named_parameters() if p.requires_grad]
    top = [name for name in everywhere if ".3." in name]
    assert len(trained) == len(top), "the same parts of a layer as elsewhere"


def test_named_parts_of_the_last_layers():
    lora = LoRAConfig(rank=2, last_layers=2, target_modules=["q_proj", "mlp.down_proj"])
    backbone = Backbone(BackboneConfig(config=NETWORKS["llama"], lora=lora))
    trained = {name.split("layers.")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {
        f"{layer}.{part}.lora_{side}.default.weight"
        for layer in (2, 3)
        for part in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }


def test_layers_that_cannot_be_told_are_an_error():
    albert = {**SIZES, "model_type": "albert", "embedding_size": 16}
    lora = LoRAConfig(last_layers=1)
    with pytest.raises(
        ValueError, match="layers of albert cannot be told from its other parts: leave it null"
    ):
        Backbone(BackboneConfig(config=albert, lora=lora))
    with pytest.raises(ValueError, match=r"lora\.last_layers must be finite and >= 1; got 0"):
        LoRAConfig(last_layers=0)


# Names of weights --------------------------------------------------------------------------------------


def test_names_of_a_trained_network_are_found_in_one_with_adapters():
    ours = {
        "backbone.model.base_model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "backbone.model.base_model.model.layers.0.self_attn.q_proj.lora_A.first.weight",
        "backbone.model.base_model.model.norm.weight",
        "head.weight",
    }
    theirs = [
        "backbone.model.layers.0.self_attn.q_proj.weight",
        "backbone.model.norm.weight",
        "backbone.model.layers.9.self_attn.q_proj.weight",
        "head.weight",
    ]
    found = renamed(theirs, ours)
    assert found == {
        theirs[0]: "backbone.model.base_model.model.layers.0.self_attn.q_proj.base_layer.weight",
        theirs[1]: "backbone.model.base_model.model.norm.weight",
    }
    assert renamed(found.values(), theirs) == {here: there for there, here in found.items()}
    narrower = "backbone.model.base_model.model.layers.0.self_attn.q_proj.weight"
    assert renamed([narrower], ours) == {narrower: found[theirs[0]]}
    with pytest.raises(ValueError, match=r"two values for backbone\.model\.base_model\.model\.norm\.weight"):
        renamed([theirs[1], "backbone.model.base_model.model.norm.weight"], ours)


def test_places_of_rows_are_found_once_for_all_adapters(batch, monkeypatch):
    backbone, data, made = built(NETWORKS["llama"]), batch((2, 3, 1)), []
    find = network.packed_rows
    monkeypatch.setattr(
        network, "packed_rows", lambda *given, **named: made.append(1) or find(*given, **named)
    )
    ends, both = backbone.pooled_with(data, [None, *NAMES]), backbone.read_with(data, [None, *NAMES])
    assert len(made) == 2
    torch.testing.assert_close(ends, torch.stack([output.pooled for output in both]), atol=1e-5, rtol=0)
