"""Invented rollouts."""

import pytest
import torch

from pluralign.models.rollouts import Rollouts


@pytest.fixture
def prompts():
    """Three items, the second a dialogue."""
    return {
        "id": ["p1/a", "p1/b", "p2/a"],
        "item_key": torch.tensor([-(2**62), 7, 2**61 + 1]),
        "prompt": ["Name a colour.", [{"role": "user", "content": "Grüß dich."}], "Count."],
        "preference": [("tone.friendly",), ("tone.cold", "length.short"), ()],
        "wanted": torch.eye(3, dtype=torch.bool),
        "columns": {"user": ["ada", None, "bo"]},
        "input_ids": torch.arange(12).reshape(3, 4),
        "attention_mask": torch.ones(3, 4, dtype=torch.int64),
    }


@pytest.fixture
def rollouts(prompts):
    """Two responses to the first item, one to the second, two to the third; numbers of every size."""

    def build(**changes):
        lengths = torch.tensor([2, 5, 1, 3, 4])
        mask = torch.arange(5) < lengths[:, None]
        numbers = torch.randn(5, 5) * 10.0 ** torch.randint(-30, 30, (5, 5))
        values = {
            "prompts": prompts,
            "item": torch.tensor([0, 0, 1, 2, 2]),
            "tokens": torch.where(mask, torch.randint(3, 50_000, (5, 5)), 2),
            "lengths": lengths,
            "finished": torch.tensor([True, False, True, True, False]),
            "log_prob": torch.where(mask, numbers, 0.0),
            "texts": ["red", "bl\nue", "", "one two", "“three”"],
            "token_values": {
                "expert_log_prob": torch.where(mask[..., None], torch.randn(5, 5, 3), 0.0),
                "states": torch.where(mask[..., None, None], torch.randn(5, 5, 2, 2), 0.0).bfloat16(),
            },
            "rewards": {
                "kind": torch.randn(5),
                "tone.cold": torch.tensor([torch.nan, torch.nan, 1.5, torch.nan, torch.nan]),
            },
            "reference_rewards": {"kind": torch.randn(3)},
            "reference_log_prob": torch.where(mask, -numbers, 0.0),
            "reward": torch.randn(5),
        }
        values["token_values"]["expert_log_prob"][0, 0, 0] = -torch.inf
        return Rollouts(**{**values, **changes})

    return build
