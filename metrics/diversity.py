"""How different responses are from one another, and how long: what a policy that collapsed onto one answer lacks."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import fmean, median
from typing import NamedTuple

__all__ = ["Diversity", "response_diversity"]


class Diversity(NamedTuple):
    """How different responses are. Values that nothing is known of are NaN, and ``reasons`` says why.

    Attributes:
        responses: Responses.
        items: Different items that they answer.
        distinct_1: Different tokens over all tokens, of all responses together, in (0, 1].
        distinct_2: Different pairs of neighbouring tokens over all such pairs, in (0, 1].
        unique: Different responses to an item over its responses, mean over items with two or more, in (0, 1].
        overlap: How many tokens two responses to an item share, in [0, 1]: twice the tokens in common, however often each is in
            both, over the tokens of both; 1 for the same tokens in any order. Mean over the pairs of an item, then over items.
        mean_length: Tokens of a response, mean.
        median_length: Median.
        shortest: Fewest.
        longest: Most.
        reasons: Why a value is NaN, by its name.
    """

    responses: int
    items: int
    distinct_1: float
    distinct_2: float
    unique: float
    overlap: float
    mean_length: float
    median_length: float
    shortest: float
    longest: float
    reasons: Mapping[str, str]


def response_diversity(responses: Sequence[Sequence[Hashable]], item: Sequence[Hashable]) -> Diversity:
    """Measure how different responses are, in tokens or words.

    ``distinct_1`` and ``distinct_2`` fall as there is more text: compare them over as many responses of like length.

    Args:
        responses: Tokens or words of each response, S of them; a response may be empty.
        item: What each responds to, S of them: prompt and preference.

    Returns:
        Plain numbers.

    Raises:
        ValueError: If there are not as many responses as items.

    Source:
        J. Li et al., *A Diversity-Promoting Objective Function for Neural Conversation Models*, NAACL 2016, section 5
        (distinct-1 and distinct-2, numbers of different n-grams scaled by the number of words). Departures: pairs are scaled
        by the number of pairs, so that 1 is reached; the others are ours.
    """
    if len(responses) != len(item):
        raise ValueError(f"every response has its item; got {len(responses)} responses and {len(item)} items")
    by_item: dict[Hashable, list[tuple[Hashable, ...]]] = {}
    for response, of in zip(responses, item, strict=True):
        by_item.setdefault(of, []).append(tuple(response))
    several = [answers for answers in by_item.values() if len(answers) > 1]
    lengths = [len(response) for response in responses]
    none = "no responses" if not responses else ""
    tokens = none or "no response has a token"
    pairs = none or "no response has two tokens"
    samples = none or "no item has two responses"
    values = {
        "distinct_1": (_different(token for response in responses for token in response), tokens),
        "distinct_2": (_different(pair for response in responses for pair in pairwise(response)), pairs),
        "unique": (_mean([len(set(answers)) / len(answers) for answers in several]), samples),
        "overlap": (_mean([_overlap(answers) for answers in several]), samples),
        "mean_length": (_mean(lengths), none),
        "median_length": (float(median(lengths)) if lengths else None, none),
        "shortest": (float(min(lengths)) if lengths else None, none),
        "longest": (float(max(lengths)) if lengths else None, none),
    }
    return Diversity(
        responses=len(responses),
        items=len(by_item),
        **{name: float("nan") if value is None else value for name, (value, _) in values.items()},
        reasons={name: reason for name, (value, reason) in values.items() if value is None},
    )


def _different(things: Iterable[Hashable]) -> float | None:
    """Share of different ones."""
    counts = Counter(things)
    return len(counts) / counts.total() if counts else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _overlap(answers: Sequence[tuple[Hashable, ...]]) -> float:
    """Mean share of tokens that two of these have in common."""
    counts = [Counter(answer) for answer in answers]
    shares = []
    for one, other in combinations(counts, 2):
        total = one.total() + other.total()
        shares.append(2 * (one & other).total() / total if total else 1.0)
    return fmean(shares)
