"""``pluralign export``, through the command line."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pluralign.datamodules import PersonalizedPromptsDataModule
from pluralign.models import PCM, BackboneConfig, ExpertsConfig, PolicyTuner
from pluralign.train import main

SAVED = Path(__file__).parents[1] / "saved"


def test_a_checkpoint_becomes_a_folder(tmp_path, capsys):
    words = ["export", str(SAVED / "pal" / "last.ckpt"), "-o", str(tmp_path / "out"), "--check", "here"]
    main(words)
    shown = capsys.readouterr().out
    assert "a modelling file of its own (trust_remote_code=True)" in shown and "padded left" in shown
    assert "AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)" in shown
    facts = json.loads((tmp_path / "out" / "pluralign.json").read_text())
    assert facts["class_path"].endswith(".PAL") and facts["whose"] == {}
    assert facts["trained_on"]["global_step"] > 0
    with pytest.raises(FileExistsError, match="add --overwrite"):
        main(words)
    main([*words[:-1], "none", "--overwrite", "--output_kind", "basis"])
    facts = json.loads((tmp_path / "out" / "pluralign.json").read_text())
    assert facts["whose"] == {"output": "basis"} and facts["parity"] is None
    assert len(facts["outputs"]) > 1
    assert "has not tried the folder" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint = str(SAVED / "dprm" / "last.ckpt")
    cases = [
        ([str(tmp_path / "run")], FileNotFoundError, "has no checkpoint"),
        ([str(tmp_path / "nothing.ckpt")], FileNotFoundError, "there is no such file or folder"),
        ([str(Path(__file__))], ValueError, "test_export.py"),
        ([checkpoint, "--user", "ann"], ValueError, "DPRM has no rewards by user"),
        ([checkpoint, "--member", "member_0"], ValueError, "DPRM has no rewards by member"),
        (
            [str(SAVED / "pal" / "last.ckpt"), "--user", "nobody"],
            ValueError,
            "'nobody' has no weights in this model",
        ),
    ]
    for words, error, message in cases:
        with pytest.raises(error, match=message):
            main(["export", *words, "-o", str(tmp_path / "out"), "--check", "here"])
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["run"]


def test_a_push_is_refused_before_anything_is_read_and_follows_the_export(tmp_path, capsys, monkeypatch):
    words = ["export", str(SAVED / "pal" / "last.ckpt"), "-o", str(tmp_path / "out"), "--check", "none"]
    with pytest.raises(ValueError, match="--public says who sees what is pushed"):
        main([*words, "--public"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RuntimeError, match="set the environment variable HF_TOKEN"):
        main([*words, "--push_to_hub", "ann/model"])
    assert not (tmp_path / "out").exists()
    pushed = []

    def push(folder, repository, *, private, overwrite):
        pushed.append((folder.name, repository, private, overwrite, (folder / "pluralign.json").is_file()))
        return "https://hub/ann/model"

    monkeypatch.setenv("HF_TOKEN", "made up")
    monkeypatch.setattr("pluralign.commands.export.push_folder", push)
    main([*words, "--push_to_hub", "ann/model"])
    assert pushed == [("out", "ann/model", True, False, True)]
    assert "pushed: https://hub/ann/model" in capsys.readouterr().out


@pytest.fixture
def policy(tiny, tmp_path):
    """The checkpoint of a policy."""
    module = PolicyTuner(BackboneConfig(config=tiny()), reference="none", max_new_tokens=4)
    module.text_format = PersonalizedPromptsDataModule(train="never.jsonl", axes={}).text_format()
    module.configure_model()
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "policy.ckpt")
    return tmp_path / "policy.ckpt"


def test_a_policy_becomes_a_causal_language_model(policy, tmp_path, capsys):
    main(["export", str(policy), "-o", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert (
        "a causal language model, float32" in shown
        and "AutoModelForCausalLM.from_pretrained(folder)" in shown
    )
    assert json.loads((tmp_path / "out" / "pluralign.json").read_text())["form"] == "language_model"
    with pytest.raises(ValueError, match=r"is of PolicyTuner, for which .*--user.*--check.* means nothing"):
        main(["export", str(policy), "-o", str(tmp_path / "new"), "--user", "ann", "--check", "here"])
    with pytest.raises(ValueError, match=r"is a reward model, for which .*--axes.* means nothing"):
        main(["export", str(SAVED / "pal" / "last.ckpt"), "-o", str(tmp_path / "new"), "--axes", "axes.yaml"])
    assert not (tmp_path / "new").exists()


@pytest.fixture
def mixture(tiny, tmp_path):
    """The checkpoint of a mixture of two models, as a run's folder has it."""
    names = ("tone.warm", "tone.cold")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        sizes = {key: value for key, value in tiny().items() if key != "model_type"}
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / name)
    experts = ExpertsConfig(models={name: str(tmp_path / name) for name in names})
    module = PCM(BackboneConfig(config=tiny()), experts=experts, max_new_tokens=6)
    module.text_format = PersonalizedPromptsDataModule(train="never.jsonl", axes={}).text_format()
    module.configure_model()
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


def test_a_mixture_takes_its_sentences_from_the_run_or_from_a_file(mixture, tmp_path, capsys):
    words = ["export", str(mixture), "-o", str(tmp_path / "out"), "--overwrite"]
    with pytest.raises(ValueError, match=r"does not say with which sentences .*--axes FILE"):
        main(words)
    with pytest.raises(ValueError, match=r"is of PCM, for which .*--adapter.*--dtype.* means nothing"):
        main([*words, "--adapter", "--dtype", "bfloat16"])
    axes = {"tone": {"warm": "Be warm.", "cold": "Be cold."}}
    (tmp_path / "axes.yaml").write_text(json.dumps(axes))
    main([*words, "--axes", str(tmp_path / "axes.yaml")])
    shown = capsys.readouterr().out
    assert "2 experts (models)" in shown and "4 of 4 greedy responses have the same tokens" in shown
    data = {"class_path": "pluralign.datamodules.PersonalizedPromptsDataModule"}
    given = {
        "data": {
            **data,
            "init_args": {"train": "never.jsonl", "axes": {"tone": {"warm": "Warmly!", "cold": "Coldly!"}}},
        }
    }
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(given))
    main(words)
    said = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert said["dimensions"] == {"tone.warm": "Warmly!", "tone.cold": "Coldly!"}
