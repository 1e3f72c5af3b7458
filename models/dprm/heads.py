"""Label heads of DPRM: what numbers say of labels, how far that is from votes, and what numbers to start from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pluralign.datamodules.batch import Labels
from pluralign.datamodules.checks import check_range
from pluralign.losses import CategoricalWassersteinLoss, SinkhornDivergenceLoss, beta_wasserstein

from .labels import Cost, LabelSpace
from .votes import Judged

__all__ = ["BetaLabels", "CategoricalLabels", "LabelHead", "label_head"]

SMALLEST_SHAPE = 1e-3
"""Added to the Beta parameters, which must stay away from 0."""
JEFFREYS = 0.5
"""Least parameter of an observed Beta: votes that all agree, without a prior, would give one of 0."""
SMALLEST_SHARE = 1e-4
"""Least share of a label to start from: one that nobody chose in training stays possible."""


class LabelHead(nn.Module, ABC):
    """Turns numbers of an item into a distribution over K labels; holds nothing that is trained or saved.

    Attributes:
        size: Numbers of an item.
    """

    size: int
    rewards: Tensor
    sets: Tensor
    towards: Tensor
    spread: Tensor

    def __init__(self, space: LabelSpace, label_sets: Mapping[str, Sequence[str]]) -> None:
        """Keep the labels.

        Args:
            space: Their names and rewards.
            label_sets: Named sets of labels whose probability is told.

        Raises:
            ValueError: If a set names an unknown label.
        """
        super().__init__()
        self.names, self.set_names = space.names, tuple(label_sets)
        self.register_buffer("rewards", space.rewards.float(), persistent=False)
        self.register_buffer("sets", space.sets(label_sets).float(), persistent=False)
        # How far a comparison's label speaks for the first response: 1/2 for the first label, -1/2 for the last.
        self.register_buffer("towards", torch.linspace(0.5, -0.5, len(space)), persistent=False)
        width = (space.rewards.max() - space.rewards.min()).clamp_min(1e-12)
        spread = (space.rewards - space.rewards.mean()) / width
        self.register_buffer("spread", spread.float(), persistent=False)

    def scale(self, on: Judged) -> Tensor:
        """How much one number raises each label's logit, (K,), for the scalar baseline."""
        return self.towards if on == "comparisons" else self.spread

    @abstractmethod
    def labels(self, numbers: Tensor, on: Judged) -> Labels:
        """Distribution over the labels of every item.

        Args:
            numbers: (items, size).
            on: What the items are.
        """

    @abstractmethod
    def mirror(self, numbers: Tensor) -> Tensor:
        """The same numbers seen from the other response: labels in reverse; (..., size)."""

    @abstractmethod
    def scalar(self, numbers: Tensor) -> Tensor:
        """What speaks for a response among its numbers, (R,): the r whose r (1/2 ... -1/2) is nearest to them."""

    @abstractmethod
    def start(self, share: Tensor) -> Tensor:
        """Numbers, (size,), that give shares of the labels, (K,) >= 0, but for ``SMALLEST_SHARE``."""

    @abstractmethod
    def distance(self, labels: Labels, target: Tensor, votes: Tensor, weight: Tensor | None) -> Tensor:
        """Transport loss, a scalar, between predicted and observed labels.

        Args:
            labels: Of this head.
            target: Observed shares, (items, K).
            votes: What they are worth, (items,).
            weight: Of the items, (items,); None for equal ones.
        """

    def preference(self, labels: Labels) -> Tensor:
        """Share of the first response in comparisons, (P,), ties half.

        Differences with the mirror image: exactly 1/2, a tie, where neither response is preferred.
        """
        return 0.5 + ((labels.probs - labels.probs.flip(-1)) * self.towards).sum(-1) / 2

    def _told(
        self,
        probs: Tensor,
        on: Judged,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Labels:
        expected = (probs * self.rewards).sum(-1)  # no matrix product: autocast would round it to 16 bits
        variance = (probs * (self.rewards - expected.unsqueeze(-1)).square()).sum(-1)
        sets = (probs.unsqueeze(-1) * self.sets).sum(-2) if self.set_names else None
        std = variance.clamp_min(1e-12).sqrt()
        return Labels(probs, expected, std, self.names, on, alpha, beta, sets, self.set_names)

    def _nearest(self, numbers: Tensor) -> Tensor:
        return (numbers * self.towards).sum(-1) / self.towards.square().sum()


class CategoricalLabels(LabelHead):
    """Softmax over K logits."""

    def __init__(
        self, space: LabelSpace, label_sets: Mapping[str, Sequence[str]], transport: nn.Module
    ) -> None:
        """Keep labels and loss; arguments as :class:`LabelHead` has them.

        Args:
            space: Names and rewards.
            label_sets: Named sets.
            transport: Loss between distributions (items, K), which takes ``weight``.
        """
        super().__init__(space, label_sets)
        self.size, self.transport = len(space), transport

    def labels(self, numbers: Tensor, on: Judged) -> Labels:
        """Softmax of the numbers."""
        return self._told(numbers.softmax(-1), on)

    def mirror(self, numbers: Tensor) -> Tensor:
        """Logits in reverse."""
        return numbers.flip(-1)

    def scalar(self, numbers: Tensor) -> Tensor:
        """The nearest multiple."""
        return self._nearest(numbers)

    def start(self, share: Tensor) -> Tensor:
        """Logarithms of the shares."""
        share = share.clamp_min(SMALLEST_SHARE)
        return (share / share.sum()).log()

    def distance(self, labels: Labels, target: Tensor, votes: Tensor, weight: Tensor | None) -> Tensor:
        """The transport loss; how many votes there are plays no part."""
        loss: Tensor = self.transport(labels.probs, target, weight=weight)
        return loss


class BetaLabels(LabelHead):
    """A Beta of each label's share, from two numbers a label; two labels have one between them."""

    def __init__(self, space: LabelSpace, label_sets: Mapping[str, Sequence[str]]) -> None:
        """Keep the labels; arguments as :class:`LabelHead` has them."""
        super().__init__(space, label_sets)
        self.predicted = 1 if len(space) == 2 else len(space)
        self.size = 2 * self.predicted

    def labels(self, numbers: Tensor, on: Judged) -> Labels:
        """Means of the Betas, scaled to sum to 1."""
        shapes = nn.functional.softplus(numbers) + SMALLEST_SHAPE
        alpha, beta = shapes.unflatten(-1, (-1, 2)).unbind(-1)
        if self.predicted == 1:
            alpha, beta = torch.cat([alpha, beta], -1), torch.cat([beta, alpha], -1)
        share = alpha / (alpha + beta)
        return self._told(share / share.sum(-1, keepdim=True), on, alpha, beta)

    def mirror(self, numbers: Tensor) -> Tensor:
        """Labels in reverse; of the only Beta, its two numbers."""
        if self.predicted == 1:
            return numbers.flip(-1)
        pairs: Tensor = numbers.unflatten(-1, (-1, 2))
        return pairs.flip(-2).flatten(-2)

    def scalar(self, numbers: Tensor) -> Tensor:
        """The nearest multiple to what each Beta's numbers differ by."""
        pairs: Tensor = numbers.unflatten(-1, (-1, 2))
        differences = pairs[..., 0] - pairs[..., 1]
        return differences.squeeze(-1) if self.predicted == 1 else self._nearest(differences)

    def start(self, share: Tensor) -> Tensor:
        """Betas that are worth as many votes as there are labels."""
        share = share.clamp_min(SMALLEST_SHARE)
        shapes = torch.stack([share, 1 - share], -1).clamp_min(1e-2) * len(self.names)
        numbers = shapes + (-torch.expm1(-shapes)).log()  # the inverse of softplus
        return numbers[: self.predicted].flatten()

    def distance(self, labels: Labels, target: Tensor, votes: Tensor, weight: Tensor | None) -> Tensor:
        """Wasserstein distance between predicted and observed Beta of each label's share, mean over labels."""
        assert labels.alpha is not None and labels.beta is not None  # of this head
        observed = votes.unsqueeze(-1) * target
        rest = votes.unsqueeze(-1) * (1 - target)
        shapes = (labels.alpha, labels.beta, observed.clamp_min(JEFFREYS), rest.clamp_min(JEFFREYS))
        each = None if weight is None else weight.unsqueeze(-1).expand(-1, self.predicted)
        return beta_wasserstein(*(shape[:, : self.predicted] for shape in shapes), weight=each)


def label_head(
    space: LabelSpace,
    *,
    head: str,
    loss: str,
    cost: Cost,
    axis_weights: Sequence[float],
    grid_share: float,
    sinkhorn_epsilon: float,
    sinkhorn_iterations: int,
    label_sets: Mapping[str, Sequence[str]],
) -> LabelHead:
    """The head that the settings describe; arguments as :class:`DPRM` has them.

    Raises:
        ValueError: If a setting is outside its range or does not fit the others.
    """
    if head == "beta" and loss != "wasserstein":
        raise ValueError(f'head="beta" goes with loss="wasserstein" alone, got loss={loss!r}')
    check_range("grid_share", grid_share, at_least=0)
    check_range("sinkhorn_iterations", sinkhorn_iterations, at_least=1)
    check_range("sinkhorn_epsilon", sinkhorn_epsilon, above=0)
    costs = space.cost(cost, axis_weights=axis_weights, grid_share=grid_share)
    if head == "beta":
        return BetaLabels(space, label_sets)
    transport: nn.Module = CategoricalWassersteinLoss(cost=costs)
    if loss == "sinkhorn":
        transport = SinkhornDivergenceLoss(
            cost=costs, epsilon=sinkhorn_epsilon, num_iterations=sinkhorn_iterations
        )
    return CategoricalLabels(space, label_sets, transport)
