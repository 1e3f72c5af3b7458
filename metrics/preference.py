"""PreferenceMetrics: what a reward module reports, summed exactly over ragged batches and ranks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torchmetrics import Metric

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput

__all__ = ["TIE", "PreferenceMetrics", "log_loss", "outcomes", "within_prompts"]

TIE = -1
"""In place of right or wrong where the annotators called it a tie."""
TOGETHER = 32
"""Batches that are counted at a time."""
WAITING = "waiting_"
"""Beginning of the names of what waits to be counted, among sums that are kept."""


def log_loss(odds: Tensor, share: Tensor) -> Tensor:
    r"""Log loss of predicted log-odds :math:`m` of winning, usually a reward gap, by the observed share :math:`s`.

    .. math:: -s \log \sigma(m) - (1 - s) \log \sigma(-m)

    The measure beside the loss :func:`pluralign.losses.bradley_terry_loss`: nothing is checked, smoothed or weighted.

    Args:
        odds: Log-odds that the first wins, (P,).
        share: Share of annotators preferring the first, (P,) in [0, 1].

    Returns:
        (P,) in nats, >= 0.
    """
    return softplus(-odds) * share + softplus(odds) * (1 - share)


def outcomes(side: Tensor, share: Tensor) -> Tensor:
    """Whether predictions are on the majority's side; an undecided prediction is not.

    Args:
        side: Above 0 where the first is predicted to win, below 0 where the second is, (P,).
        share: Share of annotators preferring the first, (P,) in [0, 1].

    Returns:
        1 where right, 0 where not, ``TIE`` where the share is a half, (P,) int64.
    """
    right = torch.where(share > 0.5, side > 0, side < 0)
    return torch.where(share == 0.5, TIE, right.long())


def within_prompts(values: Tensor, prompt: Tensor, num_prompts: int) -> Tensor:
    """Deviations from the mean of each prompt: a constant per prompt cancels in every comparison.

    Args:
        values: (R, ...) float.
        prompt: Prompt of each row, (R,) int64, below ``num_prompts``.
        num_prompts: Number of prompts.

    Returns:
        (R, ...).
    """
    sums = values.new_zeros(num_prompts, *values.shape[1:]).index_add(0, prompt, values)
    sizes = prompt.bincount(minlength=num_prompts).clamp_min(1).to(values.dtype)
    return values - (sums / sizes.view(-1, *[1] * (values.ndim - 1)))[prompt]


class PreferenceMetrics(Metric):
    r"""Agreement with people's comparisons, and how far the predicted shares can be trusted.

    With margin :math:`m = r_{chosen} - r_{rejected}`, predicted share :math:`p = \sigma(m)` (or the module's own
    ``preference``, whose side then also decides the accuracy) and observed share :math:`s` in [0, 1]:

    * ``accuracy``: share of decided comparisons (:math:`s \ne 1/2`) whose margin has the right sign. An equal
      score is not right; ``tied_scores`` says how often it happened and ``tied_labels`` how many comparisons
      were ties for the annotators (they count everywhere but in the accuracy).
    * ``longer_wins``: the accuracy that preferring the longer response (in tokens) would have; the baseline to
      beat, since people often like length. Equal lengths count half.
    * ``log_loss``: mean of :math:`-s \log p - (1 - s) \log(1 - p)`, in nats.
    * ``brier``: mean of :math:`(p - s)^2`, in [0, 1].
    * ``calibration_error``: expected calibration error over 15 equal bins of the confidence
      :math:`\max(p, 1 - p)` in [0.5, 1], against the observed share of the predicted side. Confidence, since
      the first response is usually the chosen one and a plain reliability curve would be one-sided.
    * ``margin``: mean margin towards the majority's side, decided comparisons only.
    * ``reward_mean``, ``reward_std``: over responses.

    Comparisons count equally, whatever their loss weight. Values that nothing was counted for are NaN.
    """

    full_state_update = False
    num_bins = 15

    sums: Tensor
    bins: Tensor
    rewards: Tensor

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        # float64: millions of comparisons still count one by one. Updates make new tensors: a spawned process
        # gets these ones in memory that it shares with the others.
        self.add_state("sums", torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(3, self.num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rewards", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self._waiting: list[dict[str, Tensor]] = []
        self._batches = 0

    @torch.no_grad()
    def update(self, output: RewardOutput, batch: PreferenceBatch) -> None:
        """Take a batch down; it is counted together with others, since each of them is little work.

        Args:
            output: ``chosen``, ``rejected`` and ``preference`` (P,), ``reward`` (R,); what is absent is left out.
            batch: ``preference`` (P,); absent means unanimous.
        """
        # Copies: what a network says may stand in memory that its next pass overwrites.
        values: dict[str, Tensor] = {}
        if "reward" in output and output["reward"].ndim == 1:
            values["reward"] = output["reward"].to(torch.float64, copy=True)
        if "chosen" in output:
            values["pairs"] = torch.stack([output["chosen"], output["rejected"]])
            if "preference" in batch:
                values["share"] = batch["preference"].clone()
            if "preference" in output:
                values["predicted"] = output["preference"].to(torch.float64, copy=True)
            if "response_length" in batch:
                values["lengths"] = batch["response_length"][batch["comparisons"]]  # (P, 2)
        if self._waiting and self._waiting[0].keys() != values.keys():
            self._count()
        self._waiting.append(values)
        self._batches += 1
        if self._batches == TOGETHER:
            self._count()

    def _together(self) -> dict[str, Tensor]:
        """What was taken down and is not counted yet, all batches in one."""
        names = self._waiting[0] if self._waiting else ()
        return {
            name: torch.cat([values[name] for values in self._waiting], dim=0 if name == "lengths" else -1)
            for name in names
        }

    @torch.no_grad()
    def _count(self) -> None:
        """Count what was taken down."""
        values = self._together()
        self._waiting, self._batches = [], 0
        if "reward" in values:
            reward = values["reward"]
            number = reward.new_tensor(float(reward.numel()))
            self.rewards = self.rewards + torch.stack([number, reward.sum(), reward.square().sum()])
        if "pairs" not in values:
            return
        chosen, rejected = values["pairs"].double().unbind()
        margin = chosen - rejected
        share = values["share"].double() if "share" in values else torch.ones_like(margin)
        decided = share != 0.5
        towards = torch.where(share > 0.5, margin, -margin)
        side, odds = margin, margin
        if "predicted" in values:
            odds = values["predicted"].logit(eps=1e-12)
            side = values["predicted"] - 0.5
        predicted = odds.sigmoid()
        rightly = torch.where(share > 0.5, side > 0, side < 0)
        self.sums = self.sums + torch.stack(
            [
                margin.new_tensor(float(margin.numel())),
                decided.sum(),
                (rightly & decided).sum(),
                ((side == 0) & decided).sum(),
                log_loss(odds, share).sum(),
                (predicted - share).square().sum(),
                (towards * decided).sum(),
                _longer_wins(values.get("lengths"), share > 0.5, decided),
            ]
        )
        confidence = torch.maximum(predicted, 1 - predicted)
        agreed = torch.where(predicted >= 0.5, share, 1 - share)
        bins = ((confidence - 0.5) * 2 * self.num_bins).long().clamp(0, self.num_bins - 1)
        member = (bins[:, None] == torch.arange(self.num_bins, device=bins.device)).double()
        self.bins = self.bins + torch.stack([torch.ones_like(confidence), confidence, agreed]) @ member

    def forward(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  torchmetrics' types
        """Count one batch, and tell its values alone."""
        self._count()  # torchmetrics puts the states aside
        return super().forward(*arguments, **options)

    def sync(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  torchmetrics' types
        """Have the states complete before they go over the ranks, which is before anything is computed."""
        self._count()
        super().sync(*arguments, **options)

    def reset(self) -> None:
        """Start at zero again."""
        self._waiting, self._batches = [], 0
        super().reset()

    @property
    def metric_state(self) -> dict[str, list[Tensor] | Tensor]:
        """The states, complete: what torchmetrics merges into another metric's."""
        self._count()
        return super().metric_state

    def _apply(self, *arguments: Any, **options: Any) -> nn.Module:  # noqa: ANN401  torchmetrics' types
        """Move what waits with the states."""
        moved = super()._apply(*arguments, **options)
        self._waiting = [
            {name: value.to(self.sums.device) for name, value in values.items()} for values in self._waiting
        ]
        return moved

    def sums_by_name(self) -> dict[str, Tensor]:
        """What was counted until now, on this rank, and what waits to be: sums go on to the last bit as they would have."""
        waiting = {f"{WAITING}{name}": value for name, value in self._together().items()}
        number = {} if not self._waiting else {"batches": torch.tensor(self._batches)}
        return {"sums": self.sums, "bins": self.bins, "rewards": self.rewards, **waiting, **number}

    def add_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Count what was counted elsewhere.

        Args:
            sums: As :meth:`sums_by_name` gives them.
        """
        self._count()
        for name in ("sums", "bins", "rewards"):
            here: Tensor = getattr(self, name)
            setattr(self, name, here + sums[name].to(here.device))
        if "batches" in sums:
            names = [name for name in sums if name.startswith(WAITING)]
            self._waiting = [{name.removeprefix(WAITING): sums[name].to(self.sums.device) for name in names}]
            self._batches = int(sums["batches"])
        self._update_count += 1  # or torchmetrics would say that there was nothing
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Every value above, float32 scalars."""
        count, decided, right, tied, log_loss, brier, margin, longer = self.sums
        number, total, squares = self.rewards
        mean = total / number
        values = {
            "accuracy": right / decided,
            "tied_scores": tied / decided,
            "longer_wins": longer / decided,
            "tied_labels": 1 - decided / count,
            "log_loss": log_loss / count,
            "brier": brier / count,
            "calibration_error": (self.bins[1] - self.bins[2]).abs().sum() / count,
            "margin": margin / decided,
            "reward_mean": mean,
            "reward_std": (squares / number - mean.square()).clamp_min(0).sqrt(),
        }
        return {name: value.float() for name, value in values.items()}


def _longer_wins(lengths: Tensor | None, first: Tensor, decided: Tensor) -> Tensor:
    if lengths is None:
        return torch.full((), torch.nan, dtype=torch.float64, device=decided.device)
    chosen, rejected = lengths.unbind(1)
    right = torch.where(first, chosen > rejected, rejected > chosen).double() + 0.5 * (chosen == rejected)
    return (right * decided).sum()
