"""Training speed, memory and exactness of BradleyTerryRM beside TRL's RewardTrainer, in one process.

    python benchmarks/reward_training.py

Both trainers get the same token ids, initial weights, optimiser, precision and pairs. Runs alternate; a ratio is the
median over rounds of the two speeds within a round. It prints tables, then one line of JSON. The exit status is 1
if scores or gradients disagree. README.md in this folder says what is measured and how.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from memory import STATUS
from reward_training_checks import BFLOAT16, FLOAT32, Agreement, bfloat16_agreement, both_agree
from reward_training_data import Network, Sample, Sources
from reward_training_peak import Operations, gemm_peaks, needed_operations
from reward_training_profile import shares, shares_table
from reward_training_runs import Kind, Rounds, peak_memory, train
from rich.console import Console
from rich.table import Table
from surroundings import instructions, surroundings

SMALL, MEDIUM = Network(256, 8, 4, 640), Network(512, 9, 8, 1408)
NETWORKS = {"7M": SMALL, "30M": MEDIUM}
OURS = Kind("pluralign", ours=True)
SEPARATE = Kind("pluralign, separate rows", ours=True, layout="separate")
TRL = Kind("TRL")
CHECKPOINTING = Kind("TRL, gradient checkpointing", checkpointing=True)
GROUPED = Kind("TRL, grouped by length", grouped=True)
ALONE = Kind("TRL, grouped, left alone", grouped=True, alone=True)
OURS_16, GROUPED_16 = (
    kind._replace(title=f"{kind.title}, bfloat16", bfloat16=True) for kind in (OURS, GROUPED)
)
INSTRUCTIONS = instructions("avx2", "avx512f", "avx512_bf16", "amx_bf16")
FAST_BFLOAT16 = INSTRUCTIONS["avx512_bf16"] or INSTRUCTIONS["amx_bf16"]
"""Whether this CPU multiplies in bfloat16; others take several times as long as in float32, so that few pairs must do."""
FEW = 8 if FAST_BFLOAT16 else 4
GEMM_TOKENS = 2048
"""Of a step whose matrix products are timed: about as many as 8 pairs have."""

warnings.filterwarnings("ignore")
for library in ("lightning.pytorch", "lightning.fabric", "transformers", "trl", "datasets", "pluralign"):
    logging.getLogger(library).setLevel(logging.ERROR)
console = Console(width=130)


class Part(NamedTuple):
    """One comparison."""

    title: str
    network: str
    draw: Callable[[Sources], Sample]
    steps: Mapping[Kind, int]
    """Of every kind, prompts a step with us and pairs with TRL."""
    first: tuple[int, int | None] | None = (8, None)
    """How many prompts the first step is compared on, and how many pairs of each; None where another part did."""
    rounds: int | None = None
    """Where it is not what ``--rounds`` says."""


PARTS = {
    "pairs": Part(
        "pairs, 8 a step",
        "7M",
        lambda sources: sources.hh().evenly(24),
        {OURS: 8, TRL: 8, CHECKPOINTING: 8},
    ),
    "grouped": Part(
        "pairs, 8 a step, sorted among 50 batches",
        "7M",
        lambda sources: sources.hh().sorted_batches(5, 8),
        {OURS: 8, GROUPED: 8},
        first=None,
    ),
    "alone": Part(
        "pairs, 8 a step, TRL's grouping left alone",
        "7M",
        lambda sources: sources.hh().evenly(64),
        {OURS: 8, ALONE: 8},
        first=None,
    ),
    "30M": Part(
        "pairs, 8 a step, sorted among 50 batches",
        "30M",
        lambda sources: sources.hh().sorted_batches(2, 8),
        {OURS: 8, GROUPED: 8},
        first=(4, None),
    ),
    "long": Part(
        "pairs of long responses, 4 a step, sorted",
        "7M",
        lambda sources: sources.long().sorted_batches(2, 4),
        {OURS: 4, GROUPED: 4},
        first=(2, None),
    ),
    "nine": Part(
        "36 pairs a prompt, 1 prompt a step, TRL 8 pairs",
        "7M",
        lambda sources: sources.nine().evenly(2),
        {OURS: 1, GROUPED: 8},
        first=(1, 8),
    ),
    "five": Part(
        "20 pairs a query, 2 queries a step, TRL 8 pairs",
        "7M",
        lambda sources: sources.dsp().evenly(2),
        {OURS: 2, SEPARATE: 2, TRL: 8},
        first=(1, 8),
    ),
    "bfloat16": Part(
        f"pairs, {FEW} a step, sorted among 50 batches, bfloat16",
        "7M",
        lambda sources: sources.hh().sorted_batches(2 if FAST_BFLOAT16 else 1, FEW),
        dict.fromkeys((OURS, OURS_16, GROUPED, GROUPED_16), FEW),
        first=None,
        rounds=None if FAST_BFLOAT16 else 1,
    ),
}


class Target(NamedTuple):
    """A ratio of speeds that is aimed at."""

    what: str
    part: str
    faster: Kind
    slower: Kind
    goal: float


TARGETS = (
    Target("HH pairs, 7M, TRL as it comes, checkpointing off", "pairs", OURS, TRL, 5.0),
    Target("HH pairs, 7M, TRL grouped as on much data", "grouped", OURS, GROUPED, 2.5),
    Target("HH pairs, 30M, TRL grouped as on much data", "30M", OURS, GROUPED, 2.1),
    Target("long responses, TRL grouped as on much data", "long", OURS, GROUPED, 1.7),
    Target("nine responses a prompt, TRL on expanded pairs, grouped", "nine", OURS, GROUPED, 7.0),
    Target("bfloat16 on the CPU, our own float32", "bfloat16", OURS_16, OURS, 1.6),
)
SHARE_GOAL = 0.65
"""Of the measured peak of matrix products, on HH pairs."""


def needed(sample: Sample, network: str) -> Operations:
    """Operations of an epoch."""
    return needed_operations(sample.rows, NETWORKS[network])


class Measured:
    """Everything that was measured, as it comes."""

    def __init__(self, options: argparse.Namespace, sources: Sources) -> None:
        """Measure nothing yet."""
        self.options, self.sources = options, sources
        self.agreement: dict[str, Agreement] = {}
        self.rounds: dict[str, Rounds] = {}
        self.parts: dict[str, dict[str, object]] = {}
        self.peaks: dict[str, float] = {}

    def peak(self) -> float:
        """Operations a second of the best matrix product so far."""
        found = gemm_peaks([NETWORKS[PARTS[name].network] for name in self.options.parts], GEMM_TOKENS)
        self.peaks = {shape: max(rate, self.peaks.get(shape, 0.0)) for shape, rate in found.items()}
        return max(self.peaks.values())

    def measure(self, name: str) -> None:
        """Check a part, run it, and print a table."""
        part = PARTS[name]
        sample, network, every = part.draw(self.sources), NETWORKS[part.network], [*part.steps]
        if part.first is not None:
            self.agreement[name] = both_agree(sample.head(*part.first), network)
        if any(kind.bfloat16 for kind in every):
            pairs = [(full, every[i + 1]) for i, full in enumerate(every[:-1]) if every[i + 1].bfloat16]
            for full, half in pairs:
                self.agreement[f"{name}, {half.title}"] = bfloat16_agreement(
                    sample.head(8), network, full, half
                )
        rounds = Rounds(sample, network, part.steps, part.rounds or self.options.rounds)
        self.rounds[name] = rounds
        found = {
            "title": part.title,
            "data": sample.name,
            "network": part.network,
            "pairs": sample.pairs,
            "times_as_fast_as": {
                kind: rounds.ratio(OURS.title, kind) for kind in rounds if kind != OURS.title
            },
            "times_as_many_tokens": {
                kind: runs[0].tokens / rounds[OURS.title][0].tokens for kind, runs in rounds.items()
            },
            "needed_operations": needed(sample, part.network)._asdict(),
            "seconds": median(run.seconds for run in rounds[OURS.title]),
            "runs": rounds.summary(),
        }
        if self.options.profile:
            run = train(OURS, sample, network, part.steps[OURS], watch="profile")
            shown = shares(run, needed(sample, part.network))
            found["profile"] = shown._asdict()
            console.print(shares_table(f"{sample.name}, {part.network}", shown, self.peak()))
        self.parts[name] = found
        console.print(part_table(part, sample, rounds))

    def memory(self) -> dict[str, int]:
        """Peaks of a step on the first 8 pairs, where they can be read (Linux)."""
        if not STATUS.with_name("clear_refs").exists():
            return {}
        sample = self.sources.hh().evenly(24).head(8)
        return {kind.title: peak_memory(kind, sample, SMALL) for kind in (OURS, TRL, CHECKPOINTING)}

    def shares(self) -> dict[str, float]:
        """Share of the peak that our needed operations take up, for each part in float32."""
        best = self.peak()
        return {
            name: needed(PARTS[name].draw(self.sources), PARTS[name].network).total / found["seconds"] / best
            for name, found in self.parts.items()
        }


def part_table(part: Part, sample: Sample, rounds: Rounds) -> Table:
    """Speeds, tokens and ratios of a part."""
    table = Table("run", title=f"{sample.name}, {part.network}: {part.title}")
    for name in ("pairs/s of every round", "tokens", "padding", "pluralign is faster"):
        table.add_column(name, justify="right")
    for kind, every in rounds.items():
        speeds, run = " ".join(f"{run.speed:.2f}" for run in every), every[0]
        table.add_row(
            kind, speeds, f"{run.tokens:,}", f"{run.padding:.1%}", f"{rounds.ratio(OURS.title, kind):.2f}x"
        )
    return table


def targets(measured: Measured, share: Mapping[str, float]) -> list[dict[str, object]]:
    """What is aimed at beside what was reached."""
    reached = {
        target: measured.rounds[target.part].ratio(target.faster.title, target.slower.title)
        for target in TARGETS
        if target.part in measured.rounds
    }
    rows = [(target.what, target.goal, value) for target, value in reached.items()]
    if "grouped" in share:
        rows.append(("share of the peak of matrix products, HH pairs, 7M", SHARE_GOAL, share["grouped"]))
    return [
        {
            "what": what,
            "target": goal,
            "reached": value,
            "met": value >= goal,
            "applies": FAST_BFLOAT16 or not what.startswith("bfloat16"),
        }
        for what, goal, value in rows
    ]


def target_table(rows: list[dict[str, object]]) -> Table:
    """The same for people."""
    table = Table("what", "target", "reached", "", title="Targets")
    for row in rows:
        met = "" if row["met"] else "missed" if row["applies"] else "this CPU has no such instructions"
        table.add_row(row["what"], f"{row['target']:.2f}", f"{row['reached']:.2f}", met)
    return table


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Check, measure, print the tables and return the numbers."""
    measured = Measured(options, Sources(folder))
    measured.peak()
    for name in options.parts:
        measured.measure(name)
    share = measured.shares()
    rows = targets(measured, share)
    console.print(target_table(rows))
    return {
        "agree": all(found.agree for found in measured.agreement.values()),
        "agreement": {name: found._asdict() for name, found in measured.agreement.items()},
        "tolerances": {"float32": FLOAT32._asdict(), "bfloat16": BFLOAT16._asdict()},
        "targets": rows,
        "parts": measured.parts,
        "gemm_peak": max(measured.peaks.values()),
        "gemm_peaks": measured.peaks,
        "share_of_gemm_peak": share,
        "memory_bytes": measured.memory() if options.memory else {},
        "cpu_instructions": INSTRUCTIONS,
        **surroundings("torch", "lightning", "transformers", "trl", "accelerate"),
    }


def main() -> int:
    """Run everything; the exit status says whether both sides computed the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = [name for name in PARTS if name != "alone"]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=usual, help="all but 'alone' by default")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--profile", action="store_true", help="also show where our time goes")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave memory out")
    parser.add_argument("--output", type=Path, help="also write the JSON object here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(options, Path(folder))
    line = json.dumps({**result, "rounds": options.rounds, "seconds": time.perf_counter() - began})
    if options.output:
        options.output.write_text(line + "\n")
    print(line)
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
