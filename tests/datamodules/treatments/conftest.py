"""Data with strengths of their own, and votes on them."""

import json

import numpy as np
import pytest

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig, TreatmentConfig
from pluralign.datamodules.votes import VoteFolder, VoteShard, VoteSource, described_data

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


def save(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def record_of_a_pair(i, strength=None, **comparison):
    given = {} if strength is None else {"strength": strength}
    judged = {"chosen": 0, "rejected": 1, **given, **comparison}
    return {"id": f"r{i}", "prompt": f"p{i}", "responses": [f"a{i}", f"b{i}"], "comparisons": [judged]}


@pytest.fixture
def pair():
    """A record of one comparison."""
    return record_of_a_pair


@pytest.fixture
def build(tmp_path):
    """A data module of records, with treatments by some rules."""

    def module(records, rules=None, *, loader=None, validation=None, **settings):
        treatments = None if rules is None else TreatmentConfig(rules=rules, **settings)
        return LocalDataModule(
            train=save(tmp_path / "train.jsonl", records),
            validation=save(tmp_path / "validation.jsonl", validation or [record_of_a_pair("v", 1.0)]),
            text=TEXT,
            loader=LoaderConfig(**{"batch_size": 4, "treatments": treatments, **(loader or {})}),
            cache_dir=str(tmp_path / "cache"),
        )

    return module


@pytest.fixture
def cast():
    """Write votes on a split; each entry of ``votes`` is what the members say of a comparison, None if it has no entry."""

    def write(data, folder, votes, *, split="train", members="members", **said):
        table = data.table(split)
        keys, places = table.named_items("comparison")
        has = np.asarray([vote is not None for vote in votes])
        differences = np.asarray([vote for vote in votes if vote is not None], np.float32)
        source = VoteSource(described_data(data), members, differences.shape[1], "none")
        votes_folder = VoteFolder(folder, source, {split: len(table)}, **said)
        votes_folder.write(split, 0, VoteShard(keys[has], places[has], differences))
        votes_folder.finish()
        return str(folder)

    return write
