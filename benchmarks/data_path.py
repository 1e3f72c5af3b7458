"""The way of data to the first batch: rows a second into a token cache, an epoch's plan at five million rows, and memory.

    python benchmarks/data_path.py

Tokenising: the same rows, tokenizer and texts on all sides; the ids of every response are compared. Ours reads JSON Lines,
checks every row, and writes and merges the cache; the others begin with rows in memory. Runs alternate, and a ratio is the
median over the rounds of the two speeds within a round: on one core, and on all. The first batch: the plan of an epoch of
random lengths, beside the sampler of transformers that groups by length. It prints tables, then one line of JSON. The exit
status is 1 if any ids differ, an epoch is planned twice or misses a record, or a goal on one core is missed. ``--parts`` runs some
alone. README.md in this folder says what is measured and how.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from data_path_sides import Pair, Side, Task, arena_rows, hh_rows, mapped, ours, task, trl
from memory import STATUS, memory
from rich.console import Console
from rich.table import Table
from surroundings import surroundings
from transformers.trainer_pt_utils import LengthGroupedSampler

from pluralign.datamodules import LocalDataModule
from pluralign.datamodules.batches import TokenBudgetBatchSampler

PARTS = ("one_core", "all_cores", "first_batch", "memory")
OURS, TRL, MAP = "pluralign", "TRL", "datasets.map"
GOAL = 1 / 0.9
"""Rows a second on one core over those of ``datasets.map``: at most 0.9 of its time."""
MEMORY_ROWS = (10_000, 100_000, 1_000_000)


# Tokenising --------------------------------------------------------------------------------------------


def sides(cores: int) -> dict[str, Side]:
    """Ways to compare where there are so many cores; on one, those of one process alone."""
    found: dict[str, Side] = {OURS: ours, MAP: mapped}
    if cores > 1:
        found |= {
            f"{OURS}, {cores} processes": partial(ours, num_processes=cores),
            f"{MAP}, {cores} processes": partial(mapped, num_processes=cores),
        }
        if find_spec("trl") is not None:
            found[TRL] = trl
    return found


def compare(job: Task, rounds: int, folder: Path, cores: int) -> dict[str, object]:
    """Run every side in turn; speeds, ratios, and whether all ids are equal."""
    ways = sides(cores)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    first: list[Pair] | None = None
    agree = True
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            place = Path(tempfile.mkdtemp(dir=folder))
            with contextlib.redirect_stderr(io.StringIO()):
                seconds, pairs = ways[name](job, place)
            speeds[name].append(len(job.rows) / seconds)
            first = pairs if first is None else first
            agree &= pairs == first
    several = f"{OURS}, {cores} processes"
    ratios = {
        f"{mine} over {other}": median(a / b for a, b in zip(speeds[mine], speeds[other], strict=True))
        for mine in (OURS, several)
        for other in ways
        if mine in ways and other not in (mine, several)
    }
    return {"rows": len(job.rows), "rows_per_second": speeds, "ratios": ratios, "agree": agree}


def tokenising(rows: int, rounds: int) -> dict[str, object]:
    """Both tasks, on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [task("arena-like", folder, arena_rows(rows), chat=True)]
        if plain := hh_rows(rows):
            jobs.append(task("hh-rlhf", folder, plain, chat=False))
        return {job.name: compare(job, rounds, folder, cores) for job in jobs}


def show_tokenising(title: str, tasks: dict[str, dict[str, dict[str, object]]]) -> None:
    """Print speeds and ratios."""
    table = Table("task", "side", "rows/s of every round", title=title)
    for name, result in tasks.items():
        for side, every in result["rows_per_second"].items():
            table.add_row(name, side, " ".join(f"{speed:,.0f}" for speed in every))
    ratios = Table("task", "speeds", "ratio")
    for name, result in tasks.items():
        for pair, ratio in result["ratios"].items():
            ratios.add_row(name, pair, f"{ratio:.2f}")
    Console(width=110).print(table, ratios)


# The first batch ---------------------------------------------------------------------------------------


class CountedSampler(TokenBudgetBatchSampler):
    """Counts how often batches are put together."""

    composed = 0

    def _compose(self, epoch: int, attempt: int) -> object:
        self.composed += 1
        return super()._compose(epoch, attempt)


def planned(records: int, rounds: int) -> dict[str, object]:
    """Seconds to a sampler's first batch and how often it planned, beside transformers grouping by length."""
    draw = np.random.default_rng(0)
    own = np.clip(draw.lognormal(5, 0.7, (records, 2)), 3, 900).astype(np.int32)
    prefix = np.clip(draw.lognormal(4, 0.9, records), 3, 900).astype(np.int32)
    sizes = np.stack([np.full_like(prefix, 2), prefix, own.sum(1), own.max(1)], axis=1)
    lengths = (prefix + own.sum(1)).tolist()
    before, at_most = memory("VmRSS") if STATUS.is_file() else 0, 0
    seconds: dict[str, list[float]] = {"pluralign": [], "transformers": []}
    plans, whole = 0, True
    for number in range(rounds):
        for name in list(seconds)[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            if name == "pluralign":
                sampler = CountedSampler(sizes, max_tokens=8192)
                batches = len(sampler)
                next(iter(sampler))
                seconds[name].append(time.perf_counter() - began)
                plan = sampler.plan(0)
                at_most = max(at_most, memory("VmRSS") - before if STATUS.is_file() else 0)
                plans = max(plans, sampler.composed)
                seen = np.bincount(np.concatenate(list(plan)), minlength=records)
                whole &= len(plan) == batches and bool((seen == 1).all())
            else:
                grouped = LengthGroupedSampler(25, lengths=lengths, generator=torch.Generator())
                next(iter(grouped))
                seconds[name].append(time.perf_counter() - began)
    ratio = median(b / a for a, b in zip(seconds["pluralign"], seconds["transformers"], strict=True))
    table = Table("sampler", "seconds to the first batch of every round", title=f"{records:,} records")
    for name, every in seconds.items():
        table.add_row(name, " ".join(f"{each:.2f}" for each in every))
    Console(width=100).print(table, f"planned {plans} time(s) an epoch; {ratio:.1f} times as fast")
    return {"records": records, "seconds": seconds, "ratio": ratio, "plans_an_epoch": plans, "whole": whole,
            "memory_bytes": at_most}  # fmt: skip


# Memory ------------------------------------------------------------------------------------------------


def peak(rows: int) -> None:
    """Print the peak memory of this process, in bytes, after preparing so many short rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i in range(rows):
                row = {
                    "id": f"r{i}",
                    "prompt": f"question {i}",
                    "chosen": f"good answer {i}",
                    "rejected": "bad one",
                }
                file.write(json.dumps(row) + "\n")
        LocalDataModule(test=str(path), cache_dir=folder).prepare_data()
    print(memory("VmHWM"))


def peaks(sizes: list[int]) -> dict[str, object]:
    """Peak memory by rows, each in a process of its own, and what a row adds."""
    found = {}
    for rows in sizes:
        words = [sys.executable, __file__, "--peak", str(rows)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[str(rows)] = int(done.stdout.split()[-1])
    table = Table("short rows", "peak memory", title="prepare_data, each in a process of its own")
    for shown, size in found.items():
        table.add_row(f"{int(shown):,}", f"{size / 2**20:,.0f} MiB")
    Console(width=100).print(table)
    few, many = min(sizes), max(sizes)
    growth = (found[str(many)] - found[str(few)]) / (many - few) if many > few else None
    return {"memory_bytes": found, "memory_bytes_per_row": growth}


# All of it ---------------------------------------------------------------------------------------------


def on_one_core(rows: int, rounds: int) -> dict[str, object]:
    """Tokenising in a process that has one core."""
    words = [sys.executable, __file__, "--tokenise", "--rows", str(rows), "--rounds", str(rounds)]
    core = {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, core)
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> dict[str, object]:
    """What each part that is asked for found."""
    results: dict[str, object] = {}
    if "one_core" in options.parts and hasattr(os, "sched_setaffinity"):
        results["one_core"] = on_one_core(options.rows, options.rounds)
        show_tokenising("one core", results["one_core"])
    if "all_cores" in options.parts:
        results["all_cores"] = tokenising(options.rows, options.rounds)
        show_tokenising("all cores", results["all_cores"])
    if "first_batch" in options.parts:
        results["first_batch"] = planned(options.records, options.rounds)
    if "memory" in options.parts and STATUS.is_file():
        results["memory"] = peaks(options.memory)
    return results


def passed(results: dict[str, object]) -> tuple[bool, bool]:
    """Whether all sides agree and an epoch is planned once, and whether the goal on one core is reached."""
    tasks = [task for part in ("one_core", "all_cores") for task in results.get(part, {}).values()]
    agree = all(task["agree"] for task in tasks)
    first = results.get("first_batch", {"plans_an_epoch": 1, "whole": True})
    agree &= first["plans_an_epoch"] == 1 and first["whole"]
    goal = all(task["ratios"][f"{OURS} over {MAP}"] >= GOAL for task in results.get("one_core", {}).values())
    return agree, goal


def main() -> int:
    """Run everything; the exit status says whether all agree and the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--rows", type=int, default=2000, help="rows of each task")
    parser.add_argument("--records", type=int, default=5_000_000, help="records of the plan")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=list(MEMORY_ROWS), help="numbers of short rows"
    )
    parser.add_argument(
        "--output", type=Path, help="also write the JSON object here, into that of other parts"
    )
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tokenise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        peak(options.peak)
        return 0
    if options.tokenise:
        print(json.dumps(tokenising(options.rows, options.rounds)))
        return 0
    began = time.perf_counter()
    results = measured(options)
    names = ("torch", "datasets", "tokenizers", "transformers", *(["trl"] if find_spec("trl") else []))
    if options.output and options.output.is_file():
        results = {**json.loads(options.output.read_text(encoding="utf-8")), **results}
    agree, goal = passed(results)
    seconds = {**results.get("seconds", {}), " ".join(options.parts): time.perf_counter() - began}
    line = json.dumps({**results, "agree": agree, "goal": GOAL, "passes": agree and goal, "rounds": options.rounds,
                       **surroundings(*names), "seconds": seconds})  # fmt: skip
    if options.output:
        options.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return int(not (agree and goal))


if __name__ == "__main__":
    sys.exit(main())
