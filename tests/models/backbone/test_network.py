import numpy as np
import pytest
import torch

from pluralign.models import Backbone, BackboneConfig, LoRAConfig, RewardHead
from pluralign.models.backbone.kinds import FULL_ATTENTION

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "gemma": {**SMALL, **GROUPED},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, **TOKENS},
    "gpt_neox": SMALL,
    "llama": SMALL,
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": None},
    "olmo2": {**SMALL, **TOKENS},
    "opt": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "phi3": {**SMALL, **TOKENS},
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, **GROUPED},
    "smollm3": {**SMALL, **TOKENS, "num_key_value_heads": 2},
}


def tiny(model_type, **settings):
    return BackboneConfig(config={"model_type": model_type, **CONFIGS.get(model_type, SMALL)}, **settings)


def states(backbone, data):
    backbone.eval()
    with torch.no_grad():
        return backbone(data)


def test_every_type_that_is_trusted_without_weights_is_tried_here():
    assert set(CONFIGS) == set(FULL_ATTENTION)
    for model_type, ends_alone in FULL_ATTENTION.items():
        assert (Backbone(tiny(model_type)).last_layer is not None) == ends_alone, model_type


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_shared_rows_equal_separate_rows(model_type, batch):
    backbone = Backbone(tiny(model_type))
    assert (backbone.layout, backbone.pooling, backbone.causal) == ("shared", "last", True)
    shared = states(backbone, batch((2, 3, 1, 5)))
    separate = states(backbone, batch((2, 3, 1, 5), layout="separate"))
    assert float((shared - separate).abs().max()) <= 1e-5


WINDOWED = {
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "gemma2": {**GROUPED, "sliding_window": 4},
    "gemma3_text": {**GROUPED, "sliding_window": 4},
    "qwen2": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "cohere2": {**TOKENS, "num_key_value_heads": 2, "sliding_window": 4},
    "olmo3": {**TOKENS, "sliding_window": 4},
    "gpt_oss": {**GROUPED, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
}
OTHERS = {
    "phi": {},
    "cohere": {"num_key_value_heads": 2, **TOKENS},
    "granite": {},
    "glm4": {**GROUPED, **TOKENS},
    "mixtral": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("model_type", sorted(WINDOWED | OTHERS))
def test_windows_caps_sinks_and_other_layers_run_packed_if_they_are_exact(model_type, batch):
    """Beside the network's own plainest attention, which alone has every cap and sink."""
    torch.manual_seed(0)
    config = {"model_type": model_type, **SMALL, **(WINDOWED | OTHERS)[model_type]}
    backbone = Backbone(BackboneConfig(config=config)).eval()
    assert backbone.layout == "shared" and backbone.last_layer is not None
    data, apart = batch((2, 4, 1), seed=3), batch((2, 4, 1), layout="separate", seed=3)
    assert int(apart["response_end"].max()) > 6, "longer than the window"
    weights = torch.randn(7, 32)
    (backbone(data) * weights).sum().backward()
    mine = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    pooled = backbone(data)
    backbone.zero_grad(set_to_none=True)
    backbone.model.set_attn_implementation("eager")
    hidden = backbone.model(input_ids=apart["input_ids"], use_cache=False).last_hidden_state
    wanted = hidden[apart["response_row"], apart["response_end"]]
    (wanted * weights).sum().backward()
    torch.testing.assert_close(pooled, wanted, atol=1e-5, rtol=1e-5)
    for name, parameter in backbone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("mamba", {}, "it has .* layers"),
        ("llama4_text", {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}, "chunk"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "attention of bloom is its own"),
        ("falcon", {}, "attention of falcon is its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:backbone")
def test_layers_that_carry_something_else_take_separate_rows(model_type, fields, reason, batch):
    config = {"model_type": model_type, **SMALL, **fields}
    backbone = Backbone(BackboneConfig(config=config))
    assert backbone.layout == "separate"
    torch.testing.assert_close(
        states(backbone, batch((2, 4))), states(backbone, batch((2, 4), layout="separate")), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match=rf"layout='shared': .*({reason})"):
        Backbone(BackboneConfig(config=config, layout="shared"))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_bidirectional_networks_take_separate_rows_and_ignore_padding(model_type, batch, rows):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    extra = {"embedding_size": 32} if model_type == "electra" else {}
    backbone = Backbone(BackboneConfig(config={"model_type": model_type, **SMALL, **extra}))
    assert (backbone.layout, backbone.pooling, backbone.causal) == ("separate", "mean", False)
    together = states(backbone, batch((2, 3, 1)))
    alone = [states(backbone, PreferenceCollator(layout="separate")([record])) for record in rows((2, 3, 1))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert not any("pooler" in name for name, _ in backbone.named_parameters()), "never used, so not there"


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_separate_rows_run_in_chunks_of_similar_length(pooling, monkeypatch):
    from pluralign.datamodules.batches.collate import PreferenceCollator
    from pluralign.datamodules.tokens.rows import TokenRow

    rng = np.random.default_rng(0)
    lengths = np.asarray([5, 160, 3, 170, 4, 166, 2], dtype=np.int32)
    none = np.zeros(0, dtype=np.int32)
    record = TokenRow(
        "a", rng.integers(0, 64, lengths.sum()).astype(np.int32), lengths, np.arange(6), none.reshape(0, 2), none,
        none.astype(np.float32), {},
    )  # fmt: skip
    data = PreferenceCollator(layout="separate")([record])
    backbone = Backbone(BackboneConfig(config={"model_type": "bert", **SMALL}, pooling=pooling))
    widths = []
    original = Backbone.encode
    monkeypatch.setattr(
        Backbone,
        "encode",
        lambda self, part, packed=None: widths.append(part["input_ids"].shape) or original(self, part),
    )
    chunked = states(backbone, data)
    assert widths == [(3, 175), (3, 9)]
    object.__setattr__(backbone.config, "length_chunks", False)
    whole = states(backbone, data)
    assert widths[2:] == [(6, 175)]
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)


def test_a_layout_that_fails_the_check_falls_back_with_a_warning(monkeypatch):
    from pluralign.models.backbone import layouts

    original = layouts.run_packed
    monkeypatch.setattr(layouts, "run_packed", lambda *inputs: original(*inputs) + 0.5)
    with pytest.warns(
        UserWarning, match="separate rows, for with shared ones it differs from separate rows by"
    ):
        backbone = Backbone(tiny("llama"))
    assert backbone.layout == "separate" and backbone.model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="layout='shared': it differs from separate rows"):
        Backbone(tiny("llama", layout="shared"))


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_states_depend_on_nothing_but_prompt_and_response(pooling, batch, rows):
    """Not on the batch, its padding, its order, the siblings or the layout."""
    from pluralign.datamodules.batches.collate import PreferenceCollator
    from pluralign.datamodules.tokens.rows import TokenRow

    backbone = Backbone(tiny("llama", pooling=pooling))
    records = rows((3, 5, 2))
    together = states(backbone, PreferenceCollator()(records))
    backwards = states(backbone, PreferenceCollator()(records[::-1]))
    torch.testing.assert_close(together[:3], backwards[-3:], atol=1e-5, rtol=0)
    place = 0
    for record in records:
        ends = record.lengths.cumsum()
        for j in range(len(record.response_index)):
            own = record.tokens[ends[j] : ends[j + 1]]
            single = TokenRow(
                record.id,
                np.concatenate([record.tokens[: ends[0]], own]),
                np.asarray([ends[0], len(own)], dtype=np.int32),
                record.response_index[:1],
                record.comparisons[:0],
                record.comparison_index[:0],
                record.preference[:0],
                {},
            )
            alone = states(backbone, PreferenceCollator()([single]))
            torch.testing.assert_close(together[place], alone[0], atol=1e-5, rtol=0)
            place += 1


def test_a_frozen_backbone_has_no_graph_and_no_dropout(batch):
    config = BackboneConfig(config={"model_type": "gpt2", **CONFIGS["gpt2"]}, frozen=True)
    backbone = Backbone(config).train()
    first, second = backbone(batch()), backbone(batch())
    assert not first.requires_grad
    assert torch.equal(first, second), "gpt2 has dropout by default; a frozen one must not use it"
    assert not backbone.model.training


def test_a_trained_backbone_is_in_training_mode_with_dropout(batch):
    backbone = Backbone(tiny("gpt2"))
    assert all(module.training for module in backbone.modules())
    assert not torch.equal(backbone(batch()), backbone(batch()))


def test_gradient_checkpointing_is_on_and_changes_no_gradient(batch, monkeypatch):
    import torch.utils.checkpoint

    calls = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)  # bound there by name
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(tiny("llama", gradient_checkpointing=checkpointing))
        backbone(batch()).square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
        assert bool(calls) == checkpointing, "recomputed only where asked for"
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_lora_trains_adapters_only(batch):
    backbone = Backbone(tiny("llama", lora=LoRAConfig(rank=2, alpha=4)))
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert backbone.layout == "shared"
    assert all(module.training for module in backbone.modules())
    backbone(batch()).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_pretrained_folder_round_trip_and_missing_weights(tmp_path, batch):
    from transformers import AutoModel, LlamaConfig

    model = AutoModel.from_config(LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path / "whole")
    backbone = Backbone(BackboneConfig(name=str(tmp_path / "whole")))
    assert all(module.training for module in backbone.modules()), "from_pretrained leaves evaluation mode"
    for mine, theirs in zip(backbone.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)

    weights = model.state_dict()
    del weights["layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path / "partial", state_dict=weights)
    with pytest.raises(ValueError, match=r"has no weights for layers\.1\.mlp\.up_proj\.weight"):
        Backbone(BackboneConfig(name=str(tmp_path / "partial")))
    with pytest.raises(ValueError, match=r"backbone\.name='.*nowhere' could not be loaded; allowed"):
        Backbone(BackboneConfig(name=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {}}, "must hold model_type"),
        ({"name": "x", "frozen": True, "lora": LoRAConfig()}, "trains no adapters"),
        ({"name": "x", "quantization": "4bit"}, "cannot be trained itself"),
        (
            {"config": {"model_type": "llama"}, "quantization": "8bit", "frozen": True},
            "needs pretrained weights",
        ),
        ({"name": "x", "dtype": "fp16"}, "dtype must be one of float32, bfloat16, float16; got 'fp16'"),
        ({"name": "x", "quantization": "4bits"}, "quantization must be one of 4bit, 8bit, null; got '4bits'"),
        ({"name": "x", "pooling": "max"}, "pooling must be one of auto, last, mean, cls"),
        ({"name": "x", "lora": {"rank": 0}}, "rank must be finite and >= 1; got 0"),
        ({"name": "x", "lora": {"dropout": 1.0}}, "dropout must be >= 0 and < 1; got 1.0"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**settings)


def test_encoder_decoders_are_refused():
    with pytest.raises(ValueError, match="encoder-decoder"):
        Backbone(
            BackboneConfig(
                config={"model_type": "t5", "vocab_size": 64, "d_model": 16, "num_layers": 1, "d_ff": 16}
            )
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_backbone_dtype_and_head_of_at_least_float32(dtype, batch):
    double = dtype == "float64"  # a trainer's 64-true
    backbone = Backbone(tiny("llama", dtype="float32" if double else dtype)).to(getattr(torch, dtype))
    assert backbone.layout == "shared"
    pooled = backbone(batch())
    assert pooled.dtype == getattr(torch, dtype)
    head = RewardHead(backbone.hidden_size).to(getattr(torch, dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reward = head(pooled)
    single = torch.float64 if double else torch.float32
    assert reward.dtype == single
    torch.testing.assert_close(reward, pooled.to(single) @ head.weight.to(single).T)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_flex_attention_gives_the_states_of_sdpa(batch):
    """Forward only: FlexAttention has no backward pass on the CPU."""
    dense, flexible = Backbone(tiny("llama")), Backbone(tiny("llama", attention="flex_attention"))
    flexible.load_state_dict(dense.state_dict())
    assert (dense.layout, flexible.layout) == ("shared", "shared")
    for counts in ((2, 3, 1), (5, 1)):
        torch.testing.assert_close(
            states(dense, batch(counts)), states(flexible, batch(counts)), atol=1e-5, rtol=0
        )


def quantized_folder(folder):
    from transformers import AutoModel, LlamaConfig

    AutoModel.from_config(LlamaConfig(**{**SMALL, "hidden_size": 64})).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_adapters_on_an_8bit_base_get_gradients_even_after_an_evaluation(tmp_path, batch):
    name = quantized_folder(tmp_path)
    backbone = Backbone(BackboneConfig(name=name, quantization="8bit", lora=LoRAConfig(rank=2)))
    assert "Linear8bitLt" in {type(module).__name__ for module in backbone.modules()}
    states(backbone, batch())
    backbone.train()(batch()).float().square().sum().backward()
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert all(float(p.grad.abs().sum()) > 0 for name, p in trained.items() if "lora_B" in name)
    decomposed = LoRAConfig(rank=2, weight_decomposed=True)
    with pytest.raises(ValueError, match=r"8bit' trains no weight_decomposed adapters on the CPU"):
        Backbone(BackboneConfig(name=name, quantization="8bit", lora=decomposed))
    base = Backbone(BackboneConfig(name=name, quantization="8bit", frozen=True))
    with pytest.raises(ValueError, match=r"8bit' trains no weight_decomposed adapters on the CPU"):
        base.add_adapters(["upper"], decomposed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")  # its CPU kernel, in bitsandbytes 0.50
def test_a_4bit_base_is_frozen_on_the_cpu_and_refuses_adapters_there(tmp_path, batch):
    name = quantized_folder(tmp_path)
    backbone = Backbone(BackboneConfig(name=name, quantization="4bit", frozen=True))
    assert "Linear4bit" in {type(module).__name__ for module in backbone.modules()}
    whole = Backbone(BackboneConfig(name=name, frozen=True))
    difference = (states(backbone, batch()) - states(whole, batch())).abs().mean()
    assert 0 < float(difference) < 0.5, "quantized, yet the same network"
    with pytest.raises(ValueError, match="trains no adapters on the CPU"):
        Backbone(BackboneConfig(name=name, quantization="4bit", lora=LoRAConfig()))


def test_a_misspelt_field_of_the_network_is_named():
    with pytest.warns(UserWarning, match=r"hiden_size: llama has no such field.*did you mean hidden_size\?"):
        Backbone(BackboneConfig(config={"model_type": "llama", **SMALL, "hiden_size": 64}))


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_the_longest_text_that_is_allowed_fits(model_type):
    config = {"model_type": model_type, **SMALL, "max_position_embeddings": 20}
    backbone = Backbone(BackboneConfig(config=config))
    size = backbone.max_positions
    data = {
        "input_ids": torch.full((1, size), 9),
        "position_ids": torch.arange(size)[None],
        "segment_ids": (torch.arange(size) > 3).long()[None],
        "response_row": torch.tensor([0]),
        "response_end": torch.tensor([size - 1]),
    }
    assert states(backbone, data).shape == (1, 32)
    assert size == (18 if model_type == "roberta" else 20)


def by_hand(tokens, rows, pooling):
    """Pooled states by plain loops over the tokens of every response."""
    pooled = []
    for row, end in zip(rows["response_row"].tolist(), rows["response_end"].tolist(), strict=True):
        segments = rows["segment_ids"][row]
        if pooling == "mean":
            places = [i for i, s in enumerate(segments.tolist()) if s in (0, int(segments[end]))]
            pooled.append(torch.stack([tokens[row, i] for i in places]).mean(0))
        else:
            pooled.append(tokens[row, end if pooling == "last" else 0])
    return torch.stack(pooled)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("shared", {}),  # packed
        ("shared", {"attention": "eager"}),
        ("separate", {}),
        ("shared", {"layout": "separate"}),
        ("separate", {"layout": "separate", "attention": "eager"}),
    ],
)
def test_one_pass_gives_states_of_tokens_and_of_responses(llama, batch, given, settings, pooling):
    backbone = Backbone(llama(pooling=pooling, **settings))
    data = batch((2, 3, 1), layout=given)
    output = backbone.read(data)
    assert output.tokens.shape == (*output.rows["input_ids"].shape, 32)
    torch.testing.assert_close(
        output.pooled, by_hand(output.tokens, output.rows, pooling), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(output.pooled, backbone(data), atol=1e-6, rtol=1e-5)
    assert ("row_lengths" in output.rows) and len(output.rows["response_row"]) == 6


def test_rows_that_ran_apart_come_back_in_order(llama, rows):
    from pluralign.datamodules.batches.collate import PreferenceCollator

    records = rows((3, 3, 3, 3), seed=4)
    for i, record in enumerate(records[:2]):
        extra = np.full(150, i + 1, dtype=np.int32)
        tokens, lengths = np.concatenate([extra, record.tokens]), record.lengths.copy()
        lengths[0] += 150
        records[i] = record._replace(tokens=tokens, lengths=lengths)
    data = PreferenceCollator(layout="separate")(records)
    apart = Backbone(llama(layout="separate", attention="eager", pooling="mean"))
    assert len(apart._chunks(data)) > 1
    output = apart.read(data)
    assert torch.equal(output.pooled, apart(data))
    torch.testing.assert_close(
        output.pooled, by_hand(output.tokens, output.rows, "mean"), atol=1e-6, rtol=1e-5
    )
    assert bool((output.tokens[output.rows["segment_ids"] >= 0] != 0).any(-1).all())


def test_stored_features_have_no_tokens_to_read(llama):
    with pytest.raises(ValueError, match=r"loader\.features=null"):
        Backbone(llama(frozen=True)).read({"features": torch.zeros(1, 32)})
