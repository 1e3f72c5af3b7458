"""The benchmark of strategies: where it runs, what it refuses, what it compares; and, slow, two processes of its own."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def cluster(monkeypatch):
    """The benchmark, in a process that nobody has launched."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)
    yield importlib.import_module("cluster")
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


def row(cluster, strategy="ddp", processes=2, losses=(0.7, 0.5), **changes):
    values = {
        "pairs_per_second": 1234.5,
        "tokens_per_second": 99_000.0,
        "share_of_gemm": 0.42,
        "share_of_datasheet": None,
        "peak_gib": None,
    }
    return cluster.Row(strategy, processes, losses=[*losses], **{**values, **changes})


def test_it_knows_who_has_started_it(cluster, monkeypatch):
    assert cluster.launched() is None
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert cluster.launched() is None, "a shell inside of a job is no task of srun's"
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert cluster.launched() == (4, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("WORLD_SIZE", "24")
    assert cluster.launched() == (8, 3)


def test_losses_are_compared_among_as_many_processes(cluster):
    rows = [
        row(cluster, losses=(0.5, 0.4)),
        row(cluster, "fsdp2", losses=(0.5, 0.38)),
        row(cluster, "ddp", 1),
    ]
    assert cluster.largest_difference(rows) == pytest.approx(0.05)
    assert cluster.largest_difference(rows[:1]) == 0


def test_what_is_not_known_stays_empty(cluster, capsys):
    cluster.Console(width=120).print(cluster.table_of([row(cluster)]))
    printed = capsys.readouterr().out
    assert "1,234.5" in printed and "99,000" in printed and "42%" in printed and "0.500000" in printed
    assert "None" not in printed and "nan" not in printed


def test_steps_that_warm_up_alone_are_refused(cluster, capsys):
    with pytest.raises(SystemExit):
        cluster.options_of(["--steps", "2"])
    assert "--steps must be above 2, which warm up; got 2" in capsys.readouterr().err


def test_memory_is_that_of_training_and_not_of_the_products_measured_after_it(cluster, monkeypatch):
    peaks = [2**30]
    monkeypatch.setattr(cluster, "memory", lambda name: float(max(peaks)))
    monkeypatch.setattr(
        cluster, "gemm_peaks", lambda networks, tokens: peaks.append(2**40) or {"square": 1e9}
    )
    monkeypatch.setattr(cluster, "STATUS", Path(__file__))
    device = SimpleNamespace(
        root_device=torch.device("cpu"), barrier=lambda: None, reduce=lambda value, reduce_op: value
    )
    trainer = SimpleNamespace(strategy=device, world_size=1)
    found = cluster.reported("ddp", trainer, 1.0, cluster.NETWORKS["tiny"], [[8, 4, 4]], torch.ones(1), True)
    assert found.peak_gib == 1.0


def test_operations_of_a_network_are_counted_without_building_it(cluster):
    fields = cluster.NETWORKS["tiny"]
    hidden, wide, heads = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    keys = hidden * fields["num_key_value_heads"] // heads
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * wide + 2 * hidden  # with its norms
    everywhere, at_ends = cluster.weights_of(fields)
    assert fields["num_hidden_layers"] == 2
    assert everywhere == layer + 2 * hidden * keys
    assert at_ends == layer - 2 * hidden * keys + hidden


@pytest.mark.slow
def test_two_processes_of_its_own(tmp_path):
    output = tmp_path / "cluster.json"
    words = [
        "--strategies",
        "ddp",
        "--processes",
        "2",
        "--prompts",
        "2",
        "--steps",
        "4",
        "--output",
        str(output),
    ]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "cluster.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(output.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == content
    (found,) = content["rows"]
    assert (found["strategy"], found["processes"], len(found["losses"])) == ("ddp", 2, 4)
    assert content["passes"] and 0 < found["share_of_gemm"] < 1 and found["pairs_per_second"] > 0
