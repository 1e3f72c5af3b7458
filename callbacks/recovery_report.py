"""RecoveryReport: how much of a known truth a reward model has recovered, as a table and a picture."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import CatMetric

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["RecoveryReport"]

NAMES = ("reward", "score", "margin", "true_margin", "share")


class RecoveryReport(L.Callback):
    r"""Compare learned rewards with the true ones that the data carries as ``score``.

    After every validation it notes the accuracy on the annotators' majority and the correlation of learned
    with true rewards *within prompts* (a reward means nothing across prompts: a constant per prompt cancels
    in every comparison). At the end of ``fit`` it prints both beside the truth's own values, the best that
    any model can reach with such annotators, and draws them. With ``num_sanity_val_steps: -1`` the first
    entry is the untrained model; a sanity check of a part of the data makes no entry.
    """

    def __init__(self, filename: str = "recovery.png") -> None:
        """Name the picture.

        Args:
            filename: Name in the trainer's log folder, or an absolute path.
        """
        self.filename = filename
        self.history: list[dict[str, float]] = []
        self._seen = {name: CatMetric() for name in NAMES}
        self._last: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection."""
        for metric in self._seen.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep rewards, truth and shares of one batch.

        Responses without a known score are left out, and comparisons of them.

        Raises:
            ValueError: If the data has no ``score``, or the module no reward that holds for everyone.
        """
        if "score" not in batch or "comparisons" not in batch:
            raise ValueError(
                "RecoveryReport needs comparisons and true rewards as `score`, as SyntheticDataModule gives them"
            )
        if "reward" not in outputs:
            raise ValueError(
                f"RecoveryReport needs one `reward` per response, but {type(pl_module).__name__} gives {sorted(outputs)}"
            )
        truth = batch["score"]
        chosen, rejected = truth[batch["comparisons"]].unbind(dim=1)
        known, judged = ~truth.isnan(), ~(chosen - rejected).isnan()
        prompt = batch["response_prompt"][known]
        values = {
            "reward": _within(outputs["reward"][known], prompt),
            "score": _within(truth[known], prompt),
            "margin": (outputs["chosen"] - outputs["rejected"])[judged],
            "true_margin": (chosen - rejected)[judged],
            "share": batch["preference"][judged],
        }
        for name, value in values.items():
            self._seen[name].update(value)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add an entry to the history, unless only a part was looked at."""
        if trainer.sanity_checking and trainer.num_sanity_val_batches != trainer.num_val_batches:
            return
        self._last = {
            name: torch.as_tensor(metric.compute()).float().cpu() for name, metric in self._seen.items()
        }
        seen = self._last
        entry = {"step": float(trainer.global_step)}
        for title, margin, reward in (("model", "margin", "reward"), ("truth", "true_margin", "score")):
            entry[f"{title} accuracy"] = _accuracy(seen[margin], seen["share"])
            entry[f"{title} correlation"] = float(
                torch.corrcoef(torch.stack([seen[reward], seen["score"]]))[0, 1]
            )
        # None for the truth: utilities are no logits, so their scale says nothing about shares.
        entry["model log loss"] = _log_loss(seen["margin"], seen["share"])
        self.history.append(entry)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table, draw the picture and say where it is."""
        folder = trainer.log_dir or trainer.default_root_dir  # asks every rank, so before all but one leave
        if not self.history or not trainer.is_global_zero:
            return
        first, last = self.history[0], self.history[-1]
        table = Table(
            title=f"Recovered truth on {len(self._last['reward']):,} validation responses",
            caption="* within prompts: a constant per prompt cancels in every comparison",
        )
        for title in ("", f"step {first['step']:.0f}", f"step {last['step']:.0f}", "the truth itself"):
            table.add_column(title, justify="right")
        rows = {
            "agrees with the crowd's majority": "accuracy",
            "log loss of the crowd's shares (nats)": "log loss",
            "correlation with the true reward*": "correlation",
        }
        for title, name in rows.items():
            values = (first[f"model {name}"], last[f"model {name}"], last.get(f"truth {name}"))
            table.add_row(title, *("-" if value is None else f"{value:.3f}" for value in values))
        path = Path(folder) / self.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draw(path)
        console = Console()
        console.print(table)
        console.print(f"picture: {path}", soft_wrap=True, highlight=False)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        points, curve = figure.subplots(1, 2)
        seen, last = self._last, self.history[-1]
        points.scatter(seen["score"], seen["reward"], s=6, alpha=0.4, linewidths=0)
        points.set_xlabel("true mean utility, minus its prompt's mean")
        points.set_ylabel("learned reward, minus its prompt's mean")
        points.set_title(f"responses (correlation {last['model correlation']:.2f})")
        steps = [entry["step"] for entry in self.history]
        for name, color in (("accuracy", "tab:blue"), ("correlation", "tab:orange")):
            curve.plot(
                steps,
                [entry[f"model {name}"] for entry in self.history],
                marker="o",
                ms=3,
                color=color,
                label=name,
            )
            curve.axhline(last[f"truth {name}"], color=color, ls=":", label=f"{name} of the truth")
        curve.set_xlabel("optimiser steps")
        curve.set_title("on the way")
        curve.legend(loc="lower right", fontsize="small")
        figure.savefig(path, dpi=120)


def _within(values: Tensor, prompt: Tensor) -> Tensor:
    """Deviation from the prompt's mean."""
    count = int(prompt[-1]) + 1 if len(prompt) else 0
    sums = values.new_zeros(count).index_add(0, prompt, values)
    sizes = values.new_zeros(count).index_add(0, prompt, torch.ones_like(values))
    return values - (sums / sizes)[prompt]


def _accuracy(margin: Tensor, share: Tensor) -> float:
    decided = share != 0.5
    right = ((margin > 0) == (share > 0.5)) & (margin != 0) & decided
    return float(right.sum() / decided.sum())


def _log_loss(margin: Tensor, share: Tensor) -> float:
    losses = torch.nn.functional.softplus(-margin) * share + torch.nn.functional.softplus(margin) * (
        1 - share
    )
    return float(losses.mean())
