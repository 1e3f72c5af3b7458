"""DPRM: predicts the crowd's distribution over labels, and scores by the reward it expects of it."""

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import PreferenceBatch, RewardOutput
from pluralign.datamodules.checks import check_choices, check_range

from .._step_weights import weight_total
from ..backbone import BackboneConfig, RewardHead
from ..base import ModuleSettings
from ..reward import RewardModule, compared
from .heads import label_head
from .labels import PAPER_LABELS, PAPER_REWARDS, Cost, LabelSpace
from .objectives import OBJECTIVES, LossName
from .votes import VOTES, Judged

__all__ = ["DPRM"]


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
        warm-up are our reading; the initial bias, labels of comparisons, the Beta head, the label sets and the
        risk-aware score are ours.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        labels: Sequence[str] = PAPER_LABELS,
        rewards: Sequence[float] = PAPER_REWARDS,
        coordinates: Sequence[Sequence[float]] | None = None,
        judged: Judged = "responses",
        head: Literal["categorical", "beta"] = "categorical",
        loss: LossName = "wasserstein",
        cost: Cost = "reward+grid",
        axis_weights: Sequence[float] = (),
        grid_share: float = 0.1,
        sinkhorn_epsilon: float = 0.1,
        sinkhorn_iterations: int = 100,
        warmup_steps: int = 0,
        risk_aversion: float = 0.0,
        label_sets: Mapping[str, Sequence[str]] | None = None,
        **settings: Unpack[ModuleSettings],
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
            **settings: As :class:`BaseModule` has them.

        Raises:
            ValueError: If a setting is outside its range or does not fit the others.

        .. versionadded:: 0.1
        """
        super().__init__(backbone, **settings)
        check_choices(DPRM.__init__, judged=judged, head=head, loss=loss)
        check_range("warmup_steps", warmup_steps, at_least=0)
        check_range("risk_aversion", risk_aversion, at_least=0)
        if risk_aversion and judged == "comparisons":
            raise ValueError(
                f'risk_aversion={risk_aversion} needs judged="responses": votes on comparisons tell no spread of one '
                "response's reward"
            )
        space = LabelSpace(labels, rewards, coordinates)
        self.label_head = label_head(
            space,
            head=head,
            loss=loss,
            cost=cost,
            axis_weights=axis_weights,
            grid_share=grid_share,
            sinkhorn_epsilon=sinkhorn_epsilon,
            sinkhorn_iterations=sinkhorn_iterations,
            label_sets=label_sets or {},
        )
        self.save_hyperparameters(
            {
                "labels": list(labels),
                "rewards": space.rewards.tolist(),
                "coordinates": space.places.tolist(),
                "cost": cost if isinstance(cost, str) else [[float(value) for value in row] for row in cost],
                "axis_weights": list(axis_weights),
                "label_sets": {name: list(members) for name, members in (label_sets or {}).items()},
            }
        )
        self.labels, self.label_rewards = space.names, tuple(space.rewards.tolist())
        self.judged: Judged = judged
        self.keys, self.objective = VOTES[judged], OBJECTIVES[loss]
        self.warmup_steps, self.risk_aversion = warmup_steps, risk_aversion
        self.requires = frozenset({self.keys.votes, *(("comparisons",) if judged == "comparisons" else ())})
        self.head: RewardHead | None = None
        self.bias: nn.Parameter | None = None

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
        self.bias.copy_(self.label_head.start(self.bias.new_tensor(mean)))

    @property
    def tells_apart(self) -> bool:
        """Not as a baseline that learns the crowd's mean alone."""
        return self.objective.numbers != 0

    def numbers(self, batch: PreferenceBatch) -> Tensor:
        """What the network says of every response, (R, numbers of the label head), before any bias."""
        backbone, scale = self.built_backbone(), self.label_head.scale(self.judged)
        if self.head is None:
            return scale.new_zeros(len(batch["response_row"]), len(self.labels))
        numbers: Tensor = self.head(backbone(batch))
        return numbers * scale if self.objective.numbers == 1 else numbers

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
        if self.judged == "comparisons" and "comparisons" in batch:
            first, second = batch["comparisons"].unbind(dim=1)
            bias = (self.bias + head.mirror(self.bias)) / 2
            labels = head.labels(numbers[first] + head.mirror(numbers[second]) + bias, self.judged)
            output["labels"], output["preference"] = labels, head.preference(labels)
        return compared(output, batch)

    # Loss ----------------------------------------------------------------------------------------------

    def check_batch(self, batch: PreferenceBatch) -> None:
        """Check as every module does, and that the votes are of these labels and on every item.

        Raises:
            ValueError: If they are not.
        """
        super().check_batch(batch)
        self.keys.check_labels(batch, self.labels)
        if self.data is not None:
            self.data.check_judged(self.keys.votes)

    def num_judged(self, batch: PreferenceBatch) -> int:
        """Responses or comparisons with votes: what the loss is a mean over."""
        return len(batch[self.keys.votes])

    def denominator(self, batch: PreferenceBatch) -> Tensor:
        """As of every module; weights of comparisons play no part where responses are judged."""
        if self.judged == "comparisons":
            return super().denominator(batch)
        return weight_total(None, self.num_judged(batch), batch["response_row"].device)

    def compute_loss(self, output: RewardOutput, batch: PreferenceBatch) -> Tensor:
        """The chosen loss over the judged items, weighted by ``weight`` where comparisons have it."""
        labels, (shares, votes) = output["labels"], self.keys.shares(batch)
        weight = batch.get("weight") if self.judged == "comparisons" else None
        if not len(shares):
            return labels.probs.sum() * 0
        warming_up = self.training and self.global_step < self.warmup_steps
        if self.objective.transport and not warming_up:
            return self.label_head.distance(labels, shares, votes, weight)
        return self.objective.cross_entropy(labels.probs, shares, weight)

    def watch(self, output: RewardOutput, batch_idx: int) -> None:
        """Watch as every module does, unless all rewards are equal as they should be."""
        if self.objective.numbers != 0:
            super().watch(output, batch_idx)
