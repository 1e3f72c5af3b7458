"""Data of `ensemble_vote_rm.py`: pairs as files, the flips planted in them, and features that are stored once.

Each set of pairs is written as JSON Lines that `LocalDataModule` reads. Flips are part of the files: which pairs are turned round
follows from a seed and the pair's id alone, so that the truth is known by the record's key, and nothing in the package knows.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules import (
    HHRLHFDataModule,
    LoaderConfig,
    LocalDataModule,
    PreferenceBatch,
    PreferenceDataModule,
    TextConfig,
    TreatmentConfig,
    UKPConvArgDataModule,
)
from pluralign.datamodules.batches import FeatureWriter
from pluralign.datamodules.joins import batch_items
from pluralign.datamodules.records import Message, PreferenceRecord, RecordError, record_key
from pluralign.inference import embed_features
from pluralign.models import Backbone, BackboneConfig

__all__ = [
    "FLIPPED",
    "SPLITS",
    "Judged",
    "Pair",
    "PairSet",
    "Source",
    "arguments",
    "dialogues",
    "embed",
    "encoder_source",
    "excerpts",
    "is_flipped",
    "keys_of",
    "linear_pairs",
    "vectors",
    "word_pairs",
]

SPLITS = ("train", "validation", "test")
FLIPPED = 0.15
"""Share of the training pairs that are turned round."""
WORDS = [a + b for a in "bdfgklmnprst" for b in "aeio"]
"""Of the invented texts."""
WORDS_PER_TEXT = 6
LEAST_SPREAD = 0.03
"""Of the largest variance: the invented reward is of directions in which texts differ at least so much."""


class Pair(NamedTuple):
    """Two responses of which the first is the better one, as far as the data know."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    share: float = 1.0
    """Of the annotators who are on the side of the label; 1 where nobody counted."""


PairSet = dict[str, list[Pair]]
"""Pairs of each split."""


def is_flipped(pair: Pair, seed: int) -> bool:
    """Whether a pair is turned round: by a hash of its id, and by nothing that a reward model could read."""
    digest = hashlib.blake2b(f"{seed}:{pair.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < FLIPPED * 2**64


# Sets of pairs -------------------------------------------------------------------------------------------


def word_pairs(sizes: dict[str, int]) -> PairSet:
    """Invented texts in pairs, which mean nothing yet: each of some words drawn at random.

    Args:
        sizes: Pairs of each split.
    """
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=WORDS_PER_TEXT))

    return {
        split: [Pair(f"{split}-{i}", f"{split[:2]}{i}", text(), text()) for i in range(size)]
        for split, size in sizes.items()
    }


def linear_pairs(pairs: PairSet, vectors: dict[str, Tensor], seed: int) -> PairSet:
    """The same pairs, the better first by a reward that is linear in vectors of the texts.

    Args:
        pairs: Of the texts.
        vectors: Of each split, of first and second text, (P, 2, H).
        seed: Of the reward, which is drawn in the directions that the texts differ most in.
    """
    gaps = {split: (each[:, 0] - each[:, 1]).double() for split, each in vectors.items()}
    spread, axes = torch.linalg.eigh(torch.cov(gaps["train"].T))
    wide = spread > spread.max() * LEAST_SPREAD
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(int(wide.sum()), dtype=torch.float64, generator=generator)
    direction = axes[:, wide] @ weights
    found = {}
    for split, those in pairs.items():
        first = ((gaps[split] @ direction) > 0).tolist()
        found[split] = [
            pair if better else pair._replace(chosen=pair.rejected, rejected=pair.chosen)
            for pair, better in zip(those, first, strict=True)
        ]
    return found


def real_pairs(data: PreferenceDataModule) -> PairSet:
    """Pairs of a data set, the one that more annotators prefer first; ties and pairs of equal texts are left out."""
    found: PairSet = {split: [] for split in SPLITS}
    for source in data.sources:
        for row in data.load(source):
            try:
                if isinstance(row, RecordError):
                    continue
                record = data.to_example(row)
            except RecordError:
                continue
            found[data.route(record, source)] += record_pairs(record)
    return found


def record_pairs(record: PreferenceRecord) -> list[Pair]:
    """Pairs of one record."""
    prompt = record.prompt if isinstance(record.prompt, str) else _dialogue(record.prompt)
    texts, pairs = [response.text for response in record.responses], []
    for number, comparison in enumerate(record.comparisons):
        first, second, share = texts[comparison.chosen], texts[comparison.rejected], comparison.preference
        if share == 0.5 or first == second:
            continue
        if share < 0.5:
            first, second, share = second, first, 1 - share
        pairs.append(Pair(f"{record.id}#{number}", prompt, first, second, share))
    return pairs


def _dialogue(turns: Sequence[Message]) -> str:
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def arguments(data_dir: Path) -> PairSet:
    """Of UKPConvArg1, single pairs held out."""
    return real_pairs(UKPConvArgDataModule(data_dir=str(data_dir / "ukpconvarg1"), split="pairs"))


SPEAKERS = ("Human:", "Assistant:")


def dialogues(data_dir: Path) -> PairSet:
    """Of HH-RLHF, helpful-base alone: what is harmless is another taste."""
    data = HHRLHFDataModule(
        data_dir=str(data_dir / "hh-rlhf"),
        subsets=("helpful-base",),
        validation_share=0.1,
    )
    # A text that begins with a speaker would be read as a whole conversation of a row of ours.
    return {
        split: [
            pair
            for pair in those
            if not pair.chosen.startswith(SPEAKERS) and not pair.rejected.startswith(SPEAKERS)
        ]
        for split, those in real_pairs(data).items()
    }


def excerpts(pairs: PairSet, words: int) -> PairSet:
    """The end of each prompt and the beginning of each response; pairs whose beginnings are equal are left out.

    Args:
        pairs: Whole ones.
        words: Kept of each text.
    """

    def beginning(text: str) -> str:
        return " ".join(text.split()[:words])

    found: PairSet = {}
    for split, those in pairs.items():
        short = [
            pair._replace(
                prompt=" ".join(pair.prompt.split()[-words:]),
                chosen=beginning(pair.chosen),
                rejected=beginning(pair.rejected),
            )
            for pair in those
        ]
        found[split] = [pair for pair in short if pair.chosen != pair.rejected]
    return found


# Files and features --------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """Comparisons of a split with their true labels, P of them, and the batches that hold them in this order."""

    batches: list[PreferenceBatch]
    key: Tensor
    """(P,) int64: of the pair's row, whatever split it is in."""
    prompt: Tensor
    """(P,) int64: what is drawn where intervals are over prompts."""


@dataclass(frozen=True)
class Source:
    """How pairs are read: as tokens, or as stored features.

    Attributes:
        folder: For files and caches.
        text: How text becomes tokens.
        features: Folder of the store; None for tokens.
        batch_size: Records of a batch.
        items: What features are of.
    """

    folder: Path
    text: TextConfig
    features: Path | None
    batch_size: int
    items: Literal["conversation", "response"] = "conversation"

    def write(self, name: str, pairs: PairSet, seed: int | None = None) -> Path:
        """Write files of each split, the training pairs with flips.

        Args:
            name: Of the files' folder.
            pairs: As they truly are.
            seed: Of the flips; None plants none.
        """
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, those in pairs.items():
            lines = []
            for pair in those:
                turned = seed is not None and split == "train" and is_flipped(pair, seed)
                sides = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
                row = {"id": pair.id, "prompt": pair.prompt, "chosen": sides[0], "rejected": sides[1]}
                lines.append(json.dumps(row))
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    def data(
        self, files: Path, *, seed: int = 0, treatments: TreatmentConfig | None = None
    ) -> LocalDataModule:
        """A data module over such files.

        Args:
            files: Folder that :meth:`write` wrote.
            seed: Of the order of training.
            treatments: Of the training labels.
        """
        loader = LoaderConfig(
            batch_size=self.batch_size,
            max_tokens=None,
            seed=seed,
            features=None if self.features is None else str(self.features),
            items="conversation" if self.features is None else self.items,
            treatments=treatments,
        )
        return LocalDataModule(
            **{split: str(files / f"{split}.jsonl") for split in SPLITS},
            text=self.text,
            loader=loader,
            cache_dir=str(self.folder / "cache"),
        )

    def judged(self, files: Path, split: str) -> Judged:
        """Comparisons of a split, read once."""
        data = self.data(files)
        data.setup("validate" if split == "validation" else split)
        return judged(data, split)


def judged(data: PreferenceDataModule, split: str) -> Judged:
    """Comparisons of a split of data that are set up."""
    batches, keys, prompts = [], [], []
    for batch in data.batches(split, shuffle=False):
        batches.append(batch)
        keys.append(batch_items(batch, "comparison")[0])
        prompts.append(batch["record_key"][batch["response_prompt"][batch["comparisons"][:, 0]]])
    return Judged(batches, torch.cat(keys), torch.cat(prompts))


def keys_of(pairs: Sequence[Pair], split: str) -> list[int]:
    """Keys by which votes and batches name pairs."""
    return [record_key("local", split, pair.id) for pair in pairs]


def embed(source: Source, data: PreferenceDataModule, config: BackboneConfig) -> None:
    """Store features of every response of some data, as far as they are not there yet.

    Args:
        source: Whose store it is.
        data: The data; read as tokens.
        config: The encoder.
    """
    assert source.features is not None
    data.loader = replace(data.loader, features=None, items=source.items)
    backbone = Backbone(config)
    writer = FeatureWriter(
        source.features,
        backbone=config.description(),
        text_format=data.text_format(),
        hidden_size=backbone.hidden_size,
        dtype="float32",
    )
    for _ in embed_features(data, backbone, writer, layout=backbone.layout):
        pass


def vectors(source: Source, files: Path) -> dict[str, Tensor]:
    """Stored features of both sides of every pair, in the order of the files, (P, 2, H)."""
    data = source.data(files)
    data.setup()
    found = {}
    for split in SPLITS:
        rows: dict[int, Tensor] = {}
        for batch in data.batches(split, shuffle=False):
            keys = batch_items(batch, "comparison")[0].tolist()
            rows |= dict(zip(keys, batch["features"][batch["comparisons"]], strict=True))
        lines = (files / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        keys = [record_key("local", split, json.loads(line)["id"]) for line in lines]
        found[split] = torch.stack([rows[key] for key in keys])
    return found


def encoder_source(folder: Path, encoder: str, batch_size: int) -> Source:
    """Real texts as features of a frozen sentence encoder."""
    text = TextConfig(tokenizer=encoder, max_length=256, prompt_format="{text}\n", response_format="{text}")
    return Source(folder, text, folder / "features", batch_size, "response")
