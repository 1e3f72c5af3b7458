"""Another run's checkpoint, read as plain values; nothing that it claims is believed before it is there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pluralign.datamodules.untrusted import UNREADABLE, check_archive, check_bytes, check_claims

from .sharding import is_sharded_checkpoint

__all__ = ["begins", "check_file", "makes_module", "mapped_content", "read_checkpoint"]


def begins(name: str, start: str) -> bool:
    """Whether a weight's name is ``start``, or goes on from there after a dot."""
    return name == start or name.startswith(f"{start}.")


def check_file(path: str, setting: str = "init_from") -> None:
    """Raise ``FileNotFoundError`` unless there is such a file; ``setting`` is what names it."""
    if is_sharded_checkpoint(path):
        raise FileNotFoundError(
            f"{setting} names {str(path)!r}, a checkpoint in shards: `pluralign consolidate {path} -o FILE` makes a file of it"
        )
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
    content = _plain(path, setting, mapped=False)
    states = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(states, Mapping):
        raise ValueError(f"{setting}={path!r} holds no state_dict, so it is no checkpoint of a run")  # noqa: TRY004  the file is wrong
    for name in ("hyper_parameters", "pluralign"):
        if not isinstance(content.get(name, {}), Mapping):
            raise ValueError(  # noqa: TRY004  the file is wrong
                f"{setting}={path!r} is no checkpoint of a run: {name} must be settings by name, got {content[name]!r:.80}"
            )
    if odd := [
        name for name, value in states.items() if not (isinstance(name, str) and _is_state(name, value))
    ]:
        raise ValueError(
            f"{setting}={path!r} is no checkpoint of a run: state_dict must hold tensors by name, got {odd[0]!r:.80}"
        )
    return {**content, "state_dict": dict(states)}


def mapped_content(path: str) -> object:
    """What a checkpoint holds, whatever that is; weights are mapped, not kept in memory.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As :func:`read_checkpoint`.
    """
    return _plain(path, "path", mapped=True)


@contextmanager
def makes_module(path: object, kind: str) -> Iterator[None]:
    """Say which checkpoint it is whose settings or weights make no module; anything may stand in it.

    Args:
        path: Of the file, or what else it was read from.
        kind: Name of the module's class.

    Raises:
        ValueError: In place of an error that names no file; a RuntimeError stays one, a file that is missing another.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # settings reach whatever a module is made of
        if str(path) in str(error):
            raise
        told = RuntimeError if isinstance(error, RuntimeError) else ValueError
        raise told(f"{path} does not make a {kind}: {str(error) or type(error).__name__}") from error


def _plain(path: str, setting: str, *, mapped: bool) -> Any:  # noqa: ANN401  anything may be in it
    check_file(path, setting)
    size = Path(path).stat().st_size
    try:
        check_archive(Path(path))
        check_bytes(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        check_claims(content, size)
    except UNREADABLE as error:
        # torch goes on with advice to load whatever the file holds, which is to run it.
        reason = (
            str(error).partition("WeightsUnpickler error:")[2].strip() or str(error) or type(error).__name__
        )
        raise ValueError(
            f"{setting}={path!r} is no checkpoint of plain values, or not all of one ({size:,} bytes): "
            f"{reason.partition(chr(10))[0]}"
        ) from error
    return content


def _is_state(name: str, value: object) -> bool:
    """Whether a value may be one of a state: modules keep what is no tensor under this name."""
    return isinstance(value, torch.Tensor) or name.endswith("_extra_state")
