"""Fill a feature store: run what it lacks of a data module's texts through a frozen network, each text once."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pluralign.datamodules.base import PreferenceDataModule
from pluralign.datamodules.batch import PreferenceBatch
from pluralign.datamodules.batches import (
    FeatureWriter,
    PreferenceCollator,
    TokenBudgetBatchSampler,
    response_keys,
)
from pluralign.datamodules.tokens import TokenRow, prompt_alone, take_row_responses, without_prompt

__all__ = ["embed_features"]


def embed_features(
    data: PreferenceDataModule,
    encode: Callable[[PreferenceBatch], Tensor],
    writer: FeatureWriter,
    *,
    layout: str,
    max_tokens: int = 16_384,
    check: Callable[[PreferenceBatch], None] | None = None,
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
        check: Looks at every batch before it is encoded, and raises if the network cannot read it.

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
                texts = collate(parts)
                if check is not None:
                    check(texts)
                writer.add(keys, encode(texts))
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
