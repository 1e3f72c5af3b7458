"""PAL on real workers: does more than one prototype help, on held-out pairs and on debates that nobody trained on?

    python benchmarks/pal_workers.py [--data_dir FOLDER] [--seeds N] [--output FILE]

Workers of UKPConvArg1 with at least 160 votes in training; macro accuracy and log loss, each worker counting equally, of
held-out pairs of known arguments (`pairs`) and of whole debates (`debates`). Beside PAL: a constant (a coin), "longer
wins" (with the training votes' share of it as its probability), a Bradley-Terry scalar for everyone, and K = 1 with each
worker's own liking of length. Fixed numbers of epochs: nothing is chosen on validation or test.

Ten seeds, each with another split. Intervals are 95 %: Student's over seeds for means; for differences a paired bootstrap
over sides of debates *and* seeds, and Student's over seeds alone beside it. Without the data a synthetic crowd of users
who judge stands in, and table and JSON object say so. Exit status 1 if no PAL beats the constant on held-out pairs.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from intervals import run_estimate
from pal import DEFAULT, Bench, quiet, trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pluralign.datamodules import PreferenceDataModule
from pluralign.metrics import Estimate, crossed_estimates, log_loss, outcomes
from pluralign.models import BradleyTerryRM, RewardModule

SPLITS = ("pairs", "debates")
PROTOTYPES = (1, 2, 3, 4)
CONSTANT, LONGER, SCALAR, BIAS = (
    "constant",
    "longer wins",
    "Bradley-Terry scalar",
    "K=1 + own bias for length",
)
MEASURES = ("accuracy", "log_loss")


class Judgements(NamedTuple):
    """Decided judgements of a split: who judged, how much longer the first is (log), the share, the side of a debate."""

    user: Tensor
    longer: Tensor
    share: Tensor
    prompts: list[str]


@torch.no_grad()
def judgements(data: PreferenceDataModule, split: str) -> Judgements:
    """Every decided judgement of a split, in the loader's order."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    prompts: list[str] = []
    for batch in data.batches(split, shuffle=False):
        decided = batch["preference"] != 0.5
        first, second = batch["response_length"][batch["comparisons"]].double().log().unbind(1)
        parts.append(
            (batch["user_id"][decided], (first - second)[decided], batch["preference"][decided].double())
        )
        record = batch["response_prompt"][batch["comparisons"][:, 0]][decided]
        prompts += [batch["id"][i] for i in record.tolist()]
    user, longer, share = (torch.cat(column) for column in zip(*parts, strict=True))
    return Judgements(user, longer, share, prompts)


@torch.no_grad()
def margins(model: RewardModule, data: PreferenceDataModule, split: str) -> Tensor:
    """Margin of every decided judgement, in the same order."""
    model.eval()
    found = []
    for batch in data.batches(split, shuffle=False):
        output = model(batch)
        found.append((output["chosen"] - output["rejected"])[batch["preference"] != 0.5].double())
    return torch.cat(found)


def scalar(bench: Bench, data: PreferenceDataModule, seed: int) -> BradleyTerryRM:
    """One linear reward for everyone, at the rate of `arguments.py`."""
    L.seed_everything(seed, verbose=False)
    model = BradleyTerryRM(
        bench.backbone, optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-2, weight_decay=0.0)
    )
    trainer(15).fit(model, data)
    return model


def own_bias(train: Judgements, test: Judgements, shared: tuple[Tensor, Tensor], number: int) -> Tensor:
    """Margins of a shared reward (its margins in both splits) plus each worker's own scale and liking of length."""
    bias = torch.zeros(number, 2, dtype=torch.float64, requires_grad=True)
    base = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def margin(known: Judgements, reward: Tensor) -> Tensor:
        return ((base + bias)[known.user] * torch.stack([reward, known.longer], 1)).sum(1)

    optimizer = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = binary_cross_entropy_with_logits(margin(train, shared[0]), train.share, reduction="sum")
        value = fit + bias.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return margin(test, shared[1]).detach()


def measured(margin: Tensor, test: Judgements) -> Tensor:
    """Whether each judgement is right, and its log loss, (M, 2); a coin is right half of the time."""
    right = outcomes(margin, test.share).double() if bool(margin.any()) else torch.full_like(margin, 0.5)
    return torch.stack([right, log_loss(margin, test.share)], 1)


def run(bench: Bench, split: str, seed: int) -> tuple[dict[str, Tensor], Judgements, int]:
    """Values of every method for every judgement of one seed, (M, 2), and the number of workers."""
    data = bench.arguments(seed, split)  # type: ignore[arg-type]
    models: dict[str, RewardModule] = {f"K={k}": bench.fit(data, k, 15, seed) for k in PROTOTYPES}
    models[SCALAR] = scalar(bench, data, seed)
    data.setup("fit")
    data.setup("test")
    train, test = (judgements(data, part) for part in ("train", "test"))
    votes = torch.where(train.longer > 0, train.share, 1 - train.share)[train.longer != 0]
    found = {CONSTANT: torch.zeros_like(test.longer), LONGER: test.longer.sign() * votes.mean().logit()}
    found |= {title: margins(model, data, "test") for title, model in models.items()}
    shared = margins(models["K=1"], data, "train"), found["K=1"]
    found[BIAS] = own_bias(train, test, shared, data.num_training_users)
    return {title: measured(margin, test) for title, margin in found.items()}, test, data.num_training_users


def macro_weights(user: Tensor) -> Tensor:
    """Weights that sum to 1 and are equal in sum for each user."""
    _, member, number = user.unique(return_inverse=True, return_counts=True)
    return 1 / (number[member].double() * len(number))


def compare(bench: Bench, split: str, seeds: int) -> dict[str, object]:
    """Every method on every seed of a split; prints the table."""
    runs = [run(bench, split, seed) for seed in range(seeds)]
    weights = [macro_weights(test.user) for _, test, _ in runs]
    names = [name for _, test, _ in runs for name in test.prompts]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    units = torch.tensor([numbers[name] for name in names])
    seed_of = torch.cat([torch.full((len(weight),), i) for i, weight in enumerate(weights)])

    def over_seeds(values: list[Tensor]) -> list[Estimate]:
        means = [(one * weight.unsqueeze(1)).sum(0) for one, weight in zip(values, weights, strict=True)]
        return [run_estimate(column) for column in torch.stack(means).T.tolist()]

    methods: dict[str, dict[str, object]] = {}
    for title in runs[0][0]:
        values = [found[title] for found, _, _ in runs]
        row: dict[str, object] = {
            name: one._asdict() for name, one in zip(MEASURES, over_seeds(values), strict=True)
        }
        for other in (LONGER, "K=1"):
            if title == other:
                continue
            gaps = [own - found[other] for own, (found, _, _) in zip(values, runs, strict=True)]
            crossed = crossed_estimates(torch.cat(gaps), seed_of, units, weight=torch.cat(weights))
            row[f"minus {other}"] = {
                name: {"over_prompts_and_seeds": both._asdict(), "over_seeds": alone._asdict()}
                for name, both, alone in zip(MEASURES, crossed, over_seeds(gaps), strict=True)
            }
        methods[title] = row
    summary = {
        "methods": methods,
        "prompts": len(numbers),
        "workers": sorted({number for *_, number in runs}),
        "judgements": [len(test.prompts) for _, test, _ in runs],
    }
    show(summary, split, bench, seeds)
    return summary


def show(summary: dict, split: str, bench: Bench, seeds: int) -> None:
    """Print means, and differences from longer wins and from K = 1."""
    data = (
        "a synthetic crowd in place of UKPConvArg1"
        if bench.is_synthetic
        else f"UKPConvArg1, held-out {split}"
    )
    table = Table("method", *MEASURES, "accuracy minus longer wins", "accuracy minus K=1",
                  title=f"{data}: macro over workers, {summary['prompts']} sides of debates, {seeds} seeds")  # fmt: skip
    for title, row in summary["methods"].items():
        cells = [
            f"{row[name]['value']:.3f} ± {row[name]['high'] - row[name]['value']:.3f}" for name in MEASURES
        ]
        for other in (LONGER, "K=1"):
            gap = row.get(f"minus {other}", {}).get("accuracy", {}).get("over_prompts_and_seeds")
            cells.append("" if gap is None else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gap))
        table.add_row(title, *cells)
    console = Console(width=150)
    console.print(table)
    console.print("± over seeds; differences: paired, over sides of debates and seeds\n")


def main() -> int:
    """Print the tables and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder that holds ukpconvarg1")
    parser.add_argument("--seeds", type=int, default=10, help="how many, each with its own split")
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    quiet()
    results: dict[str, object] = {
        "seeds": options.seeds,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data_dir, folder)
        results["synthetic"] = bench.is_synthetic
        sources = [bench.arguments(seed) for seed in range(options.seeds if bench.is_synthetic else 1)]
        results["embedding_seconds"] = bench.embed("ukpconvarg1", sources)
        for split in SPLITS[: 1 if bench.is_synthetic else None]:
            start = time.perf_counter()
            summary = results[split] = compare(bench, split, options.seeds)
            results[f"{split}_seconds"] = time.perf_counter() - start
            if split == "pairs":
                best = max(summary["methods"][f"K={k}"]["accuracy"]["value"] for k in PROTOTYPES)  # type: ignore[index]
                failed = best <= 0.5 or math.isnan(best)
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
