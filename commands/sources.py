"""Configurations laid over one another: none may take a mixture's sources away that it does not name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import get_loader

__all__ = ["check_sources"]

OPTION = re.compile(r"--data(?:\.init_args)?\.sources=(.*)", re.DOTALL)


def check_sources(files: Sequence[object], words: Sequence[str]) -> None:
    """Make sure that what changes a source of a mixture keeps the others.

    A mapping that comes later has its entries laid over those of before, and all others are gone
    (``findings/jsonargparse_later_mapping_drops_entries.sh``). One that says of every source what it is means to
    replace them.

    Args:
        files: Configurations, in their order, as jsonargparse has them.
        words: Of the command line.

    Raises:
        ValueError: If sources would be lost; names them, and what to write.
    """
    before: list[str] = []
    for origin, sources in _given(files, words):
        lost = [name for name in before if name not in sources]
        if lost and not all(isinstance(each, Mapping) and "class_path" in each for each in sources.values()):
            changed = next(iter(sources))
            raise ValueError(
                f"{origin} changes the source {changed!r} of the mixture, and would take away {', '.join(map(repr, lost))}, which "
                f"stand in a configuration before it: write --data.sources.{changed}.OPTION, or give all sources again, each "
                "with its class_path"
            )
        before = list(sources)


def _given(files: Sequence[object], words: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where sources of a mixture are given, and what is, in order."""
    for path in files:
        read = getattr(path, "get_content", None)  # of a jsonargparse path; inline content is none
        content = get_loader("yaml")(read()) if read is not None else None
        for name in ("data", "init_args", "sources"):
            content = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(content, Mapping) and content:
            yield str(path), content
    for word in words:
        match = OPTION.fullmatch(word)
        content = get_loader("yaml")(match[1]) if match else None
        if isinstance(content, Mapping) and content:
            yield "--data.sources", content
