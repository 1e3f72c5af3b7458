"""`--ckpt_path last` and `best`: which checkpoint, where the run goes on, and what is said where there is none."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from pluralign.callbacks import AtomicCheckpointIO, RunLogger
from pluralign.commands.checkpoints import RunKeeper, check_writable, keep_whole
from pluralign.commands.run_recorder import RunRecorder
from pluralign.train import main

TINY = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RUN = Path("runs", "lightning_logs", "version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """An own folder with a recipe: two epochs of four steps, a checkpoint every third step and after validations."""
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": TINY}}},
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {
                "num_train": 16,
                "num_validation": 4,
                "num_test": 4,
                "num_predict": 4,
                "loader": {"batch_size": 4},
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 3, "save_top_k": 0, "save_last": True},
                },
            ],
        },
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(content))


class StoppedError(Exception):
    """What a run is interrupted by."""


def fit(*words):
    main(["fit", "--config", "recipe.yaml", *words])


def stopped(*_):
    raise StoppedError


def interrupted(monkeypatch, step, *words):
    """A run that ends when the batch after a step begins, without a farewell."""

    def stop(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_batch_start", stop)
        with pytest.raises(StoppedError):
            fit(*words)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")
def test_a_run_that_begins_again_in_its_folder_does_not_go_on_from_the_one_of_before(monkeypatch, capsys):
    fit("--trainer.logger.version=version_0")
    assert json.loads((RUN / "run.json").read_text())["left_behind"] == {}
    before = {path.name for path in LAST.parent.iterdir()}
    interrupted(monkeypatch, 4, "--trainer.logger.version=version_0")
    behind = json.loads((RUN / "run.json").read_text())["left_behind"]
    assert {Path(name).name for name in behind} == before
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(RunRecorder, "on_train_start", stopped)  # before it has begun
        fit("--ckpt_path=last", "--trainer.max_steps=5")
    assert json.loads((RUN / "run.json").read_text())["left_behind"] == behind
    capsys.readouterr()
    fit("--ckpt_path=last", "--trainer.max_steps=5")
    printed = capsys.readouterr().out
    assert "(step 4, " in printed or "(step 3, " in printed
    assert json.loads((RUN / "run.json").read_text())["step"] == 5


def step(path=LAST):
    return torch.load(path, weights_only=True)["global_step"]


def rows(folder=RUN):
    with (folder / "metrics.csv").open(newline="") as file:
        speeds = ("train/pairs/s", "train/tokens/s", "train/padding")
        return [
            {name: value for name, value in row.items() if value and name not in speeds}
            for row in csv.DictReader(file)
        ]


def test_a_run_goes_on_in_its_folder_as_if_nothing_had_happened(monkeypatch, capsys):
    fit("--trainer.default_root_dir=whole")
    interrupted(monkeypatch, 7)
    assert step() == 6 and len(rows()) > 6
    fit("--ckpt_path", "last")
    printed = capsys.readouterr().out
    assert f"--ckpt_path: last is {LAST} (step 6, epoch 1, written " in printed
    assert f"--ckpt_path: the run goes on in {RUN}" in printed
    whole = Path("whole", "lightning_logs", "version_0")
    assert rows() == rows(whole)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    found, wanted = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (RUN, whole)
    )
    assert found["global_step"] == 8, "the last checkpoint is the end of the run"
    for name, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (RUN, whole)]
    assert names[0] == names[1] and len(names[0]) == 2
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["ckpt_path"] is None, "it describes the whole run"


def test_a_finished_run_may_be_longer_and_the_longest_wins(capsys):
    fit("--trainer.max_epochs=1")
    fit("--trainer.max_epochs=2", "--ckpt_path=last")
    assert step() == 8
    assert [row["step"] for row in rows() if "val/loss" in row] == ["3", "7"]
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert (saved["trainer"]["max_epochs"], saved["ckpt_path"]) == (2, None), (
        "as if it had been so long at once"
    )


def test_last_is_the_newest_of_this_configuration(capsys):
    fit("--trainer.max_epochs=1")
    fit("--trainer.max_epochs=1", "--seed_everything=1")
    fit("--trainer.max_epochs=1", "--model.label_smoothing=0.1", "--data.num_test=5")
    capsys.readouterr()
    fit("--ckpt_path=last", "--trainer.val_check_interval=0.5")
    assert f"last is {LAST} " in capsys.readouterr().out
    fit("--ckpt_path=last", "--seed_everything=1")
    assert "runs/lightning_logs/version_1/checkpoints/last.ckpt " in capsys.readouterr().out


def test_where_there_is_none_it_says_where_it_looked():
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint of this configuration under runs \(no \*\.ckpt file at all\)"
    ):
        fit("--ckpt_path=last")
    fit("--trainer.max_epochs=1")
    wanted = r"under runs \(2 looked at\); runs/.*ckpt has other settings: model\.reward_centering \(was 0\.0, is 0\.5\)"
    with pytest.raises(FileNotFoundError, match=wanted):
        fit("--ckpt_path=last", "--model.reward_centering=0.5")
    with pytest.raises(
        FileNotFoundError,
        match=r"data\.num_train \(was 16, is 20\), trainer\.gradient_clip_val \(was None, is 1",
    ):
        fit("--ckpt_path=last", "--data.num_train=20", "--trainer.gradient_clip_val=1")
    for path in LAST.parent.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"\(2 looked at, 2 unreadable\)"):
        fit("--ckpt_path=last")
    assert len(list(RUN.parent.iterdir())) == 1


def test_a_cut_file_is_passed_over_for_the_newest_whole_one(monkeypatch, capsys):
    interrupted(monkeypatch, 7)
    LAST.write_bytes(LAST.read_bytes()[:-100])
    fit("--ckpt_path=last")
    printed = capsys.readouterr().out
    assert f"passed over {LAST}, which cannot be read" in printed
    assert re.search(r"last is runs/\S*/epoch=0-step=4\.ckpt \(step 4, epoch 0", printed)


def test_other_verbs_find_the_model_whatever_data_and_rates_they_are_given(capsys):
    fit("--trainer.max_epochs=1")
    words = [
        "--config",
        "recipe.yaml",
        "--data.num_test=6",
        "--data.num_train=20",
        "--trainer.precision=bf16-mixed",
    ]
    for verb, given, name in (("test", "last", "last"), ("validate", "best", "epoch=0-step=4")):
        main([verb, *words, "--ckpt_path", given])
        assert f"--ckpt_path: {given} is {LAST.with_stem(name)} " in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"other settings: model\.label_smoothing"):
        main(["test", *words, "--ckpt_path=last", "--model.label_smoothing=0.2"])


def test_best_belongs_to_the_newest_run_and_may_be_missing():
    fit("--trainer.max_epochs=1")
    shutil.move("runs", "kept")
    main(["test", "--config", "recipe.yaml", "--trainer.default_root_dir=kept", "--ckpt_path=best"])
    Path("kept", *LAST.parts[1:]).with_stem("epoch=0-step=4").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"epoch=0-step=4\.ckpt, which was the best according to .*last\.ckpt, is gone",
    ):
        main(["test", "--config", "recipe.yaml", "--trainer.default_root_dir=kept", "--ckpt_path=best"])


def test_a_path_that_is_no_checkpoint_of_a_run_stops_before_anything_is_made():
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint nowhere\.ckpt"):
        fit("--ckpt_path=nowhere.ckpt")
    Path("text.ckpt").write_text("text")
    with pytest.raises(ValueError, match=r"text\.ckpt is no checkpoint that a run can start from"):
        fit("--ckpt_path=text.ckpt")
    assert not Path("runs").exists()
    fit(
        "--trainer.max_epochs=1",
        "--trainer.callbacks+="
        + json.dumps(
            {
                "class_path": "ModelCheckpoint",
                "init_args": {"filename": "w", "save_weights_only": True, "every_n_epochs": 1},
            }
        ),
    )
    with pytest.raises(ValueError, match=r"w\.ckpt holds weights alone.*--model\.init_from runs"):
        fit("--ckpt_path", str(LAST.with_stem("w")))


@pytest.mark.parametrize("name", ["CSVLogger", "pluralign.callbacks.RunLogger"])
def test_a_logger_of_ones_own_goes_on_too(monkeypatch, name):
    logger = (
        f"--trainer.logger={{class_path: {name}, init_args: {{save_dir: mine, name: big, version: first}}}}"
    )
    interrupted(monkeypatch, 4, logger)
    before = rows(Path("mine", "big", "first"))
    fit(logger, "--ckpt_path=last")
    assert [path.name for path in Path("mine", "big").iterdir()] == ["first"]
    assert rows(Path("mine", "big", "first"))[: len(before)] == before


def test_without_a_logger_checkpoints_go_on_where_they_are(monkeypatch, capsys):
    interrupted(monkeypatch, 7, "--trainer.logger=false")
    fit("--trainer.logger=false", "--ckpt_path=last")
    assert "checkpoints go on in checkpoints;" in capsys.readouterr().out
    assert step(Path("checkpoints", "last.ckpt")) == 8


def pairs(path, word, rows=12):
    lines = (
        f'{{"prompt": "{word} {i}", "chosen": "good {i}", "rejected": "bad {i}"}}\n' for i in range(rows)
    )
    Path(path).write_text("".join(lines))


def test_other_data_with_as_many_rows_are_refused_and_named(monkeypatch):
    own = yaml.safe_load(Path("recipe.yaml").read_text())
    own["data"] = {
        "class_path": "LocalDataModule",
        "init_args": {"train": "a.jsonl", "validation": "v.jsonl", "loader": {"batch_size": 2}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(own))
    pairs("a.jsonl", "first")
    pairs("v.jsonl", "seen", 2)
    interrupted(monkeypatch, 5, "--data.text.tokenizer=byte")
    pairs("a.jsonl", "other")
    with pytest.raises(
        ValueError,
        match=r"other data than it was trained with: train has other bytes in a\.jsonl\..*model\.init_from",
    ):
        fit("--ckpt_path=last")
    pairs("a.jsonl", "first")
    pairs("t.jsonl", "test", 2)
    with pytest.raises(ValueError, match=r"on_invalid was 'error', is 'skip'"):
        fit("--ckpt_path", str(LAST), "--data.on_invalid=skip")
    fit("--ckpt_path=last", "--data.test=t.jsonl")
    assert step() == 12
    pairs("v.jsonl", "elsewhere", 2)
    main(["validate", "--config", "recipe.yaml", "--ckpt_path=last"])


def test_the_root_folder_is_where_runs_go_unless_a_logger_says_otherwise():
    fit("--trainer.max_epochs=1", "--trainer.default_root_dir=here")
    assert Path("here", "lightning_logs", "version_0", "metrics.csv").is_file() and not Path("runs").exists()
    fit("--trainer.max_epochs=1", "--trainer.default_root_dir=here", "--trainer.logger.save_dir=there")
    assert Path("there", "lightning_logs", "version_0", "metrics.csv").is_file()
    assert len(list(Path("here", "lightning_logs").iterdir())) == 1


@pytest.mark.parametrize("version", ["run", 3])
def test_what_trains_nothing_leaves_the_folder_of_a_run_alone(version, capsys):
    words = [
        "--trainer.max_epochs=1",
        f"--trainer.logger.version={version}",
        "--trainer.default_root_dir=here",
    ]
    fit(*words)
    folder = Path("here", "lightning_logs", "run" if version == "run" else "version_3")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = str(folder / "config.yaml")
    for verb in ("test", "validate"):
        main([verb, "--config", config, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert f"{folder} is a run's; what is logged now goes into a folder beside it" in capsys.readouterr().out
    assert len(list(Path("here", "lightning_logs").glob("version_*/metrics.csv"))) == (
        3 if version == 3 else 2
    )


def test_a_folder_that_cannot_be_written_is_named_before_training(monkeypatch):
    Path("file").write_text("in the way")
    with pytest.raises(
        PermissionError,
        match=r"file/deep cannot keep the run: .*file is no folder\. Let --trainer\.default_root_dir",
    ):
        fit("--trainer.default_root_dir=file/deep")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"runs cannot keep the run: .* may not be written"):
        check_writable(L.Trainer(logger=RunLogger(), accelerator="cpu"))


def test_checkpoints_are_whole_unless_the_user_has_a_plugin(trainer):
    run = trainer()
    keep_whole(run, None)
    assert isinstance(run.strategy.checkpoint_io, AtomicCheckpointIO)
    plugin = AsyncCheckpointIO()
    keep_whole(trainer(plugins=[plugin]), [plugin])
    assert isinstance(plugin.checkpoint_io, AtomicCheckpointIO)

    class Other(AtomicCheckpointIO):
        """A plugin of one's own."""

    mine = Other()
    run = trainer(plugins=[mine])
    keep_whole(run, mine)
    assert run.strategy.checkpoint_io is mine
