"""Rules of treatments: short to write, and refused where they say nothing or two things."""

import pytest

from pluralign.datamodules import LoaderConfig, TreatmentConfig, TreatmentRule


def rules(*given, **settings):
    return TreatmentConfig(rules=[TreatmentRule(**rule) for rule in given], **settings)


def test_a_rule_says_what_it_does():
    config = rules(
        {"high": 0.1, "label": "flip", "margin": 1, "clip": 3},
        {"low": 0.2, "high": 0.4, "label": "drop"},
        {"low": 0.9, "smoothing": 0.2},
    )
    assert [f"{rule.interval}: {rule.treatment}" for rule in config.rules] == [
        "below 0.1: flip + margin 1 x strength within 3",
        "from 0.2 to below 0.4: drop",
        "from 0.9: smooth 0.2",
    ]
    (rule,) = rules({}).rules
    assert (rule.interval, rule.treatment) == ("everything", "keep")
    assert config.gives_margins and not rules({"smoothing": 0.2}).gives_margins
    assert hash(config) == hash(rules(*(vars(rule) for rule in config.rules)))


def test_mappings_are_rules():
    assert TreatmentConfig(rules=[{"high": 0.1, "label": "flip"}]) == rules({"high": 0.1, "label": "flip"})


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ({"high": 1.5}, {}, r"rules\[0\]\.high \(a quantile\) must be >= 0 and <= 1; got 1\.5"),
        ({"low": -0.1}, {}, r"rules\[0\]\.low \(a quantile\) must be >= 0 and <= 1; got -0\.1"),
        ({"low": float("nan")}, {}, r"low \(a quantile\) must be >= 0 and <= 1; got nan"),
        ({"low": float("inf")}, {"by": "value"}, r"low \(a value\) must be finite; got inf"),
        ({"low": 0.4, "high": 0.2}, {}, r"low must be less than high.*got from 0\.4 to below 0\.2"),
        ({"low": 2, "high": 2}, {"by": "value"}, r"rules\[0\]: low must be less than high"),
        ({"low": 1}, {}, r"low must be less than high, or it covers nothing; got from 1"),
        ({"high": 0}, {}, r"low must be less than high, or it covers nothing; got below 0"),
        ({"label": "turn"}, {}, r"rules\[0\]\.label must be one of keep, flip, drop; got 'turn'"),
        ({"smoothing": 1.1}, {}, r"rules\[0\]\.smoothing must be >= 0 and <= 1; got 1\.1"),
        ({"margin": 0}, {}, r"rules\[0\]\.margin must be finite and > 0; got 0"),
        ({"margin": 1, "clip": -3}, {}, r"rules\[0\]\.clip must be finite and > 0; got -3"),
        ({"clip": 3}, {}, r"rules\[0\]\.clip bounds the strength in the margin: give margin as well"),
        (
            {"label": "drop", "margin": 1},
            {},
            r"rules\[0\] drops comparisons, so that it has nothing to smooth",
        ),
        ({"label": "drop", "smoothing": 0.1}, {}, r"rules\[0\] drops comparisons"),
        ({}, {"by": "rank"}, r"loader\.treatments\.by must be one of quantile, value; got 'rank'"),
        ({}, {"missing": "drop"}, r"loader\.treatments\.missing must be one of error, keep; got 'drop'"),
        (
            {},
            {"margins": "sum"},
            r"loader\.treatments\.margins must be one of error, replace, add; got 'sum'",
        ),
    ],
)
def test_settings_name_what_is_allowed(rule, settings, message):
    with pytest.raises(ValueError, match=message):
        rules(rule, **settings)


def test_two_rules_cannot_cover_the_same():
    message = r"rules\[0\] \(from 0\.3 to below 0\.6\) and loader\.treatments\.rules\[2\] \(from 0\.5\) overlap: a comparison has one"
    with pytest.raises(ValueError, match=message):
        rules({"low": 0.3, "high": 0.6}, {"high": 0.3}, {"low": 0.5})
    with pytest.raises(
        ValueError, match=r"rules\[0\] \(everything\) and loader\.treatments\.rules\[1\] \(below -1\)"
    ):
        rules({}, {"high": -1}, by="value")
    rules({"low": 0.3, "high": 0.6}, {"high": 0.3}, {"low": 0.6})  # one begins where another ends


def test_there_is_a_list_of_rules():
    with pytest.raises(ValueError, match=r"loader\.treatments\.rules is empty: name at least one, such as"):
        TreatmentConfig()
    with pytest.raises(TypeError, match=r"loader\.treatments\.rules must be a list of rules, got 'flip'"):
        TreatmentConfig(rules="flip")
    with pytest.raises(
        TypeError, match=r"rules\[0\] must be a rule such as \{high: 0\.1, label: flip\}, got 'flip'"
    ):
        TreatmentConfig(rules=["flip"])


def test_no_treatment_is_the_default():
    assert LoaderConfig().treatments is None
