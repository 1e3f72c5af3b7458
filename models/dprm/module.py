"""DPRM: predicts the crowd's distribution over labels, and scores by the reward it expects of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_choices, check_range
from pluralign.losses import CategoricalWassersteinLoss, SinkhornDivergenceLoss

from ..backbone import BackboneConfig, RewardHead
from ..base import NOT_SAVED, default_optimizer
from ..reward import RewardModule
from .heads import (
    SMALLEST_SHARE,
    BetaLabels,
    CategoricalLabels,
    LabelHead,
    label_cross_entropy,
    majority_label,
)
from .labels import PAPER_COORDINATES, PAPER_LABELS, PAPER_REWARDS, CostName, LabelSpace

__all__ = ["DPRM"]

LossName = Literal["wasserstein", "sinkhorn", "cross_entropy", "majority", "constant", "bradley_terry"]


class Objective(NamedTuple):
    """What a ``loss`` asks of the network and makes of the votes."""

    numbers: int | None = None
    """Numbers per response: 1 stands for a multiple of an even scale; None for all that the label head takes."""
    transport: bool = False
    """Whether the label head's distance is the loss, and not cross-entropy."""
    target: Callable[[Tensor], Tensor] | None = None
    """What cross-entropy is taken against, from the observed shares; None for themselves."""


OBJECTIVES: Mapping[LossName, Objective] = {
    "wasserstein": Objective(transport=True),
    "sinkhorn": Objective(transport=True),
    "cross_entropy": Objective(),
    "majority": Objective(target=majority_label),
    "constant": Objective(numbers=0),
    "bradley_terry": Objective(numbers=1),
}


class JudgedKeys(NamedTuple):
    """Where a batch has what is known of the judged items."""

    votes: Literal["votes", "comparison_votes"]
    target: Literal["target", "comparison_target"]
    target_votes: Literal["target_votes", "comparison_target_votes"]


JUDGED_KEYS = {
    "responses": JudgedKeys("votes", "target", "target_votes"),
    "comparisons": JudgedKeys("comparison_votes", "comparison_target", "comparison_target_votes"),
}


class DPRM(RewardModule):
    r"""Distributional preference reward model: how a crowd would label a response, not what one annotator says.

    A head predicts :math:`\mu`, the shares of the crowd's labels, and transport losses compare it with the votes; the
    reward is what the labels' rewards :math:`\rho` are expected to be,

    .. math:: r = \sum_i \mu_i \rho_i, \qquad \sigma^2 = \sum_i \mu_i (\rho_i - r)^2, \qquad score = r - \kappa \sigma

    Labels may be of responses (ratings) or of comparisons (first, tie, second, or any finer scale that reads the
    same from both ends). A comparison's logits are :math:`z(x) + \mathrm{flip}(z(y))` with the K numbers z that
    each response gets once, and a bias that is its own mirror image, so that exchanging the responses exchanges
    the labels; with three labels this is Davidson's model of ties with a tie rate that depends on both responses.

    ``head="beta"`` predicts a Beta distribution of each label's share (of one label, if there are two): the shares'
    means, and how sure of them it is.

    Baselines are a switch of ``loss``: ``cross_entropy``; ``majority`` (cross-entropy against the most frequent label
    alone); ``constant`` (the training distribution for every item); ``bradley_terry`` (one number per response, and a
    bias per label that all items share: Davidson's model on comparisons, a rating scale on responses).

    Source:
        Li et al., *Aligning Crowd Feedback via Distributional Preference Reward Modeling*, 2024,
        https://arxiv.org/abs/2402.09764: labels, rewards and expected reward from its table 1 and figures,
        cross-entropy as its variant C; equation numbers, the cost matrix, the pooling and the update of the target
        were not available. The costs (``index`` read as its variant W, ``reward+grid`` as OT), the softmax and the
        warm-up are our inference; the initial bias, labels of comparisons, the Beta head, the label sets and the
        risk-aware score are ours.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        labels: Sequence[str] = PAPER_LABELS,
        rewards: Sequence[float] = PAPER_REWARDS,
        coordinates: Sequence[Sequence[float]] | None = None,
        judged: Literal["responses", "comparisons"] = "responses",
        head: Literal["categorical", "beta"] = "categorical",
        loss: LossName = "wasserstein",
        cost: CostName | Sequence[Sequence[float]] = "reward+grid",
        axis_weights: Sequence[float] = (),
        grid_share: float = 0.1,
        sinkhorn_epsilon: float = 0.1,
        sinkhorn_iterations: int = 100,
        warmup_steps: int = 0,
        risk_aversion: float = 0.0,
        label_sets: Mapping[str, Sequence[str]] | None = None,
        init_from: str | None = None,
        init_may_differ: Sequence[str] = (),
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Keep the settings; ``configure_model`` builds the network.

        Args:
            backbone: Which network, in which state.
            labels: Names of the K labels, in the order of the votes.
            rewards: Reward of each label.
            coordinates: Place of each label for the grid costs, K lists of equally many numbers; None for the paper's
                where the labels are the paper's, otherwise the label's number (then ``grid`` equals ``index``).
            judged: What the votes are on: ``responses`` (the batch has ``votes``), or ``comparisons``
                (``comparison_votes``), whose labels go from the first response to the second.
            head: ``categorical`` (softmax) or ``beta``; the latter goes with ``loss="wasserstein"`` alone, which is
                then taken between Betas.
            loss: ``wasserstein`` (exact), ``sinkhorn`` (debiased divergence), or a baseline.
            cost: What moving mass from label to label costs: ``index``, ``reward``, ``grid``, ``reward+grid``, or a
                (K, K) matrix. Without effect on baselines and on the Beta head.
            axis_weights: Weight of each axis of the coordinates in the grid cost, >= 0; empty for 1 each.
            grid_share: Weight, >= 0, of the grid in ``reward+grid``, in units of reward.
            sinkhorn_epsilon: Regularisation, > 0, in the unit of the cost.
            sinkhorn_iterations: Iterations, >= 1.
            warmup_steps: First optimiser steps that use cross-entropy, >= 0: transport's gradient fades where the
                softmax is saturated.
            risk_aversion: kappa >= 0: standard deviations of the labels' reward taken off the score; for ``responses``
                only.
            label_sets: Named sets of labels whose probability is reported, such as
                ``{"harmful": ["helpful, harmful", ...]}``.
            init_from: Checkpoint of another run, of any method, whose weights this one starts from.
            init_may_differ: Weights, or beginnings of their names, that are not taken over: ``head`` and ``bias`` to start
                from another method's backbone.
            optimizer: Called with the trained parameters.
            lr_scheduler: Called with the optimiser, stepped every step; None keeps the rate.

        Raises:
            ValueError: If a setting is outside its range or does not fit the others.

        .. versionadded:: 0.1
        """
        super().__init__(
            backbone,
            init_from=init_from,
            init_may_differ=init_may_differ,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        if coordinates is None and tuple(labels) == PAPER_LABELS:
            coordinates = PAPER_COORDINATES
        space = LabelSpace(labels, rewards, coordinates)
        check_choices(DPRM.__init__, judged=judged, head=head, loss=loss)
        if head == "beta" and loss != "wasserstein":
            raise ValueError(f'head="beta" goes with loss="wasserstein" alone, got loss={loss!r}')
        check_range("warmup_steps", warmup_steps, at_least=0)
        check_range("risk_aversion", risk_aversion, at_least=0)
        check_range("grid_share", grid_share, at_least=0)
        check_range("sinkhorn_iterations", sinkhorn_iterations, at_least=1)
        check_range("sinkhorn_epsilon", sinkhorn_epsilon, above=0)
        if risk_aversion and judged == "comparisons":
            raise ValueError(
                f'risk_aversion={risk_aversion} needs judged="responses": votes on comparisons tell no spread of one '
                "response's reward"
            )
        costs = space.cost(cost, axis_weights=axis_weights, grid_share=grid_share)
        self.save_hyperparameters(ignore=NOT_SAVED)
        self.save_hyperparameters(
            {
                "backbone": asdict(self.backbone_config),
                "labels": list(labels),
                "rewards": [float(reward) for reward in rewards],
                "coordinates": space.places.tolist(),
                "cost": cost if isinstance(cost, str) else [[float(value) for value in row] for row in cost],
                "axis_weights": list(axis_weights),
                "label_sets": {name: list(members) for name, members in (label_sets or {}).items()},
            }
        )
        self.labels, self.label_rewards = space.names, tuple(space.rewards.tolist())
        self.judged, self.objective = judged, OBJECTIVES[loss]
        self.warmup_steps, self.risk_aversion = warmup_steps, risk_aversion
        self.keys = JUDGED_KEYS[judged]
        self.requires = frozenset({self.keys.votes, *(("comparisons",) if judged == "comparisons" else ())})
        self.label_head: LabelHead
        if head == "beta":
            self.label_head = BetaLabels(space, label_sets or {})
        else:
            transport = (
                SinkhornDivergenceLoss(
                    cost=costs, epsilon=sinkhorn_epsilon, num_iterations=sinkhorn_iterations
                )
                if loss == "sinkhorn"
                else CategoricalWassersteinLoss(cost=costs)
            )
            self.label_head = CategoricalLabels(space, label_sets or {}, transport)
        self.register_buffer("_scale", self._label_scale(space), persistent=False)
        self.head: RewardHead | None = None
        self.bias: nn.Parameter | None = None

    _scale: Tensor

    def _label_scale(self, space: LabelSpace) -> Tensor:
        """How much one number raises each label's logit, for the scalar baseline."""
        if self.judged == "comparisons":
            return self.label_head.towards.clone()
        spread = space.rewards.max() - space.rewards.min()
        return ((space.rewards - space.rewards.mean()) / spread.clamp_min(1e-12)).float()

    # Network -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build backbone, head and the labels' bias, unless they are built."""
        if self.backbone is not None:
            return
        self.backbone = self.make_backbone()
        numbers = self.label_head.size if self.objective.numbers is None else self.objective.numbers
        if numbers:
            self.head = RewardHead(self.backbone.hidden_size, numbers)
        else:
            self.backbone.requires_grad_(False)  # nothing of it is used
        self.bias = nn.Parameter(torch.zeros(self.label_head.size))
        self.load_initial_weights()
        self._start_bias()  # here already, since a sharded strategy takes the parameter apart before the fit starts

    def on_fit_start(self) -> None:
        """Start from the training distribution, which a bias alone can hold; a bias that was trained is kept."""
        super().on_fit_start()
        self._start_bias()

    @torch.no_grad()
    def _start_bias(self) -> None:
        """Set a bias of zeros to what gives the mean of the training votes, where a fit has such data."""
        if not self.fitting or self.data is None:
            return
        mean = self.data.mean_votes(self.keys.votes)
        assert self.bias is not None  # built before
        if mean is None or len(mean) != len(self.labels) or not len(self.bias) or bool(self.bias.any()):
            return
        share = torch.tensor(mean, dtype=torch.float32, device=self.bias.device).clamp_min(SMALLEST_SHARE)
        self.bias.copy_(self.label_head.start(share))

    def numbers(self, batch: PreferenceBatch) -> Tensor:
        """What the network says of every response, (R, numbers of the label head), before any bias."""
        backbone = self.built_backbone()
        if self.head is None:
            return self._scale.new_zeros(len(batch["response_row"]), len(self.labels))
        numbers: Tensor = self.head(backbone(batch))
        return numbers * self._scale if self.objective.numbers == 1 else numbers

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Predict labels of responses, or of comparisons, and score.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent.

        Returns:
            ``labels`` of whatever is judged, with the probability of each of ``label_sets`` and, from the Beta head, the
            Betas; ``reward`` (R,), and with comparisons ``chosen`` and ``rejected`` (P,). Judged comparisons also have a
            ``preference`` (P,), the share that the first response is predicted to win, ties half, and no labels without
            comparisons. With two or three labels and the categorical head the difference of two rewards is then the
            log-odds of one winning against the other where they do not tie; with more labels it is the nearest to such
            odds, with the Beta head a score alone. All float32.
        """
        numbers, head = self.numbers(batch), self.label_head
        assert self.bias is not None  # built together with the backbone
        output = RewardOutput()
        if self.judged == "responses":
            labels = output["labels"] = head.labels(numbers + self.bias, self.judged)
            output["reward"] = labels.expected - self.risk_aversion * labels.std
        else:
            output["reward"] = head.scalar(numbers)
        if "comparisons" in batch:
            if self.judged == "comparisons":
                first, second = batch["comparisons"].unbind(dim=1)
                bias = (self.bias + head.mirror(self.bias)) / 2
                labels = head.labels(numbers[first] + head.mirror(numbers[second]) + bias, self.judged)
                output["labels"], output["preference"] = labels, head.preference(labels)
            output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(dim=1)
        return output

    # Loss ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer, and later the first batch of this stage: other splits may hold items without votes."""
        super().setup(stage)
        self._checked = False

    def check_batch(self, batch: PreferenceBatch) -> None:
        """Check as every module does, and that the votes are of these labels and on every item.

        Raises:
            ValueError: If they are not.
        """
        super().check_batch(batch)
        size = batch[self.keys.votes].shape[-1]
        if size != len(self.labels):
            raise ValueError(
                f"the data's {self.keys.votes} count {size} labels, the head has {len(self.labels)} "
                f"({', '.join(self.labels)}): set model.labels and model.rewards to those of the data"
            )
        if self.data is not None:
            self.data.check_judged(self.keys.votes)

    def target(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Shares of the labels to learn, and how many votes they are worth.

        Args:
            batch: With a target, as the data modules make it, else with the votes alone.

        Returns:
            (items, K) and (items,), float32.
        """
        if self.keys.target in batch:
            return batch[self.keys.target], batch[self.keys.target_votes]
        votes = batch[self.keys.votes].float()
        total = votes.sum(-1)
        return votes / total.unsqueeze(-1), total

    def num_judged(self, batch: PreferenceBatch) -> int:
        """Responses or comparisons with votes: what the loss is a mean over."""
        return len(batch[self.keys.votes])

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """The chosen loss over the judged items, weighted by ``weight`` where comparisons have it."""
        labels, (target, votes) = output["labels"], self.target(batch)
        self._check_target(target)
        weight = batch.get("weight") if self.judged == "comparisons" else None
        if not len(target):
            return labels.probs.sum() * 0
        if self.objective.transport and self._after_warmup:
            return self.label_head.distance(labels, target, votes, weight)
        if self.objective.target is not None:
            target = self.objective.target(target)
        return label_cross_entropy(labels.probs, target, weight)

    def _check_target(self, target: Tensor) -> None:
        """Batches made by hand may hold anything; on the host alone, since reading makes a device wait."""
        if target.device.type != "cpu" or bool(((target >= 0) & target.isfinite()).all()):
            return
        item = int((~((target >= 0) & target.isfinite())).any(-1).nonzero()[0])
        raise ValueError(
            f"{self.keys.votes}: item {item} of the batch has the shares {target[item].tolist()} of {len(self.labels)} "
            "labels, which must be >= 0 and finite: every item needs votes >= 0, and at least one of them or a prior"
        )

    def watch(self, output: RewardOutput, batch_idx: int) -> None:
        """Watch as every module does, unless all rewards are equal as they should be."""
        if self.objective.numbers != 0:
            super().watch(output, batch_idx)

    @property
    def _after_warmup(self) -> bool:
        return not self.training or self.global_step >= self.warmup_steps
