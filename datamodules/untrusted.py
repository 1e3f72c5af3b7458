"""Files that somebody else may have written: looked at before what they claim is believed.

A small file may claim terabytes, hold members that unpack to them, nest values without an end, or name a file that lies outside
its own folder. What is here refuses that with a ``ValueError``, before anything is allocated, opened or removed; whoever reads
the file says which one it is and what to do. docs/concepts/security.md is about all of it.
"""

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "UNREADABLE",
    "check_archive",
    "check_bytes",
    "check_claims",
    "check_rows",
    "json_object",
    "path_inside",
    "read_array",
    "safetensors_header",
]

UNREADABLE = (
    UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise on a file that is none of theirs, or not all of one: any byte may come, so any of these may."""
ARCHIVE = b"PK\x03\x04"
"""How a zip archive begins."""
HEADER = 100 << 20
"""Bytes of a safetensors file's header at most, as the library has it."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""
ROOM = 1 << 30
"""Bytes that rows of a table may take whatever the size of their file."""
PACKED = 1000
"""How many times its size a table may take beyond that: columns of equal values pack well."""


def json_object(path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Args:
        path: The file.

    Raises:
        ValueError: If it holds another value, is no JSON in UTF-8, or is nested too deeply.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must hold an object of JSON, got {type(content).__name__}")  # noqa: TRY004  the file is wrong
    return content


def path_inside(folder: Path, name: object, *, links: bool = True) -> Path:
    """The file in a folder that another file names, which somebody else may have written.

    Args:
        folder: The folder.
        name: Relative to it, as the other file has it.
        links: Whether a symbolic link may lead out of the folder; whoever set it up meant it, if nobody else could.

    Raises:
        ValueError: If it is no relative path, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"it names {name!r}, which is no path of a file")
    ways = (PurePosixPath(name), PureWindowsPath(name))
    if any(way.is_absolute() or way.drive or ".." in way.parts for way in ways):
        raise ValueError(f"it names {name!r}, which lies outside of its folder {folder}")
    path = folder / name
    if not links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"it names {name!r}, a link out of its folder {folder}")
    return path


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """An array of numbers as ``numpy.save`` writes it; nothing is unpickled.

    Args:
        path: The file.
        mapped: Whether it stays on the disk.

    Raises:
        ValueError: If it is none, holds objects, or fewer numbers than its header says.
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        shape, dtype = _array_header(stream)
        there = path.stat().st_size - stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if math.prod(shape) * dtype.itemsize > there:
        raise ValueError(f"its header says {shape} {dtype}, and {there:,} bytes follow")
    found: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return found


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of numpy's format; allowed: (1, 0), (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except Exception as error:  # the header is Python's literals, which have errors of their own
        raise ValueError("its header cannot be read") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"its header says {shape}")
    return shape, dtype


def check_archive(path: Path) -> None:
    """Refuse a zip archive, of ``torch.save`` or ``numpy.savez``, whose members are packed or claim more than the file has.

    Neither packs: what is packed may unpack to any size, and torch reads a packed member that it maps as if it were not. A file
    that does not begin like an archive is left to its reader.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no whole archive, or has such members.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(ARCHIVE)) != ARCHIVE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, LookupError, OverflowError) as error:
        raise ValueError(f"it is no whole archive ({error})") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its member {member.filename!r} is packed, and those of such a file never are")
    claimed = sum(member.file_size for member in members)
    if claimed > size:
        raise ValueError(f"its members claim {claimed:,} bytes, and the file has {size:,}")


def check_bytes(path: Path) -> None:
    """Refuse an archive of ``torch.save`` whose bytes are not those that were written.

    Each member has a checksum (CRC-32), and torch compares none of them: weights of which a disk or a copy has changed a byte
    are loaded as they are. This reads the whole file. One that is no archive is left to its reader, and so are members without a
    checksum (0), as torch writes them after ``torch.serialization.set_crc32_options(False)``.

    Args:
        path: The file.

    Raises:
        ValueError: If a member holds other bytes.
        OSError: If it cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            changed = _changed_member(archive)
    except (zipfile.BadZipFile, RuntimeError, UnicodeError, LookupError, OverflowError, EOFError) as error:
        raise ValueError(f"it is no whole archive ({error})") from error
    if changed is not None:
        raise ValueError(f"its bytes are not those that were written (the checksum of {changed} differs)")


def _changed_member(archive: zipfile.ZipFile) -> str | None:
    """The first member whose bytes do not have the checksum that it was written with."""
    for member in archive.infolist():
        if member.CRC == 0:
            continue  # it has none, or one in four thousand million of those that have
        try:
            with archive.open(member) as stream:
                while stream.read(CHUNK):
                    pass
        except zipfile.BadZipFile:
            return member.filename
    return None


def check_claims(content: object, size: int) -> None:
    """Refuse what was read of a checkpoint without its numbers (mapped) if a tensor claims more than the file has.

    Such a tensor repeats a few numbers, and takes all its size as soon as it is copied.

    Args:
        content: Plain values and tensors, nested.
        size: Of the file, in bytes.

    Raises:
        ValueError: If there is such a tensor.
    """
    import torch

    waiting: list[object] = [content]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            if each.numel() * each.element_size() > size:
                raise ValueError(f"it holds a tensor of {tuple(each.shape)}, and the file has {size:,} bytes")
        elif isinstance(each, Mapping | list | tuple | set) and id(each) not in seen:
            seen.add(id(each))  # a value may hold itself
            waiting += [*each.values()] if isinstance(each, Mapping) else [*each]


def check_rows(rows: int, width: int, size: int) -> None:
    """Refuse a table that is to be read as a whole and claims more rows than its file can be meant to hold.

    Args:
        rows: That it claims.
        width: Its columns.
        size: Of the file, in bytes.

    Raises:
        ValueError: If they would take more than a gibibyte and a thousand times the file's size.
    """
    if not 0 <= rows * max(1, width) * 8 <= ROOM + PACKED * size:
        raise ValueError(f"it claims {rows:,} rows of {width:,} columns in {size:,} bytes")


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: what tensors there are, of which type and shape, and where.

    Args:
        path: The file.

    Raises:
        ValueError: If it is none.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(HEADER, size - 8):
            raise ValueError(f"its header claims {length:,} bytes, and the file has {size:,}")
        try:
            header = json.loads(stream.read(length))
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError(f"its header must be an object of JSON, got {type(header).__name__}")  # noqa: TRY004  the file is wrong
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        places: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
        whole = isinstance(places, list) and len(places) == 2 and all(type(place) is int for place in places)
        if not whole or not 0 <= places[0] <= places[1] <= size - 8 - length:
            raise ValueError(f"its tensor {key!r} lies at {places}, outside of its {size:,} bytes")
    return header
