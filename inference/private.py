"""What is nobody else's business in what others get to read: secrets, and where somebody's files lie."""

import re
from pathlib import Path

__all__ = ["MASK", "homeless", "is_credential", "is_secret", "without_login", "without_secrets"]

MASK = "***"
"""What stands in the place of a secret."""

SECRET = re.compile(r"(?i)(api_?key|token|secret|password)$")
"""The end of the name of a setting whose value nobody else is told."""

WRITTEN = re.compile(
    r"""(?i)((?:(?:api|access|account|private|secret)_?key|token|secret|passwd|password)["']?\s*:\s*)"""
    r"""("[^"]*"|'[^']*'|[^\s,}\]"']+)"""
)
"""Such a name with a value behind it, within a text."""


CREDENTIAL = re.compile(
    r"(?i)(^|_)(api_?key|(access|account|auth|bearer|api|github|hf|hub|private|refresh|sas|secret|session)_?(key|token)|"
    r"secret|passwd|password)$|^token$"
)
"""Name of a setting that lets its reader in somewhere: closer than :data:`SECRET`, for a text such as `pad_token` is needed again."""
LOGIN = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
"""User and password in an address."""
QUERY = re.compile(r"(?<=://)[^\s'\"?]*\?[^\s'\"]*")
"""An address up to the end of its query."""
SIGNATURE = re.compile(r"(?i)(?<=[?&])([^=&]*(?:sig|signature|token|api_?key|secret|password)=)[^&,}\]]+")
"""What of a query lets its reader in, such as the signature of a file that is open for a while."""


def is_credential(name: str) -> bool:
    """Whether a setting's value lets its reader in somewhere, going by its name.

    Args:
        name: Of the setting, without what stands before its last dot.
    """
    return CREDENTIAL.search(name) is not None


def without_login(text: str) -> str:
    """Text with ``***`` in the place of user and password in addresses, and of signatures and tokens in their queries.

    Args:
        text: Any.
    """
    text = LOGIN.sub(MASK, text)
    return QUERY.sub(lambda address: SIGNATURE.sub(rf"\g<1>{MASK}", address[0]), text)


def is_secret(name: str) -> bool:
    """Whether a setting's value is a secret, going by its name.

    Args:
        name: Of the setting.
    """
    last = name.rpartition(".")[2].lstrip("-").replace("-", "_")
    return SECRET.search(name) is not None or is_credential(last)


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
