"""What data modules with several judges share: vote counts, a comparison of vote counts, distinct responses."""

from collections.abc import Iterable

from .record import Comparison, Response

__all__ = ["DistinctResponses", "majority_comparison", "vote_counts"]


def vote_counts(levels: Iterable[int], num_levels: int) -> tuple[float, ...]:
    """Histogram of votes, (num_levels,); of a single vote its one-hot vector.

    Args:
        levels: Every judge's category, in 0..num_levels - 1.
        num_levels: Categories.
    """
    counts = [0.0] * num_levels
    for place in levels:
        counts[place] += 1.0
    return tuple(counts)


def majority_comparison(
    first: int, second: int, votes: tuple[float, float, float], *, domain: str | None = None
) -> Comparison:
    """Comparison of two responses by vote counts, the majority's choice first; a tie counts half for each.

    Args:
        first: Index of a response.
        second: Index of another.
        votes: Counts for the first, for a tie, for the second; not all 0.
        domain: Domain of the judgement.

    Returns:
        A comparison whose votes are in the order chosen, tie, rejected. If both have as many votes, the order
        of the responses stays.
    """
    one, tie, two = votes
    if two > one:
        first, second, one, two = second, first, two, one
    share = (one + 0.5 * tie) / (one + tie + two)
    return Comparison(first, second, preference=share, domain=domain, votes=(one, tie, two))


class DistinctResponses:
    """Responses of a record of which several rows compare two: each text is one response.

    Attributes:
        responses: Them, in order of appearance.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.responses: list[Response] = []
        self._index: dict[str, int] = {}

    def pair(self, first: str, second: str) -> tuple[int, int]:
        """Indices of two texts; two of the same stay apart, to be dropped and counted like all such."""
        for text in (first, second):
            if text not in self._index:
                self._index[text] = len(self.responses)
                self.responses.append(Response(text))
        if first == second:
            self.responses.append(Response(second))
            return self._index[first], len(self.responses) - 1
        return self._index[first], self._index[second]
