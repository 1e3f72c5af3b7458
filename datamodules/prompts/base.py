"""PromptDataModule: prompts, the preferences that they ask for, splits and loaders; once for all data that policies answer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..checks import check_choices, check_range
from ..records import RecordError, SourceRow, hash_share, hash_split
from ..settings import OnInvalid
from ..text_data import TextData
from ..tokens import PromptTokenizer, TextConfig
from .config import Combinations, PromptLoaderConfig
from .items import PlacedPrompt, PromptTable, tokenised_prompts
from .loader import PromptCollator, PromptDataLoader, prompt_loader
from .preferences import PreferenceSpace
from .record import PromptRecord
from .report import PromptReport

__all__ = ["PromptDataModule"]

SPLITS = ("train", "validation", "test", "predict")
STAGES = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class SplitPrompts(NamedTuple):
    """Valid prompts of a split, and what became of its rows so far."""

    prompts: list[PlacedPrompt]
    report: PromptReport


class PromptDataModule(TextData, ABC):
    """Base of every data module of prompts; a data set implements :meth:`load` and :meth:`to_prompt`. A ``PromptSource``.

    ``setup`` reads the sources, which are small beside data of responses, and tokenises the splits of its stage, many prompts at a
    time; there is no cache.

    Attributes:
        name: Short name of the data set.
        sources: Parts that :meth:`load` can read. A source named like a split becomes that split. Without a source
            ``validation``, and ``test`` where ``test_share`` is above 0, a share of ``train`` is held out by a hash of the prompt.
        space: Axes, dimensions and preferences.
        dimensions: D names, ``axis.pole``.
        reports: What became of the rows, by split; filled by ``setup``.
    """

    sources: tuple[str, ...] = ()

    def __init_subclass__(cls, **keywords: object) -> None:
        """Let the command line read shared settings from the constructor below, where they have defaults and help."""
        super().__init_subclass__(**keywords)
        cls.__init__.__annotations__.pop("shared", None)

    def __init__(
        self,
        *,
        axes: Mapping[str, Mapping[str, str]],
        text: TextConfig = TextConfig(),
        loader: PromptLoaderConfig = PromptLoaderConfig(),
        preferences: Combinations = "all",
        held_out: Sequence[Sequence[str]] = (),
        max_new_tokens: int | None = None,
        on_invalid: OnInvalid = "error",
        validation_share: float = 0.05,
        test_share: float = 0.0,
        cache_dir: str | None = None,
    ) -> None:
        """Keep the settings that all data of prompts share; reads nothing.

        Args:
            axes: Sentence that says each pole of each axis to a network; none for prompts without preferences.
            text: Tokenizer, format and truncation. ``text.max_length`` bounds a prompt and its response together.
            loader: Batch size, order and workers.
            preferences: Which preferences a prompt comes with, unless its row names one: ``all`` full combinations (a pole of
                each axis), each an item; ``draw`` one of these an epoch, by the loader's seed (in other splits than training the
                same each time); or a list of combinations, each a list of dimensions such as ``tone.friendly``, all of them items.
            held_out: Some of these combinations, which are left out of training and validation, and are the only ones of the test
                split; none lets every split have all. The predict split has all.
            max_new_tokens: Tokens of ``text.max_length`` that are kept free for a response; None for what the model asks for, and
                for one where it asks for nothing. Of a longer prompt ``text.truncation`` says what becomes of it:
                ``prompt_left`` cuts it from its left, though never what is said of the preference.
            on_invalid: ``error`` stops at the first row that is no valid prompt, ``skip`` counts such rows by reason and
                reports them at the end of ``setup``.
            validation_share: Share of the training prompts held out for validation where there is no validation source, in
                (0, 1), and at least one prompt of several.
            test_share: Likewise for test, in [0, 1); 0 leaves data without a test source without a test split.
            cache_dir: Folder for copies of files of other stores; None for ``$PLURALIGN_CACHE`` or ``~/.cache/pluralign``.

        Raises:
            ValueError: If a setting is outside its range, an axis or a pole is unknown, or preferences are held out and there is
                no test split that could have them.
        """
        super().__init__(text=text, cache_dir=cache_dir)
        check_choices(PromptDataModule.__init__, on_invalid=on_invalid)
        check_range("validation_share", validation_share, above=0, below=1)
        check_range("test_share", test_share, at_least=0, below=1)
        check_range("validation_share + test_share", validation_share + test_share, below=1)
        check_range("max_new_tokens", max_new_tokens, at_least=1)
        self.loader, self.on_invalid = loader, on_invalid
        self.validation_share, self.test_share, self.max_new_tokens = (
            validation_share,
            test_share,
            max_new_tokens,
        )
        self.space = PreferenceSpace(axes, preferences, held_out)
        self.dimensions = self.space.dimensions
        self.reports: dict[str, PromptReport] = {}
        self._prompt_tokenizer: PromptTokenizer | None = None
        self._read: dict[str, SplitPrompts] = {}
        self._tables: dict[str, PromptTable] = {}

    # What a data set implements ------------------------------------------------------------------------

    @abstractmethod
    def load(self, source: str) -> Iterator[SourceRow | RecordError]:
        """Read the rows of one of ``sources``, in a fixed order."""

    @abstractmethod
    def to_prompt(self, row: SourceRow) -> PromptRecord:
        """Turn a row into a prompt; raise :class:`RecordError` if it cannot be one."""

    # What modules, callbacks and commands ask ------------------------------------------------------------

    @property
    def axes(self) -> Mapping[str, Sequence[str]]:
        """Poles of each axis, of which an item asks for one at most."""
        return self.space.axes

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the data have."""
        divided = (
            {"train", "validation", *(("test",) if self.test_share else ())}
            if "train" in self.sources
            else set()
        )
        return tuple(split for split in SPLITS if split in self.sources or split in divided)

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """Of prompts and responses, under the settled text format."""
        if self._prompt_tokenizer is None:
            self._prompt_tokenizer = PromptTokenizer(self.tokenizer)
        return self._prompt_tokenizer

    @property
    def pad_id(self) -> int:
        """What pads rows of tokens."""
        return self.prompt_tokenizer.pad_id

    @property
    def end_id(self) -> int:
        """What ends a response."""
        return self.prompt_tokenizer.end_id

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of the tokens of responses, without special tokens and without what the format puts around a response."""
        return [self.prompt_tokenizer.decode(response) for response in responses]

    def pieces(self, response: Sequence[int]) -> list[str]:
        """Text of each token of a response; a letter of several tokens stands with the last of them."""
        return self.prompt_tokenizer.pieces(response)

    # Prompts -------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fetch what is not on this machine, once: the first row of a source needs all of its files."""
        for source in self.sources:
            next(self.load(source), None)

    def setup(self, stage: str | None = None) -> None:
        """Read all sources, tokenise the splits of ``stage``, and report what became of their rows.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None for every split.

        Raises:
            RecordError: At the first row that is no valid prompt, unless such are skipped.
            ValueError: If nothing is left of a split, or a response has no room.
        """
        if not self._read:
            self._read = self._read_sources()
        for split in STAGES[stage] if stage else self.splits:
            if split in self.splits and split not in self._tables:
                self._tables[split] = self._tokenised(split)

    def _read_sources(self) -> dict[str, SplitPrompts]:
        if self.space.held_out and "test" not in self.splits:
            raise ValueError(
                "held_out keeps preferences for the test split, and there is none: name its prompts, or set test_share above 0"
            )
        read = {split: SplitPrompts([], PromptReport()) for split in self.splits}
        for source in self.sources:
            prompts = read[source].prompts
            names: set[str] = set()
            for row in self.load(source):
                try:
                    prompts.append(self._placed(row, names))
                except RecordError as error:
                    read[source].report.rows += 1
                    self._skip(read[source].report, error)
        if "train" in self.sources:
            self._divide(read)
        for split, (prompts, report) in read.items():
            report.rows += len(prompts)
            if split != "train" and "train" in read:
                training = {prompt.record.split_key for prompt in read["train"].prompts}
                report.in_train = sum(prompt.record.split_key in training for prompt in prompts)
        return read

    def _placed(self, row: SourceRow | RecordError, names: set[str]) -> PlacedPrompt:
        """A row as a prompt whose name none before has."""
        if isinstance(row, RecordError):
            raise row
        try:
            record = self.to_prompt(row)
            if (
                record.preference is not None
                and self.space.combination(record.preference) != record.preference
            ):
                raise RecordError(
                    "preference",
                    record.preference,
                    "dimensions in the order of the axes",
                    reason="wrong order",
                )
            if record.id in names:
                raise RecordError("id", record.id, "an id that no row before has", reason="duplicate id")
        except RecordError as error:
            raise error if error.file else error.at(row.file, row.line) from None
        names.add(record.id)
        return PlacedPrompt(record, row.file, row.line)

    def _skip(self, report: PromptReport, error: RecordError) -> None:
        if self.on_invalid == "error":
            raise error
        report.skip(error)

    def _divide(self, read: Mapping[str, SplitPrompts]) -> None:
        """Move shares of the training prompts to splits that have no source; equal prompts stay together."""
        shares = {"test": self.test_share, "validation": self.validation_share}
        parts = {
            split: math.ceil(share * 10_000)
            for split, share in shares.items()
            if split in self.splits and split not in self.sources
        }
        if not parts:
            return
        keys = {prompt.record.split_key for prompt in read["train"].prompts}
        whole = {**parts, "train": 10_000 - sum(parts.values())}
        sides = {key: hash_split(key, whole) for key in keys}
        free = sorted(keys, key=lambda key: (hash_share(key), key))
        for split in parts:  # of a few prompts a share may take none, and then one of them is held out
            if split not in sides.values() and len(free) > len(parts):
                sides[free.pop(0)] = split
        prompts = list(read["train"].prompts)
        read["train"].prompts.clear()
        for prompt in prompts:
            read[sides[prompt.record.split_key]].prompts.append(prompt)

    @property
    def _limit(self) -> int | None:
        """Most tokens of a prompt; None without a bound."""
        most = self.tokenizer.config.max_length
        if most is None:
            return None
        module = self.network or getattr(self.trainer, "lightning_module", None)
        room: int = self.max_new_tokens or getattr(module, "max_new_tokens", None) or 1
        if room >= most:
            raise ValueError(
                f"max_new_tokens={room} leaves nothing of text.max_length={most} (or the network's positions) for a prompt: lower "
                "max_new_tokens, or raise text.max_length"
            )
        return most - room

    def _tokenised(self, split: str) -> PromptTable:
        prompts, report = self._read[split]
        self.reports[split] = report
        items = tokenised_prompts(
            prompts,
            split,
            self.space,
            self.prompt_tokenizer,
            limit=self._limit,
            report=report,
            skip=lambda error: self._skip(report, error),
        )
        table = PromptTable(self.name, split, self.space, list(items))
        report.preferences = len(set(table.preferences))
        rank_zero_info(f"{self.name} {split}: {report}")
        for message in report.first_errors:
            rank_zero_info(f"  skipped {message}")
        if report.in_train:
            rank_zero_warn(
                f"{self.name} {split}: {report.in_train} of its prompts are in the training split, too; its numbers say less "
                "about new prompts"
            )
        if not len(table):
            first = f"; the first: {report.first_errors[0]}" if report.first_errors else ""
            raise ValueError(f"{self.name}: nothing is left of the {split} split: {report}{first}")
        return table

    def table(self, split: str) -> PromptTable:
        """The items of a split.

        Raises:
            ValueError: If the data have no such split.
            RuntimeError: If ``setup`` has not opened it.
        """
        if split not in self.splits:
            raise ValueError(f"{type(self).__name__} has no {split} split; it has {', '.join(self.splits)}")
        if split not in self._tables:
            raise RuntimeError(f"the {split} split is not open: call setup() for its stage first")
        return self._tables[split]

    # Batches -------------------------------------------------------------------------------------------

    def batches(
        self,
        split: str,
        *,
        shuffle: bool = False,
        batch_size: int | None = None,
        rank: tuple[int, int] | None = None,
    ) -> PromptDataLoader:
        """Batches of a split, as often as one iterates; each item once.

        Args:
            split: A split that ``setup`` opened.
            shuffle: Whether their order is random, by the loader's seed.
            batch_size: Items of a batch; the loader's if None.
            rank: This process and the number of processes; the trainer's if None.

        Raises:
            ValueError: If the data have no such split.
            RuntimeError: If ``setup`` has not opened it.
        """
        size = self.loader.batch_size if batch_size is None else batch_size
        return self._loader(split, replace(self.loader, batch_size=size), shuffle=shuffle, rank=rank)

    def _loader(
        self,
        split: str,
        settings: PromptLoaderConfig,
        *,
        shuffle: bool = False,
        even: bool = False,
        rank: tuple[int, int] | None = None,
    ) -> PromptDataLoader:
        table = self.table(split)
        collate = PromptCollator(self.pad_id, len(self.dimensions), table.columns)
        rank = rank or ((self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1))
        return prompt_loader(table, collate, settings, shuffle=shuffle, rank=rank, even=even)

    def _whole_loader(self, split: str, *, shuffle: bool = False, even: bool = False) -> PromptDataLoader:
        """Batches of a trainer's loop, which cannot do without a batch on every rank.

        Raises:
            ValueError: If there are fewer items than ranks.
        """
        table = self.table(split)
        number = len(table.starts) - 1 if self.space.drawn else len(table)
        ranks = self.trainer.world_size if self.trainer else 1
        if ranks > number:
            raise ValueError(
                f"{self.name} {split}: {number:,} items cannot be divided among {ranks} ranks, and each needs one: set "
                f"trainer.devices to at most {number}, or give the split more prompts"
            )
        return self._loader(split, self.loader, shuffle=shuffle, even=even)

    def train_dataloader(self) -> PromptDataLoader:
        """Batches of the training split, in seeded random order; equally many on every rank."""
        shuffle = self.loader.shuffle and not getattr(self.trainer, "overfit_batches", 0)
        return self._whole_loader("train", shuffle=shuffle, even=True)

    def val_dataloader(self) -> PromptDataLoader:
        """Batches of the validation split, in fixed order."""
        return self._whole_loader("validation")

    def test_dataloader(self) -> PromptDataLoader:
        """Batches of the test split, in fixed order."""
        return self._whole_loader("test")

    def predict_dataloader(self) -> PromptDataLoader:
        """Batches of the prompts to answer, in fixed order."""
        return self._whole_loader("predict")
