"""Checked fields: what each accepts, and one wording for what it does not."""

import math

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import (
    choice_field,
    flag_field,
    list_field,
    mapping_field,
    name_field,
    number_field,
    text_field,
    user_field,
    whole_field,
)


def test_what_is_accepted_comes_back():
    assert mapping_field("f", {"a": 1}) == {"a": 1}
    assert list_field("f", [1, 2], 2) == list_field("f", [1, 2]) == [1, 2]
    assert list_field("f", [], empty=True) == list_field("f", [], 0) == []
    assert (text_field("f", " "), choice_field("f", "a", {"a": 1}), flag_field("f", False)) == (
        " ",
        "a",
        False,
    )
    assert (whole_field("f", 3, 3), whole_field("f", 5, 3, 5), number_field("f", 2)) == (3, 5, 2.0)
    assert (name_field("f", ""), name_field("f", 7), user_field("f", " 7")) == ("", "7", " 7")


@pytest.mark.parametrize(
    ("check", "value", "reason", "allowed"),
    [
        (mapping_field, [], "wrong type", "an object"),
        (list_field, "ab", "wrong type", "a list that is not empty"),
        (list_field, [], "wrong length", "a list that is not empty"),
        (lambda *field: list_field(*field, 2), [1], "wrong length", "a list of 2"),
        (text_field, 3, "wrong type", "a string"),
        (lambda *field: text_field(*field, blank="empty post"), " ", "empty post", "text that is not blank"),
        (lambda *field: choice_field(*field, ("a", "b")), "c", "out of range", r"a \| b"),
        (lambda *field: choice_field(*field, ("a", "b")), ["a"], "wrong type", "a string"),
        (flag_field, 1, "wrong type", r"true \| false"),
        (lambda *field: whole_field(*field, 0, 4), 5, "out of range", r"a whole number in \[0, 4\]"),
        (lambda *field: whole_field(*field, 0), -1, "out of range", "a whole number >= 0"),
        (lambda *field: whole_field(*field, 0), True, "wrong type", "a whole number >= 0"),
        (lambda *field: whole_field(*field, 0), 1.0, "wrong type", "a whole number >= 0"),
        (number_field, True, "wrong type", "a finite number"),
        (number_field, math.nan, "not finite", "a finite number"),
        (number_field, 10**400, "not finite", "a finite number"),
        (lambda *field: number_field(*field, 1, 100), 0, "out of range", r"a number in \[1, 100\]"),
        (name_field, 1.5, "wrong type", "text or a whole number"),
        (user_field, " ", "missing field", "a name that is not blank"),
    ],
)
def test_what_is_not(check, value, reason, allowed):
    with pytest.raises(RecordError, match=rf"^{reason}: field 'f' is .*; allowed: {allowed}$"):
        check("f", value)


@pytest.mark.parametrize(
    "check",
    [
        mapping_field,
        list_field,
        text_field,
        flag_field,
        number_field,
        name_field,
        user_field,
        lambda *field: choice_field(*field, "a"),
        lambda *field: whole_field(*field, 0),
    ],
)
def test_none_is_missing(check):
    with pytest.raises(RecordError, match=r"^missing field: field 'f' is None; allowed: "):
        check("f", None)
