"""Runs that are killed at random points and go on, beside the same run left alone; and checkpoints killed while written.

Run without arguments; it takes some ten minutes. A method of each family trains a tiny network with dropout, in a process that
is killed (SIGKILL) after a random time and then resumed by ``--ckpt_path last``. Weights, state of the
optimiser and of the random numbers, every row of the log (but for speeds), rollouts and the files that are there are to equal
those of the run that nobody killed, bit for bit. With ``--ranks 2`` each run has two processes under DDP (gloo), as torchrun
starts them; all of them are killed, or one, and then the others have a minute to end by themselves. Then processes are killed that replace a checkpoint
over and over, with the temporary folder on another file system: what is there must stay readable. The exit status is 1 if anything
differs or cannot be read.

It prints a table, then one line of JSON, which ``--output FILE`` writes as well. Processes are forked, so that imports
are paid once: Linux and macOS only.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from killed_recipes import METHODS
from killed_runs import Killed, forked, killed, runs_of
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.callbacks import AtomicCheckpointIO

OTHER_DISK = Path("/dev/shm")


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


def method_names(text: str) -> list[str]:
    """Names of methods, separated by commas."""
    names = text.split(",")
    if unknown := set(names) - METHODS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not of {', '.join(METHODS)}")
    return names


def kill_runs(options: argparse.Namespace, folder: Path, draw: random.Random) -> dict[str, list[Killed]]:
    """Runs of every method that were killed, told as they come."""
    table = Table(
        "family",
        "method",
        "processes",
        "killed",
        "before a checkpoint",
        "validation made up",
        "others ended after, s",
        "different after all",
    )
    results: dict[str, list[Killed]] = {}
    for method in options.methods:
        place = folder / method
        place.mkdir()
        runs = results[method] = runs_of(method, options.kills, place, draw, ranks=options.ranks)
        outlived = [run.outlived for run in runs if run.outlived is not None]
        counts = (
            options.ranks,
            len(runs),
            sum(run.step is None for run in runs),
            sum(run.made_up for run in runs),
            f"at most {max(outlived):.1f}" if outlived else "",
            sum(bool(run.differs) for run in runs),
        )
        table.add_row(METHODS[method].kind, method, *map(str, counts))
    Console().print(table)
    return results


def main() -> int:
    """Print the table and the JSON object; 0 if nothing differs and every checkpoint can be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--methods", type=method_names, default=[*METHODS], help="of each family one")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("--checkpoint-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has one thread of those there were
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=".") as name:
        results = kill_runs(options, Path(name).resolve(), draw)
        unreadable = checkpoint_kills(options.checkpoint_kills, Path(name).resolve(), draw)
    for writer, count in unreadable.items():
        print(f"{writer}: {count} of {options.checkpoint_kills} kills leave an unreadable checkpoint")
    passes = not unreadable["AtomicCheckpointIO"] and not any(
        run.differs for runs in results.values() for run in runs
    )
    summary = json.dumps(
        {
            "kills": {method: [run._asdict() for run in runs] for method, runs in results.items()},
            "ranks": options.ranks,
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
