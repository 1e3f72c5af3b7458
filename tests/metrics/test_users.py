"""One summary per user for both who ask: the callback and the few-shot curve."""

import pytest
import torch

from pluralign.metrics import TIE, user_margin_accuracy, user_summary

NAMES = ["ann", "bob", "eve", "tim"]
GROUPS = {"ann": "red", "bob": "blue", "eve": "red", "nobody": "green"}
USER = torch.tensor([0, 0, 0, 1, 2, 2, 3, 0])
MARGIN = torch.tensor([1.0, -1.0, 2.0, 0.0, -0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
SHARE = torch.tensor([1.0, 1.0, 0.8, 1.0, 0.25, 1.0, 0.5, 0.5], dtype=torch.float64)


def test_both_forms_agree():
    outcome = torch.tensor([1, 0, 1, 0, 1, 1, TIE, TIE])
    settings = {"names": NAMES, "group_of_user": GROUPS, "num_resamples": 500, "seed": 3}
    summary = user_summary(USER, outcome, **settings)
    accuracy = user_margin_accuracy(USER, MARGIN, SHARE, **settings)
    assert accuracy.of_user == {name: value for name, (value, _) in summary.of_user.items()}
    assert accuracy.of_user == {"ann": pytest.approx(2 / 3), "bob": 0.0, "eve": 1.0}
    assert (accuracy.num_users, accuracy.num_judgements, accuracy.num_ties) == (3, 6, 2)
    assert (summary.num_users, summary.num_judgements, summary.num_ties) == (3, 6, 2)
    assert accuracy.accuracy == summary.accuracy.value == 4 / 6
    interval = (accuracy.user_accuracy, accuracy.user_accuracy_low, accuracy.user_accuracy_high)
    assert tuple(summary.user_accuracy) == pytest.approx(interval, abs=1e-12)
    for group, value in accuracy.group_accuracy.items():
        assert summary.groups[group].value == pytest.approx(value, abs=1e-12)
    assert accuracy.worst_group == summary.worst_group == "blue"
    assert accuracy.tied_scores == pytest.approx(1 / 6)


def test_judgements_of_nobody_are_counted_and_nothing_is_none():
    settings = {"names": NAMES, "group_of_user": {}, "num_resamples": 100, "seed": 0}
    summary = user_summary(torch.tensor([-1, 0, -1]), torch.tensor([1, 1, TIE]), **settings)
    assert (summary.num_anonymous, summary.num_judgements, summary.num_ties) == (2, 1, 0)
    assert (summary.groups, summary.num_without_group, summary.worst_group) == ({}, 0, None)
    assert user_summary(torch.tensor([-1, 0]), torch.tensor([1, TIE]), **settings) is None
    with pytest.raises(ValueError, match="none of 1 judgements is decided"):
        user_margin_accuracy(
            torch.tensor([0]), torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5).double(), **settings
        )
    with pytest.raises(ValueError, match="user_id must be below 4, the number of users; got 4"):
        user_summary(torch.tensor([4]), torch.tensor([1]), **settings)


def test_intervals_resample_users():
    user = torch.arange(100).repeat_interleave(torch.arange(100) % 3 + 1)
    outcome = (user % 4 > 0).long()
    groups = {str(i): "odd" if i % 2 else "even" for i in range(100)}
    found = user_summary(
        user, outcome, names=[str(i) for i in range(100)], group_of_user=groups, num_resamples=4000, seed=0
    )
    assert found.user_accuracy.value == 0.75
    spread = 1.96 * (0.75 * 0.25 / 100) ** 0.5
    assert found.user_accuracy.low == pytest.approx(0.75 - spread, abs=0.01)
    assert found.user_accuracy.high == pytest.approx(0.75 + spread, abs=0.01)
    assert found.accuracy.high - found.accuracy.low > 0.9 * 2 * spread, "of judgements, but over users"
    assert found.groups["odd"] == (1.0, 1.0, 1.0)
    spread = 1.96 * (0.5 * 0.5 / 50) ** 0.5
    assert found.groups["even"].low == pytest.approx(0.5 - spread, abs=0.02)
