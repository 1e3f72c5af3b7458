"""Small causal networks and adapters that PEFT saved; a base with experts, prompts, and mixtures of them."""

import json

import pytest
import torch

from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.models import PCM, BackboneConfig, ExpertsConfig

AXES = {
    "tone": {"warm": "Be warm.", "cold": "Be cold."},
    "size": {"short": "Be short.", "long": "Say all there is to say."},
}
DIMENSIONS = ("tone.warm", "tone.cold", "size.short", "size.long")
PROMPTS = ("a hat", "a red boat", "the sea", "one", "two birds in a tree", "moss")

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


@pytest.fixture(scope="session")
def experts_folder(tmp_path_factory):
    """``base`` and a folder for each dimension, of random weights large enough to disagree."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("experts")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(folder / "base")
    for number, name in enumerate(DIMENSIONS):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        torch.manual_seed(number + 1)
        model = get_peft_model(base, LoraConfig(r=2 + number, lora_alpha=8, target_modules="all-linear"))
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def experts(experts_folder):
    """Settings of experts over the base."""

    def build(**changes):
        base = BackboneConfig(name=str(experts_folder / "base"), frozen=True)
        adapters = {name: str(experts_folder / name) for name in DIMENSIONS}
        return ExpertsConfig(**{"base": base, "adapters": adapters, **changes})

    return build


@pytest.fixture
def prompts(tmp_path):
    """Prompts with two dimensions each, in bytes."""

    def build(**changes):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        given = {"train": str(path), "axes": AXES, "max_new_tokens": 12, "validation_share": 0.3, **changes}
        return PersonalizedPromptsDataModule(**given)

    return build


@pytest.fixture
def pcm(experts, tiny):
    """A mixture whose control network is a tiny Llama from nothing."""

    def build(**settings):
        given = {"backbone": {"config": tiny()}, "experts": experts(), "max_new_tokens": 12, **settings}
        return PCM(given.pop("backbone"), **given)

    return build


@pytest.fixture
def built(pcm, prompts):
    """A mixture that is built, and its batches."""

    def build(**settings):
        data = prompts(**settings.pop("data", {}))
        module = pcm(**settings)
        module.prompt_source = data
        module.configure_model()
        data.setup("fit")
        return module, next(iter(data.train_dataloader()))

    return build
