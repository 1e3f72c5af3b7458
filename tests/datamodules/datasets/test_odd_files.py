"""Generated files of every kind with something odd in them: a named error or a counted skip, never a raw one.

Each file begins as a valid one. Then fields, whole rows, the container or single bytes are changed at random, by generators whose
seeds hypothesis draws, and names where one fails.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tempfile
import warnings
from datetime import date
from decimal import Decimal
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import strategies

from pluralign.datamodules import LoaderConfig, LocalDataModule, PersonaVotesDataModule, RecordError
from pluralign.datamodules.datasets import update_posteriors

MESSAGES = [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "Oak."}]
HALF = "\ud83d"


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


ATOMS = [
    None, "", " ", "\u3000", "\u200b\u2060", HALF, "a\0b", "\x1b[31m", "1_000", " 1 ", "٣", "nan", "-inf", "1e999", "0x1f",
    "½", "true", True, False, 0, -1, 7, 2**24 + 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-46, 1.5, 3.5e38,
    1e39, 1e300, float("nan"), float("inf"), [], {}, [None], [[]], [1, -1], [1e38] * 9, [0, 0], [2**63, 1], ["3", 1], [[0, 1]],
    [[0, 1]] * 3, [[1, 0, 2]], [[0, 1, float("nan")]], [{"chosen": 0}], {"text": "Elm."}, MESSAGES, MESSAGES[:1], [MESSAGES[1]],
    json.dumps(MESSAGES), str(MESSAGES), json.dumps(MESSAGES[1]), '[{"role": "user", "content": ', "[" * 3000, deep(60),
    deep(150), "long " * 3000, "Name a fruit.", "\n\nHuman: Hi\n\nAssistant: Hello", {"role": "user"}, [{"role": 3}],
    {"\ud83d": 1}, "\ufeff", "\U0001d518", '"', "'", "a,b\nc",
]  # fmt: skip
ODD_NUMBERS = [value for value in ATOMS if isinstance(value, int | float)]
NUMBERS = ("preference", "weight", "margin", "strength", "score", "record_weight")
SHAPES = [
    {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Stone."},
    {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Stone.", "preference": 0.7, "user": "ann", "weight": 2},
    {"chosen": "A tree: oak", "rejected": "A tree: rock", "margin": 0.5, "strength": -1, "votes": [3, 0, 1]},
    {"prompt": MESSAGES[:1], "chosen": [MESSAGES[1]], "rejected": "Stone.", "domain": "trees", "record_weight": 0.5},
    {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "Stone."}], "id": 3},
    {"prompt": "Name a tree.", "responses": ["Oak.", "Elm.", "Stone."], "comparisons": [[0, 2], [1, 2, 0.9]], "user": 4},
    {"prompt": "Name a tree.", "responses": [{"text": "Oak.", "score": 2}, "Elm."], "scores": [1, None]},
    {"prompt": "Name a tree.", "response": "Oak.", "score": 4.5, "votes": [0, 1, 4], "source": "a", "aspect": "b"},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.", "winner": "A>B", "user": "ann"},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.", "strength": -2, "label": 3},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.", "first_wins": 0, "second_wins": 1, "tie": 0},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.", "first_score": 0.5, "second_score": 0.5},
    {"prompt": '["Name a tree."]', "first": '["Oak."]', "second": '["Stone."]', "winner": "both_bad"},
    {"prompt": "Name a tree.", "first": MESSAGES, "second": [MESSAGES[0], {"role": "model", "content": "Stone."}], "winner": "left",
     "turn": 1},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.",
     "judgements": [{"by": "ann", "winner": "left"}, {"by": "bob", "winner": "tie"}, "model_b", 1]},
    {"chosen": ["Hi", "Hello.", "Name a tree.", "Oak."], "rejected": ["Hi", "Hello.", "Name a tree.", "Stone."]},
    {"prompt": {"from": "human", "value": "Name a tree."}, "chosen": {"role": "assistant", "content": [{"type": "text", "text": "Oak."}]},
     "rejected": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "tree"}}]}]},
    {"prompt": "Name a tree.", "first": "Oak.", "second": "Stone.", "winner": "model_b", "user": "ann"},
    {"prompt": ["Hi", "A tree?"], "first": ["Hi", "Oak."], "second": '["Hi", "Stone."]', "strength": -2, "votes": [3, 0, 1]},
    {"first": ["A tree?", "Oak."], "second": ["A tree?", "Stone."], "first_score": 1, "second_score": -0.5, "label": 1},
    {"prompt": MESSAGES[:1], "first": MESSAGES, "second": "Stone.", "judgements": ["A", {"winner": 7, "user": 3}, {"strength": 1}]},
    {"chosen": "Ein Baum? Eiche", "rejected": "Ein Baum? Stein", "first_wins": 0, "second_wins": 1, "turn": 1, "choice": 2},
]  # fmt: skip
SETTINGS = [
    {}, {}, {}, {"positive": "second", "codes": {7: "tie", "true": "first", "-1": 2.5}}, {"positive": "first"}, {"codes": {"left": "first", "3": "tie", "n/a": "none"}}, {"preference_range": (1.0, -1.0)},
    {"columns": {"judgements.user": "by", "turn": "turn"}, "codes": {"left": "second"}}, {"columns": {"winner": None, "label": None}},
    {"columns": {"winner": "label"}, "codes": {"3": 0.25}}, {"columns": {"first": "chosen", "second": "rejected"}},
    {"columns": {"prompt": "prompt.0.content"}},
]  # fmt: skip
FIELDS = sorted({field for shape in SHAPES for field in shape} | {"messages", "question", "note", ""})


def inside(random, value):
    """The value with something odd somewhere inside."""
    if isinstance(value, list) and value and random.random() < 0.6:
        place = random.randrange(len(value))
        return [*value[:place], inside(random, value[place]), *value[place + 1 :]]
    if isinstance(value, dict) and value and random.random() < 0.6:
        key = random.choice(list(value))
        return {**value, key: inside(random, value[key])}
    return random.choice(ATOMS)


def odd_rows(random):
    rows = []
    for i in range(random.randrange(1, 5)):
        row = {name: value for name, value in random.choice(SHAPES).items()}
        if random.random() < 0.5:
            row["id"] = f"r{i}"
        for _ in range(random.choice((0, 1, 1, 2))):
            field = random.choice([*row, random.choice(FIELDS)])
            row[field] = inside(random, row.get(field))
        if random.random() < 0.1:
            row.pop(random.choice(list(row)))
        if random.random() < 0.2:
            row[random.choice(NUMBERS)] = random.choice(ODD_NUMBERS)
        if random.random() < 0.1 and "prompt" in row:
            row[random.choice(("question", "Instruction"))] = row.pop("prompt")
        rows.append(row)
    return rows


def as_json(random, row):
    text = json.dumps(row, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.05:  # a key given twice
        text = text[:-1] + ', "prompt": "Again?"}'
    return text.encode(errors="surrogatepass")


def as_csv(random, rows, delimiter):
    header = list(dict.fromkeys(name for row in rows for name in row))
    header += random.sample(header, 1) if random.random() < 0.1 else []
    stream = io.StringIO(newline="")
    quoting = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
    writer.writerow(header)
    for row in rows:
        cells = [row.get(name) for name in header]
        cells = [json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells]
        cells = [str(cell)[:10_000] if isinstance(cell, str) else cell for cell in cells]
        writer.writerow(
            cells[: len(cells) + random.choice((0, 0, 0, -1))] + ["more"] * (random.random() < 0.05)
        )
    return stream.getvalue().encode(errors="surrogatepass")


COLUMNS = [
    [b"bytes", None], [b"\xff\xfe", b""], [date(2020, 1, 1)] * 2, [Decimal("1.5"), None], [1.0, None], [2**60, 1], [True, None],
    ["a", "b"], ["", " "], [[1.0, 2.0], None], [[{"role": "user", "content": "Hi"}], []], [{"text": "x"}, None], [["a"], ["b", "c"]],
    [float("nan"), 1e39], [None, None], [[[0, 1]], [[1, 0]]], ["Oak.", "Elm."], [0.5, 1.0],
]  # fmt: skip


def as_columns(random, rows, kind):
    """Parquet, or an Arrow file or stream."""
    names = [*random.choice(SHAPES)]
    columns = []
    for name in names:
        values = random.choice(COLUMNS) if random.random() < 0.4 else [row.get(name) for row in rows[:1] * 2]
        try:
            column = pa.array(values)
            table = pa.table({name: column})
            pq.write_table(table, io.BytesIO())  # not every Arrow type is one of Parquet, nor as deep
            pa.ipc.new_stream(io.BytesIO(), table.schema).write_table(table)
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError):
            column = pa.array(["Oak.", "Elm."])
        columns.append(column)
    if random.random() < 0.1:  # text that is none
        columns[0] = pa.array([b"\xff", b"ok"]).view(pa.string())
    if random.random() < 0.1:
        names[-1] = names[0]
    if random.random() < 0.1:
        columns[-1] = pa.array([10**9, 1], pa.int64()).view(pa.timestamp("s")).cast(pa.timestamp("s", "UTC"))
    stream, table = io.BytesIO(), pa.table(columns, names=names)
    if kind == "parquet":
        pq.write_table(table, stream, compression=random.choice(("none", "snappy", "gzip")))
    else:
        new = random.choice((pa.ipc.new_file, pa.ipc.new_stream))
        with new(stream, table.schema) as writer:
            writer.write_table(table, random.choice((1, 100)))
    return stream.getvalue()


def damaged(random, content):
    """Bytes of a file that a disk, a download or an editor spoilt. Only of text, packed or not: others are cut, nothing else."""
    place = random.randrange(len(content) + 1)
    kind = random.randrange(5)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([random.randrange(256)]) + content[place:]
    if kind == 2 and content:
        return content[: place - 1] + bytes([random.randrange(256)]) + content[place:]
    if kind == 3:
        return random.choice(
            (b"", b"\n", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"PAR1")
        )
    return content + content[:place]


PACK = {
    "gz": lambda content: gzip.compress(content, mtime=0),
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def odd_file(generator):
    """Name and bytes of a file."""
    rows = odd_rows(generator)
    kind = generator.choice(("jsonl", "ndjson", "json", "json", "csv", "tsv", "parquet", "arrow"))
    if kind in ("jsonl", "ndjson") or (kind == "json" and generator.random() < 0.5):
        content = b"\n".join(as_json(generator, row) for row in rows)
    elif kind == "json":
        content = b"[" + b",".join(as_json(generator, row) for row in rows) + b"]"
    elif kind in ("csv", "tsv"):
        content = as_csv(generator, rows, "," if kind == "csv" else "\t")
    else:
        content = as_columns(generator, rows, kind)
    is_text = kind not in ("parquet", "arrow")
    if is_text and generator.random() < 0.2:
        content = damaged(generator, content)
    if not is_text and generator.random() < 0.2:
        content = content[: generator.randrange(len(content))]
    if is_text and generator.random() < 0.3:
        packing = generator.choice(list(PACK))
        kind, content = f"{kind}.{packing}", PACK[packing](content)
        if generator.random() < 0.3:
            content = damaged(generator, content)
    if generator.random() < 0.03:
        kind = generator.choice(("jsonl", "json", "csv", "tsv", "parquet", "arrow", "csv.gz", "json.zst"))
    return f"odd.{kind}", content


def read_file(folder, random):
    """What became of a file: accepted, skipped or the reason of an error."""
    name, content = odd_file(random)
    path = folder / name
    path.write_bytes(content)
    split, on_invalid = random.choice(("train", "test", "predict")), random.choice(("error", "skip"))
    loader = LoaderConfig(batch_size=8, max_tokens=None, shuffle=False)
    sources = {split: str(path)} if split != "train" else {"train": str(path), "validation": str(path)}
    settings = random.choice(SETTINGS)
    try:
        data = LocalDataModule(
            **sources, **settings, on_invalid=on_invalid, loader=loader, cache_dir=str(folder / "cache")
        )
        data.setup("fit" if split == "train" else split)
        batches = list(data.batches(split))
    except RecordError as error:
        assert error.file == str(path) and str(path) in str(error)
        assert len(str(error)) < 1500 and str(error).encode()
        return error.reason
    except ValueError as error:
        known = (
            "local: nothing is left of the",
            f"{split}: the sum of",
            "columns names ",
            "columns switches off",
        )
        assert str(error).startswith(known)
        assert len(str(error)) < 2500 and str(error).encode()
        return "nothing left"
    for batch in batches:
        for key, value in batch.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert not value.isinf().any(), key
                assert key in UNKNOWN or not value.isnan().any(), key
    report = data.reports[split]
    lost = sum(report.invalid.values()) + sum(
        number for why, number in report.dropped.items() if why.startswith("record")
    )
    kept = report.rows - lost
    assert report.records <= kept if report.merged else report.records == kept, report
    return "skipped" if report.invalid else "accepted"


def read_files(folder, number, *, start=0):
    """What became of so many files."""
    outcomes = set()

    @hypothesis.seed(start)
    @hypothesis.settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(strategies.randoms(use_true_random=True))
    def check(random):
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            outcomes.add(read_file(Path(inside), random))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    return outcomes


UNKNOWN = ("score", "strength", "target", "comparison_target")
"""Columns in which NaN stands for what is not known."""
KNOWN = {
    "accepted",
    "skipped",
    "nothing left",
    "unreadable file",
    "wrong type",
    "missing field",
    "not finite",
    "not JSON",
}


def test_two_hundred_odd_files(tmp_path):
    assert read_files(tmp_path, 200) >= KNOWN


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_ten_thousand_odd_files(tmp_path, start):
    more = {
        "duplicate key",
        "not UTF-8",
        "nested too deeply",
        "out of range",
        "unread prompt",
        "unknown code",
    }
    assert read_files(tmp_path, 2500, start=start) >= KNOWN | more


# Persona votes: the file that is loaded is the file that is updated -----------------------------------------


def odd_votes(random):
    """A stored record, and a new vote, each with something odd."""
    vote = {"persona": "poet", "label": 1, "time": 3}
    times = [1, 1, 2, 2**60, 2**60 + 1, "2024-05-30", "2024-05-30T00:00Z", None]
    votes = [
        {**vote, "label": random.randrange(3), "time": random.choice(times)}
        for _ in range(random.randrange(3))
    ]
    record = {"id": "q", "prompt": "Name a tree.", "responses": ["Oak.", "Elm."], "votes": [votes, [vote]]}
    record |= random.choice(
        ({}, {"prior": [0.5, 0.3, 0.2]}, {"prior": [[1, 0, 0], None]}, {"note": "of text"})
    )
    new = {"id": "q", "response": 0, **vote, "persona": "cook"}
    for fields in (record, new):
        if random.random() < 0.5:
            field = random.choice([*fields, "target", "more"])
            fields[field] = inside(random, fields.get(field))
    return record, new


def outcome(call):
    try:
        call()
    except RecordError as error:
        return str(error)
    return ""


def update_file(folder, seed):
    """Whether a stored file was accepted, after checks that loader and update agree and that the update can be loaded."""
    generator = random.Random(seed)
    rows = [odd_votes(generator) for _ in range(generator.randrange(1, 4))]
    for i, (record, new) in enumerate(rows):
        if generator.random() < 0.8 and record.get("id") == "q":
            record["id"] = f"q{i}"
            if new.get("id") == "q":
                new["id"] = f"q{i}"
    stored, votes = folder / f"stored{seed}.jsonl", folder / f"new{seed}.jsonl"
    stored.write_bytes(b"\n".join(as_json(generator, record) for record, _ in rows))
    votes.write_bytes(
        b"\n".join(as_json(generator, new) for _, new in rows) if generator.random() < 0.8 else b""
    )
    settings = {"num_labels": 3, "forgetting": generator.choice((1.0, 0.5))}

    def load():
        cache = str(folder / f"cache{seed}-{stored.stat().st_mtime_ns}")
        PersonaVotesDataModule(test=str(stored), cache_dir=cache, **settings).prepare_data()

    before, content = outcome(load), stored.read_bytes()
    updated = outcome(lambda: update_posteriors(stored, votes, on_duplicate="skip", **settings))
    assert not before or updated, f"seed {seed}: update accepts what is not loaded: {before}"
    if before and updated.startswith(str(stored)):
        assert updated == before, f"seed {seed}"
    if updated:
        assert updated.startswith((f"{stored}:", f"{votes}:")), f"seed {seed}: {updated}"
        assert stored.read_bytes() == content, f"seed {seed}"
    else:
        assert outcome(load) == "", f"seed {seed}"
    return not before


@pytest.mark.filterwarnings("ignore")
def test_what_an_update_writes_is_loaded_and_what_it_refuses_is_not(tmp_path):
    assert {update_file(tmp_path, seed) for seed in range(120)} == {False, True}
