"""Rows of equal prompts become one record; what is judged, by whom and with which tokens, stays what it was."""

import io
import json
import random
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pluralign.commands.inspect import print_inspection
from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.joins import SideTable, batch_items
from pluralign.datamodules.records import Comparison, Message, PreferenceRecord, Response, record_key
from pluralign.datamodules.tokens import merging
from pluralign.datamodules.tokens.cache import CacheReader
from pluralign.datamodules.tokens.cache_writer import CacheWriter
from pluralign.datamodules.tokens.text import RecordTokenizer

TEXT = TextConfig(prompt_format="{text}", response_format="{text}", max_length=40)
TOKENIZE = RecordTokenizer(TEXT)
LIMIT = 4096


def pair(name, prompt, first, second, share=1.0, **more):
    fields = {key: more.pop(key) for key in ("user", "domain", "weight", "margin") if key in more}
    return PreferenceRecord(
        name, prompt, (Response(first), Response(second)), (Comparison(0, 1, share, **fields),), **more
    )


def table_of(folder, records, *, limit=LIMIT, split="train", chunk=3):
    with CacheWriter(folder, [split], source="data", on_invalid="error", merged_tokens=limit) as writer:
        for start in range(0, len(records), chunk):
            some = records[start : start + chunk]
            writer.write(split, [(r, t, "f", 1) for r, t in zip(some, TOKENIZE(some), strict=True)])
        writer.finish(TOKENIZE.fingerprint())
    reader = CacheReader(folder)
    return reader.table(split), reader.reports[split]


def sequences(row):
    """Every response with its prompt, as the network reads it."""
    ends = np.cumsum(row.lengths).tolist()
    return [tuple(row.tokens[: ends[0]].tolist() + row.tokens[a:b].tolist()) for a, b in pairwise(ends)]


def judgements(table):
    """All that is said: by which row and place in it, of which tokens, by which systems, by whom, how much."""
    out = Counter()
    for row in table.rows():
        texts, count = sequences(row), len(row.comparisons)
        names, keys, places = row.items_of("comparison")
        weights = row.columns.get("weight", np.ones(count, np.float32))
        users = row.columns.get("user", [None] * count)
        margins = row.columns.get("margin", np.zeros(count, np.float32))
        systems = row.columns.get("system", [None] * len(texts))
        assert len(systems) == len(texts)
        texts = list(zip(texts, systems, strict=True))
        for i, (chosen, rejected) in enumerate(row.comparisons.tolist()):
            said = texts[chosen], texts[rejected], float(row.preference[i]), users[i]
            out[names[i], int(keys[i]), int(places[i]), *said, float(weights[i]), float(margins[i])] += 1
    return out


texts = st.text("ab ", min_size=1, max_size=9).filter(str.strip)


@st.composite
def crowds(draw):
    prompts = [*draw(st.lists(st.text("pq ", max_size=50), min_size=1, max_size=3)), (Message("user", "p"),)]
    out = []
    for number in range(draw(st.integers(1, 20))):
        answers = draw(st.lists(texts, min_size=2, max_size=4))
        pairs = [draw(st.permutations(range(len(answers))))[:2] for _ in range(draw(st.integers(1, 3)))]
        comparisons = tuple(
            Comparison(
                one,
                two,
                draw(st.sampled_from([0.5, 0.75, 1.0])),
                user=draw(st.none() | st.sampled_from("xy")),
                weight=draw(st.none() | st.sampled_from([0.5, 2.0])),
                margin=draw(st.none() | st.just(1.5)),
            )
            for one, two in pairs
        )
        systems = st.none() | st.sampled_from(["owl", "bee"])
        responses = tuple(Response(answer, system=draw(systems)) for answer in answers)
        out.append(PreferenceRecord(f"r{number}", draw(st.sampled_from(prompts)), responses, comparisons))
    return out


@given(records=crowds(), limit=st.sampled_from([1, 30, 80, LIMIT]))
@settings(max_examples=12, deadline=None)
def test_the_judgements_stay_what_they_were(tmp_path_factory, records, limit):
    folder = tmp_path_factory.mktemp("merge")
    apart, before = table_of(folder / "apart", records, limit=0)
    merged, after = table_of(folder / "merged", records, limit=limit)
    assert judgements(merged) == judgements(apart)
    assert after.comparisons == before.comparisons == sum(len(row.comparisons) for row in merged.rows())
    assert after.tokens == sum(len(row.tokens) for row in merged.rows()) <= after.tokens_apart
    assert after.tokens_apart == before.tokens == sum(len(row.tokens) for row in apart.rows())
    assert (after.records, after.responses) == (len(merged), int(merged.sizes[:, 0].sum()))
    largest = max(len(row.tokens) for row in apart.rows())
    assert all(len(row.tokens) <= max(limit, largest) for row in merged.rows())
    for sizes, row in zip(merged.sizes.tolist(), merged.rows(), strict=True):
        own = row.lengths[1:]
        assert sizes == [len(own), row.lengths[0], own.sum(), own.max()]
        assert own.min() >= 1 and row.prompt_length <= row.lengths[0]


def test_far_apart_rows_meet_and_equal_responses_are_one(tmp_path):
    rows = [pair("first", "why me", "yes", "no", user="ann")]
    rows += [pair(f"between {i}", f"other {i}", "a", "b") for i in range(300)]
    rows += [pair("last", "why me", "no", "perhaps", 0.75, user="bob", weight=2.0)]
    table, report = table_of(tmp_path / "c", rows, chunk=256)
    assert (len(table), report.records, report.merged, report.prompts) == (301, 301, 2, 301)
    (row,) = table[[0]]
    assert row.id == "first" and row.record_key == record_key("data", "train", "first")
    shown = [TOKENIZE.tokenizer.decode(text, skip_special_tokens=True) for text in sequences(row)]
    assert shown == ["why meyes", "why meno", "why meperhaps"]
    assert row.comparisons.tolist() == [[0, 1], [1, 2]] and row.preference.tolist() == [1.0, 0.75]
    assert row.columns["user"] == ["ann", "bob"] and row.columns["weight"].tolist() == [1.0, 2.0]
    assert row.response_index.tolist() == [0, 1, 2] and row.comparison_index.tolist() == [0, 1]
    keys = [record_key("data", "train", name) for name in ("first", "last")]
    names, found, places = row.items_of("comparison")
    assert (names, found.tolist(), places.tolist()) == (["first", "last"], keys, [0, 0])
    names, _, places = row.items_of("response")
    assert (names, places.tolist()) == (["first", "first", "last"], [0, 1, 1])
    assert [row.origins for row in table[[1, 300]]] == [None, None]
    assert [row.id for row in table.rows()] == [record.id for record in rows[:-1]], (
        "order of first appearance"
    )


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("group", [pair("a", "why?", "x", "y", group="g"), pair("b", "why?", "x", "z", group="h")]),
        ("source", [pair("a", "why?", "x", "y", source="s"), pair("b", "why?", "x", "z")]),
        ("cut", [pair("a", "why? " * 9, "x", "y"), pair("b", "why? " * 9, "x", "longer than y")]),
        ("no prompt", [pair("a", "", "xxx", "yyy"), pair("b", "", "xxx", "zzz")]),
        ("saves little", [pair("a", "?", "x" * 30, "y" * 30), pair("b", "?", "v" * 30, "w" * 30)]),
    ],
)
def test_rows_that_stay_apart(tmp_path, name, rows):
    assert len(table_of(tmp_path / "c", rows)[0]) == 2


def test_several_judges_of_a_pair_without_a_prompt_are_one_record(tmp_path):
    rows = [pair("a", "", "xxx", "yyy", user="ann"), pair("b", "", "yyy", "xxx", user="bob")]
    (row,) = table_of(tmp_path / "c", rows)[0].rows()
    assert row.comparisons.tolist() == [[0, 1], [1, 0]] and row.columns["user"] == ["ann", "bob"]


def test_a_rated_response_stays_one_a_row(tmp_path):
    def rated(name, score):
        return PreferenceRecord(name, "a long prompt", (Response("same", score=score),))

    (row,) = table_of(tmp_path / "c", [rated("a", 1.0), rated("b", 3.0)])[0].rows()
    assert row.columns["score"].tolist() == [1.0, 3.0] and len(set(sequences(row))) == 1
    assert row.items_of("response")[0] == ["a", "b"]


def test_rows_to_score_keep_their_order_and_ids(tmp_path):
    rows = [pair("b", "why?", "x", "y"), pair("a", "why?", "x", "z")]
    assert [row.id for row in table_of(tmp_path / "c", rows, split="predict")[0].rows()] == ["b", "a"]


def test_skipped_duplicates_are_in_no_merged_record(tmp_path):
    rows = [pair("a", "why?", "x", "y"), pair("b", "why?", "x", "z"), pair("a", "why?", "x", "w")]
    with CacheWriter(tmp_path / "c", ["train"], source="d", on_invalid="skip", merged_tokens=LIMIT) as writer:
        writer.write(
            "train", [(r, t, "f", i) for i, (r, t) in enumerate(zip(rows, TOKENIZE(rows), strict=True))]
        )
        writer.finish({})
    reader = CacheReader(tmp_path / "c")
    (row,) = reader.table("train").rows()
    assert row.origins.ids == ["a", "b"] and reader.reports["train"].merged == 2
    assert not (tmp_path / "c" / "train.keep.npy").exists()


# Large groups --------------------------------------------------------------------------------------------


def test_many_judgements_of_one_prompt_are_bounded(tmp_path, monkeypatch):
    draw = random.Random(0)
    answers = [f"{i:03d}" + "x" * 17 for i in range(60)]
    rows = [pair(f"r{i}", "prompt", *draw.sample(answers, 2)) for i in range(1500)]
    table, report = table_of(tmp_path / "c", rows, limit=500, chunk=500)
    assert sum(len(row.comparisons) for row in table.rows()) == 1500
    assert max(len(row.tokens) for row in table.rows()) <= 500
    assert report.tokens < report.tokens_apart / 3
    monkeypatch.setattr(merging, "MOST_JUDGEMENTS", 128)
    same = [pair(f"s{i}", "prompt", "yes", "no", user=f"u{i}") for i in range(300)]
    table, _ = table_of(tmp_path / "d", same, chunk=100)
    assert [len(row.comparisons) for row in table.rows()] == [128, 128, 44]


def test_memory_is_bounded_by_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "SLICE", 8)
    sizes = []
    whole = merging.merge_rows
    monkeypatch.setattr(
        merging, "merge_rows", lambda rows, **more: sizes.append(len(rows)) or whole(rows, **more)
    )
    rows = [pair(f"r{i}", "prompt", "yes", f"no {i % 3}") for i in range(20)]
    table, report = table_of(tmp_path / "c", rows)
    assert sizes == [8, 8, 4] and len(table) == 3 and report.comparisons == 20
    assert merging.DIGEST == len(merging.prompt_digest(rows[0], 0))


# Through the data module ---------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path, request):
    """Few prompts, each response in many pairs, one row a judgement, in random order; and one row a prompt."""
    draw = random.Random(7)
    apart, together = [], []
    for number in range(getattr(request, "param", 4)):
        prompt = f"question {number} " + "word " * draw.randint(2, 9)
        answers = [f"{number} {i} " + "token " * draw.randint(1, 6) for i in range(10)]
        pairs = [(*draw.sample(both, 2), f"u{draw.randint(0, 5)}") for both in combinations(range(10), 2)]
        apart += [
            {"prompt": prompt, "chosen": answers[i], "rejected": answers[j], "user": user}
            for i, j, user in pairs
        ]
        sides = [{"chosen": i, "rejected": j, "user": user} for i, j, user in pairs]
        together.append({"prompt": prompt, "responses": answers, "comparisons": sides})
    draw.shuffle(apart)
    for name, rows in (("apart", apart), ("together", together)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def data(name, **settings):
        settings.setdefault("loader", LoaderConfig(max_tokens=2000))
        module = LocalDataModule(test=str(tmp_path / f"{name}.jsonl"), **settings)
        module.setup("test")
        return module

    return data


@pytest.mark.parametrize("judged", [64], indirect=True)
def test_tokens_of_an_epoch_are_those_of_one_row_a_prompt(judged):
    def tokens(data):
        return sum(sum(batch["row_lengths"]) for batch in data.test_dataloader())

    merged, together, apart = judged("apart"), judged("together"), judged("apart", merged_tokens=0)
    assert merged.reports["test"].rows == 2880 and merged.reports["test"].records == 64
    assert tokens(merged) == pytest.approx(tokens(together), rel=0.03)
    assert tokens(apart) > 12 * tokens(merged)
    report = merged.reports["test"]
    assert (report.tokens, report.tokens_apart) == (tokens(merged), tokens(apart))
    assert str(report).startswith(
        "64 records of 2,880 rows, 640 responses, 2,880 comparisons; 2,880 rows merged"
    )
    assert apart.reports["test"].merged == 0 and apart.reports["test"].prompts == 64


@pytest.mark.parametrize("merged_tokens", [LIMIT, 0])
def test_side_tables_find_the_row_that_a_judgement_came_from(judged, tmp_path, merged_tokens):
    keys, places = judged("apart", merged_tokens=0).table("test").named_items("comparison")
    weights = np.arange(len(keys), dtype=np.float32)
    SideTable("weight", keys, places, weights).save(tmp_path / "w.parquet")
    expected = dict(zip(keys.tolist(), weights.tolist(), strict=True))
    loader = LoaderConfig(max_tokens=2000, joins=(str(tmp_path / "w.parquet"),))
    data = judged("apart", loader=loader, merged_tokens=merged_tokens)
    seen, responses = 0, set()
    for batch in data.test_dataloader():
        assert ("comparison_key" in batch) == bool(merged_tokens)
        named, at = batch_items(batch, "comparison")
        assert batch["weight"].tolist() == [expected[key] for key in named.tolist()] and not at.any()
        assert batch_items(batch, "record")[0] is batch["record_key"]
        seen += len(batch["weight"])
        responses |= set(zip(*(part.tolist() for part in batch_items(batch, "response")), strict=True))
    assert seen == len(expected) and responses == set(
        zip(*(part.tolist() for part in data.table("test").named_items("response")), strict=True)
    )
    assert len(responses) == (40 if merged_tokens else 360)


@pytest.mark.parametrize("item", ["record", "response", "comparison"])
@pytest.mark.parametrize("merged_tokens", [LIMIT, 0])
def test_items_are_named_alike_record_by_record(judged, item, merged_tokens):
    table = judged("apart", merged_tokens=merged_tokens).table("test")
    whole = table.named_items(item)
    for number in (1, 3, len(table) + 1):
        parts = [table.named_items(item, start, start + number) for start in range(0, len(table), number)]
        assert all(np.array_equal(*each) for each in zip(map(np.concatenate, zip(*parts, strict=True)), whole, strict=True))  # fmt: skip


def test_inspection_says_what_was_saved(judged):
    out = io.StringIO()
    print_inspection(judged("apart"), examples=0, console=Console(file=out, width=200))
    line = next(line for line in out.getvalue().splitlines() if "180" in line and "%" in line)
    report = judged("apart").reports["test"]
    for shown in ("test", "4", f"{report.tokens:,}", f"{report.tokens_apart:,}"):
        assert shown in line


def test_each_user_keeps_all_judgements(judged):
    data = judged("apart")
    counts = Counter(name for name in data._reader.table("test").column("user").to_pylist() for name in name)
    apart = judged("apart", merged_tokens=0)
    assert counts == Counter(
        name for names in apart.table("test").column("user").to_pylist() for name in names
    )


def test_texts_of_merged_responses_are_found(judged):
    data = judged("apart")
    (row,) = data.table("test")[[3]]
    found = data.texts("test", [(row.id, i) for i in row.response_index.tolist()])
    assert len({text for _, text in found}) == len(row.response_index) and all(all(pair) for pair in found)


def test_the_setting_is_part_of_the_cache_and_checked(judged):
    data = judged("apart")
    assert data.cache_folder() != judged("apart", merged_tokens=0).cache_folder()
    with pytest.raises(ValueError, match="merged_tokens must be finite and >= 0; got -1"):
        LocalDataModule(test="x.jsonl", merged_tokens=-1)
