"""What is nobody else's business in what others get to read: secrets, and where somebody's files lie."""

import re
from pathlib import Path

__all__ = ["homeless", "is_secret"]

SECRET = re.compile(r"(?i)(api_?key|token|secret|password)$")
"""The end of the name of a setting whose value nobody else is told."""


def is_secret(name: str) -> bool:
    """Whether a setting's value is a secret, going by its name.

    Args:
        name: Of the setting.
    """
    return SECRET.search(name) is not None


def homeless(text: str) -> str:
    """Text in which the home folder is ``~``.

    Args:
        text: Any.
    """
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w-])", "~", text) if len(home) > 1 else text
