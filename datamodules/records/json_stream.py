"""JSON values of a text that arrives in pieces: those of one list, or one after another, in memory one at a time."""

import json
import re
from collections.abc import Callable, Iterator

from .json_text import Decoded, decode_next

__all__ = ["JsonValues"]

PIECE = 1 << 20
"""Characters that are read at a time, unless a value is longer."""
BLANKS = re.compile(r"[ \t\n\r]*")
TOKEN = 16
"""Characters within which a decoder has seen what any token is, but for a string, which says itself that it goes on."""


class JsonValues:
    """A place in a text, and the text from there on as far as it was needed."""

    def __init__(self, read: Callable[[int], str]) -> None:
        """Read nothing yet.

        Args:
            read: Gives so many characters more, and none at the end.
        """
        self._read = read
        self._text, self._place = "", 0
        self._before, self._lines, self._counted = 0, 0, 0

    @property
    def line(self) -> int:
        """The line of the place, counted from 1."""
        self._lines += self._text.count("\n", self._counted, self._place)
        self._counted = self._place
        return self._lines + 1

    def following(self) -> str:
        """The next character that is not blank; none at the end."""
        while True:
            blanks = BLANKS.match(self._text, self._place)
            self._place = blanks.end() if blanks else self._place
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def listed(self) -> Iterator[Decoded]:
        """The entries of the one list that the text is.

        Raises:
            ValueError: If it is no such list.
            RecordError: If a value is nested too deeply.
        """
        if self.following() != "[":
            raise self._wrong("Expecting a list")
        self._place += 1
        end = self.following() == "]"
        while not end:
            self.following()
            yield self._value()
            end = self.following() == "]"
            if not end and self.following() != ",":
                raise self._wrong("Expecting ',' delimiter")
            self._place += not end
        self._place += 1
        if self.following():
            raise self._wrong("Extra data")

    def successive(self) -> Iterator[tuple[int, Decoded]]:
        """The values one after another, each with the line in which it begins.

        Raises:
            ValueError: If something is no JSON.
            RecordError: If a value is nested too deeply.
        """
        while self.following():
            line = self.line
            yield line, self._value()

    def _more(self) -> bool:
        """Read on, twice as much as there is, and forget what is done; whether there was more."""
        size = len(self._text) - self._place
        piece = self._read(max(PIECE, size))
        if piece:
            self._lines = self.line - 1
            self._before += self._place
            self._text = self._text[self._place :] + piece
            self._place = self._counted = 0
        return piece != ""

    def _value(self) -> Decoded:
        """The value that begins at the place."""
        while True:
            try:
                decoded, end = decode_next(self._text, self._place)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos + TOKEN > len(self._text)
                if goes_on and self._more():
                    continue
                self._place = error.pos
                raise self._wrong(error.msg) from None
            # Of a number that goes on in the next piece, the beginning is one too.
            needed = TOKEN if isinstance(decoded.value, int | float) else 0
            if end + needed <= len(self._text) or not self._more():
                self._place = end
                return decoded

    def _wrong(self, problem: str) -> ValueError:
        return ValueError(f"{problem}: line {self.line} (character {self._before + self._place})")
