"""Codes, signs, outcomes and shares become comparisons, the winner first."""

import math

import pytest

from pluralign.datamodules import Comparison, RecordError
from pluralign.datamodules.records import (
    CODES,
    Judgement,
    check_codes,
    coded_judgement,
    compared,
    crowd_judgement,
    known_code,
    one_hot_judgement,
    shared_judgement,
    signed_judgement,
)


def turned(judgement):
    """What somebody says who sees the sides the other way round."""
    strength = judgement.strength
    return Judgement(1 - judgement.share, None if strength is None else -strength)


def test_every_code_of_one_side_has_its_mirror():
    swap = str.maketrans("ab<>", "ba><")
    for code, judgement in CODES.items():
        if code.endswith((" a", " b")) or code in ("a", "b") or code.startswith(("a ", "b ")):
            letters = code.split()
            mirrored = " ".join({"a": "b", "b": "a"}.get(word, word) for word in letters)
            assert CODES[mirrored] == turned(judgement), code
        elif "<" in code or ">" in code:
            assert CODES[code.translate(swap)] == judgement, code
    assert all(judgement.share in (0, 0.5, 1) for judgement in CODES.values())
    assert not any(code.isdigit() for code in CODES), "numbers mean nothing by themselves"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Model_A", (1, None)), ("answer b", (0, None)), ("[[A]]", (1, None)), ("A > B", (1, None)), ("B>>A", (0, -2)),
        ("a-is-better", (1, 2)), ("B-is-slightly-better", (0, -1)), ("Tie", (0.5, None)), ("tie (bothbad)", (0.5, None)),
        ("both_bad", (0.5, None)), ("A = B", (0.5, None)),
    ],
)  # fmt: skip
def test_words(value, expected):
    assert coded_judgement("winner", value) == expected


@pytest.mark.parametrize("value", [1, 0, True, "left", "", 1.5, "model c"])
def test_what_is_not_known_is_an_error(value):
    with pytest.raises(RecordError, match="unknown code: field 'winner' is") as caught:
        coded_judgement("winner", value)
    assert f"codes: {{{value!r}: first | second | tie | none}}" in str(caught.value)


@pytest.mark.parametrize("value", [None, ["A"], math.nan, math.inf, 10**400])
def test_what_is_no_code(value):
    with pytest.raises(RecordError, match="wrong type"):
        coded_judgement("winner", value)


def test_codes_of_ones_own():
    codes = check_codes(
        {"1": "first", "Left-Side": "second", "A": "tie", "": "none", "0.30": 0.3, "true": "first"}
    )
    said = [coded_judgement("w", v, codes) for v in (1, 1.0, "1", "left side", "a", "", 0.3, True)]
    assert said == [(1, None)] * 3 + [(0, None), (0.5, None), None, (0.3, None), (1, None)]
    assert coded_judgement("w", "B", codes) == (0, None), "what is known stays"
    assert known_code("LEFT_SIDE", codes) and not known_code("B", codes) and not known_code(["A"], codes)
    with pytest.raises(RecordError, match=r"a code that is known \(1, left side, a"):
        coded_judgement("w", 2, codes)


def test_numbers_of_codes_are_shares_or_with_a_sense_strengths():
    assert check_codes({"x": 0.25}) == {"x": (0.25, None)}
    assert check_codes({"x": -2, "y": 0}, "second") == {"x": (1, 2), "y": (0.5, 0)}
    for codes, positive in (
        ({"x": 2}, None),
        ({"x": math.nan}, None),
        ({"x": math.inf}, "first"),
        ({"x": True}, "first"),
        ({"x": "A"}, None),
    ):
        with pytest.raises(
            ValueError, match=r"codes\['x'\] is .*; allowed: first \| second \| tie \| none, or "
        ):
            check_codes(codes, positive)
    with pytest.raises(ValueError, match=r"codes has 'a b' twice"):
        check_codes({"A-B": "first", "a b": "second"})


def test_signed_numbers():
    assert [signed_judgement("s", v, "first") for v in (2, -1.5, 0)] == [(1, 2), (0, -1.5), (0.5, 0)]
    assert [signed_judgement("s", v, "second") for v in (2, -1.5)] == [(0, -2), (1, 1.5)]
    assert math.copysign(1, signed_judgement("s", 0, "second").strength) == 1
    for value in ("2", math.nan, None, True):
        with pytest.raises(RecordError):
            signed_judgement("s", value, "first")


def test_shares_and_outcomes():
    assert shared_judgement("p", 0.25) == (0.25, None)
    with pytest.raises(RecordError, match=r"a number in \[0, 1\]"):
        shared_judgement("p", 1.5)
    outcomes = ("first", "second", "tie")
    assert one_hot_judgement({"x": 0, "y": True, "z": 0.0}, outcomes) == (0, None)
    for fields in (
        {"x": 0, "y": 0, "z": 0},
        {"x": 1, "y": 1, "z": 0},
        {"x": 0.5, "y": 0.5, "z": 0},
        {"x": "1", "y": 0, "z": 0},
    ):
        with pytest.raises(RecordError):
            one_hot_judgement(fields, outcomes)


def test_the_winner_comes_first():
    assert compared(3, 5, Judgement(0.2, -2.0), user="ann") == Comparison(5, 3, 0.8, strength=2, user="ann")
    assert compared(3, 5, Judgement(0.5, 0.0)) == Comparison(3, 5, 0.5, strength=0)
    assert compared(3, 5, Judgement(0.9)) == Comparison(3, 5, 0.9)


def test_a_crowd_without_names():
    said = [Judgement(0.0, -2.0), Judgement(0.0, -1.0), Judgement(0.5, 0.0), Judgement(1.0, 1.0)]
    crowd = crowd_judgement(0, 1, said, domain="d", weight=2.0)
    assert crowd == Comparison(1, 0, 0.625, votes=(2, 1, 1), strength=0.5, domain="d", weight=2.0)
    assert crowd_judgement(0, 1, [*said, Judgement(1.0)]).strength is None
    with pytest.raises(RecordError, match=r"0, 0\.5 or 1 of each person"):
        crowd_judgement(0, 1, [Judgement(0.7)])
