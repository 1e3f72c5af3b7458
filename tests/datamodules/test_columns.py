"""The table of columns: what follows from it, the two filters, and columns and keys of records."""

import json
from dataclasses import dataclass
from hashlib import sha1

import pytest
import torch

from pluralign.datamodules import (
    Comparison,
    LoaderConfig,
    LocalDataModule,
    PreferenceRecord,
    Response,
    TextConfig,
    columns,
)
from pluralign.datamodules.batches.users import UserProtocol
from pluralign.datamodules.columns import (
    COLUMNS,
    Column,
    column,
    optional_columns,
    provided_by,
    take_comparisons,
    take_responses,
)
from pluralign.datamodules.records import record_key
from pluralign.datamodules.tokens import chunk
from pluralign.datamodules.tokens.rows import take_row_responses

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# The table ---------------------------------------------------------------------------------------------


def test_the_table_is_sound():
    names = [entry.name for entry in COLUMNS]
    stored = [entry.stored for entry in optional_columns()]
    assert len(set(names)) == len(names) and len(set(stored)) == len(stored)
    assert column("user_id").stored == "user" and column("comparison_votes").stored == "comparison_votes"
    assert column("prior").votes == "votes" and not column("prior").in_batch
    assert provided_by("score").startswith("rated data") and provided_by("nothing") == "no data module so far"
    assert provided_by("split_key") == "every data module"
    assert provided_by("preference") == "no data module so far"
    with pytest.raises(KeyError):
        column("nothing")


@dataclass(frozen=True, slots=True)
class Timed(Comparison):
    """A comparison that took some time, in some mood."""

    seconds: float | None = None
    mood: str | None = None


class TimedDataModule(LocalDataModule):
    """Judgements that took as many seconds as their weight says."""

    def to_example(self, row):
        timed = [
            Timed(
                **fields,
                seconds=fields["weight"],
                mood=None if fields["weight"] is None else f"mood {fields['weight']:g}",
            )
            for fields in row.fields["comparisons"]
        ]
        responses = tuple(Response(text) for text in row.fields["responses"])
        return PreferenceRecord(row.text("id"), row.text("prompt"), responses, tuple(timed))


@pytest.fixture
def add_columns(monkeypatch):
    """Puts further columns into the table for a test."""

    def add(*new):
        monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, *new))
        optional_columns.cache_clear()

    yield add
    optional_columns.cache_clear()


def test_a_new_column_is_one_line_and_its_source(tmp_path, add_columns):
    add_columns(
        Column("seconds", "comparison", "number", -1.0, "(P,) float32: how long it took", field="seconds"),
        Column("mood_id", "comparison", "name", -1, "(P,) int64: mood of the judge", field="mood"),
    )
    weights = ((5.0, 3.0), (None, 2.0), (None, None))

    def rows(split):
        rows = [
            {
                "id": f"r{i}",
                "prompt": f"{split} {i}",
                "responses": ["a", "b"],
                "comparisons": [
                    {"chosen": 0, "rejected": 1, "weight": weights[i][n], "user": user}
                    for n, user in enumerate(("ann", "bob"))
                ],
            }
            for i in range(3)
        ]
        return save(tmp_path / f"{split}.jsonl", rows)

    paths = {split: rows(split) for split in ("train", "test")}
    loader = LoaderConfig(batch_size=3)
    data = TimedDataModule(**paths, text=TEXT, loader=loader)
    data.setup("test")
    assert data.names["mood"] == ["mood 2", "mood 3", "mood 5"]
    (batch,) = data.test_dataloader()
    order = [batch["id"].index(f"r{i}") for i in range(3)]
    assert batch["seconds"].reshape(3, 2)[order].tolist() == [[5, 3], [-1, 2], [-1, -1]]
    assert batch["mood_id"].reshape(3, 2)[order].tolist() == [[2, 1], [-1, 0], [-1, -1]]
    kept = take_comparisons(batch, batch["seconds"] > 0)
    assert sorted(kept["seconds"].tolist()) == [2, 3, 5] and len(kept["mood_id"]) == len(kept["weight"]) == 3
    only = TimedDataModule(
        **paths,
        text=TEXT,
        loader=LoaderConfig(batch_size=3, users=UserProtocol(unseen=("ann",))),
    )
    only.setup("test")
    (batch,) = only.test_dataloader()
    assert sorted(batch["seconds"].tolist()) == [-1, 2, 3] and batch["user_id"].tolist() == [0, 0, 0]


def test_the_fingerprint_follows_the_table(tmp_path, add_columns):
    data = LocalDataModule(test=save(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}]), text=TEXT)
    before = data.cache_folder()
    add_columns(
        Column("seconds", "comparison", "number", -1.0, "(P,) float32: how long it took", field="seconds")
    )
    assert data.cache_folder() != before, "a cache without the column is made anew"


# Filters -----------------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    """As many comparisons as responses: a filter cannot tell them apart by their number."""
    generator = torch.Generator().manual_seed(0)
    numbers = lambda *shape: torch.rand(*shape, generator=generator)
    return {
        "id": ["a", "b"],
        "record_key": torch.tensor([4, -5]),
        "record_weight": torch.tensor([1.0, 2.0]),
        "response_row": torch.tensor([0, 0, 1, 1]),
        "response_end": torch.tensor([3, 6, 2, 8]),
        "response_prompt": torch.tensor([0, 0, 1, 1]),
        "response_index": torch.tensor([0, 2, 0, 1]),
        "response_length": torch.tensor([2, 3, 1, 6]),
        "features": numbers(4, 3),
        "score": numbers(4),
        "system_id": torch.tensor([1, -1, 0, 1]),
        "votes": numbers(4, 5),
        "target": numbers(4, 5),
        "target_votes": numbers(4),
        "comparisons": torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2]]),
        "comparison_index": torch.tensor([0, 1, 0, 3]),
        **{
            name: numbers(4)
            for name in ("preference", "margin", "weight", "strength", "comparison_target_votes")
        },
        **{name: numbers(4, 3) for name in ("comparison_votes", "comparison_target")},
        "user_id": torch.tensor([3, 1, -1, 0]),
        "domain_id": torch.tensor([0, 0, 1, -1]),
        "input_ids": numbers(2, 9),
    }


def plain(batch, comparisons, responses):
    """Both filters in plain loops."""
    place = {old: new for new, old in enumerate(responses)}
    out = {}
    for name, values in batch.items():
        if name == "comparisons":
            out[name] = [[place[side] for side in values[i].tolist()] for i in comparisons]
        elif name in ("id", "record_key", "record_weight", "input_ids"):
            out[name] = values if isinstance(values, list) else values.tolist()
        else:
            kept = (
                responses
                if name.startswith(("response_", "features", "score", "system", "votes", "target"))
                else comparisons
            )
            out[name] = [values[i].tolist() for i in kept]
    return out


def listed(batch):
    return {name: value if isinstance(value, list) else value.tolist() for name, value in batch.items()}


@pytest.mark.parametrize("keep", [[True, False, True, True], [False] * 4, [True] * 4])
def test_taken_comparisons(batch, keep):
    kept = [i for i in range(4) if keep[i]]
    expected = plain(batch, kept, range(4))
    assert listed(take_comparisons(batch, torch.tensor(keep))) == expected
    assert listed(take_comparisons(batch, torch.tensor(kept, dtype=torch.int64))) == expected
    assert len(batch["weight"]) == 4, "the batch stays as it is"


@pytest.mark.parametrize(
    "keep", [[True, True, False, True], [False] * 4, [True] * 4, [False, False, True, True]]
)
def test_taken_responses(batch, keep):
    responses = [i for i in range(4) if keep[i]]
    comparisons = [
        i for i, pair in enumerate(batch["comparisons"].tolist()) if all(keep[side] for side in pair)
    ]
    assert listed(take_responses(batch, torch.tensor(keep))) == plain(batch, comparisons, responses)


def test_taken_responses_without_comparisons():
    assert take_responses({"score": torch.tensor([1.0, 2.0])}, torch.tensor([False, True]))[
        "score"
    ].tolist() == [2]


# Records -----------------------------------------------------------------------------------------------


ROWS = [
    {
        "id": "r0",
        "prompt": "why",
        "chosen": "a",
        "rejected": "b",
        "source": "web",
        "aspect": "kind",
        "record_weight": 2,
    },
    {"id": "r1", "prompt": "who", "responses": ["a", "b"], "scores": [1, 2], "source": "books"},
    {"id": "r2", "prompt": "how", "response": "a", "votes": [1, 2], "source": 7},
    {"id": "r3", "prompt": "what", "chosen": "a", "rejected": "b"},
]


def test_columns_of_records(tmp_path):
    path = save(tmp_path / "rows.jsonl", ROWS)
    later = save(tmp_path / "later.jsonl", [{**ROWS[0], "prompt": "where", "source": "air"}])
    data = LocalDataModule(train=path, validation=later, text=TEXT, loader=LoaderConfig(batch_size=9))
    data.setup("fit")
    assert data.names["source"] == ["7", "books", "web", "air"], "those of training first"
    assert data.names["aspect"] == ["kind"]
    (batch,) = data.train_dataloader()
    order = [batch["id"].index(f"r{i}") for i in range(4)]
    assert batch["source_id"][order].tolist() == [2, 1, 0, -1] and batch["source_id"].dtype == torch.int64
    assert batch["aspect_id"][order].tolist() == [0, -1, -1, -1]
    assert batch["record_weight"][order].tolist() == [2, 1, 1, 1]
    keys = [record_key(source, "train", f"r{i}") for i, source in enumerate(("web", "books", "7", "local"))]
    assert batch["record_key"][order].tolist() == keys
    (batch,) = data.val_dataloader()
    assert batch["source_id"].tolist() == [3] and batch["record_key"].tolist() == [
        record_key("air", "validation", "r0")
    ]
    again = LocalDataModule(train=later, text=TEXT, validation=path, loader=LoaderConfig(batch_size=9))
    again.load_state_dict(data.state_dict())
    again.setup("fit")
    assert again.names["source"] == data.names["source"], "indices keep their meaning"


def test_a_row_with_some_responses(tmp_path):
    row = {
        "id": "r",
        "prompt": "why",
        "responses": ["a", "b", "cc"],
        "scores": [1, 2, 3],
        "votes": [[1, 0], [0, 2], [3, 3]],
    }
    data = LocalDataModule(
        test=save(
            tmp_path / "rows.jsonl", [{**row, "comparisons": [[0, 1]], "aspect": "kind", "user": "ann"}]
        ),
        text=TEXT,
    )
    data.setup("test")
    (whole,) = data.table("test")[[0]]
    taken = take_row_responses(whole, [2, 0])
    assert taken.response_index.tolist() == [2, 0] and len(taken.comparisons) == len(taken.preference) == 0
    assert taken.columns["score"].tolist() == [3, 1] and taken.columns["votes"].tolist() == [3, 3, 1, 0]
    assert taken.columns["user"] == [] and taken.columns["aspect"] == ["kind"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "a\0b"}, "without a NUL"),
        ({"source": ["web"]}, "'source'"),
        ({"record_weight": -1}, "'record_weight' is -1"),
        ({"record_weight": "heavy"}, "'record_weight'"),
    ],
)
def test_malformed_columns_of_records(tmp_path, fields, message):
    data = LocalDataModule(test=save(tmp_path / "rows.jsonl", [{**ROWS[3], **fields}]), text=TEXT)
    with pytest.raises(ValueError, match=message):
        data.setup("test")


def test_record_keys():
    digest = sha1(b"web\0test\0r 1").digest()
    assert record_key("web", "test", "r 1") == int.from_bytes(digest[:8], "big", signed=True)
    keys = {
        record_key(s, split, n)
        for s in ("a", "a\u00e9", "")
        for split in ("train", "test")
        for n in ("", "b", "b\0c")
    }
    assert len(keys) == 18 and min(keys) < 0 and max(keys) < 2**63


def test_two_ids_with_one_key(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk, "record_key", lambda source, split, name: len(name))
    data = LocalDataModule(
        test=save(tmp_path / "rows.jsonl", [{**ROWS[3], "id": name} for name in ("a", "bb", "cc")]), text=TEXT
    )
    with pytest.raises(ValueError, match="test: records 'bb', 'cc' have the same key"):
        data.setup("test")


def test_equal_ids_stay_what_they_were(tmp_path):
    rows = [ROWS[3], {**ROWS[3], "chosen": "c"}]
    data = LocalDataModule(test=save(tmp_path / "rows.jsonl", rows), text=TEXT, on_invalid="skip")
    data.setup("test")
    assert data.reports["test"].invalid == {"duplicate id": 1}
