"""What is nobody else's business in what others get to read: secrets, and where somebody's files lie."""

import re
from pathlib import Path

__all__ = ["homeless", "is_secret", "without_secrets"]

SECRET = re.compile(r"(?i)(api_?key|token|secret|password)$")
"""The end of the name of a setting whose value nobody else is told."""

WRITTEN = re.compile(
    r"""(?i)((?:api_?key|token|secret|password)["']?\s*:\s*)("[^"]*"|'[^']*'|[^\s,}\]"']+)"""
)
"""Such a name with a value behind it, within a text."""


def is_secret(name: str) -> bool:
    """Whether a setting's value is a secret, going by its name.

    Args:
        name: Of the setting.
    """
    return SECRET.search(name) is not None


def without_secrets(text: str) -> str:
    """Settings written as JSON or YAML in one line, with ``***`` in the place of secrets.

    Args:
        text: Any.
    """
    return WRITTEN.sub(r"\1***", text)


def homeless(text: str) -> str:
    """Text in which the home folder is ``~``, whether it is named as it is called or as it lies on the disk.

    Args:
        text: Any.
    """
    home = Path.home()
    for place in sorted({str(home), str(home.resolve())}, key=len, reverse=True):
        if len(place) > 1:  # and not where another folder's path goes on in the same words
            text = re.sub(rf"(?<![\w.~-]){re.escape(place)}(?![\w-])", "~", text)
    return text
