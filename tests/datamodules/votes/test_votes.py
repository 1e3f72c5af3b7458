"""The format of votes: what is written is what is read, whole or not at all, of these data and members or not."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from pyarrow import parquet

from pluralign.datamodules import LoaderConfig, LocalDataModule, MixtureDataModule, TextConfig
from pluralign.datamodules.joins import SideTable
from pluralign.datamodules.votes import (
    VoteFolder,
    VoteShard,
    VoteSource,
    VoteTable,
    check_same_data,
    data_digest,
    described_data,
    members_digest,
    vote_strengths,
)

DESCRIPTION = {"parts": {"local": {"sources": {"train": [["a.jsonl", "12ab"]]}}}, "text": {"vocabulary": 259}}
SOURCE = VoteSource(DESCRIPTION, "ab12", 4, "bootstrap")


def shard(start, stop, *, members=4, shift=0):
    """Invented votes on two comparisons of each of some records."""
    keys = np.repeat(np.arange(start, stop) * 7 - 3 + shift, 2)
    index = np.tile([1, 0], stop - start)
    draws = np.random.default_rng(start).normal(size=(len(keys), members))
    return VoteShard(keys, index, draws.astype(np.float32))


def write(path, *, records=10, split="train", shard_records=4, source=SOURCE, stop=None, **settings):
    """A folder of votes; of the first ``stop`` shards alone where that is given."""
    folder = VoteFolder(path, source, {split: records}, shard_records=shard_records, **settings)
    for number in folder.pending(split)[:stop]:
        span, shift = folder.span(split, number), 1000 * (split != "train")
        folder.write(split, number, shard(*span, members=source.num_members, shift=shift))
    if stop is None:
        folder.finish(said=1)
    return folder


# Numbers ------------------------------------------------------------------------------------------------


def test_strength_is_the_mean_and_the_population_deviation():
    # chosen and rejected: (1.2, 0.4), (0.9, 0.6), (-0.1, 0.3), (2.0, 0.5)
    differences = np.float32([[0.8, 0.3, -0.4, 1.5]])
    mean, std, number = vote_strengths(differences)
    assert mean[0] == pytest.approx(0.55) and std[0] == pytest.approx(0.6946222) and number[0] == 4
    assert std[0] != pytest.approx(0.8020806, abs=1e-3)


def test_who_does_not_vote_is_left_out():
    nan = np.nan
    mean, std, number = vote_strengths(np.float32([[1, nan, 3, nan], [nan] * 4, [2, 2, 2, 2]]))
    np.testing.assert_array_equal(mean, np.float32([2, nan, 2]))
    np.testing.assert_array_equal(std, np.float32([1, nan, 0]))
    assert number.tolist() == [2, 0, 4] and mean.dtype == std.dtype == np.float32


# Written and read ---------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "votes")
    table = VoteTable.load(tmp_path / "votes")
    expected = [shard(0, 4), shard(4, 8), shard(8, 10)]
    for name in (field.name for field in dataclasses.fields(VoteShard)):
        whole = np.concatenate([getattr(part, name) for part in expected])
        np.testing.assert_array_equal(getattr(table, name), whole)
    mean, std, number = vote_strengths(table.differences)
    np.testing.assert_array_equal(table.mean, mean)
    np.testing.assert_array_equal(table.std, std)
    np.testing.assert_array_equal(table.num_votes, number)
    assert (len(table), table.num_members, table.splits) == (20, 4, {"train": 20})
    assert (table.members, table.resample, table.data) == ("ab12", "bootstrap", SOURCE.digests["data"])


def test_the_files_say_what_they_are(tmp_path):
    write(tmp_path)
    said = json.loads((tmp_path / "votes.json").read_text())
    files = [f"train-0000{i}.parquet" for i in range(3)]
    assert said["splits"]["train"] == {"shards": files, "comparisons": 20, "records": 10}
    assert said["complete"] and said["version"] == 1 and said["num_members"] == 4 and said["said"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "votes.json"]
    schema = parquet.read_schema(tmp_path / files[1])
    assert schema.metadata[b"data"].decode() == said["data"] and schema.metadata[b"members"] == b"ab12"
    kinds = {field.name: str(field.type) for field in schema}
    assert kinds.pop("differences").startswith("fixed_size_list<") and kinds == {
        "record_key": "int64",
        "index": "int64",
        "mean": "float",
        "std": "float",
        "num_votes": "int32",
    }


def test_a_comparison_is_found_by_key_and_place(tmp_path):
    write(tmp_path)
    table = VoteTable.load(tmp_path)
    order = np.random.default_rng(0).permutation(len(table))
    np.testing.assert_array_equal(table.find(table.record_key[order], table.index[order]), order)
    assert table.find([-3, -3, 5], [0, 2, 0]).tolist() == [1, -1, -1]


def test_the_mean_becomes_a_side_table(tmp_path):
    nobody = VoteSource(DESCRIPTION, "ab12", 2, "folds")
    folder = VoteFolder(tmp_path, nobody, {"train": 1})
    votes = np.float32([[1, 2], [np.nan, np.nan]])
    folder.write("train", 0, VoteShard(np.asarray([4, 4]), np.asarray([0, 1]), votes))
    folder.finish()
    side = VoteTable.load(tmp_path).side_table()
    side.save(tmp_path / "strength.parquet")
    again = SideTable.load(tmp_path / "strength.parquet")
    assert again.column == "strength" and again.record_key.tolist() == [4] and again.values.tolist() == [1.5]


def test_splits_are_added_and_chosen(tmp_path):
    write(tmp_path)
    write(tmp_path, split="validation", records=3)
    assert VoteTable.load(tmp_path).splits == {"train": 20, "validation": 6}
    assert VoteTable.load(tmp_path, ["validation"]).splits == {"validation": 6}
    with pytest.raises(
        ValueError, match=r"no votes on the test split, only on train, validation.*--splits test"
    ):
        VoteTable.load(tmp_path, ["test"])


# Resumed ------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept(tmp_path):
    write(tmp_path, stop=2)
    with pytest.raises(ValueError, match="not complete"):
        VoteTable.load(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    half = (
        tmp_path / f".train-00002.parquet.{socket.gethostname()}.{gone.pid}.part"
    )  # of a process that is no more
    half.write_bytes(b"half")
    folder = VoteFolder(tmp_path, SOURCE, {"train": 10}, shard_records=9)
    assert folder.shard_records == 4 and folder.pending("train") == [2]
    with pytest.raises(ValueError, match="1 shards of train are missing"):
        folder.finish()
    folder.write("train", 2, shard(8, 10))
    folder.finish()
    assert kept == {path: path.stat().st_mtime_ns for path in kept} and len(VoteTable.load(tmp_path)) == 20
    assert not list(tmp_path.glob(".*"))


def test_a_shard_that_was_cut_is_made_anew(tmp_path):
    write(tmp_path, stop=3)
    path = tmp_path / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    folder = VoteFolder(tmp_path, SOURCE, {"train": 10})
    assert folder.pending("train") == [1] and folder.damaged == [path]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (VoteSource(DESCRIPTION, "cd34", 4, "bootstrap"), "members"),
        (VoteSource({**DESCRIPTION, "text": {}}, "ab12", 4, "bootstrap"), "data"),
    ],
)
def test_votes_of_something_else_are_replaced_only_when_asked(tmp_path, other, what):
    write(tmp_path)
    with pytest.raises(
        ValueError, match=rf"holds votes of other {what}: name another folder, or add --overwrite"
    ):
        VoteFolder(tmp_path, other, {"train": 10})
    assert len(VoteTable.load(tmp_path)) == 20
    folder = VoteFolder(tmp_path, other, {"train": 6}, shard_records=3, overwrite=True)
    assert folder.pending("train") == [0, 1] and not list(tmp_path.glob("*.parquet"))


# Damage -------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "train-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001.parquet is missing.*again"):
        VoteTable.load(tmp_path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_byte_that_flipped_is_noticed(tmp_path, place):
    write(tmp_path)
    path = tmp_path / "train-00001.parquet"
    content = bytearray(path.read_bytes())
    size = len(content) - int.from_bytes(content[-8:-4], "little") - 8  # of what stands before the footer
    content[int(place * (size if place < 0.9 else len(content)))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001.parquet is (damaged|of other votes)"):
        VoteTable.load(tmp_path)


def test_a_shard_of_other_votes_is_named(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", source=VoteSource(DESCRIPTION, "cd34", 4, "bootstrap"))
    shutil.copy(tmp_path / "b/train-00001.parquet", tmp_path / "a")
    with pytest.raises(ValueError, match=r"train-00001.parquet is of other votes.*members differ"):
        VoteTable.load(tmp_path / "a")
    write(tmp_path / "c")
    shutil.copy(tmp_path / "c/train-00000.parquet", tmp_path / "c/train-00001.parquet")
    with pytest.raises(ValueError, match="records differ"):
        VoteTable.load(tmp_path / "c")


def test_an_index_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no votes.*pluralign vote"):
        VoteTable.load(tmp_path)
    for text, problem in (
        ("{", "damaged"),
        ('{"version": 1}', "lacks data, members"),
        ('{"version": 9}', "version 9"),
    ):
        (tmp_path / "votes.json").write_text(text)
        with pytest.raises(ValueError, match=rf"votes.json.*{problem}"):
            VoteTable.load(tmp_path)


def test_infinite_and_misshapen_votes_are_refused(tmp_path):
    folder = VoteFolder(tmp_path, SOURCE, {"train": 1})
    keys = np.asarray([1])
    with pytest.raises(ValueError, match="infinite"):
        folder.write("train", 0, VoteShard(keys, keys, np.float32([[1, 2, np.inf, 3]])))
    with pytest.raises(ValueError, match=r"must be \(1, 4\), got \(1, 3\)"):
        folder.write("train", 0, VoteShard(keys, keys, np.float32([[1, 2, 3]])))


def test_two_entries_of_a_comparison_are_refused(tmp_path):
    folder = VoteFolder(tmp_path, SOURCE, {"train": 1})
    twice = np.asarray([5, 5])
    folder.write("train", 0, VoteShard(twice, twice, np.zeros((2, 4), np.float32)))
    folder.finish()
    with pytest.raises(ValueError, match="entries are of an item that has one already"):
        VoteTable.load(tmp_path)


# Digests ------------------------------------------------------------------------------------------------


def rows(path, number=4, word="fine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": f"r{i}", "prompt": f"p {i}", "chosen": word, "rejected": f"no {i}"} for i in range(number)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def local(folder, *, max_length=40, **more):
    return LocalDataModule(train=rows(folder / "train.jsonl"), text=TextConfig(max_length=max_length), **more)


def test_data_are_the_same_wherever_they_lie(tmp_path):
    before = local(tmp_path / "a")
    digest = data_digest(before)
    moved = local(tmp_path / "b" / "c", loader=LoaderConfig(max_tokens=99, seed=7))
    assert data_digest(moved) == digest and len(digest) == 16
    assert data_digest(local(tmp_path / "a", predict=rows(tmp_path / "rows.jsonl"))) == digest
    assert data_digest(local(tmp_path / "a", test=rows(tmp_path / "rows.jsonl"))) == digest
    check_same_data(described_data(before), moved, "they are")


def test_other_data_or_text_are_refused_with_what_differs(tmp_path):
    before = described_data(local(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"they are of other data \(text.max_length was 40, is 30\)"):
        check_same_data(before, local(tmp_path / "a", max_length=30), "they are")
    rows(tmp_path / "b/train.jsonl", word="other")
    other = LocalDataModule(train=str(tmp_path / "b/train.jsonl"), text=TextConfig(max_length=40))
    with pytest.raises(ValueError, match=r"train has other bytes in train.jsonl.*pluralign vote"):
        check_same_data(before, other, "they are")


def test_a_mixture_may_have_more_than_was_voted_on(tmp_path):
    def mixture(**names):
        parts = {
            name: LocalDataModule(train=rows(tmp_path / file / "t.jsonl", len(file)))
            for name, file in names.items()
        }
        return MixtureDataModule(sources=parts, text=TextConfig(max_length=40))

    alone = LocalDataModule(train=rows(tmp_path / "aaaa/t.jsonl"), text=TextConfig(max_length=40))
    assert data_digest(mixture(one="aaaa", two="bb")) == data_digest(mixture(y="bb", x="aaaa"))
    assert data_digest(mixture(one="aaaa")) == data_digest(alone)
    check_same_data(described_data(alone), mixture(one="aaaa", two="bb"), "they are")
    with pytest.raises(ValueError, match="local is not among two, three"):
        check_same_data(described_data(alone), mixture(two="bb", three="ccc"), "they are")


def checkpoint(**changes):
    torch.manual_seed(0)
    state = {
        "head.weight": torch.randn(1, 4),
        "scale": torch.tensor(2.0),
        "x": torch.ones(2, dtype=torch.bfloat16),
    }
    kept = {"state_dict": state, "hyper_parameters": {"seed": 3}, "epoch": 1}
    return kept | changes


def test_members_are_their_weights_and_settings():
    digest = members_digest([checkpoint()])
    assert members_digest([checkpoint(epoch=9, optimizer_states=[1])]) == digest
    assert members_digest([checkpoint(hyper_parameters={"seed": 4})]) != digest
    other = checkpoint()
    other["state_dict"]["head.weight"][0, 1] += 1e-6
    assert members_digest([other]) != digest
    assert members_digest([checkpoint(), other]) != members_digest([other, checkpoint()])
