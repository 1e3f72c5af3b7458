"""While rows are tokenised others are read: what is written and what is said stays in the order of the rows."""

import json
import os
from dataclasses import replace

import pytest

from pluralign.datamodules import LocalDataModule, TextConfig
from pluralign.datamodules.records import RecordError
from pluralign.datamodules.tokens import preparation

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


def rows(number, **odd):
    """Rows of which some are changed."""
    plain = [
        {"id": f"r{i}", "prompt": f"p {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(number)
    ]
    for name, fields in odd.items():
        plain[int(name.removeprefix("r"))] |= fields
    return plain


def save(folder, content, *, end=b""):
    path = folder / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in content).encode() + end)
    return str(path)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 4)


def test_chunks_do_not_change_the_cache(tmp_path, monkeypatch):
    path = save(tmp_path, rows(30, r3={"chosen": ""}, r17={"rejected": "good 17"}, r25={"id": "r2"}))
    caches = []
    for size in (1, 4, 100):
        monkeypatch.setattr(preparation, "CHUNK", size)
        data = LocalDataModule(train=path, text=TEXT, on_invalid="skip", cache_dir=str(tmp_path / str(size)))
        data.setup("fit")
        table = data.table("train")
        caches.append(
            (
                [(row.id, row.tokens.tolist(), row.lengths.tolist()) for row in table.rows()],
                vars(data.reports["train"]),
            )
        )
    assert caches[0] == caches[1] == caches[2]
    assert caches[0][1]["invalid"] == {"empty response": 1, "duplicate id": 1}


ODD = {"r3": {"chosen": ""}, "r17": {"rejected": "good 17"}, "r25": {"id": "r2"}}
# Python 3.12 warns of any fork beside threads; the processes here only tokenise.
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@FORKS
def test_several_processes_write_the_same_bytes(tmp_path):
    path = save(tmp_path, rows(60, **ODD))
    contents = []
    for number in (1, 2, 3):
        data = LocalDataModule(
            train=path,
            text=TEXT,
            on_invalid="skip",
            cache_dir=str(tmp_path / str(number)),
            num_processes=number,
        )
        data.prepare_data()
        folder = data.cache_folder()
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
        assert folder.name == LocalDataModule(train=path, text=TEXT, on_invalid="skip").cache_folder().name
    assert len(contents[0]) > 2 and contents[0] == contents[1] == contents[2]


@FORKS
def test_several_processes_say_first_what_is_wrong_first(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    path = save(tmp_path, rows(40, r9={"chosen": "x" * 50}, r10={"chosen": ""}))
    text = replace(TEXT, max_length=30, truncation="error")
    data = LocalDataModule(train=path, text=text, cache_dir=str(tmp_path), num_processes=2)
    with pytest.raises(RecordError, match=r"rows\.jsonl:10: longer than max_length"):
        data.prepare_data()
    assert not list(tmp_path.glob("local*"))
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_number_of_processes_below_one_is_refused():
    with pytest.raises(ValueError, match="num_processes must be finite and >= 1; got 0"):
        LocalDataModule(train="rows.jsonl", num_processes=0)


@pytest.mark.parametrize(
    ("odd", "settings", "first"),
    [
        ({"r9": {"chosen": ""}, "r6": {"rejected": ""}}, {}, 7),
        ({"r1": {"chosen": "x" * 99}, "r6": {"rejected": ""}}, {"max_length": 40, "truncation": "error"}, 2),
        ({"r1": {"chosen": "x" * 99}, "r2": {"rejected": ""}}, {"max_length": 40, "truncation": "error"}, 2),
        ({"r1": {"rejected": ""}, "r2": {"chosen": "x" * 99}}, {"max_length": 40, "truncation": "error"}, 2),
        ({"r6": {"chosen": "x" * 99}, "r9": {"rejected": ""}}, {"max_length": 40, "truncation": "error"}, 7),
    ],
)
def test_the_first_row_that_is_wrong_stops(tmp_path, odd, settings, first):
    text = TextConfig(prompt_format="{text}|", response_format="{text}", **settings)
    path = save(tmp_path, rows(20, **odd))
    with pytest.raises(RecordError) as caught:
        LocalDataModule(test=path, text=text, cache_dir=str(tmp_path / "c")).prepare_data()
    assert caught.value.line == first and not list((tmp_path / "c").iterdir())


def test_a_file_that_breaks_off_is_said_after_the_rows_before(tmp_path, monkeypatch):
    original = LocalDataModule.load

    def load(self, source):
        yield from original(self, source)
        raise OSError("the disk is gone")

    monkeypatch.setattr(LocalDataModule, "load", load)
    text = TextConfig(max_length=60, truncation="error")
    path = save(tmp_path, rows(9, r6={"chosen": "x" * 99}))
    with pytest.raises(RecordError, match=r"rows\.jsonl:7: longer than max_length"):
        LocalDataModule(test=path, text=text, cache_dir=str(tmp_path / "c")).prepare_data()
    path = save(tmp_path, rows(9))
    with pytest.raises(OSError, match="the disk is gone"):
        LocalDataModule(test=path, text=text, cache_dir=str(tmp_path / "c")).prepare_data()


@pytest.mark.parametrize("stops", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch, stops):
    original = LocalDataModule.to_example

    def to_example(self, row):
        if row.line == 11:
            raise stops
        return original(self, row)

    monkeypatch.setattr(LocalDataModule, "to_example", to_example)
    path = save(tmp_path, rows(20))
    with pytest.raises(stops):
        LocalDataModule(test=path, text=TEXT, cache_dir=str(tmp_path / "c")).prepare_data()
    assert not list((tmp_path / "c").iterdir())
    monkeypatch.undo()
    LocalDataModule(test=path, text=TEXT, cache_dir=str(tmp_path / "c")).prepare_data()
    assert len(list((tmp_path / "c").iterdir())) == 1
