"""Settings: what is refused, and in which words."""

import math
from typing import Literal

import pytest

from pluralign.datamodules.checks import check_choices, check_range, check_subset


def constructor(
    kind: Literal["a", "b"], *, size: Literal[1, 2] | None, free: Literal["x"] | float = 1.0, other=3
):
    """Something with choices, one of which may also be a number."""


def test_choices_come_from_the_hints():
    check_choices(constructor, kind="b", size=None, free=7.0, other="anything")
    check_choices(constructor, kind="a")
    for value in ("c", None, ["a"]):
        with pytest.raises(ValueError, match=r"^kind must be one of a, b; got "):
            check_choices(constructor, size=None, kind=value)
    with pytest.raises(ValueError, match=r"^net\.size must be one of 1, 2, null; got 3$"):
        check_choices(constructor, kind="a", size=3, prefix="net.")


@pytest.mark.parametrize(
    ("value", "bounds", "allowed"),
    [
        (-1, {"at_least": 0}, "finite and >= 0"),
        (math.nan, {"at_least": 0}, "finite and >= 0"),
        (math.inf, {"above": 0}, "finite and > 0"),
        (0.0, {"above": 0}, "finite and > 0"),
        (1.5, {"at_least": 0, "at_most": 1}, ">= 0 and <= 1"),
        (math.nan, {"at_least": 0, "at_most": 1}, ">= 0 and <= 1"),
        (1.0, {"at_least": 0, "below": 1}, ">= 0 and < 1"),
        (0, {"above": 0, "at_most": 1}, "> 0 and <= 1"),
    ],
)
def test_numbers_outside_their_range(value, bounds, allowed):
    with pytest.raises(ValueError, match=f"^rate must be {allowed}; got {value}$"):
        check_range("rate", value, **bounds)


def test_numbers_at_the_edge_and_none_are_fine():
    check_range("rate", 0, at_least=0)
    check_range("rate", 1.0, at_least=0, at_most=1)
    check_range("rate", 0.999, above=0, below=1)
    check_range("rate", None, above=0)


def test_names():
    assert check_subset("domains", ("b", "a", "b"), ("a", "b")) == ("b", "a")
    for values in ((), ("c",)):
        with pytest.raises(ValueError, match="domains must be one or more of a, b; got"):
            check_subset("domains", values, ("a", "b"))
