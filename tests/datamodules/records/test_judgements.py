"""Judgements: codes, signed numbers, shares, a column for each outcome; what a comparison makes of one or of several."""

import math

import pytest

from pluralign.datamodules import RecordError
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


@pytest.mark.parametrize(
    ("code", "share", "strength"),
    [
        ("model_a", 1.0, None),
        ("Model B", 0.0, None),
        ("response-b", 0.0, None),
        ("A>B", 1.0, None),
        ("B>A", 0.0, None),
        ("A<<B", 0.0, -2.0),
        ("a-is-slightly-better", 1.0, 1.0),
        ("B-is-clearly-better", 0.0, -2.0),
        ("Tie", 0.5, None),
        ("tie (bothbad)", 0.5, None),
        ("both_bad", 0.5, None),
        ("A = B", 0.5, None),
        ("[[B]]", 0.0, None),
        ("A >> B", 1.0, 2.0),
    ],
)
def test_words_that_data_write(code, share, strength):
    assert coded_judgement("winner", code) == Judgement(share, strength)


@pytest.mark.parametrize("code", ["left", "", "C", "1", 1, 0, 1.5, True])
def test_unknown_codes_and_numbers_are_errors(code):
    with pytest.raises(RecordError, match=r"unknown code: field 'winner' is .*codes: \{") as caught:
        coded_judgement("winner", code)
    assert caught.value.value == code


@pytest.mark.parametrize("code", ["!A", "-A", "A\U0001f44e", "A+", "A->B", "\u22121", "- 1", ".5", "1,5"])
def test_a_sign_that_may_mean_something_makes_another_code(code):
    codes = check_codes({"1": "first", "5": "second"})
    with pytest.raises(RecordError, match="unknown code"):
        coded_judgement("winner", code, codes)
    assert coded_judgement("winner", code, check_codes({code: "tie"})) == (0.5, None)


@pytest.mark.parametrize("code", ["\u201cA\u201d", "**A**", "`model_a`.", "A:", "a\u2013is-better"])
def test_quotes_and_marks_say_nothing(code):
    assert coded_judgement("winner", code).share == 1


@pytest.mark.parametrize("code", [None, ["A"], math.nan])
def test_what_is_no_code(code):
    with pytest.raises(RecordError, match="wrong type"):
        coded_judgement("winner", code)


def test_codes_of_ones_own_come_first():
    codes = check_codes(
        {"1": "second", "0": "first", "Left": "first", "a": "second", "skip": "none", "even": 0.5}
    )
    expected = {1: 0.0, "1": 0.0, "1.0": 0.0, 0: 1.0, "left": 1.0, "A": 0.0, "even": 0.5, "B": 0.0}
    assert {code: coded_judgement("label", code, codes).share for code in expected} == expected
    assert coded_judgement("label", "Skip", codes) is None
    assert len(codes) == 6 and "a" in CODES


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"x": "left"}, "allowed: first | second | tie | none"),
        ({"x": 1.5}, "share that prefers the first"),
        ({"x": True}, "share that prefers the first"),
        ({"x-y": "first", "X Y": "second"}, "twice"),
    ],
)
def test_codes_that_mean_nothing(codes, message):
    with pytest.raises(ValueError, match=message):
        check_codes(codes)


@pytest.mark.parametrize(
    ("value", "positive", "share", "strength"),
    [(2, "first", 1.0, 2.0), (-2, "first", 0.0, -2.0), (3, "second", 0.0, -3.0), (-0.5, "second", 1.0, 0.5)],
)
def test_signs(value, positive, share, strength):
    assert signed_judgement("strength", value, positive) == Judgement(share, strength)


@pytest.mark.parametrize("positive", ["first", "second"])
@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_zero_is_a_tie_of_no_sign(value, positive):
    share, strength = signed_judgement("strength", value, positive)
    assert (share, strength, math.copysign(1, strength)) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("value", ["1", None, math.inf, True])
def test_what_is_no_signed_number(value):
    with pytest.raises(RecordError, match="strength"):
        signed_judgement("strength", value, "first")


def test_shares():
    assert shared_judgement("share", 0.25) == Judgement(0.25)
    with pytest.raises(RecordError, match=r"out of range: .*\[0, 1\]"):
        shared_judgement("share", 1.5)


OUTCOMES = ("first", "second", "tie", "none")


@pytest.mark.parametrize(
    ("flags", "judgement"),
    [
        ((1, 0, 0, 0), Judgement(1.0)),
        ((0.0, 1.0, 0, 0), Judgement(0.0)),
        ((False, False, True, False), Judgement(0.5)),
        ((0, 0, 0, 1), None),
    ],
)
def test_a_column_for_each_outcome(flags, judgement):
    assert one_hot_judgement(dict(zip("abcd", flags, strict=True)), OUTCOMES) == judgement


@pytest.mark.parametrize(
    "flags", [(0, 0, 0, 0), (1, 1, 0, 0), (0.5, 0.5, 0, 0), ("1", 0, 0, 0), (2, 0, 0, 0)]
)
def test_not_exactly_one_outcome(flags):
    with pytest.raises(RecordError):
        one_hot_judgement(dict(zip("abcd", flags, strict=True)), OUTCOMES)


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        (Judgement(1.0), (3, 5, 1.0, None)),
        (Judgement(0.0, -2.0), (5, 3, 1.0, 2.0)),
        (Judgement(0.5, 0.0), (3, 5, 0.5, 0.0)),
        (Judgement(0.25), (5, 3, 0.75, None)),
    ],
)
def test_the_winner_comes_first(judgement, expected):
    found = compared(3, 5, judgement, user="Mia", domain="law")
    assert (found.chosen, found.rejected, found.preference, found.strength) == expected
    assert (found.user, found.domain) == ("Mia", "law")


@pytest.mark.parametrize(
    ("judgements", "expected", "votes"),
    [
        ([Judgement(1.0, 2.0), Judgement(0.0, -1.0), Judgement(1.0, 1.0)], (0, 1, 2 / 3, 2 / 3), (2, 0, 1)),
        ([Judgement(0.0, -2.0), Judgement(0.5, 0.0)], (1, 0, 0.75, 1.0), (1, 1, 0)),
        ([Judgement(0.0, -2.0), Judgement(0.5)], (1, 0, 0.75, 1.0), (1, 1, 0)),
        ([Judgement(1.0), Judgement(0.5)], (0, 1, 0.75, None), (1, 1, 0)),
        ([Judgement(1.0, 1.0), Judgement(0.0)], (0, 1, 0.5, None), (1, 0, 1)),
        ([Judgement(0.0, 0.0)], (1, 0, 1.0, 0.0), (1, 0, 0)),
    ],
)
def test_votes_of_a_crowd(judgements, expected, votes):
    found = crowd_judgement(0, 1, judgements, domain="law", group="lay", weight=2.0)
    assert (found.chosen, found.rejected, found.preference, found.strength) == pytest.approx(expected)
    assert (found.votes, found.domain, found.group, found.weight) == (votes, "law", "lay", 2.0)


def test_a_share_is_no_vote():
    with pytest.raises(RecordError, match=r"0, 0\.5 or 1 of each person"):
        crowd_judgement(0, 1, [Judgement(0.7)])


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


def test_codes_are_found_however_they_are_written():
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


def test_a_code_of_any_length_is_told_in_short():
    with pytest.raises(RecordError, match="unknown code") as caught:
        coded_judgement("winner", "long " * 3000)
    assert len(str(caught.value)) < 700
