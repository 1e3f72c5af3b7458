"""How far annotators agree: against counting by hand and against trying every order."""

from itertools import combinations, permutations
from math import isnan

import pytest
import torch

from pluralign.metrics import best_accuracy, pair_agreement, vote_agreement


def judgements(*rows):
    """(record, first, second, share, user) of every judgement as the functions take them."""
    record, first, second, share, user = zip(*rows, strict=True)
    return (
        torch.tensor(record),
        torch.tensor([first, second]).T,
        torch.tensor(share, dtype=torch.float64),
        torch.tensor(user),
    )


def tried_orders(record, comparisons, share, groups):
    """Best accuracy by trying every order of every group's responses."""
    right = 0
    for group in set(groups):
        chosen = [i for i, each in enumerate(groups) if each == group and share[i] != 0.5]
        sides = [comparisons[i].tolist() if share[i] > 0.5 else comparisons[i].tolist()[::-1] for i in chosen]
        nodes = sorted({node for side in sides for node in side})
        right += max(
            sum(order.index(winner) < order.index(loser) for winner, loser in sides)
            for order in permutations(nodes)
        )
    return right / int((share != 0.5).sum())


class TestAgreement:
    def test_counts_of_a_small_crowd(self):
        found = pair_agreement(
            *judgements(
                (0, 0, 1, 1.0, 0),
                (0, 1, 0, 0.0, 1),  # the same side from the other end
                (0, 1, 0, 0.9, 2),  # against both
                (0, 0, 1, 0.5, 3),  # a tie
                (1, 0, 1, 1.0, 0),  # another record's pair of equal places
                (1, 0, 1, 1.0, 0),  # repeated
                (2, 0, 1, 1.0, 4),
                (2, 0, 1, 0.0, 4),  # contradicted
                (3, 0, 1, 1.0, -1),
                (3, 1, 0, 1.0, -1),  # nobody knows whether it was the same one
            )
        )
        assert found._replace(two_agree=0.0, minority=0.0) == (10, 1, 4, 4, 3, 0.0, 0.0, 1, 1)
        assert found.minority == pytest.approx(0.1 / 9)
        assert found.two_agree == pytest.approx((1 / 3 + 1 + 0 + 0) / 4)

    def test_one_judgement_a_pair_says_nothing_of_agreement(self):
        found = pair_agreement(*judgements((0, 0, 1, 1.0, 0), (0, 1, 2, 1.0, 0)))
        assert found.judged_again == 0
        assert isnan(found.two_agree)
        assert isnan(found.minority)

    def test_without_judgements(self):
        none = (torch.empty(0, dtype=torch.int64), torch.empty(0, 2, dtype=torch.int64))
        none = (*none, torch.empty(0), torch.empty(0, dtype=torch.int64))
        assert pair_agreement(*none)[:5] == (0, 0, 0, 0, 0)
        assert isnan(best_accuracy(*none[:3]))

    def test_coins_agree_half_of_the_time(self):
        generator = torch.Generator().manual_seed(0)
        record = torch.arange(4000).repeat_interleave(5)
        comparisons = torch.tensor([[0, 1]]).expand(len(record), 2)
        share = torch.randint(2, (len(record),), generator=generator).double()
        found = pair_agreement(record, comparisons, share, torch.full_like(record, -1))
        assert found.two_agree == pytest.approx(0.5, abs=0.01)


class TestBestAccuracy:
    @pytest.mark.parametrize("seed", range(30))
    def test_equals_trying_every_order(self, seed):
        generator = torch.Generator().manual_seed(seed)
        number = 40
        record = torch.randint(3, (number,), generator=generator)
        pairs = torch.tensor(list(combinations(range(5), 2)))
        comparisons = pairs[torch.randint(len(pairs), (number,), generator=generator)]
        share = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)[
            torch.randint(4, (number,), generator=generator)
        ]
        user = torch.randint(-1, 3, (number,), generator=generator)
        everybody = tried_orders(record, comparisons, share, record.tolist())
        each = tried_orders(
            record, comparisons, share, list(zip(record.tolist(), user.tolist(), strict=True))
        )
        assert best_accuracy(record, comparisons, share) == pytest.approx(everybody, abs=1e-12)
        assert best_accuracy(record, comparisons, share, user) == pytest.approx(each, abs=1e-12)
        assert each >= everybody

    def test_a_cycle_costs_its_weakest_majority(self):
        rows = [(0, 0, 1)] * 3 + [(0, 1, 2)] * 2 + [(0, 2, 0)] * 4
        record, comparisons, share, _ = judgements(*((*row, 1.0, 0) for row in rows))
        assert best_accuracy(record, comparisons, share) == pytest.approx(1 - 2 / 9)

    def test_large_cycles_are_bounded_from_above(self):
        nodes = torch.arange(20)
        comparisons = torch.stack([nodes, (nodes + 1) % 20], dim=1)
        assert best_accuracy(torch.zeros(20, dtype=torch.int64), comparisons, torch.ones(20)) == 1.0

    def test_one_judgement_a_pair_can_all_be_right(self):
        assert best_accuracy(*judgements((0, 0, 1, 1.0, 0), (1, 0, 1, 0.0, 1))[:3]) == 1.0


class TestVotes:
    def test_by_hand(self):
        found = vote_agreement(torch.tensor([[3, 1, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]]))
        assert found[:3] == (3, 2, 1)
        assert found.two_agree == pytest.approx((3 * 2 / (4 * 3) + 1) / 2)
        assert found.majority == pytest.approx((0.75 + 1) / 2)

    def test_nobody_voted_twice(self):
        found = vote_agreement(torch.eye(3))
        assert found[:3] == (3, 0, 0)
        assert isnan(found.majority)
