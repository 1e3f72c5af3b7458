"""The splits of LocalDataModule as files, patterns, lists, folders and URLs: the same records, ids, places and caches."""

import csv
import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from datasets.utils.logging import disable_progress_bar

from pluralign.datamodules import LocalDataModule, PersonaVotesDataModule, RecordError
from pluralign.train import main

ROWS = [
    {"prompt": f"What is {i} of {i % 3}?", "chosen": f"It is {i}.", "rejected": "No idea,\nsorry.", "user": "ann"}
    for i in range(9)
]  # fmt: skip
disable_progress_bar()


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_table(rows, delimiter):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def write_saved(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "rows", num_shards=2)
    return "rows"


def write_splits(folder):
    DatasetDict(test=Dataset.from_list(ROWS), train=Dataset.from_list(ROWS[:2])).save_to_disk(folder / "rows")
    return "rows"


def write_file(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return name

    return write


def write_shards(folder):
    (folder / "shards").mkdir()
    for i in range(3):
        pq.write_table(
            pa.Table.from_pylist(ROWS[3 * i : 3 * i + 3]), folder / f"shards/rows-0000{i}-of-00003.parquet"
        )
    return "shards"


def write_arrow(folder):
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink:
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return "rows.arrow"


FORMS = {
    "lines": write_file("rows.ndjson", as_lines(ROWS)),
    "lines named json": write_file("rows.json", as_lines(ROWS)),
    "zstandard": write_file("rows.jsonl.zst", pa.compress(as_lines(ROWS), codec="zstd", asbytes=True)),
    "list": write_file("rows.json", json.dumps(ROWS).encode()),
    "csv": write_file("rows.csv", as_table(ROWS, ",")),
    "tsv": write_file("rows.tsv", as_table(ROWS, "\t")),
    "shards": write_shards,
    "arrow": write_arrow,
    "save_to_disk": write_saved,
    "save_to_disk of splits": write_splits,
}


def records(data, split="test"):
    return [data.to_example(row) for row in data.load(split)]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(tmp_path, form):
    (tmp_path / "plain.jsonl").write_bytes(as_lines(ROWS))
    given = str(tmp_path / FORMS[form](tmp_path))
    data = LocalDataModule(test=given)
    assert records(data) == records(LocalDataModule(test=str(tmp_path / "plain.jsonl"))), "ids too"
    data.setup("test")
    assert len(data.table("test")) == 9 and data.reports["test"].rows == 9


def shards(folder, names, content=ROWS):
    size = -(-len(content) // len(names))
    for i, name in enumerate(names):
        (folder / name).write_bytes(as_lines(content[i * size : (i + 1) * size]))
    return str(folder / "*.jsonl")


def test_rows_of_shards_keep_their_ids_order_and_places(tmp_path):
    again = [*ROWS[:6], *ROWS[:3]]  # equal rows are counted across shards
    pattern = shards(tmp_path, ["p-1.jsonl", "p-2.jsonl", "p-10.jsonl"], again)
    (tmp_path / "whole").write_bytes(as_lines(again))
    (tmp_path / "whole").rename(tmp_path / "whole.ndjson")
    rows = list(LocalDataModule(test=pattern).load("test"))
    whole = list(LocalDataModule(test=str(tmp_path / "whole.ndjson")).load("test"))
    assert [row.fields for row in rows] == [row.fields for row in whole]
    assert rows[6].fields["id"] == f"{rows[0].fields['id']}:2"
    assert [(row.file.rpartition("/")[2], row.line) for row in rows[2:7:2]] == [
        ("p-1.jsonl", 3),
        ("p-2.jsonl", 2),
        ("p-10.jsonl", 1),
    ]


def test_an_error_names_the_shard_and_a_skip_counts_over_all(tmp_path):
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl"], [*ROWS[:3], {**ROWS[3], "chosen": 3}])
    with pytest.raises(RecordError, match=r"b\.jsonl:2: wrong type: field 'chosen'"):
        LocalDataModule(test=pattern).setup("test")
    data = LocalDataModule(test=pattern, on_invalid="skip")
    data.setup("test")
    assert (data.reports["test"].rows, data.reports["test"].invalid) == (4, {"wrong type": 1})


def test_a_shard_that_cannot_be_read_is_never_skipped(tmp_path):
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl"])
    (tmp_path / "b.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RecordError, match=r"b\.jsonl: unreadable file: .*git lfs pull"):
        LocalDataModule(test=pattern, on_invalid="skip").setup("test")


def test_the_cache_follows_bytes_names_and_number_of_all_shards(tmp_path):
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl"])

    def folder():
        return LocalDataModule(test=pattern).cache_folder()

    before = folder()
    assert folder() == before
    assert LocalDataModule(test=pattern).settings()["names"] == {"test": ["a.jsonl", "b.jsonl"]}
    (tmp_path / "b.jsonl").write_bytes(as_lines(ROWS[:1]))
    changed = folder()
    (tmp_path / "c.jsonl").write_bytes(as_lines(ROWS[1:2]))
    more = folder()
    (tmp_path / "c.jsonl").rename(tmp_path / "d.jsonl")
    assert len({before, changed, more, folder()}) == 4
    single = LocalDataModule(test=str(tmp_path / "a.jsonl"))
    assert single.settings()["names"] == {"test": "a.jsonl"}, "as before there were shards"


def test_files_of_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/a.jsonl": as_lines(ROWS[:5]), "/bucket/b.jsonl": as_lines(ROWS[5:])})
    data = LocalDataModule(test="memory://bucket/*.jsonl", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "plain.jsonl").write_bytes(as_lines(ROWS))
    assert records(data) == records(LocalDataModule(test=str(tmp_path / "plain.jsonl")))
    before = data.cache_folder()
    store.pipe("/bucket/b.jsonl", as_lines(ROWS[6:]))
    assert data.cache_folder() != before, "its bytes count"
    assert len(records(data)) == 8
    store.rm("/bucket", recursive=True)


def test_a_column_that_no_shard_has_and_one_that_nothing_reads(tmp_path):
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl"], [{**row, "note": "x"} for row in ROWS])
    with pytest.raises(ValueError, match=r"columns names who, which no row of .*\*\.jsonl has"):
        list(LocalDataModule(test=pattern, columns={"user": "who"}).load("test"))
    with pytest.warns(UserWarning, match=r"no field reads these columns of .*\*\.jsonl: note"):
        LocalDataModule(test=pattern).setup("test")


@pytest.mark.parametrize("given", ["", [], ["a.jsonl", ""]])
def test_no_name_is_no_file(given):
    with pytest.raises(ValueError, match=r"test must name a file, got .*leave it out"):
        LocalDataModule(test=given)


def test_paths_are_names_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS))
    assert len(records(LocalDataModule(test=tmp_path / "a.jsonl"))) == 9
    assert len(records(LocalDataModule(test=[tmp_path / "a.jsonl"]))) == 9


def test_posteriors_of_personas_in_shards(tmp_path):
    row = {"prompt": "Name a tree.", "responses": ["Oak."], "prior": [0.5, 0.5], "votes": [[]]}
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl"], [{**row, "id": "q1"}, {**row, "id": "q2"}])
    data = PersonaVotesDataModule(test=pattern, num_labels=2)
    assert [record.id for record in records(data)] == ["q1", "q2"]


@pytest.mark.parametrize("form", ["pattern", "list", "yaml"])
def test_patterns_and_lists_from_the_command_line(tmp_path, caplog, form):
    pattern = shards(tmp_path, ["a.jsonl", "b.jsonl", "c.jsonl"])
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    words = ["data", "inspect", "--model", "BradleyTerryRM", "--data", "LocalDataModule"]
    if form == "yaml":
        config = tmp_path / "data.yaml"
        config.write_text(
            json.dumps({"data": {"class_path": "LocalDataModule", "init_args": {"train": names}}})
        )
        words = [*words[:4], "--config", str(config)]
    else:
        words += ["--data.train", pattern if form == "pattern" else f"[{', '.join(names)}]"]
    network = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    network |= {"num_attention_heads": 1, "vocab_size": 259}
    main([*words, "--model.backbone.config", json.dumps(network)])
    assert "train: 7 records of 7 rows" in caplog.text and "validation: 2 records of 2" in caplog.text
