"""PreferenceDataModule end to end, over a small JSON Lines source of the test's own."""

import gc
import io
import json
import os
import pickle
import tracemalloc
from collections import Counter
from dataclasses import replace

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from pluralign.commands.inspect import print_inspection
from pluralign.datamodules import prepared
from pluralign.datamodules.base import LoaderConfig, PreferenceDataModule
from pluralign.datamodules.crowd import CrowdConfig
from pluralign.datamodules.datasets.local import LocalDataModule
from pluralign.datamodules.records import (
    Comparison,
    PreferenceRecord,
    RecordError,
    Response,
    SourceRow,
    read_json_lines,
)
from pluralign.datamodules.tokens.cache import CacheReader
from pluralign.datamodules.tokens.cache_writer import CacheWriter
from pluralign.datamodules.tokens.rendering import PlainRendering
from pluralign.datamodules.tokens.text import RecordTokenizer, TextConfig

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


class TinyDataModule(PreferenceDataModule):
    """``{id, prompt, texts, pairs: [[i, j, user, domain]], votes, scores, group}`` in ``<source>.jsonl``."""

    name = "tiny"

    def __init__(self, folder, sources=("train", "validation", "test"), **options):
        super().__init__(**{"text": TEXT, **options})
        self.folder, self.sources = folder, sources

    def files(self, source):
        return [self.folder / f"{source}.jsonl"]

    def load(self, source):
        return read_json_lines(self.folder / f"{source}.jsonl")

    def to_example(self, row):
        fields = row.fields
        votes = fields.get("votes", [None] * 9)
        scores = fields.get("scores", [None] * 9)
        return PreferenceRecord(
            id=row.text("id"),
            prompt=row.text("prompt"),
            responses=tuple(
                Response(text, scores[i], None if votes[i] is None else tuple(votes[i]))
                for i, text in enumerate(fields.get("texts", ["good", "bad"]))
            ),
            comparisons=tuple(
                Comparison(pair[0], pair[1], user=(pair[2:3] or [None])[0], domain=(pair[3:4] or [None])[0])
                for pair in fields.get("pairs", [[0, 1]])
            ),
            group=fields.get("group"),
        )


def row(name, prompt=None, **fields):
    return {"id": name, "prompt": f"prompt of {name}" if prompt is None else prompt, **fields}


def save(folder, **sources):
    folder.mkdir(exist_ok=True)
    for source, rows in sources.items():
        lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
        (folder / f"{source}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(
        tmp_path / "data",
        train=[row(f"t{i}", texts=["a" * (i + 1), "b"]) for i in range(20)],
        validation=[row(f"v{i}") for i in range(5)],
        test=[row(f"e{i}") for i in range(4)],
    )


@pytest.fixture
def tokenised(monkeypatch):
    """Counts the records that any tokenizer sees."""
    seen = Counter()
    original = RecordTokenizer.__call__

    def spy(self, records):
        seen["records"] += len(records)
        return original(self, records)

    monkeypatch.setattr(RecordTokenizer, "__call__", spy)
    return seen


def caches(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def ids(data, split):
    table = data.table(split)
    return [entry.id for entry in table[list(range(len(table)))]]


def ready(folder, stage=None, **options):
    data = TinyDataModule(folder, **options)
    data.setup(stage)
    return data


# Cache ---------------------------------------------------------------------------------------------------


def test_a_second_run_tokenises_nothing(folder, tmp_path, tokenised):
    first = ready(folder)
    assert tokenised["records"] == 29
    second = TinyDataModule(folder)
    second.prepare_data()
    second.setup("fit")
    assert tokenised["records"] == 29
    assert ids(second, "train") == ids(first, "train") == [f"t{i}" for i in range(20)]
    assert len(caches(tmp_path)) == 1


def test_prepare_data_sets_no_state(folder):
    data = TinyDataModule(folder)
    data.prepare_data()
    assert not data.users and not data.reports and not data._tables and data._reader is None


@pytest.mark.parametrize(
    "change",
    [
        {"text": replace(TEXT, prompt_format="Q: {text}|")},
        {"text": replace(TEXT, max_length=9)},
        {"on_invalid": "skip"},
    ],
)
def test_other_settings_make_another_cache(folder, tmp_path, change):
    ready(folder)
    ready(folder, **change)
    assert len(caches(tmp_path)) == 2


def test_changed_content_makes_another_cache(folder, tmp_path, tokenised):
    ready(folder)
    text = (folder / "train.jsonl").read_text().replace('"b"', '"c"')
    (folder / "train.jsonl").write_text(text)
    data = ready(folder)
    assert tokenised["records"] == 58 and len(caches(tmp_path)) == 2
    (entry,) = data.table("train")[[0]]
    decode = data.tokenizer.tokenizer.decode
    assert decode(entry.tokens[-2:]) == "c</s>"


def test_loader_settings_do_not_touch_the_cache(folder, tokenised):
    ready(folder)
    ready(folder, loader=LoaderConfig(max_tokens=100, seed=5, shuffle=False, layout="separate"))
    assert tokenised["records"] == 29


def test_share_decides_the_cache_only_where_it_is_used(folder, tmp_path):
    ready(folder, "fit")
    ready(folder, "fit", validation_share=0.5)
    assert len(caches(tmp_path)) == 1
    for share in (0.4, 0.5):
        ready(folder, "fit", sources=("train",), validation_share=share)
    assert len(caches(tmp_path)) == 3


def test_killed_half_way(folder, tmp_path, monkeypatch, tokenised):
    original = TinyDataModule.load

    def dies(self, source):
        if source == "test":
            raise KeyboardInterrupt
        return original(self, source)

    monkeypatch.setattr(TinyDataModule, "load", dies)
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "__exit__", lambda *_: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            TinyDataModule(folder).prepare_data()
    assert all(name.endswith(".partial") for name in caches(tmp_path)) and caches(tmp_path)
    monkeypatch.setattr(TinyDataModule, "load", original)
    data = ready(folder)
    assert len(data.table("train")) == 20 and len(data.table("test")) == 4
    assert not ready(folder)._reader.folder.name.endswith(".partial")
    assert tokenised["records"] == 25 + 29


def test_interrupted_run_cleans_up(folder, tmp_path, monkeypatch):
    def dies(self, record, source):
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyDataModule, "route", dies)
    with pytest.raises(KeyboardInterrupt):
        TinyDataModule(folder).prepare_data()
    assert caches(tmp_path) == []


def test_another_process_may_finish_the_same_cache_meanwhile(folder, tmp_path, monkeypatch):
    original, meanwhile = TinyDataModule.load, []

    def load(self, source):
        if source == "test" and not meanwhile:
            meanwhile.append(TinyDataModule(folder))
            meanwhile[0].setup()
        return original(self, source)

    monkeypatch.setattr(TinyDataModule, "load", load)
    late = ready(folder)
    assert ids(late, "train") == ids(meanwhile[0], "train")
    assert len(caches(tmp_path)) == 1


@pytest.mark.parametrize("removed", ["meta.json", "everything"])
def test_a_damaged_cache_is_made_anew(folder, removed, tokenised):
    data = ready(folder)
    where = data.cache_folder()
    for path in where.iterdir():
        if removed in (path.name, "everything"):
            path.unlink()
    message = "tiny: the token cache .* is damaged and made anew: meta.json is missing"
    with pytest.warns(UserWarning, match=message):
        assert len(ready(folder).table("train")) == 20
    assert tokenised["records"] == 58


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.arrow", lambda path: os.truncate(path, 1000), "train.arrow has 1,000 bytes in place of"),
        ("train.arrow", lambda path: flipped(path, 3000), "train.arrow holds other bytes than were written"),
        ("test.sizes.npy", lambda path: flipped(path, -1), "test.sizes.npy holds other bytes"),
        ("validation.arrow", lambda path: path.write_bytes(b""), "validation.arrow has 0 bytes"),
        ("validation.sizes.npy", lambda path: path.unlink(), "validation.sizes.npy is missing"),
        ("meta.json", lambda path: flipped(path, 99), "meta.json is not what was written"),
        ("meta.json", lambda path: os.truncate(path, 50), "meta.json is not what was written"),
        ("meta.json", lambda path: path.write_text('{"content": 3}'), "meta.json is not what was written"),
    ],
)
def test_damaged_bytes_never_reach_the_reader(folder, name, damage, message):
    whole = ready(folder)
    expected = list(whole.table("train").rows())
    damage(whole.cache_folder() / name)
    with pytest.warns(UserWarning, match=f"is damaged and made anew: {message}") as said:
        again = ready(folder)
    assert len(said) == 1, "one line, and once"
    for one, two in zip(again.table("train").rows(), expected, strict=True):
        assert one.id == two.id and np.array_equal(one.tokens, two.tokens)
    assert len(ready(folder).table("train")) == 20, "whole again: nothing is said"
    assert len(caches(folder.parent)) == 1


def test_every_byte_is_compared_once(folder, monkeypatch):
    compared = []
    original = prepared.cache_damage
    monkeypatch.setattr(
        prepared, "cache_damage", lambda *given, **more: compared.append(more) or original(*given, **more)
    )
    ready(folder)
    assert compared == [{"every_byte": True}], "before it is written"
    data = TinyDataModule(folder)
    for stage in ("fit", "test"):
        data.prepare_data()
        data.setup(stage)
    assert len(compared) == 2


def test_a_cache_that_is_cut_while_it_is_read_is_not_opened(folder):
    where = ready(folder).cache_folder()
    os.truncate(where / "test.arrow", 10)
    with pytest.raises(
        ValueError, match=r"the token cache .* is damaged \(test.arrow has 10 bytes in place of"
    ):
        CacheReader(where)


def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    message = r"the token cache {} cannot be written \({}\): make room there.*or set cache_dir"
    where = tmp_path / "file" / "tiny-"
    with pytest.raises(OSError, match=message.format(f"{where}.*", "File exists")):
        ready(folder, cache_dir=str(tmp_path / "file"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CacheWriter, "_finish", full)
    with pytest.raises(OSError, match=message.format(".*", "No space left on device")):
        ready(folder)
    assert not caches(tmp_path), "nothing half-made stays"


def test_cache_dir_wins_over_the_environment(folder, tmp_path):
    data = ready(folder, cache_dir=str(tmp_path / "elsewhere"))
    assert data.cache_folder().parent == tmp_path / "elsewhere"
    assert not (tmp_path / "cache").exists()


# Rows ----------------------------------------------------------------------------------------------------

BAD = [
    row("ok"),
    b'{"id": "broken"',
    row("empty", texts=["fine", "  "]),
    b'{"id": "bytes", "prompt": "\xff"}',
    {"id": "no prompt"},
    row("types", texts=["a", 3]),
    row("range", pairs=[[0, 2]]),
    row("nan", scores=[float("nan"), None]),
    row("ok", "same id again"),
    row("votes", votes=[[1, 2], [1, 2]]),
    row("other votes", votes=[[1, 2, 3], None]),
    row("tie of one", texts=["same", "same"]),
    row("nothing judged", pairs=[]),
    row("rated", pairs=[], scores=[1.0, None]),
]


def test_skip_counts_every_reason_and_the_rows_are_gone(tmp_path):
    folder = save(tmp_path / "data", train=BAD, validation=[row("v")])
    data = ready(folder, sources=("train", "validation"), on_invalid="skip")
    report = data.reports["train"]
    assert report.invalid == {
        "not JSON": 1,
        "empty response": 1,
        "not UTF-8": 1,
        "missing field": 1,
        "wrong type": 1,
        "out of range": 2,
        "not finite": 1,
        "duplicate id": 1,
    }
    assert report.dropped == {"comparison of identical responses": 1, "record without a judgement": 2}
    assert report.rows == len(BAD) == report.records + sum(report.invalid.values()) + 2
    assert ids(data, "train") == ["ok", "votes", "rated"]
    assert (report.responses, report.comparisons) == (6, 2)
    assert len(report.first_errors) == 5
    assert report.first_errors[0].startswith(f"{folder / 'train.jsonl'}:2: not JSON")
    seen = {name for batch in data.train_dataloader() for name in batch["id"]}
    assert seen == {"ok", "votes", "rated"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (1, r"train.jsonl:2: not JSON"),
        (
            2,
            r"train.jsonl:2: empty response: field 'responses\[1\].text' is '  '; allowed: text that is not blank",
        ),
        (3, r"train.jsonl:2: not UTF-8"),
        (4, r"train.jsonl:2: missing field: field 'prompt'"),
        (
            6,
            r"train.jsonl:2: out of range: field 'comparisons\[0\].rejected' is 2; allowed: an index in 0..1",
        ),
        (8, r"train.jsonl:2: duplicate id: field 'id' is 'ok'"),
    ],
)
def test_error_names_the_first_bad_row(tmp_path, index, message):
    folder = save(tmp_path / "data", train=[BAD[0], BAD[index]], validation=[row("v")])
    with pytest.raises(RecordError, match=message):
        ready(folder, sources=("train", "validation"))
    assert caches(tmp_path) == [], "an error leaves no cache behind that would hide it next time"


@pytest.mark.parametrize(
    ("truncation", "reason"), [("prompt_left", "dropped"), ("drop", "dropped"), ("error", "invalid")]
)
def test_too_long_records_are_counted(tmp_path, truncation, reason):
    rows = [
        row("fits", "p"),
        row("long", "p", texts=["x" * 40, "y" * 40]),
        row("half", "p", texts=["x", "y" * 40]),
    ]
    folder = save(tmp_path / "data", train=rows, validation=[row("v", "q")])
    options = {
        "sources": ("train", "validation"),
        "text": replace(TEXT, max_length=10, truncation=truncation),
    }
    data = ready(folder, on_invalid="skip", **options)
    report = data.reports["train"]
    assert ids(data, "train") == ["fits"]
    if reason == "invalid":
        assert report.invalid == {"longer than max_length": 2}
        with pytest.raises(
            RecordError,
            match=r"train.jsonl:2: longer than max_length: .* is 43; allowed: at most max_length=10",
        ):
            ready(folder, **options)
    else:
        assert report.dropped == {
            "record: no response fits max_length": 1,
            "response longer than max_length": 1,
            "comparison of a dropped response": 1,
            "record without a judgement": 1,
        }


def test_cut_prompts_are_counted(tmp_path):
    rows = [row("short", "p"), row("long", "p" * 30), row("longer", "p" * 32)]
    folder = save(tmp_path / "data", train=rows, validation=[row("v", "q")])
    data = ready(folder, sources=("train", "validation"), text=replace(TEXT, max_length=20))
    report = data.reports["train"]
    # prompt + "|" + "good" + end
    assert (report.cut_prompts, report.cut_tokens) == (2, (36 - 20) + (38 - 20))
    assert data.table("train").sizes[:, [1, 3]].sum(1).max() == 20


def test_a_conversation_the_template_refuses_is_an_invalid_row(tmp_path, monkeypatch):
    folder = save(tmp_path / "data", train=[row("a"), row("b")], validation=[row("v")])
    original = PlainRendering.render

    def refuse(self, record):
        if record.id == "b":
            raise RecordError(
                "prompt", "user, user", "roles that alternate", reason="refused by the chat template"
            )
        return original(self, record)

    monkeypatch.setattr(PlainRendering, "render", refuse)
    with pytest.raises(RecordError, match=r"train.jsonl:2: refused by the chat template"):
        ready(folder, sources=("train", "validation"))
    data = ready(folder, sources=("train", "validation"), on_invalid="skip")
    assert data.reports["train"].invalid == {"refused by the chat template": 1}


def test_rows_to_score_need_no_judgement(tmp_path):
    rows = [row("a", pairs=[]), row("b", texts=["only one"], pairs=[])]
    folder = save(tmp_path / "data", predict=rows)
    data = ready(folder, "predict", sources=("predict",))
    assert ids(data, "predict") == ["a", "b"]
    (batch,) = data.predict_dataloader()
    assert "comparisons" not in batch and len(batch["response_row"]) == 3


# Splits --------------------------------------------------------------------------------------------------


def test_held_out_share_is_fixed_disjoint_and_by_prompt(tmp_path):
    rows = [row(f"r{i}", f"prompt {i // 3}") for i in range(900)]
    alone = {"validation_share": 0.2, "merged_tokens": 0}
    data = ready(save(tmp_path / "one", train=rows), sources=("train",), **alone)
    assert data.splits == ("train", "validation")
    train, held = set(ids(data, "train")), set(ids(data, "validation"))
    assert not train & held and len(train | held) == 900
    assert 0.12 < len(held) / 900 < 0.28
    prompts = [{int(name[1:]) // 3 for name in names} for names in (train, held)]
    assert not prompts[0] & prompts[1], "a prompt is on one side only"
    assert data.reports["validation"].in_train == 0
    # In another order and with other rows beside them, the same rows are held out.
    fewer = list(reversed(rows))[:600]
    again = ready(save(tmp_path / "two", train=fewer), sources=("train",), **alone)
    assert set(ids(again, "validation")) == held & {entry["id"] for entry in fewer}
    assert data.reports["train"].rows + data.reports["validation"].rows == 900


def test_held_out_share_keeps_groups_together(tmp_path):
    rows = [row(f"r{i}", f"prompt {i}", group=f"g{i % 30}") for i in range(300)]
    data = ready(save(tmp_path / "data", train=rows), sources=("train",), validation_share=0.3)
    sides = [{int(name[1:]) % 30 for name in ids(data, split)} for split in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_prompts_shared_with_training_are_reported(folder):
    save(folder, test=[row("e0", "prompt of t3"), row("e1", "  prompt of t3 "), row("e2")])
    data = TinyDataModule(folder)
    with pytest.warns(UserWarning, match="tiny test: 2 records share a prompt with the training split"):
        data.setup("test")
    assert data.reports["test"].in_train == 2


def test_setup_opens_only_its_stage(folder):
    data = ready(folder, "fit")
    assert set(data.reports) == {"train", "validation"}
    with pytest.raises(RuntimeError, match=r"the test split is not open: call setup\(\) for its stage first"):
        data.test_dataloader()
    data.setup("test")
    assert len(list(data.test_dataloader())) == 1


def test_missing_split_says_which_there_are(folder):
    data = ready(folder, sources=("train", "validation"))
    with pytest.raises(ValueError, match="TinyDataModule has no test split; it has train, validation"):
        data.test_dataloader()
    data.setup("predict")
    with pytest.raises(ValueError, match="has no predict split"):
        data.predict_dataloader()


def test_empty_split_is_an_error_that_says_why(tmp_path):
    folder = save(tmp_path / "data", train=[row("a", texts=["x", "x"])], validation=[row("v")])
    message = (
        "tiny: nothing is left of the train split: 0 records of 1 rows.*1 comparison of identical responses"
    )
    with pytest.raises(ValueError, match=message):
        ready(folder, "fit", sources=("train", "validation"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_invalid": "warn"}, "on_invalid must be one of error, skip; got 'warn'"),
        ({"validation_share": 0.0}, "validation_share must be > 0 and < 1; got 0.0"),
        ({"validation_share": 1}, "validation_share must be > 0 and < 1; got 1"),
    ],
)
def test_settings_name_what_is_allowed(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        TinyDataModule(tmp_path, **options)


# Batches -------------------------------------------------------------------------------------------------


def test_batches_hold_every_record_and_the_layout_asked_for(folder):
    for layout, rows in (("auto", 20), ("shared", 20), ("separate", 40)):
        data = ready(folder, "fit", loader=LoaderConfig(max_tokens=200, layout=layout))
        batches = list(data.train_dataloader())
        assert sorted(name for batch in batches for name in batch["id"]) == sorted(f"t{i}" for i in range(20))
        assert sum(len(batch["input_ids"]) for batch in batches) == rows
        assert all(batch["input_ids"].numel() <= 200 for batch in batches) and len(batches) > 2


def test_layout_follows_the_model(folder):
    class Wants(L.LightningModule):
        layout = "separate"

    data = ready(folder, "fit")
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    data.trainer.strategy._lightning_module = Wants()
    assert data.layout() == "separate"
    assert all((batch["segment_ids"] <= 1).all() for batch in data.train_dataloader())


def test_every_batch_has_the_same_keys(tmp_path):
    rows = [row(f"p{i}", pairs=[[0, 1, "ann"]]) for i in range(3)]
    rows += [row(f"s{i}", pairs=[], scores=[1.0, 2.0]) for i in range(3)]
    folder = save(tmp_path / "data", train=rows, validation=[row("v")])
    data = ready(folder, "fit", sources=("train", "validation"), loader=LoaderConfig(batch_size=1))
    keys = {frozenset(batch) for batch in data.train_dataloader()}
    assert len(keys) == 1 and {"comparisons", "user_id", "score"} <= keys.pop()


def test_judges_keep_their_numbers_through_a_checkpoint(tmp_path):
    def pairs(user, domain):
        return [[0, 1, user, domain]]

    first = save(
        tmp_path / "one",
        train=[row("1", pairs=pairs("bob", "law")), row("2", pairs=pairs("ann", "art"))],
        validation=[row("v", pairs=pairs("eve", "law"))],
    )
    data = ready(first, "fit", sources=("train", "validation"))
    assert (data.users, data.domains) == (["ann", "bob", "eve"], ["art", "law"])
    assert data.num_training_users == 2
    by_id = {
        b["id"][0]: b
        for b in ready(
            first, "fit", sources=("train", "validation"), loader=LoaderConfig(batch_size=1)
        ).train_dataloader()
    }
    assert [int(by_id[name]["user_id"]) for name in ("1", "2")] == [1, 0]
    (held,) = data.val_dataloader()
    assert held["user_id"].tolist() == [2] and held["domain_id"].tolist() == [1]
    state = pickle.loads(pickle.dumps(data.state_dict()))
    other = save(
        tmp_path / "two",
        train=[row("3", pairs=pairs("aaa", "zoo")), row("4", pairs=pairs("bob", "law"))],
        validation=[row("w")],
    )
    for early in (True, False):
        more = TinyDataModule(other, ("train", "validation"), loader=LoaderConfig(batch_size=1))
        if early:
            more.load_state_dict(state)
        more.setup("fit")
        if not early:
            more.load_state_dict(state)
        assert more.users == [*data.users, "aaa"] and more.domains == [*data.domains, "zoo"]
        assert more.num_training_users == 2
        by_id = {b["id"][0]: b for b in more.train_dataloader()}
        assert [int(by_id[name]["user_id"]) for name in ("3", "4")] == [3, 1]
        assert [int(by_id[name]["domain_id"]) for name in ("3", "4")] == [2, 1]


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(folder):
    alone = ready(folder, "fit", loader=LoaderConfig(max_tokens=200)).train_dataloader()
    shared = ready(folder, "fit", loader=LoaderConfig(max_tokens=200, num_workers=1)).train_dataloader()
    shared.multiprocessing_context = "spawn"
    ours, theirs = list(alone), list(shared)
    assert [batch["id"] for batch in ours] == [batch["id"] for batch in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert set(one) == set(two)
        assert all(torch.equal(one[key], two[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_pickles_after_setup(folder):
    data = pickle.loads(pickle.dumps(ready(folder)))
    assert sorted(name for batch in data.train_dataloader() for name in batch["id"]) == sorted(
        f"t{i}" for i in range(20)
    )


def test_description_of_the_format_travels(folder):
    data = ready(folder, "fit")
    assert data.text_format() == data._reader.format == RecordTokenizer(TEXT).fingerprint()


def test_responses_alone_are_another_format(folder):
    data = ready(folder, "fit", loader=LoaderConfig(items="response"))
    assert data.text_format() == {**RecordTokenizer(TEXT).fingerprint(), "items": "response"}
    with pytest.raises(
        ValueError, match=r"loader\.items must be one of conversation, response; got 'prompt'"
    ):
        LoaderConfig(items="prompt")


# Votes ---------------------------------------------------------------------------------------------------


def voted(name, *votes, pairs=(), **fields):
    return row(
        name, texts=[f"{name} {i}" for i in range(len(votes))], votes=votes, pairs=list(pairs), **fields
    )


@pytest.fixture
def crowd(tmp_path):
    """Votes on responses, of which t2 has one without any; rows to score have none."""
    save(
        tmp_path / "data",
        train=[voted("t1", [3, 1], [0, 2]), voted("t2", [1, 1], None)],
        validation=[voted("v1", [1, 0], [2, 2])],
        predict=[voted("p1", None, None)],
    )

    def build(stage="fit", **settings):
        loader = LoaderConfig(batch_size=1, crowd=CrowdConfig(**settings))
        return ready(tmp_path / "data", stage, sources=("train", "validation", "predict"), loader=loader)

    return build


def targets(loader):
    return {
        (batch["id"][0], i): ([round(x, 6) for x in share], strength)
        for batch in loader
        for i, (share, strength) in enumerate(
            zip(batch["target"].tolist(), batch["target_votes"].tolist(), strict=True)
        )
    }


@pytest.mark.parametrize(
    ("prior", "mean"),
    [("none", None), ("uniform", (0.5, 0.5)), ("mean", (5 / 12, 7 / 12)), ((0.25, 0.75), (0.25, 0.75))],
)
def test_targets_of_every_prior(crowd, prior, mean):
    data = crowd(prior=prior, prior_strength=4, prior_floor=0)
    assert data.mean_votes("votes") == pytest.approx([5 / 12, 7 / 12]), "of 3/4, 0 and 1/2"
    assert data.mean_votes("comparison_votes") is None
    found = targets(data.train_dataloader())
    votes = {("t1", 0): (3, 1), ("t1", 1): (0, 2), ("t2", 0): (1, 1), ("t2", 1): (0, 0)}
    for item, counts in votes.items():
        weight, general = (0, (0, 0)) if mean is None else (4, mean)
        total = sum(counts) + weight
        share, strength = found[item]
        assert strength == total
        if total:
            expected = [(n + weight * p) / total for n, p in zip(counts, general, strict=True)]
            assert share == pytest.approx(expected, abs=1e-6)
        else:
            assert np.isnan(share).all()


def test_what_nobody_judged_is_named(crowd):
    message = "tiny train: item 1 of record 't2' has no votes and no prior"
    for settings in ({}, {"prior": "uniform", "prior_strength": 0}):
        with pytest.raises(ValueError, match=message):
            crowd(**settings).check_judged("votes")
    crowd(prior="mean").check_judged("votes")
    crowd("validate").check_judged("votes")
    crowd(None, prior="uniform").check_judged("votes")
    with pytest.raises(ValueError, match="tiny has no comparison_votes"):
        crowd().check_judged("comparison_votes")
    TinyDataModule("nowhere").check_judged("votes")


def test_priors_of_a_file(crowd, tmp_path):
    path = tmp_path / "priors.jsonl"

    def write(**priors):
        lines = [json.dumps({"id": name, "prior": prior}) for name, prior in priors.items()]
        path.write_text("\n".join(lines))
        return crowd(None, prior=str(path), prior_strength=2, prior_floor=0)

    data = write(t1=[0.5, 0.5], t2=[[1.0, 0.0], [0.0, 1.0]], v1=[0.5, 0.5])
    data.check_judged("votes")
    found = targets(data.train_dataloader())
    assert found == {
        ("t1", 0): ([round(4 / 6, 6), round(2 / 6, 6)], 6),
        ("t1", 1): ([0.25, 0.75], 4),
        ("t2", 0): ([0.75, 0.25], 4),
        ("t2", 1): ([0, 1], 2),
    }
    for share, strength in targets(data.predict_dataloader()).values():
        assert np.isnan(share).all() and strength == 0, "rows to score need no prior"
    data = write(t1=[0.5, 0.5], v1=[0.5, 0.5])
    with pytest.raises(ValueError, match="item 1 of record 't2' has no votes and no prior"):
        data.check_judged("votes")
    with pytest.raises(ValueError, match=r"1 of 2 responses have no prior|1 of 1 responses have no prior"):
        list(data.train_dataloader())


def test_a_prior_for_one_kind_of_votes_leaves_the_other_alone(tmp_path):
    rows = [
        {"id": "a", "prompt": "p", "responses": ["x", "y"], "votes": [[1, 0, 1], [2, 0, 0]],
         "comparisons": [{"chosen": 0, "rejected": 1, "votes": [3, 1]}]},
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]))
    paths = {split: str(tmp_path / "t.jsonl") for split in ("train", "test")}

    def batch(prior):
        crowd = CrowdConfig(prior=prior, prior_strength=2, prior_floor=0)
        data = LocalDataModule(**paths, text=TEXT, loader=LoaderConfig(crowd=crowd))
        with pytest.warns(UserWarning, match="share a prompt"):
            data.setup("test")
        return data, next(iter(data.test_dataloader()))

    data, found = batch((0.0, 1.0, 0.0))
    assert found["target"].tolist() == [[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]]
    assert found["comparison_target"].tolist() == [[0.75, 0.25]]
    assert found["comparison_target_votes"].tolist() == [4]
    data.check_judged("votes")
    with pytest.raises(ValueError, match="prior must have 2 probabilities, got 3"):
        data.check_judged("comparison_votes")
    _, found = batch((0.5, 0.5))
    assert found["target"].tolist() == [[0.5, 0, 0.5], [1, 0, 0]]
    torch.testing.assert_close(found["comparison_target"], torch.tensor([[4 / 6, 2 / 6]]))
    with pytest.raises(ValueError, match="prior must have 3 probabilities, got 4"):
        batch((0.25,) * 4)
    _, found = batch("mean")
    torch.testing.assert_close(
        found["comparison_target"], torch.tensor([[4 / 6, 2 / 6]])
    )  # 1/2, 1/2 by symmetry


def test_another_prior_after_setup_is_followed(crowd):
    data = crowd()
    assert np.isnan(targets(data.train_dataloader())["t2", 1][0]).all()
    data.loader = replace(data.loader, crowd=CrowdConfig(prior="uniform"))
    assert targets(data.train_dataloader())["t2", 1] == ([0.5, 0.5], 10)


# Memory --------------------------------------------------------------------------------------------------


class CountedDataModule(PreferenceDataModule):
    """Invented rows made as they are read."""

    name = "counted"
    sources = ("train", "validation")

    def __init__(self, count):
        super().__init__(text=TEXT, loader=LoaderConfig(batch_size=8))
        self.count = count

    def settings(self):
        return {"count": self.count}

    def load(self, source):
        for i in range(self.count if source == "train" else 10):
            yield SourceRow("made", i + 1, {"i": i, "source": source})

    def to_example(self, row):
        i = row.fields["i"]
        name = f"{row.fields['source']}{i}"
        words = f"{row.fields['source']} {' '.join(str(i))} "  # few: those that are known stay in memory, up to a bound
        return PreferenceRecord(
            name, words * 12, (Response("yes " * 40), Response("no " * 40)), (Comparison(0, 1),)
        )


def peak(count):
    data = CountedDataModule(count)
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    _, top = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    top += pa.total_allocated_bytes() - arrow
    size = (data.cache_folder() / "train.arrow").stat().st_size
    assert len(batch["id"]) == 8 and len(data.table("train")) == count
    return top, size


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows():
    peak(100)  # imports and tables that stay
    small, small_size = peak(600)
    large, large_size = peak(3000)
    rows, size = 2400, large_size - small_size
    assert size > 1000 * rows
    # Sizes, ids, keys, groups and digests take 56 bytes a row and a sampler some more; tokens would take over a thousand.
    assert large - small < 200 * rows


# Inspection ----------------------------------------------------------------------------------------------


def test_inspection_shows_counts_reasons_and_special_tokens(tmp_path):
    rows = [
        row(
            "first [bold]",
            "Why [red]not[/red] :warning: \\",
            texts=["yes :smile:", "no ["],
            pairs=[[0, 1, "ann", "law"]],
        )
    ]
    rows += [row("twin", texts=["same", "same"]), row("cut", "p" * 100), b"{"]
    folder = save(tmp_path / "data", train=rows, validation=[row("v")])
    data = TinyDataModule(
        folder, ("train", "validation"), on_invalid="skip", text=replace(TEXT, max_length=60)
    )
    console = Console(record=True, width=220, file=io.StringIO())
    print_inspection(data, examples=1, console=console)
    shown = console.export_text()
    assert "shared prefix (31 tokens) Why [red]not[/red] :warning: \\|" in shown
    assert "response 0 (12 tokens) yes :smile:</s>" in shown
    assert "response 1 (5 tokens) no [</s>" in shown
    assert "train: first [bold]" in shown
    assert "comparison: 0 over 1, share 1 user=ann domain=law" in shown
    for said in ("1 not JSON", "1 comparison of identical responses", "1 record without a judgement"):
        assert said in shown
    assert "1 prompts cut (46 tokens)" in shown
    assert "train.jsonl:4: not JSON" in shown
    assert str(data.cache_folder()) in shown and "max_length=60" in shown
    assert "1 domain: law" in shown
    numbers = [line.split("│")[1:-1] for line in shown.splitlines() if "│ train" in line]
    assert [cell.strip() for cell in numbers[0][:5]] == ["train", "4", "2", "4", "2"]
    lengths = {
        line.split("│")[1].strip(): [float(n) for n in line.split("│")[3:-1]]
        for line in shown.splitlines()
        if line.count("│") == 7 and line.split("│")[2].strip() == "train"
    }
    sizes = np.asarray(data.table("train").sizes)
    assert lengths["shared row"][-1] == (sizes[:, 1] + sizes[:, 2]).max()
    assert lengths["longest response with prefix"][-1] == (sizes[:, 1] + sizes[:, 3]).max() == 60
