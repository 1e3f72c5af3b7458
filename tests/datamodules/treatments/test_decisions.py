"""Which rule covers which comparison, and what is said of it."""

import math

import numpy as np
import pytest

FLIP = [{"high": 0.1, "label": "flip"}]


def decided(build, records, rules, **settings):
    data = build(records, rules, **settings)
    data.setup("fit")
    return data.decisions


def test_a_quantile_is_the_share_of_what_is_weaker(build, pair):
    strengths = np.random.default_rng(0).permutation(np.linspace(-2, 3, 40))
    rules = [
        {"high": 0.1, "label": "flip"},
        {"low": 0.1, "high": 0.3, "label": "drop"},
        {"low": 0.75, "smoothing": 0.2},
    ]
    decisions = decided(build, [pair(i, strength) for i, strength in enumerate(strengths)], rules)
    rank = strengths.argsort().argsort()
    expected = np.select([rank < 4, rank < 12, rank >= 30], [0, 1, 2], -1)
    assert decisions.rule.tolist() == expected.tolist()
    assert decisions.kept.tolist() == (expected != 1).tolist()
    np.testing.assert_allclose(decisions.strength, strengths, rtol=1e-6)
    flip, drop, smooth = decisions.report.rules
    assert (flip.comparisons, flip.share, flip.treatment) == (4, 0.1, "flip")
    ordered = np.sort(strengths)
    assert (flip.lowest, flip.highest) == pytest.approx((ordered[0], ordered[3]))
    assert (drop.comparisons, drop.interval) == (8, "from 0.1 to below 0.3")
    assert (smooth.comparisons, smooth.lowest, smooth.highest) == pytest.approx(
        (10, ordered[30], ordered[39])
    )
    assert decisions.report.uncovered.comparisons == 18 and math.isnan(flip.std)
    assert (decisions.report.records, decisions.report.dropped_records) == (40, 8)


@pytest.mark.parametrize("number", [1, 3, 7, 10, 30])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7])
def test_neighbouring_quantiles_leave_nothing_out(build, pair, number, share):
    rules = [{"high": share, "label": "flip"}, {"low": share, "margin": 1}]
    decisions = decided(build, [pair(i, i / 7) for i in range(number)], rules)
    assert (decisions.rule == 0).sum() == math.ceil(round(share * number, 9))
    assert (decisions.rule >= 0).all()


def test_equal_strengths_have_one_treatment(build, pair):
    strengths = [0.0] * 6 + [1.0] * 6
    with pytest.warns(
        UserWarning, match=r"rules\[0\] .*flip\) covers 6 of 12 strengths, where its quantiles are 10.0%"
    ):
        decisions = decided(build, [pair(i, strength) for i, strength in enumerate(strengths)], FLIP)
    assert decisions.rule.tolist() == [0] * 6 + [-1] * 6, "the report says that they are more than a tenth"
    assert decisions.report.rules[0].share == 0.5


def test_by_value_the_end_is_excluded(build, pair):
    strengths = [-1.0, -0.25, 0.0, 0.5, 3.0, 7.0]
    rules = [{"high": 0, "smoothing": 0.2}, {"low": 0.5, "high": 3, "margin": 1}]
    decisions = decided(build, [pair(i, strength) for i, strength in enumerate(strengths)], rules, by="value")
    assert decisions.rule.tolist() == [0, 0, -1, 1, -1, -1]


def test_ties_are_never_treated_and_counted(build, pair):
    records = [pair(i, -1.0 - i, preference=0.5 if i < 3 else 1.0) for i in range(8)]
    decisions = decided(build, records, [{"high": 0.2, "label": "flip"}, {"low": 0.2, "label": "drop"}])
    assert decisions.rule.tolist() == [-1, -1, -1, 1, 1, 1, 1, 0], "a fifth of those that are no ties"
    assert decisions.report.ties == 3 and decisions.report.uncovered.comparisons == 0


def test_the_strength_is_towards_the_side_that_the_label_prefers(build, pair):
    records = [pair(0, 2.0, preference=0.25), pair(1, -2.0, preference=0.25), pair(2, 1.0, preference=0.75)]
    decisions = decided(build, records, [{"high": 0, "label": "flip"}], by="value")
    assert decisions.rule.tolist() == [0, -1, -1], (
        "the second side is preferred, and the strength is for the first"
    )
    assert decisions.strength.tolist() == [2.0, -2.0, 1.0]
    assert decisions.report.rules[0].lowest == -2.0


def test_a_missing_strength_is_an_error_unless_it_is_kept(build, pair):
    records = [pair(i, None if i in (2, 5, 6, 9) else i / 10) for i in range(10)]
    message = (
        r"local train: 4 of 10 comparisons have no strength in the data \(comparison 0 of record 'r2', 0 of record 'r5', "
        r"0 of record 'r6', \.\.\.\): give them one .* or set loader\.treatments\.missing to keep"
    )
    with pytest.raises(ValueError, match=message):
        build(records, FLIP).setup("fit")
    decisions = decided(build, records, [{"high": 0.5, "label": "flip"}], missing="keep")
    assert decisions.rule.tolist() == [0, 0, -1, 0, -1, -1, -1, -1, -1, -1], (
        "quantiles are of the strengths there are"
    )
    assert decisions.report.missing == 4 and np.isnan(decisions.strength).sum() == 4


def test_a_tie_needs_no_strength(build, pair):
    decisions = decided(
        build, [pair(0, -1.0), pair(1, preference=0.5), pair(2, 1.0)], [{"high": 0.5, "label": "flip"}]
    )
    assert decisions.rule.tolist() == [0, -1, -1]
    assert (decisions.report.ties, decisions.report.missing) == (1, 0)


def test_data_without_strengths_say_where_to_get_some(build, pair):
    message = r"local train: loader\.treatments needs strengths, and the data have none: set loader\.treatments\.votes"
    with pytest.raises(ValueError, match=message):
        build([pair(0), pair(1)], FLIP).setup("fit")


def test_dropping_everything_is_an_error(build, pair):
    with pytest.raises(ValueError, match=r"local train: no comparison is left to train on: .* drop all of 3"):
        build([pair(i, 1.0) for i in range(3)], [{"label": "drop"}]).setup("fit")


def test_the_report_is_said_at_setup(build, pair, capsys, caplog):
    caplog.set_level("INFO")
    records = [pair(i, i / 10, **({"preference": 0.5} if i == 7 else {})) for i in range(8)]
    build(records, [{"high": 0.25, "label": "flip"}, {"low": 0.5, "label": "drop"}]).setup("fit")
    said = [line for line in (caplog.text + capsys.readouterr().err).splitlines() if "local train: " in line]
    said = [line.partition("local train: ")[2] for line in said]
    head, *covers = said[1:]
    assert head == (
        "8 comparisons are treated by quantile of the strength in the data; 1 tied and 0 without a strength stay as they "
        "are, 3 of 8 records are not read"
    )
    assert covers == [
        "rules[0] below 0.25, flip: 2 comparisons (25.0%), strength 0 to 0.1",
        "rules[1] from 0.5, drop: 3 comparisons (37.5%), strength 0.4 to 0.6",
        "by no rule, keep: 2 comparisons (25.0%), strength 0.2 to 0.3",
    ]
