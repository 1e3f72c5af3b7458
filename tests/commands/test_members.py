"""`pluralign members`: who has which seeds, what is skipped or refused, and what the file of members says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

import pluralign.commands.members
import pluralign.commands.stage_run
from pluralign.commands.members_file import Member, read_members, write_members
from pluralign.commands.stage_settings import settle
from pluralign.models import BackboneConfig, BradleyTerryRM, EnsembleVoteRM
from pluralign.train import main

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "attention_dropout": 0.2}  # fmt: skip
FIT = {
    "seed_everything": 5,
    "model": {
        "class_path": "BradleyTerryRM",
        "init_args": {
            "backbone": {"config": TINY},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        },
    },
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {
            "num_train": 16,
            "num_validation": 8,
            "num_test": 4,
            "num_predict": 4,
            "loader": {"batch_size": 4, "seed": 7},
        },
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "callbacks": [
            {
                "class_path": "ModelCheckpoint",
                "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
            }
        ],
    },
}
SETTLED = {}


class Process:
    """Stands for a member's process: keeps what it was told, and leaves in the folder what a run leaves.

    Attributes:
        runs: Words of each run.
        stop: Number of the run that fails after two of four steps.
        weight: What a member with these seeds has learned.
    """

    def __init__(self):
        self.runs, self.stop = [], None
        self.weight = lambda seed: float(seed)

    def __call__(self, words, environment, descriptors=()):
        self.runs.append(words)
        config = yaml.safe_load(Path(words[2]).read_text())
        steps = 2 if len(self.runs) == self.stop else 4
        seed = config["seed_everything"]
        content = {
            "state_dict": {"weight": torch.tensor(self.weight(seed))},
            "optimizer_states": [],
            "global_step": steps,
            "callbacks": {},
            "pluralign": {"run": {"shown": {"val/accuracy": torch.tensor(seed / 10)}, "validated": steps}},
        }
        path = Path(
            config["trainer"]["default_root_dir"], "lightning_logs", "run", "checkpoints", "last.ckpt"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return 0 if steps == 4 else 1


def settled_once(stage, words):
    """A stage as the parser reads it, which takes its time: once for all tests."""
    key = repr((stage, words, Path("fit.yaml").read_text()))
    if key not in SETTLED:
        SETTLED[key] = settle(stage, words)
    return SETTLED[key]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    Path("fit.yaml").write_text(yaml.safe_dump(FIT))


@pytest.fixture
def process(monkeypatch):
    """In place of real processes."""
    process = Process()
    monkeypatch.setattr(pluralign.commands.members, "settle", settled_once)
    monkeypatch.setattr(pluralign.commands.stage_run, "run_process", process)
    return process


def run(*words, number=3):
    main(["members", "--config", "fit.yaml", "--folder", "out", "--num_members", str(number), *words])


def folders():
    return sorted(path.name for path in Path("out").iterdir() if path.is_dir())


# What runs ---------------------------------------------------------------------------------------------


def test_every_member_has_the_seeds_of_the_configuration_plus_its_number(process, capsys):
    run()
    configs = [yaml.safe_load(Path(words[2]).read_text()) for words in process.runs]
    seeds = [(each["seed_everything"], each["data"]["init_args"]["loader"]["seed"]) for each in configs]
    assert seeds == [(5, 7), (6, 8), (7, 9)]
    for each in configs:  # and differ in nothing else but their folders
        each["seed_everything"] = each["data"]["init_args"]["loader"]["seed"] = None
        del each["trainer"]["logger"], each["trainer"]["default_root_dir"]
    assert configs[0] == configs[1] == configs[2]

    names = [re.sub("-.*", "", name) for name in folders()]
    assert names == ["member_0", "member_1", "member_2"]
    content = json.loads(Path("out", "members.json").read_text())
    assert content["version"] == 1
    assert [(each["member"], each["seed"]) for each in content["members"]] == [(0, 5), (1, 6), (2, 7)]
    for each in content["members"]:
        saved = torch.load(Path("out", each["checkpoint"]), weights_only=True)
        assert float(saved["state_dict"]["weight"]) == each["seed"]
    printed = capsys.readouterr().out
    assert re.search(r"member_1 │ +6 │ +4 │ +0\.6000 │", printed)
    assert re.search(r"mean │ +│ +│ +0\.6000 │", printed) and re.search(r"std │ +│ +│ +0\.1000 │", printed)
    assert "next: pluralign vote --config fit.yaml --members out" in printed


def test_what_is_complete_is_skipped_and_more_members_are_added(process, capsys):
    run(number=2)
    run(number=2)
    assert len(process.runs) == 2 and capsys.readouterr().out.count("skip: complete since") == 2
    run(number=4)
    assert len(process.runs) == 4 and len(read_members(Path("out"))) == 4
    with pytest.raises(ValueError, match="it has 4 and not 2"):
        run(number=2)


def test_an_interrupted_member_goes_on_from_its_newest_checkpoint(process, capsys):
    process.stop = 2
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    error = "pluralign members: error: stage member_1 ended with status 1; the same command goes on from its step 2"
    assert error in capsys.readouterr().err
    assert not Path("out", "members.json").exists()
    process.stop = None
    run("--dry_run")
    assert len(process.runs) == 2 and "go on from step 2" in capsys.readouterr().out
    run()
    assert len(process.runs) == 4
    assert process.runs[2][3:] == ["--ckpt_path", str(next(Path("out").glob("member_1-*/**/last.ckpt")))]


def test_a_dry_run_writes_nothing(process, capsys):
    run("--dry_run")
    assert not Path("out").exists() and not process.runs
    assert re.search(r"member_2 +│ run +│ member_2-[0-9a-f]{8}", capsys.readouterr().out)


def test_another_configuration_does_not_replace_an_ensemble(process, capsys):
    run()
    before = Path("out", "members.json").read_bytes(), folders()
    with pytest.raises(
        ValueError, match=r"another ensemble \(member_0, member_1, member_2 would be others\)"
    ):
        run("--trainer.max_epochs=2")
    assert "member_0: trainer.max_epochs was 1, is 2" in capsys.readouterr().out
    assert (Path("out", "members.json").read_bytes(), folders()) == before
    run("--trainer.max_epochs=2", "--folder", "other")
    assert len(process.runs) == 6


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 0, -3])
def test_one_member_is_refused_with_advice(process, number):
    with pytest.raises(
        ValueError, match=rf"at least 2, got {number}: .*`pluralign fit`, or give more members"
    ):
        run(number=number)
    assert not process.runs


def test_members_with_equal_weights_are_refused(process):
    process.weight = lambda seed: 1.0 if seed != 6 else 0.0
    with pytest.raises(ValueError, match=r"member_0 and member_2 have equal weights.*learning rate 0"):
        run()
    assert not Path("out", "members.json").exists()


def test_a_seed_that_is_no_number_is_refused(process):
    with pytest.raises(ValueError, match="seed_everything must be a number, got False: member m"):
        run("--seed_everything", "false")


def test_words_that_are_no_options_are_refused(process, capsys):
    with pytest.raises(SystemExit) as stop:
        run("fit.yaml")
    assert stop.value.code == 2 and "'fit.yaml' is no option" in capsys.readouterr().err


# The file ------------------------------------------------------------------------------------------------


def test_the_file_of_members_reads_as_it_was_written(tmp_path):
    members = [Member(0, 3, "member_0-00000000/last.ckpt"), Member(1, 4, "member_1-00000000/last.ckpt")]
    assert read_members(write_members(tmp_path, members).parent) == members


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "lists no members"),
        ('{"version": 1, "members": [{"member": 0}]}', "lists no members"),
        ('{"version": 2, "members": []}', "is of version 2, and 1 is"),
        (
            '{"version": 1, "members": [{"member": 1, "seed": 0, "checkpoint": "x"}]}',
            r"must list members 0, 1, ... in order, got \[1\]",
        ),
    ],
)
def test_a_damaged_file_of_members_is_named(tmp_path, content, message):
    Path(tmp_path, "members.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_members(tmp_path)


def test_a_folder_without_an_ensemble_says_who_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="`pluralign members` writes"):
        read_members(tmp_path)


# With real processes ---------------------------------------------------------------------------------------


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def members_of(folder):
    return [weights(Path(folder, each.checkpoint)) for each in read_members(Path(folder))]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def started(*words):
    command = [sys.executable, "-m", "pluralign.train", "members", "--config", "fit.yaml", *words]
    with Path("printed.txt").open("a") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no groups of processes to kill")
def test_members_are_fits_by_hand_and_a_kill_changes_nothing():
    run("--folder=alone")
    alone = members_of("alone")
    for m, member in enumerate(alone):
        words = [f"--seed_everything={5 + m}", f"--data.loader.seed={7 + m}"]
        main(["fit", "--config", "fit.yaml", *words, f"--trainer.default_root_dir=by_hand_{m}"])
        (path,) = Path(f"by_hand_{m}").rglob("last.ckpt")
        assert equal(member, weights(path)), m
    assert not equal(alone[0], alone[1]) and not equal(alone[1], alone[2])

    process = started("--folder", "killed", "--num_members", "3")
    while not [*Path("killed").glob("member_2-*/**/last.ckpt")]:
        assert process.poll() is None, Path("printed.txt").read_text()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("killed", "members.json").exists()
    assert started("--folder", "killed", "--num_members", "3").wait() == 0, Path("printed.txt").read_text()
    assert Path("printed.txt").read_text().count("skip: complete since") == 2
    assert all(equal(one, other) for one, other in zip(alone, members_of("killed"), strict=True))


# One checkpoint of all -------------------------------------------------------------------------------------


def trained(number, folder):
    """A member as a run would leave it; returns the module."""
    torch.manual_seed(number)
    module = BradleyTerryRM(BackboneConfig(config=TINY))
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint | {"pytorch-lightning_version": L.__version__}, folder / f"{number}.ckpt")
    return module.eval()


def test_members_become_one_checkpoint(tmp_path, capsys):
    alone = [trained(number, tmp_path) for number in range(2)]
    write_members(tmp_path, [Member(number, number, f"{number}.ckpt") for number in range(2)])
    main(["members", "join", str(tmp_path)])
    assert "ensemble.ckpt: 2 members. It is scored by EnsembleVoteRM with" in capsys.readouterr().out
    ensemble = EnsembleVoteRM.load_from_checkpoint(tmp_path / "ensemble.ckpt", weights_only=True)
    for network, each in zip(ensemble.backbone.networks, alone, strict=True):
        assert equal(network.state_dict(), each.backbone.state_dict())
    assert torch.equal(ensemble.head.weight, torch.cat([each.head.weight for each in alone]))
    with pytest.raises(ValueError, match=r"ensemble\.ckpt exists: give --output another name"):
        main(["members", "join", str(tmp_path)])
    main(["members", "join", str(tmp_path), "--output", str(tmp_path / "other.ckpt")])
    assert (tmp_path / "other.ckpt").is_file()


@pytest.mark.slow
def test_an_ensemble_of_whole_networks_is_trained_joined_and_predicts():
    content = yaml.safe_load(Path("fit.yaml").read_text())
    content["model"]["class_path"] = "EnsembleVoteRM"
    content["model"]["init_args"] |= {"members": "full", "num_members": 2}
    Path("fit.yaml").write_text(yaml.safe_dump(content))
    main(["members", "--config", "fit.yaml", "--folder", "out"])
    configs = [yaml.safe_load(path.read_text()) for path in sorted(Path("out").glob("*/stage.yaml"))]
    assert [each["model"]["init_args"]["member"] for each in configs] == [0, 1]
    main(["members", "join", "out"])
    joined = ["--ckpt_path", "out/ensemble.ckpt"]
    main(["validate", "--config", "fit.yaml", *joined])
    main(["predict", "--config", "fit.yaml", *joined, "--output", "all.jsonl"])
    rewards = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    for m, each in enumerate(read_members(Path("out"))):
        words = ["--model.member", str(m), "--ckpt_path", f"out/{each.checkpoint}"]
        main(["predict", "--config", "fit.yaml", *words, "--output", f"{m}.jsonl"])
        own = [json.loads(line)["reward"] for line in Path(f"{m}.jsonl").read_text().splitlines()]
        assert [row["member_rewards"][m] for row in rewards] == pytest.approx(own, rel=1e-5)
    with pytest.raises(ValueError, match="the checkpoint's members are others than the settings say"):
        main(["validate", "--config", "fit.yaml", "--model.num_members=3", *joined])


def test_a_method_with_all_members_in_a_run_is_refused(process):
    with pytest.raises(ValueError, match=r"model\.members='head' trains all members in one run"):
        run("--model=EnsembleVoteRM", "--model.backbone.config=" + json.dumps(TINY))
    with pytest.raises(
        ValueError, match=r"^stage members: num_members must be at least 2, for [^\n]*BradleyTerryRM$"
    ):
        alone = ["--model.members=full", "--model.num_members=1"]
        run("--model=EnsembleVoteRM", "--model.backbone.config=" + json.dumps(TINY), *alone)
    with pytest.raises(ValueError, match=r"model\.member=1 is set: leave it out"):
        full = ["--model.members=full", "--model.member=1"]
        run("--model=EnsembleVoteRM", "--model.backbone.config=" + json.dumps(TINY), *full)
