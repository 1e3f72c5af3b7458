"""CrowdCalibration: how far predicted label distributions are from people's votes, as a table and a picture."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from pluralign.datamodules.batch import Labels, PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.columns import provided_by
from pluralign.metrics import SMALLEST_PROBABILITY, CrowdTable, crowd_table

from .base import STAGES, Finding, Report, value_table
from .pictures import PictureFormat, draw_crowd_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CrowdCalibration"]

VOTES: dict[str, Literal["votes", "comparison_votes"]] = {
    "responses": "votes",
    "comparisons": "comparison_votes",
}
"""The votes that judge predictions, by what those are of."""

JUDGED = {"responses": "label_probs", "comparisons": "comparison_label_probs"}
"""What the file calls predictions, likewise."""

ERROR, ABOVE_BEST = "label_calibration_error", "label_calibration_error_above_best"
WORTH_SAYING = 0.1
"""Share of the calibration error by which it is above the best before the report says so."""

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


class LabelModule(Protocol):
    """What is needed of a module of label distributions."""

    labels: Sequence[str]
    label_rewards: Sequence[float]


class CrowdCalibration(Report[CrowdTable]):
    r"""Judge a module that predicts label distributions by the votes of the crowd.

    An item is a response (``labels`` on responses against ``votes``) or, for modules that compare, a comparison
    (``labels`` on comparisons against ``comparison_votes``). With predicted distribution :math:`p`, observed shares
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
    ``<stage>_step<step>.json`` with everything and a picture beside it, which the loggers of TensorBoard and of
    Weights & Biases get, too. A panel that would mirror another one is not drawn, and says which it stands for. At the
    end of ``fit``, ``validate`` or ``test`` it prints a table. Sanity checks are ignored. It reports on one loader, and refuses several.

    Calibration may get worse while distances still fall. In a fit the log therefore has ``label_calibration_error_above_best``, the mean calibration
    error less the smallest so far (0 at the best validation), and where that is more than a tenth of the error the report says since when it got worse.

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
        formats: Sequence[PictureFormat] = ("png",),
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Name the folder.

        Args:
            folder: Folder in the trainer's log folder, or an absolute path.
            figure_every_n_validations: Draw the first validation of a fit, every n-th after it, and the last; tests
                and validations outside a fit always. 0 draws nothing at all.
            formats: Formats of the picture: ``png``, ``pdf``, ``svg``, one or several.
            num_resamples: Resamples of the bootstrap, >= 100.
            seed: Seed of the bootstrap, >= 0.

        Raises:
            ValueError: If a number is below what is allowed, or a format is not known.
        """
        super().__init__(folder, formats=formats)
        check_range("figure_every_n_validations", figure_every_n_validations, at_least=0)
        check_range("num_resamples", num_resamples, at_least=100)
        check_range("seed", seed, at_least=0)
        self.figure_every_n_validations = figure_every_n_validations
        self.num_resamples, self.seed = num_resamples, seed
        self._judged = ""
        self._during_fit = False

    # Collecting ----------------------------------------------------------------------------------------

    def collect(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch, loader: str
    ) -> tuple[Tensor, ...]:
        """Predictions, votes and prompts, by number.

        Raises:
            ValueError: If module or data lack what is needed, or it does not fit together.
        """
        labels, votes = self._pair(module, output, batch)
        needed = {"id", "response_prompt"} | ({"comparisons"} if labels.on == "comparisons" else set())
        if missing := sorted(needed - set(batch)):
            raise ValueError(
                f"CrowdCalibration counts by prompt and needs {', '.join(missing)} in the batch, as every data module "
                f"of this package gives; it has {sorted(batch)}"
            )
        prompt = batch["response_prompt"]
        if labels.on == "comparisons":
            prompt = prompt[batch["comparisons"][:, 0]]
        numbers = torch.tensor([_number(name) for name in batch["id"]], dtype=torch.int64)
        self._judged = labels.on
        return labels.probs.detach().float(), votes.float(), numbers.to(prompt.device)[prompt]

    def _pair(
        self, module: L.LightningModule, output: RewardOutput, batch: PreferenceBatch
    ) -> tuple[Labels, Tensor]:
        """Predictions and their votes; checked."""
        kind, wanted = type(module).__name__, _label_module(module)
        width = len(wanted.labels)
        if len(wanted.label_rewards) != width:
            raise ValueError(
                f"{kind} must have one of label_rewards for each of its {width} labels, got {wanted.label_rewards}"
            )
        labels = output.get("labels")
        if labels is None:
            raise ValueError(
                "CrowdCalibration needs labels, predicted distributions, from the module's validation_step and "
                f"test_step, but {kind} gives {sorted(output)}"
            )
        key = VOTES[labels.on]
        votes = batch.get(key)
        if votes is None:
            raise ValueError(
                f"CrowdCalibration misses the votes in this data: {kind} predicts labels of {labels.on} and needs "
                f"{key!r} (provided by {provided_by(key)}); it has {sorted(batch)}"
            )
        if labels.probs.ndim != 2 or labels.probs.shape != votes.shape or votes.shape[1] != width:
            raise ValueError(
                f"labels of {kind} and {key} of the batch must both be ({labels.on}, {width}), for the labels "
                f"{wanted.labels}; got {tuple(labels.probs.shape)} and {tuple(votes.shape)}"
            )
        return labels, votes

    def empty(self, module: L.LightningModule) -> tuple[Tensor, ...]:
        """No items."""
        rows = torch.zeros(0, len(_label_module(module).labels), device=module.device)
        return rows, rows, torch.zeros(0, dtype=torch.int64, device=module.device)

    # The whole -----------------------------------------------------------------------------------------

    def judge(
        self, trainer: L.Trainer, module: L.LightningModule, stage: str, columns: list[Tensor]
    ) -> CrowdTable | None:
        """Compare predictions with votes."""
        self._during_fit = stage == "val" and trainer.state.fn == TrainerFn.FITTING
        probs, votes, prompts = columns
        wanted = _label_module(module)
        table = crowd_table(
            probs,
            votes,
            prompts,
            labels=wanted.labels,
            label_rewards=wanted.label_rewards,
            both_orders=self._judged == "comparisons",
            num_resamples=self.num_resamples,
            seed=self.seed,
        )
        if table is None:
            rank_zero_warn(f"CrowdCalibration: none of {len(probs)} items of this {STAGES[stage]} has votes")
        return table

    def values(self, module: L.LightningModule, whole: CrowdTable) -> dict[str, float]:
        """Distances, the mean calibration error, and how far above the least of the fit so far it is."""
        error = whole.mean_calibration_error
        values = {name: value.value for name, value in whole.values.items()} | {ERROR: error}
        if self._during_fit:
            values[ABOVE_BEST] = error - min([error, *(entry[ERROR] for entry in self.history)])
        return values

    def entry(self, whole: CrowdTable, values: dict[str, float]) -> dict[str, float]:
        """The same, and the calibration error of every label."""
        errors = zip(whole.labels, whole.calibration_error, strict=True)
        return values | {f"calibration_error/{label}": error for label, error in errors}

    # Reporting -----------------------------------------------------------------------------------------

    def content(self, finding: Finding[CrowdTable]) -> dict[str, object]:
        """Settings, and everything of the table."""
        head = {"stage": finding.stage, "step": finding.step, "judged": JUDGED[self._judged]}
        settings = {
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "kl_probability_floor": SMALLEST_PROBABILITY,
        }
        return head | settings | finding.whole.as_json()

    def draws_now(self, trainer: L.Trainer, stage: str) -> bool:
        """Whether the picture is due."""
        every = self.figure_every_n_validations
        always = stage == "test" or trainer.state.fn == TrainerFn.VALIDATING
        return every > 0 and (always or len(self.history) % every == 0)

    def draw(self, finding: Finding[CrowdTable]) -> "Figure | None":
        """Reliability, mean distributions and rewards; nothing if no picture is wanted."""
        if self.figure_every_n_validations == 0:
            return None
        return draw_crowd_table(finding.whole, f"{finding.title}: {self._size(finding.whole)}")

    @staticmethod
    def _size(table: CrowdTable) -> str:
        items = "comparisons, in both orders," if table.both_orders else "responses"
        return f"{table.num_items:,} {items} of {table.num_prompts:,} prompts, {table.num_votes:,.0f} votes"

    def show(self, finding: Finding[CrowdTable], first: dict[str, float] | None, console: Console) -> None:
        """Print distances and calibration errors."""
        table = finding.whole
        left_out = f"; {table.num_without_votes:,} items without votes left out"
        rows = [
            (TITLES[name], name, value.value, f"{value.low:.3f} to {value.high:.3f}")
            for name, value in table.values.items()
        ]
        errors = zip(table.labels, table.calibration_error, table.calibration_error_floor, strict=True)
        rows += [
            (
                f"calibration error of {escape(label)}",
                f"calibration_error/{label}",
                error,
                f"sampling noise alone: {chance:.3f}",
            )
            for label, error, chance in errors
        ]
        console.print(
            value_table(
                f"{finding.title}: {self._size(table)}",
                f"95 % intervals: bootstrap over prompts{left_out if table.num_without_votes else ''}",
                rows,
                first=first,
                last=finding.entry,
            )
        )
        if worse := self._got_worse(finding):
            console.print(worse, soft_wrap=True, highlight=False, markup=False)
        finding.print_files(console, "crowd calibration")

    def _got_worse(self, finding: Finding[CrowdTable]) -> str:
        """What there is to say if calibration was clearly better before in this fit; empty if it was not."""
        table, error = finding.whole, finding.entry[ERROR]
        if finding.entry.get(ABOVE_BEST, 0.0) <= WORTH_SAYING * error:
            return ""
        best = min(self.history, key=lambda entry: entry[ERROR])
        chance = sum(table.calibration_error_floor) / len(table.labels)
        others = f"step {best['step']:,.0f}, the best of {len(self.history)} validations"
        if (first := self.history[0]) is not best and error > first[ERROR]:
            others += f", and from {first[ERROR]:.3f} at step {first['step']:,.0f}, the first"
        little = "; less than sampling noise alone gives" if error - best[ERROR] < chance else ""
        return (
            f"calibration got worse: mean error of the labels {error:.3f}, up from {best[ERROR]:.3f} at {others} "
            f"(sampling noise alone: {chance:.3f}{little})"
        )


def _label_module(module: L.LightningModule) -> LabelModule:
    """The module, known to have labels.

    Raises:
        ValueError: If it has none.
    """
    if missing := [name for name in ("labels", "label_rewards") if not hasattr(module, name)]:
        raise ValueError(
            "CrowdCalibration needs a module of label distributions with labels and label_rewards; "
            f"{type(module).__name__} has no {' and no '.join(missing)}"
        )
    return cast(LabelModule, module)


def _number(name: str) -> int:
    """A record id as 64 bits: equal on every rank, and short enough to be gathered."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
