"""Whether a cache's files are what was written: by their sizes whenever one is opened, by their bytes once a process.

``meta.json`` names every file with its size and CRC-32, and has a CRC-32 of its own. An Arrow stream that was cut, or in
which a block went bad, would otherwise be read as other numbers, or end the process.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from ..untrusted import path_inside

__all__ = ["META", "cache_damage", "read_meta", "write_meta"]

META = "meta.json"
BLOCK = 1 << 18
"""Bytes read at a time."""


def write_meta(folder: Path, content: Mapping[str, object]) -> None:
    """Write the description of a finished cache, with sizes and checksums of its files.

    Args:
        folder: With all other files in it.
        content: What is described.
    """
    files = {
        path.name: [path.stat().st_size, _checksum(path)]
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != META
    }
    whole = {**content, "files": files}
    (folder / META).write_text(json.dumps({"checksum": _of_content(whole), "content": whole}))


def read_meta(folder: Path) -> dict[str, object]:
    """The description of a cache.

    Raises:
        ValueError: If it is missing or not what was written.
    """
    try:
        whole = json.loads((folder / META).read_bytes())
        content: dict[str, object] = whole["content"]
        if whole["checksum"] == _of_content(content):
            return content
    except FileNotFoundError:
        raise ValueError(f"{META} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # as a checksum of something else
    raise ValueError(f"{META} is not what was written")


def cache_damage(folder: Path, *, every_byte: bool) -> str | None:
    """What is wrong with a cache; None if it is whole.

    Args:
        folder: Of the cache.
        every_byte: Whether files are read and compared with their checksums, beyond their sizes, which reads
            all of them.
    """
    try:
        files = read_meta(folder)["files"]
    except ValueError as error:
        return str(error)
    assert isinstance(files, dict)  # its checksum is right
    for name, (size, checksum) in files.items():
        try:
            path = path_inside(folder, name, links=False)
            if (there := path.stat().st_size) != size:
                return f"{name} has {there:,} bytes in place of {size:,}"
            if every_byte and _checksum(path) != checksum:
                return f"{name} holds other bytes than were written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        except ValueError as error:
            return str(error)
        if every_byte and path.suffix == ".arrow" and (problem := _bad_offsets(path)):
            return f"{name} {problem}"
    return None


def _bad_offsets(path: Path) -> str | None:
    """What is wrong with a stream whose bytes are as written: by somebody else, they may point anywhere in memory."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        return f"is no valid stream: {error}"
    return None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _of_content(content: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
