"""RecoveryReport: how much of a known truth a reward model has recovered, as a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.metrics import log_loss, outcomes, within_prompts

from .base import Finding, Report
from .pictures import PictureFormat, draw_recovery

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RecoveryReport"]


class Recovered(NamedTuple):
    """Learned and true values of responses (R,), less their prompts' means, and of comparisons (P,); float32."""

    reward: Tensor
    score: Tensor
    margin: Tensor
    true_margin: Tensor
    share: Tensor


class RecoveryReport(Report[Recovered]):
    r"""Compare learned rewards with the true ones that the data carries as ``score``.

    After every validation it notes the accuracy on the annotators' majority and the correlation of learned
    with true rewards *within prompts* (a reward means nothing across prompts: a constant per prompt cancels
    in every comparison). At the end of ``fit`` it prints both beside the truth's own values, the best that
    any model can reach with such annotators, and draws them. With ``num_sanity_val_steps: -1`` the first
    entry is the untrained model; a sanity check of a part of the data makes no entry.
    """

    stages = ("val",)
    verbs = ("fit",)
    written_at_once = False
    whole_sanity_check = True

    def __init__(self, filename: str = "recovery", *, formats: Sequence[PictureFormat] = ("png",)) -> None:
        """Name the picture.

        Args:
            filename: Name in the trainer's log folder, or an absolute path, without an ending.
            formats: Endings, hence formats, of the picture: ``png``, ``pdf``, ``svg``, one or several.

        Raises:
            ValueError: If a format is not known, named twice, or there is none; or ``filename`` has an ending.
        """
        if filename.endswith((".png", ".pdf", ".svg")):
            raise ValueError(
                f"filename must have no ending, which formats=[{filename[-3:]}] gives; got {filename!r}"
            )
        super().__init__(filename, formats=formats)

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Rewards, truth and shares of one batch.

        Responses without a known score are left out, and comparisons of them.

        Raises:
            ValueError: If the data has no ``score``, or the module no reward that holds for everyone.
        """
        if "score" not in batch or "comparisons" not in batch:
            raise ValueError(
                "RecoveryReport needs comparisons and true rewards as `score`, as SyntheticDataModule gives them"
            )
        if "reward" not in output:
            raise ValueError(
                f"RecoveryReport needs one `reward` per response, but {type(module).__name__} gives {sorted(output)}"
            )
        truth = batch["score"]
        chosen, rejected = truth[batch["comparisons"]].unbind(dim=1)
        known, judged = ~truth.isnan(), ~(chosen - rejected).isnan()
        prompt = batch["response_prompt"][known]
        num_prompts = len(batch["id"])
        columns = Recovered(
            reward=within_prompts(output["reward"][known], prompt, num_prompts),
            score=within_prompts(truth[known], prompt, num_prompts),
            margin=(output["chosen"] - output["rejected"])[judged],
            true_margin=(chosen - rejected)[judged],
            share=batch["preference"][judged],
        )
        return tuple(column.detach().float() for column in columns)

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No responses, no comparisons."""
        return (torch.zeros(0, device=module.device),) * len(Recovered._fields)

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> Recovered:
        """What was collected."""
        return Recovered(*columns)

    def entry(self, whole: Recovered, values: dict[str, float]) -> dict[str, float]:
        """Accuracy and correlation of model and truth, and the model's log loss."""
        entry = {}
        for title, margin, reward in (
            ("model", whole.margin, whole.reward),
            ("truth", whole.true_margin, whole.score),
        ):
            right = outcomes(margin, whole.share)[whole.share != 0.5] == 1
            entry[f"{title} accuracy"] = float(right.float().mean())
            entry[f"{title} correlation"] = float(torch.corrcoef(torch.stack([reward, whole.score]))[0, 1])
        # None for the truth: utilities are no logits, so their scale says nothing about shares.
        entry["model log loss"] = float(log_loss(whole.margin, whole.share).mean())
        return entry

    def path(self, trainer: L.Trainer, stage: str) -> Path:
        """Of the picture, without its ending."""
        return Path(trainer.log_dir or trainer.default_root_dir) / self.folder

    def draw(self, finding: Finding[Recovered]) -> "Figure":
        """Responses, and the way there."""
        return draw_recovery(finding.whole.score, finding.whole.reward, self.history)

    def show(self, finding: Finding[Recovered], first: dict[str, float] | None, console: Console) -> None:
        """Print the model's values beside the truth's own."""
        start, last = self.history[0], finding.entry
        table = Table(
            title=f"Recovered truth on {len(finding.whole.reward):,} validation responses",
            caption="* within prompts: a constant per prompt cancels in every comparison",
        )
        for title in (
            "",
            f"step {start['step']:.0f}",
            f"step {last['step']:.0f}",
            "true rewards (best possible)",
        ):
            table.add_column(title, justify="right")
        rows = {
            "agrees with the crowd's majority": "accuracy",
            "log loss of the crowd's shares (nats)": "log loss",
            "correlation with the true reward*": "correlation",
        }
        for title, name in rows.items():
            values = (start[f"model {name}"], last[f"model {name}"], last.get(f"truth {name}"))
            table.add_row(title, *("-" if value is None else f"{value:.3f}" for value in values))
        console.print(table)
        for ending in finding.drawn:
            console.print(f"picture: {finding.path}.{ending}", soft_wrap=True, highlight=False, markup=False)
