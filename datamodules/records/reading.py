"""Files are opened here: what a library or the system says of one becomes one error with its name and what to do.

A file that cannot be read is never skipped: ``on_invalid`` decides about rows alone.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .record import RecordError

__all__ = ["find_file", "hash_files", "open_bytes", "readable", "refuse_foreign"]

GZIP = b"\x1f\x8b"
FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "the file itself: run `git lfs pull` where it was cloned"),
    (b"PAR1\x15", "a Parquet file", "a name that ends in .parquet"),
    (GZIP, "a file packed with gzip", "a name that ends in .gz, or the unpacked file"),
    (b"(\xb5/\xfd", "a file packed with zstandard", "the unpacked file"),
    (b"\xfd7zXZ\x00", "a file packed with xz", "the unpacked file"),
    (b"BZh91AY&SY", "a file packed with bzip2", "the unpacked file"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "a file out of it, or the sheet saved as CSV in UTF-8"),
    (b"<!doctype html", "a web page", "the file itself: the download gave a page instead"),
    (b"<html", "a web page", "the file itself: the download gave a page instead"),
)  # fmt: skip
"""How files begin that are something else than their name says, what they are, and what is wanted instead."""
HEAD = 64
"""Bytes that tell what a file is."""


def unreadable(path: Path, value: str, allowed: str) -> RecordError:
    """The error of a file as a whole."""
    return RecordError("file", value, allowed, reason="unreadable file", file=str(path))


@contextmanager
def readable(path: Path, allowed: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what is raised about a file into an error with its name; one that is not there stays FileNotFoundError.

    Args:
        path: The file.
        allowed: What it should be, as a phrase.
        *errors: Further errors that its reader raises.

    Raises:
        RecordError: In place of an error of the system, of gzip, or one of ``errors``.
    """
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, *errors)
    try:
        yield
    except (FileNotFoundError, RecordError):
        raise
    except PermissionError as error:
        allowed = "a file that this user may read: change its permissions, or those of its folder"
        raise unreadable(path, error.strerror or "permission denied", allowed) from error
    except IsADirectoryError as error:
        raise unreadable(path, "a folder", allowed) from error
    except failures as error:
        shown = str(error) or type(error).__name__
        raise unreadable(path, shown, f"{allowed}; it is damaged or was cut: get it again") from error


def refuse_foreign(path: Path, head: bytes, expected: bytes = b"", *, utf16: bool = False) -> None:
    """Refuse a file that is empty, or is another kind of file than its name says.

    Args:
        path: The file.
        head: Its first bytes, as many as there are up to 64.
        expected: How a file of this kind begins.
        utf16: Whether it may be text in UTF-16, as XML may.

    Raises:
        RecordError: Saying what it is and what is wanted instead.
    """
    if not head:
        raise unreadable(path, "0 bytes", "a file with content: an export or a download failed")
    if expected and head.startswith(expected):
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and not utf16:
        raise unreadable(path, "text in UTF-16", "text saved in UTF-8")
    for start, kind, allowed in FOREIGN:
        if head.lstrip().lower().startswith(start) if start.startswith(b"<") else head.startswith(start):
            raise unreadable(path, kind, allowed)
    if expected == GZIP:
        allowed = "a file packed with gzip, as its name says; rename one that is not"
        raise unreadable(path, "not packed with gzip", allowed)


@contextmanager
def open_bytes(path: Path, *, empty: bool = False, utf16: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacking gzip by its name.

    Args:
        path: The file.
        empty: Whether it may have no bytes at all.
        utf16: Whether it may be text in UTF-16, as XML may.

    Raises:
        RecordError: Here or while it is read: if it may not be read, is empty, damaged or another kind of file.
        FileNotFoundError: If it is not there.
    """
    packed = path.suffix == ".gz"
    allowed = "a whole file packed with gzip" if packed else "a file"
    with readable(path, allowed), path.open("rb") as stream:
        head = stream.peek(HEAD)[:HEAD]
        if packed and (head or not empty):
            refuse_foreign(path, head, GZIP)
            with gzip.open(stream) as unpacked:
                head = unpacked.peek(HEAD)[:HEAD]
                if head or not empty:
                    refuse_foreign(path, head, utf16=utf16)
                yield unpacked  # type: ignore[misc]
            return
        if head or not empty:
            refuse_foreign(path, head, utf16=utf16)
        yield stream


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of ``names`` that exists in ``folder``, plain or with ``.gz``.

    Raises:
        FileNotFoundError: Naming the folder, what was looked for and what is there.
    """
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    there = (
        ", ".join(sorted(path.name for path in folder.iterdir())[:20])
        if folder.is_dir()
        else "no such folder"
    )
    raise FileNotFoundError(
        f"data_dir={str(folder)!r} has none of {', '.join(names)} (plain or .gz); there: {there}"
    )


def hash_files(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file's bytes, in order: what the fingerprint of a cache rests on.

    A list, for files of the same name in several folders (``helpful-base/train.jsonl``, ...) all count.

    Raises:
        RecordError: If one may not be read.
        FileNotFoundError: If one is not there.
    """
    digests = []
    for path in paths:
        with readable(path, "a file"), path.open("rb") as stream:
            digests.append((path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return digests
