"""LanguageModelWriter: folders that transformers and PEFT load, and that stay where a new one cannot be written."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from pluralign.callbacks import LanguageModelWriter
from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM, LoRAConfig, PolicyTuner

IDS = torch.tensor([[5, 6, 7, 8]])


def longer(prompts, responses, columns):
    return [float(len(response)) for response in responses]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "Name fruit {n}."}}\n' for n in range(8)), encoding="utf-8")
    return PersonalizedPromptsDataModule(train=str(path), axes={}, validation_share=0.3)


def tuned(trainer, prompts, backbone, *callbacks):
    settings = {"rewards": {"length": longer}, "reference": "none", "max_new_tokens": 4}
    module = PolicyTuner(backbone, optimizer=fast, **settings)
    trainer(*callbacks).fit(module, datamodule=prompts)
    return module


def fast(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def logits(network):
    with torch.no_grad():
        return network.eval()(input_ids=IDS).logits


def test_a_whole_model_is_loaded_by_transformers(trainer, prompts, tiny, tmp_path):
    module = tuned(trainer, prompts, BackboneConfig(config=tiny()), LanguageModelWriter())
    folder = tmp_path / "language_model"
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(logits(network), logits(module.backbone.language_model()), atol=1e-6)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == prompts.end_id
    assert (
        AutoTokenizer.from_pretrained(folder)("fruit").input_ids
        == prompts.tokenizer.tokenizer("fruit").input_ids
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_adapters_are_loaded_by_peft_over_the_whole_model(trainer, prompts, tiny, tmp_path):
    sizes = {name: value for name, value in tiny().items() if name != "model_type"}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    backbone = BackboneConfig(name=str(tmp_path / "base"), tokenizer="byte", lora=LoRAConfig(rank=2))
    module = tuned(trainer, prompts, backbone, LanguageModelWriter(str(tmp_path / "expert")))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = logits(base)
    network = PeftModel.from_pretrained(base, tmp_path / "expert")
    assert torch.allclose(logits(network), logits(module.backbone.language_model()), atol=1e-6)
    assert not torch.allclose(logits(network), plain, atol=1e-3)


def test_a_folder_is_replaced_whole_or_stays(trainer, prompts, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "language_model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")

    def full(self, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PersonalizedPromptsDataModule, "save_tokenizer", full)
        with pytest.raises(OSError, match=r"could not write .*language_model"):
            tuned(trainer, prompts, BackboneConfig(config=tiny()), LanguageModelWriter())
    assert [path.name for path in folder.iterdir()] == ["old.txt"]
    assert not (tmp_path / ".language_model.part").exists()
    tuned(trainer, prompts, BackboneConfig(config=tiny()), LanguageModelWriter())
    assert not (folder / "old.txt").exists() and (folder / "config.json").is_file()


def test_it_can_be_written_after_every_validation(trainer, prompts, tiny, tmp_path, monkeypatch):
    written = []
    save = PolicyTuner.save_language_model
    monkeypatch.setattr(
        PolicyTuner, "save_language_model", lambda *given, **named: (written.append(1), save(*given, **named))
    )
    tuned(trainer, prompts, BackboneConfig(config=tiny()), LanguageModelWriter(every_validation=True))
    assert len(written) == 2


def test_what_is_no_language_model_is_refused_before_the_fit(trainer, prompts, tiny):
    module = BradleyTerryRM(BackboneConfig(config=tiny()))
    with pytest.raises(ValueError, match="BradleyTerryRM has no language-model head"):
        trainer(LanguageModelWriter()).fit(module, datamodule=prompts)
