"""Rotary frequencies that change with the longest row: a response's state is its own, whatever stands beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.models import Backbone, BackboneConfig
from pluralign.models.backbone.frequencies import FrequencyChanges

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64}  # fmt: skip
SWITCH = 24
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 6.0, 9.0]}  # fmt: skip
LENGTHS = ((9, 4, 20), (11, 13, 2), (5, 7), (20, 30), (10, 14, 15))
"""Prompt, then responses; sequences of 13, 29, 24, 13, 12, 50, 24 and 25 tokens: 24 is short, 25 is long."""
PATHS = {
    "packed": {},
    "masked": {"attention": "eager"},
    "padded": {"layout": "separate"},
}


def longrope(**settings):
    fields = settings.pop("config", {"model_type": "llama"})
    config = {**SIZES, "max_position_embeddings": 96, "rope_parameters": dict(LONG), **fields}
    return Backbone(BackboneConfig(config=config, **settings)).eval()


def record(i, lengths):
    rng = np.random.default_rng(i)
    return TokenRow(
        id=f"record-{i}",
        tokens=rng.integers(0, 64, sum(lengths)).astype(np.int32),
        lengths=np.asarray(lengths, dtype=np.int32),
        response_index=np.arange(len(lengths) - 1, dtype=np.int32),
        comparisons=np.zeros((0, 2), np.int32),
        comparison_index=np.zeros(0, np.int32),
        preference=np.zeros(0, np.float32),
        columns={},
    )


def collated(backbone, numbers=(0, 1, 2, 3, 4)):
    return PreferenceCollator(layout=backbone.layout)([record(i, LENGTHS[i]) for i in numbers])


def plain(backbone):
    """The same weights in the network as transformers runs it."""
    other = Backbone(replace(backbone.config, layout="separate", attention="eager"))
    other.load_state_dict(backbone.state_dict())
    return other.eval().model


def alone(network, numbers=(0, 1, 2, 3, 4)):
    """States of every response, each from a row that nothing stands beside."""
    states = []
    for i in numbers:
        row, (prompt, *responses) = record(i, LENGTHS[i]), LENGTHS[i]
        for start, size in zip(np.cumsum(LENGTHS[i]), responses, strict=False):
            tokens = np.concatenate([row.tokens[:prompt], row.tokens[start : start + size]])
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            states.append(network(input_ids=ids, use_cache=False).last_hidden_state[0, -1])
    return torch.stack(states)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
@torch.no_grad()
def test_a_state_does_not_depend_on_what_stands_beside_it(path, model_type):
    extra = {"pad_token_id": 0, "original_max_position_embeddings": SWITCH} if model_type == "phi3" else {}
    backbone = longrope(config={"model_type": model_type, **extra}, **PATHS[path])
    assert backbone.layout == ("separate" if path == "padded" else "shared")
    expected, batch = alone(plain(backbone)), collated(backbone)
    assert float((backbone(batch) - expected).abs().max()) <= 1e-5
    by_hand = {name: value for name, value in batch.items() if name not in ("row_lengths", "segment_lengths")}
    assert float((backbone(by_hand) - expected).abs().max()) <= 1e-5, "without lengths on the host"
    for i in range(len(LENGTHS)):
        mine = batch["response_prompt"] == i
        assert float((backbone(collated(backbone, [i])) - expected[mine]).abs().max()) <= 1e-5


@torch.no_grad()
def test_without_parts_the_states_would_differ(monkeypatch):
    backbone = longrope()
    monkeypatch.setattr(FrequencyChanges, "sides", lambda self, batch: None)
    assert float((backbone(collated(backbone)) - alone(plain(backbone))).abs().max()) > 1e-3


@torch.no_grad()
def test_rows_of_one_side_run_as_they_did_and_padding_has_no_side(monkeypatch):
    backbone = longrope(layout="separate")
    short = collated(backbone, [2])
    passes = []
    run = Backbone.encode
    monkeypatch.setattr(
        Backbone,
        "encode",
        lambda self, rows, packed=None: passes.append(len(rows["input_ids"])) or run(self, rows, packed),
    )
    expected = backbone(short)
    wide = {
        name: torch.nn.functional.pad(short[name], (0, 60), value=-1 if name == "segment_ids" else 0)
        for name in ("input_ids", "position_ids", "segment_ids")
    }
    wide = {**{name: value for name, value in short.items() if name != "row_lengths"}, **wide}
    assert float((backbone(wide) - expected).abs().max()) <= 1e-6
    assert passes == [1, 1]


@torch.no_grad()
def test_states_of_tokens_come_from_the_same_passes():
    backbone = longrope()
    batch = collated(backbone)
    pooled, tokens, rows = backbone.read(batch)
    torch.testing.assert_close(pooled, backbone(batch), atol=1e-5, rtol=0)
    assert torch.equal(tokens[rows["response_row"], rows["response_end"]], pooled)
    assert rows["row_lengths"] == [13, 29, 24, 13, 12, 50, 24, 25]


def test_gradients_are_those_of_rows_alone():
    backbone = longrope()
    backbone(collated(backbone)).square().sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    network = plain(backbone)
    alone(network).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(together[f"model.{name}"], parameter.grad, atol=1e-3, rtol=1e-3)


def test_equally_many_passes_on_every_rank_are_not_promised():
    backbone = longrope(length_chunks=False)
    with pytest.raises(
        ValueError, match=r"change beyond 24 tokens.*max_length to at most 24, or backbone\.length_chunks"
    ):
        backbone(collated(backbone))
    backbone(collated(backbone, [2]))


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_frequencies_of_the_exact_length_are_refused(path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = {"model_type": "llama", "rope_parameters": rope, "max_position_embeddings": SWITCH}
    backbone = longrope(config=config, **PATHS[path])
    with pytest.raises(
        ValueError, match=r"rope_type dynamic.*has 50 with its prompt.*max_length to at most 24"
    ):
        backbone(collated(backbone))
    states = backbone(collated(backbone, [2]))
    assert float((states - alone(plain(backbone), [2])).abs().max()) <= 1e-5


def test_types_of_several_layers_are_read():
    from transformers import AutoConfig

    layers = {"full_attention": dict(LONG), "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = AutoConfig.for_model("gemma3_text", **{**SIZES, "rope_parameters": layers})
    assert FrequencyChanges.of(config) == FrequencyChanges(switches=(SWITCH,))
    assert FrequencyChanges.of(AutoConfig.for_model("gpt2")) == FrequencyChanges()
    assert not FrequencyChanges.of(AutoConfig.for_model("llama")).vary
