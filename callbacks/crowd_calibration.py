"""CrowdCalibration: how far predicted label distributions are from people's votes, as a table and a picture."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.columns import provided_by

from ._crowd_picture import draw_crowd_table
from ._gather import gather_rows
from ._label_metrics import SMALLEST_PROBABILITY, CrowdTable, crowd_table

__all__ = ["CrowdCalibration"]

JUDGED_BY = {"label_probs": "votes", "comparison_label_probs": "comparison_votes"}
"""A module's predictions, and the votes that judge them."""

STAGES = {"val": "validation", "test": "test"}

TITLES = {
    "wasserstein_index": "Wasserstein distance (labels)",
    "wasserstein_reward": "Wasserstein distance (reward)",
    "kl": "KL(votes || predicted) (nats)",
    "total_variation": "total variation",
    "total_variation_expected": "  were predictions true",
    "total_variation_floor": "  of votes drawn again",
    "top1_agreement": "agrees on the top label",
    "expected_reward_error": "error of the expected reward",
}


class CrowdCalibration(L.Callback):
    r"""Judge a module that predicts label distributions by the votes of the crowd.

    An item is a response (``label_probs`` against ``votes``) or, for modules that compare, a comparison
    (``comparison_label_probs`` against ``comparison_votes``). With predicted distribution :math:`p`, observed shares
    :math:`q` of :math:`n` votes and label rewards :math:`r`, means over items, each counting equally:

    * ``wasserstein_index``, ``wasserstein_reward``: transport cost with labels one step apart, or at their rewards.
    * ``kl``: :math:`\sum_k q_k \log(q_k / p_k)` in nats, with :math:`p_k` at least 1e-6, so that it stays finite.
    * ``total_variation``: :math:`\frac12 \sum_k |p_k - q_k|`, in [0, 1].
    * ``total_variation_expected``: what it would be on average were :math:`p` the truth, with the votes drawn from it:
      few votes scatter, so that even a perfect model does not reach 0. A model whose total variation lies
      well above it is wrong about people, not unlucky.
    * ``total_variation_floor``: the same for :math:`n` votes drawn from :math:`q`, as a second crowd would cast them;
      it needs no model, but shares are more extreme than the crowd behind them, so that it is too low where
      votes are few (0 for single ones). Both are exact sums over labels of De Moivre's mean deviation.
    * ``top1_agreement``: how often the likeliest label is one with the most votes.
    * ``expected_reward_error``: :math:`|E_p r - E_q r|`.
    * ``calibration_error``: per label, mean distance of predicted probability and observed share over ten equal bins
      of the probability, weighted by items; beside it what chance alone would give, from the scatter between
      prompts. The log has the mean over labels.

    Intervals are 95 % percentile bootstrap intervals over *prompts*: responses to one prompt are not independent.

    The order of a comparison often follows from its outcome: many data sets name the majority's side first. Then the
    label *first* has more votes than any model can foresee, and a calibrated one would look overcautious about
    it. So every comparison counts twice, as it is and flipped: sides swapped, hence labels reversed. Distances do
    not change under a common flip (nor those of rewards, where the second side's mirror the first's); calibration
    and mean distributions become symmetric, as the question is. It does not catch a module that uses the order: its
    distribution must reverse when the sides are swapped, or every value here is too good.

    Items without votes are left out and counted. After every validation and test it logs the values, and writes
    ``<stage>_step<step>.json`` with everything and a picture beside it. At the end of ``fit``, ``validate`` or
    ``test`` it prints a table. Sanity checks are ignored. Several loaders count as one.

    The module needs ``labels``, their names, and ``label_rewards``; for comparisons from first to second.

    Source:
        Measures: the losses of Li et al., *Aligning Crowd Feedback via Distributional Preference Reward Modeling*,
        2024, https://arxiv.org/abs/2402.09764, and what is common for distributions; the selection is ours.
        Bins: C. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, equation 3; departures: one
        label at a time, shares of votes in place of single labels.
    """

    def __init__(
        self,
        folder: str = "crowd_calibration",
        *,
        figure_every_n_validations: int = 1,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Name the folder.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            figure_every_n_validations: Draw the first validation of a fit, every n-th after it, and the last; tests
                and validations outside a fit always. 0 draws nothing at all.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap, >= 0.

        Raises:
            ValueError: If a number is below what is allowed.
        """
        for name, value, least in (
            ("figure_every_n_validations", figure_every_n_validations, 0),
            ("num_resamples", num_resamples, 100),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.folder = folder
        self.figure_every_n_validations = figure_every_n_validations
        self.num_resamples, self.seed = num_resamples, seed
        self.history: list[dict[str, float]] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._judged = ""
        self._last: tuple[CrowdTable, Path, str] | None = None
        self._drawn = True

    # Hooks ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget another run."""
        self._last = None
        if stage == "fit":
            self.history = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection."""
        self._parts = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new collection."""
        self._parts = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep predictions and votes of one batch.

        Raises:
            ValueError: If module or data lack what is needed, or it does not fit together.
        """
        self._collect(pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's type; a RewardOutput
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep predictions and votes of one batch.

        Raises:
            ValueError: If module or data lack what is needed, or it does not fit together.
        """
        self._collect(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and write the values, unless it was a sanity check."""
        if trainer.sanity_checking:
            return
        every, alone = self.figure_every_n_validations, trainer.state.fn == TrainerFn.VALIDATING
        draw = every > 0 and (alone or len(self.history) % every == 0)
        if entry := self._finish(trainer, pl_module, "val", draw=draw):
            self.history.append(entry)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and write the values."""
        self._finish(trainer, pl_module, "test", draw=self.figure_every_n_validations > 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table, unless a fit goes on."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._print(trainer, self.history[-1:])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table."""
        self._print(trainer, [])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last validation if that was not done, and print the table."""
        if trainer.is_global_zero and self._last and not self._drawn and self.figure_every_n_validations:
            self._draw()
        self._print(trainer, self.history)

    # Collecting ----------------------------------------------------------------------------------------

    def _collect(self, module: L.LightningModule, outputs: RewardOutput, batch: PreferenceBatch) -> None:
        judged, probs, votes = self._pair(module, outputs, batch)
        missing = sorted({"id", "response_prompt"} - set(batch))
        if judged == "comparison_label_probs" and "comparisons" not in batch:
            missing = ["comparisons", *missing]
        if missing:
            raise ValueError(
                f"CrowdCalibration counts by prompt and needs {', '.join(missing)} in the batch, as every data module "
                f"of this package gives; it has {sorted(batch)}"
            )
        prompt = batch["response_prompt"]
        if judged == "comparison_label_probs":
            prompt = prompt[batch["comparisons"][:, 0]]
        names = torch.tensor([_number(name) for name in batch["id"]], dtype=torch.int64)
        self._judged = judged
        kept = (probs.detach().float(), votes.float(), names.to(prompt.device)[prompt])
        self._parts.append(kept)

    @staticmethod
    def _pair(
        module: L.LightningModule, outputs: RewardOutput, batch: PreferenceBatch
    ) -> tuple[str, Tensor, Tensor]:
        """Name of the predictions, they themselves and their votes; checked."""
        kind = type(module).__name__
        if missing := [name for name in ("labels", "label_rewards") if not hasattr(module, name)]:
            raise ValueError(
                f"CrowdCalibration needs a module of label distributions with labels and label_rewards; {kind} has no "
                f"{' and no '.join(missing)}"
            )
        width = len(module.labels)  # type: ignore[arg-type]
        if len(module.label_rewards) != width:  # type: ignore[arg-type]
            raise ValueError(
                f"{kind} must have one of label_rewards for each of its {width} labels, got {module.label_rewards}"
            )
        given = {
            name: value
            for name in JUDGED_BY
            if isinstance(value := (outputs or {}).get(name), Tensor)  # a step may return nothing
        }
        if not given:
            raise ValueError(
                f"CrowdCalibration needs {' or '.join(JUDGED_BY)} from the module's validation_step and test_step, but "
                f"{kind} gives {sorted(outputs or {})}"
            )
        for judged, probs in given.items():
            votes = batch.get(JUDGED_BY[judged])
            if not isinstance(votes, Tensor):
                continue
            if probs.ndim != 2 or probs.shape != votes.shape or probs.shape[1] != width:
                raise ValueError(
                    f"{judged} of {kind} and {JUDGED_BY[judged]} of the batch must both be (items, {width}), "
                    f"for the labels {module.labels}; got {tuple(probs.shape)} and {tuple(votes.shape)}"
                )
            return judged, probs, votes
        wanted = "; ".join(
            f"{name} of {kind} needs {JUDGED_BY[name]!r} (provided by {provided_by(JUDGED_BY[name])})"
            for name in given
        )
        raise ValueError(f"CrowdCalibration misses the votes in this data: {wanted}; it has {sorted(batch)}")

    def _gathered(self, trainer: L.Trainer, module: L.LightningModule) -> list[Tensor]:
        """Predictions, votes and prompts of all ranks, on the host."""
        width = len(module.labels)  # type: ignore[arg-type]
        empty = (torch.zeros(0, width), torch.zeros(0, width), torch.zeros(0, dtype=torch.int64))
        start = tuple(part.to(module.device) for part in empty)
        columns = [torch.cat(parts) for parts in zip(start, *self._parts, strict=True)]
        self._parts = []
        return [gather_rows(trainer, column) for column in columns]

    # Reporting -----------------------------------------------------------------------------------------

    def _finish(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, *, draw: bool
    ) -> dict[str, float] | None:
        """Judge what was collected; log, write and draw. None if there was nothing to judge."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder  # asks every rank
        probs, votes, prompts = self._gathered(trainer, module)
        table = crowd_table(
            probs,
            votes,
            prompts,
            labels=module.labels,  # type: ignore[arg-type]
            label_rewards=module.label_rewards,  # type: ignore[arg-type]
            both_orders=self._judged == "comparison_label_probs",
            num_resamples=self.num_resamples,
            seed=self.seed,
        )
        if table is None:
            rank_zero_warn(f"CrowdCalibration: none of {len(probs)} items of this {STAGES[stage]} has votes")
            return None
        values = {name: value.value for name, value in table.values.items()}
        logged = values | {"label_calibration_error": table.mean_calibration_error}
        module.log_dict({f"{stage}/{name}": value for name, value in logged.items()}, sync_dist=True)
        step = trainer.global_step
        self._last = (table, folder / f"{stage}_step{step:06d}", f"{STAGES[stage]} at step {step:,}")
        if trainer.is_global_zero:
            self._write({"stage": stage, "step": step, "judged": self._judged})
            if draw:
                self._draw()
        self._drawn = draw
        errors = zip(table.labels, table.calibration_error, strict=True)
        return {
            "step": float(step),
            **logged,
            **{f"calibration_error/{label}": error for label, error in errors},
        }

    def _write(self, head: dict[str, object]) -> None:
        assert self._last is not None
        table, path, _ = self._last
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "kl_probability_floor": SMALLEST_PROBABILITY,
        }
        text = json.dumps(head | settings | table.as_json(), ensure_ascii=False, indent=1, allow_nan=False)
        path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")

    def _draw(self) -> None:
        assert self._last is not None
        table, path, title = self._last
        draw_crowd_table(table, path.with_suffix(".png"), f"{title}: {self._size(table)}")
        self._drawn = True

    @staticmethod
    def _size(table: CrowdTable) -> str:
        items = "comparisons, in both orders," if table.both_orders else "responses"
        return f"{table.num_items:,} {items} of {table.num_prompts:,} prompts, {table.num_votes:,.0f} votes"

    def _print(self, trainer: L.Trainer, history: list[dict[str, float]]) -> None:
        if self._last is None or not trainer.is_global_zero:
            return
        table, path, title = self._last
        first = history[0] if len(history) > 1 else None
        shown = Table(
            title=f"{title[0].upper()}{title[1:]}: {self._size(table)}",
            caption="95 % intervals: bootstrap over prompts"
            + (
                f"; {table.num_without_votes:,} items without votes left out"
                if table.num_without_votes
                else ""
            ),
        )
        shown.add_column("")
        if first:
            shown.add_column(f"step {first['step']:,.0f}", justify="right")
        shown.add_column(f"step {history[-1]['step']:,.0f}" if first else "value", justify="right")
        shown.add_column("95 % interval", justify="right")
        rows = [
            (TITLES[name], name, value.value, f"{value.low:.3f} to {value.high:.3f}")
            for name, value in table.values.items()
        ]
        rows += [
            (
                f"calibration error of {escape(label)}",
                f"calibration_error/{label}",
                error,
                f"by chance {chance:.3f}",
            )
            for label, error, chance in zip(
                table.labels, table.calibration_error, table.calibration_error_floor, strict=True
            )
        ]
        for name, key, value, interval in rows:
            before = [f"{first[key]:.3f}"] if first else []
            shown.add_row(name, *before, f"{value:.3f}", interval)
        console = Console()
        console.print(shown)
        kinds = "json" if not self._drawn else "json and .png"
        console.print(f"crowd calibration: {path}.{kinds}", soft_wrap=True, highlight=False, markup=False)


def _number(name: str) -> int:
    """A record id as 64 bits: equal on every rank, and short enough to be gathered."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
