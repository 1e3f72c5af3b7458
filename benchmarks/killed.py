"""Runs that are killed at random points and go on, beside the same run left alone; and checkpoints killed while written.

Run without arguments; it takes two minutes or so. Every method trains a tiny network with dropout on the synthetic crowd, in a
process that is killed (SIGKILL) after a random time and then resumed by ``--ckpt_path last``. Weights, state of the
optimiser and of the random numbers, and every row of the log (but for speeds) are to equal those of the run that nobody
killed, bit for bit. Then processes are killed that replace a checkpoint over and over, with the temporary folder on another
file system: what is there must stay readable. The exit status is 1 if anything differs or cannot be read.

It prints a table, then one line of JSON, which ``--output FILE`` writes as well. Processes are forked, so that imports
are paid once: Linux and macOS only.
"""

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import accelerate  # noqa: F401  what a run imports on its way
import datasets  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

import pluralign.commands.trainer  # noqa: F401
from pluralign.callbacks import AtomicCheckpointIO
from pluralign.train import main as run_command

NETWORK = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "attention_dropout": 0.2,
}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "BradleyTerryRM": ({}, {}),
    "DPRM": (
        {
            "labels": ["first", "tie", "second"],
            "rewards": [1, 0, -1],
            "judged": "comparisons",
            "cost": "index",
        },
        {"judgements": "crowd"},
    ),
    "PAL": ({"projector": "mlp2-relu-dropout2-residual"}, {"num_users": 6}),
}
"""Settings of the model and of the data, by method."""
SPEEDS = ("train/pairs/s", "train/tokens/s", "train/padding")
OTHER_DISK = Path("/dev/shm")


class Killed(NamedTuple):
    """One run that was killed.

    Attributes:
        rows: After how many rows of the log, drawn at random.
        seconds: How long after the last of these, drawn at random.
        step: Of the checkpoint it went on from; None if there was none yet, and it began anew.
        made_up: Whether a validation was to follow the checkpoint's batch, and had to be made up.
        differs: What was not as in the run left alone.
    """

    rows: int
    seconds: float
    step: int | None
    made_up: bool
    differs: list[str]


# Processes -----------------------------------------------------------------------------------------------


def forked(action: Callable[[], object], log: Path) -> int:
    """Start a process that does something, with what it prints in a file; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    status = 1
    try:
        with log.open("a") as stream, redirect_stdout(stream), redirect_stderr(stream):
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            try:
                action()
                status = 0
            finally:
                if status:
                    traceback.print_exc()
    finally:
        os._exit(status)


def finished(process: int, log: Path) -> None:
    """Wait for a process; RuntimeError with what it printed if it failed."""
    if os.waitpid(process, 0)[1] != 0:
        raise RuntimeError(f"a run failed:\n{log.read_text()[-3000:]}")


def killed(process: int, seconds: float, reached: Callable[[], bool] = lambda: True) -> bool:
    """Kill a process so long after it has reached something; whether it was alive until then."""
    while not reached():
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


# Runs ----------------------------------------------------------------------------------------------------


def write_recipe(method: str, folder: Path) -> Path:
    """A recipe of a method: three epochs of six steps, a checkpoint after each step, two validations an epoch."""
    model, data = METHODS[method]
    recipe = {
        "model": {
            "class_path": method,
            "init_args": {
                "backbone": {"config": NETWORK},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "init_args": {"T_max": 18},
                },
                **model,
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
                **data,
            },
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "val_check_interval": 0.5,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
                },
            ],
        },
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def started(recipe: Path, folder: Path, *words: str) -> tuple[int, Path]:
    """Start a fit in a folder: the process, and the file with what it prints."""

    def fit() -> None:
        os.chdir(folder)
        run_command(["fit", "--config", str(recipe), *words])

    folder.mkdir(exist_ok=True)
    log = folder / "printed.txt"
    return forked(fit, log), log


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run comes to, by name, from the folder of its log."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: row[name] for name in row if name not in SPEEDS} for row in csv.DictReader(file)]
    return {
        "weights": content["state_dict"],
        "optimiser": content["optimizer_states"],
        "schedule": content["lr_schedulers"],
        "random numbers": content["pluralign"]["run"]["random"],
        "losses": [row for row in rows if row["train/loss"]],
        "validations": [row for row in rows if row["val/loss"]],
        "log": rows,
    }


def equal(left: object, right: object) -> bool:
    """Whether two values are the same, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and left.keys() == right.keys()
            and all(equal(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and len(left) == len(right) and all(map(equal, left, right))
    return left == right


def left_alone(recipe: Path, folder: Path) -> tuple[dict[str, Any], float]:
    """Outcome of a run that nobody kills, and the seconds between two rows of its log."""
    finished(*started(recipe, folder / "first"))  # writes the token cache
    finished(*started(recipe, folder / "alone"))
    run = folder / "alone" / "runs" / "lightning_logs" / "version_0"
    wanted = outcome(run)
    training = (run / "metrics.csv").stat().st_mtime - (run / "config.yaml").stat().st_mtime
    return wanted, training / len(wanted["log"])


def kill_and_resume(
    recipe: Path, folder: Path, wanted: dict[str, Any], rows: int, seconds: float
) -> Killed | None:
    """Kill a run so long after it has logged so many rows, have it go on, and compare; None if it was over before."""
    run = folder / "runs" / "lightning_logs" / "version_0"

    def reached() -> bool:
        if rows == 0:
            return (run / "config.yaml").is_file()  # the last before the first batch
        log = run / "metrics.csv"
        return log.is_file() and log.read_bytes().count(b"\n") > rows

    process, _ = started(recipe, folder)
    if not killed(process, seconds, reached):
        return None
    paths = sorted(run.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    step, made_up = progress(paths[-1]) if paths else (None, False)
    words = ["--ckpt_path", "last"] if paths else ["--trainer.logger.version", "version_0"]
    process, log = started(recipe, folder, *words)
    finished(process, log)
    if paths and f"last is {paths[-1].relative_to(folder)} " not in log.read_text():
        raise RuntimeError(f"the run did not go on from {paths[-1]}, its newest checkpoint")
    found = outcome(run)
    differs = [name for name in wanted if not equal(wanted[name], found[name])]
    return Killed(rows, seconds, step, made_up, differs)


def progress(path: Path) -> tuple[int, bool]:
    """Step of a checkpoint, and whether the validation that follows its batch had not been run."""
    content = torch.load(path, weights_only=True)
    batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    after_batch = batches["completed"] < batches["processed"]  # or it was written by the validation
    return content["global_step"], after_batch and content["pluralign"]["run"]["validation_due"]


def runs_of(method: str, kills: int, folder: Path, draw: random.Random) -> list[Killed]:
    """Runs of a method that were killed, each at a random point of its training."""
    recipe = write_recipe(method, folder)
    wanted, between = left_alone(recipe, folder)
    runs: list[Killed] = []
    attempt = 0
    while len(runs) < kills:
        attempt += 1
        rows, seconds = draw.randrange(len(wanted["log"])), draw.uniform(0.0, 1.5 * between)
        run = kill_and_resume(recipe, folder / f"run_{attempt}", wanted, rows, seconds)
        if run is not None:
            runs.append(run)
    return runs


# Checkpoints ---------------------------------------------------------------------------------------------


@contextmanager
def temporary_folder(folder: Path) -> Iterator[None]:
    """Have temporary files of this process and those it forks in another folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def unreadable_after(writer: TorchCheckpointIO, kills: int, folder: Path, draw: random.Random) -> int:
    """How many of so many kills, each while a checkpoint is replaced, leave one that cannot be read."""
    path, state = folder / "last.ckpt", {"state_dict": {f"w{i}": torch.randn(250_000) for i in range(8)}}
    began = time.perf_counter()
    writer.save_checkpoint(state, path)
    seconds = time.perf_counter() - began
    unreadable = count = 0
    while count < kills:
        process = forked(lambda: writer.save_checkpoint(state, path), folder / "printed.txt")
        if not killed(process, draw.uniform(0.1, 1.3) * seconds):
            continue
        count += 1
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, OSError, UnpicklingError):
            unreadable += 1
            writer.save_checkpoint(state, path)
    return unreadable


def checkpoint_kills(kills: int, folder: Path, draw: random.Random) -> dict[str, int]:
    """Unreadable checkpoints by who wrote them, with the temporary folder on another disk if there is one."""
    disk = OTHER_DISK if OTHER_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=disk) as other, temporary_folder(Path(other)):
        return {
            type(writer).__name__: unreadable_after(writer, kills, folder, draw)
            for writer in (AtomicCheckpointIO(), TorchCheckpointIO())
        }


# Report --------------------------------------------------------------------------------------------------


def main() -> int:
    """Print the table and the JSON object; 0 if nothing differs and every checkpoint can be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--checkpoint-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has one thread of those there were
    draw, console = random.Random(options.seed), Console()
    table = Table("method", "killed", "before a checkpoint", "validation made up", "different after all")
    results: dict[str, list[Killed]] = {}
    with tempfile.TemporaryDirectory(dir=".") as name:
        for method in METHODS:
            folder = Path(name).resolve() / method
            folder.mkdir()
            runs = results[method] = runs_of(method, options.kills, folder, draw)
            counts = (
                len(runs),
                sum(run.step is None for run in runs),
                sum(run.made_up for run in runs),
                sum(bool(run.differs) for run in runs),
            )
            table.add_row(method, *map(str, counts))
        unreadable = checkpoint_kills(options.checkpoint_kills, Path(name).resolve(), draw)
    console.print(table)
    for writer, count in unreadable.items():
        console.print(f"{writer}: {count} of {options.checkpoint_kills} kills leave an unreadable checkpoint")
    passes = not unreadable["AtomicCheckpointIO"] and not any(
        run.differs for runs in results.values() for run in runs
    )
    summary = json.dumps(
        {
            "kills": {method: [run._asdict() for run in runs] for method, runs in results.items()},
            "unreadable_checkpoints": unreadable,
            "checkpoint_kills": options.checkpoint_kills,
            "other_disk": OTHER_DISK.is_dir(),
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
