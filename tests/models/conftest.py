"""Tiny networks and random batches in either layout."""

import numpy as np
import pytest
import torch

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.tokens.rows import TokenRow
from pluralign.models import BackboneConfig


def make_rows(counts=(2, 3, 1), seed=0, vocabulary=64, pairs=True):
    """Random records: prefixes of 3 to 12 tokens, responses of 1 to 9, every later response against the first."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, count in enumerate(counts):
        lengths = np.asarray([rng.integers(3, 13), *rng.integers(1, 10, count)], dtype=np.int32)
        comparisons = np.asarray([(0, j) for j in range(1, count)] if pairs else [], dtype=np.int32).reshape(
            -1, 2
        )
        rows.append(
            TokenRow(
                id=f"prompt-{i}",
                tokens=rng.integers(0, vocabulary, lengths.sum()).astype(np.int32),
                lengths=lengths,
                response_index=np.arange(count, dtype=np.int32),
                comparisons=comparisons,
                comparison_index=np.arange(len(comparisons), dtype=np.int32),
                preference=rng.uniform(0, 1, len(comparisons)).astype(np.float32),
                columns={},
                record_key=i,
                split_key=1000 + i,
            )
        )
    return rows


@pytest.fixture
def rows():
    return make_rows


@pytest.fixture
def batch():
    def build(counts=(2, 3, 1), *, layout="shared", seed=0, **settings):
        return PreferenceCollator(layout=layout, **settings)(make_rows(counts, seed))

    return build


def masked_states(backbone, data):
    """States of every token of shared rows by a ready-made mask, (N, L, H): the reference of packed rows."""
    segments = data["segment_ids"]
    query, key = segments[:, :, None], segments[:, None, :]
    allowed = ((key == query) | ((key == 0) & (query > 0))).tril()
    network = getattr(backbone.model, "get_base_model", lambda: backbone.model)()
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        return network(
            input_ids=data["input_ids"],
            position_ids=data["position_ids"],
            attention_mask=bias,
            use_cache=False,
        ).last_hidden_state
    finally:
        network.set_attn_implementation(before)


@pytest.fixture
def masked_rows():
    return masked_states


@pytest.fixture
def llama(tiny):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

    def build(**settings):
        return BackboneConfig(**{"config": tiny(vocab_size=64, **sizes), **settings})

    return build


@pytest.fixture
def tensors_of():
    """Every tensor of a module's output by a name of its own: ``labels.probs``, ``basis.rewards``, ``user_weights``."""

    def flatten(output):
        tensors = {}
        for name, value in output.items():
            if isinstance(value, torch.Tensor):
                tensors[name] = value
            elif isinstance(value, dict):
                tensors |= value
            else:
                fields = value._asdict().items()
                tensors |= {
                    f"{name}.{field}": part for field, part in fields if isinstance(part, torch.Tensor)
                }
        return tensors

    return flatten
