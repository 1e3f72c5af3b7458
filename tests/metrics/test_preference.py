import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.metrics import PreferenceMetrics


def measured(margins, shares, rewards=(0.0,)):
    metric = PreferenceMetrics()
    chosen = torch.tensor(margins)
    metric.update(
        {"chosen": chosen, "rejected": torch.zeros_like(chosen), "reward": torch.tensor(rewards)},
        {"preference": torch.tensor(shares)},
    )
    return {name: float(value) for name, value in metric.compute().items()}


def by_loops(margins, shares):
    right = tied = decided = 0
    log_loss = brier = margin_sum = 0.0
    bins = [[0, 0.0, 0.0] for _ in range(15)]
    for m, s in zip(margins, shares, strict=True):
        p = 1 / (1 + math.exp(-m))
        if s != 0.5:
            decided += 1
            right += (m > 0) == (s > 0.5) and m != 0
            tied += m == 0
            margin_sum += m if s > 0.5 else -m
        log_loss -= s * math.log(p) + (1 - s) * math.log(1 - p)
        brier += (p - s) ** 2
        confidence, agreed = (p, s) if p >= 0.5 else (1 - p, 1 - s)
        place = min(14, int((confidence - 0.5) * 30))
        bins[place] = [bins[place][0] + 1, bins[place][1] + confidence, bins[place][2] + agreed]
    n = len(margins)
    return {
        "accuracy": right / decided,
        "tied_scores": tied / decided,
        "tied_labels": 1 - decided / n,
        "log_loss": log_loss / n,
        "brier": brier / n,
        "calibration_error": sum(abs(c - a) for _, c, a in bins) / n,
        "margin": margin_sum / decided,
    }


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-8, 8, width=32), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])),
        min_size=1,
        max_size=30,
    )
)
def test_values_match_plain_loops(pairs):
    margins, shares = (list(part) for part in zip(*pairs, strict=True))
    margins, shares = [*margins, 0.25], [*shares, 1.0]  # at least one decided comparison
    found = measured(margins, shares)
    # float32 sums of a sigmoid land in the same bin as Python's unless they sit on an edge
    for name, value in by_loops(margins, shares).items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_equal_scores_are_not_right():
    found = measured([0.0, 0.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0])
    assert found["accuracy"] == 0.25
    assert found["tied_scores"] == 0.5


def test_tied_labels_do_not_enter_the_accuracy():
    found = measured([1.0, 5.0, -5.0], [1.0, 0.5, 0.5])
    assert found["accuracy"] == 1.0
    assert found["tied_labels"] == pytest.approx(2 / 3)
    assert found["margin"] == 1.0


def test_extreme_margins_stay_finite():
    found = measured([1e4, -1e4], [0.0, 1.0])
    assert found["log_loss"] == pytest.approx(1e4)
    assert found["accuracy"] == 0.0


def test_reward_mean_and_standard_deviation():
    found = measured([1.0], [1.0], rewards=(1.0, 2.0, 6.0))
    assert found["reward_mean"] == pytest.approx(3.0)
    assert found["reward_std"] == pytest.approx(math.sqrt(14 / 3), rel=1e-6)


def test_ragged_batches_sum_as_one():
    torch.manual_seed(1)
    margins, shares, rewards = torch.randn(57), torch.rand(57), torch.randn(31)
    whole, parts = PreferenceMetrics(), PreferenceMetrics()

    def add(metric, chosen, share, reward):
        metric.update(
            {"chosen": chosen, "rejected": torch.zeros_like(chosen), "reward": reward}, {"preference": share}
        )

    add(whole, margins, shares, rewards)
    for (a, b), (c, d) in zip([(0, 1), (1, 40), (40, 57)], [(0, 3), (3, 4), (4, 31)], strict=True):
        add(parts, margins[a:b], shares[a:b], rewards[c:d])
    for name, value in whole.compute().items():
        assert float(parts.compute()[name]) == pytest.approx(float(value), abs=1e-6, nan_ok=True), name


def test_longer_wins_is_the_accuracy_of_preferring_length():
    metric = PreferenceMetrics()
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 3]])
    metric.update(
        {"chosen": torch.ones(4), "rejected": torch.zeros(4)},
        {
            "comparisons": pairs,
            "preference": torch.tensor([1.0, 1.0, 0.5, 0.2]),
            "response_length": torch.tensor([9, 4, 7, 9]),
        },
    )
    # longer is right, wrong, (a tie among annotators), equal
    assert float(metric.compute()["longer_wins"]) == pytest.approx(1.5 / 3)


def test_nothing_counted_is_not_a_number():
    metric = PreferenceMetrics()
    metric.update({}, {})
    values = metric.compute()
    assert all(bool(value.isnan()) for value in values.values())


def with_shares(preference, margins, shares):
    metric = PreferenceMetrics()
    chosen = torch.tensor(margins)
    output = {
        "chosen": chosen,
        "rejected": torch.zeros_like(chosen),
        "preference": torch.tensor(preference),
    }
    metric.update(output, {"preference": torch.tensor(shares)})
    return {name: float(value) for name, value in metric.compute().items()}


def test_a_module_s_own_share_goes_before_the_sigmoid_of_the_margin():
    predicted, shares = [0.75, 0.4, 0.9, 0.5], [1.0, 0.0, 0.25, 0.5]
    found = with_shares(predicted, [2.0, 3.0, 1.0, 0.0], shares)
    assert found["accuracy"] == pytest.approx(2 / 3)  # right, right (against its margin), wrong, a tie
    assert found["tied_scores"] == 0
    assert found["tied_labels"] == 0.25
    assert found["margin"] == pytest.approx((2.0 - 3.0 - 1.0) / 3), "of the rewards, as without shares"
    log_loss = -(math.log(0.75) + math.log(0.6) + 0.25 * math.log(0.9) + 0.75 * math.log(0.1) + math.log(0.5)) / 4  # fmt: skip
    assert found["log_loss"] == pytest.approx(log_loss, rel=1e-6)
    assert found["brier"] == pytest.approx((0.0625 + 0.16 + 0.4225 + 0) / 4, rel=1e-6)
    gaps = [0.75 - 1, 0.6 - 1, 0.9 - 0.25, 0.5 - 0.5]  # each confidence in a bin of its own
    assert found["calibration_error"] == pytest.approx(sum(map(abs, gaps)) / 4, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-8, 8, width=32), st.sampled_from([0.0, 0.2, 0.5, 1.0])), min_size=1))
def test_the_sigmoid_of_the_margin_as_a_share_changes_nothing(pairs):
    margins, shares = (list(part) for part in zip(*pairs, strict=True))
    predicted = torch.tensor(margins, dtype=torch.float64).sigmoid().tolist()
    plain, own = measured(margins, shares), with_shares(predicted, margins, shares)
    for name in ("tied_labels", "margin", "log_loss", "brier"):
        # A share in float32 tells odds of e^8 to 1 no better than to four digits.
        assert own[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-5, nan_ok=True), name


def test_a_share_of_a_half_is_a_tie_and_not_right():
    found = with_shares([0.5, 0.5], [1.0, -1.0], [1.0, 0.0])
    assert (found["accuracy"], found["tied_scores"]) == (0.0, 1.0)


def test_certain_shares_stay_finite():
    found = with_shares([0.0, 1.0], [0.0, 0.0], [1.0, 1.0])
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx(-math.log(1e-12) / 2, rel=1e-3)
    assert found["brier"] == pytest.approx(0.5)


def _batches(number):
    for i in range(number):
        pairs = torch.arange(6).reshape(3, 2)
        output = {"chosen": torch.arange(3.0) + i, "rejected": torch.ones(3), "reward": torch.arange(6.0)}
        yield output, {"comparisons": pairs, "response_length": torch.arange(6) + 1}


def test_what_waits_to_be_counted_goes_along_when_metrics_are_merged():
    whole, first, second = PreferenceMetrics(), PreferenceMetrics(), PreferenceMetrics()
    for i, (output, batch) in enumerate(_batches(5)):
        whole.update(output, batch)
        (first if i < 3 else second).update(output, batch)
    first.merge_state(second)
    values = first.compute()
    assert float(first.sums[0]) == 15
    assert all(torch.equal(values[name], value) for name, value in whole.compute().items())


def test_what_waits_to_be_counted_moves_with_the_metric():
    metric = PreferenceMetrics()
    for output, batch in _batches(3):
        metric.update(output, batch)
    metric.to("meta")
    assert {value.device.type for value in metric.sums_by_name().values() if value.ndim} == {"meta"}
