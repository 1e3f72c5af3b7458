"""``pluralign export``, through the command line."""

import json
from pathlib import Path

import pytest

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
