"""Arrow files, streams and folders of save_to_disk: equal rows, and whatever was cut is an error."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, Value
from datasets.utils.logging import disable_progress_bar

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import read_saved, read_table

ROWS = [{"a": "x", "n": [1, 2]}, {"n": [3]}, {"a": "z", "n": []}]
TABLE = pa.table({"a": [row.get("a") for row in ROWS], "n": [row["n"] for row in ROWS]})
disable_progress_bar()


def write_stream(path, table=TABLE, size=1):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        ends = []
        for batch in table.to_batches(max_chunksize=size):
            writer.write_batch(batch)
            ends.append(sink.tell())
    return ends


def write_file(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def write_feather(path):
    pyarrow.feather.write_feather(TABLE, str(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.arrow", write_stream),
        ("a.arrow", write_file),
        ("a.feather", write_feather),
        ("a.parquet", lambda path: pq.write_table(TABLE, path)),
        ("saved", lambda path: Dataset(TABLE).save_to_disk(path, num_shards=2)),
    ],
    ids=["stream", "file", "feather", "parquet", "save_to_disk"],
)
def test_rows_and_their_numbers(tmp_path, name, write):
    write(tmp_path / name)
    rows = list(read_table(tmp_path / name))
    assert [row.fields for row in rows] == ROWS
    assert [(row.file, row.line) for row in rows] == [(str(tmp_path / name), i) for i in (1, 2, 3)]


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    texts = [os.urandom(300).hex() for _ in range(24_000)]  # nothing packs it
    held = {}
    for number in (6_000, 24_000):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"a": texts[:number]}), path, row_group_size=number)
        before = pa.total_allocated_bytes()
        held[number] = max(
            pa.total_allocated_bytes() - before for i, _ in enumerate(read_table(path)) if i % 500 == 0
        )
    assert held[24_000] < 1.2 * held[6_000] + 1_000_000, "of 4 and 15 MB"
    assert held[24_000] < 7_000_000


def test_a_stream_cut_between_batches_is_not_a_shorter_one(tmp_path):
    path = tmp_path / "a.arrow"
    ends = write_stream(path)
    content = path.read_bytes()
    for cut in (ends[1], ends[1] + 3, ends[1] - 5, len(content) - 8):
        path.write_bytes(content[:cut])
        with pytest.raises(RecordError, match=r"a\.arrow: unreadable file: .*no end mark.*was cut"):
            list(read_table(path))


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("a.arrow", b"", "0 bytes"),
        ("a.arrow", b"nonsense, and more of it", "message|metadata|Expected"),
        ("a.arrow", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.feather", b"FEA1" + bytes(40), "Feather file of version 1"),
        ("a.jsonl", b"ARROW1\x00\x00" + bytes(40), "an Arrow file"),
    ],
)
def test_files_that_are_no_arrow(tmp_path, name, content, value):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=rf"{name}: unreadable file: .*({value})"):
        list(read_table(tmp_path / name))


def test_an_arrow_file_that_was_cut(tmp_path):
    write_file(tmp_path / "a.arrow")
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-30])
    with pytest.raises(RecordError, match=r"a\.arrow: unreadable file: .*a whole Arrow file"):
        list(read_table(tmp_path / "a.arrow"))


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_columns_of_mixed_types_are_values_and_not_their_json(tmp_path, form):
    features = Features({"side": Json(), "turns": List({"content": Json()}), "n": Value("int64")})
    rows = [
        {"side": [{"role": "user"}], "turns": [{"content": {"x": 1}}], "n": 1},
        {"side": "text", "turns": [{"content": "y"}, {"content": None}], "n": 2},
        {"side": 3, "turns": None, "n": 3},
    ]
    data = Dataset.from_list(rows, features=features)
    path = tmp_path / "a.parquet" if form == "parquet" else tmp_path / "a"
    data.to_parquet(str(path)) if form == "parquet" else data.save_to_disk(path)
    *first, last = (row.fields for row in read_table(path))
    assert first == rows[:2]
    assert last == {"side": 3, "n": 3}


# Folders of save_to_disk that are not whole ----------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    Dataset.from_dict({"a": [f"row {i}" for i in range(3000)]}).save_to_disk(folder, num_shards=3)
    return folder


def test_a_shard_that_is_missing(saved):
    (saved / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"saved is no whole folder .*data-00001-of-00003\.arrow"):
        list(read_saved(saved))


def test_a_shard_that_was_cut_between_batches(saved):
    ends = write_stream(saved / "data-00002-of-00003.arrow", pa.table({"a": ["x"] * 1000}), 500)
    whole = (saved / "data-00002-of-00003.arrow").read_bytes()
    (saved / "data-00002-of-00003.arrow").write_bytes(whole[: ends[0]])
    with pytest.raises(RecordError, match=r"data-00002-of-00003\.arrow: unreadable file: .*no end mark"):
        list(read_saved(saved))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", None, r"saved: unreadable file: .*it has no state\.json"),
        ("state.json", "{", r"state\.json: unreadable file"),
        ("state.json", "{}", r"state\.json: unreadable file"),
        ("dataset_info.json", None, r"dataset_info\.json is not there"),
        ("dataset_info.json", "[", "saved: unreadable file: .*a whole folder of Dataset.save_to_disk"),
        ("data-00000-of-00003.arrow", "", r"data-00000-of-00003\.arrow: unreadable file: .*0 bytes"),
    ],
)
def test_files_of_the_folder_that_are_missing_or_broken(saved, name, content, message):
    (saved / name).unlink() if content is None else (saved / name).write_text(content)
    with pytest.raises((RecordError, FileNotFoundError), match=message):
        list(read_saved(saved))


def test_a_folder_of_several_splits_says_which(tmp_path):
    data = Dataset.from_dict({"a": ["x"]})
    DatasetDict(train=data, dev=data).save_to_disk(tmp_path / "saved")
    with pytest.raises(RecordError, match=r"several splits.*one of the folders in it: train, dev"):
        list(read_table(tmp_path / "saved"))
    assert [row.fields for row in read_table(tmp_path / "saved" / "dev")] == [{"a": "x"}]


def test_a_copy_of_the_folder_gives_the_same_rows(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    state = json.loads((tmp_path / "copy" / "state.json").read_text())
    assert len(state["_data_files"]) == 3
    rows = [row.fields for row in read_saved(tmp_path / "copy")]
    assert rows == [row.fields for row in read_saved(saved)] and len(rows) == 3000
