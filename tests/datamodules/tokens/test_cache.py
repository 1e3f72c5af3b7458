"""The token cache: what goes in comes out, from a memory map; what is unfinished never counts."""

import json
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.datamodules.records import Comparison, PreferenceRecord, RecordError, Response
from pluralign.datamodules.tokens import cache
from pluralign.datamodules.tokens.cache import CacheReader, fingerprint
from pluralign.datamodules.tokens.cache_writer import CacheWriter
from pluralign.datamodules.tokens.report import SplitReport
from pluralign.datamodules.tokens.text import RecordTokenizer, TextConfig

TOKENIZE = RecordTokenizer(TextConfig(prompt_format="{text}", response_format="{text}"))


PAIR = Comparison(0, 1)


def record(name, prompt="why", texts=("yes", "no"), comparisons=(PAIR,), **more):
    responses = tuple(text if isinstance(text, Response) else Response(text) for text in texts)
    return PreferenceRecord(name, prompt, responses, tuple(comparisons), **more)


def entries(*records, file="rows.jsonl"):
    return [(r, t, file, line) for line, (r, t) in enumerate(zip(records, TOKENIZE(records), strict=True), 1)]


def write(folder, on_invalid="error", **splits):
    """Write splits of records; each list of a split is a chunk of its own."""
    with CacheWriter(folder, list(splits), source="data", on_invalid=on_invalid) as writer:
        for split, chunks in splits.items():
            for chunk in chunks if chunks and isinstance(chunks[0], list) else [chunks]:
                writer.write(split, entries(*chunk))
        writer.finish(TOKENIZE.fingerprint())
    return CacheReader(folder)


def test_rows_come_back_as_they_were_written(tmp_path):
    full = record(
        "full",
        texts=(Response("a", score=1.5, votes=(1, 2)), Response("b"), Response("c", votes=(0, 4))),
        comparisons=(
            Comparison(
                0, 1, preference=0.25, user="ann", margin=0.5, weight=2.0, strength=-3.0, votes=(1, 2, 3)
            ),
            Comparison(2, 1, domain="law"),
        ),
    )
    reader = write(
        tmp_path / "c", train=[[full, record("bare")], [record("late", texts=("x",), comparisons=())]]
    )
    first, bare, late = reader.table("train")[[0, 1, 2]]
    assert [row.id for row in (first, bare, late)] == ["full", "bare", "late"]
    (tokens,) = TOKENIZE([full])
    np.testing.assert_array_equal(first.tokens, tokens.tokens)
    np.testing.assert_array_equal(first.lengths, tokens.lengths)
    assert first.tokens.dtype == first.lengths.dtype == first.comparisons.dtype == np.int32
    assert first.comparisons.tolist() == [[0, 1], [2, 1]]
    assert first.preference.tolist() == [0.25, 1.0] and first.preference.dtype == np.float32
    assert first.columns["user"] == ["ann", None]
    assert first.columns["domain"] == [None, "law"]
    expected = {
        "margin": [0.5, 0.0],
        "weight": [2.0, 1.0],
        "strength": [-3.0, np.nan],
        "score": [1.5, np.nan, np.nan],
        "votes": [1, 2, 0, 0, 0, 4],
        "comparison_votes": [1, 2, 3, 0, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(first.columns[name], np.asarray(values, np.float32), err_msg=name)
    assert bare.columns == late.columns == {}
    assert late.comparisons.shape == (0, 2) and late.preference.shape == (0,)
    assert reader.present == {*expected, "user", "domain", "comparisons"}
    assert (reader.names["user"], reader.names["domain"]) == (["ann"], ["law"])
    assert reader.categories == {"votes": 2, "comparison_votes": 3}
    assert reader.format == TOKENIZE.fingerprint()


def test_dropped_parts_keep_their_original_places(tmp_path):
    tokenize = RecordTokenizer(TextConfig(prompt_format="{text}", response_format="{text}", max_length=6))
    texts = (Response("0123456789", score=9, votes=(9,)), Response("a", score=1, votes=(1,)), Response("b"))
    comparisons = (
        Comparison(0, 1, user="lost"),
        Comparison(2, 1, user="kept"),
        Comparison(1, 2, user="more"),
    )
    item = record("r", texts=texts, comparisons=comparisons)
    (tokens,) = tokenize([item])
    with CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="error") as writer:
        writer.write("train", [(item, tokens, "f", 1)])
        writer.finish({})
    reader = CacheReader(tmp_path / "c")
    (row,) = reader.table("train")[[0]]
    assert row.response_index.tolist() == [1, 2]
    assert row.comparisons.tolist() == [[1, 0], [0, 1]], "indices count the kept responses"
    assert row.comparison_index.tolist() == [1, 2]
    assert row.columns["user"] == ["kept", "more"]
    np.testing.assert_array_equal(row.columns["score"], np.float32([1, np.nan]))
    assert row.columns["votes"].tolist() == [1, 0]
    assert reader.names["user"] == ["kept", "more"]
    report = reader.reports["train"]
    assert (report.records, report.responses, report.comparisons) == (1, 2, 2)
    assert report.dropped == {"response longer than max_length": 1, "comparison of a dropped response": 1}


words = st.text("abcé🙂", min_size=1, max_size=8)


@st.composite
def random_records(draw):
    out = []
    for i in range(draw(st.integers(1, 7))):
        texts = draw(st.lists(words, min_size=1, max_size=3))
        scores = [draw(st.none() | st.floats(-9, 9, width=32)) for _ in texts]
        comparisons = []
        if len(set(texts)) == len(texts) > 1:
            for _ in range(draw(st.integers(0, 3))):
                one, two = draw(st.permutations(range(len(texts))))[:2]
                user = draw(st.none() | st.sampled_from(["ann", "bob", "None"]))
                comparisons.append(Comparison(one, two, draw(st.floats(0, 1, width=32)), user=user))
        responses = [Response(text, score) for text, score in zip(texts, scores, strict=True)]
        out.append(record(f"id{i}", draw(words), responses, comparisons))
    return out


@given(records=random_records(), split=st.integers(0, 7), order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_records_round_trip_in_any_order(tmp_path_factory, records, split, order):
    folder = tmp_path_factory.mktemp("cache") / "c"
    chunks = [chunk for chunk in (records[:split], records[split:]) if chunk]
    table = write(folder, train=chunks).table("train")
    assert len(table) == len(records)
    indices = list(range(len(records)))
    order.shuffle(indices)
    for index, row in zip(indices, table[indices], strict=True):
        item, (tokens,) = records[index], TOKENIZE([records[index]])
        assert row.id == item.id
        np.testing.assert_array_equal(row.tokens, tokens.tokens)
        np.testing.assert_array_equal(row.lengths, tokens.lengths)
        assert row.comparisons.tolist() == [[c.chosen, c.rejected] for c in item.comparisons]
        assert row.preference.tolist() == [c.preference for c in item.comparisons]
        users = [c.user for c in item.comparisons]
        assert row.columns.get("user", [None] * len(users)) == users
        scores = [np.nan if r.score is None else r.score for r in item.responses]
        np.testing.assert_array_equal(
            row.columns.get("score", np.full(len(scores), np.nan)), np.float32(scores)
        )
        k, prefix, total, longest = table.sizes[index].tolist()
        own = tokens.lengths[1:]
        assert (k, prefix, total, longest) == (len(own), tokens.lengths[0], own.sum(), own.max())


def test_table_is_mapped_from_its_file_and_pickles_by_name(tmp_path):
    records = [record(f"r{i}", "p" * 200, ("a" * 300, "b" * 300)) for i in range(500)]
    reader = write(tmp_path / "c", train=records)
    before = pa.total_allocated_bytes()
    table = reader.table("train")
    rows = table[[3, 400]]
    size = (tmp_path / "c" / "train.arrow").stat().st_size
    assert size > 1_500_000
    assert pa.total_allocated_bytes() - before < size / 20, "the file is read, not mapped"
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "c" / "train.arrow") in maps.read_text()
    assert not rows[0].tokens.flags.owndata
    frozen = pickle.dumps(table)
    assert len(frozen) < size / 20
    again = pickle.loads(frozen)
    np.testing.assert_array_equal(again[[400]][0].tokens, rows[1].tokens)
    np.testing.assert_array_equal(again.sizes, table.sizes)


# Duplicates, categories, overlap -------------------------------------------------------------------------


def test_duplicate_id_is_an_error_with_its_place(tmp_path):
    rows = [record("a"), record("b"), record("a", "other")]
    with pytest.raises(
        RecordError, match=r"rows\.jsonl:3: duplicate id: field 'id' is 'a'; allowed: an id that occurs once"
    ):
        write(tmp_path / "c", train=rows)
    assert list(tmp_path.iterdir()) == [], "nothing half-made stays"


def test_skipped_duplicates_are_gone_and_counted(tmp_path):
    rows = [
        record("a"),
        record("b"),
        record("a", "second a", ("x", "y", "z")),
        record("c"),
        record("b", "second b"),
    ]
    reader = write(tmp_path / "c", "skip", train=rows, test=[record("a", "other split")])
    table = reader.table("train")
    assert len(table) == len(table.sizes) == 3
    assert [row.id for row in table[[0, 1, 2]]] == ["a", "b", "c"]
    assert all(len(row.response_index) == 2 for row in table[[0, 1, 2]]), "the first of each id stays"
    assert table.sizes[:, 0].tolist() == [2, 2, 2]
    assert [row.id for row in table[[2, 0]]] == ["c", "a"]
    assert [row.id for row in pickle.loads(pickle.dumps(table))[[1, 2]]] == ["b", "c"]
    report = reader.reports["train"]
    assert report.invalid == {"duplicate id": 2}
    assert (report.records, report.responses, report.comparisons) == (3, 6, 3)
    assert [message.split(": ")[0] for message in report.first_errors] == ["rows.jsonl:3", "rows.jsonl:5"]
    assert len(reader.table("test")) == 1 and not reader.reports["test"].invalid


def test_overlap_of_prompts_counts_kept_rows_only(tmp_path):
    train = [record("a", "seen"), record("a", "removed as duplicate"), record("b", "grouped", group="g")]
    test = [
        record("1", "seen"),
        record("2", " seen \n"),
        record("3", "new"),
        record("4", "removed as duplicate"),
        record("5", "anything", group="g"),
        record("5", "seen"),
    ]
    reader = write(tmp_path / "c", "skip", train=train, test=test)
    assert reader.reports["test"].in_train == 3  # 1, 2 and the first 5
    assert reader.reports["train"].in_train == 0


def test_votes_of_another_number_of_categories(tmp_path):
    three = record("a", texts=(Response("x", votes=(1, 2, 3)), Response("y")))
    two = record("b", texts=(Response("x", votes=(1, 2)), Response("y")))
    pairs = record("c", comparisons=(Comparison(0, 1, votes=(1, 1, 1, 1)),))
    with pytest.raises(
        RecordError, match=r"rows.jsonl:2: out of range: field 'votes' is 2; allowed: 3 categories"
    ):
        write(tmp_path / "c", train=[three, two])
    reader = write(tmp_path / "c", "skip", train=[three, two, pairs])
    assert reader.reports["train"].invalid == {"out of range": 1}
    assert reader.reports["train"].records == len(reader.table("train")) == 2
    assert reader.categories == {"votes": 3, "comparison_votes": 4}


def test_a_skipped_row_does_not_decide_the_categories(tmp_path):
    pairs = record("a", comparisons=(Comparison(0, 1, votes=(1, 2)),))
    bad = record(
        "b",
        texts=(Response("x", votes=(1, 2)), Response("y")),
        comparisons=(Comparison(0, 1, votes=(1, 2, 3)),),
    )
    good = record("c", texts=(Response("x", votes=(1, 2, 3)), Response("y")))
    reader = write(tmp_path / "c", "skip", train=[pairs, bad, good])
    assert reader.categories == {"comparison_votes": 2, "votes": 3}
    assert [row.id for row in reader.table("train")[[0, 1]]] == ["a", "c"]


def test_judges_are_those_of_the_training_split(tmp_path):
    def judged(name, user, domain):
        return record(name, name, comparisons=(Comparison(0, 1, user=user, domain=domain),))

    reader = write(
        tmp_path / "c",
        train=[judged("1", "zoe", "b"), judged("2", "ann", None)],
        test=[judged("3", "eve", "c")],
    )
    assert (reader.names["user"], reader.names["domain"]) == (["ann", "zoe", "eve"], ["b"]), (
        "other users last"
    )
    assert reader.num_training_users == 2
    assert reader.judgements_of_users() == {"zoe": 1, "ann": 1}


# Columns -------------------------------------------------------------------------------------------------


def test_judgements_are_counted_by_user(tmp_path):
    def judged(name, *users):
        return record(name, name, comparisons=[Comparison(0, 1, user=user) for user in users])

    rows = [
        judged("1", "zoë", None, "zoë"),
        judged("2", None),
        record("3", comparisons=()),
        judged("4", "None", "zoë"),
    ]
    reader = write(tmp_path / "c", train=[rows[:2], rows[2:]], test=[judged("5", "zoë")])
    assert reader.judgements_of_users() == {"zoë": 3, "None": 1}
    assert write(tmp_path / "d", train=[record("1")]).judgements_of_users() == {}
    with pytest.raises(ValueError, match=r"loader\.users tells seen from unseen users by the training split"):
        write(tmp_path / "e", test=[judged("5", "zoe")]).judgements_of_users()


def voted(name, votes=(), pairs=(), priors=None):
    texts = [
        Response(f"{name}{i}", votes=counts, prior=None if priors is None else priors[i])
        for i, counts in enumerate(votes or (None, None, None))
    ]
    return record(name, name, texts, [Comparison(i, j, votes=counts) for i, j, counts in pairs])


VOTED = [
    voted("a", ((3, 1, 0), None, (0, 0, 2))),
    voted("b", pairs=((0, 1, (4, 0)), (1, 2, None))),
    voted("c", ((1, 1, 2), (0, 0, 0)), pairs=((0, 1, (1, 3)),)),
    voted("d"),
]


def test_mean_votes_are_those_of_a_plain_loop(tmp_path):
    reader = write(tmp_path / "c", train=[VOTED[:2], VOTED[2:]], test=[voted("z", ((9, 0, 0), None))])
    shares = [
        np.asarray(response.votes) / sum(response.votes)
        for item in VOTED
        for response in item.responses
        if response.votes and sum(response.votes)
    ]
    np.testing.assert_allclose(reader.mean_votes("votes"), np.mean(shares, 0), rtol=1e-12)
    np.testing.assert_allclose(reader.mean_votes("votes"), [1 / 3, 1 / 6, 1 / 2])
    pairs = [[1, 0], [0.25, 0.75]]
    both = np.mean([*pairs, *(pair[::-1] for pair in pairs)], 0)
    np.testing.assert_allclose(reader.mean_votes("comparison_votes"), both)
    np.testing.assert_allclose(reader.mean_votes("comparison_votes"), [0.5, 0.5])


def test_mean_votes_of_data_without_any(tmp_path):
    assert write(tmp_path / "c", train=[record("a")], test=[VOTED[0]]).mean_votes("votes") is None
    assert write(tmp_path / "d", test=[VOTED[0]]).mean_votes("votes") is None
    none = write(tmp_path / "e", train=[voted("a", ((0, 0), (0, 0)))], test=[])
    assert none.mean_votes("votes") is None


def test_the_first_item_without_votes(tmp_path):
    table = write(tmp_path / "c", train=[VOTED[:2], VOTED[2:]]).table("train")
    assert table.without_votes("votes", 3, own_prior=False) == ("a", 1)
    assert table.without_votes("votes", 3, own_prior=False, known={"a", "b"}) == ("c", 1)
    assert table.without_votes("votes", 3, own_prior=True, known={"a", "b", "c"}) == ("d", 0)
    assert table.without_votes("votes", 3, own_prior=False, known={"a", "b", "c", "d"}) is None
    assert table.without_votes("comparison_votes", 2, own_prior=False) == ("b", 1)
    assert table.without_votes("comparison_votes", 2, own_prior=True, known={"b"}) is None
    full = write(tmp_path / "f", train=[voted("a", ((1, 2), (0, 3)))]).table("train")
    assert full.without_votes("votes", 2, own_prior=False) is None
    assert write(tmp_path / "g", train=[]).table("train").without_votes("votes", 2, own_prior=True) is None


def test_a_prior_of_its_own_stands_for_votes(tmp_path):
    half = (0.5, 0.5)
    rows = [voted("a", ((1, 2), None), priors=(None, half)), voted("b", ((1, 2), None), priors=(half, None))]
    table = write(tmp_path / "c", train=rows).table("train")
    assert table.without_votes("votes", 2, own_prior=True) == ("b", 1)
    assert table.without_votes("votes", 2, own_prior=False) == ("a", 1)


def test_items_are_named_by_their_place_in_the_record(tmp_path):
    tokenize = RecordTokenizer(TextConfig(prompt_format="{text}", response_format="{text}", max_length=6))
    item = record(
        "r", texts=(Response("0123456789"), Response("a", votes=(1, 2)), Response("b")), comparisons=()
    )
    (tokens,) = tokenize([item])
    with CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="error") as writer:
        writer.write("train", [(item, tokens, "f", 1)])
        writer.finish({})
    table = CacheReader(tmp_path / "c").table("train")
    assert table.without_votes("votes", 2, own_prior=False) == ("r", 2), (
        "the third of the record, the second kept"
    )


@given(records=random_records(), repeated=st.booleans())
@settings(max_examples=20, deadline=None)
def test_reading_in_order_is_reading_one_by_one(tmp_path_factory, records, repeated):
    folder = tmp_path_factory.mktemp("cache") / "c"
    table = write(folder, "skip", train=[records, records[:1]] if repeated else records).table("train")
    bare = table.without_tokens()
    for i, (row, light) in enumerate(zip(table.rows(chunk=2), bare.rows(), strict=True)):
        (alone,) = table[[i]]
        assert row.id == alone.id == light.id and row.prompt_length == alone.prompt_length
        for name in ("tokens", "lengths", "response_index", "comparisons", "comparison_index", "preference"):
            assert getattr(row, name).dtype == getattr(alone, name).dtype
            np.testing.assert_array_equal(getattr(row, name), getattr(alone, name))
            if name != "tokens":
                np.testing.assert_array_equal(getattr(row, name), getattr(light, name))
        assert len(light.tokens) == 0 and row.columns.keys() == alone.columns.keys() == light.columns.keys()
        for name, values in row.columns.items():
            np.testing.assert_array_equal(values, alone.columns[name])
    assert len(table.column("id")) == len(table) == len(records)


# Unfinished caches ---------------------------------------------------------------------------------------


def test_interrupted_writing_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="skip") as writer,
    ):
        writer.write("train", entries(record("a")))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_cache(tmp_path):
    with (
        CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="error") as one,
        CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="error") as two,
    ):
        one.write("train", entries(record("a")))
        two.write("train", entries(record("a")))
        assert not (tmp_path / "c").exists()
        two.finish({})
        table = CacheReader(tmp_path / "c").table("train")  # in use while the other finishes
        one.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert table[[0]][0].id == CacheReader(tmp_path / "c").table("train")[[0]][0].id == "a"


def test_a_folder_without_description_is_replaced(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.arrow").write_bytes(b"half")
    assert len(write(tmp_path / "c", train=[record("a")]).table("train")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_an_empty_split_can_be_written(tmp_path):
    reader = write(tmp_path / "c", train=[record("a")], test=[])
    assert reader.reports["test"].records == 0
    assert len(reader.table("test")) == 0


# Reports and fingerprints --------------------------------------------------------------------------------


def test_report_says_everything_and_survives(tmp_path):
    error = RecordError("prompt", 3, "a string", reason="wrong type", file="f", line=2)
    with CacheWriter(tmp_path / "c", ["train"], source="data", on_invalid="skip") as writer:
        writer.write("train", entries(record("a")))
        writer.reports["train"].rows = 2000
        writer.reports["train"].cut_prompts, writer.reports["train"].cut_tokens = 1, 12
        writer.reports["train"].dropped["comparison of identical responses"] += 4
        for _ in range(7):
            writer.skip("train", error)
        writer.finish({})
    report = CacheReader(tmp_path / "c").reports["train"]
    assert isinstance(report, SplitReport) and isinstance(report.invalid, Counter)
    assert str(report) == (
        "1 records of 2,000 rows, 2 responses, 1 comparisons; skipped: 7 wrong type; "
        "dropped: 4 comparison of identical responses; 1 prompts cut by 12 tokens"
    )
    assert report.first_errors == [str(error)] * 5


def test_fingerprint(monkeypatch):
    one = fingerprint({"a": 1, "b": {"c": [1, 2]}})
    assert one == fingerprint({"b": {"c": [1, 2]}, "a": 1})
    assert len(one) == 16 and int(one, 16) >= 0
    others = [
        {"a": 2, "b": {"c": [1, 2]}},
        {"a": 1, "b": {"c": [2, 1]}},
        {"a": 1},
        {"a": "1", "b": {"c": [1, 2]}},
    ]
    assert len({one, *map(fingerprint, others)}) == 5
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert fingerprint({"a": 1, "b": {"c": [1, 2]}}) != one


def test_description_is_plain_json(tmp_path):
    write(tmp_path / "c", train=[record("a")])
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    assert meta["content"]["reports"]["train"]["records"] == 1


def test_left_overs_of_killed_processes_are_removed_and_others_kept(tmp_path):
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "data-0123"
    names = {f"data-0123.{host}.{dead.pid}.x.partial": False, f"data-0123.{host}.{os.getpid()}.y.partial": True,
             f"data-0123.elsewhere.{dead.pid}.z.partial": True, f"other-1.{host}.{dead.pid}.x.partial": True}  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    with CacheWriter(folder, ("train",), source="data", on_invalid="error"):
        assert {name: (tmp_path / name).is_dir() for name in names} == names
