"""IndexedRows: records with stored features as tables in memory, of which a batch is taken by index.

A batch of stored features is little work for a network, so that work by record in Python would be most of a step. Here it is
done once for all records, by the collator itself, and a batch is a handful of array operations however many records it has.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import PreferenceBatch
from ..columns import column
from ..tokens import TokenRow
from .collate import PreferenceCollator
from .features import FeatureTable

__all__ = ["IndexedRows", "as_it_is"]

CHUNK = 1024
"""Records that the collator is given at a time."""
MIB = 2**20
MADE_ANEW = frozenset({"id", "response_row", "response_prompt", "comparisons", "domains_present"})
"""Entries that say where in a batch something is, or what is in it, and are no column of the tables."""
VECTORS = ("features", "prompt_features")

Integers = NDArray[np.int64]


class _Spans(NamedTuple):
    """Where the items of each record stand in a table of all items."""

    starts: Integers
    counts: Integers

    @classmethod
    def of(cls, counts: Integers) -> "_Spans":
        """Of a table that has them record after record."""
        return cls(np.cumsum(counts) - counts, counts)

    def take(self, records: Integers) -> "_Spans":
        """Of some records."""
        return _Spans(self.starts[records], self.counts[records])

    def items(self) -> Integers:
        """Places of all their items, record after record."""
        shift = self.starts - (np.cumsum(self.counts) - self.counts)
        return np.repeat(shift, self.counts) + np.arange(int(self.counts.sum()))


class _PlacesAlone(NamedTuple):
    """Stands for a feature store while the tables are made: in place of vectors their places."""

    has_prompts: bool

    def take(self, places: Integers) -> Tensor:
        return torch.from_numpy(places)


class IndexedRows(torch.utils.data.Dataset[PreferenceBatch]):
    """Batches of records, equal to what the collator makes of them; picklable.

    Attributes:
        sizes: As those of the records.
        held: Whether the vectors are in memory as well; elsewhere they are read from the store, which maps its files.
    """

    def __init__(self, rows: FeatureTable, collate: PreferenceCollator, *, memory: float) -> None:
        """Make the tables, and read the vectors if there is room for them.

        Args:
            rows: The records.
            collate: What a batch of them holds; without requests, whose responses may be shared.
            memory: MiB that the vectors may take, >= 0; a vector of several records is held once.
        """
        self.sizes: NDArray[np.int32] = rows.sizes
        self.store = rows.store
        of_places = collate.with_store(_PlacesAlone(self.store.has_prompts))
        parts = [of_places(some) for some in _chunks(rows)]
        self._responses = _Spans.of(rows.counts)
        self._comparisons: _Spans | None = None
        self._ids = np.asarray([name for part in parts for name in part["id"]], dtype=object)
        self._names = tuple(parts[0]) if parts else ()
        self._tables: dict[str, NDArray[Any]] = {
            name: np.concatenate([part[name].numpy() for part in parts])  # type: ignore[literal-required]
            for name in self._names
            if name not in MADE_ANEW
        }
        if "comparisons" in self._names:
            self._add_comparisons(parts)
        self._vectors: Tensor | None = None
        self._places: Integers | None = None
        self._hold(memory * MIB)

    def _add_comparisons(self, parts: list[PreferenceBatch]) -> None:
        """Keep comparisons as places within their own records."""
        responses, first = self._responses, 0
        pairs, records = [], []
        for part in parts:
            own = part["comparisons"].numpy()
            record = first + part["response_prompt"].numpy()[own[:, 0]]
            pairs.append(own + responses.starts[first] - responses.starts[record, None])
            records.append(record)
            first += len(part["id"])
        self._tables["comparisons"] = np.concatenate(pairs)
        counts = np.bincount(np.concatenate(records), minlength=len(responses.counts))
        self._comparisons = _Spans.of(counts.astype(np.int64))

    def _hold(self, limit: float) -> None:
        names = [name for name in VECTORS if name in self._tables]
        if not names:  # no records
            self.held = True
            return
        places = np.concatenate([self._tables[name] for name in names])
        different, index = np.unique(places, return_inverse=True)
        size = self.store.hidden_size * getattr(torch, self.store.dtype).itemsize
        self.held = len(different) * size <= limit
        if not self.held:
            return
        self._places = different
        bounds = np.cumsum([len(self._tables[name]) for name in names])[:-1]
        for name, part in zip(names, np.split(index, bounds), strict=True):
            self._tables[name] = part
        self._vectors = self.store.take(different)

    def __getstate__(self) -> dict[str, object]:
        """All but the vectors, which another process reads anew."""
        return {**vars(self), "_vectors": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the vectors."""
        vars(self).update(state)
        if self._places is not None:
            self._vectors = self.store.take(self._places)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.sizes)

    def __getitem__(self, records: list[int]) -> PreferenceBatch:
        """A batch of some of the records, at least one."""
        picked = np.asarray(records, dtype=np.int64)
        responses = self._responses.take(picked)
        index: dict[str, Integers] = {"record": picked, "response": responses.items()}
        prompt = torch.from_numpy(np.repeat(np.arange(len(picked)), responses.counts))
        pairs = None
        if self._comparisons is not None:
            comparisons = self._comparisons.take(picked)
            index["comparison"] = comparisons.items()
            firsts = _Spans.of(responses.counts).starts  # of each record's responses, in the batch
            own = self._tables["comparisons"][index["comparison"]]
            pairs = torch.from_numpy(own + np.repeat(firsts, comparisons.counts)[:, None])
        batch: dict[str, Any] = {}
        for name in self._names:
            if name == "id":
                batch[name] = self._ids[picked].tolist()
            elif name in ("response_row", "response_prompt"):
                batch[name] = prompt
            elif name == "comparisons":
                batch[name] = pairs
            elif name == "domains_present":
                batch[name] = batch["domain_id"].unique().tolist()
            elif name in VECTORS:
                batch[name] = self._take(self._tables[name][index[_item(name)]])
            else:
                batch[name] = torch.from_numpy(self._tables[name][index[_item(name)]])
        return cast(PreferenceBatch, batch)

    def _take(self, places: Integers) -> Tensor:
        if self._vectors is None:
            return self.store.take(places)
        return self._vectors.index_select(0, torch.from_numpy(places))


def _item(name: str) -> str:
    return "record" if name == "prompt_features" else column(name).item


def _chunks(rows: FeatureTable) -> Iterator[list[TokenRow]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[list(range(start, min(start + CHUNK, len(rows))))]


def as_it_is(batch: Any) -> Any:  # noqa: ANN401  a loader takes it for a collator of rows
    """A batch that is made already, for a loader that is to collate nothing."""
    return batch
