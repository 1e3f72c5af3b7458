"""A record as the cache holds it, and parts of it: without its prompt, some of its responses or comparisons."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..columns import Item, optional_columns

__all__ = [
    "Columns",
    "Origins",
    "TokenRow",
    "TreatedComparisons",
    "prompt_alone",
    "take_row_comparisons",
    "take_row_responses",
    "without_prompt",
]

Columns = dict[str, NDArray[np.float32] | list[str | None]]


class Origins(NamedTuple):
    """Rows of the data that a record was merged from, and where in them its items stand.

    Attributes:
        ids: Ids of the rows; the record has that of the first.
        keys: What :func:`record_key` says of each, int64, (rows,).
        response_origin: Row of each response, an index into ``ids``; of a response of several rows the first, int32, (k,).
        response_place: Place of each response in that row, int32, (k,).
        comparison_origin: Row of each comparison, int32, (p,).
        comparison_place: Place of each comparison in that row, int32, (p,).
    """

    ids: list[str]
    keys: NDArray[np.int64]
    response_origin: NDArray[np.int32]
    response_place: NDArray[np.int32]
    comparison_origin: NDArray[np.int32]
    comparison_place: NDArray[np.int32]


class TreatedComparisons(NamedTuple):
    """Which treatment the comparisons of a record get when a batch is made of it.

    Attributes:
        rule: Number of the rule, -1 for none, int16, (p,).
        strength: Of the label as the data have it, NaN where it is not known, float32, (p,).
    """

    rule: NDArray[np.int16]
    strength: NDArray[np.float32]


class TokenRow(NamedTuple):
    """One record as the cache holds it; the arrays are views of what was read.

    Attributes:
        id: The record's id.
        tokens: Prefix, then each response's own tokens, int32; empty where they are not read.
        lengths: Of the prefix and of each response's own part, int32, (1 + k,).
        response_index: Places of the responses: the original ones, or 0 to k - 1 if it was merged, int32, (k,).
        comparisons: Chosen and rejected among the kept responses, int32, (p, 2).
        comparison_index: Places of the comparisons likewise, int32, (p,).
        preference: float32, (p,).
        columns: The optional columns the record has, by their stored names; those of a record hold one value.
        record_key: What :func:`record_key` says of the record.
        split_key: Hash of what a random split keeps on one side, as a signed integer: equal in all records of a prompt.
        prompt_length: Leading tokens that are the prompt's own; at most the prefix.
        places: Rows of a feature store that hold the responses, int64, (k,); None without a store.
        prompt_place: Row of the feature store that holds the prompt; -1 for none.
        origins: Where its items come from if it was merged from several rows of the data; None if it is one.
        treated: Which treatment its comparisons get; None where labels stay as they are.
    """

    id: str
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    response_index: NDArray[np.int32]
    comparisons: NDArray[np.int32]
    comparison_index: NDArray[np.int32]
    preference: NDArray[np.float32]
    columns: Columns
    record_key: int = 0
    split_key: int = 0
    prompt_length: int = 0
    places: NDArray[np.int64] | None = None
    prompt_place: int = -1
    origins: Origins | None = None
    treated: TreatedComparisons | None = None

    def response_names(self) -> list[tuple[str | None, ...]]:
        """What tells each response from an equal one: its values in every column of names, such as who wrote it."""
        count = len(self.response_index)
        given = [self.columns.get(entry.stored) for entry in optional_columns("response", "name")]
        columns = [names if isinstance(names, list) else [None] * count for names in given]
        return [tuple(names[place] for names in columns) for place in range(count)]

    def items_of(self, item: Item) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Of the record, or of every item: id and key of its row of the data, and its place there, a request's its response's."""
        if item == "record":
            return [self.id], np.asarray([self.record_key]), np.zeros(1, dtype=np.int64)
        places = self.comparison_index if item == "comparison" else self.response_index
        if self.origins is None:
            return [self.id] * len(places), np.full(len(places), self.record_key), places.astype(np.int64)
        of_responses = item != "comparison"
        rows = self.origins.response_origin if of_responses else self.origins.comparison_origin
        places = self.origins.response_place if of_responses else self.origins.comparison_place
        return [self.origins.ids[i] for i in rows.tolist()], self.origins.keys[rows], places.astype(np.int64)


def without_prompt(row: TokenRow) -> TokenRow:
    """The record as if it had no prompt: each response on its own."""
    lengths = row.lengths.copy()
    lengths[0] -= row.prompt_length
    return row._replace(tokens=row.tokens[row.prompt_length :], lengths=lengths, prompt_length=0)


def prompt_alone(row: TokenRow) -> TokenRow:
    """The prompt as a record of its own whose one response is its last token; of an empty one, a token 0."""
    tokens = row.tokens[: row.prompt_length] if row.prompt_length else np.zeros(1, np.int32)
    lengths = np.asarray([len(tokens) - 1, 1], dtype=np.int32)
    return row._replace(
        tokens=tokens, lengths=lengths, response_index=np.zeros(1, np.int32), columns={}, origins=None
    )


def take_row_comparisons(row: TokenRow, keep: NDArray[np.bool_]) -> TokenRow:
    """The record with some of its comparisons, (p,) of them kept or not."""
    return row._replace(
        comparisons=row.comparisons[keep],
        comparison_index=row.comparison_index[keep],
        preference=row.preference[keep],
        columns=_take("comparison", row.columns, np.flatnonzero(keep), len(keep)),
        origins=row.origins
        and row.origins._replace(
            comparison_origin=row.origins.comparison_origin[keep],
            comparison_place=row.origins.comparison_place[keep],
        ),
        treated=row.treated and TreatedComparisons(row.treated.rule[keep], row.treated.strength[keep]),
    )


def take_row_responses(row: TokenRow, kept: Sequence[int]) -> TokenRow:
    """The record with some of its responses, and without comparisons."""
    ends = np.cumsum(row.lengths)
    places = np.asarray(kept, dtype=np.int64)
    row = take_row_comparisons(row, np.zeros(len(row.comparisons), dtype=bool))
    columns = _take("response", row.columns, places, len(row.response_index))
    return row._replace(
        tokens=np.concatenate([row.tokens[: ends[0]], *(row.tokens[ends[i] : ends[i + 1]] for i in kept)]),
        lengths=row.lengths[[0, *(i + 1 for i in kept)]],
        response_index=row.response_index[places],
        places=None if row.places is None else row.places[places],
        columns=_take("request", columns, places, len(row.response_index)),
        origins=row.origins
        and row.origins._replace(
            response_origin=row.origins.response_origin[places],
            response_place=row.origins.response_place[places],
        ),
    )


def _take(item: Item, columns: Columns, places: NDArray[np.int64], number: int) -> Columns:
    """Columns with the values at some of a record's ``number`` items of a kind."""
    taken = dict(columns)
    for entry in optional_columns(item):
        values = columns.get(entry.stored)
        if isinstance(values, list):
            taken[entry.stored] = [values[place] for place in places.tolist()]
        elif values is not None:
            taken[entry.stored] = values.reshape(number, -1)[places].reshape(-1)
    return taken
