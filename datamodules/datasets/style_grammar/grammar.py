"""A small language with styles: how a response is written, and by which rules one tells the style that it shows."""

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...checks import check_range

__all__ = [
    "AXES",
    "DIMENSIONS",
    "HELD_OUT",
    "PROMPTS",
    "SPLITS",
    "VERSION",
    "StyleGrammar",
    "judge",
    "opposite",
    "prompts_of",
    "wish",
]

VERSION = 1
"""Counts up when equal settings give other data."""

AXES = {
    "tone": {"friendly": "be friendly .", "unfriendly": "be unfriendly ."},
    "expertise": {"simple": "use simple words .", "technical": "use technical words ."},
    "length": {"short": "keep it short .", "long": "tell everything you know ."},
}
"""Poles of each axis, and the sentence that asks for one."""

DIMENSIONS = tuple(f"{axis}.{pole}" for axis, poles in AXES.items() for pole in poles)
"""Names of the styles."""

HELD_OUT = (("friendly", "technical", "long"), ("unfriendly", "simple", "short"))
"""Combinations that those who write in one style rarely show: on every other axis they lean to the other pole."""

REQUESTS = (
    "please explain",
    "please describe",
    "tell me about",
    "tell us about",
    "describe",
    "explain",
    "show me",
    "show us",
    "what is",
)
KINDS = tuple("red blue green old new small large plain".split())  # noqa: SIM905
TOPICS = tuple(
    """anchor basket bridge candle carpet clock drum engine hammer kettle ladder lamp mirror piano tower
    wheel""".split()  # noqa: SIM905
)
SPLITS = ("train", "validation", "test", "predict")
NUM_PROMPTS = len(REQUESTS) * len(KINDS) * len(TOPICS)
PROMPTS: dict[str, int] = {"train": 640, "validation": 128, "test": 256, "predict": 128}
"""How many of the prompts each split has: all of them together."""
STEP = 389
"""Without a factor in common with ``NUM_PROMPTS``, so that multiplying by it modulo that names every prompt differently."""

TONE_WORDS = {
    "friendly": tuple("lovely hooray friend buddy dear cheers thanks smile".split()),  # noqa: SIM905
    "unfriendly": tuple("ugh bah hush fool pest nuisance enough whatever".split()),  # noqa: SIM905
}
"""Words of opener and closer, of two words each."""
CONTENT_WORDS = {
    "simple": tuple("big nice round soft easy pretty bright handy simple warm quick strong".split()),  # noqa: SIM905
    "technical": tuple(
        """torsional concentric anodised quenched tensile laminar isotropic ductile coaxial modular passive
        resonant""".split()  # noqa: SIM905
    ),
}
DETAILS = {"short": (0, 1), "long": (3, 4)}
"""How many details a response gives."""
MOST_DETAILS = 6
"""More of them are no well-formed response."""

Style = tuple[str, ...]
"""A pole of each axis, in the order of :data:`AXES`."""


class Parts(NamedTuple):
    """What a well-formed response is made of."""

    topic: str
    tone: list[str]
    """Its four words of tone."""
    content: list[str]
    """Its content words."""
    details: int
    """How many details follow the first statement."""


def prompt_text(number: int) -> str:
    """Text of the prompt with this number, below :data:`NUM_PROMPTS`; different numbers give different texts."""
    rest, request = divmod(number * STEP % NUM_PROMPTS, len(REQUESTS))
    topic, kind = divmod(rest, len(KINDS))
    return f"{REQUESTS[request]} the {KINDS[kind]} {TOPICS[topic]} ."


def prompts_of(split: str, number: int) -> list[str]:
    """The first prompts of a split."""
    start = sum(PROMPTS[before] for before in SPLITS[: SPLITS.index(split)])
    return [prompt_text(start + place) for place in range(number)]


def wish(axis: str, pole: str) -> str:
    """The sentence that asks for a style."""
    return AXES[axis][pole]


def opposite(axis: int, pole: str) -> str:
    """The other pole of an axis."""
    first, second = list(AXES.values())[axis]
    return second if pole == first else first


def leaning(dimension: str) -> Style:
    """Poles that one who writes in a style leans to: its own, and elsewhere those that :data:`HELD_OUT` lacks beside it."""
    axis, pole = dimension.split(".")
    place = list(AXES).index(axis)
    combination = next(poles for poles in HELD_OUT if poles[place] == pole)
    return tuple(
        pole if other == place else opposite(other, wanted) for other, wanted in enumerate(combination)
    )


class StyleGrammar:
    """Writes responses in styles, and the texts of those who favour one."""

    def __init__(self, *, spurious: float, noise: float) -> None:
        """Keep how writers of one style write.

        Args:
            spurious: How far they lean on the axes that are not theirs, in [0, 1]: 0 evenly, 1 always to the same pole.
            noise: Share of their texts that show the other pole of their own axis, in [0, 0.5].

        Raises:
            ValueError: If a number is outside its range.
        """
        check_range("spurious", spurious, at_least=0, at_most=1)
        check_range("noise", noise, at_least=0, at_most=0.5)
        self.spurious, self.noise = spurious, noise

    def style(self, rng: np.random.Generator, dimension: str | None) -> Style:
        """Draw the style of a text by a writer who favours a dimension; evenly for None."""
        if dimension is None:
            return tuple(str(rng.choice(list(poles))) for poles in AXES.values())
        place = list(AXES).index(dimension.split(".")[0])
        chances = [1 - self.noise if axis == place else (1 + self.spurious) / 2 for axis in range(len(AXES))]
        return tuple(
            pole if rng.random() < chance else opposite(axis, pole)
            for axis, (pole, chance) in enumerate(zip(leaning(dimension), chances, strict=True))
        )

    def response(self, rng: np.random.Generator, prompt: str, style: Style) -> str:
        """Write a response to a prompt in a style."""
        tone, expertise, length = style
        first, second, third, last = (str(word) for word in rng.choice(TONE_WORDS[tone], 4))
        details = int(rng.choice(DETAILS[length]))
        content = [str(word) for word in rng.choice(CONTENT_WORDS[expertise], 2 * (1 + details))]
        pairs = [f"{one} {two}" for one, two in zip(content[::2], content[1::2], strict=True)]
        return f"{first} {second} the {topic_of(prompt)} is {' , also '.join(pairs)} . {third} {last}"


def topic_of(prompt: str) -> str | None:
    """The first topic that a prompt names; None if it names none."""
    return next((word for word in prompt.split() if word in TOPICS), None)


@cache
def _pattern() -> re.Pattern[str]:
    tone, content = ("|".join(map("|".join, words.values())) for words in (TONE_WORDS, CONTENT_WORDS))
    pair = f"(?:{content}) (?:{content})"
    return re.compile(
        rf"({tone}) ({tone}) the ({'|'.join(TOPICS)}) is "
        rf"({pair}(?: , also {pair}){{0,{MOST_DETAILS}}}) \. ({tone}) ({tone})"
    )


def parts(response: str) -> Parts | None:
    """Parts of a response; None if it is not well-formed. White space is taken as it comes."""
    found = _pattern().fullmatch(" ".join(response.split()))
    if found is None:
        return None
    first, second, topic, body, third, last = found.groups()
    content = [word for word in body.split() if word not in (",", "also")]
    return Parts(topic, [first, second, third, last], content, len(content) // 2 - 1)


def shares(prompt: str, response: str) -> dict[str, float]:
    """How much of each style a response shows, in [0, 1]; the poles of an axis sum to 1, or to 0 in a malformed response."""
    read = parts(response)
    if read is None or read.topic != topic_of(prompt):
        return dict.fromkeys(DIMENSIONS, 0.0)
    tone = sum(word in TONE_WORDS["friendly"] for word in read.tone) / len(read.tone)
    simple = sum(word in CONTENT_WORDS["simple"] for word in read.content) / len(read.content)
    short = 1 - min(max(read.details - 1, 0), 2) / 2
    values = [share for first in (tone, simple, short) for share in (first, 1 - first)]
    return dict(zip(DIMENSIONS, values, strict=True))


def judge(prompts: Sequence[str], responses: Sequence[str], dimensions: Sequence[str] = DIMENSIONS) -> Tensor:
    """Share of the style that each response shows, by rules.

    Tone is the share of the four words of opener and closer, expertise that of the content words; of length a response of at most
    one detail shows only ``short``, one of three or more only ``long``, and one of two half of each.

    Args:
        prompts: S prompts; what else they say beside the topic does not matter.
        responses: Their responses, S.
        dimensions: D names, such as ``tone.friendly``.

    Returns:
        (S, D) float32 in [0, 1]; 0 where a response is not well-formed or is about another topic.

    Raises:
        ValueError: If there are not as many responses as prompts, or a dimension is unknown.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"there must be a response for each prompt, got {len(prompts)} and {len(responses)}")
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"dimensions must be among {', '.join(DIMENSIONS)}; got {', '.join(unknown)}")
    rows = [shares(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    values = [[row[name] for name in dimensions] for row in rows]
    return torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(dimensions))
