"""Helpers of the data modules with several judges: vote counts, comparisons of counts, distinct responses."""

import pytest

from pluralign.datamodules.records import DistinctResponses, majority_comparison, vote_counts


def test_counts():
    assert vote_counts([2], 4) == (0, 0, 1, 0)
    assert vote_counts([0, 2, 2], 3) == (1, 0, 2)
    assert vote_counts([], 2) == (0, 0)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((3, 1, 1), (4, 7, 0.7, (3, 1, 1))),
        ((0, 1, 2), (7, 4, 5 / 6, (2, 1, 0))),
        ((1, 3, 1), (4, 7, 0.5, (1, 3, 1))),
        ((0, 2, 0), (4, 7, 0.5, (0, 2, 0))),
    ],
)
def test_the_majoritys_choice_is_first(votes, expected):
    found = majority_comparison(4, 7, votes, domain="garden")
    assert (found.chosen, found.rejected, found.preference, found.votes) == expected
    assert found.domain == "garden"


def test_equal_texts_are_one_response_unless_they_are_compared():
    answers = DistinctResponses()
    assert [answers.pair(*pair) for pair in ("ab", "ca", "cc", "bc")] == [(0, 1), (2, 0), (2, 3), (1, 2)]
    assert [response.text for response in answers.responses] == ["a", "b", "c", "c"]
