"""Diversity against numbers worked out by hand."""

import math

import pytest

from pluralign.metrics import response_diversity


def test_numbers_of_three_responses():
    found = response_diversity([[1, 2, 1], [1, 2, 1], [3]], ["a", "a", "b"])
    assert (found.responses, found.items) == (3, 2)
    assert found.distinct_1 == pytest.approx(3 / 7)
    assert found.distinct_2 == pytest.approx(2 / 4)
    assert found.unique == 0.5 and found.overlap == 1
    assert (found.mean_length, found.median_length) == (pytest.approx(7 / 3), 3)
    assert (found.shortest, found.longest, found.reasons) == (1, 3, {})


def test_overlap_counts_how_often_a_token_is_in_both():
    found = response_diversity(["aab", "abb", "cde"], [0, 0, 0])
    assert found.overlap == pytest.approx((4 / 6 + 0 + 0) / 3)
    assert response_diversity(["ab", "ba"], [0, 0]).overlap == 1, "in any order"
    assert response_diversity(["", ""], [0, 0]).overlap == 1
    assert response_diversity(["", "a"], [0, 0]).overlap == 0


def test_items_count_alike_however_many_samples_they_have():
    found = response_diversity(["x", "x", "x", "x", "p", "q"], [0, 0, 0, 0, 1, 1])
    assert found.unique == pytest.approx((1 / 4 + 1) / 2)
    assert found.overlap == pytest.approx((1 + 0) / 2)


def test_what_is_not_known_says_why():
    empty = response_diversity([], [])
    assert math.isnan(empty.distinct_1) and math.isnan(empty.longest)
    assert set(empty.reasons.values()) == {"no responses"} and len(empty.reasons) == 8
    single = response_diversity([["a"], []], [0, 1])
    assert single.reasons == {
        "distinct_2": "no response has two tokens",
        "unique": "no item has two responses",
        "overlap": "no item has two responses",
    }
    assert single.distinct_1 == 1 and math.isnan(single.distinct_2)
    assert response_diversity([[]], [0]).reasons["distinct_1"] == "no response has a token"


def test_every_response_has_its_item():
    with pytest.raises(ValueError, match="got 2 responses and 1 items"):
        response_diversity([[1], [2]], [0])
