"""Policies and autoregressive reward models as folders of causal language models: equal tokens in plain transformers."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pluralign.datamodules import PersonalizedPromptsDataModule, SyntheticDataModule
from pluralign.inference.exporting import export_language_model
from pluralign.models import AutoregressiveRM, BackboneConfig, BradleyTerryRM, LoRAConfig, PolicyTuner


def longer(prompts, responses, columns):
    return [float(len(response)) for response in responses]


def fast(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def crowd():
    sizes = {"num_train": 8, "num_validation": 4, "num_test": 4, "num_predict": 4}
    return SyntheticDataModule(num_groups=2, num_users=4, **sizes)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "Name fruit {n}."}}\n' for n in range(8)), encoding="utf-8")
    return PersonalizedPromptsDataModule(train=str(path), axes={}, validation_share=0.3)


@pytest.fixture
def policy(trainer, prompts, tmp_path):
    """A tuned policy and its checkpoint."""

    def build(backbone, **settings):
        given = {"rewards": {"length": longer}, "reference": "none", "max_new_tokens": 4, **settings}
        module = PolicyTuner(backbone, optimizer=fast, **given)
        running = trainer()
        running.fit(module, datamodule=prompts)
        path = tmp_path / "run" / "last.ckpt"
        running.save_checkpoint(path, weights_only=True)
        return module.eval(), path

    return build


def written_apart(folder):
    """What the code of the folder's README prints, in a process that cannot import this project."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    refused = "import sys; sys.modules['pluralign'] = None"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{refused}\n{code}"],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def written_here(module, prompts):
    """Greedy text of the same conversation, by this project's own decoding."""
    records = prompts.tokenizer
    text = records.config.prompt_format.replace("{text}", "Name a fruit.")
    ids = torch.tensor([[*records.start_ids, *records.tokenizer(text, add_special_tokens=False).input_ids]])
    made = module.backbone.language_model().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=prompts.end_id,
        pad_token_id=prompts.pad_id,
    )
    return records.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\n")


@pytest.mark.slow  # it starts a process of its own
def test_a_policy_writes_the_same_in_a_process_without_this_project(policy, prompts, tiny, tmp_path):
    module, path = policy(BackboneConfig(config=tiny()))
    report = export_language_model(path, tmp_path / "out")
    assert report.difference <= 1e-5 and report.end_token == "</s>" and report.pad_token == "<pad>"
    written = written_apart(tmp_path / "out")
    assert written and written == written_here(module, prompts)
    facts = json.loads((tmp_path / "out" / "pluralign.json").read_text())
    assert facts["form"] == "language_model" and facts["trained_on"]["global_step"] > 0
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_adapters_are_merged_or_written_alone(policy, tiny, tmp_path):
    sizes = {name: value for name, value in tiny().items() if name != "model_type"}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    backbone = BackboneConfig(name=str(tmp_path / "base"), tokenizer="byte", lora=LoRAConfig(rank=2))
    _, path = policy(backbone)
    merged = export_language_model(path, tmp_path / "merged")
    alone = export_language_model(path, tmp_path / "alone", adapter=True)
    assert max(merged.difference, alone.difference) <= 1e-5 < merged.largest_logit
    settings = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None, "nobody else has this folder"
    facts = json.loads((tmp_path / "alone" / "pluralign.json").read_text())
    assert facts["base"]["name"] == "base" and facts["base"]["digest"]
    for file in [*(tmp_path / "alone").iterdir(), *(tmp_path / "merged").iterdir()]:
        assert str(tmp_path).encode() not in file.read_bytes(), file
    card = (tmp_path / "alone" / "README.md").read_text()
    assert 'base, revision = "base", "main"  # a folder of whoever trained' in card
    assert not (tmp_path / "alone" / "model.safetensors").exists()
    rounded = export_language_model(path, tmp_path / "rounded", dtype="bfloat16")
    assert 1e-5 < rounded.difference < 0.05


def test_an_autoregressive_reward_model_says_what_its_log_probabilities_are(trainer, tiny, tmp_path):
    module = AutoregressiveRM(BackboneConfig(config=tiny()), beta=0.2)
    running = trainer()
    running.fit(module, datamodule=crowd())
    running.save_checkpoint(tmp_path / "run" / "last.ckpt", weights_only=True)
    report = export_language_model(tmp_path / "run" / "last.ckpt", tmp_path / "out")
    assert report.difference <= 1e-5
    assert report.meaning.startswith("the sum of the log-probabilities") and "/ 0.2," in report.meaning


def test_what_no_language_model_holds_is_refused_and_nothing_is_left(policy, trainer, tiny, tmp_path):
    _, path = policy(BackboneConfig(config=tiny()))
    with pytest.raises(ValueError, match="trained whole, without an adapter"):
        export_language_model(path, tmp_path / "out", adapter=True)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["baseline"] = "best_of_n"  # which keeps nothing of where it started
    state = content["state_dict"]
    content["state_dict"] = {name: state[name] for name in state if not name.startswith("start.")}
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match="has trained nothing"):
        export_language_model(tmp_path / "best.ckpt", tmp_path / "out")
    rewards = BradleyTerryRM(BackboneConfig(config=tiny()))
    running = trainer()
    running.fit(rewards, datamodule=crowd())
    running.save_checkpoint(tmp_path / "run" / "rewards.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="has no language-model head"):
        export_language_model(tmp_path / "run" / "rewards.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
