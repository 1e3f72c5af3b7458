"""A data set's texts as batches for one model: a prompt with all its responses once, and every comparison beside them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pluralign.datamodules import PreferenceBatch
from pluralign.datamodules.batches import TokenBudgetBatchSampler
from pluralign.datamodules.tokens import TokenRow, take_row_responses
from pluralign.models import AutoregressiveRM

from ..response_rows import AskedResponse, ResponseReader
from ..rewards import ModuleReward
from .data import EvaluationData

__all__ = ["GroupReader", "ReadGroup", "Whose", "exchanged"]

CHUNK = 1024
"""Prompts that are tokenised at a time."""
OVERSIZE = 2
"""How many times the bound on a batch a prompt's responses may come to before its comparisons are read one by one."""


class Whose(NamedTuple):
    """A response as somebody's, apart from comparisons."""

    response: int
    user: str | None
    domain: str | None


class ReadGroup(NamedTuple):
    """Rows that are read in one batch, since comparisons are between their responses."""

    rows: list[TokenRow]
    responses: list[int]
    """Places of the rows' responses among all of the data, in order."""
    comparisons: list[int]
    """Places of comparisons among all of the data."""


class GroupReader:
    """A model's way from a data set's texts to batches."""

    def __init__(self, reward: ModuleReward, data: EvaluationData) -> None:
        """Settle the format.

        Args:
            reward: The model, with its text format and bound on batches.
            data: What is judged.
        """
        self.reward, self.data = reward, data
        apart = isinstance(reward.module, AutoregressiveRM)
        self._read = ResponseReader(
            reward.tokenizer,
            max_tokens=reward.max_tokens,
            apart=apart,
            positions=reward.module.max_positions,
        )
        self._collate = reward.collator(["comparisons"])
        self._responses: list[list[int]] = [[] for _ in data.prompts]
        for place, prompt in enumerate(data.prompt_of):
            self._responses[prompt].append(place)
        self._comparisons: list[list[int]] = [[] for _ in data.prompts]
        for place, comparison in enumerate(data.comparisons):
            self._comparisons[comparison.prompt].append(place)

    def batches(self, prompts: Sequence[int], counts: Counter[str]) -> Iterator[list[ReadGroup]]:
        """Groups that are read together, within the bound on tokens.

        Args:
            prompts: Which ones.
            counts: Where it is counted what happens to texts.
        """
        for start in range(0, len(prompts), CHUNK):
            groups = self._groups(prompts[start : start + CHUNK], counts)
            if not groups:
                continue
            sampler = TokenBudgetBatchSampler(
                np.asarray([_size(group.rows) for group in groups], dtype=np.int32),
                layout="separate" if self.reward.module.layout == "separate" else "shared",
                max_tokens=self.reward.max_tokens,
                shuffle=False,
            )
            for numbers in sampler:
                yield [groups[number] for number in numbers]

    def batch(self, groups: Sequence[ReadGroup], asked: Sequence[Whose] = ()) -> PreferenceBatch:
        """Rows of groups with their comparisons, and whose reward is asked for besides; on the CPU."""
        batch = self._collate([row for group in groups for row in group.rows])
        responses = [place for group in groups for place in group.responses]
        at = {place: i for i, place in reversed([*enumerate(responses)])}
        pairs, comparisons = [], []
        start = 0
        for group in groups:  # a response that is read in several groups is compared within each
            here = {place: start + i for i, place in enumerate(group.responses)}
            start += len(group.responses)
            for place in group.comparisons:
                comparison = self.data.comparisons[place]
                pairs.append((here[comparison.first], here[comparison.second]))
                comparisons.append(comparison)
        batch["comparisons"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        batch["comparison_index"] = torch.arange(len(pairs))
        batch["preference"] = torch.tensor([one.share for one in comparisons], dtype=torch.float32)
        names = self._collate.names
        if "user" in names:
            batch["user_id"] = self._indices("user", [one.user for one in comparisons])
        if "domain" in names:
            batch["domain_id"] = self._indices("domain", [one.domain for one in comparisons])
            batch["domains_present"] = batch["domain_id"].unique().tolist()
        if asked:
            batch["request_response"] = torch.tensor([at[one.response] for one in asked])
            batch["request_prompt"] = batch["response_prompt"][batch["request_response"]]
            batch["request_index"] = batch["response_index"][batch["request_response"]]
            if "user" in names:
                batch["request_user_id"] = self._indices("user", [one.user for one in asked])
            if "domain" in names:
                batch["request_domain_id"] = self._indices("domain", [one.domain for one in asked])
        return batch

    def _indices(self, column: str, names: Sequence[str | None]) -> torch.Tensor:
        """Of names that the model knows; -1 for others, who have the reward of nobody in particular."""
        known = self.reward.known("user" if column == "user" else "domain")
        fixed = self.reward.user if column == "user" else self.reward.domain
        index = self._collate.names[column]
        given = [fixed if fixed is not None else name for name in names]
        return torch.tensor(
            [index[name] if name is not None and name in known else -1 for name in given], dtype=torch.int64
        )

    def _groups(self, prompts: Sequence[int], counts: Counter[str]) -> list[ReadGroup]:
        """A group for each prompt, or several where one would be too long."""
        data = self.data
        places = [place for prompt in prompts for place in self._responses[prompt]]
        asked = [
            AskedResponse(
                f"{data.name}: response {place}",
                data.prompts[data.prompt_of[place]],
                data.responses[place].text,
                messages=data.responses[place].messages,
            )
            for place in places
        ]
        found = self._read(asked)
        counts.update({reason: number for reason, number in found.counts.items() if number})
        counts.update(f"responses {reason}" for reason in found.unread.values())
        parts: dict[int, list[tuple[TokenRow, list[int]]]] = {}
        for row, of_row in zip(found.rows, found.places, strict=True):
            own = [places[i] for i in of_row]
            parts.setdefault(data.prompt_of[own[0]], []).append((row, own))
        return [group for prompt, of_prompt in parts.items() for group in self._groups_of(prompt, of_prompt)]

    def _groups_of(self, prompt: int, parts: Sequence[tuple[TokenRow, list[int]]]) -> Iterator[ReadGroup]:
        every = [place for _, own in parts for place in own]
        readable = set(every)
        comparisons = [
            place
            for place in self._comparisons[prompt]
            if {self.data.comparisons[place].first, self.data.comparisons[place].second} <= readable
        ]
        rows = [row for row, _ in parts]
        if sum(int(row.lengths.sum()) for row in rows) <= OVERSIZE * self.reward.max_tokens:
            yield ReadGroup(rows, every, comparisons)
            return
        alone = {place: take_row_responses(row, [i]) for row, own in parts for i, place in enumerate(own)}
        judged: dict[tuple[int, int], list[int]] = {}
        for place in comparisons:
            comparison = self.data.comparisons[place]
            judged.setdefault((comparison.first, comparison.second), []).append(place)
        for pair, own in judged.items():
            yield ReadGroup([alone[place] for place in pair], [*pair], own)
        for place in sorted(readable - {place for pair in judged for place in pair}):
            yield ReadGroup([alone[place]], [place], [])


def exchanged(group: ReadGroup) -> ReadGroup:
    """The group with its responses in the other order."""
    rows: list[TokenRow] = []
    responses: list[int] = []
    start = 0
    for row in group.rows:
        number = len(row.response_index)
        order = [*reversed(range(number))]
        rows.append(take_row_responses(row, order))
        responses += [group.responses[start + i] for i in order]
        start += number
    return ReadGroup(rows[::-1], _reversed_parts(responses, rows), group.comparisons)


def _reversed_parts(responses: list[int], rows: Sequence[TokenRow]) -> list[int]:
    """Responses of rows in the rows' reversed order, those of a row staying as they are."""
    parts: list[list[int]] = []
    start = 0
    for row in rows:
        parts.append(responses[start : start + len(row.response_index)])
        start += len(row.response_index)
    return [place for part in reversed(parts) for place in part]


def _size(rows: Sequence[TokenRow]) -> tuple[int, int, int, int]:
    """Responses, prefix, sum and largest of the responses' own lengths, as if all were one row."""
    number = sum(len(row.response_index) for row in rows)
    prefix = max(int(row.lengths[0]) for row in rows)
    own = max(int(length) for row in rows for length in row.lengths[1:])
    return number, prefix, sum(int(row.lengths.sum()) for row in rows) - prefix, own
