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
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from memory import STATUS
from reward_training_checks import FLOAT32, Agreement, as_close_as, both_agree
from reward_training_data import Sample, Sources
from reward_training_parts import (
    CHECKPOINTING,
    FAST_BFLOAT16,
    GEMM_TOKENS,
    GROUPED_16,
    HALVES,
    INSTRUCTIONS,
    NETWORKS,
    OURS,
    OURS_16,
    PARTS,
    SHARE,
    TARGETS,
    TRL,
    Part,
)
from reward_training_peak import gemm_peaks, needed_operations
from reward_training_profile import shares, shares_table
from reward_training_runs import Rounds, peak_memory, train
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

warnings.filterwarnings("ignore")
for library in ("lightning.pytorch", "lightning.fabric", "transformers", "trl", "datasets", "pluralign"):
    logging.getLogger(library).setLevel(logging.ERROR)
console = Console(width=130)


class Measured:
    """Everything that was measured, as it comes."""

    def __init__(self, options: argparse.Namespace, sources: Sources) -> None:
        """Measure nothing yet."""
        self.options, self.sources = options, sources
        self.agreement: dict[str, Agreement] = {}
        self.halves: dict[str, Agreement] = {}
        self.rounds: dict[str, Rounds] = {}
        self.parts: dict[str, dict[str, object]] = {}
        self.peaks: dict[str, float] = {}

    def halves_agree(self) -> bool:
        """Whether our runs in bfloat16 are as close to float32 as TRL's; so it is where there are none."""
        ours, peer = (self.halves.get(kind.title) for kind in (OURS_16, GROUPED_16))
        return ours is None or (peer is not None and ours.within(as_close_as(peer)))

    def peak(self) -> float:
        """Operations a second of the best matrix product so far."""
        networks = [NETWORKS[PARTS[name].network] for name in self.options.parts]
        for shape, rate in gemm_peaks(networks, GEMM_TOKENS).items():
            self.peaks[shape] = max(rate, self.peaks.get(shape, 0.0))
        return max(self.peaks.values())

    def measure(self, name: str) -> None:
        """Check a part, run it, and print a table."""
        part = PARTS[name]
        sample, network = part.draw(self.sources), NETWORKS[part.network]
        if part.first is not None:
            self.agreement[name] = both_agree(sample.head(*part.first), network, OURS, TRL)
        for half, full in HALVES.items():
            if half in part.steps:
                self.halves[half.title] = both_agree(sample.head(2), network, half, full)
        rounds = Rounds(sample, network, part.steps, part.rounds or self.options.rounds)
        self.rounds[name], needed = rounds, needed_operations(sample.rows, network)
        ours = rounds[OURS.title]
        self.parts[name] = {
            "title": part.title,
            "data": sample.name,
            "network": part.network,
            "pairs": sample.pairs,
            "times_as_fast_as": {kind: rounds.ratio(OURS.title, kind) for kind in rounds},
            "times_as_many_tokens": {kind: runs[0].tokens / ours[0].tokens for kind, runs in rounds.items()},
            "needed_operations": needed._asdict(),
            "operations_per_second": needed.total / median(run.seconds for run in ours),
            "runs": rounds.summary(),
        }
        console.print(part_table(part, sample, rounds))
        if self.options.profile and (FAST_BFLOAT16 or not HALVES.keys() & part.steps.keys()):
            run = train(OURS, sample, network, part.steps[OURS], watch="profile")
            found = shares(run, needed)
            self.parts[name]["profile"] = found._asdict()
            console.print(shares_table(f"{sample.name}, {part.network}: our time", found, self.peak()))

    def memory(self) -> dict[str, int]:
        """Peaks of a step on 8 pairs, where they can be read (Linux)."""
        if not STATUS.with_name("clear_refs").exists():
            return {}
        sample = self.sources.hh().evenly(8)
        return {kind.title: peak_memory(kind, sample, NETWORKS["7M"]) for kind in (OURS, TRL, CHECKPOINTING)}

    def shares(self) -> dict[str, float]:
        """Share of the peak that our needed operations take up, for each part."""
        best = self.peak()
        return {name: found["operations_per_second"] / best for name, found in self.parts.items()}


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
    reached = [
        (target, measured.rounds[target.part].ratio(target.faster.title, target.slower.title))
        for target in TARGETS
        if target.part in measured.rounds
    ]
    reached += [(SHARE, share[SHARE.part])] if SHARE.part in share else []
    return [
        {
            "what": target.what,
            "target": target.goal,
            "reached": value,
            "met": value >= target.goal,
            "applies": FAST_BFLOAT16 or target.part != "bfloat16",
        }
        for target, value in reached
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
        "agree": all(found.within(FLOAT32) for found in measured.agreement.values())
        and measured.halves_agree(),
        "agreement": {name: found._asdict() for name, found in measured.agreement.items()},
        "bfloat16_agreement": {name: found._asdict() for name, found in measured.halves.items()},
        "tolerances": {"float32": FLOAT32._asdict(), "bfloat16": "1.25 times TRL's"},
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
