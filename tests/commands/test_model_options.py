"""The verbs that open a model take the same options, and hand all of them on."""

import argparse
import sys

import pytest
import torch

from pluralign.commands.model_options import add_opening, add_reward, add_running, opened_model, opened_scorer
from pluralign.datamodules import LocalDataModule
from pluralign.models import BackboneConfig

OWN = "from pluralign.models import BradleyTerryRM\n\n\nclass OwnRM(BradleyTerryRM):\n    pass\n"


@pytest.fixture
def options():
    """Options as a verb has them, of these words."""

    def build(*words, hub=True):
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_opening(parser, hub=hub)
        if hub:
            add_reward(parser, "rows")
            add_running(parser)
        return parser.parse_args(words)

    return build


def test_every_option_reaches_what_opens(options, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "pluralign.commands.model_options.open_model", lambda source, **given: asked.update(given)
    )
    opening = {
        "checkpoint": "last",
        "class_path": "mine.RM",
        "tokenizer": "words",
        "base": "ann/base",
        "revision": "v1",
        "trust_remote_code": True,
    }
    words = [f"--{name}={value}" for name, value in opening.items() if value is not True]
    opened_model("there", options(*words, "--trust_remote_code"))
    assert asked == opening
    asked.clear()
    opened_model("there", options(hub=False))
    assert asked == {
        "checkpoint": "best",
        "class_path": None,
        "tokenizer": None,
        "trust_remote_code": False,
    }, "nothing is trusted unasked"


def test_a_class_of_ones_own_is_named(options, tiny, tmp_path, monkeypatch):
    (tmp_path / "own_rm.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rm", raising=False)
    from own_rm import OwnRM

    module = OwnRM(BackboneConfig(config=tiny()))
    module.text_format = LocalDataModule(train="never.jsonl").text_format()
    module.configure_model()
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"set class_path=own_rm\.OwnRM if you trust it"):
        opened_scorer(str(tmp_path / "own.ckpt"), options())
    scorer = opened_scorer(
        str(tmp_path / "own.ckpt"), options("--class_path=own_rm.OwnRM", "--device=cpu", "--max_tokens=99")
    )
    assert type(scorer.module) is OwnRM and (scorer.device, scorer.max_tokens) == ("cpu", 99)
