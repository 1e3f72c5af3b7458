"""What each ``loss`` of DPRM asks of the network and makes of the votes; the baselines are rows of this table."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["OBJECTIVES", "LossName", "Objective", "label_cross_entropy", "majority_label"]

LossName = Literal["wasserstein", "sinkhorn", "cross_entropy", "majority", "constant", "bradley_terry"]


class Objective(NamedTuple):
    """What a ``loss`` asks of the network and makes of the votes."""

    numbers: int | None = None
    """Numbers per response: 1 stands for a multiple of an even scale; None for all that the label head takes."""
    transport: bool = False
    """Whether the label head's distance is the loss, and not cross-entropy."""
    target: Callable[[Tensor], Tensor] | None = None
    """What cross-entropy is taken against, from the observed shares; None for themselves."""

    def cross_entropy(self, probs: Tensor, shares: Tensor, weight: Tensor | None) -> Tensor:
        """Cross-entropy, a scalar, of predicted against observed shares, or against what this objective makes of them."""
        return label_cross_entropy(probs, shares if self.target is None else self.target(shares), weight)


def label_cross_entropy(probs: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Cross-entropy of predicted against observed shares, (items, K): the mean, weighted (items,) if asked for."""
    losses = -(target * probs.clamp_min(1e-30).log()).sum(-1)
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum().clamp_min(1e-12)


def majority_label(target: Tensor) -> Tensor:
    """All of the share on the most frequent label, (items, K); divided between those that are equally frequent."""
    top = (target == target.amax(-1, keepdim=True)).float()
    return top / top.sum(-1, keepdim=True)


OBJECTIVES: Mapping[LossName, Objective] = {
    "wasserstein": Objective(transport=True),
    "sinkhorn": Objective(transport=True),
    "cross_entropy": Objective(),
    "majority": Objective(target=majority_label),
    "constant": Objective(numbers=0),
    "bradley_terry": Objective(numbers=1),
}
