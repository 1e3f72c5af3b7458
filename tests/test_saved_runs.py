"""Runs that an earlier state of the project saved go on: their configurations, checkpoints and predictions are kept.

``saved/<method>`` holds what ``pluralign fit`` wrote after two steps at commit 8b6c032, before the rooms had wings, and
what ``pluralign predict`` then wrote from it.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml

import pluralign.models
from pluralign.train import main

SAVED = sorted((Path(__file__).parent / "saved").iterdir())
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("run", SAVED, ids=lambda run: run.name)
def test_a_saved_run_predicts_what_it_predicted(run):
    writer = '{"class_path": "RewardWriter", "init_args": {"path": "predictions.jsonl"}}'
    saved = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "last.ckpt")]
    main(["predict", *saved, *QUIET, f"--trainer.callbacks+={writer}"])
    now, then = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (Path("predictions.jsonl"), run / "predictions.jsonl")
    )
    found = {(line["id"], line["response"]): line for line in now}
    assert len(found) == len(now) == len(then)
    assert list(found) == sorted(found), "in the input's order, where it was one of length"
    for before in then:
        line = found[before["id"], before["response"]]
        for name in before.keys() - {"id", "response"}:
            assert line[name] == pytest.approx(before[name], abs=1e-5), name


@pytest.mark.parametrize("run", SAVED, ids=lambda run: run.name)
def test_a_saved_run_goes_on_and_loads_as_a_module(run):
    saved = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "last.ckpt")]
    main(["fit", *saved, *QUIET, "--trainer.max_steps=3"])
    later = torch.load(next(Path("runs").rglob("*step=3.ckpt")), weights_only=True)
    assert later["global_step"] == 3
    name = yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"].rsplit(".", 1)[-1]
    module = getattr(pluralign.models, name).load_from_checkpoint(run / "last.ckpt", weights_only=True)
    before = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
