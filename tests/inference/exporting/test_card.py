"""Model cards: what is known, what is not, and nothing that is nobody's business."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from pluralign import __version__
from pluralign.datamodules import __all__ as data_names
from pluralign.inference import open_model
from pluralign.inference.board import MEASURES, Board, BoardData, BoardModel, Cell, Measured
from pluralign.inference.exporting import (
    CardSubject,
    TrainingRecord,
    check_licence,
    evaluated_as,
    export_folder,
    folder_notes,
    model_card,
    training_record,
)
from pluralign.inference.exporting.card import model_identity
from pluralign.inference.exporting.training import UNKNOWN, data_set_terms
from pluralign.models import PAL, BradleyTerryRM

ROOT = Path(__file__).parents[3]
SAVED = ROOT / "tests" / "saved" / "pal"
SUBJECT = CardSubject(
    folder="helpful_rm",
    method=PAL,
    task="text-classification",
    library="transformers",
    bases=("ann/base",),
    about="It rates.",
    meaning="Higher is better.",
    code="print(1)",
    tokens="All of them.",
    check="Not measured.",
)


def board_of(opened, **changes):
    """A board that an evaluation of this model alone would give."""
    model = BoardModel("mine", "x.ckpt", "checkpoint", "PAL", model_identity(opened), "each user's own", "p")
    counts = dict.fromkeys(("ties", "identical", "users", "groups", "domains", "votes"), 0)
    counts |= {"records": 3, "prompts": 3, "responses": 6, "comparisons": 9}
    data = BoardData(name="law", kind="DSPDataModule", split="test", fingerprint="f00d", **counts)
    measures = {each.name: Measured.none("nobody looked") for each in MEASURES}
    measures["accuracy"] = Measured.of(0.75, 0.5, 0.875)
    return Board((replace(model, **changes),), (data,), (Cell("mine", "law", "alone", measures),))


@pytest.fixture
def run(tmp_path):
    """The folder of a run that noted what it did, with a secret and with paths."""
    folder = tmp_path / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = shutil.copy(SAVED / "last.ckpt", folder / "checkpoints")
    config = (SAVED / "config.yaml").read_text().replace("data_dir: null", "data_dir: /srv/ann/files")
    (folder / "config.yaml").write_text(
        f"{config}\ntrainer:\n  max_steps: 2\n  limit_val_batches: 3\n  logger:\n    api_key: hush\n"
        if "\ntrainer:" not in config
        else config
    )
    noted = {"value": 0.625, "step": 2}
    record = {
        "version": 1,
        "data": {
            "caches": {"synthetic": "synthetic-0123"},
            "splits": {
                "train": {
                    "rows": 9,
                    "records": 8,
                    "comparisons": 7,
                    "cut_prompts": 4,
                    "invalid": {"no | text": 1},
                    "dropped": {"equal responses": 2},
                }
            },
        },
        "numbers": {
            "val/accuracy": {"last": {"value": 0.5, "step": 4}, "best": noted},
            "val/loss": {"last": {"value": 0.9, "step": 4}, "best": None},
        },
        "sessions": [
            {
                "versions": {"torch": "9.9"},
                "git": {"commit": "c0ffee" * 7, "changed": True},
                "device": "abacus",
                "precision": "32-true",
                "processes": 1,
            }
        ],
    }
    (folder / "run.json").write_text(json.dumps(record))
    return Path(checkpoint)


def test_a_run_tells_how_the_model_was_trained(run):
    known = training_record(run)
    assert known.fingerprints == {"synthetic": "synthetic-0123"} and known.users == 6
    assert known.step == 2 and known.numbers == {"val/accuracy": 0.625}, "of the checkpoint's step alone"
    card = model_card(SUBJECT, known)
    for words in (
        "fingerprint `synthetic-0123`",
        "no \\| text: 1; equal responses: 2",
        "git commit c0ffeec0ffee",
        "not committed",
        "torch 9.9",
        "abacus",
        "| val/accuracy | 0.625 |",
        "4 prompts were longer",
        "of 6 users",
    ):
        assert words in card, words


def test_nothing_secret_and_no_folder_of_anybody_is_in_a_card(run, monkeypatch):
    path = run.parents[1] / "config.yaml"
    settings = {
        "hub_token": "hush",
        "data_dir": "/srv/ann/files",
        "cache_dir": "~/ann/cache",
        "layers": [1, None],
    }
    path.write_text(json.dumps({"model": settings, "trainer": {"logger": {"entity": "ann"}, "max_steps": 2}}))
    monkeypatch.setenv("HOME", "/homes/ann")
    base = "/homes/ann/base"
    card = model_card(replace(SUBJECT, bases=(base,), code=f'print("{base}/x")'), training_record(run))
    assert "/homes/ann" not in card and "/ann/" not in card and "hush" not in card and "entity" not in card
    assert "hub_token: '***'" in card and "'.../files'" in card and "'.../cache'" in card
    assert 'import os\nprint(os.path.expanduser("~/base/x"))' in card
    assert "base_model" not in card, "a folder is no name on the hub"


def test_what_nobody_knows_is_said(tmp_path):
    card = model_card(SUBJECT, TrainingRecord())
    assert training_record(tmp_path / "gone.ckpt") == training_record(tmp_path) == TrainingRecord()
    for words in (
        "Data: not known",
        "kept and dropped: not known",
        "Versions in training: not known",
        "checkpoint's step: not measured",
        "On other data: not measured",
        "Calibration on other data: not measured",
        "these weights: not known",
    ):
        assert words in card, words
    front = ModelCard(card).data
    assert front.license == "unknown" and front.base_model == "ann/base" and front.eval_results is None
    assert front.pipeline_tag == "text-classification" and front.tags == ["pluralign", "PAL"]


def test_numbers_of_an_evaluation_are_those_of_these_weights():
    opened = open_model(SAVED / "last.ckpt")
    board = board_of(opened)
    assert evaluated_as(board, opened).name == "mine"
    with pytest.raises(ValueError, match=r"none of its models \(mine\) has the weights"):
        evaluated_as(board_of(opened, identity="another"), opened)
    with pytest.raises(ValueError, match="is no model of the board"):
        model_card(SUBJECT, TrainingRecord(), board=board, name="yours")
    card = model_card(SUBJECT, TrainingRecord(), board=board, name="mine", licence="mit")
    assert (
        "75.0% [50.0%, 87.5%]" in card
        and "not measured (nobody looked)" in card
        and "each user's own" in card
    )
    front = ModelCard(card).data
    (result,) = front.eval_results
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (0.75, "law", "test")
    assert front.license == "mit" and front.model_name == "helpful_rm"


def test_licences_are_those_of_the_hub():
    for licence in (None, "mit", "cc-by-nc-4.0", "apache-2.0", "llama3.1", "other"):
        check_licence(licence)
    for licence in ("MIT", "Apache 2.0", "cc_by", "", "-mit", "a\nb"):
        with pytest.raises(ValueError, match=r"--license .*: the hub spells licences in small letters"):
            check_licence(licence)


def test_data_modules_say_source_and_licence():
    assert data_set_terms("dsp").licence == "CC-BY-NC-4.0 (data): not for commercial use."
    assert data_set_terms("HHRLHFDataModule").hub == ("Anthropic/hh-rlhf",)
    assert data_set_terms("synthetic").licence == "that of this package"
    assert data_set_terms("somebody's").licence == UNKNOWN
    named = [name for name in data_names if data_set_terms(name).licence != UNKNOWN]
    assert len(named) >= 30


def test_the_citation_is_that_of_the_repository():
    card, cited = model_card(SUBJECT, TrainingRecord()), (ROOT / "CITATION.cff").read_text()
    title, licence = (
        re.search(rf"^{key}: \"?([^\"\n]*)", cited, re.MULTILINE)[1] for key in ("title", "license")
    )
    assert f"title = {{{title}}}" in card and f"license = {{{licence}}}" in card
    assert f"version = {{{__version__}}}" in card and f"version: {__version__}" in cited
    assert "PAL: Sample-Efficient Personalized Reward Modeling" in card and "Departures" not in card


@pytest.mark.parametrize("form", ["classification", "adapter"])
def test_the_code_of_a_card_runs(opened, pretrained, tmp_path, monkeypatch, capsys, form):
    backbone = None
    if form == "adapter":
        backbone = {"name": pretrained(), "tokenizer": "byte", "config": {}, "lora": {"rank": 2}}
    model = opened(BradleyTerryRM, backbone)
    export_folder(model, tmp_path / "out", adapter=form == "adapter", check="here", notes=folder_notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(card).data.library_name == ("peft" if form == "adapter" else "transformers")
    assert "| none | float32 |" in card and "20 of them have the tokens of training" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "card.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names = runpy.run_path("card.py")
    assert re.fullmatch(r"tensor\(\[\[-?\d+\.\d+\]\]\)\n", capsys.readouterr().out)
    assert torch.isfinite(names["model"](**names["inputs"]).logits).all()
