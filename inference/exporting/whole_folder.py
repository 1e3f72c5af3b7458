"""A folder that is there whole or not at all: written beside, on the disk, and put in place."""

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pluralign.datamodules.whole_files import could_not_write, error_within, is_alive

__all__ = ["check_target", "folder_written_whole"]

ENDING = ".part"
ASIDE = ".before"
"""Ending of the old folder's name in the moment in which the new one takes its place."""
MARK = "pluralign.json"
"""By which an exported folder is known: no other one is replaced."""


def check_target(folder: Path, *, overwrite: bool, source: str) -> None:
    """Refuse a place that an export must not take, before anything large is read.

    Args:
        folder: To be written.
        overwrite: Whether an exported folder that is there is to be replaced.
        source: Of the model: a path, or a name on the hub.

    Raises:
        FileExistsError: If something is there that is not to be replaced.
        ValueError: If the folder is the source, within it, or around it.
    """
    origin, target = Path(source).expanduser().resolve(), folder.expanduser().resolve()
    if origin.exists():
        inside = origin if origin.is_dir() else origin.parent
        if (
            target == inside
            or target == origin
            or target in inside.parents
            or (origin.is_dir() and origin in target.parents)
        ):
            raise ValueError(
                f"--output {folder} is where the model is read from ({source}), within it or around it: name a folder elsewhere"
            )
    put_back(target)
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{folder} is there already: name another folder, or add --overwrite")
    if not target.is_dir() or (any(target.iterdir()) and not (target / MARK).is_file()):
        raise FileExistsError(
            f"{folder} is no folder that `pluralign export` wrote (it has no {MARK}), so --overwrite does not replace it: name another "
            "one"
        )


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when all is on the disk; until then what was there stays as it was.

    Args:
        folder: Where it is to be.

    Raises:
        OSError: If the disk is full, or the like; nothing is left of it then.
    """
    target = folder.expanduser().absolute()
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_begun(target)
        prefix = f".{target.name}.{socket.gethostname()}.{os.getpid()}."
        part = Path(tempfile.mkdtemp(prefix=prefix, suffix=ENDING, dir=target.parent))
        yield part
        mask = _umask()
        part.chmod(0o777 & ~mask)
        for path in sorted(part.rglob("*")):
            if path.is_file():
                path.chmod(0o666 & ~mask)  # some libraries let nobody else read what they write
                _sync(path)
        _sync(part)
        _put(part, target)
    except Exception as error:
        if (problem := _system_error(error)) is None:
            raise
        told = could_not_write(folder, problem, setting="--output")
        kept = "; the folder that was there before is as it was" if target.exists() else ""
        raise OSError(told.errno, f"{told.strerror}{kept}") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _put(part: Path, target: Path) -> None:
    """Have the new folder where the old one was; the old one is back if that fails."""
    if not target.exists():
        part.rename(target)
    else:
        aside = part.with_name(f"{part.name}{ASIDE}")
        target.rename(aside)
        try:
            part.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def put_back(folder: Path) -> None:
    """Have an old folder back that an export was about to replace when it was killed; or remove it, the new one being there.

    Args:
        folder: Where it was.
    """
    for aside in _left_by_killed(folder, f"{ENDING}{ASIDE}"):
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(folder)


def remove_begun(folder: Path) -> None:
    """Remove what exports of this machine have begun of the same folder that were killed: it may be large.

    Args:
        folder: Where it was to be.
    """
    for left in _left_by_killed(folder, ENDING):
        shutil.rmtree(left, ignore_errors=True)


def _left_by_killed(folder: Path, ending: str) -> list[Path]:
    """What processes of this machine that are no more have left beside a folder, under names that end so."""
    prefix = f".{folder.name}.{socket.gethostname()}."
    found = sorted(folder.parent.glob(f"{glob.escape(prefix)}*{ending}"))
    processes = [path.name.removeprefix(prefix).partition(".")[0] for path in found]
    return [
        path
        for path, process in zip(found, processes, strict=True)
        if process.isdigit() and not is_alive(int(process))
    ]


def _system_error(error: Exception) -> OSError | None:
    """The system's error behind another: safetensors and tokenizers tell of a full disk in exceptions of their own."""
    if isinstance(error, OSError):
        return error if error.errno is not None and not isinstance(error, FileExistsError) else None
    return error_within(error)
