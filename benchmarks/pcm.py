"""PCM on experts of known styles: do weights that are learned from rewards find who should speak where?

    python benchmarks/pcm.py [--seeds 5] [--anew] [--processes 2] [--work FOLDER] [--output FILE]

Everything is made here, in the small language of `StyleGrammarDataModule`. A base has read writers of every style and follows a stated
wish now and then; six experts, adapters over it, have read writers of one style, who lean on the axes that are not theirs (19 of 20 texts
to one pole). Reward models (Bradley-Terry, one for each style) learn from pairs. The weights of PCM and those of "static weights" are
learned from these by REBEL on six of the eight combinations of styles; all methods are measured on the other two, which each expert
leans away from, on prompts that nothing has seen. What counts is the share of the asked style by the rules of the language, which are
no reward model: 1 if a response shows all three styles, 0 if it is not well-formed.

A seed is one of prompts' order, draws and weights; base, experts and reward models are those of the first seed for all, unless
`--anew` trains them for each. Intervals are 95 % (Student) over seeds, of differences paired by seed.

Two checks stand beside it: experts that always say their one word, and a reward by a bit of the prompt (weight of the right one above .95,
static weights stay at one half); and what an epoch on stored rollouts costs beside one that runs the experts again.

It prints tables, then one line of JSON. Exit status 1 unless PCM is surely above uniform, static weights, soups and MOD, the right
expert has more than .95, and stored rollouts are worth a factor of 20.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from intervals import run_estimate
from pcm_checks import epoch_speed, learnability
from pcm_runs import METHODS, SINGLE, TRAINED, Budget, Shown, Workshop, shown
from rich.console import Console
from rich.table import Table
from surroundings import surroundings

from pluralign.datamodules.datasets.style_grammar import AXES, DIMENSIONS
from pluralign.metrics import Estimate

PCM_TITLE = next(iter(METHODS))
BEST = "the best expert alone"
GOAL = ("uniform", "static weights", "product soup", "factor soup", "geometric (MOD)")
"""What PCM must beat surely."""
WEIGHT, SPEED = 0.95, 20.0


class Runs(NamedTuple):
    """What became of all seeds."""

    results: list[dict[str, Shown]]
    """By method."""
    reward_accuracy: list[dict[str, float]]
    """Of reward models on new pairs."""


def quiet() -> None:
    """One thread and few words, in every process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def run_seed(workshop: Workshop, seed: int) -> dict[str, Shown]:
    """Every method of a seed, the trained ones first."""
    data = workshop.data(seed)
    results = {}
    for place, (title, settings) in enumerate(METHODS.items()):
        mixture = workshop.mixture(seed, **settings)
        if place < TRAINED:
            workshop.train(mixture, data)
        results[title] = shown(mixture, data, seed)
    return with_best(results)


def run_seeds(folder: Path, budget: Budget, seeds: int, anew: bool, processes: int) -> Runs:
    """Everything that is trained, of all seeds.

    Args:
        folder: Of files.
        budget: Steps.
        seeds: How many.
        anew: Whether each has a base, experts and reward models of its own.
        processes: That work side by side.
    """
    workshops = [Workshop(folder, seed, budget) for seed in range(seeds if anew else 1)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=quiet) as pool:
        list(pool.map(Workshop.train_base, workshops))
        accuracies = [
            dict(zip(DIMENSIONS, pool.map(workshop.train_expert, DIMENSIONS), strict=True))
            for workshop in workshops
        ]
        of_seed = workshops if anew else workshops * seeds
        results = list(pool.map(run_seed, of_seed, range(seeds)))
    return Runs(results, accuracies)


def with_best(results: dict[str, Shown]) -> dict[str, Shown]:
    """The single experts as one method: the best of them in this seed, chosen by what counts."""
    singles = {title: results.pop(title) for title in SINGLE}
    best = max(singles, key=lambda title: float(singles[title].shares.mean()))
    return {**results, BEST: singles[best]}


def estimate(values: list[float]) -> dict[str, float | None]:
    """Mean over seeds with its interval, as JSON."""
    found: Estimate = run_estimate(values)
    return {
        name: None if math.isnan(value) else round(value, 4)
        for name, value in zip(("value", "low", "high"), found, strict=True)
    }


def summary(seeds: list[dict[str, Shown]]) -> dict[str, Any]:
    """What is reported of each method."""
    told = {}
    for title in seeds[0]:
        runs = [results[title] for results in seeds]
        means = [float(run.shares.mean()) for run in runs]
        axes = zip(AXES, torch.stack([run.shares.mean(0) for run in runs]).T.tolist(), strict=True)
        row: dict[str, Any] = {"share": estimate(means)}
        row |= {axis: estimate(values) for axis, values in axes}
        row |= {
            "malformed": estimate([run.malformed for run in runs]),
            "tokens": estimate([run.tokens for run in runs]),
        }
        row["by_dimension"] = {
            name: estimate([run.by_dimension[name] for run in runs]) for name in runs[0].by_dimension
        }
        row["share_of_each_seed"] = [round(value, 4) for value in means]
        entropies = [run.entropy for run in runs if run.entropy is not None]
        row["weight_entropy"] = estimate(entropies) if entropies else None
        if title != PCM_TITLE:
            ours = [float(results[PCM_TITLE].shares.mean()) for results in seeds]
            row["PCM minus this"] = estimate([one - other for one, other in zip(ours, means, strict=True)])
        told[title] = row
    return told


def _cell(found: dict[str, float] | None, digits: int = 3) -> str:
    return "" if found is None else f"{found['value']:.{digits}f}"


def show(methods: dict[str, Any], console: Console) -> None:
    """The table."""
    table = Table(
        "method",
        "share",
        *AXES,
        "malformed",
        "tokens",
        "entropy",
        "PCM minus this",
        title="held-out combinations",
    )
    for title, row in methods.items():
        less = row.get("PCM minus this")
        gap = ""
        if less is not None:
            ends = "" if less["low"] is None else f" [{less['low']:+.3f}, {less['high']:+.3f}]"
            gap = f"{less['value']:+.3f}{ends}"
        cells = [_cell(row[name]) for name in ("share", *AXES, "malformed")]
        table.add_row(title, *cells, _cell(row["tokens"], 1), _cell(row["weight_entropy"], 2), gap)
    console.print(table)


def show_dimensions(methods: dict[str, Any], console: Console) -> None:
    """The same by dimension."""
    names = list(methods[PCM_TITLE]["by_dimension"])
    table = Table("method", *names, title="by dimension, of the items that ask for it")
    for title, row in methods.items():
        table.add_row(title, *(_cell(row["by_dimension"][name]) for name in names))
    console.print(table)


def main() -> int:
    """Run, print and tell whether the goals are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="of training and draws")
    parser.add_argument(
        "--anew", action="store_true", help="train base, experts and reward models for each seed"
    )
    parser.add_argument("--processes", type=int, default=2, help="that work side by side, of one thread each")
    parser.add_argument("--work", type=Path, help="folder of models and rollouts; a temporary one by default")
    parser.add_argument("--output", type=Path, help="file to write the JSON to")
    arguments = parser.parse_args()
    quiet()
    start, console = time.perf_counter(), Console(width=150)
    with tempfile.TemporaryDirectory() as temporary:
        folder, budget = arguments.work or Path(temporary), Budget()
        bit = learnability(folder / "bit", 0)
        static = learnability(folder / "static", 0, "static")
        speed = epoch_speed()
        runs = run_seeds(folder, budget, arguments.seeds, arguments.anew, arguments.processes)
    methods = summary(runs.results)
    show(methods, console)
    show_dimensions(methods, console)
    console.print(
        f"the right expert's weight {bit['weight']:.4f}; reward of static weights {static['reward']:.3f}"
    )
    console.print(
        f"an epoch on stored rollouts is {speed['ratio']:.0f} times as fast as one that runs the experts"
    )
    found = {
        "methods": methods,
        "learnability": {"weight": bit["weight"], "static_reward": static["reward"]},
        "stored_rollouts": speed,
        "reward_accuracy": runs.reward_accuracy,
        "seeds": arguments.seeds,
        "anew": arguments.anew,
        "budget": budget._asdict(),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
        **surroundings(),
    }
    line = json.dumps(found)
    if arguments.output:
        arguments.output.write_text(f"{line}\n", encoding="utf-8")
    print(line)
    gaps = [methods[title]["PCM minus this"] for title in GOAL]
    surely = all((gap["value"] if gap["low"] is None else gap["low"]) > 0 for gap in gaps)
    reached = bit["weight"] > WEIGHT and abs(static["reward"] - 0.5) < 0.05 and speed["ratio"] >= SPEED
    return int(not (surely and reached))


if __name__ == "__main__":
    sys.exit(main())
