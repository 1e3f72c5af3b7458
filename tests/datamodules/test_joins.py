"""Side tables: joined values equal a dictionary's, whatever the order; nothing of the token cache changes."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from pluralign.datamodules import CrowdConfig, LoaderConfig, LocalDataModule, TextConfig, joins
from pluralign.datamodules.joins import SideTable, joinable_columns, load_joins
from pluralign.datamodules.records import record_key

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
COLUMN = {"margin": 0.0, "weight": 1.0, "strength": float("nan"), "score": float("nan"), "record_weight": 1.0}


def save_rows(path, split, number=20):
    rows = [
        {
            "id": f"r{i}",
            "prompt": f"{split} {i}",
            "responses": ["a", f"b{i}", "c"],
            "comparisons": [{"chosen": 0, "rejected": 1} | ({"margin": i / 4} if i % 3 else {}), [2, 1]],
            "votes": [[1, i], [0, 0], [2, 2]],
        }
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def module(tmp_path):
    paths = {
        split: save_rows(tmp_path / f"{split}.jsonl", split)
        for split in ("train", "validation", "test", "predict")
    }

    def build(*joins, splits=("train", "validation", "test", "predict"), **settings):
        loader = LoaderConfig(batch_size=4, joins=tuple(map(str, joins)), **settings)
        return LocalDataModule(**{split: paths[split] for split in splits}, text=TEXT, loader=loader)

    return build


def table(column, entries, seed=0):
    """A side table of ``{(split, record, place): value}``, in random order."""
    names = list(entries)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    names = [names[i] for i in order]
    keys = [record_key("local", split, f"r{record}") for split, record, _ in names]
    return SideTable(column, keys, [place for _, _, place in names], [entries[name] for name in names])


def some_entries(item, splits=("train", "validation"), value=lambda i, place: i + place / 8):
    places = {"record": [0], "response": [0, 1, 2], "comparison": [0, 1]}[item]
    return {
        (split, i, place): value(i, place)
        for split in splits
        for i in range(0, 20, 2)
        for place in places
        if (i + place) % 5
    }


def joined(batches, column, item, split):
    """``{(record, place): value}`` of batches."""
    out = {}
    for batch in batches:
        if item == "record":
            names = [(name, 0) for name in batch["id"]]
        elif item == "response":
            pairs = zip(batch["response_prompt"].tolist(), batch["response_index"].tolist(), strict=True)
            names = [(batch["id"][row], place) for row, place in pairs]
        else:
            rows = batch["response_prompt"][batch["comparisons"][:, 0]].tolist()
            names = [
                (batch["id"][row], place)
                for row, place in zip(rows, batch["comparison_index"].tolist(), strict=True)
            ]
        out |= {
            (split, int(name[1:]), place): value
            for (name, place), value in zip(names, batch[column].tolist(), strict=True)
        }
    return out


@pytest.mark.parametrize("column", COLUMN)
@pytest.mark.parametrize("seed", [0, 1])
def test_joined_values_are_those_of_a_dictionary(module, tmp_path, column, seed):
    item = joinable_columns()[column]
    entries = some_entries(item)
    table(column, entries, seed).save(tmp_path / "side.parquet")
    data, bare = module(tmp_path / "side.parquet"), module()
    bare.setup("fit")
    tokens = data.cache_folder() / "train.arrow"
    before = tokens.stat().st_mtime_ns
    data.setup("fit")
    assert data.cache_folder() == bare.cache_folder() and tokens.stat().st_mtime_ns == before
    for split, batches, without in (
        ("train", data.train_dataloader(), bare.train_dataloader()),
        ("validation", data.val_dataloader(), bare.val_dataloader()),
    ):
        batches, without = list(batches), list(without)
        found = joined(batches, column, item, split)
        own = joined(without, column, item, split) if column in without[0] else {}
        expected = {name: entries.get(name, own.get(name, COLUMN[column])) for name in found}
        assert len(found) == 20 * {"record": 1, "response": 3, "comparison": 2}[item]
        assert np.array_equal(list(found.values()), list(expected.values()), equal_nan=True)
        for batch, other in zip(batches, without, strict=True):
            assert batch.keys() - {column} == other.keys() - {column}
            assert batch["id"] == other["id"] and batch[column].dtype == torch.float32


def test_priors_are_joined_into_targets(module, tmp_path):
    crowd = CrowdConfig(prior_strength=4)
    table("prior", some_entries("response", value=lambda i, place: [i / 20, 1 - i / 20])).save(
        tmp_path / "p.parquet"
    )
    data = module(tmp_path / "p.parquet", crowd=crowd)
    data.setup("fit")
    target, votes = ({}, {})
    for batch in data.train_dataloader():
        assert "prior" not in batch
        target |= joined([batch], "target", "response", "train")
        votes |= joined([batch], "target_votes", "response", "train")
    np.testing.assert_allclose(target["train", 2, 0], [(4 * 0.1 + 1) / 7, (4 * 0.9 + 2) / 7], rtol=1e-6)
    np.testing.assert_allclose(target["train", 2, 1], [0.1, 0.9], rtol=1e-6)
    assert votes["train", 2, 1] == 4 and votes["train", 3, 1] == 0 and np.isnan(target["train", 3, 1]).all()
    with pytest.raises(ValueError, match="item 1 of record 'r1' has no votes and no prior"):
        data.check_judged("votes")
    every = {(split, i, 1): [0.5, 0.5] for split in ("train", "validation") for i in range(20)}
    table("prior", every).save(tmp_path / "all.parquet")
    data = module(tmp_path / "all.parquet", crowd=crowd)
    data.setup("fit")
    data.check_judged("votes")
    table("prior", {("train", 0, 0): [0.2, 0.3, 0.5]}).save(tmp_path / "wide.parquet")
    with pytest.raises(ValueError, match="holds prior of 3 categories, votes of the data have 2"):
        module(tmp_path / "wide.parquet").setup("fit")


def test_files_round_trip_and_pickle(tmp_path):
    side = table("weight", some_entries("comparison"))
    side.save(tmp_path / "side.parquet")
    keys = np.concatenate([side.record_key, [5, -7], side.record_key[:2]])
    index = np.concatenate([side.index, [0, 0], [9, 10**12]])
    for other in (SideTable.load(tmp_path / "side.parquet"), pickle.loads(pickle.dumps(side))):
        assert len(other) == len(side) and other.column == "weight" and other.item == "comparison"
        assert other.find(keys, index).tolist() == [*range(len(side)), -1, -1, -1, -1]
        assert np.array_equal(other.values, side.values) and other.values.dtype == np.float32
    assert SideTable("weight", [], [], []).find([1], [0]).tolist() == [-1]


@pytest.mark.slow
def test_two_workers(module, tmp_path):
    table("weight", some_entries("comparison")).save(tmp_path / "side.parquet")
    alone, together = (module(tmp_path / "side.parquet", num_workers=workers) for workers in (0, 2))
    for data in (alone, together):
        data.setup("fit")
    loader = together.train_dataloader()
    loader.multiprocessing_context = "spawn"
    assert joined(loader, "weight", "comparison", "train") == joined(
        alone.train_dataloader(), "weight", "comparison", "train"
    )


def test_the_collator_pickles_with_its_tables(module, tmp_path):
    table("margin", some_entries("comparison")).save(tmp_path / "side.parquet")
    data = module(tmp_path / "side.parquet")
    data.setup("fit")
    rows = data.table("train")[[0, 1, 2]]
    first, second = data.collator()(rows), pickle.loads(pickle.dumps(data.collator()))(rows)
    assert torch.equal(first["margin"], second["margin"]) and first["margin"].unique().numel() > 2


@pytest.mark.parametrize("block", [joins.BLOCK, 3])
def test_setup_says_what_matched(module, tmp_path, caplog, monkeypatch, block):
    monkeypatch.setattr(joins, "BLOCK", block)
    side = table("weight", some_entries("comparison", splits=("train",)))
    side.save(tmp_path / "side.parquet")
    with caplog.at_level("INFO"):
        module(tmp_path / "side.parquet").setup("fit")
    number = len(side)
    assert (
        f"local train: {number} of {number} entries of {tmp_path / 'side.parquet'} are joined as weight"
        in caplog.text
    )
    assert f"local validation: 0 of {number} entries" in caplog.text
    with pytest.raises(ValueError, match=r"local: no entry of .*side.parquet belongs to the test split"):
        module(tmp_path / "side.parquet").setup("test")
    module(tmp_path / "side.parquet").setup("predict")
    module(tmp_path / "missing.parquet").setup()  # tokens alone
    with pytest.raises(FileNotFoundError, match=r"loader.joins names '.*missing.parquet', which is no file"):
        module(tmp_path / "missing.parquet").setup("fit")


@pytest.mark.parametrize("number", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("stride", [1, 3])
def test_tables_as_large_as_a_narrow_number_holds(number, stride):
    random = np.random.default_rng(number)
    keys = random.permutation(number).astype(np.int64) * 2**40
    side = SideTable(
        "weight", np.repeat(keys, stride), np.tile(np.arange(stride), number), np.ones(number * stride)
    )
    assert np.array_equal(side.find(side.record_key, side.index), np.arange(number * stride))
    assert (side.find(keys, np.full(number, stride)) == -1).all() and (
        side.find(keys + 1, keys * 0) == -1
    ).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("votes", [1], [0], [[1.0, 2.0]]), "column must be one of .*got 'votes'"),
        (("user", [1], [0], [1.0]), "column must be one of .*got 'user'"),
        (("weight", [1, 2], [0], [1.0]), r"got \(2,\), \(1,\) and \(1,\)"),
        (("weight", [1], [0], [[1.0]]), r"weight \(n,\), got"),
        (("weight", [1], [0], [float("nan")]), "values must be finite"),
        (("strength", [1], [0], [1e39]), "values must be finite in float32"),
        (("weight", [1, 2], [0, 0], [3e38, 3e38]), r"the sum of weight must be at most 3\.4e\+38"),
        (("weight", [1], [0], [-1.0]), "weight must be >= 0, got -1"),
        (("weight", [1], [-1], [1.0]), "index must be >= 0, got -1"),
        (
            ("weight", [1, 2, 3, 4, 5], [0, 0, 0, 0, 2**62], [1.0] * 5),
            "index must be at most 2147483647, got 4611686",
        ),
        (("weight", [1, 2], [0, 2**63 - 1], [1.0, 1.0]), "index must be at most 2147483647, got 9223372"),
        (("weight", [1, 3, 1], [2, 2, 2], [1.0, 1.0, 2.0]), r"1 entries .*record_key 1, index 2\)"),
        (("prior", [1], [0], [[0.5, 0.6]]), "every list must sum to 1"),
    ],
)
def test_malformed_tables(arguments, message):
    with pytest.raises(ValueError, match=message):
        SideTable(*arguments)


def test_malformed_files(tmp_path):
    path = tmp_path / "side.parquet"

    def write(**columns):
        parquet.write_table(pa.table(columns), str(path))
        return path

    with pytest.raises(
        ValueError, match="has columns record_key, weight; needs record_key, index and one of"
    ):
        SideTable.load(write(record_key=[1], weight=[1.0]))
    with pytest.raises(ValueError, match="record_key and index must be int64, got float64, int64"):
        SideTable.load(write(record_key=[1.0], index=[0], weight=[1.0]))
    path.write_text("record_key,index,weight")
    with pytest.raises(
        ValueError, match=r"side\.parquet: unreadable file: .*a side table, which is a Parquet file"
    ):
        SideTable.load(path)
    with pytest.raises(ValueError, match="a value is no number"):
        SideTable.load(write(record_key=[1, 2], index=[0, 0], prior=[[0.5, 0.5], [1.0]]))
    with pytest.raises(ValueError, match=r"both hold weight"):
        load_joins([str(write(record_key=[1], index=[0], weight=[1.0]))] * 2)
    with pytest.raises(TypeError, match=r"loader\.joins must be a list of files"):
        LoaderConfig(joins="side.parquet")
