"""What `reward_training.py` trains on: the same token ids for both trainers."""

import json
import random
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from string import ascii_letters
from typing import NamedTuple

import numpy as np
import torch
from answers import nine_answers

from pluralign.datamodules import (
    DSPDataModule,
    HHRLHFDataModule,
    LocalDataModule,
    PreferenceDataModule,
    TextConfig,
)
from pluralign.datamodules.batches import PreferenceDataLoader, TokenBudgetBatchSampler
from pluralign.datamodules.tokens import TokenRow

__all__ = ["PAD", "SORTED_BATCHES", "Network", "Sample", "Sources"]

PAD = 0  # also of the byte tokenizer, which is what TRL is told
SHARED = Path(__file__).resolve().parents[2] / "shared"
LIMIT = 1024  # tokens, TRL's default as well
SORTED_BATCHES = 50  # transformers sorts by length among so many, where there are as many
LONG = range(225, 651)  # words of a long response: some 300 to 900 tokens
NINE = 200  # prompts with nine answers that are drawn from


class Sample(torch.utils.data.Dataset[list[TokenRow]]):
    """Records with their tokens, the same in every run.

    Their ids are numbered from 1 without gaps, so that the parameters sit in layers, not in unused embeddings.

    Attributes:
        name: Of the data.
        rows: The records.
        vocabulary: Number of ids, the padding's included.
    """

    def __init__(
        self, name: str, rows: Sequence[TokenRow], collator: Callable[[list[TokenRow]], object]
    ) -> None:
        """Number the ids anew."""
        self.name, self.collator = name, collator
        ids = np.unique(np.concatenate([row.tokens for row in rows]))
        self.rows = [row._replace(tokens=np.int32(1) + np.searchsorted(ids, row.tokens)) for row in rows]
        self.vocabulary = len(ids) + 1

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> list[TokenRow]:
        """Several records at once."""
        return [self.rows[i] for i in numbers]

    @property
    def pairs(self) -> int:
        """Number of comparisons."""
        return sum(len(row.comparisons) for row in self.rows)

    def head(self, prompts: int, pairs: int | None = None) -> "Sample":
        """The first prompts alone, and if asked for only the first pairs of each."""
        first = copy(self)
        first.rows = [
            row._replace(
                comparisons=row.comparisons[:pairs],
                comparison_index=row.comparison_index[:pairs],
                preference=row.preference[:pairs],
            )
            for row in self.rows[:prompts]
        ]
        return first

    def batches(self, prompts: int, layout: str = "shared", seed: int = 0) -> PreferenceDataLoader:
        """Batches of so many prompts, as a data module makes them, but sorted by length as among much data."""
        sizes = np.asarray(
            [
                (len(row.lengths) - 1, row.lengths[0], sum(row.lengths[1:]), max(row.lengths[1:]))
                for row in self.rows
            ]
        )
        sampler = TokenBudgetBatchSampler(sizes, layout=layout, batch_size=prompts, seed=seed)
        sampler.mega_size = SORTED_BATCHES * prompts  # by itself a quarter of the sample at most
        collator = copy(self.collator)
        collator.layout = layout
        return PreferenceDataLoader(self, batch_size=None, sampler=sampler, collate_fn=collator)

    def texts(self) -> list[tuple[TokenRow, list[list[int]]]]:
        """Every record with its responses' ids, each after those of the prompt."""
        found = []
        for row in self.rows:
            prefix, *own = np.split(row.tokens, np.cumsum(row.lengths)[:-1])
            found.append((row, [np.concatenate([prefix, ids]).tolist() for ids in own]))
        return found

    def sequences(self) -> list[dict[str, list[int] | int]]:
        """Rows for TRL: both full sequences of every comparison, and the length to group by."""
        sides = [(texts[i], texts[j]) for row, texts in self.texts() for i, j in row.comparisons]
        return [{"chosen_ids": a, "rejected_ids": b, "length": max(len(a), len(b))} for a, b in sides]


class Network(NamedTuple):
    """Shape of a Llama."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int

    def config(self, sample: Sample) -> dict[str, int]:
        """Settings, with the sample's vocabulary."""
        rest = {"pad_token_id": PAD, "max_position_embeddings": 2048, "vocab_size": sample.vocabulary}
        return {**self._asdict(), **rest}


class Table:
    """Training records of a data module, to draw samples from."""

    def __init__(self, name: str, data: PreferenceDataModule) -> None:
        """Tokenise, or open what was tokenised."""
        data.setup("fit")
        self.name, self.table, self.collator = name, data.table("train"), data.collator()
        sizes = np.asarray(self.table.sizes)
        self.longest = sizes[:, 1] + sizes[:, 3]  # what TRL groups a pair by

    def by_length(self, count: int) -> list[int]:
        """So many records drawn at random, shortest first."""
        places = random.Random(0).sample(range(len(self.longest)), min(count, len(self.longest)))
        return sorted(places, key=lambda place: self.longest[place])

    def evenly(self, count: int) -> Sample:
        """Records evenly spaced in the order of length, mixed: few of them have the lengths of all."""
        return self._sample(_evenly(self.by_length(len(self.longest)), count))

    def sorted_batches(self, count: int, size: int) -> Sample:
        """Whole batches of what is sorted by length among :data:`SORTED_BATCHES`, evenly spaced among these.

        Sorting the sample once more gives these very batches, so that few steps are padded as those on much data are.
        """
        order = self.by_length(SORTED_BATCHES * size)
        starts = _evenly(range(0, len(order) - size + 1, size), count)
        return self._sample([place for start in starts for place in order[start : start + size]])

    def _sample(self, places: Sequence[int]) -> Sample:
        mixed = random.Random(0).sample(list(places), len(places))
        return Sample(self.name, self.table[mixed], self.collator)


def _evenly(places: Sequence[int], count: int) -> list[int]:
    """The middle of each of so many equal parts."""
    return [places[int((i + 0.5) * len(places) / count)] for i in range(count)]


class Sources:
    """Where samples come from: real data where they lie, random letters of similar lengths where not."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet.

        Args:
            folder: Where token caches go.
        """
        self.folder = folder
        tokenizer = SHARED / "models" / "gpt2-bpe-tokenizer"
        self.real = tokenizer.is_dir()
        self.text = TextConfig(prompt_format="{text}", max_length=LIMIT)
        if self.real:
            self.text = TextConfig(tokenizer=str(tokenizer), format="plain", max_length=LIMIT)

    @cache  # noqa: B019  # one object, as long as the process
    def hh(self) -> Table:
        """Pairs of HH-RLHF helpful-base."""
        folder = SHARED / "data" / "hh-rlhf"
        if not (self.real and folder.is_dir()):
            return self._invented("pairs", [(0, 1)], (4.7, 0.9), (3.9, 0.8))
        data = HHRLHFDataModule(
            subsets=("helpful-base",), data_dir=str(folder), text=self.text, cache_dir=str(self.folder)
        )
        return Table("HH-RLHF helpful-base", data)

    @cache  # noqa: B019
    def dsp(self) -> Table:
        """Five responses to a query, each of which beats the others in its own domain."""
        folder = SHARED / "data" / "dsp"
        if not (self.real and folder.is_dir()):
            return self._invented("five responses", list(permutations(range(5), 2)), (2.4, 0.3), (4.8, 0.8))
        return Table("DSP", DSPDataModule(data_dir=str(folder), text=self.text, cache_dir=str(self.folder)))

    @cache  # noqa: B019
    def nine(self) -> Table:
        """Nine responses to a prompt, and every pair among them; which of two is preferred is made up."""
        pairs, folder = list(combinations(range(9), 2)), SHARED / "data" / "alpaca-eval" / "results"
        if not (self.real and folder.is_dir()):
            return self._invented("nine responses", pairs, (3.1, 0.8), (5.1, 0.9))
        rows = random.Random(0).sample(nine_answers(folder), NINE)
        return self._local("AlpacaEval, nine answers", rows, pairs)

    @cache  # noqa: B019
    def long(self) -> Table:
        """Two long answers to a prompt; which is preferred is made up."""
        folder = SHARED / "data" / "alpaca-eval" / "results"
        if not (self.real and folder.is_dir()):
            return self._invented("long responses", [(0, 1)], (3.1, 0.8), (6.2, 0.3), longest=750)
        long = [
            (prompt, [answer for answer in answers if len(answer.split()) in LONG][:2])
            for prompt, answers in nine_answers(folder)
        ]
        return self._local("AlpacaEval, long answers", [row for row in long if len(row[1]) == 2], [(0, 1)])

    def _invented(
        self,
        name: str,
        pairs: list[tuple[int, int]],
        prefix: tuple[float, float],
        own: tuple[float, float],
        longest: int = 480,
    ) -> Table:
        """Random letters; the logarithms of the lengths of prompts and responses have these means and deviations."""
        rng = random.Random(0)

        def draw(mean: float, deviation: float) -> str:
            length = min(longest, max(3, round(rng.lognormvariate(mean, deviation))))
            return "".join(rng.choices(ascii_letters, k=length))

        number = 1 + max(map(max, pairs))
        rows = [(draw(*prefix), [draw(*own) for _ in range(number)]) for _ in range(600)]
        return self._local(f"invented, {name}", rows, pairs)

    def _local(self, name: str, rows: list[tuple[str, list[str]]], pairs: list[tuple[int, int]]) -> Table:
        path = self.folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            for prompt, responses in rows:
                print(
                    json.dumps({"prompt": prompt, "responses": responses, "comparisons": pairs}), file=stream
                )
        data = LocalDataModule(train=str(path), text=self.text, cache_dir=str(self.folder))
        return Table(name, data)
