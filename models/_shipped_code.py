"""Code that ships with a network's weights: whoever opens a checkpoint says that it may run, never the checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["refuse_shipped_code"]

ALLOWED = "trust_remote_code"
"""Name of the setting, wherever it stands."""
ADVICE = f"open it with {ALLOWED}=True (--{ALLOWED})"


def refuse_shipped_code(kept: Mapping[str, Any], path: str, *, advice: str = ADVICE) -> None:
    """Refuse settings of a checkpoint under which loading a network runs code that ships with its weights.

    Args:
        kept: Hyperparameters that the checkpoint decides.
        path: Of the checkpoint, for the message.
        advice: How it is opened nevertheless.

    Raises:
        ValueError: If there are such settings; names the network, and what allows it.
    """
    for place, name in _allowing(kept):
        raise ValueError(
            f"{path} was trained with code that ships with {name!r} ({place}.{ALLOWED}=true), and reading a checkpoint runs no such "
            f"code by itself: {advice} if you trust it"
        )


def _allowing(settings: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Where settings allow it, and of which network; names may have dots, and a text may be read as settings."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            inside, _, name = f"{place}.{key}".rpartition(".")
            if name == ALLOWED and value:
                yield inside.removeprefix("."), settings.get("name") or settings.get("tokenizer")
            else:
                yield from _allowing(value, f"{place}.{key}")
    elif isinstance(settings, str):
        if ALLOWED in settings:
            yield place.removeprefix("."), settings
    elif isinstance(settings, Sequence):
        for value in settings:
            yield from _allowing(value, place)
