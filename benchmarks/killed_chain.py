"""A chain of stages that is killed at random points and goes on, beside the same chain left alone.

Run without arguments; it takes about six minutes. Three stages train a tiny network with dropout on the synthetic crowd, each
from the weights of the one before. ``pluralign stages`` is killed with all its processes (SIGKILL) while the second or the
third stage trains, and called again. The chain is to skip what was complete and go on in the middle of the stage that was
killed: weights, state of the optimiser and of the random numbers, and every row of the log of the rest of the chain (but for
speeds) are to equal those of the chain that nobody killed, bit for bit. The exit status is 1 if anything differs.

It prints a table, then one line of JSON, which ``--output FILE`` writes as well. POSIX systems only.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from killed_recipes import NETWORK
from killed_runs import equal, outcome
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

NAMES = ("base", "general", "customized")
RUN = Path("lightning_logs", "run")
"""Where a stage keeps its log and its checkpoints, in its folder."""


class KilledChain(NamedTuple):
    """One chain that was killed.

    Attributes:
        stage: In which one.
        rows: After how many rows of its log, drawn at random.
        seconds: How long after the last of these, drawn at random.
        step: Of the checkpoint it went on from; None if there was none yet, and the stage began anew.
        differs: What was not as in the chain left alone, by stage.
    """

    stage: str
    rows: int
    seconds: float
    step: int | None
    differs: list[str]


# Chains --------------------------------------------------------------------------------------------------


def write_chain(folder: Path) -> Path:
    """A chain of three stages: two epochs of six steps, a checkpoint after each step, two validations an epoch."""
    fit = {
        "model": {
            "class_path": "CustomizedRM",
            "init_args": {
                "backbone": {"config": NETWORK},
                "imitation": 0.1,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
            },
        },
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {
                "num_train": 24,
                "num_validation": 16,
                "num_test": 4,
                "num_predict": 4,
                "loader": {"batch_size": 4},
                "cache_dir": str(folder / "cache"),
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "val_check_interval": 0.5,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
                },
            ],
        },
    }
    stages = [
        {
            "name": name,
            "config": "fit.yaml",
            "options": {"seed_everything": seed},
            **({"start_from": NAMES[seed - 1]} if seed else {}),
        }
        for seed, name in enumerate(NAMES)
    ]
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump({"folder": "stages", "stages": stages}))
    return path


def started(chain: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a chain in a folder, as the leader of a session that all its processes belong to."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "pluralign.train", "stages", "--config", str(chain)]
    with (folder / "printed.txt").open("a") as stream:
        return subprocess.Popen(words, cwd=folder, stdout=stream, stderr=stream, start_new_session=True)


def finish(chain: Path, folder: Path) -> None:
    """Run a chain to its end; RuntimeError with what it printed if it fails."""
    if started(chain, folder).wait() != 0:
        raise RuntimeError(f"a chain failed:\n{(folder / 'printed.txt').read_text()[-3000:]}")


def stage_folder(folder: Path, name: str) -> Path:
    """The one folder of a stage."""
    (path,) = folder.glob(f"stages/{name}-*")
    return path


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """What every stage of a chain comes to."""
    return {name: outcome(stage_folder(folder, name) / RUN) for name in NAMES}


def left_alone(chain: Path, folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """Outcomes of a chain that nobody kills, and the seconds between two rows of its last stage's log."""
    finish(chain, folder)
    wanted = outcomes(folder)
    run = stage_folder(folder, NAMES[-1]) / RUN
    training = (run / "metrics.csv").stat().st_mtime - (run / "config.yaml").stat().st_mtime
    return wanted, training / len(wanted[NAMES[-1]]["log"])


def kill_and_resume(
    chain: Path,
    folder: Path,
    alone: Path,
    stage: str,
    wanted: Mapping[str, dict[str, Any]],
    rows: int,
    seconds: float,
) -> KilledChain | None:
    """Kill a chain so long after a stage has logged so many rows, have it go on, and compare; None if it was over before.

    The stages before it are those of the chain left alone, in another place.
    """
    for name in NAMES[: NAMES.index(stage)]:
        source = stage_folder(alone, name)
        shutil.copytree(source, folder / "stages" / source.name)
    process = started(chain, folder)
    while not _reached(folder, stage, rows):
        if process.poll() is not None:
            raise RuntimeError(f"a chain ended:\n{(folder / 'printed.txt').read_text()[-3000:]}")
        time.sleep(0.002)
    time.sleep(seconds)
    if (stage_folder(folder, stage) / "complete.json").exists():
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    paths = sorted(stage_folder(folder, stage).rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    step = torch.load(paths[-1], weights_only=True)["global_step"] if paths else None
    finish(chain, folder)
    if paths and f"stage {stage}: go on from step {step}, " not in (folder / "printed.txt").read_text():
        raise RuntimeError(f"the chain did not go on from {paths[-1]}, its newest checkpoint")
    found = outcomes(folder)
    differs = [
        f"{name}: {what}"
        for name in NAMES
        for what in wanted[name]
        if not equal(wanted[name][what], found[name][what])
    ]
    differs += [
        f"{name}: folder"
        for name in NAMES
        if stage_folder(folder, name).name != stage_folder(alone, name).name
    ]
    return KilledChain(stage, rows, seconds, step, differs)


def _reached(folder: Path, stage: str, rows: int) -> bool:
    """Whether a stage has logged so many rows."""
    for path in folder.glob(f"stages/{stage}-*"):
        if rows == 0:
            return (path / RUN / "config.yaml").is_file()  # the last before the first batch
        log = path / RUN / "metrics.csv"
        return log.is_file() and log.read_bytes().count(b"\n") > rows
    return False


def chains(kills: int, folder: Path, draw: random.Random) -> list[KilledChain]:
    """Chains that were killed, so many in the second and in the third stage, each at a random point of its training."""
    chain, alone = write_chain(folder), folder / "alone"
    wanted, between = left_alone(chain, alone)
    killed: list[KilledChain] = []
    attempt = 0
    for stage in NAMES[1:]:
        while sum(each.stage == stage for each in killed) < kills:
            attempt += 1
            rows, seconds = draw.randrange(len(wanted[stage]["log"])), draw.uniform(0.0, 1.5 * between)
            found = kill_and_resume(chain, folder / f"chain_{attempt}", alone, stage, wanted, rows, seconds)
            if found is not None:
                killed.append(found)
    return killed


# Report --------------------------------------------------------------------------------------------------


def main() -> int:
    """Print the table and the JSON object; 0 if nothing differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5, help="of the second and of the third stage, each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        killed = chains(options.kills, Path(name).resolve(), random.Random(options.seed))
    table = Table("killed in", "after rows", "went on from step", "different after all")
    for each in killed:
        step = "the start" if each.step is None else str(each.step)
        table.add_row(each.stage, str(each.rows), step, ", ".join(each.differs) or "nothing")
    Console().print(table)
    passes = not any(each.differs for each in killed)
    summary = json.dumps(
        {
            "kills": [each._asdict() for each in killed],
            "passes": passes,
            **surroundings("torch", "lightning"),
        }
    )
    print(summary)
    if options.output:
        options.output.write_text(summary + "\n")
    return 0 if passes else 1


if __name__ == "__main__":
    raise SystemExit(main())
