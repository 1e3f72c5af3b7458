"""`pluralign adapt` from end to end: a fit that sees some users, the others' weights, and the new checkpoint in use."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.datamodules.batches.users import UserProtocol
from pluralign.models import PAL
from pluralign.tests.datamodules.datasets.test_summarize_from_feedback import with_newcomers, write
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
SIZES = {"num_users": 12, "num_groups": 2, "disagreement": 1.0, "label_noise": 0.0, "num_train": 80,
         "num_validation": 8, "num_test": 40, "num_predict": 6}  # fmt: skip
PROTOCOL = {"unseen_share": 0.3}
PROJECTOR = {"projector": "linear", "score": "squared_distance", "projector_lr": 0.01, "user_lr": 0.05}
QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": 2,
    "log_every_n_steps": 1,
}


def configure(folder, backbone, *, protocol=PROTOCOL, loader=None, model="PAL"):
    """Write a configuration; returns the words that name it."""
    settings = PROJECTOR if model == "PAL" else {}
    content = {
        "seed_everything": 0,
        "model": {"class_path": model, "init_args": {"backbone": backbone, **settings}},
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {**SIZES, "loader": {"batch_size": 16, "users": protocol, **(loader or {})}},
        },
        "trainer": QUIET,
    }
    path = Path(folder) / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Configuration and checkpoint of a fit."""
    folder, before = tmp_path_factory.mktemp("fit"), Path.cwd()
    words = configure(folder, {"config": TINY})
    os.chdir(folder)
    try:
        main(["fit", *words])
    finally:
        os.chdir(before)
    return words, str(next(folder.rglob("*.ckpt")))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def unseen_users():
    data = SyntheticDataModule(**SIZES, loader=LoaderConfig(users=UserProtocol(**PROTOCOL)))
    data.setup("fit")
    return data.divided_users()[1]


def refused(capsys, words, message):
    with pytest.raises(SystemExit) as found:
        main(["adapt", *words])
    assert found.value.code == 2
    error = capsys.readouterr().err
    assert message in error, error


def test_new_users_in_a_new_checkpoint(fitted, capsys):
    words, checkpoint = fitted
    adapt = ["adapt", *words, "--ckpt_path", checkpoint, "--shots", "0,2,10,1000"]
    main([*adapt, "--output", "out/new.ckpt", "--prior_strength", "0.1,1"])
    printed = capsys.readouterr().out
    unseen = unseen_users()
    assert len(unseen) == 4, "0.3 of 12"
    assert "synthetic: 4 unseen users" in printed and "seen users" in printed
    assert "4 users added, 12 in all: out/new.ckpt; report: out/new.json" in printed

    report = json.loads(Path("out/new.json").read_text())
    assert [point["shots"] for point in report["points"]] == [0, 2, 10]
    assert report["left_out"] == [1000] and "nobody has 1000 labels" in " ".join(printed.split())
    assert "warning: the curve is a mean over 4 unseen users alone; below about 10" in printed
    assert len(report["warnings"]) == 1
    assert set(report["points"][0]["query"]["of_user"]) == set(unseen) == set(report["support_of_user"])
    assert report["prior_strength"] in (0.1, 1.0) and set(report["held_out_log_loss"]) == {"0.1", "1.0"}
    assert report["seen_users"]["num_users"] == 8
    assert not set(report["seen_users"]["of_user"]) & set(unseen)
    everything = report["all_support"]
    assert everything["log_loss"] != pytest.approx(report["points"][0]["query"]["log_loss"], abs=1e-6)

    old, new = (
        PAL.load_from_checkpoint(checkpoint),
        PAL.load_from_checkpoint("out/new.ckpt", weights_only=True),
    )
    assert new.users == [*old.users, *unseen]
    assert torch.equal(new.weights_of(old.users), old.weights_of(old.users))
    weights = new.weights_of(unseen)
    assert len({tuple(row) for row in weights.tolist()}) == 4
    state = new.state_dict()
    for name, value in old.state_dict().items():
        assert name.startswith("table.") or torch.equal(value, state[name]), name
    assert new.text_format == old.text_format

    # What test finds with it is what the report says.
    for show, expected in (("unseen", everything), ("seen", report["seen_users"])):
        main(["test", *words, "--ckpt_path", "out/new.ckpt", f"--data.loader.users.show={show}"])
        rows = [line for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line]
        assert float(rows[0].split("│")[2]) == pytest.approx(expected["accuracy"], abs=1e-6)
    writer = '--trainer.callbacks+={"class_path": "RewardWriter", "init_args": {"path": "rewards.jsonl"}}'
    main(["predict", *words, "--ckpt_path", "out/new.ckpt", writer])
    assert len(Path("rewards.jsonl").read_text().splitlines()) == 24

    # It is for users, not for going on with: what the optimiser knew was of another table.
    content = torch.load("out/new.ckpt", weights_only=True)
    assert "optimizer_states" not in content and "hyper_parameters" in content
    with pytest.raises(ValueError, match=r"out/new\.ckpt holds weights alone"):
        main(["fit", *words, "--ckpt_path", "out/new.ckpt", "--data.loader.users.unseen_share=0"])


def test_it_draws_with_the_seed_and_leaves_a_checkpoint_alone_unless_told(fitted, capsys):
    words, checkpoint = fitted
    base = [*words, "--ckpt_path", checkpoint, "--shots=1"]
    main(["adapt", *base])
    assert not list(Path().glob("*.ckpt")) and not list(Path().glob("*.json")), "no output, nothing written"
    reports = []
    for number, seed in enumerate(("3", "3", "4")):
        main(["adapt", *base, "--output", f"{number}.ckpt", "--seed", seed])
        reports.append(json.loads(Path(f"{number}.json").read_text())["points"])
    assert reports[0] == reports[1] != reports[2]
    before = Path("0.ckpt").read_bytes()
    capsys.readouterr()
    refused(
        capsys,
        [*base, "--output", "0.ckpt"],
        "0.ckpt is there already: name another file, or add --overwrite",
    )
    Path("9.json").write_text("{}")
    refused(capsys, [*base, "--output", "9.ckpt"], "9.json is there already")
    assert Path("0.ckpt").read_bytes() == before and not Path("9.ckpt").exists()
    main(["adapt", *base, "--output", "9.ckpt", "--overwrite"])
    assert Path("9.ckpt").exists() and not Path("9.ckpt.partial").exists()
    capsys.readouterr()
    refused(
        capsys, [*words, "--ckpt_path", "9.ckpt"], "4 of 4 unseen users have weights in 9.ckpt (first: 'user"
    )


def test_several_devices_see_all_the_data(fitted):
    """The configuration may be one for many; here one does it all."""
    words, checkpoint = fitted
    many = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.loader.users.show=all"]
    for name, more in (("one", []), ("many", many)):
        main(["adapt", *words, *more, "--ckpt_path", checkpoint, "--shots=0,3", "--output", f"{name}.ckpt"])
    one, other = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "many"))
    assert one == other


def test_groups_of_the_data_are_told_apart(fitted, capsys, monkeypatch):
    words, checkpoint = fitted
    base = [
        "adapt",
        *words,
        "--ckpt_path",
        checkpoint,
        "--shots=0",
        "--no_peers",
        "--overwrite",
        "--output=new.ckpt",
    ]
    first, *others = unseen_users()
    groups = {first: "[a]", **dict.fromkeys(others, "b"), "user00": "b", "user01": "[a]"}
    monkeypatch.setattr(SyntheticDataModule, "user_groups", lambda self: groups)
    main(base)
    report = json.loads(Path("new.json").read_text())
    (point,) = report["points"]
    of_user, of_group = point["query"]["of_user"], point["query"]["group_accuracy"]
    assert of_group == pytest.approx({"[a]": of_user[first], "b": sum(of_user[name] for name in others) / 3})
    assert report["seen_users"]["num_without_group"] == 6
    printed = capsys.readouterr().out
    worst = min(of_group, key=of_group.get)
    assert "worst group" in printed and f"{of_group[worst]:.3f} {worst}" in printed

    monkeypatch.setattr(SyntheticDataModule, "user_groups", lambda self: {})
    main(base)
    assert "worst group" not in capsys.readouterr().out


def test_what_it_refuses(fitted, capsys, tmp_path):
    words, checkpoint = fitted
    base = [*words, "--ckpt_path", checkpoint]
    refused(capsys, words, "the following arguments are required: --ckpt_path")
    refused(capsys, [*words, "--ckpt_path", "no.ckpt"], "--ckpt_path: there is no file no.ckpt")
    refused(
        capsys,
        [*base, "--output", "new.json"],
        "--output names a checkpoint, such as adapted.ckpt; got new.json",
    )
    refused(
        capsys, [*base, "--shots", "3,1"], "shots must be one or more numbers >= 0, ascending; got [3, 1]"
    )
    refused(capsys, [*base, "--shots", "few"], "invalid literal for int() with base 10: 'few'")
    refused(capsys, [*base, "--prior_strength", "-1"], "prior_strength must be finite and >= 0; got -1.0")
    refused(
        capsys,
        [*base, "--data.loader.users.unseen_share=0"],
        "loader.users leaves no user of synthetic unseen: set data.loader.users.unseen_share or "
        "data.loader.users.unseen as in the fit",
    )
    seen = 'data.loader.users.unseen=["user00", "user01"]'
    refused(capsys, [*base, f"--{seen}"], "unseen users have weights in")
    other = configure(tmp_path, {"config": TINY}, model="BradleyTerryRM")
    refused(
        capsys,
        [*other, "--ckpt_path", checkpoint],
        "only PAL has weights of users; the configuration's model is BradleyTerryRM",
    )
    main(["fit", *other, "--trainer.max_steps=1"])
    wrong = str(next(tmp_path.rglob("*.ckpt")))
    refused(capsys, [*words, "--ckpt_path", wrong], "is no checkpoint of PAL: it holds no users")
    with pytest.raises(ValueError, match="prompt_format: trained with"):
        main(["adapt", *base, "--data.text.prompt_format=Q: {text} A:"])


def test_the_checkpoint_that_a_saved_configuration_names_is_another_one(fitted, capsys, tmp_path):
    """A run that went on keeps the checkpoint that it started from."""
    words, checkpoint = fitted
    saved = tmp_path / "saved.yaml"
    saved.write_text(
        yaml.safe_dump(
            yaml.safe_load(Path(words[1]).read_text()) | {"ckpt_path": "old.ckpt", "weights_only": True}
        )
    )
    refused(capsys, ["--config", str(saved)], "the following arguments are required: --ckpt_path")
    main(["adapt", "--ckpt_path", checkpoint, "--config", str(saved), "--shots=0", "--output=new.ckpt"])
    assert json.loads(Path("new.json").read_text())["checkpoint"] == checkpoint


@pytest.mark.parametrize("version", ["A", "B"])
def test_stored_features(tmp_path, capsys, version):
    from transformers import LlamaConfig, LlamaModel

    shape = {name: value for name, value in TINY.items() if name != "model_type"}
    LlamaModel(LlamaConfig(**shape)).save_pretrained(tmp_path / "network")
    backbone = {"name": str(tmp_path / "network"), "tokenizer": "byte", "frozen": True}
    words = configure(tmp_path, backbone, loader={"features": str(tmp_path / "store")})
    words = [*words, f"--model.version={version}"]
    main(["embed", *words, "--dtype=float32", *(["--prompts"] if version == "B" else [])])
    main(["fit", *words])
    checkpoint = str(next(tmp_path.rglob("*.ckpt")))
    main(["adapt", *words, "--ckpt_path", checkpoint, "--shots=0,5", "--output", "new.ckpt"])
    capsys.readouterr()
    main(["test", *words, "--ckpt_path", "new.ckpt", "--data.loader.users.show=unseen"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line]
    report = json.loads(Path("new.json").read_text())
    assert float(rows[0].split("│")[2]) == pytest.approx(report["all_support"]["accuracy"], abs=1e-6)
    state = torch.load("new.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if name.startswith("backbone.")], (
        "frozen weights lie in their own files"
    )


def test_the_protocol_of_summaries_by_length(tmp_path, capsys):
    """Workers outside the ten are fitted to 1 to 100 rows, which the fit has not seen, and measured on all others."""
    path = tmp_path / "config.yaml"
    write(tmp_path, with_newcomers(150, 120))
    content = {
        "seed_everything": 0,
        "model": {"class_path": "PAL", "init_args": {"backbone": {"config": TINY}, **PROJECTOR}},
        "data": {
            "class_path": "SummarizeFromFeedbackDataModule",
            "init_args": {
                "data_dir": str(tmp_path),
                "labels": "length",
                "unseen_workers": True,
                "loader": {"batch_size": 32, "max_tokens": None},
            },
        },
        "trainer": QUIET,
    }
    path.write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(path)])
    checkpoint = str(next(tmp_path.rglob("*.ckpt")))
    words = ["adapt", "--config", str(path), "--ckpt_path", checkpoint, "--output=new.ckpt"]
    main([*words, "--shots=0,1,2,5,10,20,50,100"])
    report = json.loads(Path("new.json").read_text())
    assert report["support_of_user"] == {"n1": 100, "n2": 100}
    assert [point["shots"] for point in report["points"]] == [0, 1, 2, 5, 10, 20, 50, 100]
    for point in report["points"]:
        assert (point["query"]["num_users"], point["query"]["num_judgements"]) == (2, 70), "whatever n"
        assert point["query"]["group_accuracy"].keys() == {"majority"}
    assert report["seen_users"]["num_users"] == 10
    assert "2 users added, 12 in all" in capsys.readouterr().out
    assert set(PAL.load_from_checkpoint(checkpoint).users).isdisjoint({"n1", "n2"})
