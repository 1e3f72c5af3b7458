"""The prompt that two texts share, where nothing but the texts tells it.

The prompt is the longest common beginning that ends where a line or a sentence does, and leaves both sides an answer. So words that
both answers begin with stay in the answers, unless they are whole sentences; and where the common beginning has no such end, no prompt
is told.
"""

import re
from itertools import takewhile
from typing import NamedTuple

__all__ = ["SharedPrompt", "shared_prompt"]

LONG = 40
"""Letters that are enough to tell questions apart."""
CLOSING = r"[\"')\]\u2019\u201d\u00bb]*"
FULL_WIDTH = r"[\u3002\uff01\uff1f\uff61\ufe56\ufe57]"
OTHER_SCRIPTS = r"[\u061f\u06d4\u0964\u0965\u1362\u1367\u0589\u17d4\u17d5\u104b\u0f0d\u0f0e]"
"""Of Arabic, Urdu, Hindi, Amharic, Armenian, Khmer, Burmese and Tibetan, as escapes."""
END = re.compile(
    r"\n"
    rf"|[!?\u203c\u2047-\u2049]{CLOSING}(?=\s)"
    rf"|(?<=[^\W\d_]{{2}})[.\u2026]{CLOSING}(?=\s+[^\sa-z])"
    rf"|(?:{FULL_WIDTH}|{OTHER_SCRIPTS})[\u2019\u201d\u300d\u300f\uff09\u3011\u300b\u3009\u3015\uff3d]*"
)
"""Where a line or a sentence ends: ``!``, ``?`` and ``.`` before white space, full-width marks and those of other scripts anywhere.
A point ends a sentence behind two letters, if no small letter follows: neither ``1.`` nor ``e.g.`` does."""


class SharedPrompt(NamedTuple):
    """What two texts begin with.

    Attributes:
        prompt: Without white space at its end; empty where none is told.
        answers: What follows it in each.
        group: By which the row is divided from others where the prompt alone does not tell; None for the prompt.
    """

    prompt: str
    answers: tuple[str, str]
    group: str | None


def shared_prompt(first: str, second: str) -> SharedPrompt:
    """Prompt and answers of two texts.

    Rows of a question whose end is not told are kept on one side of a random split by what is told of it: the common beginning
    up to its last white space, and no more than 40 letters behind the last end of a sentence, so that a heading that all
    rows have does not make one group of them.
    """
    pairs = zip(first, second, strict=False)
    shared = first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
    if first == second:  # no prompt can be told from it, and the pair will be dropped
        return SharedPrompt("", (first, second), None)
    ends = [match.end() for match in END.finditer(first[: len(shared) + 1]) if match.end() <= len(shared)]
    end = next(
        (
            place
            for place in reversed(ends)
            if shared[:place].strip() and first[place:].strip() and second[place:].strip()
        ),
        0,
    )
    while end and shared[end - 1] != "\n" and shared[end : end + 1].isspace():
        end += 1  # white space between sentences is of neither
    prompt, rest = shared[:end].rstrip(), shared[end:].lstrip()
    group = None
    if not prompt or len(rest.strip()) > LONG:
        group = f"{prompt}\n{_whole_words(rest)[:LONG]}".strip() or None
    return SharedPrompt(prompt, (first[end:], second[end:]), group)


def _whole_words(text: str) -> str:
    """Text up to its last white space: the word behind it may go on differently; all of it where there is none."""
    space = re.search(r"\s\S*\Z", text)
    return text[: space.start()] if space else text
