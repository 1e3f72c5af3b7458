"""PreferenceDataModule: splits, loaders and what others ask of data; once for all datasets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from torch.utils.data import DataLoader

from .batch import GivenRecord, GivenResponse, PreferenceBatch, TextExtent
from .batches import (
    EpochDraws,
    FeatureStore,
    FeatureTable,
    IndexedRows,
    LoaderConfig,
    LoaderRows,
    PreferenceCollator,
    PreferenceDataLoader,
    RequestView,
    batch_loader,
    changed,
    settled,
    user_view,
)
from .columns import optional_columns
from .content import plain_content
from .crowd import VotePriors
from .joins import SideTable, report_joins
from .prepared import SPLITS, UNLABELLED
from .records import PreferenceRecord, SourceRow
from .settings import SharedSettings
from .tokens import (
    CacheReader,
    ComparisonView,
    DataReader,
    RecordTable,
    SplitReport,
    decoded_responses,
    report_split,
)
from .treated import TreatedData

__all__ = ["SPLITS", "LoaderConfig", "PreferenceDataModule", "SplitRecords"]

STAGES = {
    "fit": ("train", UNLABELLED, "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class SplitRecords(NamedTuple):
    """Records of a split, all of them or a part."""

    name: str
    """Of the data, or of the part, for messages."""
    split: str
    """Which split they are of."""
    table: RecordTable
    """The records."""


class PreferenceDataModule(TreatedData):
    """Base of every data module. A dataset implements :meth:`load` and :meth:`to_example`.

    ``setup`` memory-maps the splits of its stage from the token cache that ``prepare_data`` wrote.

    Open splits and treatments are :class:`TreatedData`'s, names :class:`NamedData`'s, the settings :class:`PreparedData`'s.

    Attributes:
        reports: What became of the rows, by split; filled by ``setup``.
    """

    def __init__(self, **shared: Unpack[SharedSettings]) -> None:
        """Keep the settings that all datasets share; reads nothing.

        Args:
            **shared: As :class:`PreparedData` has them.
        """
        super().__init__(**shared)
        self.reports: dict[str, SplitReport] = {}
        self._added_features: Path | None = None
        self._store: FeatureStore | None = None
        self._loaded: dict[tuple[object, ...], LoaderRows] = {}
        self._indexed: dict[tuple[object, ...], IndexedRows] = {}
        self._views: dict[tuple[object, ...], RecordTable | ComparisonView] = {}
        self._priors: VotePriors | None = None

    # Lightning -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Memory-map the splits of ``stage`` and report what became of their rows.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, which open the feature store and the side tables as
                well; None for every split and its tokens alone.

        Raises:
            FileNotFoundError: If there is no feature store or side table where ``loader`` names one.
            ValueError: If nothing is left of a split, or nothing of it is in a side table.
        """
        # What is missing or does not fit is said before anything is prepared.
        joins = self._open_files() if stage else ()
        if self._reader is None:
            self.prepare_data()
            self._reader, self._priors = self._open_cache()
            self._content = plain_content(self.content())
        opened: list[str] = []
        for split in STAGES[stage] if stage else self.splits:
            if split in self._tables or split not in self.splits:
                continue  # a missing split is an error when its loader is asked for, not before
            self.reports[split] = self._reader.reports[split]
            self._report(split)
            self._tables[split] = self._reader.table(split)
            opened.append(split)
        joined = {split: self._tables[split] for split in opened if split != UNLABELLED}
        report_joins(self.name, joins, joined, self._reader.categories)
        self._name_users()
        if stage == "fit" and "train" in self._tables:
            _ = self.decisions  # reports what is treated, or says what is in the way

    def _name_users(self) -> None:
        super()._name_users()
        self._indexed.clear()  # what names are indices of may have changed

    def _open_cache(self) -> tuple[DataReader, VotePriors]:
        reader = CacheReader(self.cache_folder())
        return reader, VotePriors(self.name, reader)

    def _report(self, split: str) -> None:
        report_split(self.name, split, self.reports[split])

    def texts(self, split: str, responses: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """Prompt and text of responses, as the network reads them; empty for a response that the split does not have.

        Args:
            split: A split that ``setup`` opened.
            responses: Record id and place in the record of each response.
        """
        return decoded_responses(self.table(split), self.tokenizer.tokenizer.decode, responses)

    def given(self, split: str) -> Iterator[GivenRecord]:
        """Records of a split as their source gives them, in its order.

        The source is read anew; rows that are no valid records are passed over.

        Args:
            split: A split that the data have.
        """
        for record, row in self.read_rows(split, lambda error: None):
            yield _given(record, row)

    def requested_users(self, split: str) -> list[str]:
        """Users whose reward the records of a split, which ``setup`` opened, ask for."""
        return self._requested(split, "request_user") if self._asks(split) else []

    def requested_domains(self, split: str) -> list[str]:
        """Domains whose reward the records of a split ask for; none of a split that ``setup`` did not open."""
        return self._requested(split, "request_domain") if split in self._tables and self._asks(split) else []

    def _requested(self, split: str, column: str) -> list[str]:
        chunks = self.table(split).column(column).chunks
        names = {name for chunk in chunks for name in chunk.flatten().unique().to_pylist()}
        return sorted(names - {None})

    # What modules, callbacks and commands ask --------------------------------------------------------------

    @property
    def features(self) -> FeatureStore | None:
        """The store that ``loader.features`` names, opened when first asked for; None without one.

        Raises:
            FileNotFoundError: If there is no store.
            ValueError: If it is damaged, or of another tokenizer.
        """
        return self._open_features()

    def _open_features(self) -> FeatureStore | None:
        folder = self.loader.features
        if folder is None:
            return None
        if self._store is None or self._store.folder != Path(folder):
            store = FeatureStore(folder, added=self._added_features)
            store.check_tokenizer(self.text_format())
            self._store = store
        return self._store

    def add_features(self, folder: Path) -> FeatureStore:
        """Read vectors that the store of ``loader.features`` lacks from another folder, which holds what it does now.

        Args:
            folder: Of a store of the same description.

        Raises:
            ValueError: If ``loader.features`` names no store.
        """
        self._added_features, self._store = folder, None
        store = self._open_features()
        if store is None:
            raise ValueError("add_features needs loader.features: the store that lacks something")
        return store

    def _open_files(self) -> tuple[SideTable, ...]:
        self._open_features()
        return self.joins

    @property
    def extents(self) -> dict[str, TextExtent]:
        """How far the tokens of every split go, of those that are not open, too; empty before ``setup``."""
        reports = {} if self._reader is None else self._reader.reports
        return {split: TextExtent(report.longest, report.largest_token) for split, report in reports.items()}

    def mean_votes(self, name: str) -> list[float] | None:
        """Mean share of every category over the training split's judged items; None if it has no such votes.

        Args:
            name: ``votes`` or ``comparison_votes``; of the latter, either response may be the first.
        """
        return None if self._priors is None else self._priors.mean_votes(name)

    def check_judged(self, name: str) -> None:
        """Make sure that every item of the open splits has votes (``votes`` or ``comparison_votes``) or a prior.

        Raises:
            ValueError: Naming split, record and item that has neither, and what to change; or if the data have no
                such votes at all, or ``loader.crowd.prior`` does not fit them.
        """
        if self._priors is not None:
            joined = next((table for table in self.joins if table.column == "prior"), None)
            self._priors.check_judged(name, self.loader.crowd, self._tables, joined)

    # Batches -----------------------------------------------------------------------------------------------

    def layout(self, settings: LoaderConfig | None = None) -> str:
        """Layout of the rows: the setting, or the model's wish where that is ``auto``."""
        settings = settings or self.loader
        if settings.layout != "auto":
            return settings.layout
        module = getattr(self.trainer, "lightning_module", None)
        return getattr(module, "layout", None) or "shared"

    def collator(
        self, settings: LoaderConfig | None = None, *, requests: bool = False, treated: bool = False
    ) -> PreferenceCollator:
        """Function that turns rows into a batch, by the loader's settings or others; picklable.

        Args:
            settings: The loader's if None.
            requests: Whether batches say whose reward is asked for.
            treated: Whether labels are treated; rows of the training split then say how.
        """
        settings = settings or self.loader
        if self._reader is None or self._priors is None:
            raise RuntimeError("call setup() first: the collator needs the data's users, domains and columns")
        return PreferenceCollator(
            layout=self.layout(settings),
            present=self._reader.present,
            names=self.names,
            categories=self._reader.categories,
            store=None if settings.features is None else self.features,
            items=settings.items,
            prompts=settings.prompts,
            crowd=settings.crowd,
            priors=self._priors.of_all(settings.crowd),
            joins=self.joins,
            requests=requests,
            treatments=settings.treatments if treated else None,
        )

    def _collator(self, split: str, settings: LoaderConfig) -> PreferenceCollator:
        return self.collator(settings, requests=self._asks(split), treated=self._treats(split, settings))

    def rows(self, split: str, settings: LoaderConfig | None = None) -> LoaderRows:
        """What a loader reads, by its settings or others: tokens, or the places of stored features."""
        return self._rows_of(self._records(split), settings or self.loader)

    def _records(self, split: str) -> SplitRecords:
        return SplitRecords(self.name, split, self.table(split))

    def _rows_of(self, records: SplitRecords, settings: LoaderConfig) -> LoaderRows:
        key = self._read(records, settings)
        if key not in self._loaded:
            table = self._shown(records, settings)
            store = None if settings.features is None else self.features
            rows: RecordTable | ComparisonView | FeatureTable = table
            if store is not None:
                rows = FeatureTable(table, store, records.split, items=settings.items)
            self._loaded[key] = RequestView(rows, table) if self._asks(records.split) else rows
        return self._loaded[key]

    @staticmethod
    def _read(records: SplitRecords, settings: LoaderConfig) -> tuple[object, ...]:
        """What decides which records are read, and with what beside them."""
        read = settings.users, settings.items, settings.features, settings.treatments, settings.joins
        return records.name, records.split, *read

    def _loadable(
        self, records: SplitRecords, settings: LoaderConfig, collate: PreferenceCollator
    ) -> LoaderRows:
        """Records as a loader has them: those with stored features as tables, which are made once."""
        rows = self._rows_of(records, settings)
        if not isinstance(rows, FeatureTable):
            return rows
        key = *self._read(records, settings), settings.crowd, settings.features_memory
        if key not in self._indexed:
            self._indexed[key] = IndexedRows(rows, collate, memory=settings.features_memory)
        return self._indexed[key]

    def _shown(self, records: SplitRecords, settings: LoaderConfig) -> RecordTable | ComparisonView:
        """Records with the judgements of the users whom the settings show, less those that a treatment drops."""
        key = records.name, records.split, settings.users, settings.treatments, settings.joins
        if key not in self._views:
            shown: RecordTable | ComparisonView = records.table
            if self._divides(settings.users) and records.split not in ("predict", UNLABELLED):
                shown = user_view(*records, settings.users, *self.divided_users())
            self._views[key] = self._treated(shown) if self._treats(records.split, settings) else shown
        return self._views[key]

    def batches(
        self,
        split: str,
        *,
        users: Literal["seen", "unseen", "all"] | None = None,
        shuffle: bool = False,
        features: bool | None = None,
        prompts: bool | None = None,
        layout: Literal["shared", "separate"] | None = None,
        max_tokens: int | None = None,
        rank: tuple[int, int] | None = None,
    ) -> PreferenceDataLoader:
        """Batches of a split, as often as one iterates; what is None is as the loader's settings have it.

        Labels are as the data have them: what trains alone sees treated ones (``loader.treatments``).

        Args:
            split: A split that ``setup`` opened.
            users: Whose judgements they hold.
            shuffle: Whether their order is random, by the loader's seed.
            features: True for stored features, False for tokens.
            prompts: Whether every prompt is a row of its own, too.
            layout: Of the rows.
            max_tokens: Bound on rows x padded length.
            rank: This process and the number of processes; the trainer's if None.

        Raises:
            ValueError: If the data have no such split, or no features where they are asked for.
            RuntimeError: If ``setup`` has not opened the split.
        """
        settings = changed(
            self.loader, users=users, features=features, prompts=prompts, layout=layout, max_tokens=max_tokens
        )
        return self._batches(self._records(split), settings, shuffle=shuffle, rank=rank or self._rank())

    def _batches(
        self,
        records: SplitRecords,
        settings: LoaderConfig,
        *,
        shuffle: bool,
        rank: tuple[int, int],
        even: bool | None = None,
        draws: EpochDraws | None = None,
    ) -> PreferenceDataLoader:
        settings = settled(settings, getattr(self.trainer, "lightning_module", None) or self.network)
        collate = self._collator(records.split, settings)
        return batch_loader(
            f"{records.name} {records.split}",
            self._loadable(records, settings, collate),
            collate,
            settings,
            shuffle=shuffle,
            rank=rank,
            even=even,
            draws=draws,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self,
        records: SplitRecords,
        *,
        shuffle: bool = False,
        even: bool = False,
        draws: EpochDraws | None = None,
        settings: LoaderConfig | None = None,
    ) -> PreferenceDataLoader:
        """Batches of a trainer's loop, which cannot do without a batch on every rank.

        Raises:
            ValueError: If there are fewer records than ranks.
        """
        rank, settings = self._rank(), settings or self.loader
        number = len(self._rows_of(records, settings)) if draws is None else draws.fewest
        if rank[1] > max(1, number):
            raise ValueError(
                f"{records.name} {records.split}: {number:,} record{'' if number == 1 else 's'} cannot be divided among "
                f"{rank[1]} ranks, and each needs one: set trainer.devices to at most {max(1, number)}, or give the split "
                "more records"
            )
        return self._batches(records, settings, shuffle=shuffle, rank=rank, even=even, draws=draws)

    def _asks(self, split: str) -> bool:
        """Whether records of a split say whose reward is asked for; only those to predict can."""
        present = frozenset() if self._reader is None else self._reader.present
        return split == "predict" and any(entry.stored in present for entry in optional_columns("request"))

    def loader_names(self, split: str) -> tuple[str, ...]:
        """Names of the loaders that a split comes in; none, for it is a single one."""
        return ()

    def _draws(self) -> EpochDraws | None:
        """Which of the training records an epoch has; None for all."""
        return None

    def train_dataloader(self) -> PreferenceDataLoader:
        """Batches of the training split, in seeded random order; equally many on every rank."""
        return self._loader(self._records("train"), shuffle=self._shuffles, even=True, draws=self._draws())

    @property
    def _shuffles(self) -> bool:
        """Whether training order is random."""
        return self.loader.shuffle and not getattr(self.trainer, "overfit_batches", 0)

    def val_dataloader(self) -> DataLoader[PreferenceBatch] | list[DataLoader[PreferenceBatch]]:
        """Batches of the validation split, in fixed order."""
        return self._loader(self._records("validation"))

    def test_dataloader(self) -> DataLoader[PreferenceBatch] | list[DataLoader[PreferenceBatch]]:
        """Batches of the test split, in fixed order."""
        return self._loader(self._records("test"))

    def predict_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of the rows to score, in fixed order."""
        return self._loader(self._records("predict"))


def _given(record: PreferenceRecord, row: SourceRow) -> GivenRecord:
    prompt = record.prompt
    return GivenRecord(
        record.id,
        prompt
        if isinstance(prompt, str)
        else [{"role": turn.role, "content": turn.content} for turn in prompt],
        [GivenResponse(response.text, response.user, response.domain) for response in record.requests],
        [(comparison.user, comparison.domain) for comparison in record.comparisons],
        f"{row.file}:{row.line}",
    )
