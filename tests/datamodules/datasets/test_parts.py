"""Releases in parts: where files are, numbers through all of them, and a test split by the hash of a key."""

import json

import pytest

from pluralign.datamodules import Message, RecordError
from pluralign.datamodules.datasets.parts import (
    find_parts,
    first_words,
    numbered_rows,
    read_parts,
    rows_of_source,
)
from pluralign.datamodules.records import SourceRow


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")


def test_the_first_pattern_that_some_files_have_counts(tmp_path):
    touch(tmp_path, "train.jsonl", "data/train-1.parquet", "data/train-0.parquet", "data/test-0.parquet")
    (tmp_path / "train-x.parquet").mkdir()
    found = find_parts(tmp_path, "train-*.parquet", "train.jsonl")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "data/train-0.parquet",
        "data/train-1.parquet",
    ]
    assert find_parts(tmp_path, "train.csv", "train.jsonl") == [tmp_path / "train.jsonl"]


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no a\*\.csv or b\.csv, nor has data in it; there: nothing"
    ):
        find_parts(tmp_path, "a*.csv", "b.csv")
    with pytest.raises(FileNotFoundError, match="there: no such folder"):
        find_parts(tmp_path / "none", "a.csv")
    touch(tmp_path, "data/c.csv")
    with pytest.raises(FileNotFoundError, match=r"there: data, data/c\.csv"):
        find_parts(tmp_path, "a.csv")


def test_a_release_of_which_parts_are_missing_is_refused(tmp_path):
    touch(tmp_path, *(f"data/train-0000{i}-of-00004.parquet" for i in (0, 1, 3)))
    with pytest.raises(FileNotFoundError, match=r"data_dir=.*of the 4 files .*00002 are not there"):
        find_parts(tmp_path, "train-*.parquet", "train.jsonl")
    touch(tmp_path, "data/train-00002-of-00004.parquet")
    assert len(find_parts(tmp_path, "train-*.parquet")) == 4
    odd = tmp_path / "odd [1]"
    odd.mkdir()
    touch(odd, "train-10.parquet", "train-9.parquet")
    assert [path.name for path in find_parts(odd, "train-*.parquet")] == [
        "train-9.parquet",
        "train-10.parquet",
    ]


def test_rows_are_numbered_through_all_parts(tmp_path):
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name}{i}"}) for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    rows = list(numbered_rows("all", read_parts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])))
    named = [
        row.reason if isinstance(row, RecordError) else (row.text("text"), row.text("id")) for row in rows
    ]
    assert named == [
        ("a0", "all:1"),
        "not JSON",
        ("a1", "all:3"),
        ("b0", "all:4"),
        "not JSON",
        ("b1", "all:6"),
    ]


def test_a_tenth_is_held_out_and_errors_are_of_training():
    rows = [SourceRow("f", i, {"text": f"prompt {i % 1000}"} if i else {}) for i in range(4000)]
    sides = {
        source: list(rows_of_source(source, rows, lambda row: row.text("text")))
        for source in ("train", "test")
    }
    error, *train = sides["train"]
    assert (error.reason, error.file, error.line) == ("missing field", "f", 0)
    assert len(train) + len(sides["test"]) == 3999
    keys = [{row.text("group") for row in found} for found in (train, sides["test"])]
    assert not keys[0] & keys[1] and 70 <= len(keys[1]) <= 130
    assert rows[1].text("text") == "prompt 1" and "group" not in rows[1].fields


def test_what_the_user_says_first():
    system, user = Message("system", "Be brief."), Message("user", " Rain? ")
    assert first_words((system, user, Message("assistant", "Yes."))) == "Rain?"
    assert first_words((system,)) == "Be brief."
    assert first_words(" Rain? ") == "Rain?"
