"""PreferenceCollator: rows of the token cache (or of a feature store) become one :class:`PreferenceBatch`."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import PreferenceBatch
from ..columns import Column, Item, optional_columns
from ..crowd import CrowdConfig, ItemPriors, crowd_batch_target
from ..joins import SideTable
from ..tokens import TokenRow, prompt_alone, without_prompt
from ..treatments import TreatmentConfig, treated_batch
from .features import FeatureStore
from .requests import scored_rows

__all__ = ["PreferenceCollator"]

Integers = NDArray[np.int64]
Items = tuple[list[str], Integers, Integers]
"""Items of a record: id and key of the row of the data that each is of, and its place there."""

ORIGIN = {
    "response": ("response_key", "response_place"),
    "comparison": ("comparison_key", "comparison_place"),
}
"""Where an item comes from, where rows of the data were merged."""

TARGETS = {
    "votes": ("target", "target_votes", "prior"),
    "comparison_votes": ("comparison_target", "comparison_target_votes", "comparison_prior"),
}
"""Of each column of votes: what is learned, how many votes it is worth, and the column of the data's own priors."""


class PreferenceCollator:
    """Build prefix-shared (or separate) rows and the index tables beside them; picklable.

    Two prompts, the first with responses ``[7, 8, 2]`` and ``[9, 2]`` after the prefix ``[5, 6]``, the second
    with one response ``[4, 2]`` after ``[3]``, give in the shared layout::

        input_ids     [[5, 6, 7, 8, 2, 9, 2], [3, 4, 2, 0, 0, 0, 0]]
        position_ids  [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 0, 0, 0, 0]]
        segment_ids   [[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, -1, -1, -1, -1]]
        response_row  [0, 0, 1]
        response_end  [4, 6, 2]

    and in the separate layout three rows, ``[5, 6, 7, 8, 2]``, ``[5, 6, 9, 2]`` and ``[3, 4, 2]``, each with
    segments 0 and 1.
    """

    def __init__(
        self,
        *,
        layout: str = "shared",
        present: Iterable[str] = (),
        names: Mapping[str, Sequence[str]] | None = None,
        categories: Mapping[str, int] | None = None,
        store: FeatureStore | None = None,
        items: str = "conversation",
        prompts: bool = False,
        crowd: CrowdConfig = CrowdConfig(),
        priors: Mapping[str, ItemPriors] | None = None,
        joins: Iterable[SideTable] = (),
        requests: bool = False,
        treatments: TreatmentConfig | None = None,
    ) -> None:
        """Fix what every batch will hold, so that all batches have the same keys.

        Args:
            layout: ``shared`` or ``separate``.
            present: Optional columns that some record of the data has; ``comparisons`` among them gives a batch
                of records without any the keys all the same, with no pairs in them.
            names: What names are indices of, by stored column: a judge who is not among ``user`` gets -1.
            categories: Number of vote categories of ``votes`` and ``comparison_votes``.
            store: Where features come from; batches then hold them in place of tokens.
            items: ``conversation``, or ``response`` for tokens of the responses without their prompts.
            prompts: Whether batches of tokens hold the prompts as rows of their own, too.
            crowd: How votes become the distribution that is learned.
            priors: What is expected before the votes, for ``votes`` and ``comparison_votes``.
            joins: Side tables, whose values go before those of the data.
            requests: Whether batches say whose reward of each response is asked for; equal responses of records that
                stand together are then scored once.
            treatments: What is done to the comparisons of rows that say which rule covers each.

        Raises:
            ValueError: If the layout is unknown.
        """
        if layout not in ("shared", "separate"):
            raise ValueError(f"layout must be shared or separate, got {layout!r}")
        self.joins = {table.column: table for table in joins}
        self.layout, self.present = layout, frozenset(present) | self.joins.keys()
        self.categories = dict(categories or {})
        self.names = {
            column: {name: i for i, name in enumerate(values)} for column, values in (names or {}).items()
        }
        self.store, self.crowd, self.priors = store, crowd, dict(priors or {})
        self.items, self.prompts, self.requests, self.treatments = items, prompts, requests, treatments

    def __call__(self, rows: Sequence[TokenRow]) -> PreferenceBatch:
        """Build one batch.

        Args:
            rows: Records as the cache holds them, at least one.

        Returns:
            The batch, on the CPU.
        """
        scored, records, where = scored_rows(rows, merge=self.requests)
        counts = np.asarray([len(row.response_index) for row in scored])
        if self.store is not None:
            batch = self._features(scored, counts)
            if self.store.has_prompts:
                batch["prompt_features"] = self.store.take(np.asarray([row.prompt_place for row in rows]))
        else:
            texts = scored if self.items == "conversation" else [without_prompt(row) for row in scored]
            batch = self._tokens(texts)
            if self.prompts:
                batch["prompts"] = self._tokens([prompt_alone(row) for row in rows])
        batch["id"] = [row.id for row in rows]
        batch["record_key"] = torch.tensor([row.record_key for row in rows], dtype=torch.int64)
        batch["split_key"] = torch.tensor([row.split_key for row in rows], dtype=torch.int64)
        batch["response_prompt"] = torch.from_numpy(np.repeat(records, counts))
        batch["response_length"] = _integers([row.lengths[1:] for row in scored])
        batch["response_index"] = _integers([row.response_index for row in scored])
        self._add_columns(batch, rows, "record")
        self._add_columns(batch, scored, "response")
        if self.requests:
            batch["request_response"] = torch.from_numpy(np.concatenate(where))
            batch["request_prompt"] = torch.from_numpy(np.repeat(np.arange(len(rows)), [*map(len, where)]))
            batch["request_index"] = _integers([row.response_index for row in rows])
            self._add_columns(batch, rows, "request")
        if "comparisons" in self.present or any(len(row.comparisons) for row in rows):
            pairs = [places[row.comparisons] for row, places in zip(rows, where, strict=True)]
            batch["comparisons"] = torch.from_numpy(np.concatenate(pairs))
            batch["comparison_index"] = _integers([row.comparison_index for row in rows])
            if self.requests:
                numbers = [len(row.comparisons) for row in rows]
                batch["comparison_prompt"] = torch.from_numpy(np.repeat(np.arange(len(rows)), numbers))
            batch["preference"] = torch.from_numpy(np.concatenate([row.preference for row in rows]))
            self._add_columns(batch, rows, "comparison")
            if self.treatments is not None:
                batch = treated_batch(batch, rows, self.treatments)
            if "domain_id" in batch:
                batch["domains_present"] = batch["domain_id"].unique().tolist()
        return batch

    def _add_columns(self, batch: PreferenceBatch, rows: Sequence[TokenRow], item: Item) -> None:
        """Add what the data have of every item, and, of merged rows, where it comes from; of votes, the target as well."""
        items = [row.items_of(item) for row in rows]
        if item in ORIGIN and "merged_id" in self.present:
            for name, parts in zip(ORIGIN[item], list(zip(*items, strict=True))[1:], strict=True):
                batch[name] = torch.from_numpy(np.concatenate(parts))  # type: ignore[literal-required]
        values = {
            entry.stored: self._values(entry, rows, items)
            for entry in optional_columns(item)
            if entry.stored in self.present and (entry.in_batch or entry.kind == "counts")
        }
        for entry in optional_columns(item):
            if entry.stored in values and entry.in_batch:
                batch[entry.name] = values[entry.stored]  # type: ignore[literal-required]
        for votes, (target, weight, prior) in TARGETS.items():
            if votes in values:
                names = [pair for ids, _, at in items for pair in zip(ids, at.tolist(), strict=True)]
                batch[target], batch[weight] = self._target(votes, values[votes], names, values.get(prior))  # type: ignore[literal-required]

    def _values(self, entry: Column, rows: Sequence[TokenRow], items: Sequence[Items]) -> Tensor:
        """A column over all rows, ``missing`` where a record lacks it: (n,), or (n, C) of counts."""
        parts = [row.columns.get(entry.stored) for row in rows]
        counts = [len(places) for _, _, places in items]
        if entry.kind == "name":
            return _names(parts, counts, self.names.get(entry.names or entry.stored, {}))
        width = self.categories[entry.votes] if entry.kind == "counts" else 0
        values = _floats(parts, counts, entry.missing, width)
        if entry.stored in self.joins:
            keys, places = (np.concatenate([part[i] for part in items]) for i in (1, 2))
            values = self.joins[entry.stored].join(values, keys, places)
        return values

    def _features(self, rows: Sequence[TokenRow], counts: Integers) -> PreferenceBatch:
        assert self.store is not None  # the caller looked
        places = [row.places for row in rows if row.places is not None]
        return PreferenceBatch(
            features=self.store.take(np.concatenate(places)),
            response_row=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )

    def _target(
        self, name: str, votes: Tensor, places: Sequence[tuple[str, int]], own: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Distribution to learn and its weight in votes; NaN and 0 for an item without votes and prior."""
        prior = self.priors[name].of(places) if name in self.priors else None
        if own is not None:  # a record's own prior goes before the general one
            general = torch.zeros_like(own) if prior is None else prior.to(own)
            prior = torch.where(own.sum(-1, keepdim=True) > 0, own, general)
        return crowd_batch_target(votes, self.crowd, prior)

    def _tokens(self, rows: Sequence[TokenRow]) -> PreferenceBatch:
        pieces = (
            [_shared(row) for row in rows]
            if self.layout == "shared"
            else [p for row in rows for p in _separate(row)]
        )
        length = max(len(piece[0]) for piece in pieces)
        ids = np.zeros((len(pieces), length), dtype=np.int64)
        positions = np.zeros_like(ids)
        segments = np.full_like(ids, -1)
        response_row, response_end = [], []
        for i, (tokens, lengths) in enumerate(pieces):
            size, prefix = len(tokens), int(lengths[0])
            ids[i, :size] = tokens
            segments[i, :size] = np.repeat(np.arange(len(lengths)), lengths)
            starts = np.cumsum(lengths) - lengths
            starts[1:] -= prefix  # a response's positions go on where the prefix ends
            positions[i, :size] = np.arange(size) - np.repeat(starts, lengths)
            response_row.append(np.full(len(lengths) - 1, i))
            response_end.append(np.cumsum(lengths)[1:] - 1)
        return PreferenceBatch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions),
            segment_ids=torch.from_numpy(segments),
            row_lengths=[len(tokens) for tokens, _ in pieces],
            segment_lengths=[lengths.tolist() for _, lengths in pieces],
            response_row=torch.from_numpy(np.concatenate(response_row)),
            response_end=torch.from_numpy(np.concatenate(response_end)),
        )


def _shared(row: TokenRow) -> tuple[NDArray[np.int32], Integers]:
    return row.tokens, row.lengths.astype(np.int64)


def _separate(row: TokenRow) -> list[tuple[NDArray[np.int32], Integers]]:
    ends = np.cumsum(row.lengths)
    prefix = row.tokens[: ends[0]]
    return [
        (
            np.concatenate([prefix, row.tokens[start:stop]]),
            np.asarray([len(prefix), stop - start], dtype=np.int64),
        )
        for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]


def _integers(parts: Sequence[NDArray[np.int32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _floats(
    parts: Sequence[NDArray[np.float32] | list[str | None] | None],
    counts: Sequence[int],
    missing: float | None,
    width: int,
) -> Tensor:
    """Numbers of all rows, one after the other, ``missing`` where a row has none; (n,) or (n, width)."""
    filled = [
        np.full(count * max(1, width), missing) if part is None else np.asarray(part)
        for part, count in zip(parts, counts, strict=True)
    ]
    flat = torch.from_numpy(np.concatenate(filled).astype(np.float32))
    return flat.reshape(-1, width) if width else flat


def _names(
    parts: Sequence[NDArray[np.float32] | list[str | None] | None],
    counts: Sequence[int],
    index: Mapping[str, int],
) -> Tensor:
    """Indices of the names of all rows; -1 for unknown ones."""
    indices: list[int] = []
    for part, count in zip(parts, counts, strict=True):
        # A judge may well be called "None": an unknown one is told by its type.
        names = [None] * count if part is None else part
        indices += [-1 if name is None else index.get(str(name), -1) for name in names]
    return torch.tensor(indices, dtype=torch.int64)
