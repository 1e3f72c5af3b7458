"""Fill a feature store: run what it lacks of a data module's texts through a frozen network, each text once."""

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor

from pluralign.datamodules import PreferenceBatch, PreferenceDataModule
from pluralign.datamodules.batches import (
    FeatureDtype,
    FeatureStore,
    FeatureWriter,
    PreferenceCollator,
    TokenBudgetBatchSampler,
    response_keys,
)
from pluralign.datamodules.tokens import (
    TokenRow,
    fingerprint,
    prompt_alone,
    take_row_responses,
    without_prompt,
)
from pluralign.models import Backbone, RewardModule

__all__ = ["Embedder", "embed_features", "embed_missing"]


class Embedder:
    """The backbone of a module, and the store that keeps what it says of texts.

    Attributes:
        backbone: The network, on its device.
        writer: The store; its length is the number of vectors that it has.
    """

    def __init__(
        self,
        model: RewardModule,
        data: PreferenceDataModule,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: FeatureDtype = "float16",
        prompts: bool = False,
        shard_size: int = 65_536,
    ) -> None:
        """Load the network and open the store, or make it.

        Args:
            model: Not built yet: nothing but its backbone will be.
            data: Where the texts come from.
            folder: Of the store.
            device: Where the network runs.
            dtype: Of the stored vectors.
            prompts: Whether the prompts are embedded, too.
            shard_size: Vectors of a shard, >= 1.

        Raises:
            ValueError: If the backbone is not frozen or has no name, if the folder holds a store of something else, or
                a setting is off range.
        """
        description, text_format = model.backbone_config.description(), data.text_format()
        self.backbone = Backbone(model.backbone_config).to(device)
        model.backbone, model.text_format = self.backbone, text_format
        self._model, self._data, self._device = model, data, torch.device(device)
        self.writer = FeatureWriter(
            folder,
            backbone=description,
            text_format=text_format,
            hidden_size=self.backbone.hidden_size,
            dtype=dtype,
            prompts=prompts,
            shard_size=shard_size,
        )

    def run(
        self, *, max_tokens: int = 16_384, splits: Sequence[str] | None = None, known: Container[object] = ()
    ) -> Iterator[tuple[str, int, int]]:
        """Embed what the store does not have yet of every split; what an interrupted run has embedded is kept.

        Args:
            max_tokens: Bound on rows x padded length of a batch.
            splits: Splits that are set up; None for all, which are set up here.
            known: Keys of texts that have a vector elsewhere.

        Yields:
            Split, texts of it that are done, and how many there are to do, after every batch.

        Raises:
            ValueError: If the network cannot read a split.
        """
        if splits is None:
            self._data.setup()
        self._model.check_data(self._data)
        return embed_features(
            self._data,
            self._encode,
            self.writer,
            layout=self.backbone.layout,
            max_tokens=max_tokens,
            splits=splits,
            known=known,
        )

    def release(self) -> None:
        """Give the module back as it was: not built."""
        self._model.backbone = self._model.text_format = None

    def _encode(self, batch: PreferenceBatch) -> Tensor:
        features: Tensor = self.backbone(move_data_to_device(batch, self._device))
        return features


def embed_features(
    data: PreferenceDataModule,
    encode: Callable[[PreferenceBatch], Tensor],
    writer: FeatureWriter,
    *,
    layout: str,
    max_tokens: int = 16_384,
    splits: Sequence[str] | None = None,
    known: Container[object] = (),
) -> Iterator[tuple[str, int, int]]:
    """Embed what a store does not have yet of every split of a data module.

    A text is run once, however many records, splits and judgements it occurs in. Prompts, where asked for, run as
    rows of their own. What an interrupted run has embedded is kept.

    Args:
        data: The data.
        encode: One vector per response of a token batch, (R, H); moves the batch to its device itself.
        writer: The store.
        layout: ``shared`` or ``separate`` rows, as the network takes them.
        max_tokens: Bound on rows x padded length of a batch.
        splits: Splits that are set up; None for all, which are prepared and set up here.
        known: Keys of texts that have a vector elsewhere.

    Yields:
        Split, responses and prompts of it that are done, and how many there are to do, after every batch.
    """
    if splits is None:
        data.setup()
        splits = data.splits
    collate = PreferenceCollator(layout=layout)
    try:
        for split in splits:
            plan = _plan(data, split, _Known((writer, known), writer.prompts), set(), layout)
            batches = TokenBudgetBatchSampler(plan.sizes, layout=layout, max_tokens=max_tokens, shuffle=False)
            table, done, total = data.table(split), 0, sum(map(len, plan.keys))
            for batch in batches:
                rows = table[[plan.rows[i] for i in batch]]
                keys = [key for i in batch for key in plan.keys[i]]
                parts = [
                    take_row_responses(_text(row, plan.prompt[i], data.loader.items), plan.kept[i])
                    for row, i in zip(rows, batch, strict=True)
                ]
                writer.add(keys, encode(collate(parts)))
                done += len(keys)
                yield split, done, total
    finally:
        writer.flush()  # whatever stopped the run, what it has is kept


class _Plan:
    """What of a split is to be embedded: entries of a record's responses (or its prompt), read when their turn comes."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.prompt: list[bool] = []
        self.kept: list[list[int]] = []
        self.keys: list[list[int]] = []
        self._sizes: list[tuple[int, int, int, int]] = []

    @property
    def sizes(self) -> NDArray[np.int32]:
        return np.asarray(self._sizes, dtype=np.int32).reshape(-1, 4)

    def add(self, row: int, prompt: bool, text: TokenRow, kept: list[int], keys: list[int]) -> None:
        own = text.lengths[1:][kept]
        self.rows.append(row)
        self.prompt.append(prompt)
        self.kept.append(kept)
        self.keys.append(keys)
        self._sizes.append((len(kept), int(text.lengths[0]), int(own.sum()), int(own.max())))


def embed_missing(
    model: RewardModule,
    data: PreferenceDataModule,
    split: str,
    *,
    device: torch.device | str = "cpu",
    max_tokens: int = 16_384,
) -> Iterator[tuple[str, int, int]]:
    """Embed what the data's feature store lacks of a split; the store stays as it is.

    The vectors lie beside the token caches, in the store's dtype, and are found there again by later runs; the data read
    both. The network is loaded only if something is missing.

    Args:
        model: Not built yet, and not afterwards.
        data: With ``loader.features``; set up for the split here.
        split: ``predict``, ``test``, or another one that is a stage.
        device: Where the network runs.
        max_tokens: Bound on rows x padded length of a batch.

    Yields:
        As :func:`embed_features`; nothing if nothing is missing.

    Raises:
        ValueError: If the store is of another backbone.
    """
    data.setup(split)
    store = data.features
    assert store is not None  # the caller looked
    folder = data.cache_root() / f"features-{_description(store)}"
    if (folder / "meta.json").is_file():
        store = data.add_features(folder)
    if not _plan(data, split, _Known((store,), store.has_prompts), set(), "shared").keys:
        return
    store.check_backbone(model.backbone_config.description())
    embedder = Embedder(model, data, folder, device=device, dtype=store.dtype, prompts=store.has_prompts)
    try:
        yield from embedder.run(max_tokens=max_tokens, splits=(split,), known=store)
    finally:
        embedder.release()
    data.add_features(folder)


def _description(store: FeatureStore) -> str:
    parts = ("backbone", "text_format", "hidden_size", "dtype", "has_prompts")
    return fingerprint({name: getattr(store, name) for name in parts})


class _Known(NamedTuple):
    """Texts that have a vector, in any of several places."""

    places: Sequence[Container[object]]
    prompts: bool
    """Whether prompts have vectors, too."""

    def __contains__(self, key: object) -> bool:
        return any(key in place for place in self.places)


def _plan(
    data: PreferenceDataModule, split: str, known: _Known | FeatureWriter, planned: set[int], layout: str
) -> _Plan:
    plan = _Plan()
    for number, row in enumerate(data.table(split).rows()):
        for prompt in (False, True) if known.prompts else (False,):
            text = _text(row, prompt, data.loader.items)
            kept, keys = [], []
            for i, key in enumerate(response_keys(text).tolist()):
                if key not in known and key not in planned:
                    planned.add(key)
                    kept.append(i)
                    keys.append(key)
            if layout == "separate":  # responses share nothing there, so that each may run beside its like
                for i, key in zip(kept, keys, strict=True):
                    plan.add(number, prompt, text, [i], [key])
            elif kept:
                plan.add(number, prompt, text, kept, keys)
    return plan


def _text(row: TokenRow, prompt: bool, items: str) -> TokenRow:
    """What is embedded of a record: its responses, with their prompt or alone; or its prompt."""
    if prompt:
        return prompt_alone(row)
    return row if items == "conversation" else without_prompt(row)
