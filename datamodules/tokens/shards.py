"""One token cache by several independent jobs: each tokenises every n-th chunk of rows, and whoever finds all done joins them.

Beside the place of the cache stands a folder ``<cache>.shards-<n>``, with a folder for each shard that is done: an Arrow stream per
split, a line of JSON per chunk and the description with checksums that a cache has. A shard is written under a temporary name
and renamed when complete, so one whose job was killed is not there, and is done again alone. Chunks are joined in the order
of the rows by the writer of the cache itself: what it writes is the same bit for bit, and it finds what only the whole shows, such as
an id that two shards have. No job waits for another.
"""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..whole_files import could_not_write, locked_folder
from .cache_writer import remove_left_overs
from .chunk import TokenisedChunk, chunk_schema
from .integrity import cache_damage, read_meta, write_meta
from .preparation import CHUNK, ChunkWriter, Shard
from .report import SplitReport

__all__ = ["CacheShards", "ShardWriter"]

CHUNKS = "chunks.jsonl"
COUNTED = ("rows", "without_prompt", "invalid", "dropped", "first_errors")
"""What a chunk says of its rows."""
LAYOUT = {"layout": 1, "chunk": CHUNK}
"""What must be the same for shards to fit together."""
SETTING = "cache_dir (or $PLURALIGN_CACHE)"


class ShardWriter:
    """Writes one shard; use as a context manager, which completes or removes it."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        """Open the streams under a temporary name.

        Args:
            folder: Where the shard will stand.
            splits: Names of the splits.

        Raises:
            OSError: If nothing can be written there; so for all that writes.
        """
        import pyarrow as pa

        self.folder = folder
        with self._writing():
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(folder)
            owner = f"{folder.name}.{socket.gethostname()}.{os.getpid()}."
            self.partial = Path(tempfile.mkdtemp(prefix=owner, suffix=".partial", dir=folder.parent))
            self._lines = (self.partial / CHUNKS).open("w", encoding="utf-8")
            fields = chunk_schema()
            self._streams = {
                split: pa.ipc.new_stream(str(self.partial / f"{split}.arrow"), fields) for split in splits
            }

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what is unfinished."""
        self._lines.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, chunk: TokenisedChunk) -> None:
        """Append a chunk.

        Raises:
            RecordError: That of the chunk.
        """
        if chunk.error is not None:
            raise chunk.error
        reports = {
            split: {name: value for name in COUNTED if (value := getattr(report, name))}
            for split, report in chunk.reports.items()
        }
        with self._writing():
            for split, batch in chunk.batches.items():
                self._streams[split].write_batch(batch)
            self._say({"reports": reports, "batches": list(chunk.batches)})

    def end(self, source: str, notes: list[str], unread_columns: list[str]) -> None:
        """Keep what is to be said of a source that was read."""
        with self._writing():
            self._say({"end": source, "notes": notes, "unread_columns": unread_columns})

    def _say(self, line: Mapping[str, object]) -> None:
        self._lines.write(json.dumps(line) + "\n")

    def finish(self, description: Mapping[str, object]) -> None:
        """Write the description and put the folder in place, unless another process did meanwhile.

        Args:
            description: What the joining must know of the shard as a whole, as plain values.
        """
        with self._writing():
            for stream in self._streams.values():
                stream.close()
            self._lines.close()
            write_meta(self.partial, {**LAYOUT, **description})
            if cache_damage(self.folder, every_byte=True) is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                try:
                    os.replace(self.partial, self.folder)
                except OSError:
                    if cache_damage(self.folder, every_byte=True) is not None:
                        raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise could_not_write(self.folder, error, setting=SETTING) from error


class _ShardReader:
    """What one shard holds, chunk after chunk."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        import pyarrow as pa

        self._lines = open_files.enter_context((folder / CHUNKS).open(encoding="utf-8"))
        self._streams: dict[str, Any] = {
            # Not mapped: where another machine removes a file that is mapped, the process ends.
            path.stem: pa.ipc.open_stream(open_files.enter_context(pa.OSFile(str(path), "rb")))
            for path in folder.glob("*.arrow")
        }

    def following(self) -> TokenisedChunk | dict[str, Any]:
        """The next chunk, or what ends a source."""
        line: dict[str, Any] = json.loads(next(self._lines))
        if "end" in line:
            return line
        return TokenisedChunk(
            {split: self._streams[split].read_next_batch() for split in line["batches"]},
            {split: SplitReport(**counted) for split, counted in line["reports"].items()},
        )


class CacheShards(NamedTuple):
    """The shards of a cache that is not there yet.

    Attributes:
        cache: Folder where the cache will stand.
        total: Number of shards.
    """

    cache: Path
    total: int

    @classmethod
    def complete(cls, cache: Path) -> "CacheShards | None":
        """Shards of a cache that are all done; None if there are none such.

        Args:
            cache: Folder where the cache will stand.
        """
        start = f"{cache.name}.shards-"
        numbers = [path.name.removeprefix(start) for path in cache.parent.glob(f"{start}*")]
        every = (cls(cache, int(number)) for number in sorted(numbers) if number.isdecimal())
        return next((shards for shards in every if not shards.missing()), None)

    @property
    def folder(self) -> Path:
        """Of all of them."""
        return self.cache.with_name(f"{self.cache.name}.shards-{self.total}")

    def shard_folder(self, number: int) -> Path:
        """Where a shard stands or will stand.

        Args:
            number: 1 to ``total``.
        """
        return self.folder / f"{number}"

    def missing(self, *, every_byte: bool = False) -> list[int]:
        """Numbers of the shards that are not there, or damaged.

        Args:
            every_byte: Whether checksums are compared, too, which reads all of them.
        """
        return [
            number
            for number in range(1, self.total + 1)
            if cache_damage(self.shard_folder(number), every_byte=every_byte) is not None
        ]

    def descriptions(self) -> list[dict[str, Any]]:
        """What each shard says of itself.

        Raises:
            ValueError: If another version wrote one.
        """
        found = [read_meta(self.shard_folder(number)) for number in range(1, self.total + 1)]
        if any(each[name] != value for each in found for name, value in LAYOUT.items()):
            raise ValueError(
                f"{self.folder}: another version of pluralign wrote some of it: remove it, and do the shards again"
            )
        return found

    def writer(self, shard: Shard, splits: Sequence[str]) -> ShardWriter:
        """Writes a shard.

        Args:
            shard: One of these.
            splits: Names of the splits.
        """
        return ShardWriter(self.shard_folder(shard.number), splits)

    @contextmanager
    def joining(self) -> Iterator[bool]:
        """Whether no other process joins the same shards; as long as this one does, others are told so.

        Where the file system has no locks, two may join at once: they write the same, and one of them is kept.
        """
        try:
            lock = locked_folder(self.folder, busy=f"another process joins {self.folder}", setting=SETTING)
        except FileExistsError:
            yield False
            return
        try:
            yield True
        finally:
            os.close(lock)

    def join(self, sources: Sequence[str], writer: ChunkWriter) -> None:
        """Give a writer the chunks of all shards in the order of the rows.

        Args:
            sources: Sources that were read, in order.
            writer: Of the cache.

        Raises:
            ValueError: If the shards are not of the same rows.
        """
        with ExitStack() as open_files:
            readers = [
                _ShardReader(self.shard_folder(number), open_files) for number in range(1, self.total + 1)
            ]
            for source in sources:
                place = 0
                while isinstance(part := readers[place % self.total].following(), TokenisedChunk):
                    writer.add(part)
                    place += 1
                ends: list[Any] = [part]
                ends += [
                    reader.following() for reader in readers if reader is not readers[place % self.total]
                ]
                if any(isinstance(end, TokenisedChunk) or end["end"] != source for end in ends):
                    raise ValueError(
                        f"{self.folder}: its shards are not of the same rows: remove it, and do them again"
                    )
                writer.end(source, part["notes"], part["unread_columns"])

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
