"""What a training step computes, counted: tokens in linear layers, scores in attention, calls of kernels, reads by the host."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pluralign.datamodules.batches import PreferenceCollator
from pluralign.datamodules.tokens import TokenRow
from pluralign.losses import bradley_terry_loss
from pluralign.models import BackboneConfig, BradleyTerryRM
from pluralign.models.backbone import packing

LAYERS, HEADS, SIZE = 3, 4, 8
FIELDS = {
    "vocab_size": 64,
    "hidden_size": HEADS * SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
}
LENGTHS = ((7, 5, 3, 4), (2, 6, 9), (30, 2, 3), (4, 5, 5, 2, 8))
"""Of each prompt, tokens of its prefix and of each response."""
TOKENS = sum(map(sum, LENGTHS))
RESPONSES = sum(len(each) - 1 for each in LENGTHS)
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def pieces_however_small(monkeypatch):
    monkeypatch.setattr(packing, "SMALL_PIECE", 0)


def scores(lengths):
    """Pairs of tokens of which one sees the other, written out; prefixes once."""
    count = 0
    for first, *own in lengths:
        count += sum(1 for query in range(first) for key in range(query + 1))
        for each in own:
            count += sum(first + query + 1 for query in range(each))
    return count


class Operations(TorchDispatchMode):
    """Counts what is dispatched: every operation by name, and of attention the scores that its kernels are handed."""

    def __init__(self):
        super().__init__()
        self.calls, self.scores = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in (KERNEL, f"{KERNEL}_backward"):
            backward = name != KERNEL
            query, key = args[1:3] if backward else args[:2]
            causal = args[7] if backward else (args[4] if len(args) > 4 else kwargs.get("is_causal", False))
            rows, heads, queries = query.shape[:3]
            seen = queries * (queries + 1) // 2 if causal else queries * key.shape[2]
            self.scores[name] += rows * heads * seen
        return func(*args, **kwargs)


class Linears:
    """Counts the tokens that enter every linear layer of a network."""

    def __init__(self, network):
        self.tokens = Counter()
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(self.counter(name))

    def counter(self, name):
        def count(layer, inputs, output):
            self.tokens[name] += inputs[0].numel() // layer.in_features

        return count


def rows_of(lengths):
    rng = np.random.default_rng(0)

    def row(number, sizes):
        responses = len(sizes) - 1
        pairs = [(0, other) for other in range(1, responses)]
        return TokenRow(
            id=str(number),
            tokens=rng.integers(1, 64, sum(sizes)).astype(np.int32),
            lengths=np.array(sizes, dtype=np.int32),
            response_index=np.arange(responses, dtype=np.int32),
            comparisons=np.array(pairs, dtype=np.int32).reshape(-1, 2),
            comparison_index=np.arange(len(pairs), dtype=np.int32),
            preference=np.ones(len(pairs), dtype=np.float32),
            columns={},
        )

    return [row(*each) for each in enumerate(lengths)]


def on(batch, device):
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


def built(model_type="llama", device="cpu", **settings):
    torch.manual_seed(0)
    module = BradleyTerryRM(BackboneConfig(config={"model_type": model_type, **FIELDS}, **settings))
    with torch.device(device):
        module.configure_model()
    return module.train()


def step(module, batch):
    module.compute_loss(module(batch), batch).backward()


@pytest.fixture
def batch():
    return PreferenceCollator()(rows_of(LENGTHS))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_every_token_enters_a_linear_layer_once_and_the_end_of_the_last_layer_only_where_it_is_read(
    model_type, batch
):
    module = built(model_type)
    linears = Linears(module.backbone.model)
    step(module, batch)
    last = f"layers.{LAYERS - 1}."
    # Keys and values of the last layer are those of all tokens; queries are projected with them, then for the ends alone.
    twice = {f"{last}self_attn.{name}_proj": TOKENS + RESPONSES for name in "qkv"}
    wanted = {
        name: twice.get(name, RESPONSES if name.startswith(last) else TOKENS) for name in linears.tokens
    }
    assert linears.tokens == wanted
    assert len(wanted) == 7 * LAYERS


def test_attention_computes_the_scores_that_are_needed_and_no_others(batch):
    module = built()
    with Operations() as operations:
        step(module, batch)
    ends = sum(first + each for first, *own in LENGTHS for each in own)
    needed = HEADS * ((LAYERS - 1) * scores(LENGTHS) + ends)
    assert operations.scores == {KERNEL: needed, f"{KERNEL}_backward": needed}


def test_attention_calls_its_kernel_once_for_every_part_and_once_for_every_prefix(batch):
    module = built()
    with Operations() as operations:
        step(module, batch)
    parts = sum(map(len, LENGTHS))  # prefixes and responses, each by itself
    beside = len(LENGTHS)  # responses of a prompt to their prefix, all at once
    calls = (LAYERS - 1) * (parts + beside) + RESPONSES + beside  # in the last layer, of the responses' ends
    assert operations.calls[KERNEL] == operations.calls[f"{KERNEL}_backward"] == calls


def test_padding_costs_nothing(batch):
    module = built()
    alone, among = (PreferenceCollator()(rows_of(lengths)) for lengths in (LENGTHS[:1], LENGTHS[:3]))
    counted = []
    for data in (alone, among):
        with Operations() as operations:
            step(module, data)
        counted.append(operations.scores[KERNEL])
    ends = [first + each for first, *own in LENGTHS[1:3] for each in own]
    more = HEADS * ((LAYERS - 1) * scores(LENGTHS[1:3]) + sum(ends))
    assert counted[1] - counted[0] == more  # though rows of the second batch are padded to 35 tokens


def test_a_step_reads_nothing_back_from_a_device(batch):
    """Tensors of the device meta have no values: whatever the host wants to know of them raises.

    Where the responses' ends alone are asked for, and there is no FlexAttention, their columns are read once.
    """
    backbone = built(device="meta").backbone
    data = on(batch, "meta")
    states = backbone.read(data).pooled
    rewards = states @ torch.zeros(states.shape[1], device="meta")
    chosen, rejected = rewards[data["comparisons"]].unbind(1)
    bradley_terry_loss(chosen, rejected, preference=data["preference"]).backward()
    gradients = {name: each.grad.shape for name, each in backbone.named_parameters()}
    assert gradients == {name: each.shape for name, each in backbone.named_parameters()}


def test_on_the_processor_a_backbone_asks_once_whether_lengths_fit(batch):
    backbone = built().backbone
    with Operations() as operations:
        backbone(batch).sum().backward()
    asked = {name: operations.calls[name] for name in ("_local_scalar_dense", "nonzero", "masked_select")}
    assert asked == {"_local_scalar_dense": 1, "nonzero": 0, "masked_select": 0}


def test_memory_of_a_step_grows_with_tokens_and_not_with_their_square():
    """What autograd keeps of attention: no table of queries by keys."""
    sizes = []
    for times in (1, 4):
        module = built()
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        data = PreferenceCollator()(rows_of(LENGTHS * times))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module.compute_loss(module(data), data)
        sizes.append(kept)
    assert sizes[1] < 4.2 * sizes[0]
