"""Averaging a new user's fit with known users, against plain loops and at its limits."""

import math

import pytest
import torch

from pluralign.models.pal.peers import MOST_PEERS, weigh_with_peers

PEERS = torch.tensor(
    [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.85, 0.1, 0.05]], dtype=torch.float64
)


def problem(judgements=40, users=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "differences": torch.randn(judgements, 3, generator=generator, dtype=torch.float64) * 2,
        "user": torch.randint(users, (judgements,), generator=generator),
        "preference": torch.rand(judgements, generator=generator, dtype=torch.float64),
        "weight": torch.rand(judgements, generator=generator, dtype=torch.float64),
        "fitted": torch.rand(users, 3, generator=generator, dtype=torch.float64).softmax(-1),
    }


def averaged(parts, peers=PEERS, loss="logistic"):
    differences = parts["differences"]
    return weigh_with_peers(
        parts["fitted"],
        peers,
        lambda weights: (differences * weights).sum(-1),
        parts["user"],
        preference=parts["preference"],
        weight=parts["weight"],
        loss=loss,
    )


COSTS = {
    "logistic": lambda z: math.log1p(math.exp(-z)),
    "hinge": lambda z: max(0.0, 1 - z),
    "smoothed_hinge": lambda z: max(0.0, 1 - z) ** 2 / 10 if z >= -4 else 1 - 2.5 - z,
}


@pytest.mark.parametrize("loss", list(COSTS))
def test_equals_plain_loops(loss):
    parts, cost = problem(), COSTS[loss]
    found = averaged(parts, loss=loss)
    for user in range(5):
        mine = (parts["user"] == user).nonzero().flatten().tolist()
        candidates = [*PEERS.double(), parts["fitted"][user]]
        scores = []
        for number, weights in enumerate(candidates):
            total = -math.log(len(PEERS)) if number < len(PEERS) else -(3 - 1) / 2 * math.log1p(len(mine))
            for m in mine:
                gap, share = float(parts["differences"][m] @ weights), float(parts["preference"][m])
                total -= float(parts["weight"][m]) * (share * cost(gap) + (1 - share) * cost(-gap))
            scores.append(math.exp(total))
        expected = sum(score * weights for score, weights in zip(scores, candidates, strict=True)) / sum(
            scores
        )
        torch.testing.assert_close(found[user], expected, atol=1e-9, rtol=0)


def test_users_without_judgements_keep_their_fit_and_others_do_not_matter():
    parts = problem(users=6)
    parts["weight"][parts["user"] == 2] = 0.0
    found = averaged(parts)
    torch.testing.assert_close(found[2], parts["fitted"][2])
    changed = {**parts, "differences": parts["differences"].clone()}
    changed["differences"][parts["user"] == 1] *= -3
    same = [0, 2, 3, 4, 5]
    torch.testing.assert_close(averaged(changed)[same], found[same])


def test_few_judgements_ask_the_peers_and_many_the_user():
    truth = torch.tensor([0.45, 0.45, 0.10], dtype=torch.float64)  # like none of the peers
    generator = torch.Generator().manual_seed(1)
    distances = []
    for count in (3, 3000):
        differences = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 4
        share = torch.sigmoid(differences @ truth)
        found = weigh_with_peers(
            truth[None],
            PEERS,
            lambda weights, d=differences: (d * weights).sum(-1),
            torch.zeros(count, dtype=torch.int64),
            preference=share,
            weight=torch.ones(count, dtype=torch.float64),
            loss="logistic",
        )
        distances.append(float((found[0] - truth).abs().sum()))
    assert distances[0] > 0.05
    assert distances[1] < 1e-3


def test_extreme_margins_and_many_peers_stay_on_the_simplex():
    parts = problem()
    parts["differences"] *= 1e6
    peers = torch.rand(
        3 * MOST_PEERS, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).softmax(-1)
    found = averaged(parts, peers)
    assert found.isfinite().all() and (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(found, averaged(parts, peers)), "the same peers are drawn each time"
