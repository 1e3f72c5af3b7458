"""PreparedData: settings, validation of rows and token cache, once for all datasets."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from .batches import LoaderConfig
from .checks import check_choices, check_range
from .official import OfficialScores
from .records import PreferenceRecord, RecordError, SourceRow, hash_files, hash_share, hash_split
from .settings import OnInvalid
from .text_data import TextData
from .tokens import (
    CacheShards,
    CacheWriter,
    Shard,
    SplitReport,
    TextConfig,
    cache_damage,
    fingerprint,
    tokenise,
    without_keys,
)

__all__ = ["SPLITS", "UNLABELLED", "PreparedData"]

SPLITS = ("train", "validation", "test", "predict")
UNLABELLED = "unlabelled"
"""Training records of the sources of a mixture that need no judgement, where they are read like a split."""
VALIDATION_SHARE = 0.05
Ends = tuple[tuple[float, str], tuple[float, str]]
"""The first and the last prompt by the share that its hash is, with the prompt's key."""
MERGED_TOKENS = 4096
"""Half of a loader's budget by default, so that no merged record is a batch alone."""


class PreparedData(TextData, ABC):
    """Half of every data module: the settings, what a dataset implements, and the way of its rows into the cache.

    ``prepare_data`` reads, validates and tokenises every source once and writes the token cache. A second run with equal
    content tokenises nothing.

    Attributes:
        name: Short name of the dataset; names the cache's folder.
        sources: Parts that :meth:`load` can read. A source named like a split becomes that split. Without a
            source ``validation``, a share of ``train`` is held out by a hash of the prompt. Empty until the
            constructor of a dataset whose parts depend on its settings fills it.
        needs_judgement: Whether a training record without a judgement is left out. Where it is False, as a mixture sets it on its
            unlabelled sources, there is a training split alone, of the groups of responses: whatever judgements rows have are
            counted and left out, rows of equal prompts are always merged, and records of fewer than two different responses,
            in which nothing can be told apart, are counted and dropped.
        notes_need_records: Whether what :meth:`notes` says rests on :meth:`to_example`, and not on :meth:`load` alone.
        has_own_features: Whether it brings stored features of its own, and its texts are names that no network reads.
        where_to_get: What to do where ``data_dir`` is missing, of a dataset that is not on the Hugging Face hub.
    """

    sources: tuple[str, ...] = ()
    needs_judgement: bool = True
    notes_need_records: ClassVar[bool] = False
    has_own_features: ClassVar[bool] = False
    where_to_get: ClassVar[str]

    def __init_subclass__(cls, **keywords: object) -> None:
        """Let the command line read shared settings from the constructor below, where they have defaults and help.

        ``**shared: Unpack[SharedSettings]`` tells type checkers which settings there are; jsonargparse would take it
        for all that is known of them.
        """
        super().__init_subclass__(**keywords)
        cls.__init__.__annotations__.pop("shared", None)

    def __init__(
        self,
        *,
        text: TextConfig = TextConfig(),
        loader: LoaderConfig = LoaderConfig(),
        on_invalid: OnInvalid = "error",
        validation_share: float = VALIDATION_SHARE,
        merged_tokens: int = MERGED_TOKENS,
        cache_dir: str | None = None,
        num_processes: int = 1,
    ) -> None:
        """Keep the settings that all datasets share; reads nothing.

        Args:
            text: Tokenizer, format and truncation.
            loader: Batch bounds, order and workers.
            on_invalid: ``error`` stops at the first row that is not a valid record, ``skip`` counts such rows
                by reason and reports them at the end of ``setup``.
            validation_share: Share of the training prompts held out for validation if the dataset has no
                validation source, in (0, 1), and at least one prompt of several; refused where it always has one.
            merged_tokens: Rows of equal prompts become one record of at most so many tokens, >= 0, in which an equal
                response is read once; 0 leaves every row a record of its own. Rows to be scored are never merged.
            cache_dir: Folder of token caches; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.
            num_processes: Processes that tokenise when the cache is written, >= 1, such as one a core for large data; beside
                them this one reads rows and writes. The cache is the same bit for bit.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__(text=text, cache_dir=cache_dir)
        check_choices(PreparedData.__init__, on_invalid=on_invalid)
        check_range("validation_share", validation_share, above=0, below=1)
        check_range("merged_tokens", merged_tokens, at_least=0)
        check_range("num_processes", num_processes, at_least=1)
        if "validation" in self.sources and validation_share != VALIDATION_SHARE:
            raise ValueError(
                f"validation_share must not be given, got {validation_share}: {type(self).__name__} has a validation "
                f"split of its own; leave it out, or where a recipe gives it, set it to {VALIDATION_SHARE}"
            )
        self.loader = loader
        self.on_invalid: OnInvalid = on_invalid
        self.validation_share, self.merged_tokens = validation_share, merged_tokens
        self.num_processes = num_processes
        self._held_out: str | None = None
        self._ends: Ends | None = None
        self._whole: Path | None = None  # the cache folder whose every byte was compared

    def need_folder(self, data_dir: str | None) -> str:
        """The folder of a dataset that is not on the Hugging Face hub.

        Raises:
            ValueError: If none is given; says where to get the data.
        """
        if data_dir is None:
            raise ValueError(f"{type(self).__name__} needs data_dir: {self.where_to_get}")
        return data_dir

    # What a dataset implements -------------------------------------------------------------------------

    @abstractmethod
    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Read the rows of one of ``sources``, in a fixed order."""

    @abstractmethod
    def to_example(self, row: SourceRow) -> PreferenceRecord:
        """Turn a row into a record; raise :class:`RecordError` if it cannot be one."""

    def files(self, source: str) -> list[Path]:
        """Local files that :meth:`load` reads for ``source``: their bytes are part of the fingerprint."""
        return []

    def settings(self) -> dict[str, object]:
        """Every other setting that decides the rows: hub name and revision, subsets, seeds."""
        return {}

    @property
    def needs_prompts(self) -> bool:
        """Whether records without a prompt are worth a warning."""
        return True

    def notes(self, source: str) -> list[str]:
        """What is to be said of a source once its rows are read: each a warning whenever the split is opened."""
        return []

    def unread_columns(self, source: str) -> list[str]:
        """Columns of a source that nothing read, of a data module that looks; asked once its rows are read."""
        return []

    # Records -------------------------------------------------------------------------------------------

    def records(self, split: str, *, skipped: Counter[str] | None = None) -> Iterator[PreferenceRecord]:
        """Records of a split as their rows are, in the source's order: not merged, and without tokens.

        Args:
            split: One of :attr:`splits`.
            skipped: Where rows that are no valid records are counted by reason, with ``on_invalid: skip``.

        Raises:
            RecordError: At the first row that is no valid record, with ``on_invalid: error``; names file and line.
            ValueError: If there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        self._held_out, self._ends = None, None
        found = False
        for record, _ in self.read_rows(split, self._count_skipped(skipped)):
            found = True
            yield record
        if not found and split == "validation" and self._ends is not None and self._ends[0] != self._ends[1]:
            self._held_out = self._ends[0][
                1
            ]  # of a few prompts a share may take none, and then one is held out
            yield from (record for record, _ in self.read_rows(split, self._count_skipped(None)))

    def _count_skipped(self, skipped: Counter[str] | None) -> Callable[[RecordError], None]:
        def skip(error: RecordError) -> None:
            if self.on_invalid == "error":
                raise error
            if skipped is not None:
                skipped[error.reason] += 1

        return skip

    def read_rows(
        self, split: str, skip: Callable[[RecordError], None]
    ) -> Iterator[tuple[PreferenceRecord, SourceRow]]:
        """Records of a split with their rows; ``skip`` is told of rows that are no valid records."""
        for source in (source for source in self.sources if source == split or split not in self.sources):
            for row in self.load(source):
                if isinstance(row, RecordError):
                    skip(row)
                    continue
                try:
                    record = without_keys(self.to_example(row), self.text.ignored_message_keys)
                except RecordError as error:
                    skip(error if error.file else error.at(row.file, row.line))
                    continue
                if self.route(record, source) == split:
                    yield record, row

    def official_scores(
        self, records: Sequence[PreferenceRecord], rewards: Sequence[Sequence[float]]
    ) -> OfficialScores | None:
        """What a benchmark's own rule makes of a model's rewards; None of data that have no such rule.

        Args:
            records: As :meth:`records` gives them.
            rewards: One for each response of each record, finite.

        Raises:
            ValueError: If there are not as many, or one is not finite.
        """
        return None

    # Cache ---------------------------------------------------------------------------------------------

    def text_format(self) -> dict[str, str | int | bool | None]:
        """The settled text format; stored with every checkpoint, so that later scoring uses the same."""
        description = super().text_format()
        return (
            description
            if self.loader.items == "conversation"
            else {**description, "items": self.loader.items}
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that this dataset has."""
        if not self.needs_judgement:
            return ("train",) if "train" in self.sources else ()
        return tuple(
            split
            for split in SPLITS
            if split in self.sources or (split == "validation" and "train" in self.sources)
        )

    def cache_folder(self) -> Path:
        """Where this content's cache stands or will stand."""
        description = {"name": self.name, **self.content(), "format": self.tokenizer.fingerprint()}
        return self.cache_root() / f"{self.name}-{fingerprint(description)}"

    def cache_folders(self) -> dict[str, Path]:
        """Where the caches of all that it is put together from stand or will stand, by name."""
        return {self.name: self.cache_folder()}

    def content(self) -> dict[str, object]:
        """What decides the records, whatever the tokens: bytes of the files of each source, and settings."""
        held_out = self.needs_judgement and "validation" not in self.sources
        return {
            "sources": {source: hash_files(self.files(source)) for source in self._read_sources()},
            "settings": self.settings(),
            "on_invalid": self.on_invalid,
            "merged_tokens": self.merged_tokens,
            "validation_share": self.validation_share if held_out else None,
            # Where records need one nothing is said of it, so that older caches keep their names.
            **({} if self.needs_judgement else {"needs_judgement": False}),
        }

    def _read_sources(self) -> tuple[str, ...]:
        """Sources that become records: of data that need no judgement those of the training split."""
        return self.sources if self.needs_judgement else self.splits

    def cache_problem(self) -> str | None:
        """What is wrong with the cache, every byte of it compared, once; None if it is there and whole."""
        folder = self.cache_folder()
        if folder == self._whole:
            return None
        problem = cache_damage(folder, every_byte=True)
        self._whole = folder if problem is None else None
        return problem

    def prepare_data(self) -> None:
        """Read, validate and tokenise into the cache, unless it is there and whole; shards that are all done are joined.

        Raises:
            OSError: If the cache cannot be written, naming its folder.
        """
        problem = self.cache_problem()
        if problem is None:
            return
        folder = self.cache_folder()
        if folder.exists():
            rank_zero_warn(f"{self.name}: the token cache {folder} is damaged and made anew: {problem}")
        shards = CacheShards.complete(folder)
        if shards is None or self._join(shards, at_any_rate=True):
            self._write_cache(folder)
        self._whole = folder

    def prepare_shard(self, shard: Shard) -> dict[str, list[int]]:
        """Read everything and tokenise a part of it beside the cache; if all parts are there then, put the cache together.

        Independent jobs, on one machine or on several that share ``cache_dir``, do a shard each. None waits for another.

        Args:
            shard: Which part, of how many.

        Returns:
            Shards that are not done yet, by what the data are put together from: none once the cache is there, or another
            process puts it together.

        Raises:
            OSError: If nothing can be written there.
            ValueError: If the data bring stored vectors of their own.
        """
        if self.has_own_features:
            raise ValueError(
                f"{self.name}: stored vectors of the data's own are written with the cache, by one process: leave --shard out"
            )
        folder = self.cache_folder()
        if self.cache_problem() is None:
            return {self.name: []}
        shards = CacheShards(folder, shard.total)
        if cache_damage(shards.shard_folder(shard.number), every_byte=True) is not None:
            self._write_shard(shards, shard)
        return {self.name: shards.missing() or self._join(shards)}

    def _write_shard(self, shards: CacheShards, shard: Shard) -> None:
        self._held_out, self._ends = None, None
        with shards.writer(shard, self.splits) as writer:
            for source in self._read_sources():
                tokenise(self, source, writer, shard)
            writer.finish({"ends": self._ends})

    def _join(self, shards: CacheShards, *, at_any_rate: bool = False) -> list[int]:
        """Put the cache together of shards, unless another process does; those that turn out damaged are still to be done."""
        with shards.joining() as alone:
            if cache_damage(shards.cache, every_byte=False) is not None and (alone or at_any_rate):
                if damaged := shards.missing(every_byte=True):
                    numbers = ", ".join(map(str, damaged))
                    rank_zero_warn(
                        f"{self.name}: of {shards.folder}, {numbers} of {shards.total} are damaged"
                    )
                    return damaged
                self._write_cache(shards.cache, shards)
            if alone:
                shards.remove()
        return []

    def _write_cache(self, folder: Path, shards: CacheShards | None = None) -> None:
        """Write the cache, of the rows or of shards of them."""
        self._held_out, self._ends = None, None
        while True:
            with CacheWriter(
                folder,
                self.splits,
                source=self.name,
                on_invalid=self.on_invalid,
                merged_tokens=self.merged_tokens,
                judged=self.needs_judgement,
            ) as writer:
                if shards is None:
                    for source in self._read_sources():
                        tokenise(self, source, writer)
                else:
                    self._ends = _outermost(each["ends"] for each in shards.descriptions())
                    shards.join(self._read_sources(), writer)
                if not self._hold_one_out(writer.reports):
                    writer.finish(self.tokenizer.fingerprint())
                    return
            shards = None  # of so few prompts all rows are read again

    def route(self, record: PreferenceRecord, source: str) -> str:
        """Split of a record: its source's, or validation for a hashed share of the training prompts."""
        if source != "train" or "validation" in self.sources or not self.needs_judgement:
            return source
        key, held_out = record.split_key, math.ceil(self.validation_share * 10_000)
        if key == self._held_out:
            return "validation"
        place = hash_share(key), key
        first, last = self._ends or (place, place)
        self._ends = min(first, place), max(last, place)
        return hash_split(key, {"validation": held_out, "train": 10_000 - held_out})

    def _hold_one_out(self, reports: Mapping[str, SplitReport]) -> bool:
        """Whether to begin again: of a few prompts a share may take none, and then one of them is held out."""
        if self._held_out is not None or self._ends is None or reports["validation"].rows:
            return False
        (_, first), (_, last) = self._ends
        self._held_out = first if first != last else None
        return self._held_out is not None


def _outermost(ends: Iterable[Sequence[tuple[float, str]] | None]) -> Ends | None:
    """The first and the last of several first and last prompts; None if there are none."""
    every = [(share, key) for pair in ends for share, key in pair or ()]
    return (min(every), max(every)) if every else None
