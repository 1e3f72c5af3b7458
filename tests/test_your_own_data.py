"""The page on data of one's own: every block runs as it stands, here with a tiny encoder in place of the real one."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from pluralign.train import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FITTING = ["--trainer.log_every_n_steps=1"]  # shorter runs than people's are warned of


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A bidirectional network that reads letters, as a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=512, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    return folder


def commands(section):
    """What a section's blocks do: files written, as name and content, and words of ``pluralign``."""
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        rest = block
        while rest:
            if heredoc := re.match(r"cat > (\S+) <<'END'\n(.*?)^END\n", rest, re.MULTILINE | re.DOTALL):
                yield heredoc.groups()
                rest = rest[heredoc.end() :]
            else:
                line, rest = re.match(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", rest, re.DOTALL).groups()
                yield shlex.split(line.replace("\\\n", " "))


def run(section, encoder, folder):
    """Run a section's blocks within a folder; verbs that ran."""
    (folder / "configs").symlink_to(ROOT / "configs")
    verbs = []
    for command in commands(section):
        if isinstance(command, tuple):
            Path(command[0]).write_text(command[1], encoding="utf-8")
            continue
        program, *words = (word.replace("$ENCODER", str(encoder)) for word in command)
        assert program == "pluralign"
        takes_options = words[:2] != ["data", "inspect"] or words[2].startswith("-")  # else it has no trainer
        main([*words, *(QUIET if takes_options else []), *(FITTING if words[0] == "fit" else [])])
        verbs.append(words[0])
    return verbs


def scores(name):
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


WORKED = [title for title, text in SECTIONS.items() if "```sh" in text]


def test_every_shape_has_a_section():
    assert WORKED == [
        "First look",
        "Pairs",
        "Who won?",
        "Users",
        "Several answers",
        "Votes on answers",
        "Votes on pairs",
        "Other names, CSV",
        "Many files",
    ]


LONG = ("Users", "Votes on answers", "Votes on pairs")
"""Sections with several fits."""


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=pytest.mark.slow if title in LONG else []) for title in WORKED]
)
def test_blocks_run(title, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(SECTIONS[title], encoder, tmp_path)
    for asked, written in re.findall(r"--data.predict (\S+).*?--output (\S+)", SECTIONS[title], re.DOTALL):
        lines = scores(written)
        wanted = [line["id"] for line in scores(asked) for _ in line.get("responses", [line.get("response")])]
        assert [line["id"] for line in lines] == wanted
        assert len({line["reward"] for line in lines}) == len(lines), "answers and users are told apart"
