"""What decides the records of data, as plain values: compared, and divided into what training reads and what it does not."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["NOT_TRAINED_ON", "WHERE", "content_changes", "plain_content", "without"]

WHERE = ("tokenizer", "revision", "trust_remote_code")
"""Entries of a text format that say where a tokenizer lies; its digest says which one it is."""
NOT_TRAINED_ON = ("test", "predict")
"""Splits that no training reads."""


def plain_content(content: Mapping[str, object]) -> dict[str, object]:
    """Content of data, as :meth:`PreparedData.content` has it, in the plain values that a checkpoint holds."""
    plain: dict[str, object] = json.loads(json.dumps(content, default=str))
    return plain


def content_changes(before: object, now: object, name: str = "") -> list[str]:
    """What differs between two contents, but for splits that no training reads.

    Args:
        before: As :func:`plain_content` gave it.
        now: Likewise.
        name: Of what is compared; for the recursion.

    Returns:
        Of every difference, what it is: files of a source by name, settings with both values.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now} - {*NOT_TRAINED_ON})
        parts = [content_changes(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [change for part in parts for change in part]
    if before == now:
        return []
    files_of = re.fullmatch(r"(?:mixture\.(.+\.))?sources\.(\w+)", name)
    if files_of and isinstance(before, list) and isinstance(now, list):
        same = [file for file, _ in before] == [file for file, _ in now]
        files = ", ".join(sorted(file for file, _ in now))
        source = (files_of[1] or "") + files_of[2]
        return [
            f"{source} has other bytes in {files}" if same else f"{source} is read from other files, {files}"
        ]
    return [f"{name.removeprefix('mixture.').removeprefix('settings.')} was {before!r}, is {now!r}"]


def without(value: Any, names: Collection[str]) -> Any:  # noqa: ANN401  plain values, nested
    """Plain values without those of some names, at every depth."""
    if isinstance(value, Mapping):
        return {key: without(each, names) for key, each in value.items() if key not in names}
    return [without(each, names) for each in value] if isinstance(value, list) else value
