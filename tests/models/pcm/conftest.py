"""A tiny base on disk, experts over it that say different things, prompts, and mixtures of them."""

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
