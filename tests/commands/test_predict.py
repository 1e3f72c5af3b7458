"""``pluralign predict`` as a user would run it: whose rewards, in which order, where to, and from stored features."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pluralign.datamodules import FeatureStore
from pluralign.models import PAL
from pluralign.train import main

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]
USERS = ("ann", "bob", "cy")
NEW = [
    {
        "id": "late",
        "prompt": "Say something about pears, at some length if you like.",
        "response": "No.",
        "user": "ann",
    },
    {"id": "one", "prompt": "Name a fruit.", "response": "A fig.", "user": "ann"},
    {"id": "two", "prompt": "Name a fruit.", "response": "A fig.", "user": "bob"},
    {"id": "nobody", "prompt": "Name a fruit.", "response": "A fig."},
    {
        "id": "list",
        "prompt": [{"role": "user", "content": "Name a fruit."}],
        "responses": ["A plum.", {"text": "A plum.", "user": "bob"}, "A chair."],
        "user": "cy",
    },
    {"id": "pair", "prompt": "Name a fruit.", "chosen": "A fig.", "rejected": "A chair.", "user": "bob"},
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def conf(model="PAL", backbone=None, **settings):
    """A recipe of own files; returns the words that name it."""
    rows = [
        {
            "prompt": f"Fruit {i}?",
            "chosen": f"{'Fig' if user == 'bob' else 'Plum'} {i}",
            "rejected": f"Kiwi {i}",
            "user": user,
        }
        for i in range(8)
        for user in USERS
    ]
    save("train.jsonl", rows)
    save("held_out.jsonl", [{**row, "prompt": f"Other {row['prompt']}"} for row in rows[:6]])
    save("new.jsonl", NEW)
    save("old.jsonl", [{"prompt": "An old one?", "response": "Old"}])
    if model == "PAL":
        settings = {"num_prototypes": 2, "user_init": "normal", "user_lr": 1.0, **settings}
    backbone = backbone or {"config": {"model_type": "llama", "vocab_size": 259, **SIZES}}
    files = {"train": "train.jsonl", "validation": "held_out.jsonl", "predict": "new.jsonl"}
    content = {
        "model": {"class_path": model, "init_args": {"backbone": backbone, **settings}},
        "data": {"class_path": "LocalDataModule", "init_args": {**files, "loader": {"batch_size": 4}}},
        "trainer": {"max_steps": 2, "log_every_n_steps": 1},
    }
    Path("conf.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "conf.yaml", *QUIET]


def fitted(words, *more):
    main(["fit", *words, *more])
    path = max(Path("runs").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return ["predict", *words, "--ckpt_path", str(path)]


@pytest.mark.parametrize("score", ["squared_distance", "distance"])
def test_rows_get_the_reward_of_their_user_in_their_order(score, capsys):
    words = fitted(conf(score=score))
    capsys.readouterr()
    main(words)
    (path,) = Path("runs").rglob("predictions.jsonl")
    assert f"9 predictions: {path}" in capsys.readouterr().out
    written = lines(path)
    expected = [("late", 0), ("one", 0), ("two", 0), ("nobody", 0)]
    expected += [("list", i) for i in range(3)] + [("pair", i) for i in range(2)]
    assert [(line["id"], line["response"]) for line in written] == expected
    assert [line["user"] for line in written] == ["ann", "ann", "bob", None, "cy", "bob", "cy", "bob", "bob"]
    assert [line["personal"] for line in written] == [line["user"] is not None for line in written]
    assert [line["prompt"] for line in written[3:5]] == [NEW[3]["prompt"], NEW[4]["prompt"]], "as given"
    assert [line["text"] for line in written[4:]] == ["A plum.", "A plum.", "A chair.", "A fig.", "A chair."]
    reward = {(line["id"], line["response"]): line["reward"] for line in written}
    assert len({reward[name, 0] for name in ("one", "two", "nobody")}) == 3
    assert reward["list", 0] != reward["list", 1]
    assert reward["pair", 0] == pytest.approx(reward["two", 0], abs=1e-5)

    # By another way: that user's reward as a reward model of its own.
    from pluralign.datamodules import LocalDataModule

    model = PAL.load_from_checkpoint(words[-1], weights_only=True).eval()
    save("plain.jsonl", [{key: value for key, value in row.items() if key != "user"} for row in NEW[:4]])
    data = LocalDataModule(predict="plain.jsonl")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    places = {name: batch["id"].index(name) for name in batch["id"]}
    with torch.no_grad():
        for name, user in (("late", "ann"), ("one", "ann"), ("two", "bob")):
            own = model.user_reward_module(user)(batch)
            assert reward[name, 0] == pytest.approx(float(own[places[name]]), abs=1e-5)
        assert reward["nobody", 0] == pytest.approx(float(model(batch)["reward"][places["nobody"]]), abs=1e-5)

    (pair,) = lines(path.with_name("predictions.comparisons.jsonl"))
    assert (pair["id"], pair["comparison"], pair["user"]) == ("pair", 0, "bob")
    assert pair["chosen"] == pytest.approx(reward["pair", 0], abs=1e-6)
    assert pair["rejected"] == pytest.approx(reward["pair", 1], abs=1e-6)


def test_a_user_of_whom_the_model_knows_nothing_is_an_error_or_a_choice():
    words = fitted(conf())
    save(
        "zoe.jsonl",
        [
            *NEW[:2],
            {"prompt": "Hi", "response": "Yes", "user": "zoe"},
            {"prompt": "Hi", "response": "No", "user": "dan"},
        ],
    )
    words += ["--data.predict=zoe.jsonl", "--output=out/zoe.jsonl"]
    with pytest.raises(
        ValueError,
        match=r"zoe\.jsonl:3: user 'zoe' has no weights in this model, which knows 3 users, nor have 1 others.*pluralign adapt",
    ):
        main(words)
    main([*words, "--unknown_users=mean"])
    written = lines("out/zoe.jsonl")
    assert [(line["user"], line["personal"]) for line in written] == [
        ("ann", True),
        ("ann", True),
        ("zoe", False),
        ("dan", False),
    ]


def test_columns_that_the_model_does_not_read_are_named_once():
    words = fitted(conf("BradleyTerryRM"))
    save("new.jsonl", [{**row, "domain": "fruit"} for row in NEW])
    with pytest.warns(
        UserWarning, match="have user and domain, which BradleyTerryRM does not read"
    ) as caught:
        main([*words, "--output=out.jsonl"])
    assert sum("does not read" in str(warning.message) for warning in caught) == 1
    written = lines("out.jsonl")
    assert [line["user"] for line in written[:4]] == ["ann", "ann", "bob", None]
    assert {line["domain"] for line in written} == {"fruit"} and "personal" not in written[0]
    assert len({line["reward"] for line in written[1:4]}) == 1, "one scored response for all three"


def test_a_file_that_is_there_stays_unless_told(capsys):
    words = fitted(conf("BradleyTerryRM"), "--data.predict=null")
    save("new.jsonl", [{key: value for key, value in row.items() if key != "user"} for row in NEW[:4]])
    Path("mine.jsonl").write_text("mine\n")
    with pytest.raises(SystemExit):
        main([*words, "--output=mine.jsonl"])
    assert "mine.jsonl is there already: name another file, or add --overwrite" in capsys.readouterr().err
    assert Path("mine.jsonl").read_text() == "mine\n"
    main([*words, "--output=mine.jsonl", "--overwrite"])
    assert len(lines("mine.jsonl")) == 4 and not list(Path().glob("*.partial"))
    Path("other.jsonl.partial").write_text("of an interrupted run\n")
    with pytest.raises(FileExistsError, match="holds what an interrupted run predicted"):
        main([*words, "--output=other.jsonl"])
    with pytest.raises(SystemExit):
        main([*words, "--data.predict=null"])
    assert (
        "local has no predict split; it has train, validation: name what is to be scored"
        in capsys.readouterr().err
    )


def test_a_writer_of_the_configuration_is_the_one_writer():
    words = fitted(conf("BradleyTerryRM"))
    save("new.jsonl", [{"id": "a", "prompt": "Hi", "response": "Yes"}])
    writer = '--trainer.callbacks+={"class_path": "RewardWriter", "init_args": {"path": "theirs.jsonl", "texts": false}}'
    main([*words, writer])
    assert [set(line) for line in lines("theirs.jsonl")] == [{"id", "response", "reward"}]
    assert not list(Path("runs").rglob("predictions.jsonl"))
    main([*words, writer, "--output=mine.jsonl"])
    assert lines("mine.jsonl") == lines("theirs.jsonl")


def test_what_the_store_lacks_runs_through_the_backbone(capsys):
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(3)
    LlamaModel(LlamaConfig(vocab_size=259, **SIZES)).save_pretrained("net")
    words = conf(backbone={"name": "net", "frozen": True, "tokenizer": "byte"})
    features = "--data.loader.features=store"
    main(["embed", *words, "--output=store", "--dtype=float32", "--data.predict=old.jsonl"])
    before, files = len(FeatureStore("store")), sorted(Path("store").iterdir())
    predict = [*fitted(words, features, "--data.predict=old.jsonl"), features]
    capsys.readouterr()
    main([*predict, "--output=missing.jsonl"])
    assert "4 texts that store lacks were run through the backbone" in capsys.readouterr().out
    assert sorted(Path("store").iterdir()) == files and len(FeatureStore("store")) == before
    main([*predict, "--output=again.jsonl"])
    assert "run through the backbone" not in capsys.readouterr().out, "found again"
    main(["embed", *words, "--output=store", "--dtype=float32"])
    main([*predict, "--output=stored.jsonl"])
    missing, again, stored = (lines(f"{name}.jsonl") for name in ("missing", "again", "stored"))
    assert again == missing and len(missing) == 9
    for line, other in zip(missing, stored, strict=True):
        assert (line["id"], line["response"], line["user"]) == (other["id"], other["response"], other["user"])
        assert line["reward"] == pytest.approx(other["reward"], abs=1e-6)
    main([*predict[:-1], "--output=text.jsonl"])
    assert [line["reward"] for line in lines("text.jsonl")] == pytest.approx(
        [line["reward"] for line in stored], abs=1e-5
    )
    with pytest.raises(ValueError, match="the store has 'auto', the model 'mean'"):
        save("new.jsonl", [{"prompt": "Something new", "response": "entirely"}])
        main([*predict, "--output=other.jsonl", "--model.backbone.pooling=mean"])


@pytest.mark.slow
def test_a_killed_run_leaves_every_batch_that_it_scored():
    words = fitted(conf("BradleyTerryRM"))
    save(
        "new.jsonl",
        [{"id": f"r{i}", "prompt": f"Berry {i}?", "response": "Fig" * (1 + i % 7)} for i in range(400)],
    )
    words += ["--output=out.jsonl", "--data.loader.batch_size=1"]
    slow = (
        "import torch, time; from pluralign.models import BradleyTerryRM; forward = BradleyTerryRM.forward\n"
    )
    slow += "BradleyTerryRM.forward = lambda self, batch: (time.sleep(0.02), forward(self, batch))[1]\n"
    code = f"{slow}from pluralign.train import main; main({words!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    partial = Path("out.jsonl.partial")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not partial.exists() or len(partial.read_text().splitlines()) < 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scored = lines(partial)
    assert 5 <= len(scored) < 400 and all(math.isfinite(line["reward"]) for line in scored)
    assert not Path("out.jsonl").exists()
    main([*words, "--overwrite"])
    whole = {line["id"]: line["reward"] for line in lines("out.jsonl")}
    assert list(whole) == [f"r{i}" for i in range(400)]
    for line in scored:
        assert whole[line["id"]] == pytest.approx(line["reward"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_write_one_file():
    words = fitted(conf())
    main([*words, "--output=one.jsonl"])
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.loader.batch_size=1"]
    code = f"from pluralign.train import main; main({[*words, *two, '--output=two.jsonl']!r})"
    Path("two.py").write_text(code)  # the second process is started by the same words
    subprocess.run([sys.executable, "two.py"], check=True, capture_output=True, timeout=200)
    one, both = lines("one.jsonl"), lines("two.jsonl")
    assert [line.pop("reward") for line in both] == pytest.approx(
        [line.pop("reward") for line in one], abs=1e-6
    )
    for line in (*one, *both):
        line.pop("prototype_rewards")
    assert one == both and not list(Path().glob("two*.partial"))


def test_without_a_checkpoint_it_says_that_nobody_trained_the_model():
    small = Path(__file__).parents[1] / "conf" / "bradley_terry_synthetic.yaml"
    with pytest.warns(UserWarning, match="no --ckpt_path: .* name a checkpoint, last or best"):
        main(["predict", "--config", str(small), *QUIET, "--output", "new.jsonl"])
    assert lines("new.jsonl")
