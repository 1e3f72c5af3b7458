"""What a treatment makes of labels: losses of a treated batch against figures worked out by hand."""

import math

import numpy as np
import pytest
import torch

from pluralign.datamodules import TreatmentConfig
from pluralign.datamodules.tokens import TokenRow, TreatedComparisons
from pluralign.datamodules.treatments import NO_RULE, treated_batch
from pluralign.losses import bradley_terry_loss
from pluralign.metrics import PreferenceMetrics

NONE = np.empty(0, np.int32)
GAP = 0.5
"""What the first side is scored above the second."""


def treated(rules, numbers, strength, batch=None, **settings):
    """A batch whose comparisons are each of the responses 2i and 2i + 1, treated by the rules of those numbers."""
    count = len(numbers)
    decided = TreatedComparisons(np.asarray(numbers, np.int16), np.asarray(strength, np.float32))
    row = TokenRow("r", NONE, NONE, NONE, NONE, NONE, np.empty(0, np.float32), {}, treated=decided)
    given = {
        "comparisons": torch.arange(2 * count).reshape(count, 2),
        "preference": torch.ones(count),
        "strength": torch.full((count,), 99.0),
        **(batch or {}),
    }
    return treated_batch(given, [row], TreatmentConfig(rules=rules, **settings))


def loss(rule, strength, gap=GAP, number=0, **settings):
    batch = treated([rule], [number], [strength], **settings)
    chosen, rejected = torch.tensor([gap, 0.0])[batch["comparisons"]].unbind(1)
    return float(
        bradley_terry_loss(chosen, rejected, preference=batch["preference"], margin=batch.get("margin"))
    )


@pytest.mark.parametrize(
    ("rule", "strength", "expected"),
    [
        ({}, 1.5, 0.4740770),
        ({"label": "flip"}, 1.5, 0.9740770),
        ({"margin": 1}, 1.5, 1.3132617),
        ({"margin": 1}, -1.5, 0.1269280),
        ({"smoothing": 0.2}, 1.5, 0.5740770),
        ({"smoothing": 0.2, "margin": 1}, 1.5, 1.1132617),
        ({"label": "flip", "margin": 1}, -1.5, 2.1269281),  # 0.3132617 if the strength were not negated
        ({"smoothing": 1.0}, 1.5, 0.9740770),
        ({"margin": 2, "clip": 0.75}, 1.5, 1.3132617),
        ({"margin": 1, "clip": 3}, -100.0, math.log1p(math.exp(-3.5))),
    ],
)
def test_losses_of_treated_labels(rule, strength, expected):
    assert loss(rule, strength) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("gap", [-2.0, 0.3, 4.0])
@pytest.mark.parametrize("strength", [-1.7, 0.0, 2.4])
def test_identities(gap, strength):
    plain = loss({}, strength, gap)
    assert loss({"smoothing": 1.0}, strength, gap) == pytest.approx(
        loss({"label": "flip"}, strength, gap), abs=1e-6
    )
    assert loss({"smoothing": 0.5}, strength, gap) == pytest.approx(
        loss({"smoothing": 0.5}, strength, -gap), abs=1e-6
    )
    assert loss({"margin": 1}, 0.0, gap) == plain
    assert loss({"label": "flip", "margin": 1}, strength, gap) == loss({"margin": 1}, -strength, -gap)
    assert loss({"label": "flip"}, strength, gap) == loss({}, strength, -gap)
    assert loss({"label": "flip", "margin": 1}, strength, gap, number=NO_RULE) == plain


@pytest.mark.parametrize(("smoothing", "least"), [(0.1, 0.3250830), (0.2, 0.5004024)])
@pytest.mark.parametrize("strength", [None, 1.5, -1.5])
def test_where_the_loss_is_least(smoothing, least, strength):
    rule = {"smoothing": smoothing} | ({} if strength is None else {"margin": 1})
    best = math.log((1 - smoothing) / smoothing) + (strength or 0.0)
    assert loss(rule, strength or 0.0, best) == pytest.approx(least, abs=1e-6)
    for step in (-0.01, 0.01):
        assert loss(rule, strength or 0.0, best + step) > least


def test_flipping_turns_everything_that_has_sides():
    batch = {
        "preference": torch.tensor([0.75, 0.75, 0.75]),
        "comparison_votes": torch.tensor([[3.0, 0.0, 1.0]] * 3),
        "comparison_target": torch.tensor([[0.7, 0.1, 0.2]] * 3),
        "comparison_target_votes": torch.tensor([4.0] * 3),
        "margin": torch.tensor([0.5, 0.5, 0.5]),
        "weight": torch.tensor([1.0, 2.0, 3.0]),
        "comparison_index": torch.tensor([4, 5, 6]),
        "user_id": torch.tensor([1, 2, 3]),
    }
    rules = [{"high": -1, "label": "flip"}, {"low": 1, "smoothing": 0.25}]
    out = treated(rules, [0, NO_RULE, 1], [-2.0, 0.5, 2.0], batch, by="value")
    assert out["comparisons"].tolist() == [[1, 0], [2, 3], [4, 5]]
    assert out["preference"].tolist() == [0.75, 0.75, 0.625], (
        "the share is that of the side which is preferred now"
    )
    assert out["strength"].tolist() == [2.0, 0.5, 2.0]
    assert out["margin"].tolist() == [-0.5, 0.5, 0.5]
    assert out["comparison_votes"].tolist() == [[1, 0, 3], [3, 0, 1], [2.5, 0, 1.5]]
    target = [[0.2, 0.1, 0.7], [0.7, 0.1, 0.2], [0.75 * 0.7 + 0.05, 0.1, 0.75 * 0.2 + 0.175]]
    torch.testing.assert_close(out["comparison_target"], torch.tensor(target))
    for name in ("weight", "comparison_index", "user_id", "comparison_target_votes"):
        assert out[name] is batch[name]
    again = treated([{"label": "flip"}], [0, 0, 0], [2.0, 0.5, 2.0], {**batch, **out})
    twice = treated([{"label": "flip"}], [0, 0, 0], again["strength"].numpy(), {**batch, **again})
    assert torch.equal(twice["comparisons"], out["comparisons"]) and torch.equal(
        twice["margin"], out["margin"]
    )
    assert torch.equal(twice["comparison_votes"], out["comparison_votes"]), "flipping twice changes nothing"


def test_a_target_that_nobody_knows_stays_unknown():
    batch = {"comparison_target": torch.tensor([[math.nan, math.nan]] * 2)}
    out = treated([{"smoothing": 0.2}], [0, NO_RULE], [1.0, math.nan], batch)
    assert out["comparison_target"].isnan().all() and out["strength"].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("margins", "expected"),
    [("replace", [2.0, -1.0, 0.25]), ("add", [1.75, -0.75, 0.25])],
)
def test_margins_of_the_data(margins, expected):
    batch = {"margin": torch.tensor([0.25, 0.25, 0.25])}
    rules = [{"high": 0, "label": "flip", "margin": 1}, {"low": 0, "high": 9, "margin": 1}]
    out = treated(rules, [0, 1, NO_RULE], [-2.0, -1.0, math.nan], batch, by="value", margins=margins)
    assert out["margin"].tolist() == expected, "that of a flipped label is negated first"


def test_margins_are_there_whether_or_not_a_rule_covers_the_batch():
    assert treated([{"high": 0.1, "margin": 1}], [NO_RULE], [1.0])["margin"].tolist() == [0.0]
    assert "margin" not in treated([{"high": 0.1, "label": "flip"}], [0], [1.0])


def test_the_batch_before_stays_as_it_was():
    batch = {"comparisons": torch.tensor([[0, 1]]), "margin": torch.tensor([1.0])}
    before = {name: value.clone() for name, value in batch.items()}
    treated([{"label": "flip", "smoothing": 0.3, "margin": 1}], [0], [2.0], batch)
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_rows_must_say_what_covers_them():
    row = TokenRow("r", NONE, NONE, NONE, NONE, NONE, np.empty(0, np.float32), {})
    with pytest.raises(ValueError, match="treated_batch needs records of a TreatedView"):
        treated_batch({}, [row], TreatmentConfig(rules=[{"label": "flip"}]))


# Accuracy ------------------------------------------------------------------------------------------------


def test_accuracy_is_of_the_difference_without_the_margin():
    """With the margin inside, an untrained module's would be the share of strengths below 0."""
    strength = torch.linspace(-3, 1, 41).numpy()
    batch = treated([{"margin": 1}], [0] * 41, strength)
    reward = torch.zeros(82)
    chosen, rejected = reward[batch["comparisons"]].unbind(1)
    assert float(
        bradley_terry_loss(chosen, rejected, preference=batch["preference"], margin=batch["margin"])
    ) == pytest.approx(float(np.log1p(np.exp(strength)).mean()), rel=1e-6)
    metrics = PreferenceMetrics()
    output = {"reward": reward, "chosen": chosen, "rejected": rejected}
    metrics.update(output, batch)
    values = metrics.compute()
    assert values["accuracy"] == 0 and values["tied_scores"] == 1, "not 0.73, the share of negative margins"
    assert values["margin"] == 0


def test_accuracy_is_against_the_treated_label():
    rules = [{"high": 0, "label": "flip", "smoothing": 0.2, "margin": 1}]
    batch = treated(rules, [0] * 3 + [NO_RULE] * 5, [-1.0] * 3 + [1.0] * 5, by="value")
    reward = torch.tensor([1.0, 0.0]).repeat(8)  # every response that the data prefer
    chosen, rejected = reward[batch["comparisons"]].unbind(1)
    metrics = PreferenceMetrics()
    metrics.update({"reward": reward, "chosen": chosen, "rejected": rejected}, batch)
    assert metrics.compute()["accuracy"] == pytest.approx(5 / 8)
