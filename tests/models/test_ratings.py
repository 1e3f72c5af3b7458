"""What reward functions say, put together; and what they may not say."""

import math

import pytest
import torch

from pluralign.models._ratings import Ratings, combined, rate, reward_identity

DIMENSIONS = ("tone.warm", "tone.cold", "size.short")
BATCH = {
    "id": ["a", "b"],
    "prompt": ["first", "second"],
    "preference": [("tone.warm", "size.short"), ("tone.cold", "size.short")],
    "wanted": torch.tensor([[True, False, True], [False, True, True]]),
    "columns": {"user": ["ann", "ben"]},
}
ITEM = torch.tensor([0, 0, 1])
TEXTS = ["x", "xx", "xxx"]


def length(prompts, responses, columns):
    return [float(len(text)) for text in responses]


def test_a_dimension_is_asked_where_it_is_wanted_and_others_always():
    asked = []

    def watch(prompts, responses, columns):
        asked.append((list(prompts), list(responses), dict(columns)))
        return torch.ones(len(responses), dtype=torch.float64)

    ratings = rate({"tone.cold": watch, "length": length}, BATCH, ITEM, TEXTS, DIMENSIONS)
    assert asked == [(["second"], ["xxx"], {"user": ["ben"], "preference": [BATCH["preference"][1]]})]
    assert ratings.counts.tolist() == [[False, True], [False, True], [True, True]]
    assert ratings.scores[2].tolist() == [1.0, 3.0] and ratings.scores[0, 0].isnan()
    assert combined(ratings, None).tolist() == [1.0, 2.0, 2.0]


def test_relative_to_a_reference_by_hand():
    scores = torch.tensor([[1.2, -0.3, 0.5]])
    ratings = Ratings(scores, torch.ones(1, 3, dtype=torch.bool))
    assert combined(ratings, torch.zeros(1, 3)).item() == pytest.approx(0.6055139, abs=1e-6)
    assert combined(ratings, scores).item() == 0.5
    shifted = Ratings(scores + 40, ratings.counts)
    assert combined(shifted, torch.full((1, 3), 40.0)).item() == pytest.approx(0.6055139, abs=1e-5)
    part = Ratings(torch.tensor([[1.2, math.nan, 0.5]]), torch.tensor([[True, False, True]]))
    assert combined(part, torch.zeros(1, 3)).item() == pytest.approx((0.7685248 + 0.6224593) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ([1.0, math.nan, 2.0], ValueError, "reward 'r' gives nan to a response to 'a'"),
        ([1.0, 2.0, math.inf], ValueError, "reward 'r' gives inf to a response to 'b'"),
        ([1.0], ValueError, "must give 3 numbers"),
        ("good", TypeError, "must give a number for each response"),
        (None, TypeError, "must give a number for each response"),
    ],
)
def test_what_a_reward_may_not_say(answer, error, words):
    with pytest.raises(error, match=words):
        rate({"r": lambda prompts, responses, columns: answer}, BATCH, ITEM, TEXTS, DIMENSIONS)


def test_an_item_that_nothing_counts_for_is_refused():
    with pytest.raises(ValueError, match="no reward counts for an item"):
        combined(rate({"tone.cold": length}, BATCH, ITEM, TEXTS, DIMENSIONS), None)


def counts(letter, scale=1.0):
    def reward(prompts, responses, columns):
        return [scale * text.count(letter) for text in responses if text not in {"", "-"}]

    return reward


def test_rewards_that_say_something_else_have_another_identity():
    one = reward_identity(counts("a"))
    assert one == reward_identity(counts("a")) and one.startswith(f"{__name__}.counts.<locals>.reward ")
    others = [
        counts("b"),
        counts("a", 2.0),
        length,
        lambda *given: [0.0],
        lambda *given: [1.0],
        torch.nn.Identity(),
    ]
    assert len({one, *map(reward_identity, others)}) == 7

    class Told:
        identity = "the third version"

    assert reward_identity(Told()) == "the third version"
