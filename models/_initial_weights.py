"""Another run's checkpoint, read as plain values."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

__all__ = ["begins", "check_file", "read_checkpoint"]


def begins(name: str, start: str) -> bool:
    """Whether a weight's name is ``start``, or goes on from there after a dot."""
    return name == start or name.startswith(f"{start}.")


def check_file(path: str, setting: str = "init_from") -> None:
    """Raise ``FileNotFoundError`` unless there is such a file; ``setting`` is what names it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{setting} names {path!r}, which is no file")


def read_checkpoint(path: str, setting: str = "init_from") -> dict[str, Any]:
    """A checkpoint's plain values.

    Args:
        path: The file.
        setting: What names it, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, ends in the middle, or holds more than plain values.
    """
    check_file(path, setting)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:  # OSError: a file that was cut off
        size = Path(path).stat().st_size
        # torch goes on with advice to load whatever the file holds, which is to run it.
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        raise ValueError(
            f"{setting}={path!r} is no checkpoint of plain values, or not all of one ({size:,} bytes): "
            f"{reason.partition(chr(10))[0]}"
        ) from error
    states = content.get("state_dict") if isinstance(content, dict) else None
    if states is None:
        raise ValueError(f"{setting}={path!r} holds no state_dict, so it is no checkpoint of a run")
    return {**content, "state_dict": dict(states)}
