"""Code that ships with a network's weights runs when whoever opens a checkpoint says so, and never because of a file."""

import io
import json

import lightning
import pytest
import torch
from lightning.pytorch.core import saving
from transformers import LlamaConfig, LlamaModel

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.inference import CheckpointReward, open_model
from pluralign.inference.exporting import export_language_model
from pluralign.models import AutoregressiveRM, BackboneConfig, BradleyTerryRM, restored_module
from pluralign.train import main

SHIPPED = """
from pathlib import Path

from transformers import LlamaConfig, LlamaModel

Path({mark!r}).touch()


class ShippedConfig(LlamaConfig):
    pass


class ShippedModel(LlamaModel):
    config_class = ShippedConfig
"""


@pytest.fixture
def mark(tmp_path):
    """A file that is there once the shipped code has run."""
    return tmp_path / "it_ran"


@pytest.fixture
def checkpoint(tmp_path, mark, tiny):
    """A checkpoint whose settings allow the code that ships with its base."""

    def build(kind=BradleyTerryRM, name="run.ckpt"):
        base = tmp_path / "base"
        if not base.is_dir():
            fields = {name: value for name, value in tiny().items() if name != "model_type"}
            LlamaModel(LlamaConfig(**fields)).save_pretrained(base)
            (base / "shipped.py").write_text(SHIPPED.format(mark=str(mark)))
            config = json.loads((base / "config.json").read_text())
            config["auto_map"] = {"AutoConfig": "shipped.ShippedConfig", "AutoModel": "shipped.ShippedModel"}
            (base / "config.json").write_text(json.dumps(config))
        module = kind(BackboneConfig(config=tiny(), tokenizer="byte"))
        module.text_format = LocalDataModule(train="never.jsonl").text_format()
        module.configure_model()
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        content["pytorch-lightning_version"] = lightning.__version__
        module.on_save_checkpoint(content)
        content["hyper_parameters"]["backbone"] |= {
            "name": str(base),
            "config": {},
            "trust_remote_code": True,
        }
        content["pluralign"]["text_format"] |= {"trust_remote_code": True}
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return build


def test_nobody_who_opens_a_checkpoint_runs_code_unasked(checkpoint, mark, tmp_path):
    path, rows = checkpoint(), tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Fruit?", "response": "A fig."}\n')
    stream = io.BytesIO(path.read_bytes())
    ways = [
        lambda: restored_module(path),
        lambda: open_model(path),
        lambda: CheckpointReward(str(path)),
        lambda: BradleyTerryRM.load_from_checkpoint(path),
        lambda: BradleyTerryRM.load_from_checkpoint(stream),
        lambda: BradleyTerryRM.load_from_checkpoint(f"file://{path}"),
        lambda: main(["score", str(rows), "-m", str(path), "-o", str(tmp_path / "scores.jsonl")]),
        lambda: main(["serve", str(path), "--port", "0"]),
        lambda: main(["export", str(path), "-o", str(tmp_path / "out")]),
        lambda: export_language_model(checkpoint(AutoregressiveRM, "words.ckpt"), tmp_path / "out"),
    ]
    for way in ways:
        with pytest.raises(
            ValueError, match=r"code that ships with '.*base' .*reading a checkpoint runs no such code"
        ):
            way()
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_it_runs_when_asked(checkpoint, mark):
    opened = open_model(checkpoint(), trust_remote_code=True)
    assert mark.exists() and opened.text.trust_remote_code
    assert type(opened.module.backbone.model).__name__ == "ShippedModel"


def test_settings_that_are_given_are_no_settings_of_the_file(checkpoint, mark, tmp_path):
    path = checkpoint()
    plain = {"name": str(tmp_path / "base"), "tokenizer": "byte"}
    restored_module(path, settings={"backbone": plain})
    BradleyTerryRM.load_from_checkpoint(path, backbone=BackboneConfig(**plain))
    assert not mark.exists(), "the class of transformers reads it"
    BradleyTerryRM.load_from_checkpoint(path, backbone=BackboneConfig(**plain, trust_remote_code=True))
    assert mark.exists()


def test_a_checkpoint_beneath_other_settings_is_looked_at_too():
    from pluralign.models._shipped_code import refuse_shipped_code

    kept = {
        "backbone": {"trust_remote_code": False},
        "experts": {"base": {"name": "a/b", "trust_remote_code": True}},
    }
    with pytest.raises(ValueError, match=r"ships with 'a/b' \(experts\.base\.trust_remote_code=true\)"):
        refuse_shipped_code(kept, "run.ckpt")
    with pytest.raises(ValueError, match="ships with 'c'"):
        refuse_shipped_code({"parts": [{"tokenizer": "c", "trust_remote_code": True}]}, "run.ckpt")


def test_neither_old_keys_nor_a_file_of_settings_nor_how_they_are_written_allow_it(
    checkpoint, mark, tmp_path
):
    path = checkpoint()
    content = torch.load(path)
    settings = content.pop("hyper_parameters")
    plain = settings | {"backbone": settings["backbone"] | {"trust_remote_code": False}}
    (tmp_path / "hparams.yaml").write_text(json.dumps(settings))
    torch.save(content | {"hyper_parameters": plain}, tmp_path / "plain.ckpt")
    for name, more in {
        "old": {"module_arguments": settings},
        "dotted": {"hyper_parameters": plain | {"backbone.trust_remote_code": True}},
        "text": {"hyper_parameters": plain | {"backbone": json.dumps(settings["backbone"])}},
    }.items():
        torch.save(content | more, tmp_path / f"{name}.ckpt")
        with pytest.raises(ValueError, match="reading a checkpoint runs no such code"):
            BradleyTerryRM.load_from_checkpoint(tmp_path / f"{name}.ckpt")
    with pytest.raises(ValueError, match=r"hparams\.yaml was trained with code that ships with"):
        BradleyTerryRM.load_from_checkpoint(
            tmp_path / "plain.ckpt", hparams_file=str(tmp_path / "hparams.yaml")
        )
    assert not mark.exists()


def test_what_is_read_is_plain_values_wherever_it_lies(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(saving, "pl_load", lambda *_, weights_only, **__: asked.append(weights_only) or {})
    path = checkpoint()
    plain = {"backbone": {"config": {"model_type": "llama"}}}
    with pytest.raises(ValueError, match="does not make a BradleyTerryRM"):
        BradleyTerryRM.load_from_checkpoint(path, **plain)
    assert asked == [True], "Lightning takes None for False where a file is read over http"


def test_a_text_format_allows_nothing():
    said = {"tokenizer": "byte", "format": "plain", "trust_remote_code": True}
    assert not TextConfig.of_format(said).trust_remote_code
    assert TextConfig.of_format(said, trust_remote_code=True).trust_remote_code
