"""Runs that are killed and go on, each beside the same run left alone: what ``killed.py`` and the tests are made of.

Processes are forked, so that imports are paid once: Linux and macOS only.
"""

import csv
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

import accelerate  # noqa: F401  what a run imports on its way
import datasets  # noqa: F401
import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from killed_recipes import METHODS, write_recipe

import pluralign.commands.trainer  # noqa: F401
from pluralign.train import main as run_command

Victim = Literal["all", "first", "last"]
"""Which processes of a run are killed: all of them at once, that of rank 0, or that of the last rank."""

SPEEDS = ("/s", "/padding")
"""Ends of the names of what is measured over time, which starts anew with a process."""
GRACE = 60.0
"""Seconds within which processes must have ended by themselves when one of theirs was killed."""


class Killed(NamedTuple):
    """One run that was killed.

    Attributes:
        victim: Which of its processes.
        rows: After how many rows of the log, drawn at random.
        seconds: How long after the last of these, drawn at random.
        step: Of the checkpoint it went on from; None if there was none yet, and it began anew.
        made_up: Whether a validation was to follow the checkpoint's batch, and had to be made up.
        outlived: Seconds after which the other processes had ended by themselves; None where there were none.
        differs: What was not as in the run left alone.
    """

    victim: Victim
    rows: int
    seconds: float
    step: int | None
    made_up: bool
    outlived: float | None
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


def ended_by_themselves(processes: Sequence[int], grace: float = GRACE) -> float:
    """Seconds until processes have ended; RuntimeError, after killing them, if they outlive the grace time."""
    began, left = time.monotonic(), set(processes)
    while left:
        left -= {process for process in left if os.waitpid(process, os.WNOHANG)[0]}
        if time.monotonic() - began > grace:
            for process in left:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            raise RuntimeError(f"{len(left)} processes outlived one that was killed by {grace:g} seconds")
        time.sleep(0.01)
    return time.monotonic() - began


# Runs ----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Processes of a run, by rank, and the files with what each prints."""

    processes: list[int]
    logs: list[Path]

    def finish(self) -> None:
        """Wait for all of them; RuntimeError with what one printed if it failed."""
        for process, log in zip(self.processes, self.logs, strict=True):
            finished(process, log)


def started(recipe: Path, folder: Path, *words: str, ranks: int = 1) -> Run:
    """Start a fit in a folder, in so many processes, each as torchrun would."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def fit(rank: int) -> None:
        os.chdir(folder)
        if ranks > 1:
            several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            several |= {"GROUP_RANK": 0, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in several.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "killed"}
        run_command(["fit", "--config", str(recipe), *words])

    logs = [folder / f"printed-{rank}.txt" for rank in range(ranks)]
    return Run([forked(lambda rank=rank: fit(rank), log) for rank, log in enumerate(logs)], logs)


def outcome(run: Path, monitor: str = "val/loss") -> dict[str, Any]:
    """What a finished run comes to, by name, from the folder of its log."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: row[name] for name in row if not name.endswith(SPEEDS)} for row in csv.DictReader(file)
        ]
    return {
        "weights": content["state_dict"],
        "optimiser": content["optimizer_states"],
        "schedule": content["lr_schedulers"],
        "random numbers": content["pluralign"]["run"]["random"],
        "losses": [row for row in rows if row["train/loss"]],
        "validations": [row for row in rows if row[monitor]],
        "log": rows,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "rollouts": {path.name: _rows(path) for path in sorted(run.glob("rollouts/*"))},
        "hidden files": [str(path.relative_to(run)) for path in run.rglob(".*")],
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


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


def left_alone(method: str, recipe: Path, folder: Path, ranks: int = 1) -> tuple[dict[str, Any], float]:
    """Outcome of a run that nobody kills, and the seconds between two rows of its log."""
    started(
        recipe, folder / "first", "--trainer.max_steps", "1", ranks=ranks
    ).finish()  # writes the token cache
    started(recipe, folder / "alone", ranks=ranks).finish()
    run = folder / "alone" / "runs" / "lightning_logs" / "version_0"
    wanted = outcome(run, METHODS[method].monitor)
    training = (run / "metrics.csv").stat().st_mtime - (run / "config.yaml").stat().st_mtime
    return wanted, training / len(wanted["log"])


class Case(NamedTuple):
    """A run that may be killed: of which method and recipe, in which folder, on how many processes, and what it must come to."""

    method: str
    recipe: Path
    folder: Path
    ranks: int
    wanted: dict[str, Any]


def kill_and_resume(case: Case, victim: Victim, rows: int, seconds: float) -> Killed | None:
    """Kill a run so long after it has logged so many rows, have it go on, and compare; None if it was over before."""
    run = case.folder / "runs" / "lightning_logs" / "version_0"

    def reached() -> bool:
        if rows == 0:
            return (run / "config.yaml").is_file()  # the last before the first batch
        log = run / "metrics.csv"
        return log.is_file() and log.read_bytes().count(b"\n") > rows

    first, *others = started(case.recipe, case.folder, ranks=case.ranks).processes
    chosen = others.pop() if victim == "last" and others else first
    others += [first] if chosen != first else []
    alive = killed(chosen, seconds, reached)
    if victim == "all":
        for process in others:
            os.kill(process, signal.SIGKILL)
    outlived = ended_by_themselves(others)
    if not alive:
        return None
    paths = sorted(run.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    step, made_up = progress(paths[-1]) if paths else (None, False)
    given_up = [path.name for path in paths[:-1] if path.name not in kept_by(paths[-1])]
    words = ["--ckpt_path", "last"] if paths else ["--trainer.logger.version", "version_0"]
    resumed = started(case.recipe, case.folder, *words, ranks=case.ranks)
    resumed.finish()
    if paths and f"last is {paths[-1].relative_to(case.folder)} " not in resumed.logs[0].read_text():
        raise RuntimeError(f"the run did not go on from {paths[-1]}, its newest checkpoint")
    found = outcome(run, METHODS[case.method].monitor)
    if paths and paths[-1].name not in case.wanted["checkpoints"]:
        found["checkpoints"].remove(paths[-1].name)  # Lightning never removes the one that a run went on from
    for name in given_up:
        found["checkpoints"].remove(
            name
        )  # nor the best one of before, if a process dies between the new one and that
    differs = [name for name in case.wanted if not equal(case.wanted[name], found[name])]
    return Killed(
        victim, rows, seconds, step, made_up, outlived if others and victim != "all" else None, differs
    )


def kept_by(path: Path) -> set[str]:
    """Names of the checkpoints that are to stay when one of the run has been written, by what it holds."""
    callbacks = torch.load(path, weights_only=True)["callbacks"].values()
    kept = [name for state in callbacks for name in state.get("best_k_models", ())]
    return {"last.ckpt", path.name, *(Path(name).name for name in kept)}


def progress(path: Path) -> tuple[int, bool]:
    """Step of a checkpoint, and whether the validation that follows its batch had not been run."""
    content = torch.load(path, weights_only=True)
    batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    after_batch = batches["completed"] < batches["processed"]  # or it was written by the validation
    return content["global_step"], after_batch and content["pluralign"]["run"]["validation_due"]


def runs_of(method: str, kills: int, folder: Path, draw: random.Random, *, ranks: int = 1) -> list[Killed]:
    """Runs of a method that were killed, each at a random point of its training.

    With several processes all of them are killed in one run, one of them in the next.
    """
    recipe = write_recipe(method, folder, ranks)
    wanted, between = left_alone(method, recipe, folder, ranks)
    victims: tuple[Victim, ...] = ("all", "first", "all", "last") if ranks > 1 else ("all",)
    runs: list[Killed] = []
    attempt = 0
    while len(runs) < kills:
        attempt += 1
        rows, seconds = draw.randrange(len(wanted["log"])), draw.uniform(0.0, 1.5 * between)
        case = Case(method, recipe, folder / f"run_{attempt}", ranks, wanted)
        run = kill_and_resume(case, victims[len(runs) % len(victims)], rows, seconds)
        if run is not None:
            runs.append(run)
    return runs
