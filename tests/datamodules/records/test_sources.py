"""What a user may call the rows of a split: files, patterns, lists, folders; and what is missing or there twice."""

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from datasets.utils.logging import disable_progress_bar

from pluralign.datamodules import LocalDataModule, RecordError, TextConfig
from pluralign.datamodules.records import find_file, find_tables, table_kind, without_secrets

disable_progress_bar()


def write(folder, *names):
    """Files of JSON Lines, each with a row that has its name, and no more."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"a": name}).encode() + b"\n"
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def found(given, tmp_path, **keywords):
    return find_tables(given, copies=tmp_path / "copies", **keywords)


def values(source):
    return [row.fields["a"] for row in source.rows()]


def test_a_pattern_gives_its_files_in_natural_order(tmp_path):
    write(tmp_path, "part-10.jsonl", "part-2.jsonl.gz", "part-1.ndjson", "other.jsonl")
    source = found(str(tmp_path / "part-*"), tmp_path)
    assert source.kind == "JSON Lines"
    assert values(source) == ["part-1.ndjson", "part-2.jsonl.gz", "part-10.jsonl"]
    assert [row.file for row in source.rows()] == [str(path) for path in source.files]


def test_patterns_reach_into_folders_and_brackets_may_be_part_of_a_name(tmp_path):
    write(tmp_path, "x/b.jsonl", "x/y/a.jsonl", "z[1].jsonl")
    assert values(found(str(tmp_path / "x/**/*.jsonl"), tmp_path)) == ["x/b.jsonl", "x/y/a.jsonl"]
    assert values(found(str(tmp_path / "z[1].jsonl"), tmp_path)) == ["z[1].jsonl"]


def test_a_list_keeps_its_order(tmp_path):
    write(tmp_path, "b.jsonl", "a.jsonl", "s/1.jsonl", "s/2.jsonl")
    given = [str(tmp_path / name) for name in ("b.jsonl", "a.jsonl", "s/*.jsonl")]
    assert values(found(given, tmp_path)) == ["b.jsonl", "a.jsonl", "s/1.jsonl", "s/2.jsonl"]


def test_a_folder_of_shards(tmp_path):
    write(tmp_path, "data/x-00001-of-00002.jsonl", "data/x-00000-of-00002.jsonl")
    (tmp_path / "data" / "README.md").write_text("Notes.")
    (tmp_path / "data" / ".gitattributes").write_text("*")
    (tmp_path / "data" / "_SUCCESS").touch()
    names = ["data/x-00000-of-00002.jsonl", "data/x-00001-of-00002.jsonl"]
    assert values(found(str(tmp_path / "data"), tmp_path)) == names


def test_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values(found("~/a.jsonl", tmp_path)) == values(found("~/*.jsonl", tmp_path)) == ["a.jsonl"]
    with pytest.raises(FileNotFoundError, match=r"train='~nobody-of-this-name/a\.jsonl'"):
        found("~nobody-of-this-name/a.jsonl", tmp_path, argument="train")


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], "no.jsonl", r"f='.*no\.jsonl' is not a file .*has beside\.jsonl\): change f to the path of a \.jsonl"),
        ([], "no-*.parquet", r"a pattern that matches nothing .*has beside\.jsonl"),
        ([], "deep/er/no.jsonl", r"is not a file .*has beside\.jsonl"),
        (["d/README.md"], "d", r"a folder without tables .*has README\.md"),
        (["d/x.jsonl", "d/sub/y.jsonl"], "d", r"folders in it \(sub\).*change f to a pattern"),
        (["d/NOTE.md", "d/sub/deep/y.csv.gz"], "d", r"such as .*/d/\*\*/\*\.csv\.gz$"),
        (["d/sub/NOTE.md"], "d", r"such as .*/d/\*\.parquet, or \*\* for folders in folders"),
        (["d/x.jsonl", "d/y.csv"], "d", r"several kinds: .*x\.jsonl is JSON Lines, .*y\.csv is CSV; .*/\*\.jsonl"),
        (["d/x.jsonl", "d/y.odd"], "d", r"y\.odd: unknown suffix '\.odd'"),
        (["x.jsonl", "x.jsonl.gz"], "x.*", r"matches .*x\.jsonl and .*x\.jsonl\.gz: its rows would count twice"),
        (["x.jsonl"], ["x.jsonl", "x.jsonl"], r"names .*x\.jsonl twice"),
        (
            ["t-00000-of-00003.jsonl", "t-00002-of-00003.jsonl"],
            "t-*",
            r"of the 3 files .*t-\.\.\.-of-00003\.jsonl, 00001 are not there; .*in a list",
        ),
        (
            ["t-0-of-2.jsonl", "t-1-of-2.jsonl", "t-0-of-1.jsonl"],
            "t-*",
            r"divided into 1, 2 files: rows would count twice",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_or_not_clear(tmp_path, files, given, message):
    write(tmp_path, "beside.jsonl", *files)
    given = [str(tmp_path / name) for name in given] if isinstance(given, list) else str(tmp_path / given)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        found(given, tmp_path, argument="f")


def test_shards_may_be_counted_from_one_and_chosen_one_by_one(tmp_path):
    write(tmp_path, "t-1-of-2.jsonl", "t-2-of-2.jsonl", "v-0-of-9.jsonl")
    assert len(found(str(tmp_path / "t-*"), tmp_path).tables) == 2
    assert values(found(str(tmp_path / "v-0-of-9.jsonl"), tmp_path)) == ["v-0-of-9.jsonl"]
    assert values(found([str(tmp_path / "v-0-of-9.jsonl")], tmp_path)) == ["v-0-of-9.jsonl"]


def test_links_pipes_and_names_that_are_too_long(tmp_path):
    write(tmp_path, "a.jsonl")
    (tmp_path / "good.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert values(found(str(tmp_path / "good.jsonl"), tmp_path)) == ["a.jsonl"]
    with pytest.raises(FileNotFoundError, match=r"a link to .*gone\.jsonl, which is not there"):
        found(str(tmp_path / "broken.jsonl"), tmp_path)
    with pytest.raises(RecordError, match=r"pipe\.jsonl: unreadable file: .*a pipe .*write what it gives"):
        found(str(tmp_path / "pipe.jsonl"), tmp_path)
    with pytest.raises(RecordError, match=r"unreadable file: .*name too long"):
        found(str(tmp_path / ("x" * 300 + ".jsonl")), tmp_path)


def test_a_saved_folder_and_one_of_several_splits(tmp_path):
    one = Dataset.from_dict({"a": ["x", "y"]})
    one.save_to_disk(tmp_path / "one")
    DatasetDict(train=one, dev=one.select([1])).save_to_disk(tmp_path / "several")
    source = found(str(tmp_path / "one"), tmp_path)
    assert (source.kind, values(source)) == ("save_to_disk", ["x", "y"])
    assert {path.name for path in source.files} > {"state.json", "dataset_info.json"}
    assert values(found(str(tmp_path / "several"), tmp_path, split="train")) == ["x", "y"]
    assert values(found(str(tmp_path / "several" / "dev"), tmp_path, split="train")) == ["y"]
    assert values(found(str(tmp_path / "*" / "dev"), tmp_path)) == ["y"]
    with pytest.raises(
        FileNotFoundError, match=r"has the splits train, dev, and no validation: give .*several/train"
    ):
        found(str(tmp_path / "several"), tmp_path, split="validation")


def test_the_first_rows_cost_no_more(tmp_path):
    write(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").write_text("[")
    source = found(str(tmp_path / "*.jsonl"), tmp_path)
    assert [row.fields["a"] for row in islice(source.rows(), 1)] == ["a.jsonl"]


def test_kinds(tmp_path):
    names = ["a.NDJSON", "a.json.xz", "a.Csv.bz2", "a.tsv.zst", "a.parquet", "a.feather"]
    kinds = ["JSON Lines", "JSON", "CSV", "TSV", "Parquet", "Arrow"]
    assert [table_kind(Path(name)) for name in names] == kinds


# Other stores ----------------------------------------------------------------------------------------------


@pytest.fixture
def store():
    import fsspec

    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/", recursive=True)


def test_files_of_a_store_are_copied_once_and_again_when_they_change(tmp_path, store):
    store.pipe({f"/bucket/p-{i}.jsonl": json.dumps({"a": f"row {i}"}).encode() for i in (1, 2, 10)})
    source = found("memory://bucket/p-*.jsonl", tmp_path)
    rows = list(source.rows())
    assert [row.fields["a"] for row in rows] == ["row 1", "row 2", "row 10"]
    assert (rows[0].file, rows[0].line) == ("memory:///bucket/p-1.jsonl", 1)
    assert [path.name for path in source.files] == ["p-1.jsonl", "p-2.jsonl", "p-10.jsonl"]
    assert found("memory://bucket", tmp_path).files == source.files, (
        "a folder of shards; nothing is copied again"
    )
    store.pipe("/bucket/p-2.jsonl", b'{"a": "new"}')
    again = found("memory://bucket/p-*.jsonl", tmp_path)
    assert values(again) == ["row 1", "new", "row 10"]
    assert [new == old for new, old in zip(again.files, source.files, strict=True)] == [True, False, True]
    assert not [path for path in (tmp_path / "copies").rglob(".*")], "no half copies"


def test_files_of_a_store_that_says_nothing_of_changes_are_copied_anew(tmp_path, store, monkeypatch):
    store.pipe("/x.jsonl", b'{"a": "one"}')
    monkeypatch.setattr(store, "info", lambda path, **_: {"name": path, "size": 12, "type": "file"})
    assert values(found("memory://x.jsonl", tmp_path)) == ["one"]
    store.pipe("/x.jsonl", b'{"a": "two"}')
    assert values(found("memory://x.jsonl", tmp_path)) == ["two"]


def test_errors_of_files_of_a_store_name_them(tmp_path, store):
    store.pipe({"/b/x.jsonl": b"[1]\n", "/b/y.csv": b"a\n\xe9\n"})
    (row,) = found("memory://b/x.jsonl", tmp_path).rows()
    assert str(row).startswith("memory:///b/x.jsonl:1: wrong type")
    with pytest.raises(RecordError, match=r"^memory:///b/y\.csv:2: not UTF-8"):
        list(found("memory://b/y.csv", tmp_path).rows())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("memory://nowhere/x.jsonl", FileNotFoundError, "matches no file: change f to"),
        ("memory://nowhere/*.csv", FileNotFoundError, "f='memory://nowhere/\\*.csv' matches no file"),
        ("nostore://x.csv", RecordError, "^nostore://x.csv: unreadable file: .*Protocol not known: nostore"),
        ("zip://x.csv::/nowhere.zip", RecordError, "^zip://x.csv::/nowhere.zip: .*FileNotFoundError"),
        ("gs://bucket/x.csv", RecordError, "^gs://bucket/x.csv: .*gcsfs.*install it, or copy"),
        ("hf://datasets/a/b/x.csv", RecordError, "^hf://datasets/a/b/x.csv: unreadable file: "),
    ],
)
def test_stores_that_do_not_answer(tmp_path, store, monkeypatch, given, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        found(given, tmp_path, argument="f")


def test_urls_of_this_machine_are_read_in_place(tmp_path):
    write(tmp_path, "a.jsonl", "b.jsonl")
    source = found(f"file://{tmp_path}/*.jsonl", tmp_path)
    assert source.files == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert not (tmp_path / "copies").exists()


def test_a_file_in_an_archive(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.jsonl", '{"a": "inside"}')
    assert values(found(f"zip://in/x.jsonl::{tmp_path}/a.zip", tmp_path)) == ["inside"]


SIGNED = "https://ann:pa55@host/rows.jsonl?X-Signature=5ecret&v=2"


def test_addresses_are_shown_without_secrets():
    assert without_secrets(SIGNED) == "https://host/rows.jsonl"
    assert without_secrets(f"GET {SIGNED} failed, 's3://k:5ecret@b/part-?.jsonl' too") == (
        "GET https://host/rows.jsonl failed, 's3://b/part-?.jsonl' too"
    )


def test_what_a_store_says_is_shown_without_secrets(tmp_path, store, monkeypatch):
    def refuses(path, **_):
        raise PermissionError(f"403 for {SIGNED}")

    with monkeypatch.context() as patch:
        patch.setattr(store, "isfile", refuses)
        with pytest.raises(RecordError, match=r"403 for https://host/rows\.jsonl") as caught:
            found("memory://ann:pa55@b/x.jsonl?token=5ecret", tmp_path)
    every = [str(caught.value), *map(str, (caught.value.__cause__, caught.value.value, caught.value.file))]
    assert caught.value.__suppress_context__
    assert not [text for text in every if "5ecret" in text or "pa55" in text]


def test_a_signed_address_is_read_by_its_ending(tmp_path, store):
    store.pipe("/b/x.csv?token=5ecret", b"a\n1\n")
    source = found("memory://b/x.csv?token=5ecret", tmp_path)
    (row,) = source.rows()
    assert source.kind == "CSV" and row.file == "memory:///b/x.csv" and row.fields == {"a": "1"}
    assert not [path for path in (tmp_path / "copies").rglob("*") if "5ecret" in path.name]


def test_a_copy_that_was_cut_is_none(tmp_path, store, monkeypatch):
    store.pipe("/x.jsonl", b'{"a": "one"}')
    info = store.info
    monkeypatch.setattr(store, "info", lambda path, **more: {**info(path, **more), "size": 20})
    with pytest.raises(RecordError, match="12 bytes came of 20"):
        found("memory://x.jsonl", tmp_path)
    assert not [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]


def test_caches_and_folders_of_data_sets_are_no_stores(tmp_path, monkeypatch):
    text = TextConfig()
    with pytest.raises(
        ValueError, match=r"cache_dir must be a folder of this machine.*got 's3://b/c': token caches"
    ):
        LocalDataModule(train="x.jsonl", text=text, cache_dir="s3://k:5ecret@b/c")
    monkeypatch.setenv("PLURALIGN_CACHE", "gs://b/c")
    with pytest.raises(ValueError, match=r"\$PLURALIGN_CACHE must be a folder .*'gs://b/c'"):
        LocalDataModule(train="x.jsonl", text=text).cache_root()
    with pytest.raises(ValueError, match=r"data_dir names a folder of a store \(s3://...\)"):
        find_file(Path("s3://bucket/hh"), "train.jsonl")
