"""How many votes an item of DICES needs: what n votes, a prior and a prediction tell of the full crowd of seventy.

    python benchmarks/dprm_votes.py [--data_dir FOLDER] [--seeds N] [--figure FILE] [--output FILE]

Total variation between an estimate from n votes and the full crowd on held-out items; model, features and training are
those of `dprm.py`. Three seeds with a split each, intervals are Student's over them. It needs DICES: no synthetic crowd
has seventy raters.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from dprm import DEFAULT, LABELS, METHODS, METRICS, Bench, judged, quiet
from intervals import run_estimate
from rich.console import Console
from rich.table import Table

from pluralign.datamodules import CrowdConfig, PreferenceDataModule
from pluralign.datamodules.crowd import dirichlet_update
from pluralign.models import DPRM

VOTES = (1, 2, 3, 5, 10, 30)
STRENGTH = 10.0
CURVES = {
    "votes": ("#0072B2", "--", "votes alone"),
    "votes_mean": ("#0072B2", "-", "votes and the mean crowd as prior"),
    "prediction": ("#D55E00", "--", "prediction, without votes on the item"),
    "votes_prediction": ("#D55E00", "-", "votes and the prediction as prior"),
}


def subsample(bench: Bench, seeds: int) -> list[dict[str, float]]:
    """What n votes per item tell of the full crowd: total variation on held-out items, four estimates and a fifth.

    Training and test items both have n votes. The fifth is a prediction trained on posteriors with the mean prior.
    """
    found: dict[tuple[int, str], list[float]] = {}
    method, place = METHODS["cross-entropy"], METRICS.index("total_variation")
    for votes in VOTES:
        for seed in range(seeds):
            data = bench.data("dices", seed, votes=votes)
            model = bench.run(data, "dices", method, seed)
            for name, value in estimates(model, data, votes, seed).items():
                found.setdefault((votes, name), []).append(value)
            crowd = CrowdConfig(prior="mean", prior_strength=STRENGTH)
            data = bench.data("dices", seed, votes=votes, crowd=crowd)
            model = bench.run(data, "dices", method, seed)
            shrunk = judged(lambda batch, model=model: model(batch)["labels"].probs, data, "test", "dices")
            reached = float(shrunk.values(LABELS["dices"]["rewards"])[:, place].mean())
            found.setdefault((votes, "prediction_shrunk"), []).append(reached)
    names = (*CURVES, "prediction_shrunk")
    table = Table(
        "votes", "votes alone", "+ mean prior", "prediction", "+ prediction as prior", "trained with prior",
        title="dices: total variation between an estimate from n votes and the full crowd, held-out items",
    )  # fmt: skip
    rows = []
    for votes in VOTES:
        row: dict[str, float] = {"num_votes": votes}
        for name in names:
            estimate = run_estimate(found[votes, name])
            row[name], row[f"{name}_half_width"] = estimate.value, estimate.high - estimate.value
        rows.append(row)
        table.add_row(str(votes), *(f"{row[name]:.3f} ± {row[f'{name}_half_width']:.3f}" for name in names))
    Console(width=120).print(table)
    return rows


@torch.no_grad()
def estimates(model: DPRM, data: PreferenceDataModule, votes: int, seed: int) -> dict[str, float]:
    """Mean distance of each estimate from the full crowd over the test items."""
    random = np.random.default_rng(seed)
    model.eval()
    gaps: dict[str, list[torch.Tensor]] = {name: [] for name in CURVES}
    mean = torch.tensor(data.mean_votes("votes"), dtype=torch.float64)
    for batch in data.test_dataloader():
        full = batch["votes"].double()
        crowd = full / full.sum(-1, keepdim=True)
        drawn = torch.stack(
            [
                torch.from_numpy(random.multivariate_hypergeometric(counts.long().numpy(), votes))
                for counts in full
            ]
        ).double()
        predicted = model(batch)["labels"].probs.double()
        predicted = predicted / predicted.sum(-1, keepdim=True)
        found = {
            "votes": drawn / votes,
            "votes_mean": dirichlet_update(mean.expand_as(drawn), STRENGTH, drawn)[0],
            "prediction": predicted,
            "votes_prediction": dirichlet_update(predicted, STRENGTH, drawn)[0],
        }
        for name, estimate in found.items():
            gaps[name].append((estimate - crowd).abs().sum(-1) / 2)
    return {name: float(torch.cat(parts).mean()) for name, parts in gaps.items()}


def draw(rows: list[dict[str, float]], path: str) -> None:
    """Picture of :func:`subsample`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    votes = [row["num_votes"] for row in rows]
    for name, (colour, line, label) in CURVES.items():
        values = [row[name] for row in rows]
        axes.plot(votes, values, line, marker="o", markersize=4, color=colour, label=label)
        low, high = ([row[name] + sign * row[f"{name}_half_width"] for row in rows] for sign in (-1, 1))
        axes.fill_between(votes, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xscale="log", xlabel="votes per item", ylabel="total variation to the full crowd", ylim=0)
    axes.set_xticks(votes, [str(int(n)) for n in votes])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("DICES: what a few raters tell of seventy")
    figure.savefig(path)


def main() -> int:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder that holds dices")
    parser.add_argument("--seeds", type=int, default=3, help="how many, each with its own split")
    parser.add_argument("--figure", help="where to draw the curve")
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data_dir, folder, fine_tune=False)
        if bench.is_synthetic("dices"):
            parser.error(
                f"{bench.data_dir} holds no folder dices; docs/data_sets/dices.md says where to get it"
            )
        bench.embed("dices", options.seeds)
        rows = subsample(bench, options.seeds)
    if options.figure:
        draw(rows, options.figure)
    results = {
        "seeds": options.seeds,
        "votes_per_item": rows,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
