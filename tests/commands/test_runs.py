"""What a run's folder says of it, `pluralign runs` and `pluralign runs show`."""

import csv
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pluralign import __version__
from pluralign.commands.run_curves import curve_lines, thinned
from pluralign.commands.run_folders import find_runs, read_run
from pluralign.commands.run_recorder import RunRecorder, better_of
from pluralign.commands.run_surroundings import git_state, homeless, plain_words
from pluralign.train import main

TINY = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
RECIPE = {
    "model": {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": TINY}}},
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {
            "num_train": 8,
            "num_validation": 4,
            "num_test": 4,
            "num_predict": 4,
            "loader": {"batch_size": 4},
        },
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_last": True}}
        ],
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps that was gone on with for two more."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        main(["fit", "--config", str(folder / "recipe.yaml"), "--trainer.default_root_dir=out"])
        words = ["fit", "--config", "recipe.yaml", "--trainer.default_root_dir=out"]
        main([*words, "--trainer.max_epochs=2", "--ckpt_path", "last"])
    return folder / "out" / "lightning_logs" / "version_0"


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


# The record --------------------------------------------------------------------------------------------


def test_a_run_says_what_ran_with_which_data_and_how_it_went(trained):
    record = record_of(trained)
    assert (record["status"], record["step"], record["method"]) == ("finished", 4, "BradleyTerryRM")
    assert record["data"]["name"] == "synthetic" and record["data"]["splits"]["train"]["records"] == 8
    assert re.fullmatch(r"synthetic-[0-9a-f]{16}", record["data"]["caches"]["synthetic"])
    assert (trained / record["checkpoints"]["last"]).is_file() and (
        trained / record["checkpoints"]["best"]
    ).is_file()
    loss = record["numbers"]["val/loss"]
    assert record["monitor"] == "val/loss" and loss["last"]["step"] == 4
    assert loss["best"]["value"] <= loss["last"]["value"]
    with (trained / "metrics.csv").open(newline="") as file:
        logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert loss["last"]["value"] == pytest.approx(logged[-1]) and loss["best"]["value"] == pytest.approx(
        min(logged)
    )
    assert record["numbers"]["val/reward_mean"]["best"] is None, "of which nobody knows what is better"


def test_a_run_that_goes_on_keeps_its_history(trained):
    first, second = record_of(trained)["sessions"]
    assert (first["from_step"], first["to_step"], second["from_step"], second["to_step"]) == (0, 2, 2, 4)
    assert first["status"] == second["status"] == "finished" and first["ended"] <= second["started"]
    assert second["command"][-2:] == ["--ckpt_path", "last"]
    assert second["versions"]["pluralign"] == __version__ and second["versions"]["torch"] == torch.__version__
    assert second["git"] is None, "the folder is in no repository"


def test_nobodys_folder_stands_in_it(trained):
    home = str(trained.parents[2])
    assert home not in (trained / "run.json").read_text()
    assert record_of(trained)["sessions"][0]["command"][2] == "~/recipe.yaml"


def test_tensorboard_reads_what_the_table_holds(trained):
    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = events.Scalars("val/loss")
    assert [each.step for each in scalars] == [1, 3]
    assert scalars[-1].value == pytest.approx(record_of(trained)["numbers"]["val/loss"]["last"]["value"])


def test_what_ends_a_run_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def fail(self, trainer, pl_module):
        raise RuntimeError(f"the {Path.home()}/disk is gone\nand more")

    monkeypatch.setattr(RunRecorder, "on_validation_end", fail)
    with pytest.raises(RuntimeError):
        main(["fit", "--config", "recipe.yaml", "--trainer.num_sanity_val_steps=0"])
    record = record_of(Path("runs", "lightning_logs", "version_0"))
    assert (
        record["status"] == "failed" and record["sessions"][0]["error"] == "RuntimeError: the ~/disk is gone"
    )
    assert record["step"] == 2 and "last" not in record["checkpoints"]


def test_secrets_and_home_are_no_words_of_a_run(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    words = [
        "--config",
        "/home/ann/a.yaml",
        "--trainer.logger.api_key=abc",
        "--hub_token",
        "def",
        "--data.text.tokenizer=byte",
        '--trainer.logger={class_path: CometLogger, init_args: {api_key: abc, "hub_token": "d e", workspace: w}}',
    ]
    assert plain_words(words) == [
        "--config",
        "~/a.yaml",
        "--trainer.logger.api_key=***",
        "--hub_token",
        "***",
        "--data.text.tokenizer=byte",
        '--trainer.logger={class_path: CometLogger, init_args: {api_key: ***, "hub_token": ***, workspace: w}}',
    ]
    assert homeless("/home/anna/x /home/ann") == "/home/anna/x ~"


def test_addresses_and_keys_by_other_names_are_no_words_of_a_run():
    words = [
        "--data.train=https://ann:pw@host/a.jsonl?sig=abc&se=1",
        "--trainer.logger.init_args.secret_key=abc",
        "--trainer.logger.init_args.aws-secret-access-key",
        "def",
        "--trainer.logger={init_args: {secret_key: abc, account_key: d, max_tokens: 5, tokenizer: byte}}",
        "--data.loader.max_tokens=5",
    ]
    assert plain_words(words) == [
        "--data.train=https://***@host/a.jsonl?sig=***&se=1",
        "--trainer.logger.init_args.secret_key=***",
        "--trainer.logger.init_args.aws-secret-access-key",
        "***",
        "--trainer.logger={init_args: {secret_key: ***, account_key: ***, max_tokens: 5, tokenizer: byte}}",
        "--data.loader.max_tokens=5",
    ]


def test_another_folder_is_told_as_it_is_and_the_home_folder_by_either_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/root")
    assert homeless("/data/root/x, x=/root/y, 'file:///root'") == "/data/root/x, x=~/y, 'file://~'"
    (tmp_path / "disk").mkdir()
    (tmp_path / "ann").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    assert homeless(f"{tmp_path / 'disk'}/a {tmp_path / 'ann'}/b") == "~/a ~/b"


def test_git_is_asked_and_may_be_missing(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None

    def git(*words):
        settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *settings, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    assert git_state(tmp_path) is None, "nothing is committed"
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path)["changed"] is True
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("val/loss", "min"),
        ("val/brier", "min"),
        ("val/worst_group_accuracy", "max"),
        ("val/reward_mean", None),
    ],
)
def test_names_say_what_is_better(name, wanted):
    assert better_of(name) == wanted


# The list ----------------------------------------------------------------------------------------------


def old_run(folder, losses, *, method="PAL"):
    """A run of before there was run.json."""
    folder.mkdir(parents=True)
    config = {
        "model": {"class_path": f"pluralign.models.{method}", "init_args": {"rate": len(losses)}},
        "data": {"class_path": "pluralign.datamodules.DSPDataModule"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        "epoch,step,val/loss,val/accuracy",
        *(f"{i},{10 * i + 9},{x},{1 - x}" for i, x in enumerate(losses)),
    ]
    (folder / "metrics.csv").write_text("\n".join([*lines, "0,4"]) + "\n")  # the last line of a killed writer
    os.utime(folder / "config.yaml", (1e9, 1e9))


@pytest.fixture
def several(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    old_run(tmp_path / "runs" / "old", [0.7, 0.5, 0.6, float("nan")])
    for name, change in (("killed", {}), ("elsewhere", {"host": "another", "process": 1})):
        folder = tmp_path / "runs" / name
        folder.mkdir()
        record = record_of(trained) | {"status": "running", "updated": "2020-01-01T00:00:00+00:00"}
        dead = subprocess.Popen([sys.executable, "-c", "pass"])
        dead.wait()
        record["sessions"][-1] |= {"status": "running", "ended": None, "process": dead.pid, **change}
        (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "runs" / "a_test").mkdir()
    (tmp_path / "runs" / "a_test" / "config.yaml").write_text("{}")
    (tmp_path / "runs" / "a_test" / "metrics.csv").write_text("step,test/loss\n0,1\n")
    return tmp_path / "runs"


def test_runs_are_listed_with_their_numbers(several, capsys):
    main(["runs"])
    shown = capsys.readouterr().out
    assert "3 runs in runs" in shown and "a_test" not in shown
    assert "PAL on DSP" in shown and "0.5" in shown and "(0.6)" in shown and "unknown" in shown
    assert shown.count("stopped") == 2
    main(["runs", "runs", "--json"])
    old, *others = json.loads(capsys.readouterr().out)
    assert (old["name"], old["steps"], old["best"]["val/loss"], old["last"]["val/loss"]) == (
        "old",
        40,
        0.5,
        0.6,
    )
    assert old["best"]["val/accuracy"] == 0.5 and old["checkpoint"] is None
    assert {each["name"]: each["status"] for each in others} == {"killed": "stopped", "elsewhere": "stopped"}


def test_runs_are_sorted(several, capsys):
    def names(*words):
        main(["runs", "--json", *words])
        return [each["name"] for each in json.loads(capsys.readouterr().out)]

    assert names("--sort", "name") == ["elsewhere", "killed", "old"]
    assert names("--sort", "steps", "--reverse")[0] == "old"
    assert names("--sort", "val/loss")[0] == "old"
    with pytest.raises(ValueError, match="--sort val/los: no run has it; sort by started, name"):
        main(["runs", "--sort", "val/los"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs"], "runs is no folder"),
        (["runs", "."], r"no run in .* or below: there is no run\.json"),
        (["runs", "show", "first"], "there is no run first: no folder .*first nor .*runs.first"),
    ],
)
def test_no_runs_says_where_it_looked(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        main(words)


def test_a_run_is_named_by_the_end_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    old_run(tmp_path / "runs" / "logs" / "version_0", [0.5])
    main(["runs", "show", "version_0"])
    assert "val/loss" in capsys.readouterr().out
    old_run(tmp_path / "runs" / "others" / "version_0", [0.4])
    with pytest.raises(ValueError, match=r"2 runs are called version_0, name one: .*logs.version_0"):
        main(["runs", "show", "version_0"])
    main(["runs", "show", "others/version_0"])
    with pytest.raises(FileNotFoundError, match="there is no run sion_0"):
        main(["runs", "show", "sion_0"])


def test_a_process_that_is_there_runs(several):
    record = record_of(several / "killed")
    record["sessions"][-1]["process"] = os.getpid()
    (several / "killed" / "run.json").write_text(json.dumps(record))
    assert read_run(several / "killed", several).status == "running"


def test_a_torn_record_is_passed_over(several):
    (several / "killed" / "run.json").write_text('{"version": 1, "sess')
    assert [run.name for run in find_runs(several)] == ["old", "elsewhere"]


# Curves ------------------------------------------------------------------------------------------------


def test_curves_in_the_terminal(several, capsys, monkeypatch, trained):
    old_run(several / "older", [0.8, 0.9, 0.4, 0.3])
    main(["runs", "show", "old", str(several / "older"), "--number", "val/loss"])
    shown = capsys.readouterr().out
    assert "0.9" in shown and "0.3" in shown and "step 9" in shown and "39" in shown
    assert "old, at last 0.6" in shown and "older, at last 0.3" in shown
    assert "no run.json" in shown and "\nval/loss\n" in shown and "\nval/accuracy\n" not in shown
    main(["runs", "show", str(trained)])
    shown = capsys.readouterr().out
    assert "steps 2 to 4, finished" in shown and "8 records" in shown and f"pluralign {__version__}" in shown
    with pytest.raises(ValueError, match=r"--number val/los: logged were val/loss, val/accuracy"):
        main(["runs", "show", "old", "--number", "val/los"])
    with pytest.raises(ValueError, match="holds 4 runs, name one"):
        main(["runs", "show", "."])


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_picture_fits_every_terminal(width):
    curves = {"one": [(i, i * i / 1e4) for i in range(0, 1000, 7)], "two": [(0, 3.0), (999, float("nan"))]}
    lines = curve_lines(curves, width=width, height=5)
    assert all(line.cell_len <= width for line in lines[:6])
    assert len(lines) == 5 + 1 + 2


def test_a_rising_line_rises():
    lines = [
        line.plain.partition("│")[2]
        for line in curve_lines({"one": [(0, 0.0), (10, 1.0)]}, width=30, height=4)[:4]
    ]
    first_dots = [next(i for i, sign in enumerate(line) if sign != "⠀") for line in lines]
    assert first_dots == sorted(first_dots, reverse=True) and first_dots[-1] == 0


def test_a_flat_line_and_none():
    assert len(curve_lines({"one": [(5, 2.0)]}, width=30)) == 9
    (line,) = curve_lines({"one": [(5, float("inf"))]}, width=30)
    assert line.plain == "no finite value"


def test_thinned_curves_keep_their_mean_and_their_end():
    curve = [(i, float(i)) for i in range(1000)]
    thin = thinned(curve, 10)
    assert len(thin) == 10 and thin[0] == (99, 49.5) and thin[-1][0] == 999


def test_a_page_of_runs(several, capsys):
    old_run(several / "<b>older", [0.8, 0.4], method="DPRM")
    main(["runs", "show", "old", "<b>older", "-o", "out/page.html"])
    assert "runs: out/page.html" in capsys.readouterr().out
    page = Path("out", "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;older" in page
    assert (
        "default-src 'none'" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    labels = [unescape(text) for text in re.findall(r'aria-label="([^"]*)"', page)]
    assert any(label.startswith("val/loss by step: old ends at 0.6") for label in labels)
    differences = page.partition("What differs")[2]
    assert (
        "model.rate" in differences
        and "model.class_path" in differences
        and "data.class_path" not in differences
    )


LOGGER = '''
from lightning.pytorch.loggers import Logger


class PlatformLogger(Logger):
    """Stands for one of a platform: takes numbers, and has no folder."""

    rows = []
    name, version = "platform", 0

    def __init__(self, project: str) -> None:
        self.project = project

    def log_metrics(self, metrics, step=None):
        self.rows.append((self.project, step, dict(metrics)))

    def log_hyperparams(self, *given, **named):
        pass
'''


def test_a_logger_of_a_platform_beside_the_run_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("platform_logger.py").write_text(LOGGER)
    both = [
        {"class_path": "RunLogger", "init_args": {"tensorboard": False}},
        {"class_path": "platform_logger.PlatformLogger", "init_args": {"project": "pies"}},
    ]
    trainer = RECIPE["trainer"] | {"logger": both, "callbacks": None}
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"trainer": trainer}))
    main(["fit", "--config", "recipe.yaml"])
    from platform_logger import PlatformLogger

    assert any(project == "pies" and "val/loss" in values for project, _, values in PlatformLogger.rows)
    folder = Path("runs", "lightning_logs", "version_0")
    assert record_of(folder)["status"] == "finished" and (folder / "metrics.csv").is_file()
    assert not list(folder.glob("events.*"))


@pytest.mark.parametrize("record", [{"sessions": [{}]}, {"sessions": ["one"]}, {"sessions": {"a": 1}}])
def test_a_damaged_run_hides_no_other_one(tmp_path, record):
    for name in ("damaged", "other"):
        place = tmp_path / name
        place.mkdir()
        (place / "config.yaml").write_text("model: {class_path: pluralign.models.PAL}\n", encoding="utf-8")
        (place / "metrics.csv").write_text("step,val/loss\n3,0.5\n", encoding="utf-8")
    (tmp_path / "damaged" / "run.json").write_text(json.dumps({"version": 1} | record), encoding="utf-8")
    with (tmp_path / "damaged" / "metrics.csv").open("ab") as stream:
        stream.write(b"\xff\x00")
    found = {run.name: run for run in find_runs(tmp_path)}
    assert {name: (run.status, dict(run.last)) for name, run in found.items()} == {
        name: ("unknown", {"val/loss": 0.5}) for name in ("damaged", "other")
    }
