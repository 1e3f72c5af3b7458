"""Files are opened here: what a library or the system says of one becomes one error with its name and what to do.

A file that cannot be read is never skipped: ``on_invalid`` decides about rows alone.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from .record import RecordError

__all__ = [
    "HEAD",
    "PACKINGS",
    "Utf8Text",
    "find_file",
    "hash_files",
    "open_bytes",
    "readable",
    "refuse_foreign",
    "refuse_special",
    "unreadable",
]


class Packing(NamedTuple):
    """A way to pack a file.

    Attributes:
        name: What it is called.
        starts: How files begin that are packed so.
        unpack: Gives the stream of what is inside.
    """

    name: str
    starts: tuple[bytes, ...]
    unpack: Callable[[IO[bytes]], Any]


def _unpack_zstandard(stream: IO[bytes]) -> object:
    import pyarrow as pa

    return pa.CompressedInputStream(stream, "zstd")


SKIPPED_FRAMES = tuple(bytes([0x50 + i]) + b"*M\x18" for i in range(16))
"""Zstandard files of several threads may begin with one of these."""
PACKINGS = {
    ".gz": Packing("gzip", (b"\x1f\x8b",), lambda stream: gzip.GzipFile(fileobj=stream)),
    ".zst": Packing("zstandard", (b"(\xb5/\xfd", *SKIPPED_FRAMES), _unpack_zstandard),
    ".bz2": Packing("bzip2", (b"BZh",), bz2.BZ2File),
    ".xz": Packing("xz", (b"\xfd7zXZ\x00",), lzma.LZMAFile),
}
"""Endings of packed files. Python 3.11 has no zstandard, pyarrow does."""
FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "the file itself: run `git lfs pull` where it was cloned"),
    (b"PAR1\x15", "a Parquet file", "a name that ends in .parquet"),
    (b"ARROW1\x00\x00", "an Arrow file", "a name that ends in .arrow"),
    (b"FEA1", "a Feather file of version 1", "the same table as Parquet"),
    (b"\x1f\x8b", "a file packed with gzip", "a name that ends in .gz, or the unpacked file"),
    (b"(\xb5/\xfd", "a file packed with zstandard", "a name that ends in .zst, or the unpacked file"),
    (b"\xfd7zXZ\x00", "a file packed with xz", "a name that ends in .xz, or the unpacked file"),
    (b"BZh91AY&SY", "a file packed with bzip2", "a name that ends in .bz2, or the unpacked file"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "a file out of it, or the sheet saved as CSV in UTF-8"),
    (b"<!doctype html", "a web page", "the file itself: the download gave a page instead"),
    (b"<html", "a web page", "the file itself: the download gave a page instead"),
)  # fmt: skip
"""How files begin that are something else than their name says, what they are, and what is wanted instead."""
HEAD = 64
"""Bytes that tell what a file is."""
BUFFER = 1 << 18
UNPACKED, RATIO = 1 << 30, 200
"""Bytes that a packed file may unpack to in any case, and how many times its size beyond that: text packs to a tenth or so."""


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
        RecordError: In place of an error of the system, of an unpacker, or one of ``errors``.
    """
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError, *errors)
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


def refuse_special(path: Path) -> None:
    """Refuse a pipe or a device: opening one may wait for ever, and its rows could be read only once.

    Raises:
        RecordError: If it is one.
        FileNotFoundError: If nothing is there.
    """
    with readable(path, "a file"):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        allowed = "a file: rows are read more than once, so write what it gives to one"
        raise unreadable(path, "a pipe or a device", allowed)


def refuse_foreign(
    path: Path, head: bytes, expected: tuple[bytes, ...] = (), *, packing: str = "", utf16: bool = False
) -> None:
    """Refuse a file that is empty, or is another kind of file than its name says.

    Args:
        path: The file.
        head: Its first bytes, as many as there are up to 64.
        expected: How a file of this kind may begin.
        packing: What it should be packed with, so that it begins like ``expected``.
        utf16: Whether it may be text in UTF-16, as XML may.

    Raises:
        RecordError: Saying what it is and what is wanted instead.
    """
    if not head:
        raise unreadable(path, "0 bytes", "a file with content: an export or a download failed")
    if head.startswith(expected):
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and not utf16:
        raise unreadable(path, "text in UTF-16", "text saved in UTF-8")
    for start, kind, allowed in FOREIGN:
        if head.lstrip().lower().startswith(start) if start.startswith(b"<") else head.startswith(start):
            raise unreadable(path, kind, allowed)
    if packing:
        allowed = f"a file packed with {packing}, as its name says; rename one that is not"
        raise unreadable(path, f"not packed with {packing}", allowed)


@contextmanager
def open_bytes(path: Path, *, empty: bool = False, utf16: bool = False) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes, unpacking gzip, zstandard, bzip2 and xz by its name.

    Args:
        path: The file.
        empty: Whether it may have no bytes at all.
        utf16: Whether it may be text in UTF-16, as XML may.

    Raises:
        RecordError: Here or while it is read: if it may not be read, is empty, damaged or another kind of file.
        FileNotFoundError: If it is not there.
    """
    refuse_special(path)
    packing = PACKINGS.get(path.suffix.lower())
    allowed = f"a whole file packed with {packing.name}" if packing else "a file"
    with readable(path, allowed), path.open("rb") as stream:
        head = stream.peek(HEAD)[:HEAD]
        if packing and (head or not empty):
            refuse_foreign(path, head, packing.starts, packing=packing.name)
            bounded: io.RawIOBase = _Bounded(path, packing.unpack(stream))
            with cast(io.BufferedReader, io.BufferedReader(bounded, BUFFER)) as unpacked:
                head = unpacked.peek(HEAD)[:HEAD]
                if head or not empty:
                    refuse_foreign(path, head, utf16=utf16)
                yield unpacked
            return
        if head or not empty:
            refuse_foreign(path, head, utf16=utf16)
        yield stream


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, up to a bound: a few kilobytes may unpack to terabytes, all of them one row."""

    def __init__(self, path: Path, unpacked: IO[bytes]) -> None:
        """Read nothing yet."""
        self._path, self._unpacked = path, unpacked
        self._left = max(UNPACKED, RATIO * path.stat().st_size)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read on.

        Raises:
            RecordError: Beyond the bound.
        """
        count: int = self._unpacked.readinto(buffer)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self._left -= count
        if self._left < 0:
            value = f"more than {RATIO} times its size, and than {UNPACKED:,} bytes, when unpacked"
            raise unreadable(
                self._path, value, "text that packs as text does; unpack this file by hand if you trust it"
            )
        return count

    def close(self) -> None:
        """Close what unpacks, too."""
        self._unpacked.close()
        super().close()


class Utf8Text:
    """Text of an open file, read in pieces or by lines; bytes that are not UTF-8 are an error of their line.

    Line ends stay as they are, and a byte order mark at the beginning is no text.
    """

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        """Read nothing yet.

        Args:
            path: File that errors name.
            stream: Its bytes.
        """
        self._path, self._lines = path, 0
        # A decoder that fails does not say where in the file; one that escapes does.
        self._text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")

    def read(self, size: int) -> str:
        """The next ``size`` characters; fewer at the end, and none behind it.

        Raises:
            RecordError: If one of them is not UTF-8.
        """
        return self._checked(self._text.read(size))

    def __iter__(self) -> Iterator[str]:
        """The lines, each with its end."""
        return map(self._checked, self._text)

    def _checked(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            value = text[error.start : error.start + 40].encode(errors="surrogateescape")
            line = 1 + self._lines + text.count("\n", 0, error.start)
            raise RecordError(
                "line", value, "UTF-8 text", reason="not UTF-8", file=str(self._path), line=line
            ) from None
        self._lines += text.count("\n")
        return text


def find_file(folder: Path, *names: str) -> Path:
    """Return the first of ``names`` that exists in ``folder``, plain or with ``.gz``.

    Raises:
        FileNotFoundError: Naming the folder, what was looked for and what is there.
        ValueError: If the folder is one of another store.
    """
    if folder.parts and folder.parts[0].endswith(":") and len(folder.parts[0]) > 2:
        raise ValueError(
            f"data_dir names a folder of a store ({folder.parts[0]}//...): a data set is read from a folder of this machine, so copy "
            "it here; files of your own are read from stores, by LocalDataModule"
        )
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
