"""Stored features: what a frozen backbone says of every response and prompt, computed once, then memory-mapped.

A store is a folder of shards and a description. A vector is found by the hash of the *token sequence* it belongs
to (prompt and response, or the prompt alone), not by a place in a dataset: another split, other judgements or
another order of the same texts find theirs again, a text that changed does not. The description holds what the
vectors depend on beside the tokens: the backbone's weights, dtype and pooling, and the tokenizer.

Files::

    meta.json          description of backbone and text format; dtype; size of a vector
    <shard>.npy        vectors of a shard, (n, H); bfloat16 is stored as uint16
    <shard>.keys.npy   their keys, (n,) uint64; written after the vectors, so a shard with keys is complete

A shard is named by a hash of its keys, written under a temporary name and renamed: a killed run leaves whole shards
behind and goes on from them, and two runs that write at the same time do not get in each other's way.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_choices, check_range
from ..tokens import ComparisonView, RecordTable, TokenRow, prompt_alone, without_prompt
from ..untrusted import json_object, read_array
from ..whole_files import written_whole

__all__ = ["FeatureDtype", "FeatureStore", "FeatureTable", "FeatureWriter", "prompt_key", "response_keys"]

VERSION = 1
"""Counts up when the files' content changes."""

FeatureDtype = Literal["float32", "float16", "bfloat16"]
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}

Keys = NDArray[np.uint64]
Places = NDArray[np.int64]

KEYS = ".keys.npy"
SETTING = "--output (data.cache_dir of data that bring their features)"
"""What names another place for a store."""
ANEW = "the store is damaged, embed anew into another folder"


def _load(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    try:
        return read_array(path, mapped=mapped)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {ANEW}") from error


def _of_kind(meta: dict[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401  whatever the file has
    """What a description says, if it is of its kind."""
    if type(meta[name]) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {meta[name]!r:.80}")
    return meta[name]


def _shard_name(keys: Keys) -> str:
    return blake2b(keys.tobytes(), digest_size=8).hexdigest()


def _key(tokens: NDArray[np.int32]) -> int:
    # 64 bits: among ten million sequences two collide with a chance of about 3 in a million.
    return int.from_bytes(blake2b(tokens.tobytes(), digest_size=8).digest(), "little")


def response_keys(row: TokenRow) -> Keys:
    """Keys of a record's responses: each one's tokens together with its prompt's, (k,)."""
    ends = np.cumsum(row.lengths).tolist()
    prefix = blake2b(row.tokens[: ends[0]].tobytes(), digest_size=8)
    keys = []
    for start, stop in pairwise(ends):
        both = prefix.copy()
        both.update(row.tokens[start:stop].tobytes())
        keys.append(int.from_bytes(both.digest(), "little"))
    return np.asarray(keys, dtype=np.uint64)


def prompt_key(row: TokenRow) -> int:
    """Key of the prompt alone."""
    return _key(prompt_alone(row).tokens)


class FeatureStore:
    """A folder of features, memory-mapped; picklable: a worker process maps it anew.

    Attributes:
        folder: Where it lies.
        backbone: Description of the network the vectors come from.
        text_format: Description of the format the texts were in.
        hidden_size: H.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        has_prompts: Whether prompts were embedded as well.
        added: Where more of the same lie; None for nowhere.
    """

    def __init__(self, folder: str | Path, *, added: Path | None = None) -> None:
        """Read the description and the keys.

        Args:
            folder: A folder that ``pluralign embed`` wrote.
            added: Folder of further vectors of the same description, which the store lacks.

        Raises:
            FileNotFoundError: If there is no store, saying how to make one.
            ValueError: If the store was written by another version or is damaged.
        """
        self.folder = Path(folder)
        path = self.folder / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"loader.features={str(folder)!r} holds no feature store (looked for {path.absolute()}): write one with "
                "`pluralign embed` and the same configuration, or set loader.features to null"
            )
        try:
            meta = json_object(path)
            version = meta["version"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): {ANEW}") from error
        if version != VERSION:
            raise ValueError(
                f"{path} has version {version!r}, this program reads {VERSION}: embed anew into another folder"
            )
        try:
            self.backbone: dict[str, object] = _of_kind(meta, "backbone", dict)
            self.text_format: dict[str, object] = _of_kind(meta, "text_format", dict)
            self.hidden_size: int = _of_kind(meta, "hidden_size", int)
            self.dtype: FeatureDtype = meta["dtype"]
            self.has_prompts: bool = _of_kind(meta, "prompts", bool)
            if not isinstance(self.dtype, str) or self.dtype not in STORED:
                raise ValueError(f"dtype must be one of {', '.join(STORED)}, got {self.dtype!r}")
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): {ANEW}") from error
        self.added = added
        folders = [self.folder] if added is None else [self.folder, added]
        self._open(
            [
                path.with_name(path.name.removesuffix(KEYS))
                for each in folders
                for path in sorted(each.glob(f"*{KEYS}"))
            ]
        )

    def _open(self, stems: list[Path]) -> None:
        self._stems = stems
        keys = [_load(stem.with_name(f"{stem.name}{KEYS}")) for stem in stems]
        self._shards = [_load(stem.with_name(f"{stem.name}.npy"), mapped=True) for stem in stems]
        for stem, shard, own in zip(stems, self._shards, keys, strict=True):
            if own.dtype != np.uint64 or own.ndim != 1 or _shard_name(own) != stem.name:
                raise ValueError(f"{stem}{KEYS} holds other keys than were written: {ANEW}")
            if shard.shape != (len(own), self.hidden_size) or shard.dtype != STORED[self.dtype]:
                raise ValueError(
                    f"{stem}.npy holds {shard.shape} {shard.dtype}, but its keys and meta.json say "
                    f"{(len(own), self.hidden_size)} {self.dtype}: {ANEW}"
                )
        self._starts = np.cumsum([0, *(len(own) for own in keys)])
        everything = np.concatenate([*keys, np.empty(0, np.uint64)]).astype(np.uint64)
        self._order = np.argsort(everything, kind="stable")
        self._keys = everything[self._order]

    def __getstate__(self) -> dict[str, object]:
        """All but the vectors, which are mapped, and the keys."""
        return {
            name: value for name, value in vars(self).items() if name not in ("_shards", "_keys", "_order")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the same shards: one that was written meanwhile would change the places of all others."""
        vars(self).update(state)
        self._open(self._stems)

    def __contains__(self, key: object) -> bool:
        """Whether there is a vector of a key."""
        return isinstance(key, int) and bool(self.find(np.asarray([key], dtype=np.uint64))[0] >= 0)

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._keys)

    def keys(self) -> Keys:
        """Every key, ascending."""
        return self._keys

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Places of keys, (n,); -1 where there is no vector."""
        keys = np.asarray(keys, dtype=np.uint64)
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """Vectors at ``places``, (n, H) in the stored dtype; zeros for -1."""
        out = np.zeros((len(places), self.hidden_size), dtype=STORED[self.dtype])
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(shard_of[places >= 0]).tolist():
            mine = np.flatnonzero(shard_of == number)
            out[mine] = self._shards[number][places[mine] - self._starts[number]]
        vectors = torch.from_numpy(out)
        return vectors.view(torch.bfloat16) if self.dtype == "bfloat16" else vectors

    def check_tokenizer(self, text_format: Mapping[str, object]) -> None:
        """Refuse text in other tokens than the store's: none of it could be found.

        Raises:
            ValueError: Naming both tokenizers.
        """
        if text_format["tokenizer_digest"] != self.text_format.get("tokenizer_digest"):
            raise ValueError(
                f"the features in {self.folder} were made with the tokenizer {self.text_format.get('tokenizer')!r}, the data "
                f"use {text_format['tokenizer']!r}: set text.tokenizer (or the backbone) to the store's, or embed anew"
            )

    def check_backbone(self, description: Mapping[str, object]) -> None:
        """Refuse a backbone that would have given other vectors.

        Args:
            description: What :meth:`pluralign.models.BackboneConfig.description` says of it.

        Raises:
            ValueError: Naming every field that differs, with both values.
        """
        description = json.loads(json.dumps(description))  # as the store's own went through a file
        names = sorted({*description, *self.backbone})
        different = [name for name in names if description.get(name) != self.backbone.get(name)]
        if different:
            detail = "; ".join(
                f"{name}: the store has {self.backbone.get(name)!r}, the model {description.get(name)!r}"
                for name in different
            )
            raise ValueError(
                f"the features in {self.folder} are of another backbone ({detail}): set the model's backbone to the "
                "store's, or embed anew into another folder"
            )


class FeatureTable(torch.utils.data.Dataset[list[TokenRow]]):
    """Records of a split with the places of their features; what a loader reads in place of tokens."""

    def __init__(
        self,
        table: RecordTable | ComparisonView,
        store: FeatureStore,
        split: str,
        *,
        items: Literal["conversation", "response"] = "conversation",
    ) -> None:
        """Find every response and prompt of the split.

        Args:
            table: The tokenised records.
            store: Where the features are.
            split: Name of the split, for messages.
            items: Whether features of prompt and response together are read, or of the response alone.

        Raises:
            ValueError: If responses have no features, saying how many, the first of them and the usual causes.
        """
        self.table, self.store = table.without_tokens(), store
        self.counts = np.asarray(table.sizes)[:, 0].astype(np.int64)
        self._ends = np.cumsum(self.counts)
        keys, prompts = [], []
        for row in table.rows():
            keys.append(response_keys(row if items == "conversation" else without_prompt(row)))
            if store.has_prompts:
                prompts.append(prompt_key(row))
        self.places = store.find(np.concatenate([*keys, np.empty(0, np.uint64)]))
        self._check(
            "responses", split, store, self.places, np.repeat(np.arange(len(self.counts)), self.counts)
        )
        self.prompt_places = np.full(len(self.counts), -1, dtype=np.int64)
        if store.has_prompts:
            self.prompt_places = store.find(np.asarray(prompts, dtype=np.uint64))
            self._check("prompts", split, store, self.prompt_places, np.arange(len(self.counts)))
        # A response costs what it holds, one vector: so loader.max_tokens bounds responses here.
        ones = np.ones_like(self.counts)
        self.sizes = np.stack([self.counts, 0 * ones, self.counts, ones], axis=1).astype(np.int32)

    def _check(self, what: str, split: str, store: FeatureStore, places: Places, record_of: Places) -> None:
        missing = np.flatnonzero(places < 0)
        if len(missing):
            first = self.table[[int(record_of[missing[0]])]][0].id
            raise ValueError(
                f"{len(missing):,} of {len(places):,} {what} of the {split} split have no features in {store.folder} "
                f"(first: of record {first!r}): the data, or text.prompt_format, response_format, max_length, truncation "
                "or loader.items, are not those it was written with; run `pluralign embed` again, which adds what is "
                "missing"
            )

    def __len__(self) -> int:
        """Number of records."""
        return len(self.counts)

    def __getitem__(self, rows: list[int]) -> list[TokenRow]:
        """Read several records at once."""
        ends, prompts = self._ends[rows], self.prompt_places[rows].tolist()
        spans = zip((ends - self.counts[rows]).tolist(), ends.tolist(), prompts, strict=True)
        return [
            row._replace(places=self.places[start:stop], prompt_place=prompt)
            for row, (start, stop, prompt) in zip(self.table[rows], spans, strict=True)
        ]


class FeatureWriter:
    """Add vectors to a store, shard by shard; goes on where a killed run stopped."""

    def __init__(
        self,
        folder: str | Path,
        *,
        backbone: Mapping[str, object],
        text_format: Mapping[str, object],
        hidden_size: int,
        dtype: FeatureDtype = "float16",
        prompts: bool = False,
        shard_size: int = 65_536,
    ) -> None:
        """Open a store for writing, or make one.

        Args:
            folder: Where it lies or will lie.
            backbone: Description of the network.
            text_format: Description of the format.
            hidden_size: H.
            dtype: Of the stored vectors.
            prompts: Whether prompts get vectors as well.
            shard_size: Vectors of a shard, >= 1: what a killed run loses at most.

        Raises:
            ValueError: If a store of another backbone, tokenizer, dtype or size is there, or a setting is off range.
        """
        check_choices(FeatureWriter.__init__, dtype=dtype)
        check_range("shard_size", shard_size, at_least=1)
        self.folder, self.shard_size, self.hidden_size = Path(folder), shard_size, hidden_size
        self.dtype: FeatureDtype = dtype
        description: dict[str, object] = {"version": VERSION, "backbone": dict(backbone)}
        description |= {"text_format": dict(text_format), "hidden_size": hidden_size, "dtype": dtype}
        self._known: set[int] = set()
        if (self.folder / "meta.json").is_file():
            there = FeatureStore(self.folder)
            if len(there):  # a run that stopped at once binds nobody
                self._check(there, backbone, text_format)
            self._known = set(there.keys().tolist())
            prompts = prompts or there.has_prompts
        self.prompts = prompts
        with written_whole(self.folder / "meta.json", setting=SETTING) as stream:
            stream.write(json.dumps({**description, "prompts": prompts}, indent=1).encode())
        self._keys: list[Keys] = []
        self._vectors: list[Tensor] = []
        self._waiting = 0

    def _check(
        self, there: FeatureStore, backbone: Mapping[str, object], text_format: Mapping[str, object]
    ) -> None:
        there.check_backbone(backbone)
        there.check_tokenizer(text_format)
        for name, before, now in (
            ("dtype", there.dtype, self.dtype),
            ("hidden_size", there.hidden_size, self.hidden_size),
        ):
            if before != now:
                raise ValueError(
                    f"{self.folder} holds vectors of {name} {before}, not {now}: go on with {before}, or embed into "
                    "another folder"
                )

    def __contains__(self, key: object) -> bool:
        """Whether a key's vector is there or on its way."""
        return key in self._known

    def __len__(self) -> int:
        """Number of vectors, with those not yet in a shard."""
        return len(self._known)

    def add(self, keys: Sequence[int], vectors: Tensor) -> None:
        """Add vectors whose keys are new; known ones are left out.

        Args:
            keys: (n,).
            vectors: (n, H), of any float dtype, on any device.

        Raises:
            ValueError: If a vector is not finite in the stored dtype, or there are not as many as keys.
        """
        if vectors.shape != (len(keys), self.hidden_size):
            raise ValueError(
                f"{len(keys)} keys need vectors of shape {(len(keys), self.hidden_size)}, got {tuple(vectors.shape)}"
            )
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        if not first:
            return
        fresh = list(first.values())
        kept = (
            vectors.detach()[torch.tensor(fresh, device=vectors.device)].to(getattr(torch, self.dtype)).cpu()
        )
        if not bool(kept.isfinite().all()):
            raise ValueError(
                f"features are not finite as {self.dtype}: store them as bfloat16 or float32, and look whether the "
                "backbone's own dtype overflows"
            )
        self._known.update(first)
        self._keys.append(np.asarray(list(first), dtype=np.uint64))
        self._vectors.append(kept)
        self._waiting += len(fresh)
        if self._waiting >= self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard.

        Raises:
            OSError: If the disk does not take it; it goes on waiting.
        """
        if not self._waiting:
            return
        vectors = torch.cat(self._vectors).contiguous()
        array = (vectors.view(torch.uint16) if self.dtype == "bfloat16" else vectors).numpy()
        keys = np.concatenate(self._keys)
        stem = self.folder / _shard_name(keys)
        for path, content in ((stem.with_suffix(".npy"), array), (stem.with_suffix(KEYS), keys)):
            with written_whole(path, setting=SETTING) as stream:
                _save(stream, content)
        self._keys, self._vectors, self._waiting = [], [], 0


def _save(stream: BinaryIO, array: NDArray[Any]) -> None:
    """What ``np.save`` writes; that one writes past the stream, and may not say that a disk is full."""
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    stream.write(array.reshape(-1).view(np.uint8).data)
