"""Files that cannot be read: one error with the file's name, what it is and what is wanted; never skipped."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import LocalDataModule, RecordError
from pluralign.datamodules.records import hash_files, open_bytes, read_json_lines, read_table

LINES = b'{"prompt": "Name a bird.", "chosen": "Wren.", "rejected": "Brick."}\n' * 30


def parquet(folder):
    path = folder / "made.parquet"
    pq.write_table(pa.table({"prompt": ["Name a bird."], "chosen": ["Wren."], "rejected": ["Brick."]}), path)
    return path.read_bytes()


def zipped(folder):
    with zipfile.ZipFile(folder / "made.zip", "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    return (folder / "made.zip").read_bytes()


def zstandard(content):
    return pa.compress(content, codec="zstd", asbytes=True)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html>Sign in</html>"
FAULTS = [
    ("rows.jsonl", b"", "0 bytes", "a file with content"),
    ("rows.csv", b"", "0 bytes", "a file with content"),
    ("rows.json.gz", b"", "0 bytes", "a file with content"),
    ("rows.csv.gz", gzip.compress(b""), "0 bytes", "a file with content"),
    ("rows.parquet", b"", "0 bytes", "a file with content"),
    ("rows.jsonl", POINTER, "a Git LFS pointer", "run `git lfs pull`"),
    ("rows.parquet", POINTER, "a Git LFS pointer", "run `git lfs pull`"),
    ("rows.json.gz", POINTER, "a Git LFS pointer", "run `git lfs pull`"),
    ("rows.csv", PAGE, "a web page", "the download gave a page"),
    ("rows.parquet", PAGE, "a web page", "the download gave a page"),
    ("rows.jsonl", gzip.compress(LINES), "packed with gzip", r"ends in \.gz"),
    ("rows.jsonl.gz", gzip.compress(gzip.compress(LINES)), "packed with gzip", r"the unpacked file"),
    ("rows.jsonl", bz2.compress(LINES), "packed with bzip2", r"ends in \.bz2, or the unpacked file"),
    ("rows.jsonl", lzma.compress(LINES), "packed with xz", r"ends in \.xz, or the unpacked file"),
    ("rows.tsv", zstandard(LINES), "packed with zstandard", r"ends in \.zst, or the unpacked file"),
    ("rows.jsonl.zst", zstandard(b""), "0 bytes", "a file with content"),
    ("rows.jsonl.zst", zstandard(LINES)[:-5], "Truncated", "was cut"),
    ("rows.csv.zst", zstandard(LINES) + b"more", "Unknown frame", "damaged"),
    ("rows.jsonl.zst", gzip.compress(LINES), "packed with gzip", r"ends in \.gz"),
    ("rows.ndjson.zst", LINES, "not packed with zstandard", "rename"),
    ("rows.json.zst", POINTER, "a Git LFS pointer", "run `git lfs pull`"),
    ("rows.jsonl.xz", lzma.compress(LINES)[:-20], "ended before the end", "was cut"),
    ("rows.jsonl.xz", lzma.compress(LINES)[:40] + bytes(40), "Corrupt", "damaged"),
    ("rows.jsonl.bz2", bz2.compress(LINES)[:-5], "ended before the end", "was cut"),
    ("rows.tsv.bz2", LINES, "not packed with bzip2", "rename"),
    ("rows.csv", zipped, "a zip archive or a spreadsheet", "saved as CSV"),
    ("rows.csv", "prompt,chosen\n".encode("utf-16"), "text in UTF-16", "UTF-8"),
    ("rows.jsonl", parquet, "a Parquet file", r"ends in \.parquet"),
    ("rows.jsonl.gz", LINES, "not packed with gzip", "rename"),
    ("rows.jsonl.gz", gzip.compress(LINES)[:-15], "ended before the end", "was cut"),
    ("rows.json.gz", gzip.compress(LINES)[:-6] + b"\0" * 6, "CRC", "damaged"),
    ("rows.csv.gz", gzip.compress(LINES) + b"more", "Not a gzipped file", "damaged"),
    ("rows.parquet", b"hello there", "magic bytes", "a whole Parquet file"),
    ("rows.parquet", lambda folder: parquet(folder)[:-20], "magic bytes not found", "was cut"),
]


@pytest.mark.parametrize("on_invalid", ["error", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "value", "allowed"), FAULTS, ids=[f"{name}-{value}" for name, _, value, _ in FAULTS]
)
def test_files_that_are_something_else(tmp_path, name, content, value, allowed, on_invalid):
    path = tmp_path / name
    path.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(
        RecordError, match=f"{name}: unreadable file: .*{value}.*allowed: .*{allowed}"
    ) as caught:
        LocalDataModule(test=str(path), on_invalid=on_invalid).setup("test")
    assert (caught.value.file, caught.value.line, caught.value.reason) == (str(path), 0, "unreadable file")


def test_rows_before_the_cut_do_not_hide_it(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES * 4000)[:-200])
    rows = read_json_lines(path)
    assert next(rows).line == 1
    with pytest.raises(RecordError, match="ended before the end"):
        list(rows)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv.gz", "rows.parquet"])
def test_files_that_this_user_may_not_read(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"anything")

    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)  # whoever runs the tests may be allowed to read everything
    for read in (lambda: list(read_table(path)), lambda: hash_files([path])):
        with pytest.raises(
            RecordError, match=rf"{name}: unreadable file: .*'Permission denied'.*permissions"
        ):
            read()


def test_a_folder_that_nobody_may_look_into(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(RecordError, match=r"rows\.csv: unreadable file: .*or those of its folder"):
        LocalDataModule(test=str(tmp_path / "rows.csv")).setup("test")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_folder_in_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(RecordError, match=f"{name}: unreadable file: field 'file' is 'a folder'"):
        list(read_table(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=f"test='.*{name}' is a folder"):
        LocalDataModule(test=str(tmp_path / name)).setup("test")


def test_a_file_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        list(read_table(tmp_path / "nowhere.jsonl"))


def test_what_may_be_empty_or_in_utf_16(tmp_path):
    for name, content in (("a.jsonl", b""), ("a.jsonl.gz", b""), ("b.jsonl.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(content)
        assert list(read_json_lines(tmp_path / name, empty=True)) == []
    (tmp_path / "a.xml").write_bytes("<a/>".encode("utf-16"))
    with open_bytes(tmp_path / "a.xml", utf16=True) as stream:
        assert stream.read().decode("utf-16") == "<a/>"
