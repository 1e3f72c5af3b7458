"""Which responses are imitated: those that a prompt's judgements, or its ratings, say are best."""

from typing import Literal

import torch
from torch import Tensor

from pluralign.datamodules.batch import PreferenceBatch

__all__ = ["imitation_weights", "strict_weights"]

TINY = 1e-5
"""What the original adds to the best score before it divides by it."""


def strict_weights(batch: PreferenceBatch) -> Tensor:
    """Weights of comparisons in which one response is preferred, (P,) float32 (float64 of float64); a tie has none.

    Args:
        batch: With comparisons.
    """
    given = [batch[name].dtype for name in ("preference", "weight") if name in batch]
    dtype = torch.float64 if torch.float64 in given else torch.float32
    weight = batch.get("weight", torch.ones(len(batch["comparisons"]), device=batch["comparisons"].device))
    weight = weight.to(dtype)
    return weight * (batch["preference"] != 0.5) if "preference" in batch else weight


def imitation_weights(batch: PreferenceBatch, num_domains: int, threshold: float | None) -> Tensor:
    r"""How much each response is imitated.

    The judgements of a prompt in a domain are a group. Its responses are ordered by their ``score`` if the data rate each
    that is compared in it, and else by what they win less what they lose: :math:`\sum \pm w (2 p - 1)`. The best of them
    share the weight of the group's strict comparisons equally, so that the imitation of a batch is a mean over the same
    comparisons as its ranking is, however batches are put together. Where each group is one pair, that is the mean over
    preferred responses.

    Args:
        batch: With comparisons and ``response_prompt``.
        num_domains: D; a ``domain_id`` is below it.
        threshold: None for the best alone; else every response counts whose score, divided by the group's best (and a
            hundred-thousandth), is above it, in [0, 1). Groups whose best is not above 0 have their best alone.

    Returns:
        (R,) >= 0, float32 (float64 of float64). Nobody is imitated in a group of ties, or one whose judgements go round in a circle.
    """
    first, second = batch["comparisons"].unbind(dim=1)
    weight, prompt = strict_weights(batch), batch["response_prompt"]
    size = num_domains + 1
    domain = batch["domain_id"] + 1 if "domain_id" in batch else torch.zeros_like(first)
    cells, groups = len(prompt) * size, (len(batch["id"]) if "id" in batch else len(prompt)) * size
    # A cell is a response in a domain, a group a prompt in a domain.
    group_of_cell = (prompt.unsqueeze(1) * size + torch.arange(size, device=prompt.device)).flatten()
    won = weight * (2 * batch["preference"].to(weight) - 1) if "preference" in batch else weight
    left, right = first * size + domain, second * size + domain
    net = weight.new_zeros(cells).index_add(0, left, won).index_add(0, right, -won)
    judged = weight.new_zeros(cells).index_add(0, left, weight).index_add(0, right, weight) > 0
    score = _scores(batch, net, judged, group_of_cell, groups)
    best = _extreme(score, judged, group_of_cell, groups, "amax")
    worst = _extreme(score, judged, group_of_cell, groups, "amin")
    chosen = judged & (score == best) & (best > worst)
    if threshold is not None:
        chosen = torch.where(best > 0, judged & (score > threshold * (best + TINY)), chosen)
    of_group = weight.new_zeros(groups).index_add(0, prompt[first] * size + domain, weight)
    number = weight.new_zeros(groups).index_add(0, group_of_cell, chosen.to(weight))
    share = torch.where(chosen, (of_group / number.clamp_min(1))[group_of_cell], 0.0)
    return share.view(len(prompt), size).sum(1)


def _scores(
    batch: PreferenceBatch, net: Tensor, judged: Tensor, group_of_cell: Tensor, groups: int
) -> Tensor:
    """What orders the responses of each group, by cell: their ratings where all that are compared have one."""
    if "score" not in batch:
        return net
    score = batch["score"].to(net).repeat_interleave(len(net) // max(1, len(batch["score"])))
    lacking = net.new_zeros(groups).index_add(0, group_of_cell, (judged & score.isnan()).to(net))
    return torch.where(lacking[group_of_cell] > 0, net, torch.where(judged, score, 0.0))


def _extreme(
    score: Tensor, judged: Tensor, group_of_cell: Tensor, groups: int, which: Literal["amax", "amin"]
) -> Tensor:
    """Best or worst score of each cell's group."""
    limits = torch.finfo(score.dtype)
    nothing = limits.min if which == "amax" else limits.max
    found = score.new_full((groups,), nothing)
    return found.scatter_reduce(0, group_of_cell, torch.where(judged, score, nothing), which)[group_of_cell]
