"""Invented data of stored_features.py: records of two responses with users or votes, and random vectors for them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.batches import FeatureWriter, response_keys
from pluralign.models import BackboneConfig

__all__ = ["HIDDEN", "PROTOTYPES", "REWARDS", "USERS", "Numbers", "backbone", "data_module", "numbers_of"]

HIDDEN, USERS, PROTOTYPES = 512, 200, 4
REWARDS = (1.0, 0.5, -1.0, -1.0, -1.5, -3.0)
VOTES = 5


class Numbers(NamedTuple):
    """What the hand-written side reads, by the number of a record: its responses stand one behind the other."""

    vectors: Tensor
    """(2 records, H) float16."""
    user: Tensor
    """(records,) int64."""
    shares: Tensor
    """(2 records, labels) float32."""
    users: int
    """Number of different users."""


def backbone() -> BackboneConfig:
    """The network that the vectors would be of; it is never loaded."""
    return BackboneConfig(name="invented", tokenizer="byte", frozen=True)


def _rows(method: str, records: int) -> Iterator[dict[str, object]]:
    draw = random.Random(0)
    for number in range(records):
        row: dict[str, object] = {"id": f"r{number}", "prompt": f"prompt {number}"}
        if method == "PAL":
            user = number if number < USERS else draw.randrange(USERS)  # in the order of their ids
            yield row | {"chosen": f"a {number}", "rejected": f"b {number}", "user": f"u{user}"}
        else:
            votes = [[draw.randrange(VOTES) + 1 for _ in REWARDS] for _ in range(2)]
            yield row | {"responses": [f"a {number}", f"b {number}"], "votes": votes}


def data_module(method: str, records: int, batch_size: int, folder: Path) -> LocalDataModule:
    """The data with their features, as ``loader.features`` reads them."""
    name = folder / f"{method}_{records}"
    train, held_out, store = (name.with_suffix(f".{end}") for end in ("jsonl", "held_out.jsonl", "features"))
    for path, number in (
        (train, records),
        (held_out, 1),
    ):  # nothing is validated, but there must be something to
        lines = (
            json.dumps(row | {"prompt": f"{path.name} {row['prompt']}"}) for row in _rows(method, number)
        )
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def module(features: str | None) -> LocalDataModule:
        loader = LoaderConfig(max_tokens=None, batch_size=batch_size, features=features)
        text = TextConfig(tokenizer="byte")
        return LocalDataModule(
            train=str(train),
            validation=str(held_out),
            text=text,
            cache_dir=str(folder / "cache"),
            loader=loader,
        )

    tokens = module(None)
    tokens.prepare_data()
    tokens.setup("fit")
    writer = FeatureWriter(
        store, backbone=backbone().description(), text_format=tokens.text_format(), hidden_size=HIDDEN
    )
    keys = [key for row in tokens.table("train").rows() for key in response_keys(row).tolist()]
    writer.add(keys, torch.randn(len(keys), HIDDEN, generator=torch.Generator().manual_seed(0)))
    writer.flush()
    return module(str(store))


def numbers_of(method: str, records: int, data: LocalDataModule) -> Numbers:
    """The same numbers as tables."""
    vectors = torch.randn(2 * records, HIDDEN, generator=torch.Generator().manual_seed(0)).half()
    rows = list(_rows(method, records))
    users = {name: place for place, name in enumerate(data.users)}
    user = torch.tensor([users[str(row["user"])] for row in rows]) if method == "PAL" else torch.empty(0)
    votes = (
        torch.tensor([row["votes"] for row in rows]) if method != "PAL" else torch.empty(0, 2, len(REWARDS))
    )
    votes = votes.flatten(0, 1).double()
    return Numbers(vectors, user, (votes / votes.sum(-1, keepdim=True)).float(), len(users))
