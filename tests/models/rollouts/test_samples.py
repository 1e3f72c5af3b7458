"""Rollouts: parts of them, and what is refused."""

import pytest
import torch


def test_a_part_has_all_responses_of_its_items_and_no_others(rollouts):
    whole = rollouts()
    part = whole.part([0, 2])
    assert part.item.tolist() == [0, 0, 1, 1] and part.prompts["id"] == ["p1/a", "p2/a"]
    assert part.prompts["columns"] == {"user": ["ada", "bo"]}
    assert part.prompts["preference"] == [("tone.friendly",), ()]
    assert torch.equal(part.prompts["input_ids"], whole.prompts["input_ids"][[0, 2]])
    assert part.texts == ["red", "bl\nue", "one two", "“three”"]
    assert torch.equal(part.tokens, whole.tokens[[0, 1, 3, 4]])
    assert torch.equal(part.token_values["states"], whole.token_values["states"][[0, 1, 3, 4]])
    assert torch.equal(part.reference_rewards["kind"], whole.reference_rewards["kind"][[0, 2]])
    assert torch.equal(part.reward, whole.reward[[0, 1, 3, 4]])


def test_a_part_is_as_short_as_its_longest_response(rollouts):
    part = rollouts().part([1])
    assert part.tokens.shape == part.log_prob.shape == part.reference_log_prob.shape == (1, 1)
    assert part.token_values["expert_log_prob"].shape == (1, 1, 3)
    assert len(part) == part.num_items == 1


def test_one_response_of_each_item_can_be_chosen(rollouts):
    whole = rollouts(reference_log_prob=None, reward=None)
    chosen = whole.samples(torch.tensor([0, 2, 4]))
    assert chosen.texts == ["red", "", "“three”"] and chosen.item.tolist() == [0, 1, 2]
    assert chosen.tokens.shape == (3, 4) and chosen.num_items == 3
    assert chosen.reference_log_prob is None and chosen.reward is None


def test_the_mask_is_of_the_responses_own_tokens(rollouts):
    assert rollouts().mask.sum(1).tolist() == [2, 5, 1, 3, 4]


def test_moving_takes_everything_along(rollouts):
    moved = rollouts().to("meta")
    assert moved.tokens.is_meta and moved.token_values["states"].is_meta and moved.prompts["item_key"].is_meta
    assert moved.prompts["id"] == ["p1/a", "p1/b", "p2/a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_prob": torch.zeros(5, 4)}, r"log_prob must be \(5, 5\), got \(5, 4\)"),
        ({"texts": ["one"]}, "5 responses have 1 texts"),
        ({"token_values": {"w": torch.zeros(5)}}, r"token_values\['w'\] must be \(5, 5\), got \(5,\)"),
        ({"reference_rewards": {"kind": torch.zeros(5)}}, r"reference_rewards\['kind'\] must be \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(rollouts, changes, message):
    with pytest.raises(ValueError, match=message):
        rollouts(**changes)
