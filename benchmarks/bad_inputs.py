"""Do bad files end in an error that says which file and what, or in a skip that is counted? Whatever reads files is tried.

    python benchmarks/bad_inputs.py [--number 10000] [--only NAME] [--output FILE]

Valid files of every reader (rows of every format and data set, configurations, checkpoints, token caches, feature stores,
rollouts, votes, exported folders, adapters, boards, runs) are damaged, one thing a time, by a generator that the number of the
case seeds: bytes that flip or go, values of other types, far off ranges, missing and added fields, deep nesting, long texts,
other shapes, members of archives. Outcomes: `read`, where the damage does no harm; `skipped`, rows counted with file and field;
`named`, an error that the command line tells in one line and that names the file; and those that are faults: `unnamed`,
`lost` (rows in are not rows out and skips), `slow` (more than twenty seconds), `crashed`. Exit status 1 if there is a fault.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

__all__ = ["FAULTS", "Outcome", "Trial"]

FAULTS = ("unnamed", "lost", "slow", "crashed")
KINDS = ("read", "skipped", "named", *FAULTS)
LIMIT, START = 20.0, 600.0
"""Seconds that a case may take, and that a process may take to begin."""
DATA_SETS = "rows of data sets"
SLOWER = {
    "configuration": 0.3,
    "exported folder": 0.3,
    "rows into tokens": 0.3,
    "token cache": 0.3,
    "rows of saved": 0.5,
}
"""How often readers come that take longer than some milliseconds."""
MEMORY = 12 * 2**30
"""Bytes of address space that a process may have beyond what its libraries take."""


class Outcome(NamedTuple):
    """How a case ended."""

    kind: str
    damage: str
    said: str


class Trial:
    """A reader, with valid files that are made once, and the cases that are drawn from them."""

    def __init__(self, reader: Any, scratch: Path) -> None:  # noqa: ANN401  a Reader; importing it takes seconds
        """Make the valid files, and see that they are read.

        Args:
            reader: Which one.
            scratch: An empty folder.
        """
        self.reader, self.scratch = reader, scratch
        self.valid = scratch / "valid"
        self.valid.mkdir(parents=True)
        self.made = reader.make(self.valid)
        outcome = self.read(self.valid, self.made)
        if outcome.kind != "read":
            raise RuntimeError(f"{reader.name}: what is to be valid is {outcome}")

    def read(self, folder: Path, made: object) -> Outcome:
        """Read a folder; what is raised is told as the command line would tell it."""
        from pluralign.commands.failures import short_failure

        try:
            counted = self.reader.read(folder, made)
        except SystemExit as stop:
            return Outcome("named", "", f"exit {stop.code}")
        except AssertionError as error:
            return Outcome("lost", "", str(error))
        except Exception as error:  # noqa: BLE001  whatever gets through is what is looked for
            told = short_failure(error)
            if told is None:
                return Outcome("unnamed", "", f"{type(error).__name__}: {error}"[:300])
            places = {str(folder), *(path.name for path in self.valid.rglob("*"))}
            if not any(place in told for place in places) and not self.reader.exits:
                return Outcome("unnamed", "", f"names no file: {told}"[:300])
            return Outcome("named", "", told)
        if counted is None:
            return Outcome("read", "", "")
        if counted.rows != counted.kept + counted.skipped:
            return Outcome("lost", "", str(counted))
        return Outcome("skipped" if counted.skipped else "read", "", "")

    def case(self, number: int) -> Outcome:
        """Damage one file of a copy, and read it.

        Args:
            number: Of the case; seeds it.
        """
        from bad_inputs_mutations import damage

        draw = Random(f"{self.reader.name} {number}")
        folder = self.scratch / f"case{number}"
        try:
            if self.reader.anew:
                folder.mkdir()
                made = self.reader.make(folder)
            else:
                shutil.copytree(self.valid, folder)
                made = self.made
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
            file = draw.choice(files)
            if draw.random() < 0.02:
                file.unlink()
                done = "gone"
            else:
                done = damage(file, draw)
            return self.read(folder, made)._replace(damage=f"{file.name}, {done}")
        finally:
            for left in self.scratch.glob(f"case{number}*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def work(pipe: Connection, scratch: Path) -> None:
    """Answer cases until there is none; runs in a process of its own, which a case may end."""
    import resource

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # what is said of a damaged cache, ten thousand times
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false"
    )
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    from bad_inputs_readers import readers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    known = {reader.name: reader for reader in readers()}
    trials: dict[str, Trial] = {}
    pipe.send([(reader.name, reader.group) for reader in known.values()])
    while (asked := pipe.recv()) is not None:
        name, number = asked
        if name not in trials:
            trials[name] = Trial(known[name], Path(tempfile.mkdtemp(dir=scratch)))
        pipe.send(trials[name].case(number))


class Worker:
    """A process that reads damaged files; another one takes its place when it ends or hangs."""

    def __init__(self, scratch: Path) -> None:
        """Start it.

        Args:
            scratch: Where files go.
        """
        self.scratch = scratch
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.scratch), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START):
            raise TimeoutError("the process that reads did not begin")
        self.names: list[tuple[str, str]] = self.pipe.recv()

    def case(self, name: str, number: int) -> Outcome:
        """One case, in the process."""
        self.pipe.send((name, number))
        try:
            if self.pipe.poll(LIMIT):
                found: Outcome = self.pipe.recv()
                return found
            outcome = Outcome("slow", "", f"more than {LIMIT:.0f} s")
        except (EOFError, ConnectionResetError):
            self.process.join()
            outcome = Outcome("crashed", "", f"exit status {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self._start()
        return outcome


def shares(names: list[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    """Which reader each case is of: every one as often, but that data sets together count as five, and slow ones for less."""
    sets = sum(group == DATA_SETS for _, group in names)
    weights = [5 / sets if group == DATA_SETS else SLOWER.get(name, 1.0) for name, group in names]
    whole = sum(weights)
    drawn = []
    for place, (each, weight) in enumerate(zip(names, weights, strict=True)):
        upto = sum(weights[: place + 1])
        drawn += [each] * (round(number * upto / whole) - round(number * (upto - weight) / whole))
    return drawn


def main() -> int:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=10_000, help="cases in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, which seeds it")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    parser.add_argument("--output", type=Path, help="file that gets the JSON object, too")
    options = parser.parse_args()
    from surroundings import surroundings

    counts: dict[str, Counter[str]] = {}
    damages: Counter[str] = Counter()
    faults: list[str] = []
    begin = time.perf_counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        worker = Worker(Path(scratch))
        names = [each for each in worker.names if options.only in each[0]]
        for place, (name, group) in enumerate(shares(names, options.number)):
            start = time.perf_counter()
            outcome = worker.case(name, options.first + place)
            slowest = max(slowest, time.perf_counter() - start)
            counts.setdefault(group, Counter())[outcome.kind] += 1
            damages[outcome.damage.rpartition(", ")[2]] += 1
            if outcome.kind in FAULTS:
                faults.append(
                    f"{name} #{options.first + place} ({outcome.damage}): {outcome.kind}: {outcome.said}"
                )
                print(faults[-1], file=sys.stderr, flush=True)
        worker.process.kill()
    table = Table("reader", *KINDS, title=f"{options.number:,} bad inputs")
    for group, found in counts.items():
        table.add_row(group, *(f"{found[kind]:,}" for kind in KINDS))
    Console().print(table)
    result = {
        "cases": sum(map(Counter.total, counts.values())),
        "readers": len(names),
        "outcomes": {group: {kind: found[kind] for kind in KINDS} for group, found in counts.items()},
        "damage": dict(sorted(damages.items())),
        "seconds": round(time.perf_counter() - begin, 1),
        "slowest_case_seconds": round(slowest, 2),
        **surroundings(
            "torch", "numpy", "pyarrow", "safetensors", "transformers", "datasets", "jsonargparse"
        ),
    }
    text = json.dumps(result)
    if options.output is not None:
        options.output.write_text(f"{text}\n", encoding="utf-8")
    print(text)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
