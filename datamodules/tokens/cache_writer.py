"""The writing half of the token cache: streams, columns, duplicates, and the rename that completes a folder."""

import glob
import hashlib
import os
import shutil
import socket
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..columns import Column, Item, optional_columns
from ..records import FLOAT32_MAX, Comparison, PreferenceRecord, RecordError, Response, record_key
from .cache import ORIGINS, TokenTable
from .integrity import cache_damage, write_meta
from .merging import merge_split, prompt_digest
from .report import SplitReport
from .schema import schema
from .text import TokenizedRecord

__all__ = ["CacheWriter"]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _items(
    record: PreferenceRecord, responses: Sequence[int], comparisons: Sequence[int], *, requests: bool = False
) -> dict[Item, list[PreferenceRecord] | list[Response] | list[Comparison]]:
    """What a column may be of: the record, and its responses and comparisons at these places; what is asked of them."""
    asked = record.requests if requests else ()
    return {
        "record": [record],
        "response": [record.responses[i] for i in responses],
        "request": [asked[i] for i in responses] if requests else [],
        "comparison": [record.comparisons[i] for i in comparisons],
    }


def _flat(entry: Column, items: Sequence[object]) -> list[object]:
    """A column's values, what is missing filled in; nothing at all if everything is."""
    values = [entry.of(item) for item in items]
    known = next((value for value in values if value is not None), None)
    if known is None:
        return []
    if entry.kind == "name":
        return values
    assert entry.missing is not None  # of these columns alone an item may lack a value
    if entry.kind != "counts":
        return [entry.missing if value is None else float(value) for value in values]
    nothing = (entry.missing,) * len(known)
    return [float(count) for value in values for count in (nothing if value is None else value)]


def _columns(record: PreferenceRecord, tokens: TokenizedRecord, split: str) -> dict[str, list[object]]:
    """Everything of a record but its tokens, for the kept responses and comparisons; requests are of ``predict`` alone."""
    place = {response: i for i, response in enumerate(tokens.responses)}
    comparisons = [record.comparisons[i] for i in tokens.comparisons]
    items = _items(record, tokens.responses, tokens.comparisons, requests=split == "predict")
    return {
        "response_index": list(tokens.responses),
        "comparisons": [place[side] for c in comparisons for side in (c.chosen, c.rejected)],
        "comparison_index": list(tokens.comparisons),
        "preference": [float(c.preference) for c in comparisons],
        **{entry.stored: _flat(entry, items[entry.item]) for entry in optional_columns()},
    }


def _num_unread(record: PreferenceRecord) -> int:
    """Responses outside the predict split whose user or domain nobody reads; that of a row is its comparisons', too."""
    asked = record.responses if record.comparisons else record.requests
    return sum(response.user is not None or response.domain is not None for response in asked)


def _judgement(record: PreferenceRecord, comparison: Comparison) -> int:
    """What a comparison says, whichever side is named first: equal for two of which one repeats the other."""
    sides = [record.responses[i].text for i in (comparison.chosen, comparison.rejected)]
    share = comparison.preference
    if sides[0] > sides[1]:
        sides, share = sides[::-1], 1 - share
    others = (comparison.user, comparison.domain, record.source, record.aspect)
    return _hash(repr((record.prompt, *sides, round(share, 9), *others)))


class _SplitWriter:
    """One split's Arrow stream, and the small arrays beside it."""

    def __init__(self, folder: Path, split: str, source: str) -> None:
        import pyarrow as pa

        self.folder, self.split, self.source = folder, split, source
        self.path = folder / f"{split}.arrow"
        self.schema = schema()
        self.stream = pa.ipc.new_stream(str(self.path), self.schema)
        self.sizes = array("i")
        self.ids = array("Q")
        self.keys = array("q")
        self.groups = array("Q")
        self.digests = bytearray()
        self.judgements, self.judged_rows = array("Q"), array("Q")
        self.names: dict[str, set[str]] = {entry.stored: set() for entry in optional_columns(kind="name")}
        self.may_lack = {"comparisons", *(entry.stored for entry in optional_columns())}
        self.present: set[str] = set()

    def write(self, rows: Sequence[tuple[PreferenceRecord, TokenizedRecord, str, int]]) -> None:
        import pyarrow as pa

        data: dict[str, list[object]] = {name: [] for name in self.schema.names}
        for record, tokens, file, line in rows:
            columns = _columns(record, tokens, self.split)
            key = record_key(self.source if record.source is None else record.source, self.split, record.id)
            data["id"].append(record.id)
            data["record_key"].append(key)
            data["file"].append(file)
            data["line"].append(line)
            data["prompt_length"].append(tokens.prompt_length)
            data["tokens"].append(tokens.tokens)
            data["lengths"].append(tokens.lengths)
            for name in ORIGINS:
                data[name].append([])
            for name, values in columns.items():
                data[name].append(values)
                if values and name in self.may_lack:
                    self.present.add(name)
            for name, names in self.names.items():
                names.update(str(value) for value in columns[name] if value is not None)
            for i in tokens.comparisons:
                self.judgements.append(_judgement(record, record.comparisons[i]))
                self.judged_rows.append(len(self.ids))
            prefix, own = int(tokens.lengths[0]), tokens.lengths[1:]
            self.sizes.extend((len(own), prefix, int(own.sum()), int(own.max())))
            self.ids.append(_hash(record.id))
            self.keys.append(key)
            self.groups.append(_hash(record.split_key))
            self.digests += prompt_digest(record, tokens.cut)
        self.stream.write_batch(
            pa.record_batch([pa.array(data[f.name], f.type) for f in self.schema], schema=self.schema)
        )

    def close(self) -> None:
        self.stream.close()
        self._save(np.asarray(self.sizes, dtype=np.int32).reshape(-1, 4))

    def _save(self, sizes: NDArray[np.int32]) -> None:
        np.save(self.folder / f"{self.split}.sizes.npy", sizes)

    @property
    def kept_path(self) -> Path:
        """File of the rows that count, where not all do."""
        return self.folder / f"{self.split}.keep.npy"

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Let only some rows count."""
        np.save(self.kept_path, rows)
        self._take(rows)

    def merge(self, report: SplitReport, max_tokens: int, *, equal_once: bool) -> None:
        """Merge rows of equal prompts; if there are any, the new stream holds nothing but what counts."""
        kept = np.load(self.kept_path) if self.kept_path.is_file() else np.arange(len(self.ids))
        sizes = np.asarray(self.sizes, dtype=np.int64).reshape(-1, 4)[kept]
        report.tokens = report.tokens_apart = int(sizes[:, 1:3].sum())
        report.longest = int((sizes[:, 1] + sizes[:, 3]).max(initial=0))
        merged = merge_split(
            self.path, kept, bytes(self.digests), report, max_tokens=max_tokens, equal_once=equal_once
        )
        if merged is not None:
            numbers, sizes = merged
            self.kept_path.unlink(missing_ok=True)
            self._save(sizes)
            self._take(np.searchsorted(kept, numbers))

    def _take(self, rows: NDArray[np.int64]) -> None:
        self.groups = array("Q", np.asarray(self.groups, np.uint64)[rows].tobytes())
        self.keys = array("q", np.asarray(self.keys, np.int64)[rows].tobytes())

    def duplicates(self) -> NDArray[np.int64]:
        """Rows whose id occurred before, ascending."""
        ids = np.asarray(self.ids, dtype=np.uint64)
        _, first = np.unique(ids, return_index=True)
        again = np.ones(len(ids), dtype=bool)
        again[first] = False
        return np.flatnonzero(again)


def remove_left_overs(folder: Path) -> None:
    """Remove what processes of this machine left unfinished when they were killed."""
    prefix = f"{folder.name}.{socket.gethostname()}."
    for path in folder.parent.glob(f"{glob.escape(prefix)}*.partial"):
        try:
            os.kill(int(path.name.removeprefix(prefix).split(".")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # alive under another user, or not ours


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
    ) -> None:
        """Open the streams under a temporary name.

        Args:
            folder: Where the cache will stand.
            splits: Names of the splits.
            source: What records are of that do not say it themselves: the data module's name.
            on_invalid: ``error`` or ``skip``.
            merged_tokens: Bound on the tokens of a record of several rows; 0 merges none.

        Raises:
            OSError: If nothing can be written there; so for all that writes.
        """
        self.folder, self.on_invalid, self.merged_tokens = folder, on_invalid, merged_tokens
        self.reports = {split: SplitReport() for split in splits}
        owner = f"{folder.name}.{socket.gethostname()}.{os.getpid()}."
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(folder)
            self.partial = Path(tempfile.mkdtemp(prefix=owner, suffix=".partial", dir=folder.parent))
            self._splits = {split: _SplitWriter(self.partial, split, source) for split in splits}
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

    def write(self, split: str, rows: Sequence[tuple[PreferenceRecord, TokenizedRecord, str, int]]) -> None:
        """Append records with their tokens and places.

        Raises:
            RecordError: If votes have another number of categories than those before, unless skipped.
        """
        rows = [row for row in rows if self._same_categories(split, *row)]
        if not rows:
            return
        report = self.reports[split]
        for record, tokens, _, _ in rows:
            report.records += 1
            if split != "predict" and (unread := _num_unread(record)):
                report.dropped["user or domain of a response, which the predict split alone reads"] += unread
            report.responses += len(tokens.responses)
            report.comparisons += len(tokens.comparisons)
            report.largest_token = max(report.largest_token, int(tokens.tokens.max()))
            report.cut_prompts += tokens.cut > 0
            report.cut_tokens += tokens.cut
            report.dropped.update(tokens.dropped)
        with _writing(self.folder):
            self._splits[split].write(rows)

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
            self.reports[split].repeated = len(writer.judgements) - len(np.unique(writer.judgements))
        present = set().union(*(writer.present for writer in self._splits.values()))
        for split, writer in self._splits.items():
            # Where responses are rated, each rating is a judgement of its own, and so is its response.
            rated = any(entry.stored in present for entry in optional_columns("response"))
            # Whoever has rows scored finds them again by their own ids.
            tokens = self.merged_tokens if split != "predict" else 0
            writer.merge(self.reports[split], tokens, equal_once=not rated)
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

    def _same_categories(
        self, split: str, record: PreferenceRecord, tokens: TokenizedRecord, file: str, line: int
    ) -> bool:
        sizes: dict[str, int] = {}
        items = _items(record, range(len(record.responses)), range(len(record.comparisons)))
        for entry in optional_columns(kind="counts"):
            for counts in map(entry.of, items[entry.item]):
                if counts is not None:
                    sizes.setdefault(entry.votes, len(counts))
        for name, size in sizes.items():
            if size != self._categories.get(name, size):
                allowed = f"{self._categories[name]} categories, as in the records before"
                self.skip(
                    split, RecordError(name, size, allowed, reason="out of range", file=file, line=line)
                )
                return False
        self._categories.update(sizes)  # only a record that is kept decides
        return True

    def _settle_duplicates(self, split: str, writer: _SplitWriter) -> None:
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
        left = ~np.isin(np.asarray(writer.judged_rows, np.uint64), again.astype(np.uint64))
        writer.judgements = array("Q", np.asarray(writer.judgements, np.uint64)[left].tobytes())
        removed = table.select(again)
        report = self.reports[split]
        report.records -= len(again)
        report.responses -= sum(map(len, removed["response_index"]))
        report.comparisons -= sum(map(len, removed["comparison_index"]))


def _check_keys(split: str, writer: _SplitWriter) -> None:
    """Refuse two records that side tables could not tell apart; their ids differ."""
    keys = np.asarray(writer.keys, np.int64)
    values, counts = np.unique(keys, return_counts=True)
    if len(values) == len(keys):
        return
    table = TokenTable.read(writer.path).select_columns(["id", "record_key"])
    pairs = zip(table["id"], table["record_key"], strict=True)
    names = sorted({name for name, key in pairs if key == values[counts.argmax()]})
    raise ValueError(f"{split}: records {', '.join(map(repr, names))} have the same key: rename one of them")


def _check_weights(split: str, writer: _SplitWriter) -> None:
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
