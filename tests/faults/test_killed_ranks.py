"""One rank is killed: the others end by themselves, with an error, whoever launched them; and the run goes on from its last checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pluralign.datamodules.whole_files import is_alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc"),
]

CONF = Path(__file__).parents[1] / "conf" / "bradley_terry_synthetic.yaml"
GRACE = 90.0
"""Seconds within which every process must have ended."""
CHECKPOINT = "runs/lightning_logs/version_0/checkpoints/last.ckpt"


def write_recipe(folder):
    """A run that would take hours, with a checkpoint after each step."""
    recipe = yaml.safe_load(CONF.read_text())
    every_step = {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True}
    recipe["trainer"] |= {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp",
        "max_epochs": 10_000,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": every_step}],
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(recipe))


def started(launcher, folder, *words):
    """The process that was called, which starts the ranks or is the first of them."""
    command = [sys.executable]
    if launcher == "torchrun":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "pluralign.train", "fit", "--config", "fit.yaml", *words]
    with (folder / "printed.txt").open("a") as stream:
        return subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)


def children(process):
    """Numbers of the processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def ranks(launcher, process):
    """Numbers of the ranks' processes: the called one is the first rank unless torchrun started them."""
    return children(process) if launcher == "torchrun" else [process, *children(process)]


def ended(process):
    """Whether a process is no more, or waits for nobody but a parent that is to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not is_alive(process)


def wait_until(reached, seconds, printed):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, printed.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("launcher", "victim"), [("torchrun", 1), ("torchrun", 0), ("itself", 1), ("itself", 0)]
)
def test_when_one_rank_is_killed_none_lives_on(launcher, victim, tmp_path):
    write_recipe(tmp_path)
    printed, checkpoint = tmp_path / "printed.txt", tmp_path / CHECKPOINT
    process = started(launcher, tmp_path)
    every = [process.pid]
    try:
        wait_until(lambda: checkpoint.exists() or process.poll() is not None, 300, printed)
        found = ranks(launcher, process.pid)
        every += found
        assert len(found) == 2, printed.read_text()[-3000:]
        os.kill(found[victim], signal.SIGKILL)
        # Whoever called is asked for its status, so that it is no more.
        wait_until(lambda: process.poll() is not None and all(map(ended, found)), GRACE, printed)
    finally:
        for each in every:
            if not ended(each):
                os.kill(each, signal.SIGKILL)
        process.wait()
    assert process.returncode != 0
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    resumed = started(launcher, tmp_path, "--ckpt_path", "last", "--trainer.max_steps", str(step + 2))
    assert resumed.wait(300) == 0, printed.read_text()[-3000:]
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step + 2
