import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.models import Backbone, BackboneConfig, LoRAConfig
from pluralign.models.backbone import packing
from pluralign.models.backbone.packing import packed_attention, packed_rows

LAYER = torch.nn.Identity()


@pytest.fixture(autouse=True)
def pieces_however_small(monkeypatch):
    monkeypatch.setattr(packing, "SMALL_PIECE", 0)


def ragged(more=0):
    """Prompts whose responses have very different lengths; one has a single response, one no prompt.

    Args:
        more: Tokens of that single response beyond 6.
    """
    rng = np.random.default_rng(1)
    rows = []
    for name, lengths in (
        ("a", [5, 50, 3, 40, 4]),
        ("b", [9, 2, 61, 7]),
        ("c", [4, 6 + more]),
        ("d", [0, 3, 2]),
    ):
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


def seen_by_loops(data, window):
    """Which tokens of the packed row each token sees, written out."""
    segments, positions = data["segment_ids"], data["position_ids"]
    tokens = [
        (row, int(segments[row, column]), int(positions[row, column]))
        for row in range(len(segments))
        for column in range(segments.shape[1])
        if segments[row, column] >= 0
    ]
    return torch.tensor(
        [
            [
                row == other and (segment == theirs or theirs == 0) and 0 <= position - before < window
                and (segment == theirs or segment > 0)
                for other, theirs, before in tokens
            ]
            for row, segment, position in tokens
        ]
    )  # fmt: skip


def attention_by_hand(query, key, value, seen, *, softcap=None, sinks=None):
    """Softmax over what each token sees; the sink takes a share and gives nothing."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(1, -1, scores.shape[2], 1)], dim=3)
    return (scores.softmax(dim=3)[..., : key.shape[2]] @ value).transpose(1, 2)


def inputs(data, *, heads=(4, 2), dtype=torch.float64):
    torch.manual_seed(0)
    tokens = sum(data["row_lengths"])
    shapes = ((1, tokens, heads[0], 8), (1, tokens, heads[1], 8), (1, tokens, heads[1], 8))
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]


FORMS = {"pieces": {}, "groups": {"plain": True}}
SETTINGS = [{}, {"window": 1}, {"window": 4}, {"window": 30}, {"window": 1000}, {"sinks": True}, {"window": 7, "sinks": True},
            {"softcap": 1.5}, {"softcap": 1.5, "sinks": True, "window": 9}]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_attention_and_its_gradients_are_those_written_out(form, settings):
    data = ragged()
    packed = packed_rows(data, **FORMS[form])
    states = inputs(data)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if "sinks" in settings else None
    window, softcap = settings.get("window"), settings.get("softcap")
    found, _ = packed_attention(
        LAYER, *states, None, packed=packed, sliding_window=window, softcap=softcap, s_aux=sinks
    )
    wanted = attention_by_hand(*states, seen_by_loops(data, window or 10**6), softcap=softcap, sinks=sinks)
    torch.testing.assert_close(found, wanted)
    leaves, weights = [*states, *([] if sinks is None else [sinks])], torch.randn_like(wanted)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), leaves) for x in (found, wanted))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [None, 1, 6])
def test_the_responses_ends_alone_attend_as_they_do_among_all(form, window):
    data = ragged()
    packed = packed_rows(data, **FORMS[form])
    query, key, value = inputs(data)
    everywhere, _ = packed_attention(LAYER, query, key, value, None, packed=packed, sliding_window=window)
    queries, ends = query[:, :, packed.ends], packed.at_ends(key, value)
    found, _ = packed_attention(LAYER, queries, queries, queries, None, packed=ends, sliding_window=window)
    torch.testing.assert_close(found, everywhere[:, packed.ends])
    weights = torch.randn_like(found)
    mine, theirs = (
        torch.autograd.grad((x * weights).sum(), (query, key, value))
        for x in (found, everywhere[:, packed.ends])
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_response_may_be_read_before_its_last_token_and_twice(llama):
    data = ragged()
    data["response_row"], data["response_end"] = torch.tensor([0, 0, 1, 1]), torch.tensor([20, 20, 3, 66])
    backbone = Backbone(llama()).eval()
    assert backbone.last_layer is not None
    states = backbone.read(data).tokens
    torch.testing.assert_close(backbone(data), states[data["response_row"], data["response_end"]])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("tokens", [196, 256])
def test_the_block_mask_lets_the_same_tokens_be_seen(window, ends, tokens):
    from torch.nn.attention.flex_attention import create_mask

    data = ragged(more=tokens - 196)
    assert sum(data["row_lengths"]) == tokens
    packed = packed_rows(data)
    if ends:
        packed = packed.at_ends(torch.zeros(()), torch.zeros(()))
    mask, seen = packed.block_mask(window), seen_by_loops(data, window or 10**6)
    seen = seen[packed.ends] if ends else seen
    assert packed.block_mask(window) is mask, "made once for all layers"
    dense = create_mask(mask.mask_mod, 1, 1, *mask.seq_lengths, device="cpu")[0, 0]
    assert all(length % 128 == 0 for length in mask.seq_lengths)
    assert torch.equal(dense[: len(seen), : seen.shape[1]], seen)
    assert not bool(dense[: len(seen), seen.shape[1] :].any()), "no token sees what fills the last block up"
    assert bool(dense.any(dim=1).all()), "no row of the softmax is empty"


def test_a_window_that_reaches_every_token_costs_nothing():
    plan = packed_rows(ragged()).plan
    assert plan.pieces(plan.longest) is plan.pieces(None)
    first, more = plan.pieces(None)
    assert (len(first), len(more)) == (1 + 4 + 1 + 3 + 1 + 2, 2), (
        "a prefix attends once, whatever goes on from it"
    )


def test_no_token_is_padding_and_places_are_right():
    data = ragged()
    packed = packed_rows(data)
    assert torch.equal(packed.cells, (data["segment_ids"] >= 0).flatten().nonzero().squeeze(1))
    assert torch.equal(packed.segments, data["segment_ids"].flatten()[packed.cells])
    flat = data["response_row"] * data["input_ids"].shape[1] + data["response_end"]
    assert torch.equal(packed.cells[packed.ends], flat)
    said = data.pop("segment_lengths")
    assert said == [[5, 50, 3, 40, 4], [9, 2, 61, 7], [4, 6], [0, 3, 2]]
    assert packed_rows(data).plan.branches == packed.plan.branches, "found where the batch does not say"


def left_padded(data):
    for name in ("input_ids", "position_ids", "segment_ids"):
        data[name] = data[name].flip(1)
    del data["segment_lengths"]


SPOILT = {
    "cut": lambda data: data.update({n: data[n][:, :50] for n in ("input_ids", "position_ids", "segment_ids")}),
    "permuted": lambda data: data.update(segment_ids=data["segment_ids"][[1, 0, 2, 3]]),
    "other lengths": lambda data: data.update(segment_lengths=[[5, 49, 4, 40, 4], *data["segment_lengths"][1:]]),
    "padding on the left": left_padded,
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_lengths_that_do_not_fit_are_refused(how):
    data = ragged()
    SPOILT[how](data)
    with pytest.raises(ValueError, match="segment_lengths do not fit"):
        packed_rows(data)


def test_a_number_that_no_token_has_is_an_empty_response():
    found = []
    for numbers in ([-1, 0, 1, 3, 3, 4], [-1, 0, 1, 2, 2, 3]):
        data = ragged()
        data["segment_ids"][0] = torch.tensor(numbers)[data["segment_ids"][0] + 1]
        del data["segment_lengths"]
        packed = packed_rows(data)
        found.append((packed.lengths[0], packed_attention(LAYER, *inputs(data), None, packed=packed)[0]))
    assert [lengths for lengths, _ in found] == [[5, 50, 0, 43, 4], [5, 50, 43, 4]]
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("chunks", "reason"), [(8192, "runs in chunks"), (None, "a token's place in the row")]
)
def test_attention_that_is_another_one_on_long_rows_alone_is_known_by_name(chunks, reason):
    from transformers import AutoConfig

    from pluralign.models.backbone.kinds import why_not_shared

    kinds = ["full_attention"] * 2
    config = AutoConfig.for_model(
        "llama4_text", num_hidden_layers=2, layer_types=kinds, attention_chunk_size=chunks
    )
    assert reason in why_not_shared(config, causal=True)


@pytest.mark.parametrize("foreign", ["position_bias", "head_mask", "indices", "never_heard_of"])
def test_arguments_that_change_attention_are_refused(foreign):
    data = ragged()
    with pytest.raises(ValueError, match=foreign):
        packed_attention(LAYER, *inputs(data), None, packed=packed_rows(data), **{foreign: torch.zeros(2)})
    with pytest.raises(ValueError, match="no mask"):
        packed_attention(LAYER, *inputs(data), torch.zeros(1), packed=packed_rows(data))
    packed_attention(LAYER, *inputs(data), None, packed=packed_rows(data), **{foreign: None}, use_cache=False)


def test_16_bits_are_computed_in_float32():
    data = ragged()
    packed, states = packed_rows(data), inputs(data, dtype=torch.float32)
    half = [s.detach().bfloat16() for s in states]
    found, _ = packed_attention(LAYER, *half, None, packed=packed)
    exact, _ = packed_attention(LAYER, *(s.float() for s in half), None, packed=packed)
    assert torch.equal(found, exact.bfloat16())


def test_attention_that_is_differentiated_twice_is_made_of_plain_operations():
    data = ragged()
    states = inputs(data)
    with sdpa_kernel(SDPBackend.MATH):
        found, _ = packed_attention(LAYER, *states, None, packed=packed_rows(data))
    (first,) = torch.autograd.grad(found.square().sum(), states[0], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), states[1])
    assert bool(second.isfinite().all()) and float(second.abs().max()) > 0


def test_many_small_pieces_run_together(monkeypatch, llama):
    data, calls = ragged(), []
    kernel = packing.piece_attention
    monkeypatch.setattr(
        packing, "piece_attention", lambda *given, **named: calls.append(1) or kernel(*given, **named)
    )
    backbone = Backbone(llama())
    calls.clear()
    with torch.no_grad():
        apart = backbone(data)
        assert len(calls) == 2
        monkeypatch.setattr(packing, "SMALL_PIECE", 12_500)
        together = backbone(data)
    assert len(calls) == 2
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_what_plain_attention_sees_is_kept_once_for_all_layers(llama):
    """A table of queries by keys, which takes more room than the states of long texts."""
    backbone, data, kept = Backbone(llama(attention="eager")), ragged(), {}
    assert len(backbone.model.layers) > 1

    def keep(tensor):
        if tensor.is_floating_point() and bool(tensor.isneginf().any()):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = backbone.read(data).pooled
    groups, _ = packed_rows(data).plan.groups(None, torch.device("cpu"))
    assert 0 < len(kept) <= len(groups) and states.requires_grad


def test_a_last_layer_whose_states_are_no_row_of_tokens_is_refused():
    """A place that is not there would be an IndexError on the CPU, and on a GPU the end of the process."""
    from pluralign.models.backbone.last_layer import LastLayer

    data, layer = ragged(), torch.nn.Linear(8, 8)
    LastLayer(layer)
    packed = packed_rows(data)
    packed.ends_only = True
    with pytest.raises(ValueError, match=r"the last layer takes states of shape \(4, 1, 196, 8\)"):
        layer(torch.zeros(4, 1, 196, 8), packed=packed)


def test_dropout_drops_weights_of_attention():
    data = ragged()
    states = inputs(data)
    torch.manual_seed(3)
    dropped, again = (
        packed_attention(LAYER, *states, None, packed=packed_rows(data), dropout=0.5)[0] for _ in range(2)
    )
    whole, _ = packed_attention(LAYER, *states, None, packed=packed_rows(data))
    assert not torch.equal(dropped, again) and not torch.equal(dropped, whole)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_checkpointing": True}, {"lora": LoRAConfig(rank=2)}, {"pooling": "mean"}, {"attention": "eager"}],
    ids=["plain", "checkpointing", "lora", "mean", "eager"],
)  # fmt: skip
def test_states_and_gradients_equal_those_of_the_masked_rows(llama, masked_rows, settings):
    from pluralign.models.backbone.rows import pool

    data = ragged()
    torch.manual_seed(0)
    backbone = Backbone(llama(**settings))
    assert backbone.layout == "shared" and backbone.last_layer is not None
    other = deepcopy(backbone)
    assert other.last_layer.layer is not backbone.last_layer.layer
    for (
        part
    ) in other.model.modules():  # the reference's attention is another one by the time of the backward pass
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False
    found, weights = [], torch.randn(len(data["response_row"]), 32)
    for mine, pooled in (
        (backbone, backbone(data)),
        (other, pool(masked_rows(other, data), data, other.pooling)),
    ):
        (pooled * weights).sum().backward()
        found.append([pooled.detach(), *(p.grad for p in mine.parameters() if p.requires_grad)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


def test_the_last_layer_runs_for_the_ends_alone_and_only_where_they_are_all_that_is_asked_for(llama):
    backbone, data, seen = Backbone(llama()), ragged(), []
    feed_forward = backbone.model.layers[-1].mlp
    feed_forward.register_forward_hook(lambda module, given, output: seen.append(output.shape[1]))
    tokens, responses = sum(data["row_lengths"]), len(data["response_row"])
    backbone(data)
    backbone.read(data)
    object.__setattr__(backbone, "pooling", "mean")
    backbone(data)
    assert seen == [responses, tokens, tokens]


def test_a_batch_without_responses_gives_none(llama):
    data = ragged()
    data["response_row"], data["response_end"] = data["response_row"][:0], data["response_end"][:0]
    assert Backbone(llama())(data).shape == (0, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore::DeprecationWarning"
)  # of the compiler itself
@pytest.mark.parametrize("what", ["backbone", "model", "layers"])
def test_what_is_compiled_gives_the_same(llama, what):
    data = ragged()
    backbone = Backbone(llama())
    weights, found = torch.randn(len(data["response_row"]), 32), []
    for compiled in (False, True):
        parts = {"backbone": [backbone], "model": [backbone.model], "layers": backbone.model.layers}[what]
        for part in parts if compiled else ():
            part.compile(backend="aot_eager")
        pooled = backbone(data)
        (pooled * weights).sum().backward()
        found.append([pooled.detach(), *(p.grad for p in backbone.parameters())])
        backbone.zero_grad(set_to_none=True)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_last_layer_that_does_not_stand_alone_runs_whole(batch):
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
    backbone = Backbone(BackboneConfig(config=gpt2)).eval()
    assert (backbone.layout, backbone.last_layer) == ("shared", None)
    assert "forward" not in vars(backbone.model.h[-1])
    data = batch((2, 3, 1))
    torch.testing.assert_close(backbone(data), backbone.read(data).pooled)


def test_bfloat16_stays_close(llama):
    torch.manual_seed(0)
    backbone = Backbone(llama(dtype="bfloat16"))
    assert backbone.layout == "shared"
    exact = Backbone(llama())
    exact.load_state_dict({name: value.float() for name, value in backbone.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.eval()(ragged()).float(), exact.eval()(ragged()), atol=0.1, rtol=0.1
        )


def test_networks_that_do_not_hand_arguments_on_run_separate_rows(monkeypatch, llama, batch):
    from pluralign.models.backbone import layouts

    def refuse(*inputs):
        raise TypeError("forward() got an unexpected keyword argument 'packed'")

    monkeypatch.setattr(layouts, "run_packed", refuse)
    backbone = Backbone(llama())
    assert backbone.layout == "separate" and backbone.model.config._attn_implementation == "sdpa"
    assert backbone(batch()).shape == (6, 32)


@pytest.mark.slow
def test_a_pickled_backbone_runs_in_a_fresh_process(llama, batch, tmp_path):
    backbone, data = Backbone(llama()).eval(), batch()
    with torch.no_grad():
        torch.save((backbone, data, backbone(data)), tmp_path / "both.pt")
    code = (
        "import sys, torch; from pluralign.models.backbone import packing; packing.SMALL_PIECE = 0\n"
        "backbone, data, states = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad(): assert torch.equal(backbone(data), states)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "both.pt")], check=True, timeout=120)


def test_padding_states_are_zero(llama, batch):
    data = batch()
    hidden = Backbone(BackboneConfig(config=llama().config)).encode(data)
    assert bool((hidden[data["segment_ids"] < 0] == 0).all())
