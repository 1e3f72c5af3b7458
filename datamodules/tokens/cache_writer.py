"""The writing half of the token cache: streams, columns, duplicates, and the rename that completes a folder."""

import glob
import json
import os
import shutil
import socket
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..columns import optional_columns
from ..records import FLOAT32_MAX, RecordError
from ..whole_files import is_alive
from .cache import TokenTable
from .chunk import TokenisedChunk, WrittenRow, chunk_batch, vote_columns
from .integrity import cache_damage, write_meta
from .report import SplitReport
from .split_writer import SplitWriter

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CacheWriter", "remove_left_overs"]

UNREAD_ASKED = "user or domain of a response, which the predict split alone reads"


def remove_left_overs(folder: Path) -> None:
    """Remove what processes of this machine left unfinished when they were killed."""
    prefix = f"{folder.name}.{socket.gethostname()}."
    for path in folder.parent.glob(f"{glob.escape(prefix)}*.partial"):
        process = path.name.removeprefix(prefix).partition(".")[0]
        if process.isdigit() and not is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say of a disk that is full, or a folder that must not be written, which it is and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the token cache {folder} cannot be written ({error.strerror or error}): make room there or allow it to be "
            "written, or set cache_dir (or $PLURALIGN_CACHE) to another folder"
        ) from error


class CacheWriter:
    """Write a cache folder; use as a context manager, which completes or removes it."""

    def __init__(
        self,
        folder: Path,
        splits: Sequence[str],
        *,
        source: str,
        on_invalid: str,
        merged_tokens: int = 0,
        judged: bool = True,
    ) -> None:
        """Open the streams under a temporary name.

        Args:
            folder: Where the cache will stand.
            splits: Names of the splits.
            source: What records are of that do not say it themselves: the data module's name.
            on_invalid: ``error`` or ``skip``.
            merged_tokens: Bound on the tokens of a record of several rows; 0 merges none.
            judged: Whether records are read for their judgements; of groups without any, those of equal responses are dropped.

        Raises:
            OSError: If nothing can be written there; so for all that writes.
        """
        self.folder, self.on_invalid = folder, on_invalid
        self.merged_tokens, self.judged = merged_tokens, judged
        self.reports = {split: SplitReport() for split in splits}
        owner = f"{folder.name}.{socket.gethostname()}.{os.getpid()}."
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(folder)
            self.partial = Path(tempfile.mkdtemp(prefix=owner, suffix=".partial", dir=folder.parent))
            self._splits = {split: SplitWriter(self.partial, split) for split in splits}
        self._source = source
        self._categories: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def skip(self, split: str, error: RecordError) -> None:
        """Count an invalid row, or stop if the user did not choose to skip.

        Raises:
            RecordError: If ``on_invalid`` is ``error``.
        """
        if self.on_invalid == "error":
            raise error
        self.reports[split].skip(error)

    def write(self, split: str, rows: Sequence[WrittenRow]) -> None:
        """Append records with their tokens and places; raises what :meth:`add` raises."""
        if rows:
            self.write_batch(split, chunk_batch(rows, split, self._source))

    def add(self, chunk: TokenisedChunk) -> None:
        """Append what became of a chunk of rows.

        Raises:
            RecordError: That of the chunk, or if votes have another number of categories than those before, unless skipped.
        """
        if chunk.error is not None:
            raise chunk.error
        for split, report in chunk.reports.items():
            self.reports[split].take(report)
        for split, batch in chunk.batches.items():
            self.write_batch(split, batch)

    def end(self, source: str, notes: list[str], unread_columns: list[str]) -> None:
        """Keep what is to be said of a source that was read."""
        self.reports[source].notes += notes
        self.reports[source].unread_columns += unread_columns

    def write_batch(self, split: str, batch: "pa.RecordBatch") -> None:
        """Append records of a split; raises what :meth:`add` raises.

        Args:
            split: Name of the split.
            batch: Of :func:`chunk_schema`.
        """
        batch = self._of_same_categories(split, batch)
        if not len(batch):
            return
        report = self.reports[split]
        with _writing(self.folder):
            sizes = self._splits[split].write(batch)
        unread, cut = (batch.column(name).to_numpy() for name in ("unread", "cut"))
        if split != "predict" and unread.any():
            report.dropped[UNREAD_ASKED] += int(unread.sum())
        report.records += len(batch)
        report.responses += int(sizes[:, 0].sum())
        report.comparisons += len(batch.column("comparison_index").flatten())
        report.cut_prompts += int((cut > 0).sum())
        report.cut_tokens += int(cut.sum())
        for dropped in filter(None, batch.column("dropped").to_pylist()):
            report.dropped.update(json.loads(dropped))
        largest = int(batch.column("tokens").flatten().to_numpy().max())
        report.largest_token = max(report.largest_token, largest)

    def finish(self, format_description: Mapping[str, object]) -> None:
        """Check what only the whole shows, write ``meta.json`` and put the folder in place.

        Raises:
            RecordError: For an id that occurs twice, if ``on_invalid`` is ``error``.
            ValueError: If two ids of a split have the same key.
        """
        with _writing(self.folder):
            self._finish(format_description)

    def _finish(self, format_description: Mapping[str, object]) -> None:
        for writer in self._splits.values():
            writer.close()
        for split, writer in self._splits.items():
            self._settle_duplicates(split, writer)
            _check_keys(split, writer)
            _check_weights(split, writer)
            self.reports[split].repeated = writer.repeated()
        present = set().union(*(writer.present for writer in self._splits.values()))
        for split, writer in self._splits.items():
            # Where responses are rated, each rating is a judgement of its own, and so is its response.
            rated = any(
                entry.stored in present for entry in optional_columns("response") if entry.kind != "name"
            )
            # Whoever has rows scored finds them again by their own ids.
            tokens = self.merged_tokens if split != "predict" else 0
            writer.merge(self.reports[split], tokens, equal_once=not rated, whole_groups=not self.judged)
            if not self.judged:
                writer.drop_equal(self.reports[split])
        train = self._splits.get("train")
        for split, writer in self._splits.items():
            if train is not None and writer is not train:
                shared = np.isin(np.asarray(writer.groups, np.uint64), np.asarray(train.groups, np.uint64))
                self.reports[split].in_train = int(shared.sum())
        first = train or next(iter(self._splits.values()))
        names = {}
        kinds = optional_columns(kind="name")
        for entry in (kind for kind in kinds if kind.names is None):
            # Those of training come first: a method that keeps a table of users needs it for them alone.
            names[entry.stored] = sorted(first.names[entry.stored])
            if not entry.training_only:
                sharing = [kind.stored for kind in kinds if entry.stored in (kind.stored, kind.names)]
                others = set().union(
                    *(writer.names[name] for writer in self._splits.values() for name in sharing)
                )
                names[entry.stored] += sorted(others - first.names[entry.stored])
        merged = {"merged_id"} if any(report.merged for report in self.reports.values()) else set()
        meta = {
            "format": dict(format_description),
            "reports": {split: vars(report) for split, report in self.reports.items()},
            "names": names,
            "num_training_users": len(first.names["user"]),
            "present": sorted(present | merged),
            "categories": self._categories,
        }
        write_meta(self.partial, meta)
        try:
            os.replace(self.partial, self.folder)
        except OSError:
            if cache_damage(self.folder, every_byte=True) is None:
                return  # another process finished the same cache first; its content is the same by its fingerprint
            # What stands there is no whole cache: parts of it were deleted, or a disk lost them.
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.partial, self.folder)

    def _of_same_categories(self, split: str, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """The rows whose votes have as many categories as those before; of the others each is skipped or stops."""
        column = batch.column("categories")
        if not len(column.flatten()):
            return batch
        keep = np.ones(len(batch), dtype=bool)
        for place, sizes in enumerate(column.to_pylist()):
            known = {name: size for name, size in zip(vote_columns(), sizes, strict=False) if size}
            other = next(
                (name for name in known if known[name] != self._categories.get(name, known[name])), None
            )
            if other is None:
                self._categories.update(known)  # only a record that is kept decides
                continue
            keep[place] = False
            file, line = (batch.column(name)[place].as_py() for name in ("file", "line"))
            allowed = f"{self._categories[other]} categories, as in the records before"
            self.skip(
                split, RecordError(other, known[other], allowed, reason="out of range", file=file, line=line)
            )
        return batch if keep.all() else _taken(batch, keep)

    def _settle_duplicates(self, split: str, writer: SplitWriter) -> None:
        again = writer.duplicates()
        if not len(again):
            return
        table = TokenTable.read(writer.path)
        for row in again.tolist():
            place = table[row : row + 1]
            allowed = "an id that occurs once in its split"
            self.skip(
                split,
                RecordError(
                    "id",
                    place["id"][0],
                    allowed,
                    reason="duplicate id",
                    file=place["file"][0],
                    line=place["line"][0],
                ),
            )
        writer.keep(np.setdiff1d(np.arange(len(writer.ids)), again))
        left = ~np.isin(np.asarray(writer.judged_rows, np.int64), again)
        writer.judgements = array("Q", np.asarray(writer.judgements, np.uint64)[left].tobytes())
        removed = table.select(again)
        report = self.reports[split]
        report.records -= len(again)
        report.responses -= sum(map(len, removed["response_index"]))
        report.comparisons -= sum(map(len, removed["comparison_index"]))


def _taken(batch: "pa.RecordBatch", keep: NDArray[np.bool_]) -> "pa.RecordBatch":
    import pyarrow as pa

    return batch.filter(pa.array(keep))


def _check_keys(split: str, writer: SplitWriter) -> None:
    """Refuse two records that side tables could not tell apart; their ids differ."""
    keys = np.asarray(writer.keys, np.int64)
    values, counts = np.unique(keys, return_counts=True)
    if len(values) == len(keys):
        return
    table = TokenTable.read(writer.path).select_columns(["id", "record_key"])
    pairs = zip(table["id"], table["record_key"], strict=True)
    names = sorted({name for name, key in pairs if key == values[counts.argmax()]})
    raise ValueError(f"{split}: records {', '.join(map(repr, names))} have the same key: rename one of them")


def _check_weights(split: str, writer: SplitWriter) -> None:
    """Refuse weights by which nothing, or nothing but noise, would be learned: losses divide by their sum."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # made when it is imported, which type checkers do not see

    if split == "predict":  # nothing is learned from it
        return
    for name in {"weight", "record_weight"} & writer.present:
        table: Any = TokenTable.read(writer.path).select_columns([name]).with_format("arrow")[:]
        values = pc.list_flatten(table.column(name)).to_numpy().astype(np.float64)
        # Items of records that give no weight at all weigh 1.
        others = int(pc.sum(pc.equal(pc.list_value_length(table.column(name)), 0)).as_py() or 0)
        total = float(values.sum()) + others
        if not 0 < total <= FLOAT32_MAX:
            raise ValueError(
                f"{split}: the sum of {name} must be above 0 and at most {FLOAT32_MAX:.3g} (float32), got {total:g}: "
                f"change the {name} of its rows, or leave it out for 1"
            )
