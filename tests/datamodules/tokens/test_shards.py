"""Shards of the work by independent jobs become the cache that one process writes, byte for byte."""

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from pluralign.datamodules import LocalDataModule, MixtureDataModule, PersonaVotesDataModule, TextConfig
from pluralign.datamodules.records import RecordError
from pluralign.datamodules.tokens import CacheShards, RecordTokenizer, Shard, preparation
from pluralign.datamodules.tokens.shards import ShardWriter

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
ORDERS = [(1, 2, 3), (3, 1, 2), (2, 3, 1)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 4)


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Rows of all kinds: without ids, of equal content and prompts, bad ones, equal ids and other votes in several chunks."""
    draw = random.Random(0)
    train = []
    for i in range(60):
        row = {
            "prompt": f"prompt {i % 23}",
            "chosen": f"good {i % 19}",
            "rejected": "bad",
            "user": f"u{draw.randrange(9)}",
        }
        train.append(
            row | ({"id": f"r{i % 50}"} if i % 3 else {}) | ({"votes": [4, 2, 1]} if i % 4 == 1 else {})
        )
    train[7] |= {"chosen": ""}
    train[22] |= {"rejected": 5}
    train[33] |= {"votes": [2, 1]}
    train[41] |= {"chosen": "bad"}
    train[50] = dict(train[12])
    test = [
        {"prompt": f"prompt {i}", "chosen": "yes " * (i + 1), "rejected": "no", "domain": "law"}
        for i in range(9)
    ]
    return {"train": save(tmp_path / "train.jsonl", train), "test": save(tmp_path / "test.jsonl", test)}


def local(folder, files, **settings):
    settings = {"on_invalid": "skip", "validation_share": 0.2, **settings}
    return LocalDataModule(**files, text=TEXT, cache_dir=str(folder), **settings)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_shards_in_any_order_become_the_cache_of_one_process(tmp_path, files, order):
    whole = local(tmp_path / "one", files)
    whole.prepare_data()
    left = []
    for number in order:
        data = local(tmp_path / "three", files)
        left.append(data.prepare_shard(Shard(number, 3))["local"])
    assert [len(numbers) for numbers in left] == [2, 1, 0]
    assert content(data.cache_folder()) == content(whole.cache_folder())
    assert [path.name for path in (tmp_path / "three").iterdir()] == [whole.cache_folder().name]
    with pytest.warns(UserWarning, match="records share a prompt with the training split"):
        whole.setup()
    report = whole.reports["train"]
    reasons = {"duplicate id", "empty response", "wrong type", "out of range"}
    assert {*report.invalid, *whole.reports["validation"].invalid} == reasons
    assert report.merged and report.repeated
    assert report.records and whole.reports["validation"].records


def test_one_shard_and_more_shards_than_chunks_of_a_source(tmp_path, files):
    whole = local(tmp_path / "one", files)
    whole.prepare_data()
    for total in (1, 9):
        data = local(tmp_path / str(total), files)
        for number in range(1, total + 1):
            left = data.prepare_shard(Shard(number, total))["local"]
        assert left == [] and content(data.cache_folder()) == content(whole.cache_folder())


def test_of_few_prompts_one_is_held_out_all_the_same(tmp_path):
    rows = [{"prompt": f"p{i % 2}", "chosen": f"good {i}", "rejected": "bad"} for i in range(12)]
    files = {"train": save(tmp_path / "train.jsonl", rows)}
    settings = {"validation_share": 0.0001}
    whole = local(tmp_path / "one", files, **settings)
    whole.prepare_data()
    for number in (2, 1):
        data = local(tmp_path / "two", files, **settings)
        data.prepare_shard(Shard(number, 2))
    data.setup()
    assert data.reports["validation"].records
    assert content(data.cache_folder()) == content(whole.cache_folder())


def test_a_shard_whose_job_was_killed_is_done_again_alone(tmp_path, files, monkeypatch):
    whole = local(tmp_path / "one", files)
    whole.prepare_data()
    data = local(tmp_path / "c", files)
    shards = CacheShards(data.cache_folder(), 3)

    def killed(self, description):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", killed)
        # A killed process cleans nothing up.
        patch.setattr(ShardWriter, "__exit__", lambda self, *_: self._lines.close())
        patch.setattr("os.getpid", lambda: 2**22 + 1)  # nor is it there any more
        with pytest.raises(KeyboardInterrupt):
            data.prepare_shard(Shard(2, 3))
    assert len(list(shards.folder.glob("2.*.partial"))) == 1
    tokenised = []
    original = RecordTokenizer.__call__
    monkeypatch.setattr(
        RecordTokenizer, "__call__", lambda self, some: tokenised.extend(some) or original(self, some)
    )
    assert data.prepare_shard(Shard(1, 3))["local"] == [2, 3]
    assert data.prepare_shard(Shard(3, 3))["local"] == [2]
    done = len(tokenised)
    assert data.prepare_shard(Shard(1, 3))["local"] == [2] and len(tokenised) == done, "nothing is done twice"
    assert data.prepare_shard(Shard(2, 3))["local"] == []
    names = Counter(record.id for record in tokenised)
    assert 0 < len(tokenised) - done < done and sum(names.values()) == 60 + 9 - 2, "each record once"
    assert content(data.cache_folder()) == content(whole.cache_folder()) and not shards.folder.exists()


def test_a_run_joins_shards_that_are_all_there_and_tokenises_nothing(tmp_path, files, monkeypatch):
    whole = local(tmp_path / "one", files)
    whole.prepare_data()
    data = local(tmp_path / "c", files)
    with monkeypatch.context() as patch:
        patch.setattr(LocalDataModule, "_join", lambda *_: [])  # as if the last two jobs were killed before
        for number in (1, 2):
            data.prepare_shard(Shard(number, 2))
    assert not data.cache_folder().exists()
    with monkeypatch.context() as patch:
        patch.setattr(RecordTokenizer, "__call__", None)
        local(tmp_path / "c", files).prepare_data()
    assert content(data.cache_folder()) == content(whole.cache_folder())
    assert data.prepare_shard(Shard(1, 2)) == {"local": []} and len(list((tmp_path / "c").iterdir())) == 1


def test_shards_that_are_not_all_there_keep_nobody_from_tokenising(tmp_path, files):
    data = local(tmp_path, files)
    data.prepare_shard(Shard(1, 2))
    data.prepare_data()
    assert (data.cache_folder() / "meta.json").is_file()
    assert data.prepare_shard(Shard(2, 2)) == {"local": []}


@pytest.mark.parametrize("file", ["train.arrow", "chunks.jsonl", "meta.json"])
def test_a_damaged_shard_is_found_and_done_again(tmp_path, files, file):
    data = local(tmp_path, files)
    data.prepare_shard(Shard(1, 2))
    path = CacheShards(data.cache_folder(), 2).shard_folder(1) / file
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    if file == "meta.json":
        assert data.prepare_shard(Shard(2, 2)) == {"local": [1]}
    else:
        with pytest.warns(UserWarning, match=r"shards-2, 1 of 2 are damaged"):
            assert data.prepare_shard(Shard(2, 2)) == {"local": [1]}
    assert data.prepare_shard(Shard(1, 2)) == {"local": []}
    whole = local(tmp_path / "one", files)
    whole.prepare_data()
    assert content(data.cache_folder()) == content(whole.cache_folder())


def test_an_invalid_row_stops_its_own_shard_and_an_id_of_two_shards_the_joining(tmp_path):
    rows = [{"id": f"r{i}", "prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(16)]
    rows[5] |= {"chosen": ""}
    files = {"test": save(tmp_path / "rows.jsonl", rows)}
    data = local(tmp_path, files, on_invalid="error")
    assert data.prepare_shard(Shard(1, 2)) == {"local": [2]}
    with pytest.raises(RecordError, match=r"rows\.jsonl:6: empty response"):
        data.prepare_shard(Shard(2, 2))
    assert {path.name for path in CacheShards(data.cache_folder(), 2).folder.iterdir()} == {"1"}
    rows[5] |= {"chosen": "good", "id": "r1"}
    save(tmp_path / "rows.jsonl", rows)
    data = local(tmp_path, files, on_invalid="error")
    assert data.prepare_shard(Shard(2, 2)) == {"local": [1]}
    with pytest.raises(RecordError, match=r"rows\.jsonl:6: duplicate id"):
        data.prepare_shard(Shard(1, 2))


def test_nobody_waits_while_another_process_joins(tmp_path, files):
    data = local(tmp_path, files)
    data.prepare_shard(Shard(1, 2))
    shards = CacheShards(data.cache_folder(), 2)
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(shards.folder / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert data.prepare_shard(Shard(2, 2)) == {"local": []}
        assert not data.cache_folder().exists() and shards.missing() == []
        local(tmp_path, files).prepare_data()  # what needs the cache now joins, too
        assert data.cache_problem() is None and shards.folder.exists()
        other.communicate()
    assert data.prepare_shard(Shard(1, 2)) == {"local": []}


def test_shards_of_another_version_are_named(tmp_path, files, monkeypatch):
    data = local(tmp_path, files)
    data.prepare_shard(Shard(1, 2))
    monkeypatch.setattr("pluralign.datamodules.tokens.shards.LAYOUT", {"layout": 2, "chunk": 4})
    with pytest.raises(
        ValueError, match=r"shards-2: another version of pluralign wrote some of it: remove it"
    ):
        data.prepare_shard(Shard(2, 2))


def test_every_source_of_a_mixture_is_divided(tmp_path, files):
    def mixture(folder):
        sources = {
            "one": LocalDataModule(**files, on_invalid="skip"),
            "two": LocalDataModule(test=files["test"]),
        }
        return MixtureDataModule(sources=sources, text=TEXT, cache_dir=str(folder))

    whole = mixture(tmp_path / "whole")
    whole.prepare_data()
    for number, left in ((2, [1]), (1, [])):
        data = mixture(tmp_path / "two")
        assert data.prepare_shard(Shard(number, 2)) == {"one": left, "two": left}
    for name, folder in data.cache_folders().items():
        assert content(folder) == content(whole.cache_folders()[name])
    with pytest.warns(UserWarning, match="records share a prompt with the training split"):
        data.setup("test")
    assert len(data.table("test")) == 18


def test_what_is_said_of_all_rows_is_said_of_shards_too(tmp_path):
    vote = {"persona": "p", "label": 1, "timestamp": 1}
    rows = [
        {"prompt": f"p{i}", "response": f"text {i}", "votes": [vote] * (2 + i % 2), "unknown": "text"}
        for i in range(13)
    ]
    path = save(tmp_path / "test.jsonl", rows)

    def votes(folder):
        return PersonaVotesDataModule(
            test=path, num_labels=2, text=TEXT, on_invalid="skip", cache_dir=str(folder)
        )

    whole = votes(tmp_path / "one")
    whole.prepare_data()
    for number in (1, 3, 2):
        data = votes(tmp_path / "three")
        data.prepare_shard(Shard(number, 3))
    assert content(data.cache_folder()) == content(whole.cache_folder())


def test_data_with_vectors_of_their_own_are_refused(tmp_path, files, monkeypatch):
    monkeypatch.setattr(LocalDataModule, "has_own_features", True)
    data = local(tmp_path, files)
    with pytest.raises(ValueError, match="by one process: leave --shard out"):
        data.prepare_shard(Shard(1, 2))


def test_a_disk_that_does_not_take_a_shard_is_named(tmp_path, files):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(OSError, match=r"could not write .*locked.* cache_dir \(or \$PLURALIGN_CACHE\)"):
        local(folder, files).prepare_shard(Shard(1, 2))
