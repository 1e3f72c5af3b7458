"""PreferenceDataModule: splits, validation of rows, token cache, loaders; once for all datasets."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from ._cache_writer import CacheWriter
from ._loader_config import LoaderConfig
from ._splits import hash_split
from .batch import PreferenceBatch
from .cache import CacheReader, SplitReport, TokenTable, fingerprint
from .collate import PreferenceCollator
from .crowd import CrowdConfig, CrowdPriors, crowd_priors
from .features import FeatureStore, FeatureTable
from .files import SourceRow, hash_files
from .record import PreferenceRecord, RecordError
from .sampler import FixedOrderBatchSampler, PreferenceDataLoader, TokenBudgetBatchSampler
from .settings import OnInvalid, check_choices, check_range
from .text import REFUSED, RecordTokenizer, TextConfig
from .users import UserProtocol, UserTable

__all__ = ["LoaderConfig", "PreferenceDataModule"]

SPLITS = ("train", "validation", "test", "predict")
STAGES = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}
VALIDATION_SHARE = 0.05
CHUNK = 256
"""Records tokenised at a time: enough to keep a fast tokenizer's threads busy, little enough for memory."""


class PreferenceDataModule(L.LightningDataModule, ABC):
    """Base of every data module. A dataset implements :meth:`load` and :meth:`to_example`.

    ``prepare_data`` reads, validates and tokenises every source once and writes the token cache;
    ``setup`` memory-maps the splits of its stage. A second run with equal content tokenises nothing.

    Attributes:
        name: Short name of the dataset; names the cache's folder.
        sources: Parts that :meth:`load` can read. A source named like a split becomes that split. Without a
            source ``validation``, a share of ``train`` is held out by a hash of the prompt. Empty until the
            constructor of a dataset whose parts depend on its settings fills it.
        where_to_get: What to do where ``data_dir`` is missing, of a dataset that is not on the Hugging Face hub.
        users: Judges, those of the training split first; ``user_id`` indexes it.
        num_training_users: How many of ``users`` were the training split's; a restored run counts its own.
        training_users: Judges that the loader of this training split shows, by ``loader.users``.
        domains: Domains of the training split; ``domain_id`` indexes it.
        reports: What became of the rows, by split; filled by ``setup``.
        feature_store: Where features come from if ``loader.features`` names a store; opened by ``setup``.
    """

    name: str  # pyright: ignore[reportIncompatibleVariableOverride]  Lightning leaves it unset
    sources: tuple[str, ...] = ()
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
        cache_dir: str | None = None,
    ) -> None:
        """Keep the settings that all datasets share; reads nothing.

        Args:
            text: Tokenizer, format and truncation.
            loader: Batch bounds, order and workers.
            on_invalid: ``error`` stops at the first row that is not a valid record, ``skip`` counts such rows
                by reason and reports them at the end of ``setup``.
            validation_share: Share of the training prompts held out for validation if the dataset has no
                validation source, in (0, 1); refused where it always has one.
            cache_dir: Folder of token caches; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.

        Raises:
            ValueError: If a setting is outside its range.
        """
        super().__init__()
        check_choices(PreferenceDataModule.__init__, on_invalid=on_invalid)
        check_range("validation_share", validation_share, 0, 1, ends="()")
        if "validation" in self.sources and validation_share != VALIDATION_SHARE:
            raise ValueError(
                f"validation_share must not be given, got {validation_share}: {type(self).__name__} has a validation "
                "split of its own"
            )
        self.text, self.loader, self.on_invalid = text, loader, on_invalid
        self.validation_share, self.cache_dir = validation_share, cache_dir
        self.users: list[str] = []
        self.num_training_users = 0
        self.training_users: list[str] = []
        self.domains: list[str] = []
        self.reports: dict[str, SplitReport] = {}
        self.feature_store: FeatureStore | None = None
        self._loaded: dict[str, tuple[object, TokenTable | UserTable | FeatureTable]] = {}
        self._divided: tuple[UserProtocol, tuple[list[str], list[str]]] | None = None
        self._priors: dict[str, tuple[CrowdConfig, CrowdPriors]] = {}
        self._tables: dict[str, TokenTable] = {}
        self._reader: CacheReader | None = None
        self._tokenizer: RecordTokenizer | None = None
        self._restored: dict[str, Any] | None = None

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

    # Cache ---------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> RecordTokenizer:
        """The tokenizer with its settled format; loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = RecordTokenizer(self.text)
        return self._tokenizer

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that this dataset has."""
        return tuple(
            split
            for split in SPLITS
            if split in self.sources or (split == "validation" and "train" in self.sources)
        )

    def cache_folder(self) -> Path:
        """Where this content's cache stands or will stand."""
        root = self.cache_dir or os.environ.get("PLURALIGN_CACHE") or Path.home() / ".cache" / "pluralign"
        description = {
            "name": self.name,
            "sources": {source: hash_files(self.files(source)) for source in self.sources},
            "settings": self.settings(),
            "format": self.tokenizer.fingerprint(),
            "on_invalid": self.on_invalid,
            "validation_share": None if "validation" in self.sources else self.validation_share,
        }
        return Path(root) / f"{self.name}-{fingerprint(description)}"

    def prepare_data(self) -> None:
        """Read, validate and tokenise into the cache, unless it is there."""
        folder = self.cache_folder()
        if (folder / "meta.json").is_file():
            return
        with CacheWriter(folder, self.splits, on_invalid=self.on_invalid) as writer:
            for source in self.sources:
                self._tokenise(source, writer)
            writer.finish(self.tokenizer.fingerprint())

    def _tokenise(self, source: str, writer: CacheWriter) -> None:
        rows = self.load(source)
        while chunk := list(islice(rows, CHUNK)):
            records: list[tuple[str, PreferenceRecord, SourceRow]] = []
            for row in chunk:
                try:
                    if isinstance(row, RecordError):
                        raise row
                    record = self._record(row)
                except RecordError as error:
                    writer.reports[source].rows += 1
                    writer.skip(source, error)
                    continue
                split = self.route(record, source)
                writer.reports[split].rows += 1
                records.append((split, record, row))
            self._write(records, writer)

    def _record(self, row: SourceRow) -> PreferenceRecord:
        try:
            return self.to_example(row)
        except RecordError as error:
            raise error if error.file else error.at(row.file, row.line) from None

    def _write(self, records: list[tuple[str, PreferenceRecord, SourceRow]], writer: CacheWriter) -> None:
        tokens = self.tokenizer([record for _, record, _ in records])
        for split in self.splits:
            rows = []
            for (target, record, row), result in zip(records, tokens, strict=True):
                if target != split:
                    continue
                if isinstance(result, RecordError):
                    if self.text.truncation == "error" or result.reason == REFUSED:
                        writer.skip(split, result.at(row.file, row.line))
                    else:
                        writer.reports[split].dropped[f"record: {result.reason}"] += 1
                    continue
                judged = any(
                    record.responses[i].score is not None or record.responses[i].votes is not None
                    for i in result.responses
                )
                if split != "predict" and not result.comparisons and not judged:
                    writer.reports[split].dropped.update(result.dropped)
                    writer.reports[split].dropped["record without a judgement"] += 1
                    continue
                rows.append((record, result, row.file, row.line))
            writer.write(split, rows)

    def route(self, record: PreferenceRecord, source: str) -> str:
        """Split of a record: its source's, or validation for a hashed share of the training prompts."""
        if source == "train" and "validation" not in self.sources:
            held_out = math.ceil(self.validation_share * 10_000)
            return hash_split(record.split_key, {"validation": held_out, "train": 10_000 - held_out})
        return source

    # Lightning -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Memory-map the splits of ``stage`` and report what became of their rows.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``; None for every split.

        Raises:
            ValueError: If nothing is left of a split.
        """
        if self.loader.features is not None and self.feature_store is None:
            store = FeatureStore(self.loader.features)
            store.check_tokenizer(self.text_format())
            self.feature_store = store
        if self._reader is None:
            self.prepare_data()
            self._reader = CacheReader(self.cache_folder())
        for split in STAGES[stage] if stage else self.splits:
            if split in self._tables or split not in self.splits:
                continue  # a missing split is an error when its loader is asked for, not before
            report = self.reports[split] = self._reader.reports[split]
            rank_zero_info(f"{self.name} {split}: {report}")
            for message in report.first_errors:
                rank_zero_info(f"  skipped {message}")
            if report.in_train:
                rank_zero_warn(
                    f"{self.name} {split}: {report.in_train} records share a prompt with the training split; "
                    "their numbers say less about new prompts"
                )
            if not report.records:
                raise ValueError(f"{self.name}: nothing is left of the {split} split: {report}")
            self._tables[split] = self._reader.table(split)
        self._name_users()

    def _name_users(self) -> None:
        """Order of users and domains: as in a restored run, then as the data have them; unseen users last."""
        assert self._reader is not None  # the caller opened it
        users, training = self._reader.users, self._reader.users[: self._reader.num_training_users]
        if self.loader.users.active:
            training, _ = self.divided_users()
            users = _joined(training, users)
        self.users, self.domains, self.num_training_users = users, self._reader.domains, len(training)
        self.training_users = list(training)
        if self._restored is not None:
            self.num_training_users = self._restored["num_training_users"]
            self.users = _joined(self._restored["users"], users)
            self.domains = _joined(self._restored["domains"], self.domains)

    def divided_users(self) -> tuple[list[str], list[str]]:
        """Seen and unseen users, as ``loader.users`` says.

        Raises:
            RuntimeError: If ``setup`` has not run.
            ValueError: If there is no training split, an unseen user is not in it, or nobody is seen.
        """
        if self._reader is None:
            raise RuntimeError("call setup() first: the users are in the data")
        protocol = self.loader.users
        if self._divided is None or self._divided[0] != protocol:
            counts = self._reader.judgements_of_users()
            names = self._reader.users[: self._reader.num_training_users]
            self._divided = protocol, protocol.divide({name: counts[name] for name in names})
        return self._divided[1]

    def table(self, split: str) -> TokenTable:
        """The tokenised records of a split.

        Raises:
            ValueError: If the dataset has no such split.
            RuntimeError: If ``setup`` has not opened it.
        """
        if split not in self.splits:
            raise ValueError(f"{type(self).__name__} has no {split} split; it has {', '.join(self.splits)}")
        if split not in self._tables:
            raise RuntimeError(f"the {split} split is not open: call setup() for its stage first")
        return self._tables[split]

    def layout(self) -> str:
        """Layout of the rows: the setting, or the model's wish where that is ``auto``."""
        if self.loader.layout != "auto":
            return self.loader.layout
        module = getattr(self.trainer, "lightning_module", None)
        return getattr(module, "layout", None) or "shared"

    def collator(self) -> PreferenceCollator:
        """Function that turns rows into a batch; picklable."""
        if self._reader is None:
            raise RuntimeError("call setup() first: the collator needs the data's users, domains and columns")
        return PreferenceCollator(
            layout=self.layout(),
            present=self._reader.present,
            users=self.users,
            domains=self.domains,
            categories=self._reader.categories,
            store=self.feature_store,
            items=self.loader.items,
            prompts=self.loader.prompts,
            crowd=self.loader.crowd,
            priors=self._all_priors(),
        )

    def _all_priors(self) -> dict[str, CrowdPriors]:
        """Priors for every kind of votes; what is given for so many categories need not fit both kinds."""
        assert self._reader is not None  # the caller looked
        priors: dict[str, CrowdPriors] = {}
        errors: dict[str, ValueError] = {}
        for name in self._reader.categories:
            try:
                priors[name] = self.priors(name)
            except ValueError as error:
                errors[name] = error
        for name, reason in errors.items():
            if not priors:
                raise reason
            rank_zero_info(f"{self.name}: loader.crowd.prior is not for {name}: {reason}")
        return priors

    def mean_votes(self, name: str) -> list[float] | None:
        """Mean share of every category over the training split's judged items; None if it has no such votes.

        Args:
            name: ``votes`` or ``comparison_votes``; of the latter, either response may be the first.
        """
        if self._reader is None or name not in self._reader.categories:
            return None
        mean = self._reader.mean_votes(name)
        return None if mean is None else [float(share) for share in mean]

    def check_judged(self, name: str) -> None:
        """Make sure that every item of the open splits has votes or a prior.

        Args:
            name: ``votes`` or ``comparison_votes``.

        Raises:
            ValueError: Naming split, record and item that has neither, and what to change; or if the data have no
                such votes at all, or ``loader.crowd.prior`` does not fit them.
        """
        if self._reader is None:
            return
        if name not in self._reader.categories:
            raise ValueError(f"{self.name} has no {name}")
        strength, priors = self.loader.crowd.prior_strength, self.priors(name)
        if priors.shared is not None and strength > 0:
            return
        for split, table in self._tables.items():
            if split == "predict":
                continue
            found = table.without_votes(
                name,
                self._reader.categories[name],
                own_prior=strength > 0,
                known=priors.rows if strength > 0 else (),
            )
            if found is not None:
                record, item = found
                raise ValueError(
                    f"{self.name} {split}: item {item} of record {record!r} has no {name} and no prior, so there is "
                    "nothing to learn from it: set loader.crowd.prior (uniform, mean, probabilities or a file) with "
                    "loader.crowd.prior_strength > 0, or leave such items out of the data"
                )

    def priors(self, name: str) -> CrowdPriors:
        """What is expected of the crowd before its votes, as ``loader.crowd.prior`` says.

        Args:
            name: ``votes`` or ``comparison_votes``.

        Raises:
            ValueError: If the prior does not fit the votes, or is the mean of votes that training does not have.
        """
        if self._reader is None:
            raise RuntimeError("call setup() first: a prior may depend on the training split")
        crowd = self.loader.crowd
        if name not in self._priors or self._priors[name][0] != crowd:
            mean = self._reader.mean_votes(name) if crowd.prior == "mean" else None
            self._priors[name] = crowd, crowd_priors(crowd, self._reader.categories[name], mean=mean)
        return self._priors[name][1]

    def _rows(self, split: str) -> TokenTable | UserTable | FeatureTable:
        """What a loader reads: tokens, or the places of stored features."""
        protocol, items = self.loader.users, self.loader.items
        if split in self._loaded and self._loaded[split][0] == (protocol, items):
            return self._loaded[split][1]
        table: TokenTable | UserTable = self.table(split)
        if protocol.active and split != "predict":
            seen, unseen = self.divided_users()
            users = {"seen": seen, "unseen": unseen, "all": seen + unseen}[protocol.show]
            table = UserTable(self.table(split), set(users), anonymous=protocol.show != "unseen")
            if not len(table):
                raise ValueError(
                    f"{self.name} {split}: no judgement of {protocol.show} users is left; change loader.users"
                )
            rank_zero_info(
                f"{self.name} {split}: {table.num_kept:,} of {table.num_judgements:,} judgements are of "
                f"{protocol.show} users, in {len(table):,} of {len(self.table(split)):,} records"
            )
        loaded: TokenTable | UserTable | FeatureTable = table
        if self.feature_store is not None:
            loaded = FeatureTable(table, self.feature_store, split, items=items)
        self._loaded[split] = (protocol, items), loaded
        return loaded

    def _loader(self, split: str, *, shuffle: bool) -> DataLoader[PreferenceBatch]:
        table = self._rows(split)
        trainer = self.trainer
        shuffle = shuffle and not getattr(trainer, "overfit_batches", 0)
        sampler = (TokenBudgetBatchSampler if shuffle else FixedOrderBatchSampler)(
            np.asarray(table.sizes),
            layout=self.layout(),
            max_tokens=self.loader.max_tokens,
            batch_size=self.loader.batch_size,
            mega_batch=self.loader.mega_batch,
            shuffle=shuffle,
            seed=self.loader.seed,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        if sampler.num_oversized:
            rank_zero_warn(
                f"{self.name} {split}: {sampler.num_oversized:,} records have more than loader.max_tokens="
                f"{self.loader.max_tokens} tokens (up to {int((sampler.rows * sampler.lengths).max()):,}) and form "
                "batches of their own above that bound; shorten text.max_length, or raise max_tokens"
            )
        workers = self.loader.num_workers
        return PreferenceDataLoader(
            table,  # type: ignore[arg-type]  # rows; the collator makes batches of them
            batch_size=None,
            sampler=sampler,
            collate_fn=self.collator(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of the training split, in seeded random order."""
        return self._loader("train", shuffle=self.loader.shuffle)

    def val_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of the validation split, in fixed order."""
        return self._loader("validation", shuffle=False)

    def test_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of the test split, in fixed order."""
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Batches of the rows to score, in fixed order."""
        return self._loader("predict", shuffle=False)

    def text_format(self) -> dict[str, str | int | bool | None]:
        """The settled text format; stored with every checkpoint, so that later scoring uses the same."""
        description = self.tokenizer.fingerprint()
        return (
            description
            if self.loader.items == "conversation"
            else {**description, "items": self.loader.items}
        )

    def state_dict(self) -> dict[str, list[str] | int]:
        """Users and domains, so that indices keep their meaning when a run goes on with other data."""
        return {
            "users": list(self.users),
            "domains": list(self.domains),
            "num_training_users": self.num_training_users,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take users and domains from a checkpoint."""
        self.users, self.domains = list(state_dict["users"]), list(state_dict["domains"])
        # Version 0.1 knew training users only.
        self.num_training_users = state_dict.get("num_training_users", len(self.users))
        self._restored = self.state_dict()
        if self._reader is not None:
            self._name_users()


def _joined(first: list[str], others: list[str]) -> list[str]:
    """The first names, then those of the others that are not among them."""
    return list(dict.fromkeys([*first, *others]))
