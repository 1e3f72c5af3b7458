import subprocess
import sys

import numpy as np
import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.models import Backbone, BackboneConfig, LoRAConfig
from pluralign.models.backbone.packing import packed_attention, packed_rows


def ragged():
    """Two prompts whose responses have very different lengths, so that attention runs in groups."""
    rng = np.random.default_rng(1)
    rows = []
    for name, lengths in (("a", [5, 150, 3, 140, 4]), ("b", [9, 2, 160, 7])):
        sizes, count = np.asarray(lengths, dtype=np.int32), len(lengths) - 1
        none = np.zeros(0, dtype=np.int32)
        tokens = rng.integers(0, 64, sizes.sum()).astype(np.int32)
        rows.append(
            TokenRow(
                name, tokens, sizes, np.arange(count, dtype=np.int32), none.reshape(0, 2), none,
                none.astype(np.float32), {},
            )
        )  # fmt: skip
    return PreferenceCollator()(rows)


def attention_by_loops(query, key, value, segments):
    """Every token of every row on its own: its segment and the prefix, causally."""
    out, start = torch.zeros_like(query), 0
    for row in segments:
        row = row[row >= 0]
        for i, mine in enumerate(row.tolist()):
            seen = [start + j for j in range(i + 1) if row[j] in (0, mine)]
            for head in range(query.shape[1]):
                scores = key[0, head, seen] @ query[0, head, start + i] / query.shape[3] ** 0.5
                out[0, head, start + i] = scores.softmax(dim=0) @ value[0, head, seen]
        start += len(row)
    return out.transpose(1, 2)


@pytest.mark.parametrize("data", ["small", "ragged"])
def test_attention_matches_plain_loops(data, batch):
    batch = batch((2, 3, 1)) if data == "small" else ragged()
    tokens = sum(batch["row_lengths"])
    query, key, value = torch.randn(3, 1, 2, tokens, 4, dtype=torch.float64)
    packed = packed_rows(batch)
    assert (len(packed.copies) > 1) == (data == "ragged")
    found, _ = packed_attention(torch.nn.Identity(), query, key, value, None, packed=packed)
    torch.testing.assert_close(found, attention_by_loops(query, key, value, batch["segment_ids"]))


def test_no_token_is_padding_and_every_token_is_read_once(batch):
    data = ragged()
    packed = packed_rows(data)
    assert torch.equal(packed.cells, (data["segment_ids"] >= 0).flatten().nonzero().squeeze(1))
    flat = torch.cat([copies.flatten() for copies in packed.copies])
    assert torch.equal(flat[packed.place], torch.arange(len(packed.cells)))


@pytest.mark.parametrize("foreign", [{"sliding_window": 4}, {"softcap": 50.0}, {"s_aux": torch.zeros(2)}])
def test_arguments_that_change_attention_are_refused(batch, foreign):
    data = batch()
    states = torch.randn(1, 2, sum(data["row_lengths"]), 4)
    with pytest.raises(ValueError, match=next(iter(foreign))):
        packed_attention(
            torch.nn.Identity(), states, states, states, None, packed=packed_rows(data), **foreign
        )


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"lora": LoRAConfig(rank=2)}, {"pooling": "mean"}],
    ids=["plain", "checkpointing", "lora", "mean"],
)  # fmt: skip
def test_states_and_gradients_equal_those_of_the_masked_rows(llama, settings):
    found = []
    for packed in (True, False):
        torch.manual_seed(0)
        backbone = Backbone(llama(**settings))
        assert backbone.packed
        if not packed:
            backbone.packed = False
            network = backbone.model.base_model.model if "lora" in settings else backbone.model
            network.set_attn_implementation("sdpa")
        pooled = backbone(ragged())
        pooled.square().sum().backward()
        found.append([pooled.detach(), *(p.grad for p in backbone.parameters() if p.requires_grad)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


def test_bfloat16_stays_close(llama):
    torch.manual_seed(0)
    backbone = Backbone(llama(dtype="bfloat16"))
    assert backbone.packed
    exact = Backbone(llama())
    exact.load_state_dict({name: value.float() for name, value in backbone.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.eval()(ragged()).float(), exact.eval()(ragged()), atol=0.1, rtol=0.1
        )


def test_networks_that_do_not_hand_arguments_on_run_masked_rows(monkeypatch, llama, batch):
    def refuse(self, model, data):
        raise TypeError("forward() got an unexpected keyword argument 'packed'")

    monkeypatch.setattr(Backbone, "_run_packed", refuse)
    backbone = Backbone(llama())
    assert (backbone.layout, backbone.packed) == ("shared", False)
    assert backbone(batch()).shape == (6, 32)


@pytest.mark.slow
def test_a_pickled_backbone_runs_in_a_fresh_process(llama, batch, tmp_path):
    backbone, data = Backbone(llama()).eval(), batch()
    with torch.no_grad():
        torch.save((backbone, data, backbone(data)), tmp_path / "both.pt")
    code = (
        "import sys, torch; backbone, data, states = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad(): assert torch.equal(backbone(data), states)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "both.pt")], check=True, timeout=120)


def test_eager_attention_runs_masked_rows(llama, batch):
    torch.manual_seed(0)
    eager = Backbone(llama(attention="eager"))
    assert not eager.packed and eager.model.config._attn_implementation == "eager"
    packed = Backbone(llama())
    packed.load_state_dict(eager.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(eager.eval()(batch()), packed.eval()(batch()), atol=1e-5, rtol=0)


def test_padding_states_are_zero(llama, batch):
    data = batch()
    hidden = Backbone(BackboneConfig(config=llama().config)).encode(data)
    assert bool((hidden[data["segment_ids"] < 0] == 0).all())


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["plain", "adapters"])
def test_a_network_that_moves_takes_the_attention_of_its_device(lora, llama, batch):
    backbone, data = Backbone(llama(lora=lora)), batch((2, 3, 2))
    assert backbone.packed
    network = backbone.model.get_base_model() if lora else backbone.model
    packed = backbone(data)
    backbone._settle_attention(torch.device("cpu"))
    assert backbone.packed
    backbone._settle_attention(torch.device("cuda"))  # where finding the places would wait in every step
    assert not backbone.packed and network.config._attn_implementation == "sdpa"
    torch.testing.assert_close(backbone(data), packed, rtol=1e-4, atol=1e-5)
    backbone.flex = True  # as a network that was built on a GPU, and is trained on the CPU now
    network.set_attn_implementation("flex_attention")
    backbone(data).sum().backward()
    assert not backbone.flex and network.config._attn_implementation == "sdpa"
    torch.testing.assert_close(backbone(data), packed, rtol=1e-4, atol=1e-5)
