"""Files for clusters: every method has one, they fit its recipes, and the scripts start, keep and resume runs of two ranks."""

import inspect
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

import pluralign.models
from pluralign.models import BaseModule, RespondingModule, RewardModule, RolloutModule
from pluralign.train import main

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "configs" / "cluster"
CONF = ROOT / "tests" / "conf"
OVERLAYS = sorted(FOLDER.glob("*.yaml"))
SCRIPTS = [FOLDER / "fit.sbatch", FOLDER / "torchrun.sh"]
METHODS = {
    name: cls
    for name in pluralign.models.__all__
    if isinstance(cls := getattr(pluralign.models, name), type)
    and issubclass(cls, BaseModule)
    and cls not in (BaseModule, RewardModule, RespondingModule, RolloutModule)
}
HERE = "tests/cluster/watching.py"


def settings_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def file_name(method):
    """``EnsembleVoteRM`` is ``ensemble_vote_rm``; the baseline's recipes are called ``bradley_terry``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower().replace("terry_rm", "terry")


def recipes():
    """Of each method a recipe that ``fit`` takes, with the file for it."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        settings = settings_of(path)
        if "model" in settings and "trainer" in settings:
            found[FOLDER / f"{file_name(settings['model']['class_path'])}.yaml"] = path
    return [(path, overlay) for overlay, path in found.items()]


RECIPES = [pytest.param(*pair, id=pair[0].stem) for pair in recipes()]


def test_every_method_has_a_file_for_clusters():
    assert {path.stem for path in OVERLAYS} == {file_name(name) for name in METHODS}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_a_file_says_what_it_is_for_and_changes_the_trainer_alone(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    settings = settings_of(path)
    assert list(settings) == ["trainer"]
    assert settings["trainer"].keys() <= inspect.signature(L.Trainer).parameters.keys()
    assert {"accelerator", "strategy"} <= settings["trainer"].keys()
    assert "callbacks" not in settings["trainer"], "it would replace the recipe's"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_name_files_that_there_are(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    named = set(re.findall(r"configs/[\w/]+\.\w+", path.read_text(encoding="utf-8")))
    assert len(named) >= 3 and all((ROOT / name).is_file() for name in named), named
    assert path.suffix == ".sbatch" or path.stat().st_mode & stat.S_IXUSR


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "overlay"), RECIPES)
def test_a_recipe_takes_the_file_of_its_method(recipe, overlay, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(recipe), "--config", str(overlay), "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    wanted = settings_of(overlay)["trainer"]
    assert {name: printed[name] for name in wanted} == wanted
    kept = [each["class_path"].rpartition(".")[2] for each in printed["callbacks"]]
    assert kept.count("ModelCheckpoint") == 2


# Runs of two ranks ---------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_in(folder):
    """The environment of a process that knows this checkout and the callbacks here, and keeps all it writes in a folder."""
    shutil.copy(ROOT / HERE, folder / "watching.py")
    known = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(known),
        "OMP_NUM_THREADS": "1",
        "PLURALIGN_CACHE": str(folder / "cache"),
        "RUNS": str(folder / "runs"),
        "NPROC": "2",
        "MASTER_PORT": str(free_port()),
    }


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder to run in, and the environment there."""
    monkeypatch.chdir(tmp_path)
    return environment_in(tmp_path)


def words(method="bradley_terry", *more):
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    configurations = (CONF / f"{method}_synthetic.yaml", FOLDER / f"{method}.yaml")
    return [*(f"--config={path}" for path in configurations), *quiet, *more]


SAVER = (
    '--trainer.callbacks={"class_path": "ModelCheckpoint", '
    '"init_args": {"every_n_train_steps": 100, "save_top_k": 0, "save_last": true}}'
)


def told(folder, number):
    return f'--trainer.callbacks+={{"class_path": "watching.Tells", "init_args": {{"folder": "{folder}", "number": {number}}}}}'


def script(name, environment, given):
    command = ["bash", str(FOLDER / name), *given]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process, status):
    """What a script has printed until it ended in this status."""
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == status, printed
    return printed


LONG = [*words(), SAVER, "--trainer.max_epochs=2"]
"""Six steps."""


def outcome(folder):
    (path,) = Path(folder).rglob("last.ckpt")
    return torch.load(path, weights_only=True)


def check_equal(found, wanted):
    assert found["global_step"] == wanted["global_step"] == 6
    for name, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the run of two ranks that nobody tells to end comes to."""
    folder = tmp_path_factory.mktemp("alone")
    ended(script("torchrun.sh", environment_in(folder), LONG), 0)
    return outcome(folder / "runs")


@pytest.mark.slow
def test_torchrun_is_told_to_end_and_the_same_command_goes_on(tmp_path, environment, alone):
    words = [*LONG, told(tmp_path, 0)]
    process = script("torchrun.sh", environment, words)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.terminate()
    time.sleep(2)  # torchrun hands it on
    (tmp_path / "told").touch()
    ended(process, 143)
    assert 3 < outcome(tmp_path / "runs")["global_step"] < 6
    assert "--ckpt_path: last is" in ended(script("torchrun.sh", environment, words), 0)
    check_equal(outcome(tmp_path / "runs"), alone)


@pytest.mark.slow
def test_slurm_tells_one_rank_and_the_job_is_queued_again_and_goes_on(tmp_path, environment, alone):
    slurm, words = slurm_of(tmp_path, environment), [*LONG, told(tmp_path, int(signal.SIGUSR1))]
    ended(script("fit.sbatch", slurm, words), 138)
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    assert outcome(tmp_path / "runs")["global_step"] == 5, "the step after the one in which it was told"
    assert "--ckpt_path: last is" in ended(script("fit.sbatch", slurm, words), 0)
    check_equal(outcome(tmp_path / "runs"), alone)


PYTHON = """#!/bin/sh
# A run whose second task needs longer to leave.
case "$*" in *tokenise*) exit 0 ;; esac
[ "$SLURM_PROCID" = 0 ] || sleep 2
exit "$STATUS"
"""


@pytest.mark.parametrize(("status", "queued"), [(138, True), (143, False), (1, False), (0, False)])
def test_a_job_that_was_kept_is_queued_again_however_long_its_tasks_need_to_leave(
    status, queued, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fake = tmp_path / "python"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    slurm = slurm_of(tmp_path, {**os.environ, "RUNS": str(tmp_path / "runs")})
    ended(
        script("fit.sbatch", {**slurm, "PYTHON": str(fake), "STATUS": str(status)}, []),
        143 if status == 1 else status,
    )
    assert (tmp_path / "scontrol.txt").exists() == queued
    assert not list((tmp_path / "runs").iterdir())


SRUN = """#!/usr/bin/env bash
# Tasks on this machine as srun starts them, each a group of processes; one that fails has the others ended; the highest status.
set -m
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
status=0
for _ in "${tasks[@]}"; do
    code=0
    wait -n || code=$?
    ((code <= status)) || status=$code
    ((code == 0)) || for task in "${tasks[@]}"; do kill -TERM -- "-$task" 2>/dev/null; done
done
exit "$status"
"""


def slurm_of(folder, environment):
    """Environment of a job's script, with an ``srun`` and an ``scontrol`` of ours."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("scontrol", f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **environment,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "20417",
        "SLURM_JOB_NAME": "pluralign",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }


DRIVER = """import sys
from pluralign.train import main
for line in open("runs.txt"):
    words = line.split("\\t")
    print("run", *words, flush=True)
    main([word.strip() for word in words])
print("all done", flush=True)
"""


def policies(folder):
    """Words for the methods that write responses: a tuned policy, and a mixture of two experts."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Name fruit {i}."}) + "\n" for i in range(24)))
    LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(folder / "base")
    experts = ("tone.warm", "tone.cold", "size.short", "size.long")
    for name in experts:
        model = LlamaForCausalLM.from_pretrained(folder / "base")
        get_peft_model(model, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(folder / name)
    data = {"train": str(prompts), "validation_share": 0.3, "loader": {"batch_size": 4}}
    base = {"name": str(folder / "base"), "tokenizer": "byte"}
    models = {
        "PolicyTuner": ({"backbone": base, "rewards": {"varied": "watching.varied"}, "num_epochs": 1}, {}),
        "PCM": (
            {
                "backbone": {**base, "frozen": True},
                "experts": {"adapters": {name: str(folder / name) for name in experts}},
                "rewards": {"varied": "watching.varied"},
                "num_epochs": 1,
            },
            {
                "tone": {"warm": "Be warm.", "cold": "Be cold."},
                "size": {"short": "Be short.", "long": "Be long."},
            },
        ),
    }
    for name, (model, axes) in models.items():
        recipe = {
            "model": {"class_path": name, "init_args": {**model, "max_new_tokens": 4}},
            "data": {"class_path": "PersonalizedPromptsDataModule", "init_args": {**data, "axes": axes}},
        }
        path = folder / f"{file_name(name)}_synthetic.yaml"
        path.write_text(yaml.safe_dump(recipe))
        yield [
            "fit",
            f"--config={path}",
            f"--config={FOLDER / file_name(name)}.yaml",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]


@pytest.mark.slow
def test_every_method_trains_on_two_ranks_as_its_file_says(tmp_path, environment):
    runs = [
        ["fit", *words(path.name.removesuffix("_synthetic.yaml"))] for path in CONF.glob("*_synthetic.yaml")
    ]
    runs += policies(tmp_path)
    assert len(runs) == len(OVERLAYS)
    devices = ["--trainer.devices=2", "--trainer.max_epochs=1", "--trainer.callbacks+=watching.SameWeights"]
    (tmp_path / "runs.txt").write_text("".join("\t".join([*run, *devices]) + "\n" for run in runs))
    (tmp_path / "driver.py").write_text(DRIVER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--master-port={free_port()}", "driver.py"]
    done = subprocess.run(
        launcher, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert done.stdout.count("all done") == 2
