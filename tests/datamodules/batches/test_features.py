"""Feature stores: vectors come back by the hash of their tokens; what is damaged or foreign is refused."""

import json
import pickle
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
import torch

from pluralign.datamodules import FeatureStore, LocalDataModule, TextConfig
from pluralign.datamodules.batches.features import FeatureTable, FeatureWriter, prompt_key, response_keys
from pluralign.datamodules.tokens.rows import TokenRow, prompt_alone, without_prompt

BACKBONE = {
    "weights": "tiny",
    "revision": None,
    "config": {"dropout": 0.0},
    "dtype": "float32",
    "pooling": "last",
}
FORMAT = {"tokenizer": "byte", "tokenizer_digest": "d1"}


def writer(folder, **options):
    settings = {"backbone": BACKBONE, "text_format": FORMAT, "hidden_size": 3, "dtype": "float32"}
    return FeatureWriter(folder, **{**settings, **options})


def fill(folder, keys, vectors=None, **options):
    store = writer(folder, **options)
    store.add(keys, torch.randn(len(keys), 3) if vectors is None else vectors)
    store.flush()
    return FeatureStore(folder)


def vectors(store, keys):
    return store.take(store.find(np.asarray(keys, dtype=np.uint64)))


def row(prompt, *own):
    tokens = [*prompt, *(token for part in own for token in part)]
    none = np.empty(0, np.int32)
    return TokenRow(
        "r",
        np.asarray(tokens, np.int32),
        np.asarray([len(prompt), *map(len, own)], np.int32),
        np.arange(len(own), dtype=np.int32),
        none.reshape(0, 2),
        none,
        none.astype(np.float32),
        {},
        prompt_length=len(prompt),
    )


def digest(*tokens):
    return int.from_bytes(blake2b(np.asarray(tokens, np.int32).tobytes(), digest_size=8).digest(), "little")


# Keys ----------------------------------------------------------------------------------------------------


def test_a_key_is_a_hash_of_the_whole_sequence():
    entry = row([1, 2], [3], [4, 5])
    assert response_keys(entry).tolist() == [digest(1, 2, 3), digest(1, 2, 4, 5)]
    assert prompt_key(entry) == digest(1, 2)
    assert response_keys(without_prompt(entry)).tolist() == [digest(3), digest(4, 5)]
    assert response_keys(row([1], [2, 3])).tolist() == [digest(1, 2, 3)], (
        "however it is cut into prefix and rest"
    )
    assert response_keys(entry).dtype == np.uint64


def test_the_prompt_ends_where_it_ends_and_an_empty_one_is_the_token_0():
    entry = row([1, 2, 9], [3], [4, 5])._replace(prompt_length=2)  # both responses begin with 9
    assert prompt_key(entry) == digest(1, 2)
    assert response_keys(without_prompt(entry)).tolist() == [digest(9, 3), digest(9, 4, 5)]
    empty = row([], [3])
    assert prompt_key(empty) == digest(0)
    assert response_keys(without_prompt(empty)).tolist() == response_keys(empty).tolist()
    assert prompt_alone(empty).lengths.tolist() == [0, 1]


# Round trips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vectors_round_trip_over_several_shards(tmp_path, dtype):
    keys = np.random.default_rng(0).integers(0, 2**64, 25, dtype=np.uint64).tolist()
    values = torch.randn(25, 3)
    store = writer(tmp_path / "s", dtype=dtype, shard_size=4)
    for start in range(0, 25, 3):
        store.add(keys[start : start + 3], values[start : start + 3])
    assert len(store) == 25 and all(key in store for key in keys) and 7 not in store
    store.flush()
    again = FeatureStore(tmp_path / "s")
    assert len(again) == 25 and len(list((tmp_path / "s").glob("*.keys.npy"))) == 5
    assert again.keys().tolist() == sorted(keys)
    shuffled = torch.randperm(25)
    found = vectors(again, [keys[i] for i in shuffled])
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, values[shuffled].to(found.dtype))
    assert not list((tmp_path / "s").glob("*.partial"))
    assert (again.hidden_size, again.dtype, again.has_prompts) == (3, dtype, False)
    assert (again.backbone, again.text_format) == (BACKBONE, FORMAT)


def test_unknown_keys_have_place_minus_1_and_zeros(tmp_path):
    store = fill(tmp_path, [2**64 - 1, 0, 5])
    assert store.find(np.asarray([1, 5, 2**64 - 1, 6], np.uint64)).tolist()[0::3] == [-1, -1]
    assert vectors(store, [1]).tolist() == [[0, 0, 0]] and vectors(store, [5]).ne(0).all()
    assert vectors(store, []).shape == (0, 3)


def test_keys_beside_between_and_beyond_the_known_ones_are_not_found(tmp_path):
    fill(tmp_path, [20, 10])
    places = FeatureStore(tmp_path).find(np.asarray([0, 9, 10, 11, 19, 20, 21, 2**64 - 1], np.uint64))
    assert (places >= 0).tolist() == [False, False, True, False, False, True, False, False]


def test_an_empty_store(tmp_path):
    store = fill(tmp_path, [])
    assert len(store) == 0 and store.find(np.asarray([3], np.uint64)).tolist() == [-1]
    assert vectors(store, [3]).tolist() == [[0, 0, 0]]


def test_the_first_vector_of_a_key_counts(tmp_path):
    store = writer(tmp_path)
    store.add([7, 8, 7], torch.tensor([[1.0] * 3, [2.0] * 3, [3.0] * 3]))
    store.add([8, 9], torch.tensor([[4.0] * 3, [5.0] * 3]))
    store.flush()
    store.flush()
    assert vectors(FeatureStore(tmp_path), [7, 8, 9])[:, 0].tolist() == [1, 2, 5]
    assert len(FeatureStore(tmp_path)) == 3


def test_vectors_may_carry_a_graph(tmp_path):
    fill(tmp_path, [1], torch.ones(1, 3, requires_grad=True) * 2)
    assert vectors(FeatureStore(tmp_path), [1]).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70_000.0), ("float32", float("nan"))])
def test_what_the_dtype_cannot_hold_is_refused_and_nothing_of_it_kept(tmp_path, dtype, value):
    store = writer(tmp_path, dtype=dtype)
    store.add([1], torch.ones(1, 3))
    with pytest.raises(ValueError, match=f"features are not finite as {dtype}"):
        store.add([2, 3], torch.tensor([[1.0] * 3, [value] * 3]))
    store.flush()
    assert FeatureStore(tmp_path).keys().tolist() == [1] and 2 not in store


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 4)])
def test_as_many_vectors_as_keys(tmp_path, shape):
    with pytest.raises(ValueError, match=r"2 keys need vectors of shape \(2, 3\), got"):
        writer(tmp_path).add([1, 2], torch.zeros(shape))


# Going on ------------------------------------------------------------------------------------------------


def test_a_killed_run_keeps_its_shards_and_the_next_one_goes_on(tmp_path):
    killed = writer(tmp_path, shard_size=2)
    values = torch.arange(15.0).reshape(5, 3)
    killed.add([1, 2], values[:2])
    killed.add([3], values[2:3])  # never flushed
    (tmp_path / "0123456789abcdef.npy").write_bytes(b"half a shard")
    (tmp_path / "fedcba.9.partial").write_bytes(b"less")
    assert FeatureStore(tmp_path).keys().tolist() == [1, 2]
    again = writer(tmp_path, shard_size=2)
    assert len(again) == 2 and 2 in again and 3 not in again
    again.add([2, 3, 4, 5], values[[0, 2, 3, 4]])
    again.flush()
    store = FeatureStore(tmp_path)
    assert store.keys().tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(vectors(store, [1, 2, 3, 4, 5]), values)


def test_two_runs_at_the_same_time(tmp_path):
    """Numbered shards would be overwritten by the other run, vectors and keys at different moments."""
    one, two = writer(tmp_path), writer(tmp_path)
    one.add([1, 2], torch.tensor([[1.0] * 3, [2.0] * 3]))
    two.add([2, 3], torch.tensor([[2.0] * 3, [3.0] * 3]))
    one.flush()
    two.flush()
    store = FeatureStore(tmp_path)
    assert vectors(store, [1, 2, 3])[:, 0].tolist() == [1, 2, 3]


def test_prompts_stay_promised(tmp_path):
    writer(tmp_path, prompts=True).flush()
    assert writer(tmp_path, prompts=False).prompts
    assert FeatureStore(tmp_path).has_prompts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "holds vectors of dtype float32, not float16: go on with float32"),
        ({"hidden_size": 4}, "holds vectors of hidden_size 3, not 4"),
        (
            {"backbone": {**BACKBONE, "weights": "other", "pooling": "mean"}},
            "pooling: the store has 'last', the model 'mean'; weights: the store has 'tiny', the model 'other'",
        ),
        (
            {"text_format": {"tokenizer": "mine", "tokenizer_digest": "d2"}},
            "made with the tokenizer 'byte', the data use 'mine'",
        ),
        ({"shard_size": 0}, "shard_size must be finite and >= 1; got 0"),
    ],
)
def test_a_store_of_something_else_is_not_written_to(tmp_path, change, message):
    fill(tmp_path, [1])
    before = (tmp_path / "meta.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, **change)
    assert (tmp_path / "meta.json").read_bytes() == before
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16; got 'int8'"):
        writer(tmp_path, dtype="int8")


def test_an_empty_store_binds_nobody(tmp_path):
    writer(tmp_path, prompts=True)
    store = fill(
        tmp_path, [1], torch.ones(1, 4), hidden_size=4, dtype="float16", backbone={"weights": "other"}
    )
    assert (store.hidden_size, store.dtype, store.has_prompts) == (4, "float16", True)


def test_a_description_survives_json(tmp_path):
    store = fill(tmp_path, [1], backbone={**BACKBONE, "config": {"rope": (1, 2), 3: "x"}})
    store.check_backbone({**BACKBONE, "config": {"rope": [1, 2], 3: "x"}})
    with pytest.raises(ValueError, match=r"dtype: the store has 'float32', the model 'bfloat16'"):
        store.check_backbone({**BACKBONE, "config": {"rope": [1, 2], 3: "x"}, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"quantization: the store has None, the model '8bit'"):
        store.check_backbone({**store.backbone, "quantization": "8bit"})


# Damage --------------------------------------------------------------------------------------------------


def test_no_store(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"loader\.features='nowhere' holds no feature store .*pluralign embed"
    ):
        FeatureStore("nowhere")
    with pytest.raises(FileNotFoundError, match="holds no feature store"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("ending", [".npy", ".keys.npy"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "text"])
def test_damaged_shards_are_named(tmp_path, ending, damage):
    fill(tmp_path, list(range(100)))
    (path,) = (
        path
        for path in tmp_path.glob(f"*{ending}")
        if (ending == ".keys.npy") == path.name.endswith(".keys.npy")
    )
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-40], "emptied": b"", "text": b"nothing of the kind"}[damage])
    if damage == "removed" and ending == ".keys.npy":
        assert len(FeatureStore(tmp_path)) == 0, "a shard without keys is unfinished"
        return
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read .*the store is damaged, embed anew"):
        FeatureStore(tmp_path)


def test_shards_that_do_not_belong_together(tmp_path):
    fill(tmp_path, [1, 2])
    (keys,) = tmp_path.glob("*.keys.npy")
    (shard,) = set(tmp_path.glob("*.npy")) - {keys}
    whole = shard.read_bytes()
    np.save(shard, np.zeros((3, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"holds \(3, 3\) float32, but its keys and meta.json say \(2, 3\) float32"
    ):
        FeatureStore(tmp_path)
    np.save(shard, np.zeros((2, 3), np.float64))
    with pytest.raises(ValueError, match=r"holds \(2, 3\) float64, but"):
        FeatureStore(tmp_path)
    shard.write_bytes(whole)
    np.save(keys, np.asarray([1, 3], np.uint64))
    with pytest.raises(ValueError, match="holds other keys than were written"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 1', "meta.json is damaged"),
        ('{"version": 1}', r"meta.json is damaged \(KeyError\('backbone'\)\)"),
        ("[]", "meta.json is damaged"),
        ('{"version": 9}', "meta.json has version 9, this program reads 1: embed anew into another folder"),
    ],
)
def test_damaged_description(tmp_path, content, message):
    fill(tmp_path, [1])
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path)


# Pickling ------------------------------------------------------------------------------------------------


def test_a_pickled_store_is_small_and_maps_the_same_shards(tmp_path):
    keys = list(range(1000))
    values = torch.arange(3000.0).reshape(1000, 3)
    store = fill(tmp_path, keys, values, shard_size=100)
    frozen = pickle.dumps(store)
    assert len(frozen) < 2000
    places = store.find(np.asarray(keys, np.uint64))
    for i in range(8):  # shards written meanwhile, with whatever names
        fill(tmp_path, [10**6 + i])
    again = pickle.loads(frozen)
    assert torch.equal(again.take(places), values) and len(again) == 1000
    assert len(FeatureStore(tmp_path)) == 1008


# Tables --------------------------------------------------------------------------------------------------

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "id": f"r{i}",
            "prompt": "why" * i,
            "responses": [f"a{i}", "b", "c" * (i + 1)],
            "comparisons": [[0, 1], [2, 1]],
        }
        for i in range(12)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    module = LocalDataModule(train=str(path), validation=str(path), text=TEXT)
    with pytest.warns(UserWarning, match="share a prompt"):
        module.setup("fit")
    return module


def stored(folder, table, *, leave_out=(), prompts=True, text_format=FORMAT):
    """Every response's vector is its own tokens' sum and length and the prompt's length."""
    out = writer(folder, prompts=prompts, text_format={**text_format})
    for entry in table.rows():
        ends = np.cumsum(entry.lengths)
        sums = [entry.tokens[: ends[0]].sum() + entry.tokens[a:b].sum() for a, b in pairwise(ends)]
        if entry.id not in leave_out:
            values = [
                [int(total), int(n), entry.prompt_length]
                for total, n in zip(sums, entry.lengths[1:], strict=True)
            ]
            out.add(response_keys(entry).tolist(), torch.tensor(values, dtype=torch.float32))
            if prompts:
                out.add([prompt_key(entry)], torch.full((1, 3), float(entry.prompt_length)))
    out.flush()
    return FeatureStore(folder)


def test_a_table_reads_places_in_place_of_tokens(data, tmp_path):
    tokens = data.table("train")
    store = stored(tmp_path / "s", tokens)
    table = FeatureTable(tokens, store, "train")
    assert len(table) == 12
    assert np.array_equal(table.sizes, [[3, 0, 3, 1]] * 12)
    for full, entry in zip(tokens[[5, 0, 11]], table[[5, 0, 11]], strict=True):
        assert entry.id == full.id and len(entry.tokens) == 0
        assert entry.comparisons.tolist() == full.comparisons.tolist()
        assert entry.lengths.tolist() == full.lengths.tolist()
        assert store.take(entry.places)[:, 1].tolist() == full.lengths[1:].tolist()
        assert store.take(np.asarray([entry.prompt_place]))[0, 0] == full.prompt_length
    again = pickle.loads(pickle.dumps(table))
    assert again[[3]][0].places.tolist() == table[[3]][0].places.tolist()
    assert "tokens" not in table.table.dataset.column_names


def test_missing_responses_and_prompts_are_counted(data, tmp_path):
    tokens = data.table("train")
    store = stored(tmp_path / "s", tokens, leave_out={"r3", "r7"})
    message = (
        rf"6 of 36 responses of the train split have no features in {tmp_path / 's'} \(first: of record 'r3'\): the "
        "data, or text.prompt_format.* run `pluralign embed` again, which adds what is missing"
    )
    with pytest.raises(ValueError, match=message):
        FeatureTable(tokens, store, "train")
    # Of the responses alone, those of r0, which has no prompt, are there, and so is the "b" that every record has.
    with pytest.raises(ValueError, match=r"22 of 36 responses of the train split .*loader\.items"):
        FeatureTable(tokens, stored(tmp_path / "t", tokens), "train", items="response")
    stored(tmp_path / "u", tokens, prompts=False)
    store = stored(tmp_path / "u", tokens, leave_out={"r3"})
    with pytest.raises(ValueError, match=r"1 of 12 prompts of the train split .*first: of record 'r3'"):
        FeatureTable(tokens, store, "train")


@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_loaders_read_features(data, tmp_path, workers):
    store = stored(tmp_path / "s", data.table("train"), text_format=data.text_format())
    expected = {entry.id: entry for entry in data.table("train").rows()}
    data.loader = type(data.loader)(max_tokens=9, num_workers=workers, features=str(store.folder))
    loader = data.train_dataloader()
    if workers:
        loader.multiprocessing_context = "spawn"
    seen = set()
    for batch in loader:
        assert "input_ids" not in batch and len(batch["features"]) <= 9
        assert set(batch) == {
            "features", "prompt_features", "response_row", "response_prompt", "response_index", "response_length",
            "id", "record_key", "split_key", "comparisons", "comparison_index", "preference",
        }  # fmt: skip
        lengths = np.concatenate([expected[name].lengths[1:] for name in batch["id"]])
        assert batch["features"][:, 1].tolist() == batch["response_length"].tolist() == lengths.tolist()
        assert batch["prompt_features"][:, 0].tolist() == [
            expected[name].prompt_length for name in batch["id"]
        ]
        assert torch.equal(batch["response_row"], batch["response_prompt"])
        seen.update(batch["id"])
    assert len(seen) == 12


def test_a_store_without_prompts_gives_batches_without(data, tmp_path):
    stored(tmp_path / "s", data.table("train"), prompts=False, text_format=data.text_format())
    data.loader = replace(data.loader, features=str(tmp_path / "s"))
    assert "prompt_features" not in next(iter(data.train_dataloader()))


def test_setup_opens_the_store_and_does_not_fall_back_on_tokens(data, tmp_path):
    missing = LocalDataModule(
        train=str(data.paths["train"]), text=TEXT, loader=replace(data.loader, features=str(tmp_path / "s"))
    )
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="holds no feature store"):
            missing.setup("fit")
    store = writer(tmp_path / "s", text_format={**data.text_format(), "tokenizer_digest": "other"})
    store.flush()
    with pytest.raises(ValueError, match="made with the tokenizer 'byte', the data use 'byte'"):
        missing.setup("fit")
