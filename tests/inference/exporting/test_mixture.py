"""Mixtures as folders with a file that generates: the same greedy tokens in plain transformers."""

import json
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.inference.exporting import export_mixture, mixture_card
from pluralign.models import PCM, BackboneConfig, BradleyTerryRM, ExpertsConfig

AXES = {
    "tone": {"warm": "Be warm.", "cold": "Be cold."},
    "size": {"short": "Be short.", "long": "Say all there is to say."},
}
DIMENSIONS = [f"{axis}.{pole}" for axis, poles in AXES.items() for pole in poles]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A base, an adapter for each dimension and two whole models, of random weights large enough to disagree."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("base", "model_0", "model_1")):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(vocab_size=259, **SIZES)).save_pretrained(folder / name)
    for number, name in enumerate(DIMENSIONS):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        torch.manual_seed(number + 1)
        model = get_peft_model(base, LoraConfig(r=2 + number, lora_alpha=8, target_modules="all-linear"))
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder / name, save_embedding_layers=False)
    return folder


@pytest.fixture
def mixture(experts, tiny, tmp_path):
    """A checkpoint of a mixture whose weights are whatever they are, but not uniform."""

    def build(kind="adapters", backbone=None, prompts="own", **settings):
        base = BackboneConfig(name=str(experts / "base"), frozen=True)
        adapters = {name: str(experts / name) for name in DIMENSIONS}
        config = {
            "adapters": ExpertsConfig(base=base, adapters=adapters, prompts=prompts),
            "on_base": ExpertsConfig(adapters=adapters, prompts=prompts),
            "models": ExpertsConfig(models={"a": str(experts / "model_0"), "b": str(experts / "model_1")}),
        }[kind]
        torch.manual_seed(7)
        own = {"config": tiny()} if kind != "on_base" else {"name": str(experts / "base"), "frozen": True}
        given = {**own, **(backbone or {})}
        module = PCM(BackboneConfig(**given), experts=config, max_new_tokens=12, **settings)
        data = PersonalizedPromptsDataModule(train="never.jsonl", axes=AXES)
        module.text_format = data.text_format()
        module.configure_model()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name or name in ("head.linear.weight", "static"):
                    parameter.normal_(std=0.5, generator=generator)
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "epoch": 1}
        module.on_save_checkpoint(content)
        path = tmp_path / "run" / "last.ckpt"
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path)
        return path

    return build


def test_adapters_write_the_same_tokens(mixture, tmp_path):
    report = export_mixture(mixture(), tmp_path / "out", axes=AXES)
    assert (report.tried, report.same) == (4, 4) and report.dtypes == ("float32", "float32")
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or str(tmp_path.parent).encode() not in file.read_bytes(), file
    said = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert said["dimensions"]["tone.warm"] == "Be warm." and said["told"] == "own"
    code = (tmp_path / "out" / "custom_generate" / "generate.py").read_text()
    assert "import pluralign" not in code and "from pluralign" not in code
    notes = (tmp_path / "out" / "README.md").read_text()
    assert "4 of 4 have the same tokens" in notes and "- these weights: not known" in notes
    front = ModelCard(notes).data
    assert (front.license, front.library_name, front.pipeline_tag) == (
        "unknown",
        "transformers",
        "text-generation",
    )
    assert front.tags == ["pluralign", "PCM", "custom_generate"] and front.base_model is None
    assert "- base `base`: not known here" in notes and "## Training data" in notes, (
        "a card as every other folder's"
    )
    card = ModelCard(mixture_card(report._replace(bases=("ann/one", "ann/two")), licence="mit"))
    assert card.data.license == "mit" and card.data.base_model == ["ann/one", "ann/two"]
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_mixture(mixture(), tmp_path / "out", axes=AXES)


@pytest.mark.slow  # many exports of tiny networks
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "models"},
        {"kind": "on_base"},
        {"preference_as": "tokens"},
        {"baseline": "static"},
        {"prompts": "all"},
        {"prompts": "none"},
        {"backbone": {"lora": {"rank": 2}}},
    ],
    ids=["models", "on_base", "tokens", "static", "all", "none", "lora"],
)
def test_every_form_writes_the_same_tokens(settings, mixture, tmp_path):
    report = export_mixture(mixture(**settings), tmp_path / "out", axes=AXES)
    assert report.same == report.tried > 1


@pytest.mark.slow  # it starts a process of its own
@pytest.mark.parametrize("kind", ["adapters", "models"])
def test_the_folder_writes_the_same_in_a_process_without_this_project(kind, mixture, tmp_path):
    from transformers import AutoModelForCausalLM

    from pluralign.inference.exporting.mixture_generate import generate

    export_mixture(mixture(kind), tmp_path / "out", axes=AXES)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    refused = "import sys; sys.modules['pluralign'] = None"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{refused}\n{code}\nprint(written[0].tolist())"],
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    asked = [["tone.warm", "size.short"]]
    here = generate(model, [[{"role": "user", "content": "Name a fruit."}]], asked, max_new_tokens=20)
    assert json.loads(done.stdout.splitlines()[-1]) == here[0].tolist()


def test_what_a_folder_cannot_hold_or_write_is_said(mixture, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    from pluralign.inference.exporting.mixture_generate import generate

    path = mixture("models")
    export_mixture(path, tmp_path / "out", axes=AXES)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"call generate\(conversations="):
        generate(model, input_ids=torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="allowed is one of each axis"):
        generate(model, ["Hm?"], [["tone.warm", "tone.cold"]])
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["experts"] = None
    torch.save(content, tmp_path / "boxes.ckpt")
    with pytest.raises(ValueError, match="set by hand, such as black boxes"):
        export_mixture(tmp_path / "boxes.ckpt", tmp_path / "new", axes=AXES)
    rewards = BradleyTerryRM(BackboneConfig(config=tiny()))
    rewards.configure_model()
    content = {"state_dict": rewards.state_dict(), "hyper_parameters": dict(rewards.hparams)}
    rewards.on_save_checkpoint(content)
    torch.save(content, tmp_path / "rewards.ckpt")
    with pytest.raises(TypeError, match="is of BradleyTerryRM"):
        export_mixture(tmp_path / "rewards.ckpt", tmp_path / "new", axes=AXES)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))
