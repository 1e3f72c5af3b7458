"""Blocks of code in the pages, and what stands before each that is not run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n+)?^(?P<indent> *)```(?P<language>python|sh)\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of Python or of a shell's commands."""

    page: str
    language: str
    code: str
    reason: str | None
    """Why it is not run here; None if it is."""

    @property
    def is_session(self):
        """Whether it shows what Python answers."""
        return self.code.lstrip().startswith(">>>")


def blocks_of(page):
    """All blocks of a page, from its first to its last."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, m["language"], m["code"], m["reason"]) for m in FENCE.finditer(text)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
