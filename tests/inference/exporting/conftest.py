"""Reward models as if they had been opened: never trained, with heads that tell texts apart."""

import pytest
import torch

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.inference import OpenedModel
from pluralign.models import PAL, BackboneConfig

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "vocab_size": 300}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": {"model_type": "llama", **GROUPED, **SIZES},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, **GROUPED, **SIZES},
    "gemma": {"model_type": "gemma", "head_dim": 8, **GROUPED, **SIZES},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 32, **GROUPED, **SIZES},
    "gemma3_text": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 32, **GROUPED, **SIZES},
    "mistral": {"model_type": "mistral", "sliding_window": 32, **GROUPED, **SIZES},
    "gpt2": {"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS},
    "bert": {"model_type": "bert", "vocab_size": 300, **SIZES},
    "modernbert": {
        "model_type": "modernbert",
        "vocab_size": 300,
        "cls_token_id": 1,
        "sep_token_id": 2,
        **ENDS,
        **SIZES,
    },
}
"""Tiny networks of every family that must export."""


@pytest.fixture
def opened():
    """Open a module that was never trained: its class, its backbone's settings, its text format, its own settings."""

    def build(kind, backbone=None, *, text=None, **settings):
        torch.manual_seed(5)
        given = {"config": FAMILIES["llama"], **(backbone or {})}
        module = kind(BackboneConfig(**given), **settings)
        module.configure_model()
        spread(module)
        format_ = text or TextConfig(max_length=500)
        data = LocalDataModule(train="never.jsonl", text=format_)
        module.text_format = data.text_format()
        place = "runs/made/checkpoints/last.ckpt"
        return OpenedModel(module.eval().requires_grad_(False), format_, "made", place, kind="transformers")

    return build


@torch.no_grad()
def spread(module):
    """Give weights that start at nothing some, so that rewards tell texts apart, and adapters have an effect."""
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.add_(torch.randn_like(parameter) * 0.02)
        elif "backbone" not in name and parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        elif "head" in name and "backbone" not in name:
            parameter.copy_(torch.randn_like(parameter))
    if isinstance(module, PAL):
        logits = next(module.table.parameters())
        logits.copy_(torch.randn_like(logits))


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tiny network's weights, as a base that lies somewhere."""

    def build(name="llama", dtype="float32", **changes):
        from transformers import AutoConfig, AutoModel

        torch.manual_seed(1)
        fields = {**FAMILIES[name], **changes}
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        folder = tmp_path / f"base_{name}_{dtype}"
        AutoModel.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
        return str(folder)

    return build
