"""How far annotators agree with one another, and how many of their judgements one reward for everybody can be right about."""

from typing import NamedTuple

import torch
from torch import Tensor

from .crowd import check_votes

__all__ = ["PairAgreement", "VoteAgreement", "best_accuracy", "pair_agreement", "vote_agreement"]

LARGEST_CYCLE = 12
"""Responses whose best order is searched for; 2 ** 12 sets are tried."""


class PairAgreement(NamedTuple):
    """What judgements of pairs say of each other.

    A judgement is on the side of the first response if its share is above a half, of the second if it is below, and a
    tie at a half.

    Attributes:
        judgements: Judgements, ties included.
        ties: Of these, ties; all below is without them.
        pairs: Different pairs of responses that were judged.
        judged_again: Pairs with two judgements or more.
        disputed: Of these, pairs with judgements on both sides.
        two_agree: How often two judgements of one pair, drawn at random, are on one side: mean over the pairs judged
            again, in [0, 1]; NaN if there are none. A half is what tossing coins would give.
        minority: Where a judgement is a share of several people: mean share of those on its losing side, in [0, 0.5);
            NaN if every judgement is unanimous.
        repeated: Judgements in which a user says again what he or she said of the pair before.
        contradicted: Pairs of which one user said both; each user's count. Judgements of unknown users are in neither.
    """

    judgements: int
    ties: int
    pairs: int
    judged_again: int
    disputed: int
    two_agree: float
    minority: float
    repeated: int
    contradicted: int


class VoteAgreement(NamedTuple):
    """What votes of categories say of each other.

    Attributes:
        items: Items that somebody voted on.
        voted_again: Of these, items with two votes or more; the rest is about them.
        unanimous: Items on which all votes are alike.
        two_agree: How often two votes on one item, drawn at random, are alike, in [0, 1]; NaN without such items.
        majority: Share of votes for the item's commonest category, in [0, 1]: what one label an item reaches at most;
            NaN without such items.
    """

    items: int
    voted_again: int
    unanimous: int
    two_agree: float
    majority: float


def pair_agreement(record: Tensor, comparisons: Tensor, share: Tensor, user: Tensor) -> PairAgreement:
    """How far judgements of the same pairs agree.

    Args:
        record: Record of each judgement, (J,) int64.
        comparisons: Places of first and second in the record, (J, 2) int64.
        share: Share preferring the first, (J,) in [0, 1].
        user: Who judged, (J,) int64 >= 0; -1 for unknown.

    Returns:
        Counts and shares; plain numbers.
    """
    judged, wins = _pairs(record, comparisons, share)
    decided = share != 0.5
    losing = torch.minimum(share, 1 - share)[decided].double()
    both = wins.sum(1)
    again = both > 1
    known = decided & (user >= 0)
    _, by_user = _pairs(record[known], comparisons[known], share[known], user[known])
    agree = (wins * (wins - 1)).sum(1) / (both * (both - 1))
    return PairAgreement(
        judgements=len(share),
        ties=int((~decided).sum()),
        pairs=len(judged),
        judged_again=int(again.sum()),
        disputed=int((wins > 0).all(1).sum()),
        two_agree=float(agree[again].mean()),
        minority=float(losing.mean()) if bool((losing > 0).any()) else float("nan"),
        repeated=int((by_user - 1).clamp_min(0).sum()),
        contradicted=int((by_user > 0).all(1).sum()),
    )


def best_accuracy(record: Tensor, comparisons: Tensor, share: Tensor, user: Tensor | None = None) -> float:
    """Largest accuracy that any reward of a response can have on judgements: what disagreement leaves.

    A reward is on one side of every pair, and orders the responses of a record: it is wrong about the minority of each
    pair, and somewhere in each cycle of majorities. Best orders of cycles are searched for among up to ``LARGEST_CYCLE``
    responses; of larger ones the pairs' minorities alone are counted, so that the result is an upper bound.

    With few judgements of each pair it says little: nobody contradicts a judgement that is the only one of its pair.

    Args:
        record: Record of each judgement, (J,) int64.
        comparisons: Places of first and second in the record, (J, 2) int64.
        share: Share preferring the first, (J,) in [0, 1]; ties count nowhere.
        user: Who judged, (J,) int64. If given, every user has a reward of his or her own.

    Returns:
        In [0, 1]; NaN if nothing was decided.
    """
    pairs, wins = _pairs(record, comparisons, share, user)
    if not len(pairs):
        return float("nan")
    wrong = wins.amin(1).sum() + _wrong_in_cycles(pairs, wins)
    return 1 - float(wrong) / float(wins.sum())


def vote_agreement(votes: Tensor) -> VoteAgreement:
    """How far votes on the same items agree.

    Args:
        votes: Counts of every category, (items, C) float >= 0.

    Returns:
        Counts and shares; plain numbers.

    Raises:
        ValueError: If votes are negative or not finite.
    """
    votes = votes.double()
    check_votes(votes)
    number = votes.sum(1)
    again = number > 1
    votes, several = votes[again], number[again]
    alike = (votes * (votes - 1)).clamp_min(0).sum(1) / (several * (several - 1))
    majority = votes.amax(1) / several if len(votes) else several
    return VoteAgreement(
        items=int((number > 0).sum()),
        voted_again=len(votes),
        unanimous=int((majority == 1).sum()),
        two_agree=float(alike.mean()),
        majority=float(majority.mean()),
    )


def _pairs(
    record: Tensor, comparisons: Tensor, share: Tensor, user: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pairs that were decided at least once, and how often each side won.

    Returns:
        Group, first and second response of each pair, (pairs, 3) int64, where groups are records, or records of a user;
        and the wins of the two, (pairs, 2) float64.
    """
    decided = share != 0.5
    record, comparisons, share = record[decided], comparisons[decided], share[decided]
    group = record
    if user is not None:
        group = torch.stack([record, user[decided]], dim=1).unique(dim=0, return_inverse=True)[1]
    low, high = comparisons.aminmax(dim=1)
    first_won = (share > 0.5) == (comparisons[:, 0] == low)
    pairs, place = torch.stack([group, low, high], dim=1).unique(dim=0, return_inverse=True)
    wins = torch.zeros(len(pairs), 2, dtype=torch.float64)
    return pairs, wins.index_put((place, (~first_won).long()), wins.new_ones(()), accumulate=True)


def _wrong_in_cycles(pairs: Tensor, wins: Tensor) -> float:
    """Judgements beyond the pairs' minorities that any order of the responses is wrong about."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    gap = wins[:, 0] - wins[:, 1]
    decided = gap != 0  # between equals any order will do
    pairs, gap = pairs[decided], gap[decided]
    ends = torch.cat([pairs[:, [0, 1]], pairs[:, [0, 2]]]).unique(dim=0, return_inverse=True)[1]
    left, right = ends.view(2, -1)
    winner, loser = torch.where(gap > 0, left, right), torch.where(gap > 0, right, left)
    size = int(ends.max()) + 1 if len(ends) else 0
    graph = coo_array((torch.ones(len(gap)).numpy(), (winner.numpy(), loser.numpy())), shape=(size, size))
    if not size:
        return 0.0
    part = torch.as_tensor(connected_components(graph, connection="strong")[1], dtype=torch.int64)
    inside = part[winner] == part[loser]
    winner, loser, gap, part = winner[inside], loser[inside], gap[inside].abs(), part[winner[inside]]
    order = part.argsort(stable=True)
    sizes = part.unique(return_counts=True)[1].tolist()
    edges = (values[order].split(sizes) for values in (winner, loser, gap))
    return sum(_least_wrong(*cycle) for cycle in zip(*edges, strict=True))


def _least_wrong(winner: Tensor, loser: Tensor, gap: Tensor) -> float:
    """Least sum of gaps against an order of the responses of one knot of cycles; 0 if there are too many to try.

    Sets of responses grow from the top of the order: adding one below a set is wrong about its majorities over those
    in the set.
    """
    nodes, places = torch.cat([winner, loser]).unique(return_inverse=True)
    number = len(nodes)
    if number > LARGEST_CYCLE:
        return 0.0
    first, second = places.view(2, -1)
    over = torch.zeros(number, number, dtype=torch.float64).index_put((first, second), gap)
    members = (torch.arange(1 << number)[:, None] >> torch.arange(number)) & 1
    added = members.double() @ over.T  # what adding each response below each set is wrong about
    least = torch.full((1 << number,), torch.inf, dtype=torch.float64)
    least[0] = 0.0
    for size in range(number):
        sets = (members.sum(1) == size).nonzero().squeeze(1)
        for response in range(number):
            outside = sets[members[sets, response] == 0]
            grown = outside | (1 << response)
            least[grown] = torch.minimum(least[grown], least[outside] + added[outside, response])
    return float(least[-1])
