"""What is nobody else's business in what others get to read: secrets, and where somebody's files lie."""

import re
from pathlib import Path

__all__ = ["MASK", "homeless", "is_credential", "is_secret", "without_login", "without_secrets"]

MASK = "***"
"""What stands in the place of a secret."""

SECRET = re.compile(r"(?i)(api_?key|token|secret|password)$")
"""The end of the name of a setting whose value nobody else is told."""

WRITTEN = re.compile(
    r"""(?i)((?:api_?key|token|secret|password)["']?\s*:\s*)("[^"]*"|'[^']*'|[^\s,}\]"']+)"""
)
"""Such a name with a value behind it, within a text."""


CREDENTIAL = re.compile(
    r"(?i)(^|_)(api_?key|(access|auth|hf|hub|bearer|api|secret)_?(key|token)|secret|passwd|password)$|^token$"
)
"""Name of a setting that lets its reader in somewhere: closer than :data:`SECRET`, for a text such as `pad_token` is needed again."""
LOGIN = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
"""User and password in an address."""


def is_credential(name: str) -> bool:
    """Whether a setting's value lets its reader in somewhere, going by its name.

    Args:
        name: Of the setting, without what stands before its last dot.
    """
    return CREDENTIAL.search(name) is not None


def without_login(text: str) -> str:
    """Text with ``***`` in the place of user and password in addresses.

    Args:
        text: Any.
    """
    return LOGIN.sub(MASK, text)


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
