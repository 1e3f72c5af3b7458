"""DPRM: predicts the crowd's distribution over labels, and scores by the reward it expects of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.losses import CategoricalWassersteinLoss, SinkhornDivergenceLoss, beta_wasserstein

from ._dprm_labels import PAPER_COORDINATES, PAPER_LABELS, PAPER_REWARDS, CostName, LabelSpace
from .backbone import RewardHead
from .base import RewardModule, default_optimizer
from .loading import BackboneConfig

__all__ = ["DPRM"]

LossName = Literal["wasserstein", "sinkhorn", "cross_entropy", "majority", "constant", "bradley_terry"]
LOSSES = ("wasserstein", "sinkhorn", "cross_entropy", "majority", "constant", "bradley_terry")
SMALLEST_SHAPE = 1e-3
"""Added to the Beta parameters, which must stay away from 0."""
JEFFREYS = 0.5
"""Least parameter of an observed Beta: votes that all agree, without a prior, would give one of 0."""


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
            optimizer: Called with the trained parameters.
            lr_scheduler: Called with the optimiser, stepped every step; None keeps the rate.

        Raises:
            ValueError: If a setting is outside its range or does not fit the others.

        .. versionadded:: 0.1
        """
        super().__init__(backbone, optimizer=optimizer, lr_scheduler=lr_scheduler)
        if coordinates is None and tuple(labels) == PAPER_LABELS:
            coordinates = PAPER_COORDINATES
        space = LabelSpace(labels, rewards, coordinates)
        for name, value, allowed in (
            ("judged", judged, ("responses", "comparisons")),
            ("head", head, ("categorical", "beta")),
            ("loss", loss, LOSSES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        if head == "beta" and loss != "wasserstein":
            raise ValueError(f'head="beta" goes with loss="wasserstein" alone, got loss={loss!r}')
        for name, number, least in (
            ("warmup_steps", warmup_steps, 0),
            ("risk_aversion", risk_aversion, 0),
            ("grid_share", grid_share, 0),
            ("sinkhorn_iterations", sinkhorn_iterations, 1),
        ):
            if not least <= number < math.inf:
                raise ValueError(f"{name} must be a finite number >= {least}, got {number}")
        if not 0 < sinkhorn_epsilon < math.inf:
            raise ValueError(f"sinkhorn_epsilon must be a finite number > 0, got {sinkhorn_epsilon}")
        if risk_aversion and judged == "comparisons":
            raise ValueError(
                f'risk_aversion={risk_aversion} needs judged="responses": votes on comparisons tell no spread of one '
                "response's reward"
            )
        found = space.cost(cost, axis_weights=axis_weights, grid_share=grid_share)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "backbone"])
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
        self.judged, self.head_kind, self.loss_name = judged, head, loss
        self.warmup_steps, self.risk_aversion = warmup_steps, risk_aversion
        self.label_set_names = tuple(label_sets or {})
        self.votes_key = "votes" if judged == "responses" else "comparison_votes"
        self.requires = frozenset({"votes"} if judged == "responses" else {"comparisons", "comparison_votes"})
        self.transport: nn.Module
        if loss == "sinkhorn":
            self.transport = SinkhornDivergenceLoss(
                cost=found, epsilon=sinkhorn_epsilon, num_iterations=sinkhorn_iterations
            )
        else:
            self.transport = CategoricalWassersteinLoss(cost=found)
        self.register_buffer("_rewards", space.rewards.float(), persistent=False)
        self.register_buffer("_sets", space.sets(label_sets or {}).float(), persistent=False)
        # How far a comparison's label speaks for the first response: 1/2 for the first label, -1/2 for the last.
        self.register_buffer("_towards", torch.linspace(0.5, -0.5, len(space)), persistent=False)
        self.register_buffer("_scale", self._label_scale(space), persistent=False)
        self.head: RewardHead | None = None
        self.bias: nn.Parameter | None = None

    _rewards: Tensor
    _sets: Tensor
    _towards: Tensor
    _scale: Tensor

    def _label_scale(self, space: LabelSpace) -> Tensor:
        """How much one number raises each label's logit, for the scalar baseline."""
        if self.judged == "comparisons":
            return self._towards.clone()
        spread = space.rewards.max() - space.rewards.min()
        return ((space.rewards - space.rewards.mean()) / spread.clamp_min(1e-12)).float()

    # Network -------------------------------------------------------------------------------------------

    @property
    def _outputs(self) -> int:
        """Numbers of the head per response."""
        labels = len(self.labels)
        if self.head_kind == "beta":
            return 2 if labels == 2 else 2 * labels
        return {"bradley_terry": 1, "constant": 0}.get(self.loss_name, labels)

    def configure_model(self) -> None:
        """Build backbone, head and the labels' bias, unless they are built."""
        if self.backbone is not None:
            return
        self.backbone = self.make_backbone()
        if self._outputs:
            self.head = RewardHead(self.backbone.hidden_size, self._outputs)
        else:
            self.backbone.requires_grad_(False)  # nothing of it is used
        size = self._outputs if self.head_kind == "beta" else len(self.labels)
        self.bias = nn.Parameter(torch.zeros(size))
        self._start_bias()  # here already, since a sharded strategy takes the parameter apart before the fit starts

    def on_fit_start(self) -> None:
        """Start from the training distribution, which a bias alone can hold; a bias that was trained is kept."""
        super().on_fit_start()
        self._start_bias()

    @torch.no_grad()
    def _start_bias(self) -> None:
        """Set a bias of zeros to what gives the mean of the training votes, where a fit has such data."""
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return
        mean = getattr(getattr(trainer, "datamodule", None), "mean_votes", lambda name: None)(self.votes_key)
        assert self.bias is not None  # built before
        if mean is None or len(mean) != len(self.labels) or not len(self.bias) or bool(self.bias.any()):
            return
        share = torch.tensor(mean, dtype=torch.float32, device=self.bias.device).clamp_min(1e-4)
        if self.head_kind == "categorical":
            self.bias.copy_((share / share.sum()).log())
            return
        shapes = torch.stack([share, 1 - share], -1).clamp_min(1e-2) * len(self.labels)
        raw = shapes + (-torch.expm1(-shapes)).log()  # the inverse of softplus
        self.bias.copy_(raw[0] if len(self.labels) == 2 else raw.flatten())

    def _mirror(self, values: Tensor) -> Tensor:
        """The same numbers seen from the other response: labels in reverse."""
        if self.head_kind == "beta" and len(self.labels) > 2:
            pairs: Tensor = values.unflatten(-1, (-1, 2))
            return pairs.flip(-2).flatten(-2)
        return values.flip(-1)

    def _numbers(self, batch: PreferenceBatch) -> Tensor:
        """What the head says of every response."""
        backbone = self.built_backbone()
        if self.head is None:
            return self._scale.new_zeros(len(batch["response_row"]), len(self.labels))
        numbers: Tensor = self.head(backbone(batch))
        return numbers * self._scale if self.loss_name == "bradley_terry" else numbers

    def _raw(self, numbers: Tensor, batch: PreferenceBatch) -> Tensor:
        """Logits (or raw Beta parameters) of every judged item."""
        assert self.bias is not None  # built together with the backbone
        if self.judged == "responses":
            return numbers + self.bias
        if "comparisons" not in batch:
            return numbers[:0] + self.bias
        first, second = batch["comparisons"].unbind(dim=1)
        bias = (self.bias + self._mirror(self.bias)) / 2
        return numbers[first] + self._mirror(numbers[second]) + bias

    def _scalar(self, numbers: Tensor) -> Tensor:
        """What speaks for a response among its numbers: the r whose r (1/2 ... -1/2) is nearest to them."""
        if self.head_kind == "beta":
            pairs: Tensor = numbers.unflatten(-1, (-1, 2))
            numbers = pairs[..., 0] - pairs[..., 1]
            if numbers.shape[-1] == 1:
                return numbers.squeeze(-1)
        return (numbers * self._towards).sum(-1) / self._towards.square().sum()

    def forward(self, batch: PreferenceBatch) -> RewardOutput:
        """Predict labels of responses, or of comparisons, and score.

        Args:
            batch: Token or feature batch; ``comparisons`` may be absent.

        Returns:
            Judged responses: ``label_probs`` (R, K), ``expected_reward``, ``reward_std`` and ``reward`` (R,), the
            score; with ``label_sets`` ``label_set_probs`` (R, S); with the Beta head ``alpha`` and ``beta`` (R, K);
            with comparisons ``chosen`` and ``rejected`` (P,). Judged comparisons: the same under names that begin
            with ``comparison_``, for (P,) items, ``preference`` (P,), the share that the first response is predicted
            to win, ties half, and ``reward`` (R,). With two or three labels and the categorical head the difference
            of two rewards is the log-odds of one winning against the other where they do not tie; with more labels
            it is the nearest to such odds, with the Beta head a score alone. All float32.
        """
        numbers = self._numbers(batch)
        raw = self._raw(numbers, batch)
        values: dict[str, Tensor] = {}
        if self.head_kind == "beta":
            alpha, beta = (nn.functional.softplus(raw) + SMALLEST_SHAPE).unflatten(-1, (-1, 2)).unbind(-1)
            if len(self.labels) == 2:
                alpha, beta = torch.cat([alpha, beta], -1), torch.cat([beta, alpha], -1)
            values["alpha"], values["beta"] = alpha, beta
            share = alpha / (alpha + beta)
            probs = share / share.sum(-1, keepdim=True)
        else:
            probs = raw.softmax(-1)
        values["label_probs"] = probs
        expected = (probs * self._rewards).sum(-1)  # no matrix product: autocast would round it to 16 bits
        variance = (probs * (self._rewards - expected.unsqueeze(-1)).square()).sum(-1)
        values["expected_reward"] = expected
        values["reward_std"] = variance.clamp_min(1e-12).sqrt()
        if self.label_set_names:
            values["label_set_probs"] = (probs.unsqueeze(-1) * self._sets).sum(-2)
        output = RewardOutput()
        if self.judged == "responses":
            output.update(values)  # type: ignore[typeddict-item]
            output["reward"] = expected - self.risk_aversion * values["reward_std"]
        else:
            output["reward"] = self._scalar(numbers)
            if "comparisons" in batch:
                output.update({f"comparison_{name}": value for name, value in values.items()})  # type: ignore[typeddict-item]
                # Differences with the mirror image: exactly 1/2, a tie, where neither response is preferred.
                output["preference"] = 0.5 + ((probs - probs.flip(-1)) * self._towards).sum(-1) / 2
        if "comparisons" in batch:
            output["chosen"], output["rejected"] = output["reward"][batch["comparisons"]].unbind(dim=1)
        return output

    # Loss ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer, and later the first batch of this stage: other splits may hold items without votes."""
        super().setup(stage)
        self._checked = False

    def _check(self, batch: PreferenceBatch) -> None:
        super()._check(batch)
        found = batch[self.votes_key].shape[-1]  # type: ignore[literal-required]
        if found != len(self.labels):
            raise ValueError(
                f"the data's {self.votes_key} count {found} labels, the head has {len(self.labels)} "
                f"({', '.join(self.labels)}): set model.labels and model.rewards to those of the data"
            )
        check = getattr(getattr(self._trainer, "datamodule", None), "check_judged", None)
        if check is not None:
            check(self.votes_key)

    def target(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Shares of the labels to learn, and how many votes they are worth.

        Args:
            batch: With ``target`` (or ``comparison_target``), as the data modules make it, else with the votes alone.

        Returns:
            (items, K) and (items,), float32.
        """
        prefix = "" if self.judged == "responses" else "comparison_"
        if f"{prefix}target" in batch:
            return batch[f"{prefix}target"], batch[f"{prefix}target_votes"]  # type: ignore[literal-required]
        votes: Tensor = batch[self.votes_key].float()  # type: ignore[literal-required]
        strength = votes.sum(-1)
        return votes / strength.unsqueeze(-1), strength

    def num_judged(self, batch: PreferenceBatch) -> int:
        """Responses or comparisons with votes: what the loss is a mean over."""
        return len(batch[self.votes_key])  # type: ignore[literal-required]

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """The chosen loss over the judged items, weighted by ``weight`` where comparisons have it."""
        prefix = "" if self.judged == "responses" else "comparison_"
        target, strength = self.target(batch)
        self._check_target(target)
        probs: Tensor = output[f"{prefix}label_probs"]  # type: ignore[literal-required]
        weight = batch.get("weight") if self.judged == "comparisons" else None
        if not len(target):
            return probs.sum() * 0
        if self.head_kind == "beta" and self._after_warmup:
            shapes = [output[f"{prefix}{name}"] for name in ("alpha", "beta")]  # type: ignore[literal-required]
            return self._beta_loss(shapes[0], shapes[1], target, strength, weight)
        if self.loss_name in ("wasserstein", "sinkhorn") and self._after_warmup:
            loss: Tensor = self.transport(probs, target, weight=weight)
            return loss
        if self.loss_name == "majority":
            top = (target == target.amax(-1, keepdim=True)).float()
            target = top / top.sum(-1, keepdim=True)
        losses = -(target * probs.clamp_min(1e-30).log()).sum(-1)
        return losses.mean() if weight is None else (losses * weight).sum() / weight.sum().clamp_min(1e-12)

    def _check_target(self, target: Tensor) -> None:
        """Batches made by hand may hold anything; on the host alone, since reading makes a device wait."""
        if target.device.type != "cpu" or bool(((target >= 0) & target.isfinite()).all()):
            return
        item = int((~((target >= 0) & target.isfinite())).any(-1).nonzero()[0])
        raise ValueError(
            f"{self.votes_key}: item {item} of the batch has the shares {target[item].tolist()} of {len(self.labels)} "
            "labels, which must be >= 0 and finite: every item needs votes >= 0, and at least one of them or a prior"
        )

    def _watch(self, output: RewardOutput, batch_idx: int) -> None:
        if self.loss_name != "constant":  # whose rewards are all equal, as it should be
            super()._watch(output, batch_idx)

    @property
    def _after_warmup(self) -> bool:
        return not self.training or self.global_step >= self.warmup_steps

    def _beta_loss(
        self, alpha: Tensor, beta: Tensor, target: Tensor, strength: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Wasserstein distance between predicted and observed Beta of each label's share, mean over labels."""
        observed = strength.unsqueeze(-1) * target
        rest = strength.unsqueeze(-1) * (1 - target)
        labels = 1 if len(self.labels) == 2 else len(self.labels)  # the second Beta mirrors the first
        shapes = (alpha, beta, observed.clamp_min(JEFFREYS), rest.clamp_min(JEFFREYS))
        own = None if weight is None else weight.unsqueeze(-1).expand(-1, labels)
        return beta_wasserstein(*(shape[:, :labels] for shape in shapes), weight=own)
