"""How much the prior of a user's weights counts: chosen by judgements that are held out of the support."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pluralign.metrics import log_loss

from .adapt import shot_ranks
from .network import Judged, PALNetwork

__all__ = ["Margins", "chosen_prior_weight", "judges_and_shares", "masked_judgements"]

HELD_OUT = 0.2
"""Share of a user's judgements that choose the weight of the prior, at least one of two."""


class Margins:
    """Rewards of the first response less those of the second, as functions of the users' weights."""

    def __init__(self, network: PALNetwork, parts: Sequence[Judged]) -> None:
        """Take the rewards' differences once where they are linear in the weights."""
        self.network, self.parts = network, [part for part in parts if len(part.user)]
        self.differences: list[Tensor] = []
        if network.linear:
            for part in self.parts:
                first, second = part.comparisons.unbind(dim=1)
                basis = network.basis(part.points)
                self.differences.append(basis[first] - basis[second])

    def __call__(self, weights: Tensor) -> Tensor:
        """(P,) float64 on the host, of weights (U, K)."""
        margins = [torch.zeros(0, dtype=torch.float64)]
        with torch.autocast(weights.device.type, enabled=False):
            for i, part in enumerate(self.parts):
                of_judge = weights[part.user]
                if self.network.linear:
                    margin = (of_judge * self.differences[i]).sum(-1)
                else:
                    margin = self._distance_margin(part, of_judge)
                margins.append(margin.double().cpu())
        return torch.cat(margins)

    def _distance_margin(self, part: Judged, weights: Tensor) -> Tensor:
        first, second = part.comparisons.unbind(dim=1)
        ideal, items = self.network.ideal(part.points, weights, first), part.points.items
        return self.network.reward(items[first], ideal) - self.network.reward(items[second], ideal)


def chosen_prior_weight(
    fit: Callable[[Sequence[Judged], float], Tensor],
    network: PALNetwork,
    parts: Sequence[Judged],
    num_users: int,
    candidates: Sequence[float],
    shots: Sequence[int],
    seed: int,
) -> tuple[float, dict[float, float]]:
    """The weight of the prior, and what each one to choose from reached on support judgements held out.

    Args:
        fit: From judgements and a weight of the prior to the users' weights, (U, K).
        network: Of the model.
        parts: Support judgements.
        num_users: U.
        candidates: Weights to choose from.
        shots: Numbers of judgements for which the weight should do well.
        seed: Of the choice of judgements.

    Raises:
        ValueError: If no user has two judgements.
    """
    if len(candidates) == 1:
        return candidates[0], {}
    user, _ = judges_and_shares(parts)
    counts = user.bincount(minlength=num_users)
    held_out = torch.where(counts > 1, (counts * HELD_OUT).ceil().long(), 0)
    if not int(held_out.sum()):
        raise ValueError(
            "prior_strength cannot be chosen: no user has two support judgements, one to fit and one to compare; "
            f"give one of {list(candidates)}"
        )
    rank = shot_ranks(user, num_users, seed=seed)
    out = rank < held_out[user]
    compared = masked_judgements(parts, out)
    margins, (judge, share) = Margins(network, compared), judges_and_shares(compared)
    most = int((counts - held_out).max())
    sizes = sorted({min(n, most) for n in shots if n > 0}) or [most]
    losses = {}
    for candidate in candidates:
        means = []
        for n in sizes:
            weights = fit(masked_judgements(parts, ~out & (rank < held_out[user] + n)), candidate)
            sums = share.new_zeros(num_users).index_add_(0, judge, log_loss(margins(weights), share))
            means.append(float((sums / held_out)[held_out > 0].mean()))
        losses[candidate] = sum(means) / len(means)
    return min(candidates, key=losses.__getitem__), losses


def masked_judgements(parts: Sequence[Judged], mask: Tensor) -> list[Judged]:
    """The judgements that a mask over all of them, on the host, leaves."""
    masks = mask.split([len(part.user) for part in parts])
    return [part.where(chosen.to(part.user.device)) for part, chosen in zip(parts, masks, strict=True)]


def judges_and_shares(parts: Sequence[Judged]) -> tuple[Tensor, Tensor]:
    """Who judged, (P,) int64, and the share for the first, (P,) float64; on the host."""
    users = [torch.zeros(0, dtype=torch.int64), *(part.user.cpu() for part in parts)]
    shares = [torch.zeros(0, dtype=torch.float64), *(part.preference.double().cpu() for part in parts)]
    return torch.cat(users), torch.cat(shares)
