"""Checks of settings: one wording for choices, ranges and names."""

import math
from typing import Literal, get_args, get_type_hints

import pytest

from pluralign.datamodules import DSPDataModule, SyntheticDataModule
from pluralign.datamodules.prepared import PreparedData
from pluralign.datamodules.settings import (
    LenientSettings,
    OnInvalid,
    SharedSettings,
    check_choices,
    check_range,
    check_subset,
)


def order(*, side: Literal["left", "right"] = "left", when: OnInvalid = "skip") -> None:
    """A function with choices."""


def test_choices_are_read_from_the_hint():
    check_choices(order, side="right", when="error")
    for value in ("up", None, ["left"]):
        with pytest.raises(ValueError, match=r"side must be one of left, right; got "):
            check_choices(order, when="skip", side=value)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, (1,), "x must be >= 1; got 0"),
        (math.nan, (0,), "x must be >= 0; got nan"),
        (1.5, (0, 1), r"x must be in \[0, 1\]; got 1.5"),
    ],
)
def test_ranges(value, bounds, message):
    check_range("x", 1, *bounds)
    with pytest.raises(ValueError, match=message):
        check_range("x", value, *bounds)


@pytest.mark.parametrize(
    ("ends", "low", "high", "message"),
    [
        ("[]", True, True, ""),
        ("()", False, False, r"in \(0, 1\)"),
        ("(]", False, True, r"in \(0, 1\]"),
        ("[)", True, False, r"in \[0, 1\)"),
    ],
)
def test_ends_of_a_range(ends, low, high, message):
    for value, allowed in ((0, low), (1, high)):
        if allowed:
            check_range("x", value, 0, 1, ends=ends)
        else:
            with pytest.raises(ValueError, match=rf"x must be {message}; got {value}"):
                check_range("x", value, 0, 1, ends=ends)
    with pytest.raises(ValueError, match="x must be > 0; got 0"):
        check_range("x", 0, 0, ends="(]")


def test_names():
    assert check_subset("domains", ("b", "a", "b"), ("a", "b")) == ("b", "a")
    for values in ((), ("c",)):
        with pytest.raises(ValueError, match="domains must be one or more of a, b; got"):
            check_subset("domains", values, ("a", "b"))


def test_shared_settings_are_the_arguments_of_the_base():
    hints = get_type_hints(PreparedData.__init__)
    assert hints.pop("return") is type(None)
    assert get_type_hints(SharedSettings) == hints
    assert get_type_hints(LenientSettings) == {name: hints[name] for name in hints if name != "on_invalid"}
    assert get_args(OnInvalid) == ("error", "skip")


def test_a_share_is_refused_where_there_is_a_validation_split():
    assert SyntheticDataModule(validation_share=0.05).splits == ("train", "validation", "test", "predict")
    with pytest.raises(
        ValueError, match=r"validation_share must not be given, got 0\.1: SyntheticDataModule"
    ):
        SyntheticDataModule(validation_share=0.1)
    assert DSPDataModule(data_dir="x", validation_share=0.1).validation_share == 0.1
