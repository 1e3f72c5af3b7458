"""How long the command line takes to answer, beside ``import lightning``, which no run can do without.

Run without arguments; it takes two minutes or so. It prints a table, then one line of JSON, which ``--output FILE``
writes as well. Every round starts each command once, in a process of its own, the order turning round every other time;
a ratio is the median over the rounds of the two times within a round. Times are by the clock, which a user sees, and of
the processor, which other work disturbs least; ``first`` is the clock of the first start of all, when little of it may be
in memory. ``trl --help`` stands beside where TRL is installed. The exit status is 1 if ``pluralign --help`` leaves a verb out or
takes more than 0.3 seconds by the clock.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.train import VERBS

BESIDE = "import lightning"
HELP = "pluralign --help"
GOAL = 0.3
"""Seconds by the clock that the list of verbs may take."""
RUN = "import sys; from pluralign.train import main; main(sys.argv[1:])"
COMMANDS = {
    BESIDE: (BESIDE,),
    HELP: (RUN, "--help"),
    "pluralign fit --help": (RUN, "fit", "--help"),
    "pluralign embed --help": (RUN, "embed", "--help"),
}
if find_spec("trl") is not None:
    COMMANDS["trl --help"] = ("import sys; from trl.cli import main; sys.argv[0] = 'trl'; main()", "--help")


class Answer(NamedTuple):
    """What a fresh interpreter said, and the seconds that it took by the clock and of the processor."""

    printed: str
    clock: float
    processor: float


def answer(code: str, *words: str) -> Answer:
    """Run the code in a fresh interpreter."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=300
    )
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Answer(done.stdout, clock, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main() -> int:
    """Print the table and the JSON object; 0 if the help is whole and quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    first = {name: answer(*COMMANDS[name]) for name in dict.fromkeys((HELP, *COMMANDS))}
    missing = [verb for verb in VERBS if f"\n  {verb} " not in first[HELP].printed]
    rounds: dict[str, list[Answer]] = {name: [] for name in COMMANDS}
    for number in range(options.rounds):
        for name in list(COMMANDS)[:: -1 if number % 2 else 1]:
            rounds[name].append(answer(*COMMANDS[name]))
    kinds = ("clock", "processor")
    medians = {
        kind: {
            name: statistics.median(getattr(each, kind) for each in times) for name, times in rounds.items()
        }
        for kind in kinds
    }
    ratios = {
        name: statistics.median(
            own.processor / beside.processor for own, beside in zip(times, rounds[BESIDE], strict=True)
        )
        for name, times in rounds.items()
    }
    heads = ("command", "seconds by the clock", "first", "of the processor", f"times {BESIDE}")
    table = Table(*heads, title=f"start-up, {options.rounds} rounds")
    for name, ratio in ratios.items():
        seconds = (medians["clock"][name], first[name].clock, medians["processor"][name])
        table.add_row(name, *(f"{each:.2f}" for each in seconds), f"{ratio:.3f}")
    Console(width=100).print(table)
    passes = not missing and medians["clock"][HELP] <= GOAL
    line = json.dumps(
        {
            "seconds": medians,
            "first": {name: each.clock for name, each in first.items()},
            "ratios": ratios,
            "rounds": options.rounds,
            "goal": GOAL,
            "missing_verbs": missing,
            "passes": passes,
            **surroundings("torch", "lightning", "jsonargparse", "transformers"),
        }
    )
    if options.output:
        options.output.write_text(line + "\n")
    print(line)
    return int(not passes)


if __name__ == "__main__":
    sys.exit(main())
