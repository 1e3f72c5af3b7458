"""The first rows of a file or of a dataset on the hub, and what a data module makes of them."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Unpack

from pluralign.datamodules import (
    LocalDataModule,
    PreferenceDataModule,
    PreferenceRecord,
    RecordError,
    TextConfig,
)
from pluralign.datamodules.records import HubTable, SourceRow, find_tables, has_text_cells
from pluralign.datamodules.settings import SharedSettings
from pluralign.datamodules.tokens import CacheReader, SplitReport

__all__ = ["Outcome", "Sample", "SampledDataModule", "take_records", "take_sample", "tokenised"]


class Sample(NamedTuple):
    """The first rows of a table.

    Attributes:
        given: How the user named it: files, or one dataset on the hub.
        rows: Its first rows, each as it is or with what is wrong with it.
        is_whole: Whether there are no others.
        hub: The dataset on the hub; None of files.
    """

    given: tuple[str, ...]
    rows: tuple[SourceRow | RecordError, ...]
    is_whole: bool
    hub: HubTable | None = None

    @property
    def readable(self) -> list[SourceRow]:
        """Rows that are rows."""
        return [row for row in self.rows if isinstance(row, SourceRow)]

    @property
    def text_cells(self) -> bool:
        """Whether numbers are written as text, as in CSV."""
        return any(has_text_cells(row.file) for row in self.readable[:1])

    @property
    def train(self) -> str | list[str]:
        """What the setting ``train`` names."""
        return self.given[0] if len(self.given) == 1 else list(self.given)


def take_sample(given: Sequence[str], most: int) -> Sample:
    """Read the first rows.

    Args:
        given: Files, patterns or folders; or a dataset on the hub, ``[hub:]org/name[@revision][:configuration][/split]``.
        most: How many rows.

    Raises:
        FileNotFoundError: If there is no such file, and the name is no hub name either.
        RecordError: If it cannot be read as a whole.
        ValueError: If a file has an ending that nobody reads.
    """
    hub = HubTable.of_name(given[0]) if len(given) == 1 else None
    if hub is not None and not given[0].startswith("hub:") and _is_path(given[0]):
        hub = None
    with tempfile.TemporaryDirectory(prefix="pluralign_") as folder:
        rows: Iterable[SourceRow | RecordError]
        if hub is not None:
            rows = hub.rows()
        else:
            names = given[0] if len(given) == 1 else given
            rows = find_tables(names, copies=Path(folder), argument="data", split="train").rows()
        sample = tuple(islice(rows, most + 1))
    return Sample(tuple(given), sample[:most], len(sample) <= most, hub)


def _is_path(name: str) -> bool:
    """Whether a name that could be one of the hub is of something here: it exists, its folder does, or it has an ending."""
    path = Path(name).expanduser()
    return path.exists() or path.parent.is_dir() or bool(path.suffix)


class SampledDataModule(LocalDataModule):
    """Rows that were read before, read as your own data are."""

    def __init__(
        self, sample: Sample, split: str, settings: dict[str, object], **shared: Unpack[SharedSettings]
    ) -> None:
        """Take rows and settings.

        Args:
            sample: The rows.
            split: Split that they are read as: ``predict``, or ``test`` for those that are judged.
            settings: Of :class:`LocalDataModule`, such as ``columns``.
            **shared: Settings that all datasets share.
        """
        super().__init__(**{split: ", ".join(sample.given)}, **settings, **shared)  # type: ignore[arg-type]
        self.sample = sample

    def source_rows(self, source: str) -> Iterator[SourceRow | RecordError]:
        """The rows."""
        return iter(self.sample.rows)

    def content(self) -> dict[str, object]:
        """Nothing: no other process will look for this cache."""
        return {}


@dataclass
class Outcome:
    """What became of the rows of a sample.

    Attributes:
        rows: Rows that were read.
        records: What they became.
        lost: Rows that became nothing, by reason.
        errors: The first messages of these.
    """

    rows: int = 0
    records: list[PreferenceRecord] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def lose(self, error: RecordError) -> None:
        """Count a row that became nothing."""
        self.lost[error.reason] += 1
        if len(self.errors) < 3:
            self.errors.append(str(error))


def take_records(data: PreferenceDataModule, most: int) -> Outcome:
    """Records of the first rows of a data module's first part.

    Args:
        data: Reads them.
        most: How many rows.
    """
    outcome = Outcome()
    try:
        for row in islice(data.load(data.sources[0]), most):
            outcome.rows += 1
            if isinstance(row, RecordError):
                outcome.lose(row)
                continue
            try:
                outcome.records.append(data.to_example(row))
            except RecordError as error:
                outcome.lose(error.at(row.file, row.line))
    except RecordError as error:  # of the file as a whole
        outcome.lose(error)
    return outcome


def tokenised(sample: Sample, split: str, settings: dict[str, object]) -> SplitReport:
    """What becomes of a sample when it is tokenised, by bytes and in a folder of its own that is gone afterwards.

    Args:
        sample: The rows, of which at least one can be read.
        split: Split that they are read as.
        settings: Of :class:`LocalDataModule`.

    Raises:
        ValueError: If nothing is left of it.
    """
    with tempfile.TemporaryDirectory(prefix="pluralign_") as folder:
        text = TextConfig(tokenizer="byte")
        data = SampledDataModule(sample, split, settings, text=text, on_invalid="skip", cache_dir=folder)
        data.prepare_data()
        return CacheReader(data.cache_folder()).reports[split]
