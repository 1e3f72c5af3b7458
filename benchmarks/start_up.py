"""How long the command line takes to answer, beside ``import lightning``, which no run can do without.

Run without arguments; it takes two minutes or so. It prints a table, then one line of JSON, which ``--output FILE``
writes as well. Every round starts each command once, in a process of its own, the order turning round every other time;
a ratio is the median over the rounds of the two times within a round. Times are those of the processor, which other work
disturbs least. The exit status is 1 if ``pluralign --help`` leaves
a verb out or takes more than 1.2 times ``import lightning``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pluralign.train import VERBS

BESIDE = "import lightning"
GOAL = 1.2
RUN = "import sys; from pluralign.train import main; main(sys.argv[1:])"
COMMANDS = {
    BESIDE: (BESIDE,),
    "pluralign --help": (RUN, "--help"),
    "pluralign fit --help": (RUN, "fit", "--help"),
    "pluralign embed --help": (RUN, "embed", "--help"),
}


def answer(code: str, *words: str) -> tuple[float, str]:
    """Processor seconds of a fresh interpreter that runs the code, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=300
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def main() -> int:
    """Print the table and the JSON object; 0 if the help is whole and quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    options = parser.parse_args()
    printed = {name: answer(*words)[1] for name, words in COMMANDS.items()}  # once to warm the disk
    missing = [verb for verb in VERBS if f"\n  {verb} " not in printed["pluralign --help"]]
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(options.rounds):
        for name in list(COMMANDS)[:: -1 if number % 2 else 1]:
            seconds[name].append(answer(*COMMANDS[name])[0])
    ratios = {
        name: statistics.median(own / beside for own, beside in zip(times, seconds[BESIDE], strict=True))
        for name, times in seconds.items()
    }
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    table = Table("command", "seconds", f"times {BESIDE}", title=f"start-up, {options.rounds} rounds")
    for name, ratio in ratios.items():
        table.add_row(name, f"{medians[name]:.2f}", f"{ratio:.2f}")
    Console().print(table)
    passes = not missing and ratios["pluralign --help"] <= GOAL
    line = json.dumps(
        {
            "seconds": medians,
            "ratios": ratios,
            "rounds": options.rounds,
            "goal": GOAL,
            "missing_verbs": missing,
            "passes": passes,
            "machine": {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "lightning", "jsonargparse", "transformers")},
        }
    )
    if options.output:
        options.output.write_text(line + "\n")
    print(line)
    return int(not passes)


if __name__ == "__main__":
    sys.exit(main())
