"""Fill a feature store: run what it lacks of a data module's texts through a frozen network, each text once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor

from pluralign.datamodules import PreferenceBatch, PreferenceDataModule
from pluralign.datamodules.batches import (
    FeatureDtype,
    FeatureWriter,
    PreferenceCollator,
    TokenBudgetBatchSampler,
    response_keys,
)
from pluralign.datamodules.tokens import TokenRow, prompt_alone, take_row_responses, without_prompt
from pluralign.models import Backbone, RewardModule

__all__ = ["Embedder", "embed_features"]


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

    def run(self, *, max_tokens: int = 16_384) -> Iterator[tuple[str, int, int]]:
        """Embed what the store does not have yet of every split; what an interrupted run has embedded is kept.

        Args:
            max_tokens: Bound on rows x padded length of a batch.

        Yields:
            Split, texts of it that are done, and how many there are to do, after every batch.

        Raises:
            ValueError: If the network cannot read a split.
        """
        self._data.setup()
        self._model.check_data(self._data)
        return embed_features(
            self._data,
            self._encode,
            self.writer,
            layout=self.backbone.layout,
            max_tokens=max_tokens,
        )

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
) -> Iterator[tuple[str, int, int]]:
    """Embed what a store does not have yet of every split of a data module.

    A text is run once, however many records, splits and judgements it occurs in. Prompts, where asked for, run as
    rows of their own. What an interrupted run has embedded is kept.

    Args:
        data: The data; prepared and set up here.
        encode: One vector per response of a token batch, (R, H); moves the batch to its device itself.
        writer: The store.
        layout: ``shared`` or ``separate`` rows, as the network takes them.
        max_tokens: Bound on rows x padded length of a batch.

    Yields:
        Split, responses and prompts of it that are done, and how many there are to do, after every batch.
    """
    data.setup()
    collate = PreferenceCollator(layout=layout)
    planned: set[int] = set()
    try:
        for split in data.splits:
            plan = _plan(data, split, writer, planned, layout)
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


def _plan(
    data: PreferenceDataModule, split: str, writer: FeatureWriter, planned: set[int], layout: str
) -> _Plan:
    plan = _Plan()
    for number, row in enumerate(data.table(split).rows()):
        for prompt in (False, True) if writer.prompts else (False,):
            text = _text(row, prompt, data.loader.items)
            kept, keys = [], []
            for i, key in enumerate(response_keys(text).tolist()):
                if key not in writer and key not in planned:
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
