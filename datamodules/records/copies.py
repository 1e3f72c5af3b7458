"""Files of another store (``s3://``, ``hf://``, ``memory://``, ...) are copied here once, and again when they change there."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..whole_files import REFUSED, could_not_write
from .record import RecordError

__all__ = ["RemoteFiles", "is_remote", "without_secrets"]

SAYS_NOTHING = ("name", "size", "type", "mimetype", "url", "partial")
"""What a store may say of a file though its bytes change."""


ACCOUNT = re.compile(r"(?<=://)[^/@\s'\"]+@")
QUERY = re.compile(r"(://[^?\s'\"]*)\?(?=[^\s'\"]*=)[^\s'\"]*")


def without_secrets(text: str) -> str:
    """Text in which addresses stand without account, password and query (``?signature=...``).

    Args:
        text: Of a message, or an address alone.
    """
    return QUERY.sub(r"\1", ACCOUNT.sub("", text))


def is_remote(given: str) -> bool:
    """Whether a name is one that ``fsspec`` reads: with ``://``, or ``::`` between stores within each other."""
    return "://" in given or "::" in given


class RemoteFiles:
    """Files of a store, by a name in it.

    Attributes:
        given: The name.
        path: The name within the store.
        local: Path on this machine, where the store is this machine; None otherwise.
    """

    def __init__(self, given: str) -> None:
        """Find the store; asks it for nothing.

        Args:
            given: Such as ``s3://bucket/train-*.parquet``.

        Raises:
            RecordError: If its kind is unknown, or the package that reads it is not installed.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.given = given
        with _reachable(given):
            self._store, self.path = url_to_fs(given)
        is_local = isinstance(self._store, LocalFileSystem)
        self.local = Path(self.path) if is_local else None

    def is_file(self) -> bool:
        """Whether the name is that of a file.

        Raises:
            RecordError: If the store does not answer.
        """
        with _reachable(self.given):
            return bool(self._store.isfile(self.path))

    def names(self) -> list[str]:
        """Names in the store of the files that the name matches, or that the folder of that name holds.

        Raises:
            RecordError: If the store does not answer.
        """
        with _reachable(self.given):
            pattern = f"{self.path.rstrip('/')}/*" if self._store.isdir(self.path) else self.path
            entries = self._store.glob(pattern, detail=True)
            return [name for name, entry in entries.items() if entry["type"] == "file"]

    def shown(self, name: str) -> str:
        """A name of the store for messages: with the store before it, and without secrets."""
        return without_secrets(str(self._store.unstrip_protocol(name)))

    def copied(self, name: str, folder: Path) -> Path:
        """The local copy of a file, made unless there is one of what the store says of it now.

        Of a store that says nothing but size and kind it is made anew: such a file may have changed.

        Args:
            name: In the store.
            folder: Of all copies.

        Raises:
            RecordError: If the store does not give it.
            OSError: If the disk does not take it.
        """
        with _reachable(self.shown(name), folder):
            says = {key: value for key, value in self._store.info(name).items() if value is not None}
            version = hashlib.sha256(repr((self.shown(name), sorted(says.items()))).encode()).hexdigest()[:16]
            copy = folder / version / Path(self.shown(name)).name
            if copy.is_file() and not says.keys() <= set(SAYS_NOTHING):
                return copy
            copy.parent.mkdir(parents=True, exist_ok=True)
            unfinished = copy.with_name(f".{uuid.uuid4().hex}")
            try:
                self._store.get_file(name, str(unfinished))
                if (size := says.get("size")) is not None and unfinished.stat().st_size != size:
                    raise OSError(f"{unfinished.stat().st_size:,} bytes came of {size:,}")
                os.replace(unfinished, copy)  # other processes see no half of it
            finally:
                unfinished.unlink(missing_ok=True)
        return copy


@contextmanager
def _reachable(given: str, copies: Path | None = None) -> Iterator[None]:
    """Turn what a store raises into an error that names the file; each has errors of its own. So has the disk of copies."""
    try:
        yield
    except ImportError as error:
        allowed = "a store whose package is installed: install it, or copy the file here"
        raise _unreachable(given, error, allowed) from None
    except Exception as error:  # noqa: BLE001  every store has errors of its own
        if copies is not None and isinstance(error, OSError) and error.errno in REFUSED:
            raise could_not_write(copies, error, setting="cache_dir (or $PLURALIGN_CACHE)") from None
        allowed = "a file that its store gives: check the name, the network and who may read it, or copy the file here"
        raise _unreachable(given, error, allowed) from None  # its own text may hold what is left out here


def _unreachable(given: str, error: Exception, allowed: str) -> RecordError:
    problem = without_secrets(f"{type(error).__name__}: {error}")
    return RecordError("file", problem, allowed, reason="unreadable file", file=without_secrets(given))
