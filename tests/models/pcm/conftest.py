"""Small causal networks, and adapters that PEFT saved."""

import pytest
import torch

VOCABULARY = 48


def network(kind, seed=0, **fields):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    }[kind]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**sizes, "vocab_size": VOCABULARY, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


def save_adapter(model, folder, seed, **settings):
    """Train nothing, but draw both factors; PEFT writes the folder. The network is given back as it was."""
    from peft import LoraConfig, get_peft_model

    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    gpt2 = getattr(model.config, "model_type", "") == "gpt2"
    wrapped = get_peft_model(model, LoraConfig(fan_in_fan_out=gpt2, **given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15, generator=generator)
    wrapped.save_pretrained(folder)
    wrapped.unload()
    return str(folder)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def adapters(request, tmp_path_factory):
    """Kind of network, and folders of four adapters of different ranks, scalings and layers."""
    kind, root = request.param, tmp_path_factory.mktemp(request.param)
    some = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    one = "model.layers.1.mlp.up_proj" if kind == "llama" else "h.1.mlp.c_fc"
    shapes = {
        "tone.warm": {},
        "tone.cold": {"r": 2, "lora_alpha": 3, "use_rslora": True},
        "size.short": {"r": 3, "target_modules": some},
        "size.long": {"rank_pattern": {one: 6}, "alpha_pattern": {one: 1}},
    }
    folders = {
        name: save_adapter(network(kind), root / name, seed, **settings)
        for seed, (name, settings) in enumerate(shapes.items())
    }
    return kind, folders
