"""Strengths of an ensemble's votes, against numbers by hand and plain loops; what may not change them, and what must."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from pluralign.metrics import error_predictions, strength_summary
from pluralign.metrics.distribution import quantile_shares


def votes(number=60, members=4, seed=0, missing=0.0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(number, 1, generator=generator, dtype=torch.float64) + 0.5
    differences = truth + 0.7 * torch.randn(number, members, generator=generator, dtype=torch.float64)
    gone = torch.rand(number, members, generator=generator) < missing
    return differences.masked_fill(gone, torch.nan)


def summary(differences, share=None, **settings):
    share = torch.ones(len(differences)) if share is None else share
    return strength_summary(differences, share, **{"num_resamples": 100, **settings})


def same(one, two, *, but=()):
    """Whether all numbers are equal, up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one.keys() - set(but):
            same(one[name], two[name], but=but)
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            same(*pair, but=but)
    elif one is None or two is None:
        assert one is two
    else:
        assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


INTERVALS = ("low", "high")
"""Ends of intervals depend on the order of the comparisons, as draws of a generator do."""


# Strength and spread -------------------------------------------------------------------------------------


def test_the_spread_is_the_population_standard_deviation():
    scores = torch.tensor([[[1.2, 0.4], [0.9, 0.6], [-0.1, 0.3], [2.0, 0.5]]], dtype=torch.float64)
    found = summary(scores[..., 0] - scores[..., 1])
    assert found.strength.value == pytest.approx(0.55)
    assert found.std.value == pytest.approx(0.6946222, abs=1e-7)
    assert found.std.value != pytest.approx(0.8020806, abs=1e-3), "not with M - 1"


def test_members_without_a_vote_are_left_out():
    missing = torch.nan
    found = summary(
        torch.tensor([[1.0, 3.0, missing], [missing, -2.0, missing], [missing] * 3, [4.0, 4.0, 1.0]]),
        torch.tensor([1.0, 1.0, 1.0, 0.5]),
    )
    assert (found.num_comparisons, found.num_tied, found.num_without_votes) == (2, 1, 1)
    assert found.num_single_votes == 1
    assert found.strength.value == pytest.approx((2 - 2) / 2)
    assert found.std.value == pytest.approx(1), "one vote has no spread"
    assert found.share_negative.value == 0.5


def test_labels_decide_which_side_is_the_preferred_one():
    differences = votes()
    share = torch.rand(60, generator=torch.Generator().manual_seed(1))
    share[:5] = 0.5
    judge = torch.rand(60, generator=torch.Generator().manual_seed(2))
    turned = summary(-differences, 1 - share, judge=1 - judge)
    one = summary(differences, share, judge=judge)
    same(one.content(), turned.content())
    assert one.num_tied == 5
    preferred = torch.where(share < 0.5, -1, 1)[5:] * differences.mean(1)[5:]
    assert one.share_negative.value == pytest.approx(float((preferred < 0).double().mean()))
    assert one.strength.value == pytest.approx(float(preferred.mean()))


def test_turning_every_label_turns_every_strength():
    differences = votes()
    one, turned = summary(differences), summary(-differences)
    assert turned.strength.value == pytest.approx(-one.strength.value)
    assert turned.share_negative.value == pytest.approx(1 - one.share_negative.value)
    assert [group.center for group in turned.deciles] == pytest.approx(
        [-group.center for group in one.deciles[::-1]]
    )
    assert [group.std.value for group in turned.std_groups] == pytest.approx(
        [group.std.value for group in one.std_groups[::-1]]
    )
    for name, found in one.errors.items():
        assert turned.errors[name].auroc.value == pytest.approx(1 - found.auroc.value)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_neither_the_order_of_members_nor_of_comparisons_matters(missing):
    differences = votes(missing=missing)
    share = 0.2 * torch.randint(6, (60,), generator=torch.Generator().manual_seed(1))
    judge = torch.rand(60, generator=torch.Generator().manual_seed(2)).masked_fill(share > 0.9, torch.nan)
    one = summary(differences, share, judge=judge).content()
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3))
    same(summary(differences[:, order], share, judge=judge).content(), one)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    again = summary(differences[order], share[order], judge=judge[order]).content()
    same(again, one, but=INTERVALS)
    # With records the draws are of them, in the order of their numbers.
    record = torch.arange(60) // 3
    one = summary(differences, share, judge=judge, record=record).content()
    same(summary(differences[order], share[order], judge=judge[order], record=record[order]).content(), one)


def test_a_scale_scales_and_a_shift_shifts():
    differences = votes()
    one, doubled = summary(differences), summary(4 * differences)
    for value, other in ((one.strength, doubled.strength), (one.std, doubled.std)):
        assert other == pytest.approx(tuple(4 * number for number in value))
    assert doubled.share_negative == one.share_negative and doubled.accuracy == one.accuracy
    assert doubled.correlation == pytest.approx(one.correlation)
    same(
        {name: e.content() for name, e in doubled.errors.items()},
        {name: e.content() for name, e in one.errors.items()},
    )
    shifted = summary(differences + 2.5)
    assert shifted.strength.value == pytest.approx(one.strength.value + 2.5)
    assert shifted.std == pytest.approx(one.std) and shifted.correlation == pytest.approx(one.correlation)
    assert [group.std.value for group in shifted.deciles] == pytest.approx([g.std.value for g in one.deciles])


def test_repeated_comparisons_leave_values_as_they_are():
    differences, judge = votes(), torch.rand(60, generator=torch.Generator().manual_seed(2))
    one = summary(differences, judge=judge)
    twice = summary(differences.repeat(2, 1), judge=judge.repeat(2))
    assert twice.values().keys() == one.values().keys()
    levels = (
        "share_negative",
        "strength",
        "std",
        "correlation",
        "accuracy",
        "label_agreement",
        "error_auroc",
    )
    assert [twice.values()[name] for name in levels] == pytest.approx([one.values()[name] for name in levels])
    for groups in ("deciles", "std_groups", "size_groups"):
        for first, second in zip(getattr(one, groups), getattr(twice, groups), strict=True):
            assert second.center == pytest.approx(first.center)
            assert second.std.value == pytest.approx(first.std.value)


# Groups and the histogram --------------------------------------------------------------------------------


def test_groups_are_equal_parts_in_order():
    strength = torch.tensor([3.0, -1.0, 0.0, 2.0, -2.0, 5.0])
    found = summary(strength.unsqueeze(1) + torch.tensor([[-0.5, 0.5]]), num_groups=3, num_std_groups=2)
    assert [(g.low, g.high, g.center, g.number) for g in found.deciles] == [
        (-2, -1, -1.5, 2),
        (0, 2, 1, 2),
        (3, 5, 4, 2),
    ]
    assert [(group.low, group.high) for group in found.size_groups] == [(0, 1), (2, 2), (3, 5)]
    assert [group.accuracy.value for group in found.size_groups] == [0, 0.5, 1], "0 is on no side"
    assert [group.std.value for group in found.std_groups] == [0.5, 0.5]
    assert {group.accuracy for group in found.deciles} == {None}, "it is the sign"
    few = summary(votes(number=4))
    assert len(few.deciles) == len(few.std_groups) == 4


def test_what_lies_on_a_border_counts_on_both_sides():
    shares = quantile_shares(torch.tensor([5.0, 1.0, 1.0, 1.0, 9.0]), 2)
    torch.testing.assert_close(
        shares[:, 0].double(), torch.tensor([0, 2.5 / 3, 2.5 / 3, 2.5 / 3, 0]).double()
    )
    torch.testing.assert_close(shares.sum(1), torch.ones(5, dtype=torch.float64))
    for number, groups in product((7, 20, 101), (1, 3, 7)):
        values = torch.randint(5, (number,), generator=torch.Generator().manual_seed(number)).double()
        shares = quantile_shares(values, groups)
        torch.testing.assert_close(shares.sum(0), torch.full((groups,), number / groups, dtype=torch.float64))
        assert bool((shares >= 0).all())


def test_agreement_by_group_is_that_of_its_comparisons():
    """Labels of low strength are wrong by the judge, and annotators differ there."""
    strength = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    found = summary(
        strength.unsqueeze(1) + torch.tensor([[-1.0, 1.0]]),
        torch.tensor([0.6, 0.2, 0.8, 1.0]) * torch.tensor([1, 1, 1, 1]),
        judge=torch.tensor([0.0, 1.0, 0.5, 0.9]),
        num_groups=4,
    )
    # The second label prefers the second response, so that its strength is +1.
    assert [group.center for group in found.deciles] == [-2, 1, 1, 2]
    assert [group.label_share.value for group in found.deciles] == pytest.approx([0.6, 0.8, 0.8, 1])
    agreement = [group.label_agreement and group.label_agreement.value for group in found.deciles]
    assert agreement == [0, 0, 0, 1], "a judge's tie is none, and equal strengths share their places"
    assert found.label_agreement.value == pytest.approx(1 / 3) and found.num_judged == 3
    assert found.accuracy.value == pytest.approx(2 / 3), "right where the judge is on the strength's side"


def test_the_histogram_has_all_in_bins_of_a_round_width():
    values = torch.cat([votes(1000, 2).mean(1), torch.tensor([-40.0, 300.0, 301.0]).double()])
    found = summary(values.unsqueeze(1) + torch.tensor([[-1.0, 1.0]])).histogram
    assert found.width in (0.05, 0.1, 0.2) and (found.below, found.above) == (1, 2)
    assert sum(found.counts) + found.below + found.above == 1003
    places = (torch.arange(len(found.counts) + 1).double() * found.width + found.left).numpy()
    assert 0 in np.round(places, 9)
    expected, _ = np.histogram(values.numpy(), places)
    assert np.abs(np.array(found.counts) - expected).sum() <= 2, "but for rounding at borders"


def test_equal_strengths_have_a_histogram_too():
    found = summary(torch.zeros(5, 2)).histogram
    assert (found.left, found.width, found.counts) == (0, 1, (5,))
    assert summary(torch.full((5, 2), -3.0)).histogram.counts[0] == 5


# Correlation ---------------------------------------------------------------------------------------------


# Errors --------------------------------------------------------------------------------------------------


def auroc_of_pairs(score, wrong):
    found = [
        1.0 if bad > good else 0.5 if bad == good else 0.0
        for bad in score[wrong].tolist()
        for good in score[~wrong].tolist()
    ]
    return float(np.mean(found))


def area_of_orders(score, wrong):
    """Mean over all orders that a score allows of the mean risk."""
    levels = [[e for s, e in zip(score, wrong, strict=True) if s == level] for level in sorted(set(score))]
    errors = []
    for level in levels:  # the mean of errors at each place of a level over its orders
        errors += [sum(level) / len(level)] * len(level)
    return float(np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1)))


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_scores_predict_errors_as_written_out(levels):
    generator = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (50,), generator=generator).double()
    wrong = torch.rand(50, generator=generator) < 0.3
    found = error_predictions({"it": score}, wrong, num_resamples=20)["it"]
    assert found.auroc.value == pytest.approx(auroc_of_pairs(score, wrong), abs=1e-12)
    ranks = score / levels  # within [0, 1], where torchmetrics takes scores as they are
    assert found.auroc.value == pytest.approx(float(binary_auroc(ranks, wrong.long())), abs=1e-6)
    assert found.area.value == pytest.approx(area_of_orders(score.tolist(), wrong.tolist()), abs=1e-12)
    best = area_of_orders(wrong.tolist(), wrong.tolist())
    assert found.excess.value == pytest.approx(found.area.value - best, abs=1e-12)
    assert found.error == pytest.approx(float(wrong.double().mean()))


def test_the_mean_over_orders_is_that_of_many_orders():
    """Equal scores: the area is the mean over random orders of an area without ties."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(4, (30,), generator=generator).double()
    wrong = torch.rand(30, generator=generator) < 0.3
    areas = []
    for _ in range(1500):
        order = np.lexsort((torch.rand(30, generator=generator).numpy(), score.numpy()))
        errors = wrong.numpy()[order].cumsum() / np.arange(1, 31)
        areas.append(errors.mean())
    found = error_predictions({"it": score}, wrong, num_resamples=10)["it"]
    assert found.area.value == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / 1500**0.5)


def test_drawn_samples_are_measured_as_samples():
    """Every resample's values are those of its rows written out: here of all of a tiny set."""
    score, wrong = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([False, True, False, True])
    record = torch.tensor([7, 7, 9, 9])
    found = error_predictions({"it": score}, wrong, record=record, num_resamples=4000, seed=1)["it"]
    areas, aurocs = [], []
    for drawn in product((7, 9), repeat=2):
        rows = torch.cat([(record == one).nonzero().squeeze(1) for one in drawn])
        areas.append(area_of_orders(score[rows].tolist(), wrong[rows].tolist()))
        aurocs.append(auroc_of_pairs(score[rows], wrong[rows]))
    assert found.area.low == pytest.approx(min(areas)) and found.area.high == pytest.approx(max(areas))
    assert found.auroc.low == pytest.approx(min(aurocs)) and found.auroc.high == pytest.approx(max(aurocs))


def test_the_curve_ends_at_all_errors_and_starts_at_the_most_certain():
    score = torch.arange(250.0)
    wrong = score >= 200
    found = error_predictions({"best": score, "worst": -score}, wrong, num_resamples=10)
    best, worst = found["best"], found["worst"]
    assert len(best.coverage) == 100 and best.coverage[-1] == 1 and best.risk[-1] == pytest.approx(0.2)
    for coverage, risk in zip(best.coverage, best.risk, strict=True):
        assert risk == pytest.approx(max(0, 1 - 0.8 / coverage), abs=1e-12)
    assert best.excess.value == 0 and best.auroc.value == 1
    assert worst.risk[0] == 1 and worst.auroc.value == 0
    flat = error_predictions({"flat": torch.zeros(250)}, wrong, num_resamples=10)["flat"]
    assert flat.risk == pytest.approx([0.2] * 100) and flat.area.value == pytest.approx(0.2)
    assert flat.auroc.value == 0.5


def test_unknown_scores_are_left_out_and_infinite_ones_are_the_least_certain():
    score = torch.tensor([1.0, torch.inf, torch.nan, 2.0])
    wrong = torch.tensor([False, True, True, False])
    found = error_predictions({"it": score, "none": torch.full((4,), torch.nan)}, wrong, num_resamples=10)
    assert found.keys() == {"it"} and found["it"].number == 3 and found["it"].auroc.value == 1


def test_without_errors_there_is_nothing_to_predict():
    found = summary(votes().abs() + 1).errors["std"]
    assert found.auroc is None and found.area.value == found.excess.value == 0


def test_scores_of_a_summary_are_those_of_the_text():
    differences = votes()
    mean, std = differences.mean(1), differences.std(1, correction=0)
    scores = {"std": std, "std_to_strength": std / mean.abs(), "weakness": -mean.abs()}
    found = summary(differences).errors
    for name, score in scores.items():
        assert found[name].auroc.value == pytest.approx(auroc_of_pairs(score, mean < 0)), name


# Intervals, and what it is written as --------------------------------------------------------------------


def test_comparisons_of_a_record_are_drawn_together():
    differences = torch.cat([torch.full((50, 2), 1.0), torch.full((50, 2), -1.0)])
    differences += torch.tensor([[0.1, -0.1]])
    one_by_one = summary(differences, num_resamples=1000).share_negative
    whole = summary(
        differences, record=torch.arange(2).repeat_interleave(50), num_resamples=1000
    ).share_negative
    assert 0.38 < one_by_one.low < 0.45 and 0.55 < one_by_one.high < 0.62
    assert whole == (0.5, 0, 1)


def test_content_is_plain_and_finite():
    differences = votes(missing=0.5, number=12)
    for settings in ({}, {"judge": torch.rand(12)}, {"judge": torch.full((12,), torch.nan)}):
        content = summary(differences, **settings).content()
        assert json.loads(json.dumps(content, allow_nan=False))["num_members"] == 4
    rows = summary(differences).rows()
    assert [row.key for row in rows][:3] == ["share_negative", "strength", "std"]
    assert all(len(row.title) < 45 for row in rows)
    unjudged = summary(differences, judge=torch.full((12,), torch.nan))
    assert unjudged.accuracy is unjudged.label_agreement is None and unjudged.errors == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_of_double_precision(dtype):
    differences = votes().to(dtype)
    found = summary(differences)
    assert found.std.value == pytest.approx(
        float(differences.double().std(1, correction=0).mean()), rel=1e-12
    )


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"differences": torch.zeros(3)},
            r"differences must be \(P, M\) with two members at least; got \(3,\)",
        ),
        ({"differences": torch.zeros(3, 1)}, r"two members at least; got \(3, 1\)"),
        ({"share": torch.ones(2)}, r"share must be \(3,\), as differences; got \(2,\)"),
        ({"judge": torch.ones(2)}, r"judge must be \(3,\)"),
        ({"record": torch.ones(2).long()}, r"record must be \(3,\)"),
        ({"differences": torch.full((3, 2), torch.inf)}, "differences must be finite, or NaN"),
        ({"share": torch.tensor([0.0, 1.0, 1.5])}, r"share must be in \[0, 1\]; got 1.5"),
        ({"share": torch.tensor([0.0, 1.0, torch.nan])}, r"share must be in \[0, 1\]; got nan"),
        ({"judge": torch.tensor([0.0, torch.nan, -0.5])}, r"judge must be in \[0, 1\]; got -0.5"),
        ({"num_groups": 0}, "num_groups must be >= 1; got 0"),
        (
            {"share": torch.tensor([0.5] * 3)},
            "of 3 comparisons, 3 of them ties, 0 without a vote, none is left",
        ),
        ({"differences": torch.full((3, 2), torch.nan)}, "0 of them ties, 3 without a vote, none is left"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arguments = {"differences": torch.ones(3, 2), "share": torch.ones(3), **changes}
    with pytest.raises(ValueError, match=message):
        strength_summary(arguments.pop("differences"), arguments.pop("share"), **arguments)
