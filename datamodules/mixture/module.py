"""MixtureDataModule: several data sets as one, so much of each an epoch, each validated and tested by itself.

* Source: data modules of any kind, by names of one's own. Licence: that of each. Revision: that of each.
* Columns: those of its sources together, and ``source``: which of them a record is of.
* Split rule: each source's own. The training split is that of the sources that are trained on, put together;
  validation and test have one loader a source, whose numbers are logged by its name (``val/accuracy/general``) beside those
  of all judgements; rows to be scored are read one source after the other.

What an epoch takes
    ``weights`` say how many comparisons (or records, by ``unit``) an epoch takes of one source for so many of another: with
    ``{domain: 1, general: 0.25}`` one of ``general`` for four of ``domain``. The epoch is the longest in which no source
    repeats anything: one is taken whole, of the others a part. ``temperature`` :math:`T` takes amounts in proportion to
    :math:`n^{1/T}`, where :math:`n` is a source's size: 1 takes all of each, a large one equally much. ``counts`` are
    amounts as they stand. Without any of the three all sources are taken whole. What a record holds is never divided: where
    records hold different numbers of comparisons, an epoch may have less than a record's more or less.

    The epochs that follow one another walk through a source in an order that ``loader.seed`` decides: each record is taken once
    before any is taken again. A source of weight or count 0 is validated and tested on, never trained on: here it has no
    training split.

Sources without judgements
    The training records of the sources that ``unlabelled`` names are never mixed among the others: every training batch has a
    batch of them beside it, ``batch["unlabelled"]``, of at most ``unlabelled_prompts`` records within the loader's bounds. They are
    groups of responses to one prompt, such as a policy's: rows of equal prompts are merged, whatever that saves, groups of fewer
    than two different responses are dropped, and judgements that rows happen to have are left out; both are counted. The n-th
    training batch of a run has the n-th of an endless walk through them, shuffled anew whenever it has come through, which
    follows from ``loader.seed`` alone: a run that goes on in the middle of an epoch sees the same batches side by side. Where the
    training batches are the same every epoch (``loader.shuffle: false``) those beside them are as well. A source without
    judgements is neither validated nor tested on. ``data.batches("unlabelled")`` reads the groups by themselves.

What is of one and what is of all
    Text format, loader, ``merged_tokens`` and ``cache_dir`` are the mixture's and hold for every source; ``on_invalid``,
    ``validation_share`` and all else are each source's. Each keeps its own token cache, the one that it has alone. One feature
    store serves all.

    Ids are those of the source with its name before them (``general/17``); ``record_key`` is that of the source alone, so that
    side tables keep fitting. A file of priors (``loader.crowd.prior``) names records as the sources do; ``mean`` is each
    source's own. Users are divided (``loader.users``) source by source, as they are alone, or all together where ``shared_users`` is
    ``same``. A source whose records name one ``source`` of their own has the mixture's name instead; several are refused.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Never

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..base import PreferenceDataModule, SplitRecords
from ..batch import GivenRecord, PreferenceBatch
from ..batches import (
    EpochDraws,
    LoaderConfig,
    PartDraw,
    PreferenceCollator,
    PreferenceDataLoader,
    check_known,
    with_unlabelled,
)
from ..checks import check_choices
from ..crowd import VotePriors
from ..prepared import MERGED_TOKENS, SPLITS, UNLABELLED
from ..records import PreferenceRecord
from ..tokens import CacheReader, ComparisonView, DataReader, Shard, TextConfig, report_split
from .amounts import Amounts, Unit
from .priors import JoinedPriors
from .reader import JoinedReader, SharedUsers
from .sources import adopt, check_joins, check_name
from .tables import JoinedTable, NamedTable
from .unlabelled import check_unlabelled, unlabelled_settings

__all__ = ["MixtureDataModule"]


class MixtureDataModule(PreferenceDataModule):
    """Several data sets as one: so much of each an epoch by weight, temperature or count; metrics of each by its name."""

    name = "mixture"

    def __init__(
        self,
        *,
        sources: dict[str, PreferenceDataModule],
        weights: dict[str, float] | None = None,
        temperature: float | None = None,
        counts: dict[str, int] | None = None,
        unit: Unit = "comparisons",
        shared_users: SharedUsers = "refuse",
        unlabelled: Sequence[str] = (),
        unlabelled_prompts: int | None = None,
        text: TextConfig = TextConfig(),
        loader: LoaderConfig = LoaderConfig(),
        merged_tokens: int = MERGED_TOKENS,
        cache_dir: str | None = None,
    ) -> None:
        """Put data modules together; reads nothing. Give at most one of ``weights``, ``temperature`` and ``counts``.

        Args:
            sources: Data modules by name, without ``/``: what ``source`` is called in batches and metrics.
            weights: Relative amount that an epoch takes of each source, >= 0; of 0, it is validated and tested on alone.
            temperature: T > 0: an epoch takes of each source in proportion to its size^(1/T).
            counts: Amount that an epoch takes of each source, >= 0, at most all that it has; 0 as for ``weights``.
            unit: What amounts count: ``comparisons`` or ``records``.
            shared_users: A name of a user that occurs in two sources is an error (``refuse``), one person (``same``), or
                one of each (``apart``: all users' names then begin with their source's).
            unlabelled: Sources whose training records are groups of responses without judgements, which every training batch
                has a batch of beside it; they have no amounts.
            unlabelled_prompts: Most groups of such a batch, >= 1, within ``loader.max_tokens``; None for ``loader.batch_size``.
            text: Tokenizer, format and truncation, of all sources.
            loader: Batch bounds, order and workers, of all sources.
            merged_tokens: As every data set has it, for all sources.
            cache_dir: Folder of token caches; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.

        Raises:
            TypeError: If a source is no data module of this package, or a mixture itself; if ``unlabelled`` is no list.
            ValueError: If there are no sources, ``unlabelled`` names all, unknown ones or ones with an amount, one has a setting that is the mixture's or cannot be part of one, or amounts
                do not fit; says what to change.

        .. versionadded:: 0.1
        """
        super().__init__(text=text, loader=loader, merged_tokens=merged_tokens, cache_dir=cache_dir)
        check_choices(MixtureDataModule.__init__, unit=unit, shared_users=shared_users)
        self.amounts = Amounts(weights, temperature, counts, unit)
        self.shared_users: SharedUsers = shared_users
        self.parts = dict(sources)
        self._drawn: tuple[object, EpochDraws] | None = None
        if not self.parts:
            raise ValueError("sources is empty: name at least one data module")
        for source, part in self.parts.items():
            check_name(source)
            if isinstance(part, MixtureDataModule):
                raise TypeError(f"sources.{source} is a mixture itself: name its sources here instead")
            adopt(self, source, part)
        self.unlabelled_prompts = unlabelled_prompts
        self.unlabelled = check_unlabelled(unlabelled, self.parts, self.amounts, unlabelled_prompts)
        for source in self.unlabelled:
            self.parts[source].needs_judgement = False
        self.amounts.check_names([source for source in self.parts if source not in self.unlabelled])
        self.sources = tuple(split for split in SPLITS if self.sources_of(split))

    def sources_of(self, split: str) -> list[str]:
        """Sources that have a split, in order; of training, those that are trained on."""
        if split == UNLABELLED:
            return [source for source in self.parts if source in self.unlabelled]
        return [
            source
            for source, part in self.parts.items()
            if source not in self.unlabelled
            and split in part.splits
            and (split != "train" or self.amounts.trains_on(source))
        ]

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the sources with judgements, and ``unlabelled`` where there are sources without."""
        return (*super().splits, *([UNLABELLED] if self.unlabelled else []))

    # Files and cache -----------------------------------------------------------------------------------

    def load(self, source: str) -> Never:
        """Refuse: a mixture has no rows of its own.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a mixture has no rows of its own: its sources' are read")

    def to_example(self, row: object) -> Never:
        """Refuse, as :meth:`load` does: raises TypeError."""
        self.load("")

    def content(self) -> dict[str, object]:
        """What decides the records: that of every source, their order, and what an epoch takes of each."""
        return {
            "mixture": {source: part.content() for source, part in self.parts.items()},
            "order": list(self.parts),
            "amounts": vars(self.amounts),
            "shared_users": self.shared_users,
            **({"unlabelled": list(self.unlabelled)} if self.unlabelled else {}),
        }

    def cache_folders(self) -> dict[str, Path]:
        """Where the caches of the sources stand or will stand, by source."""
        self._share_tokenizer()
        return {source: part.cache_folder() for source, part in self.parts.items()}

    def cache_folder(self) -> Never:
        """Refuse: a mixture has no cache of its own, see :meth:`cache_folders`; raises TypeError."""
        raise TypeError("a mixture has no token cache of its own: cache_folders() has those of its sources")

    def prepare_data(self) -> None:
        """Read, validate and tokenise every source into its cache, unless it is there and whole."""
        self._share_tokenizer()
        for part in self.parts.values():
            part.prepare_data()

    def prepare_shard(self, shard: Shard) -> dict[str, list[int]]:
        """As every data set has it, of every source that has no cache yet; by source."""
        self._share_tokenizer()
        return {source: part.prepare_shard(shard)[part.name] for source, part in self.parts.items()}

    def _share_tokenizer(self) -> None:
        """Load it once; its limit is that of the network that reads the mixture."""
        for part in self.parts.values():
            part._tokenizer = self.tokenizer

    # Lightning -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Memory-map the splits of ``stage``, report what became of their rows, and say what an epoch takes of them.

        Args:
            stage: As :class:`PreferenceDataModule` has it.

        Raises:
            FileNotFoundError: As there.
            ValueError: As there; if a source that is to be trained on has nothing to train on or less than its amount, if
                votes or names of users do not fit together, or an entry of a side table is of two sources.
        """
        if stage == "fit":
            self._check_training_splits()
        super().setup(stage)
        for split in self._tables.keys() - {UNLABELLED} if stage else ():
            check_joins(self.joins, self._part_tables(split))
        if stage == "fit":
            self._say_amounts()

    def _check_training_splits(self) -> None:
        for source, part in self.parts.items():
            if source in self.unlabelled:
                if not part.splits:
                    raise ValueError(
                        f"sources.{source} has no training split, and nothing else is read of an unlabelled source; it has "
                        f"{', '.join(part.sources)}: name its rows as train"
                    )
            elif self.amounts.trains_on(source) and "train" not in part.splits:
                raise ValueError(
                    f"sources.{source} has no training split; it has {', '.join(part.splits)}: give it a weight or count of "
                    "0, to validate and test on it, or leave it out"
                )

    def _open_cache(self) -> tuple[DataReader, VotePriors]:
        readers: dict[str, DataReader] = {}
        for source, folder in self.cache_folders().items():
            self.parts[source]._reader = readers[source] = CacheReader(folder)
        reader = JoinedReader(
            readers,
            self.sources_of("train"),
            shared_users=self.shared_users,
            unlabelled=self.unlabelled,
        )
        return reader, JoinedPriors(self.name, reader)

    @property
    def _joined(self) -> JoinedReader:
        reader = self._reader
        if reader is None:
            raise RuntimeError("call setup() first: the names are in the data")
        assert isinstance(reader, JoinedReader)  # _open_cache gives no other
        return reader

    def _report(self, split: str) -> None:
        for source, report in self._joined.reports_of(split):
            report_split(f"{self.name} {source}", split, report)

    def loader_names(self, split: str) -> tuple[str, ...]:
        """Names of the loaders that a split comes in: of validation and test the sources that have it, else none."""
        return tuple(self.sources_of(split)) if split in ("validation", "test") else ()

    def train_dataloader(self) -> PreferenceDataLoader:
        """Batches of the training split, each with one of records without judgements where there are such sources."""
        loader = super().train_dataloader()
        if not self.unlabelled:
            return loader
        settings = unlabelled_settings(self.loader, self.unlabelled_prompts)
        groups = self._loader(self._records(UNLABELLED), shuffle=self._shuffles, even=True, settings=settings)
        return with_unlabelled(loader, groups)

    def _collator(self, split: str, settings: LoaderConfig) -> PreferenceCollator:
        if split != UNLABELLED:
            return super()._collator(split, settings)
        return PreferenceCollator(
            layout=self.layout(settings),
            present=self._joined.present_unlabelled,
            names=self.names,
            store=None if settings.features is None else self.features,
            items=settings.items,
            prompts=settings.prompts,
        )

    def val_dataloader(self) -> list[DataLoader[PreferenceBatch]]:
        """Batches of each source's validation split, in fixed order."""
        return self._loaders("validation")

    def test_dataloader(self) -> list[DataLoader[PreferenceBatch]]:
        """Batches of each source's test split, in fixed order."""
        return self._loaders("test")

    def _loaders(self, split: str) -> list[DataLoader[PreferenceBatch]]:
        return [
            self._loader(SplitRecords(f"{self.name} {source}", split, part))
            for source, part in self._part_tables(split).items()
        ]

    def _part_tables(self, split: str) -> dict[str, NamedTable]:
        table = self.table(split)
        assert isinstance(table, JoinedTable)  # its reader gives no other
        return table.parts

    # Amounts -------------------------------------------------------------------------------------------

    def _draws(self) -> EpochDraws:
        """Which of the training records an epoch has, by the judgements that the loader shows.

        Raises:
            ValueError: If a source has nothing to train on, or less than its amount.
        """
        key = self.loader.users, self.loader.seed, self.loader.treatments, self.loader.joins
        if self._drawn is None or self._drawn[0] != key:
            units = self._units()
            if empty := [source for source, each in units.items() if not each.sum()]:
                raise ValueError(
                    f"sources.{empty[0]} is empty: no {self.amounts.unit} to train on are left of it; leave it out, give it a "
                    "weight or count of 0, change loader.users, or set unit to records where it has votes and no comparisons"
                )
            amounts = self.amounts.per_epoch({source: int(each.sum()) for source, each in units.items()})
            parts = [PartDraw(source, each, amounts[source]) for source, each in units.items()]
            self._drawn = key, EpochDraws(parts, seed=self.loader.seed)
        return self._drawn[1]

    def _units(self) -> dict[str, NDArray[np.int64]]:
        """What each record that training shows counts, by source."""
        shown, table = self._shown(self._records("train"), self.loader), self.table("train")
        assert isinstance(table, JoinedTable)  # its reader gives no other
        places = shown.places if isinstance(shown, ComparisonView) else np.arange(len(table))
        comparisons = shown.comparison_counts()
        counts = comparisons if self.amounts.unit == "comparisons" else np.ones_like(comparisons)
        return dict(
            zip(table.parts, np.split(counts, np.searchsorted(places, table.bounds[1:-1])), strict=True)
        )

    def _say_amounts(self) -> None:
        parts = [
            f"{part.amount:,} of {int(part.units.sum()):,} {self.amounts.unit} of {part.name}"
            for part in self._draws().parts
        ]
        same = (
            ""
            if self.loader.shuffle or self._draws().whole
            else ", the same every epoch (loader.shuffle=false)"
        )
        rank_zero_info(f"{self.name}: an epoch takes {', '.join(parts)}{same}")
        if self.unlabelled:
            rank_zero_info(
                f"{self.name}: a batch of the {len(self.table(UNLABELLED)):,} groups of {', '.join(self.unlabelled)}, without "
                "judgements, stands beside every training batch"
            )

    # People and texts ----------------------------------------------------------------------------------

    def held_back_users(self) -> list[str]:
        """Users whom a source's own rule leaves unseen, of those that are trained on."""
        if all(not self.parts[source].held_back_users() for source in self.sources_of("train")):
            return []
        return [
            self._joined.user_name(source, user)
            for source in self.sources_of("train")
            for user in self.parts[source].held_back_users()
        ]

    def divided_users(self) -> tuple[list[str], list[str]]:
        """Seen and unseen users, as ``loader.users`` says: of each source as alone, of all together where a name is one person.

        Raises:
            RuntimeError: If ``setup`` has not run.
            ValueError: If there is no training split, an unseen user is not in it, or nobody of a source is seen.
        """
        if self.shared_users == "same":
            return super().divided_users()
        reader, protocol = self._joined, self.loader.users
        counts = {source: reader.parts[source].judgements_of_users() for source in reader.trained}
        called = {
            source: {user: reader.user_name(source, user) for user in users}
            for source, users in counts.items()
        }
        known = {name for names in called.values() for name in names.values()}
        wanted = {*protocol.unseen, *self.held_back_users()}
        check_known(wanted, known)
        seen: list[str] = []
        unseen: list[str] = []
        for source, names in called.items():
            own = replace(protocol, unseen=tuple(user for user, name in names.items() if name in wanted))
            order = [user for user in reader.parts[source].names["user"] if user in names]
            try:
                divided = own.divide({user: counts[source][user] for user in order})
            except ValueError as error:
                raise ValueError(f"sources.{source}: {error}") from None
            for group, users in zip((seen, unseen), divided, strict=True):
                group += [names[user] for user in users]
        return seen, unseen

    def user_groups(self) -> Mapping[str, str]:
        """Group of each user, by name; users may lack one.

        Raises:
            ValueError: If a user is of two groups.
        """
        groups: dict[str, str] = {}
        for source, part in self.parts.items():
            for user, group in part.user_groups().items():
                name = self._joined.user_name(source, user)
                if groups.setdefault(name, group) != group:
                    raise ValueError(
                        f"user {name!r} is of group {groups[name]!r} in one source and of {group!r} in {source}: mend the "
                        "data, or set shared_users to apart if they are two persons"
                    )
        return groups

    def records(self, split: str, *, skipped: Counter[str] | None = None) -> Iterator[PreferenceRecord]:
        """Records are those of the sources, which have users and categories of their own.

        Raises:
            ValueError: Always; says what to read instead.
        """
        raise ValueError(
            f"{self.name}: records are read source by source ({', '.join(self.parts)}): name each as data of its own"
        )

    def given(self, split: str) -> Iterator[GivenRecord]:
        """Records of a split as the sources give them, source after source."""
        for source in self.sources_of(split):
            for record in self.parts[source].given("train" if split == UNLABELLED else split):
                yield self._named_record(source, record)

    def _named_record(self, source: str, record: GivenRecord) -> GivenRecord:
        def name(user: str | None) -> str | None:
            return None if user is None else self._joined.user_name(source, user)

        return record._replace(
            id=f"{source}/{record.id}",
            responses=[response._replace(user=name(response.user)) for response in record.responses],
            judges=[(name(user), domain) for user, domain in record.judges],
        )
