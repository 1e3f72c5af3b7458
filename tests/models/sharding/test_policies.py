"""Policies that write responses and learn from them, in shards: on two ranks they come to what DDP comes to."""

import subprocess
import sys

import pytest
import torch

from ...cluster import test_files as cluster

pytestmark = pytest.mark.slow
environment = cluster.environment


def test_policies_in_shards_are_those_of_ddp(tmp_path, environment):
    saver = '{"class_path": "ModelCheckpoint", "init_args": {"save_last": true}}'
    runs = list(cluster.policies(tmp_path))
    lines = []
    for number, run in enumerate(runs):
        for strategy in ("ddp", "fsdp2"):
            root = f"--trainer.default_root_dir={tmp_path / strategy / str(number)}"
            more = ["--trainer.devices=2", "--trainer.max_epochs=2", f"--trainer.strategy={strategy}", root]
            lines.append("\t".join([*run, *more, f"--trainer.callbacks={saver}"]) + "\n")
    (tmp_path / "runs.txt").write_text("".join(lines))
    (tmp_path / "driver.py").write_text(cluster.DRIVER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--master-port={cluster.free_port()}", "driver.py"]
    done = subprocess.run(
        launcher, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    for number in range(len(runs)):
        paths = [next((tmp_path / name / str(number)).rglob("last.ckpt")) for name in ("ddp", "fsdp2")]
        one, other = (torch.load(path, weights_only=True) for path in paths)
        assert one["global_step"] == other["global_step"] > 0
        torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=1e-5, atol=1e-6)
