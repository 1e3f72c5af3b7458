"""Who won a pair, in the many ways that data say it: a word, a number, a signed strength, a column for each outcome.

Whatever the form, it becomes a :class:`Judgement` about a first and a second response, and
:func:`compared` makes a comparison of it, the winner first. What is not known is an error, never a default: a code read
as another one is a wrong label that nothing shows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast, get_args

from .fields import number_field
from .record import FLOAT32_MAX, Comparison, RecordError, listed, shown
from .votes import majority_comparison

__all__ = [
    "CODES",
    "Judgement",
    "Outcome",
    "Side",
    "check_codes",
    "coded_judgement",
    "compared",
    "crowd_judgement",
    "known_code",
    "one_hot_judgement",
    "shared_judgement",
    "signed_judgement",
]

Side = Literal["first", "second"]
Outcome = Literal["first", "second", "tie", "none"]
"""Which side won; ``none`` where the code says that nobody judged."""


class Judgement(NamedTuple):
    """What one judge, or a crowd, says of a pair.

    Attributes:
        share: Share that prefers the first, in [0, 1]; 0.5 is a tie.
        strength: How strongly, above 0 for the first and below for the second; None if unknown.
    """

    share: float
    strength: float | None = None


FIRST, TIE, SECOND = Judgement(1.0), Judgement(0.5), Judgement(0.0)
OUTCOMES: dict[str, Judgement | None] = {"first": FIRST, "second": SECOND, "tie": TIE, "none": None}

SIDES = (
    "model",
    "response",
    "answer",
    "output",
    "completion",
    "assistant",
    "conversation",
    "option",
    "text",
    "side",
)
LEVELS = {
    2.0: ("is better", "is clearly better", "is much better", "is significantly better", "is strongly better"),
    1.0: ("is slightly better",),
}  # fmt: skip
TIES = (
    "tie", "draw", "equal", "same", "neither", "tie bothbad", "tie both bad", "both bad", "bothbad", "both good",
    "about the same", "no preference", "tie inconsistent", "inconsistent", "a=b", "b=a",
)  # fmt: skip


NUMBER_CODE = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
BETWEEN_WORDS = re.compile(
    r"[_*;:\"'`()\[\]{}\u00ab\u00bb\u2018-\u201e]|[.,](?!\d)|(?<=[^\W_])[-\u2010-\u2014](?=[^\W_])"
)
"""What says nothing in a code: quotes, brackets, marks behind words, hyphens between them."""


def _codes() -> dict[str, Judgement]:
    codes = {"first": FIRST, "second": SECOND, **dict.fromkeys(TIES, TIE)}
    for share, sign, letter, order in ((1.0, 1, "a", ("a", "b")), (0.0, -1, "b", ("b", "a"))):
        plain = Judgement(share)
        codes |= {letter: plain, f"{letter} wins": plain}
        codes |= {f"{side} {letter}": plain for side in SIDES}
        first, second = order
        codes |= {f"{first}>{second}": plain, f"{second}<{first}": plain}
        codes |= {
            f"{first}>>{second}": Judgement(share, sign * 2.0),
            f"{second}<<{first}": Judgement(share, sign * 2.0),
        }
        codes |= {
            f"{letter} {words}": Judgement(share, sign * level)
            for level, names in LEVELS.items()
            for words in names
        }
    return codes


CODES: Mapping[str, Judgement] = _codes()
"""What the words mean that public data write for the outcome of a pair, as :func:`_plain` writes them.

Numbers are not among them: 1 is the first side in one data set, the second in another, and a tie nowhere by itself.
Levels of five (``A-is-clearly-better``, ``a-is-slightly-better``) have a strength of 2 and 1.
"""


def check_codes(
    codes: Mapping[str, str | float], positive: Side | None = None
) -> dict[str, Judgement | None]:
    """Codes of one's own, which come before :data:`CODES`.

    Args:
        codes: For each code, as the data write it, ``first``, ``second``, ``tie``, ``none`` (nobody judged) or a number.
        positive: Which side a number above 0 prefers: numbers are then signed strengths, such as 2 and -1 for levels of
            one's own; if None they are shares that prefer the first, in [0, 1].

    Returns:
        What each means, by the code as it is compared.

    Raises:
        ValueError: If a meaning is none of these, or two codes are the same but for case and punctuation.
    """
    number = (
        "the share that prefers the first in [0, 1] (or, with positive: first | second, a signed strength)"
        if positive is None
        else "a finite signed strength"
    )
    allowed = f"{' | '.join(get_args(Outcome))}, or {number}"
    meanings: dict[str, Judgement | None] = {}
    for code, meaning in codes.items():
        if isinstance(meaning, str):
            known = meaning in OUTCOMES
        else:
            known = not isinstance(meaning, bool) and (
                0 <= meaning <= 1 if positive is None else math.isfinite(meaning)
            )
        if not known:
            raise ValueError(f"codes[{code!r}] is {meaning!r}; allowed: {allowed}")
        if isinstance(meaning, str):
            judgement = OUTCOMES[meaning]
        elif positive is None:
            judgement = Judgement(float(meaning))
        else:
            judgement = signed_judgement("codes", meaning, positive)
        if (name := _plain(str(code))) in meanings:
            raise ValueError(f"codes has {code!r} twice: case and punctuation do not tell codes apart")
        meanings[name] = judgement
    return meanings


def coded_judgement(
    field: str, value: object, codes: Mapping[str, Judgement | None] | None = None
) -> Judgement | None:
    """What a word or a number says of a pair.

    Args:
        field: Name to use in an error; so for all functions here.
        value: Text, a whole number or a truth value, as the data have it.
        codes: As :func:`check_codes` gives them; they come before :data:`CODES`.

    Returns:
        The judgement; None where the code says that nobody judged.

    Raises:
        RecordError: If the code is unknown; numbers are, unless ``codes`` has them.
    """
    codes = codes or {}
    name = _code(value)
    if name is None:
        raise RecordError(field, value, "a code for the winner: text or a number", reason="wrong type")
    if name in codes:
        return codes[name]
    if name in CODES:
        return CODES[name]
    known = listed(codes, 8) if codes else "words such as A, model_a, A>B, tie, a-is-slightly-better"
    allowed = f"a code that is known ({known}): say what it means, codes: {{{shown(value)}: first | second | tie | none}}"
    raise RecordError(field, value, allowed, reason="unknown code")


def known_code(value: object, codes: Mapping[str, Judgement | None]) -> bool:
    """Whether codes of one's own, as :func:`check_codes` gives them, say what a value means."""
    return bool(codes) and _code(value) in codes


def _code(value: object) -> str | None:
    """A value as codes are compared; None if it is neither text nor a finite number."""
    if isinstance(value, bool):
        return str(value).casefold()
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, int | float) and abs(value) <= FLOAT32_MAX:
        return _plain(f"{value:.15g}")
    return None


def signed_judgement(field: str, value: object, positive: Side) -> Judgement:
    """What a signed number says: by its sign who won, by its size how strongly; 0 is a tie.

    Args:
        field: Name to use in an error.
        value: A finite number.
        positive: Which side a number above 0 prefers.

    Raises:
        RecordError: If it is no finite number.
    """
    number = number_field(field, value, -math.inf, math.inf)
    strength = number if positive == "first" else -number
    share = 0.5 if strength == 0 else float(strength > 0)
    return Judgement(share, strength + 0.0)


def shared_judgement(field: str, value: object) -> Judgement:
    """What the share says that prefers the first.

    Raises:
        RecordError: If it is no number in [0, 1].
    """
    return Judgement(number_field(field, value, 0.0, 1.0))


def one_hot_judgement(fields: Mapping[str, object], outcomes: Sequence[Outcome]) -> Judgement | None:
    """What a column for each outcome says, of which one holds 1 (or true) and the others 0 (or false).

    Args:
        fields: Value of each column by its name.
        outcomes: What each of them stands for.

    Raises:
        RecordError: If a value is neither 0 nor 1, or not exactly one is 1.
    """
    flags = {
        name: number_field(name, int(v) if isinstance(v, bool) else v, 0.0, 1.0) for name, v in fields.items()
    }
    for name, flag in flags.items():
        if flag not in (0.0, 1.0):
            raise RecordError(name, fields[name], "0 or 1", reason="out of range")
    chosen = [outcome for flag, outcome in zip(flags.values(), outcomes, strict=True) if flag]
    if len(chosen) != 1:
        allowed = f"1 in exactly one of {', '.join(flags)}"
        raise RecordError(", ".join(flags), list(fields.values()), allowed, reason="out of range")
    return OUTCOMES[chosen[0]]


def compared(first: int, second: int, judgement: Judgement, **others: Any) -> Comparison:  # noqa: ANN401  a record checks them
    """A comparison of two responses, the winner first; of a tie the order stays.

    Args:
        first: Index of the first response.
        second: Index of the second.
        judgement: About them.
        **others: What else the comparison has, such as ``user``; what counts sides, such as ``votes``, is not turned round.
    """
    share, strength = judgement
    if share < 0.5:
        first, second, share = second, first, 1 - share
        strength = None if strength is None else -strength + 0.0
    return Comparison(first, second, preference=share, strength=strength, **others)


def crowd_judgement(first: int, second: int, judgements: Sequence[Judgement], **others: Any) -> Comparison:  # noqa: ANN401  likewise
    """One comparison of what several people say who have no names: their votes for chosen, tie and rejected.

    Its strength is the mean of theirs, if all have one; a tie that has none beside others that do is 0.

    Args:
        first: Index of the first response.
        second: Index of the second.
        judgements: One for each person, at least one; each for the first, the second or neither.
        **others: What else the comparison has, such as ``domain``.

    Raises:
        RecordError: If a share is none of 0, 0.5 and 1: that is no single person's vote.
    """
    shares = [judgement.share for judgement in judgements]
    if wrong := [share for share in shares if share not in (0.0, 0.5, 1.0)]:
        raise RecordError("judgements", wrong[0], "0, 0.5 or 1 of each person", reason="out of range")
    votes = cast(tuple[float, float, float], tuple(float(shares.count(share)) for share in (1.0, 0.5, 0.0)))
    comparison = replace(majority_comparison(first, second, votes), **others)
    strengths = [judgement.strength for judgement in judgements if judgement.strength is not None]
    if not strengths or any(share != 0.5 and strength is None for share, strength in judgements):
        return comparison
    mean = sum(strengths) / len(judgements)
    return replace(comparison, strength=mean if comparison.chosen == first else -mean + 0.0)


def _plain(code: str) -> str:
    """A code without case, quotes, brackets and what stands between words; signs that may mean something stay.

    So ``>``, ``!``, ``+``, emoji and a hyphen that is a sign do: a code that has one is not the code without it.
    """
    if NUMBER_CODE.fullmatch(code.strip()):
        return f"{float(code):.15g}"
    words = " ".join(BETWEEN_WORDS.sub(" ", code.casefold()).split())
    return re.sub(r" ?([<>=]+) ?", r"\1", words) or code
