"""Files that are there whole or not at all, written by one process at a time, and what to say where a disk does not take them."""

import errno
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "REFUSED",
    "appended_whole",
    "could_not_write",
    "error_within",
    "is_alive",
    "locked_folder",
    "sync_folder",
    "written_whole",
]

log = logging.getLogger(__name__)

ENDING = ".part"
SETTING, LOCK = "--trainer.default_root_dir", "lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
REFUSED = (*FULL, errno.EROFS)
"""What only a disk says that takes no file: there is no room, or nothing can be written."""
being_written: set[Path] = set()
"""Unfinished files of this process."""


def could_not_write(path: Path, error: OSError, *, setting: str = SETTING) -> OSError:
    """What to raise where a file could not be written: names file, disk and what to do.

    Args:
        path: Of the file.
        error: As the system gave it.
        setting: What may name another place.
    """
    message = f"could not write {path}: {error.strerror or error}"
    with suppress(OSError):
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        disk = shutil.disk_usage(folder)
        message += (
            f" ({disk.free / 2**30:,.2f} of {disk.total / 2**30:,.2f} GiB are free on the disk of {folder})"
        )
    if path.is_file():
        message += "; the file that was there before is as it was"
    if error.errno in FULL:
        message += f". Make room, or let {setting} name a folder on another disk"
    elif error.errno in LOCKED:
        message += f". Let {setting} name a folder that you may write to"
    return OSError(error.errno, message)


@contextmanager
def written_whole(path: Path, *, setting: str = SETTING) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file once all are on the disk; until then the file stays as it was.

    They are written beside the file, in its folder: a file moves in one step only within one file system. What killed
    processes of this machine have left there of the same file is removed.

    Args:
        path: Of the file; its folder is made.
        setting: What may name another place, for the message where the disk does not take it.

    Raises:
        OSError: If the disk is full, the folder cannot be written or the like; nothing is left of it then.
    """
    host = socket.gethostname()
    part = path.with_name(f".{path.name}.{host}.{os.getpid()}{ENDING}")
    being_written.add(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path.parent, host)
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException as problem:
        with suppress(OSError):
            part.unlink()
        error = _system_error(problem)
        if error is None:
            raise
        raise could_not_write(path, error, setting=setting) from error
    finally:
        being_written.discard(part)


@contextmanager
def appended_whole(path: Path, *, setting: str = SETTING) -> Iterator[BinaryIO]:
    """A stream whose bytes go to the end of a file; where that fails, the file is cut to what it held before.

    A process that is killed meanwhile may leave a part of them: whoever reads lines leaves out one that has no end.

    Args:
        path: Of the file; it is made where there is none, and so is its folder.
        setting: What may name another place, for the message where the disk does not take it.

    Raises:
        OSError: If the disk is full, the file cannot be written or the like.
    """
    before = path.stat().st_size if path.is_file() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            yield stream
    except OSError as error:
        with suppress(OSError):
            if before is None:
                path.unlink()
            else:
                os.truncate(path, before)
        raise could_not_write(path, error, setting=setting) from error


def locked_folder(folder: Path, *, busy: str, setting: str = SETTING) -> int:
    """Keep other processes out of a folder until this one ends, or closes what is returned.

    Args:
        folder: Made if it is not there; it gets a file called ``lock``, which stays.
        busy: What to say where another process has it.
        setting: What may name another place, for the message where the disk does not take it.

    Returns:
        An open file descriptor; ``os.close`` lets others in. On Windows, and where the file system has no locks, nobody is kept out.

    Raises:
        FileExistsError: If another process has it.
        OSError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise could_not_write(folder / LOCK, error, setting=setting) from error
    if sys.platform == "win32":  # it has no such locks
        return lock
    import fcntl

    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(lock)
        raise FileExistsError(busy) from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): let no other process write into it", folder, error)
    return lock


def _system_error(problem: BaseException | None) -> OSError | None:
    """The system's error behind an exception: torch raises another one over it."""
    while problem is not None and not isinstance(problem, OSError):
        problem = problem.__cause__ or problem.__context__
    return problem


def error_within(error: Exception) -> OSError | None:
    """The system's error that another one tells of in words, as those of safetensors and tokenizers do; None if it tells of none.

    Args:
        error: Of a library.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def _clean(folder: Path, host: str) -> None:
    """Remove what processes that are no more, of this machine, have begun in a folder."""
    for left in folder.glob(f".*.{host}.*{ENDING}"):
        process = left.name.removesuffix(ENDING).rpartition(".")[2]
        # A process of a number that was given again is no more; this one may write several files at a time.
        ended = process.isdigit() and (int(process) == os.getpid() or not is_alive(int(process)))
        if ended and left not in being_written:
            with suppress(OSError):
                left.unlink()


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there; one of somebody else is, too, and on Windows, which does not tell, each one.

    Args:
        process: Its number.
    """
    if sys.platform == "win32":  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def sync_folder(folder: Path) -> None:
    """Have the folder's new entries on the disk; not every system lets one.

    Args:
        folder: Whose files are on it already.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
