"""``pluralign data treated``: one page that loads nothing, in which no text of the data is more than text."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from pluralign.commands.treated import sample_page
from pluralign.commands.treated_axis import axis
from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig, TreatmentConfig
from pluralign.datamodules.votes import VoteFolder, VoteShard, VoteSource, described_data
from pluralign.train import main

EVIL = '</div></article><script>alert("x")</script><img src=x onerror=alert(1)>&amp; \x1b[31m'
NETWORK = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32}
NETWORK |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512}
RULES = [
    {"high": 0.25, "label": "flip", "margin": 1.0},
    {"low": 0.25, "high": 0.5, "label": "drop"},
    {"low": 0.75, "smoothing": 0.2, "margin": 1.0, "clip": 0.5},
]


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text of each card."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cards, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "article":
            self.cards.append((dict(attrs), []))
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "article"

    def handle_data(self, data):
        if self.inside:
            self.cards[-1][1].append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self):
        return {
            attributes["data-drawn"]: " ".join(" ".join(parts).split()) for attributes, parts in self.cards
        }


def line(i, **comparison):
    responses = [f"good {i}", EVIL if i == 0 else "long " * 300 if i == 3 else f"bad {i}"]
    judged = [{"chosen": 0, "rejected": 1, **comparison}]
    return {
        "id": f"<b>r{i}</b>" if i == 1 else f"r{i}",
        "prompt": f"{i}?",
        "responses": responses,
        "comparisons": judged,
    }


def module(folder, treatments=None, *, records=None):
    """A data module over twelve comparisons with votes of two members on them, or over other records; and its settings."""
    voted = records is None
    records = records or [line(i, preference=0.5 if i == 11 else 1.0) for i in range(12)]
    for split, rows in {"train": records, "validation": [line("v")]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    settings["cache_dir"] = str(folder / "cache")
    if voted:
        data = LocalDataModule(**settings, text=TextConfig(max_length=2048))
        data.setup("fit")
        keys, places = data.table("train").named_items("comparison")
        differences = np.asarray([[i / 10 - 0.4, i / 10 - 0.2] for i in range(len(keys))], np.float32)
        source = VoteSource(described_data(data), "m", 2, "none")
        votes = VoteFolder(folder / "votes", source, {"train": len(records)})
        votes.write("train", 0, VoteShard(keys, places, differences))
        votes.finish()
        treatments = treatments or {"votes": str(folder / "votes"), "rules": RULES}
    loader = LoaderConfig(batch_size=4, treatments=TreatmentConfig(**treatments))
    data = LocalDataModule(**settings, text=TextConfig(max_length=2048), loader=loader)
    data.setup("fit")
    return data, {
        **settings,
        "text": {"max_length": 2048},
        "loader": {"batch_size": 4, "treatments": treatments},
    }


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Twelve comparisons with votes: the data module, and the settings that make it."""
    return module(tmp_path_factory.mktemp("voted"))


@pytest.fixture(scope="module")
def text(voted):
    """The page about them."""
    return sample_page(voted[0], num_per_rule=20, seed=0)[0]


def command(folder, settings, *words):
    """Run the verb by a configuration."""
    conf = {
        "model": {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": NETWORK}}},
        "data": {"class_path": "LocalDataModule", "init_args": settings},
        "trainer": {"accelerator": "cpu", "logger": False},
    }
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))
    main(["data", "treated", "--config", str(folder / "conf.yaml"), *words])


def test_the_verb_writes_the_page(voted, text, tmp_path, capsys):
    path = tmp_path / "new" / "page.html"
    command(tmp_path, voted[1], "--output", str(path))
    assert path.read_text(encoding="utf-8") == text
    assert f"12 comparisons are shown in {path}" in capsys.readouterr().out


def test_the_page_loads_nothing_and_runs_nothing_of_the_data(text):
    read = Page(text)
    assert not {name for _, attributes in read.elements for name in attributes} & {
        "src",
        "href",
        "srcset",
        "style",
    }
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert len(read.of("script")) == len(read.of("style")) == 1 and not read.of("img") and not read.of("b")
    (policy,) = [
        each["content"] for each in read.of("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind, tag in (("style-src", "style"), ("script-src", "script")):
        content = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    (evil,) = [said for said in read.texts().values() if "alert" in said]
    assert EVIL.replace("\x1b", "\u241b") in evil, "what the data say can be read as it is"
    assert any("<b>r1</b>" in said for said in read.texts().values())


def test_cards_say_what_is_done_to_each_comparison(text):
    read = Page(text)
    said = {re.search(r"r\d+", each)[0]: each for each in read.texts().values()}
    assert len(said) == 12
    flipped = said["r1"]
    assert "flip + margin 1 x strength" in flipped and "Strength \u22120.2, std 0.1" in flipped
    assert "The other answer \u2192 preferred in training bad 1 Preferred by the label good 1" in flipped
    assert "0 of 2 members agree with the label" in flipped
    assert "in training: share 1 of the other side, margin 0.2" in flipped
    assert "left out of training" in said["r4"] and "\u2192" not in said["r4"]
    assert "in training: share 0.8, margin 0.5" in said["r10"]
    assert "Strength 0.3" in said["r6"] and "in training" not in said["r6"]
    assert "the label is a tie" in said["r11"] and "One answer" in said["r11"]
    strata = [attributes["data-rule"] for attributes, _ in read.cards]
    assert strata == ["0"] * 3 + ["1"] * 3 + ["2"] * 2 + ["-1"] * 3 + ["-2"]
    assert all(len(re.findall("<circle", each)) == 2 for each in text.split("<article")[1:])


def test_filters_name_every_rule_and_can_be_reached_by_keyboard(text):
    read = Page(text)
    boxes = [each for each in read.of("input") if each["type"] == "checkbox"]
    assert [box["value"] for box in boxes] == ["0", "1", "2", "-1", "-2"]
    assert {"low", "high"} <= {each.get("id") for each in read.of("input")}
    assert "below 0.25: flip + margin 1 x strength <small>(3)</small>" in text
    (long,) = [each for each in read.of("div") if each.get("class") == "text long"]
    assert long["tabindex"] == "0" and long["dir"] == "auto"
    assert "prefers-color-scheme: dark" in text and read.of("meta")[2]["content"].startswith(
        "width=device-width"
    )


def test_the_sample_is_seeded_and_of_each_rule(voted):
    first, again, other = (sample_page(voted[0], num_per_rule=1, seed=seed) for seed in (0, 0, 3))
    assert first == again and first[0] != other[0] and first[1] == 5
    assert [attributes["data-rule"] for attributes, _ in Page(first[0]).cards] == ["0", "1", "2", "-1", "-2"]


def test_strengths_without_votes(tmp_path):
    records = [line(i, strength=i / 10 - 0.4) for i in range(8)] + [line(8)]
    data, _ = module(tmp_path, {"rules": RULES[:1], "missing": "keep"}, records=records)
    text, _ = sample_page(data, num_per_rule=20, seed=0)
    assert "<circle" not in text and text.count('<line class="mean"') == 8
    read = Page(text)
    assert [attributes["data-strength"] for attributes, _ in read.cards][-1] == ""
    (unknown,) = [said for said in read.texts().values() if "No strength is known" in said]
    assert "r8" in unknown and "\u2212" not in unknown


def test_a_label_of_less_than_a_half_is_the_second_sides(tmp_path):
    records = [line(i, strength=1.0, preference=0.25) for i in range(1, 3)] + [line(5, strength=2.0)]
    data, _ = module(tmp_path, {"rules": [{"high": 0, "margin": 1}], "by": "value"}, records=records)
    text, _ = sample_page(data, num_per_rule=20, seed=0)
    (said,) = [each for each in Page(text).texts().values() if "r2" in each]
    assert "The other answer good 2 Preferred by the label bad 2" in said
    assert (
        "Strength \u22121" in said
        and "share of the label 0.75; in training: share 0.75, margin \u22121" in said
    )


def test_what_is_missing_is_said(voted, tmp_path, capsys):
    settings = voted[1]
    plain = {**settings, "loader": {"batch_size": 4}}
    for given, words, message in (
        (settings, [], "name the page: --output treated.html"),
        (settings, ["--output=page.html", "--num_per_rule=0"], "num_per_rule must be finite and >= 1; got 0"),
        (plain, ["--output=page.html"], "nothing is treated: set data.loader.treatments"),
    ):
        with pytest.raises(SystemExit):
            command(tmp_path, given, *words)
        assert message in capsys.readouterr().err
    data = LocalDataModule(train=settings["train"], validation=settings["validation"])
    with pytest.raises(ValueError, match=r"nothing is treated: set loader\.treatments"):
        sample_page(data, num_per_rule=1, seed=0)


def test_dots_beyond_the_axis_stand_at_its_end():
    drawn = axis(0.5, 1.0, [0.5, 9.0, -9.0], reach=1.0)
    assert 'class="for beyond" cx="96.0%"' in drawn and 'class="against beyond" cx="4.0%"' in drawn
    assert (
        'class="for" cx="73.0%"' in drawn and 'aria-label="3 votes, mean 0.5, standard deviation 1"' in drawn
    )
    assert axis(float("nan"), float("nan"), [], reach=1.0) == ""


def test_a_run_is_treated_by_the_votes_of_an_ensemble(tmp_path, monkeypatch, caplog):
    """Fit an ensemble, vote, look at what is treated, and fit on treated labels: one configuration, a few options."""
    monkeypatch.chdir(tmp_path)
    conf = {
        "model": {
            "class_path": "EnsembleVoteRM",
            "init_args": {"backbone": {"config": NETWORK}, "num_members": 3, "members": "head"},
        },
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {"num_train": 20, "num_validation": 4, "loader": {"batch_size": 4}},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
        },
    }
    Path("ensemble.yaml").write_text(yaml.safe_dump(conf))
    main(["fit", "--config", "ensemble.yaml"])
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    main(["vote", "--config", "ensemble.yaml", "--ckpt_path", str(checkpoint), "--output", "votes"])
    rules = [{"high": 0.2, "label": "flip", "margin": 1}, {"low": 0.2, "high": 0.5, "label": "drop"}]
    conf["model"] = {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": NETWORK}}}
    conf["data"]["init_args"]["loader"]["treatments"] = {"votes": "votes", "rules": rules}
    conf["trainer"] |= {"max_steps": -1, "max_epochs": 1, "limit_val_batches": 1}
    Path("final.yaml").write_text(yaml.safe_dump(conf))
    main(["data", "treated", "--config", "final.yaml", "--output", "page.html"])
    assert Page(Path("page.html").read_text(encoding="utf-8")).cards
    with caplog.at_level("INFO"):
        caplog.clear()
        main(["fit", "--config", "final.yaml"])
    found = re.search(
        r"(\d+) comparisons are treated by quantile of the strength in votes; (\d+) tied", caplog.text
    )
    number = math.ceil((int(found[1]) - int(found[2])) / 5)
    assert f"rules[0] below 0.2, flip + margin 1 x strength: {number} comparisons" in caplog.text
