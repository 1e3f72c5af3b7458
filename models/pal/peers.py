"""A new user is probably like somebody: weights by how well known users' weights explain a few judgements."""

from collections.abc import Callable

import torch
from torch import Tensor

from .judgements import JudgementLoss, judgement_losses

__all__ = ["MOST_PEERS", "weigh_with_peers"]

MOST_PEERS = 256
"""Known users that are asked at most; of more, so many are drawn at random, the same ones each time."""


@torch.no_grad()
def weigh_with_peers(
    fitted: Tensor,
    peers: Tensor,
    margins: Callable[[Tensor], Tensor],
    user: Tensor,
    *,
    preference: Tensor,
    weight: Tensor,
    loss: JudgementLoss,
) -> Tensor:
    r"""Average known users' weights and the user's own fit, by how well each explains the user's judgements.

    .. math::
        w_u = \sum_j q_{uj} w_j, \qquad q_{uj} \propto \pi_j \, e^{-L_u(w_j)}, \qquad
        \pi_{own} \propto (1 + n_u)^{-(K-1)/2}

    L is the loss of the user's judgements, so that q is the posterior over the peers if losses are minus
    log-likelihoods. All peers together weigh as much as the own fit, which pays for its K - 1 free numbers as in the
    Bayesian information criterion: after a few judgements the peers decide, after many the user alone.

    Args:
        fitted: Own fits, (U, K), on the simplex.
        peers: Weights of known users, (A, K), on the simplex.
        margins: From weights of each judgement's user, (M, K), to rewards of the first response less those of the
            second, (M,).
        user: Who judged, (M,) int64 in [0, U).
        preference: Share for the first, (M,) in [0, 1].
        weight: >= 0, (M,).
        loss: ``logistic``, ``hinge`` (margin 1) or ``smoothed_hinge``.

    Returns:
        (U, K) on the simplex; users without judgements keep their fit.

    Source:
        Empirical Bayes with a nonparametric prior (Robbins 1956) on the users' own distribution; for this use our own.
        The information criterion: Schwarz, *Estimating the Dimension of a Model*, Annals of Statistics 6, 1978.
    """
    if len(peers) > MOST_PEERS:
        chosen = torch.randperm(len(peers), generator=torch.Generator().manual_seed(0))[:MOST_PEERS]
        peers = peers[chosen.to(peers.device)]
    counts = torch.zeros(len(fitted), dtype=torch.float64, device=user.device)
    counts = counts.index_add_(0, user, (weight > 0).double())

    def explained(weights: Tensor) -> Tensor:
        losses = judgement_losses(margins(weights).double(), preference.double(), loss)
        return -torch.zeros_like(counts).index_add_(0, user, losses * weight.double())

    number = len(user)
    logits = [explained(peer.expand(number, -1)) - torch.log(counts.new_tensor(len(peers))) for peer in peers]
    penalty = (fitted.shape[1] - 1) / 2 * torch.log1p(counts)
    share = torch.stack([*logits, explained(fitted[user]) - penalty], dim=1).softmax(dim=1)
    mixed = share[:, :-1] @ peers.double() + share[:, -1:] * fitted.double()
    mixed = (mixed / mixed.sum(dim=1, keepdim=True)).to(fitted)
    return torch.where((counts > 0).unsqueeze(1), mixed, fitted)
