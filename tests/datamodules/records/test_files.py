"""Readers: rows with their places, faults with theirs, gzip, and files that are not there."""

import csv
import gzip
import json
from types import SimpleNamespace

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.records import (
    HubDataset,
    SourceRow,
    find_file,
    hash_files,
    parse_rows,
    read_csv,
    read_json_lines,
    read_json_list,
    read_parquet,
    read_table,
)


def test_source_row_names_place_and_columns():
    row = SourceRow("f.csv", 3, {"a": "x", "n": 1})
    assert row.text("a") == "x"
    with pytest.raises(RecordError, match=r"f\.csv:3: missing field: field 'b'.*there are a, n"):
        row.get("b")
    with pytest.raises(RecordError, match=r"f\.csv:3: wrong type: field 'n' is 1; allowed: a string"):
        row.text("n")


def test_fields_that_load_made_have_the_kind_that_is_asked_for():
    row = SourceRow("f.csv", 3, {"pairs": [1, 2]})
    assert row.made("pairs", list) == [1, 2]
    with pytest.raises(TypeError, match=r"^pairs must be a tuple; got \[1, 2\]$"):
        row.made("pairs", tuple)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n{"a": "\xc3\xa9"}\nnonsense\n[1]\n{"a": "\xe9"}\n{"a": 2}')
    rows = list(read_json_lines(path))
    assert [row.fields for row in rows if isinstance(row, SourceRow)] == [{"a": 1}, {"a": "é"}, {"a": 2}]
    assert [row.line for row in rows] == [1, 4, 5, 6, 7, 8]
    errors = [row for row in rows if isinstance(row, RecordError)]
    assert [error.reason for error in errors] == ["not JSON", "wrong type", "not UTF-8"]
    assert all(error.file == str(path) for error in errors)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_gzip_gives_the_same_rows(tmp_path, suffix):
    content = {".jsonl": b'{"a": "1"}\n', ".json": b'[{"a": "1"}]', ".csv": b"a\n1\n"}[suffix]
    plain, packed = tmp_path / f"x{suffix}", tmp_path / f"x{suffix}.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert (
        [row.fields for row in read_table(plain)]
        == [row.fields for row in read_table(packed)]
        == [{"a": "1"}]
    )


def test_json_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, 5]')
    first, second = read_json_list(path)
    assert (first.line, first.fields) == (1, {"a": 1})
    assert (second.line, second.reason) == (2, "wrong type")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', "not JSON: .*Expecting a list: line 1"),
        (b"[", "not JSON: .*Expecting value: line 1"),
        (b'[\n"ok",\n"\xe9"]', r"a\.json:3: not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_list_stops(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        list(read_json_list(path))


def test_csv_keeps_strings_and_line_breaks_and_leaves_empty_cells_out(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["a", "b"], ["1", ""], ["x, y\nz", "é"]])
    rows = list(read_csv(path))
    assert [row.fields for row in rows] == [{"a": "1"}, {"a": "x, y\nz", "b": "é"}]
    assert rows[0].line == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\ufeffa;b\r\n1,5;"x;\ny"\r\n', {"a": "1,5", "b": "x;\ny"}),
        ('"a, too";b\n1;2\n', {"a, too": "1", "b": "2"}),
        ("a\tb\n1;5\t2\n", {"a": "1;5", "b": "2"}),
        ("a,b;c\n1,2\n", {"a": "1", "b;c": "2"}),
        ("a\n1;2\n", {"a": "1;2"}),
    ],
)
def test_csv_is_divided_as_its_header_is(tmp_path, text, expected):
    """Spreadsheets write semicolons where the comma is the decimal mark."""
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    (row,) = read_csv(path)
    assert row.fields == expected


def test_csv_row_with_too_many_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2,3\n4,5\n")
    error, row = read_csv(path)
    assert (error.reason, error.line, row.fields) == ("wrong type", 2, {"a": "4", "b": "5"})


def test_csv_row_with_too_few_cells(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected,preference\nA?,b,c\nD?,e,f,\n\nG?,h")
    short, whole, cut = read_csv(path)
    assert [error.reason for error in (short, cut)] == ["wrong length"] * 2 and "4 cells" in str(short)
    assert (short.line, whole.line, cut.line) == (2, 3, 5)
    assert whole.fields == {"prompt": "D?", "chosen": "e", "rejected": "f"}


def test_csv_with_an_open_quote(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a\nfine\n"open\n')
    rows = read_csv(path)
    assert next(rows).fields == {"a": "fine"}
    with pytest.raises(RecordError, match=r"a\.csv:3: not CSV"):
        next(rows)


def test_a_byte_order_mark_is_no_content(tmp_path):
    for name, content in {"a.jsonl": '{"a": 1}', "a.json": '[{"a": 1}]', "a.csv": "a\n1\n"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        (row,) = read_table(tmp_path / name)
        assert list(row.fields) == ["a"]


def test_csv_that_is_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\nfine\ncaf\xe9\n")
    with pytest.raises(RecordError, match=r"a\.csv:3: not UTF-8"):
        list(read_csv(path))


def test_parquet_leaves_nulls_out(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x", None], "n": [[1, 2], [3]]}), path)
    assert [(row.line, row.fields) for row in read_parquet(path)] == [
        (1, {"a": "x", "n": [1, 2]}),
        (2, {"n": [3]}),
    ]


def test_csv_columns_given_twice(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,c,b\n1,2,3,4\n")
    with pytest.raises(
        RecordError, match=r"a\.csv:1: duplicate column: field 'header' is 'b'; .*\(it is there 2 times\)"
    ):
        list(read_csv(path))
    path.write_text("a,,b,\n1,,2,\n")  # a spreadsheet's empty columns
    assert [row.fields for row in read_csv(path)] == [{"a": "1", "b": "2"}]


def test_csv_cells_of_any_length(tmp_path):
    path, limit = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text(f"a,b\n{'x' * 300_000},1\n2,3\n")
    rows = read_csv(path)
    assert len(next(rows).fields["a"]) == 300_000
    assert csv.field_size_limit() == limit, "other readers of the process keep theirs"
    assert next(rows).fields == {"a": "2", "b": "3"}


def test_parquet_columns_given_twice(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([["x"], ["y"]], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(RecordError, match=r"a\.parquet:1: duplicate column: field 'header' is 'a'"):
        list(read_parquet(tmp_path / "a.parquet"))


def test_parquet_cells_that_python_cannot_hold_are_errors_of_their_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"fine", b"\xff\xfe", b"too"]).view(pa.string())
    days = pa.array([0, 1, 10**8], pa.int32()).view(pa.date32())
    pq.write_table(pa.table({"a": texts, "day": days}), tmp_path / "a.parquet")
    first, second, third = read_parquet(tmp_path / "a.parquet")
    assert (first.line, first.fields["a"]) == (1, "fine")
    assert [(error.line, error.reason) for error in (second, third)] == [(2, "wrong type"), (3, "wrong type")]


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"unknown suffix '\.xlsx'.*\.jsonl, .*\.json, \.csv, .*\.parquet"):
        read_table(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match=r"a Parquet file is packed inside; unpack it"):
        read_table(tmp_path / "a.parquet.gz")


def test_find_file(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(b"")
    assert find_file(tmp_path, "b.json", "a.json").name == "a.json.gz"
    with pytest.raises(FileNotFoundError, match=r"none of c\.json.*there: a\.json\.gz"):
        find_file(tmp_path, "c.json")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_file(tmp_path / "nowhere", "c.json")


def test_files_of_one_name_in_two_folders_both_count(tmp_path):
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "train.jsonl")
        paths[-1].write_text(folder)
    before = hash_files(paths)
    paths[0].write_text("changed")
    assert len(before) == 2
    assert hash_files(paths)[0] != before[0]
    assert hash_files(paths)[1] == before[1]


def test_fields_of_objects_are_named_with_dots():
    row = SourceRow("f.json", 3, {"a": {"b": {"c": "x"}}, "d.e": 1, "f": None})
    assert (row.text("a.b.c"), row.get("d.e"), row.get("f")) == ("x", 1, None)
    assert [row.get(name, optional=True) for name in ("a.b.c", "a.x.c", "f.g", "h")] == [
        "x",
        None,
        None,
        None,
    ]
    for name, message in (
        ("a.x.c", r"f\.json:3: missing field: field 'a\.x'.*there are b"),
        ("a.b.c.d", r"f\.json:3: wrong type: field 'a\.b\.c' is 'x'; allowed: an object"),
        ("f.g", "missing field: field 'f' is None; allowed: an object"),
    ):
        with pytest.raises(RecordError, match=message):
            row.get(name)


def test_parsed_rows_keep_order_and_errors_get_their_place():
    unread = RecordError("line", "x", "JSON", reason="not JSON", file="f", line=2)
    rows = [SourceRow("f", 1, {"n": "one"}), unread, SourceRow("f", 3, {"n": 3})]
    one, two, three = parse_rows(rows, lambda row: row.text("n"))
    assert (one, two) == ("one", unread)
    assert (three.file, three.line, three.field, three.reason) == ("f", 3, "n", "wrong type")


def test_hub_rows_are_pinned_and_placed(monkeypatch):
    asked = SimpleNamespace()

    def load_dataset(name, **kwargs):
        asked.name, asked.kwargs = name, kwargs
        return [{"a": 1, "b": None}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = HubDataset("org/set", "0123456789abcdef")
    (row,) = hub.rows("train", data_dir="part")
    assert (asked.name, asked.kwargs) == (
        "org/set",
        {"revision": "0123456789abcdef", "split": "train", "data_dir": "part"},
    )
    assert row == SourceRow("org/set@0123456789ab/part[train]", 1, {"a": 1})
    assert (hub.pin(None), hub.pin("folder")) == ("org/set@0123456789abcdef", None)


def test_deep_json_is_an_error_of_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 100_000 + "\n" + json.dumps({"a": 1}))
    first, second = read_json_lines(path)
    assert first.reason == "nested too deeply"
    assert second.fields == {"a": 1}
