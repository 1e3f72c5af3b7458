"""Configurations laid over a mixture's: sources that a later one does not name are never lost."""

import json
from pathlib import Path

import pytest

from pluralign.commands.cli import NoOptions, PluralignCLI

NETWORK = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
           "num_attention_heads": 2}  # fmt: skip
SMALL = {"num_train": 8, "num_validation": 4, "num_test": 4, "num_predict": 4}


def mixture(path, sources, **top):
    Path(path).write_text(
        json.dumps({**top, "data": {**top.get("data", {}), "init_args": {"sources": sources}}})
    )


@pytest.fixture(autouse=True)
def first(tmp_path, monkeypatch):
    """A configuration of two sources."""
    monkeypatch.chdir(tmp_path)
    source = {"class_path": "SyntheticDataModule", "init_args": SMALL}
    model = {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": NETWORK}}}
    mixture("one.yaml", {"a": source, "b": source}, model=model, data={"class_path": "MixtureDataModule"})


def sizes(*words):
    cli = PluralignCLI(
        "fit", ["--config=one.yaml", *words], description=None, options=NoOptions, method="fit"
    )
    sources = cli.config.data.init_args.sources
    return {name: source.init_args.num_train for name, source in sources.items()}


CHANGE = {"a": {"init_args": {"num_train": 6}}}


@pytest.mark.parametrize("how", ["file", "word"])
def test_what_would_lose_a_source_is_refused(how, capsys):
    mixture("two.yaml", CHANGE)
    words = ["--config=two.yaml"] if how == "file" else [f"--data.sources={json.dumps(CHANGE)}"]
    with pytest.raises(SystemExit):
        sizes(*words)
    told = capsys.readouterr().err
    assert "changes the source 'a' of the mixture, and would take away 'b'" in told
    assert "write --data.sources.a.OPTION" in told


def test_a_word_with_dots_and_a_full_mapping_change_what_they_name():
    assert sizes("--data.sources.a.num_train=6") == {"a": 6, "b": 8}
    mixture("two.yaml", {"c": {"class_path": "SyntheticDataModule", "init_args": {**SMALL, "num_train": 5}}})
    assert sizes("--config=two.yaml") == {"c": 5}
    mixture("three.yaml", {**CHANGE, "b": {"init_args": {"num_train": 7}}})
    assert sizes("--config=three.yaml") == {"a": 6, "b": 7}
