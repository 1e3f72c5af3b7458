"""Items of a split: prompts with a preference each, as tokens.

Every prompt is tokenised alone, with the sentence of each dimension that it asks for, and with all sentences of each preference.
This is little work beside generating, so it is done anew whenever a split is opened, many prompts at a time, and kept in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..records import RecordError
from ..tokens import TOO_LONG, PromptText, PromptTokenizer, PromptTokens
from .preferences import Combination, PreferenceSpace
from .record import PromptRecord, item_key, with_sentence
from .report import PromptReport

__all__ = ["PlacedPrompt", "PromptItem", "PromptTable", "tokenised_prompts"]

CHUNK = 64
"""Prompts tokenised at a time, each in several forms."""

Forms = dict[Combination, PromptTokens]
"""Tokens of a prompt by what is said behind it."""


class PlacedPrompt(NamedTuple):
    """A prompt and the row that it is from."""

    record: PromptRecord
    file: str
    line: int


class PromptItem(NamedTuple):
    """A prompt with one preference."""

    id: str
    key: int
    record: PromptRecord
    preference: Combination
    ids: NDArray[np.int32]
    """With all that is asked for."""
    plain: NDArray[np.int32]
    """Alone."""
    own: list[tuple[int, NDArray[np.int32]]]
    """With the sentence of one dimension, which stands first, of each that is asked for."""


class PromptTable(torch.utils.data.Dataset[list[PromptItem]]):
    """Items of a split.

    Attributes:
        name: Of the data module.
        split: Name of the split.
        space: Of preferences.
        columns: What the source says of items, by name.
        preferences: Of every item, in the order of the prompts.
        starts: Where the items of each prompt begin, (prompts + 1,).
        sizes: Tokens of every item with all that is asked for, (n,).
    """

    def __init__(
        self,
        name: str,
        split: str,
        space: PreferenceSpace,
        prompts: Sequence[tuple[PromptRecord, Forms, list[Combination]]],
    ) -> None:
        """Lay the items out.

        Args:
            name: Of the data module.
            split: Name of the split.
            space: Of preferences.
            prompts: Each with its tokens and its preferences, one at least.
        """
        self.name, self.split, self.space = name, split, space
        self._prompts = [(record, forms) for record, forms, _ in prompts]
        self.columns = tuple(
            dict.fromkeys(column for record, _ in self._prompts for column in record.columns)
        )
        self.preferences = [preference for _, _, several in prompts for preference in several]
        self.starts: NDArray[np.int64] = np.cumsum([0, *(len(several) for _, _, several in prompts)])
        self._prompt_of = np.repeat(np.arange(len(prompts)), np.diff(self.starts))
        self.sizes: NDArray[np.int32] = np.asarray(
            [len(forms[preference].ids) for _, forms, several in prompts for preference in several],
            dtype=np.int32,
        )

    def __len__(self) -> int:
        """Number of items."""
        return len(self.preferences)

    def __getitem__(self, places: list[int]) -> list[PromptItem]:
        """Several items at once."""
        return [self._item(place) for place in places]

    def _item(self, place: int) -> PromptItem:
        record, forms = self._prompts[int(self._prompt_of[place])]
        preference = self.preferences[place]
        name = f"{record.id} ({', '.join(preference)})" if preference else record.id
        return PromptItem(
            id=name,
            key=item_key(
                self.name,
                self.split,
                name,
                record.given,
                self.space.sentence(preference),
                dict(record.columns),
                [forms[form].ids.tolist() for form in _needed(preference)],
            ),
            record=record,
            preference=preference,
            ids=forms[preference].ids,
            plain=forms[()].ids,
            own=[
                (dimension, forms[(one,)].ids)
                for dimension, one in zip(self.space.places(preference), preference, strict=True)
            ],
        )


def tokenised_prompts(
    prompts: Iterable[PlacedPrompt],
    split: str,
    space: PreferenceSpace,
    tokenizer: PromptTokenizer,
    *,
    limit: int | None,
    report: PromptReport,
    skip: Callable[[RecordError], None],
) -> Iterator[tuple[PromptRecord, Forms, list[Combination]]]:
    """Prompts with their tokens and preferences; those of which none is left are not among them.

    Args:
        prompts: Of the split.
        split: Its name.
        space: Of preferences.
        tokenizer: Of prompts.
        limit: Most tokens of a prompt; None for no bound.
        report: Counts what is kept, cut and dropped.
        skip: Takes the error of an invalid row; may raise it.
    """
    strict = tokenizer.tokenizer.config.truncation == "error"
    ahead = iter(prompts)
    while chunk := list(islice(ahead, CHUNK)):
        wanted = [_preferences(prompt.record, split, space, report) for prompt in chunk]
        for prompt, several, forms in zip(
            chunk, wanted, _forms(chunk, wanted, space, tokenizer, limit), strict=True
        ):
            errors = {form: tokens for form, tokens in forms.items() if isinstance(tokens, RecordError)}
            fatal = next((error for error in errors.values() if strict or error.reason != TOO_LONG), None)
            if fatal is not None:
                skip(fatal.at(prompt.file, prompt.line))
                continue
            kept = [one for one in several if not any(form in errors for form in _needed(one))]
            if len(kept) < len(several):
                report.dropped[TOO_LONG] += len(several) - len(kept)
            if kept:
                whole = {
                    form: tokens for form, tokens in forms.items() if not isinstance(tokens, RecordError)
                }
                _count(kept, whole, report)
                yield prompt.record, whole, kept


def _preferences(
    record: PromptRecord, split: str, space: PreferenceSpace, report: PromptReport
) -> list[Combination]:
    if record.preference is None:
        return space.of_split(split)
    if space.fits(record.preference, split):
        return [record.preference]
    report.dropped[
        "preference that is not held out" if split == "test" else "preference that is held out"
    ] += 1
    return []


def _needed(preference: Combination) -> list[Combination]:
    """What is said behind a prompt in each form that an item of a preference needs."""
    return list(dict.fromkeys([(), *((one,) for one in preference), preference]))


def _forms(
    prompts: Sequence[PlacedPrompt],
    wanted: Sequence[Sequence[Combination]],
    space: PreferenceSpace,
    tokenizer: PromptTokenizer,
    limit: int | None,
) -> list[dict[Combination, PromptTokens | RecordError]]:
    """Tokens of every form of some prompts, or what is wrong with it."""
    results: list[dict[Combination, PromptTokens | RecordError]] = []
    texts: list[PromptText] = []
    places: list[tuple[int, Combination]] = []
    for number, (prompt, several) in enumerate(zip(prompts, wanted, strict=True)):
        results.append({})
        for form in dict.fromkeys(form for preference in several for form in _needed(preference)):
            sentence = space.sentence(form)
            try:
                texts.append(PromptText(with_sentence(prompt.record.prompt, sentence), sentence))
            except RecordError as error:
                results[number][form] = error
                continue
            places.append((number, form))
    for (number, form), tokens in zip(places, tokenizer(texts, limit=limit), strict=True):
        results[number][form] = tokens
    return results


def _count(preferences: Sequence[Combination], forms: Forms, report: PromptReport) -> None:
    report.prompts += 1
    for preference in preferences:
        tokens = forms[preference]
        report.items += 1
        report.longest = max(report.longest, len(tokens.ids))
        report.cut_items += tokens.cut > 0
        report.cut_tokens += tokens.cut
