"""OASST: sets of ranked replies, from trees and from flat messages; invented trees in the real schema, and the real file."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import Message, RecordError
from pluralign.datamodules.datasets.oasst import OASSTDataModule

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "oasst1-sample"


def message(name, text, role="assistant", rank=None, replies=(), **changes):
    known = {
        "message_id": name,
        "text": text,
        "role": role,
        "lang": "en",
        "deleted": False,
        "synthetic": False,
    }
    return {**known, **({} if rank is None else {"rank": rank}), "replies": list(replies), **changes}


def tree(name="t", text="Name a fruit.", ranks=(1, 0, 2), **changes):
    """A prompt with ranked replies; below the first, a second prompt with two, and a prompt nobody answered."""
    second = message(
        f"{name}-again",
        "Another?",
        "prompter",
        replies=[message(f"{name}-p", "Pear.", rank=0), message(f"{name}-f", "Fig.", rank=1)],
    )
    unanswered = message(f"{name}-end", "Thanks.", "prompter")
    replies = [
        message(f"{name}{i}", f"{word}.", rank=rank)
        for i, (word, rank) in enumerate(zip(("Apple", "Plum", "Chair"), ranks, strict=False))
    ]
    replies[0]["replies"] = [second, unanswered]
    return {
        "message_tree_id": name,
        "tree_state": "ready_for_export",
        "prompt": message(name, text, "prompter", replies=replies, **changes),
    }


def flat(trees):
    """The same trees as the flat table has them: depth first, parents by id, every column in every row."""
    rows = []

    def walk(node, parent, name):
        row = {key: value for key, value in node.items() if key != "replies"}
        rows.append(
            {
                "parent_id": parent,
                "rank": None,
                **row,
                "message_tree_id": name,
                "tree_state": "ready_for_export",
            }
        )
        for reply in node["replies"]:
            walk(reply, node["message_id"], name)

    for one in trees:
        walk(one["prompt"], None, one["message_tree_id"])
    return rows


def module(folder, rows, name="en.trees.jsonl", **settings):
    content = "\n".join(map(json.dumps, rows)).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return OASSTDataModule(data_dir=str(folder), **settings)


def found(data):
    rows = [row for source in data.sources for row in data.load(source)]
    records = [data.to_example(row) for row in rows if not isinstance(row, RecordError)]
    return records, [row for row in rows if isinstance(row, RecordError)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    settings.pop("validation_share", None)  # local files are divided by tree
    trees = [tree(f"t{i}", f"Name fruit {i}.") for i in range(40)]
    lone = {
        "message_tree_id": "x",
        "prompt": message("x", "Name fruit 0.", "prompter", replies=[message("y", "Fig.", rank=-1)]),
    }
    return module(folder, trees + [lone] * bad, **settings)


PAIRS = {
    "all": [[(1, 0), (1, 2), (0, 2)], [(0, 1)]],
    "neighbours": [[(1, 0), (0, 2)], [(0, 1)]],
    "best": [[(1, 0), (1, 2)], [(0, 1)]],
}


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("form", ["trees", "packed trees", "messages"])
def test_every_set_of_ranked_replies_is_a_record(tmp_path, form, pairs):
    rows, name = [tree()], "en.trees.jsonl.gz" if form == "packed trees" else "en.trees.jsonl"
    if form == "messages":
        rows, name = flat(rows), "en.messages.jsonl"
    (first, second), errors = found(module(tmp_path, rows, name, pairs=pairs))
    assert errors == []
    assert (first.id, first.prompt) == ("t", (Message("user", "Name a fruit."),))
    assert second.id == "t-again"
    assert second.prompt == (
        Message("user", "Name a fruit."),
        Message("assistant", "Apple."),
        Message("user", "Another?"),
    )
    assert [r.text for r in first.responses] == ["Apple.", "Plum.", "Chair."]
    assert [r.text for r in second.responses] == ["Pear.", "Fig."]
    assert [[(c.chosen, c.rejected) for c in record.comparisons] for record in (first, second)] == PAIRS[
        pairs
    ]
    for comparison in first.comparisons + second.comparisons:
        assert (comparison.preference, comparison.strength, comparison.user) == (1.0, None, None)
    assert {record.group for record in (first, second)} == {"Name a fruit."}


def test_equal_ranks_are_a_tie(tmp_path):
    (first, _), _ = found(module(tmp_path, [tree(ranks=(1, 0, 1))]))
    assert [(c.chosen, c.rejected, c.preference) for c in first.comparisons] == [
        (1, 0, 1.0),
        (1, 2, 1.0),
        (0, 2, 0.5),
    ]


@pytest.mark.parametrize("form", ["trees", "messages"])
@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"rank": None}, "no rank", "rank"),
        ({"rank": "1"}, "wrong type", "rank"),
        ({"rank": -1}, "out of range", "rank"),
        ({"deleted": True}, "deleted message", "deleted"),
        ({"text": " "}, "empty response", "text"),
    ],
)
def test_a_reply_that_cannot_be_used_is_counted_and_the_others_stay(tmp_path, form, change, reason, field):
    one = tree()
    one["prompt"]["replies"][2].update(change)
    rows = [one] if form == "trees" else flat([one])
    (first, _), (error,) = found(module(tmp_path, rows))
    prefix = "prompt.replies[2]." if form == "trees" else ""
    assert (error.reason, error.field) == (reason, f"{prefix}{field}")
    assert error.line == (1 if form == "trees" else 8)
    assert [r.text for r in first.responses] == ["Apple.", "Plum."]
    assert [(c.chosen, c.rejected) for c in first.comparisons] == [(1, 0)]


def test_what_follows_a_message_that_cannot_be_read_is_counted(tmp_path):
    one = tree()
    one["prompt"]["replies"][0]["text"] = None
    (first,), errors = found(module(tmp_path, [one]))
    assert [r.text for r in first.responses] == ["Plum.", "Chair."]
    assert sorted(error.reason for error in errors) == [
        "broken conversation",
        "missing field",
        "missing field",
    ]


def test_ranked_prompters_and_replies_without_any_rank_are_no_records(tmp_path):
    one = tree(ranks=(None, None, None))
    for i, prompter in enumerate(one["prompt"]["replies"][0]["replies"]):
        prompter["rank"] = i
    (only,), errors = found(module(tmp_path, [one]))
    assert (only.id, errors) == ("t-again", [])


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"message_tree_id": "x"}, "missing field", "prompt"),
        ({"message_tree_id": "x", "prompt": "Hi"}, "wrong type", "prompt"),
        (
            {"message_tree_id": "x", "prompt": {"message_id": "x", "role": "prompter"}},
            "missing field",
            "prompt.text",
        ),
        (
            {"message_id": "x", "text": "Hi", "role": "prompter", "parent_id": "gone"},
            "missing parent",
            "parent_id",
        ),
        ({"message_id": 3, "text": "Hi", "role": "prompter"}, "wrong type", "message_id"),
        (
            {"message_id": "x", "text": "Hi", "role": "prompter", "parent_id": "x"},
            "missing parent",
            "parent_id",
        ),
    ],
)
def test_rows_that_belong_to_no_tree_are_errors_of_training(tmp_path, row, reason, field):
    data = module(tmp_path, [row, tree()])
    errors = {source: [e for e in data.load(source) if isinstance(e, RecordError)] for source in data.sources}
    (error,) = errors.pop("train")
    assert (error.reason, error.field, error.line) == (reason, field, 1)
    assert not any(errors.values())


def test_a_message_given_twice_and_one_below_a_lost_one(tmp_path):
    rows = flat([tree()])
    rows.insert(1, rows[0])
    below = {**rows[-1], "message_id": "deep", "parent_id": "lost"}
    lost = {**rows[-1], "message_id": "lost", "parent_id": "nowhere"}
    records, errors = found(module(tmp_path, [*rows, below, lost], "m.jsonl"))
    assert len(records) == 2
    assert [(e.reason, e.line) for e in errors] == [
        ("duplicate id", 2),
        ("missing parent", 10),
        ("missing parent", 11),
    ]


def test_unknown_roles_and_replies_that_are_none(tmp_path):
    one, other = tree("a"), tree("b", "Name a tree.")
    one["prompt"]["replies"][1]["role"] = "system"
    other["prompt"]["replies"] = "none"
    _, errors = found(module(tmp_path, [one, other]))
    assert sorted((e.reason, e.field) for e in errors) == [
        ("out of range", "prompt.replies[1].role"),
        ("out of range", "prompt.replies[1].role"),
        ("wrong type", "prompt.replies"),
    ]


def test_languages_are_those_of_the_roots(tmp_path):
    trees = [tree("a", lang="de"), tree("b", "Nenne ein Obst.", lang="de"), tree("c", "Name a tree.")]
    records, errors = found(module(tmp_path, trees, languages=("en",)))
    assert ([record.id for record in records], errors) == (["c", "c-again"], [])
    with pytest.raises(ValueError, match="languages must name one"):
        OASSTDataModule(languages=())


def test_trees_that_open_with_the_same_words_stay_together(tmp_path):
    trees = [tree(f"t{i}", f"Name fruit {i // 2}. ") for i in range(120)]
    data = module(tmp_path, trees)
    openings = {source: {row.text("opening") for row in data.load(source)} for source in data.sources}
    assert all(openings.values())
    assert sum(map(len, openings.values())) == 60


def test_which_file(tmp_path):
    data = module(tmp_path, [tree("a")], "a.jsonl")
    assert [path.name for path in data.files("test")] == ["a.jsonl"]
    module(tmp_path, [tree("b")], "b.jsonl.gz")
    with pytest.raises(FileNotFoundError, match=r"file naming one of several; there: a\.jsonl, b\.jsonl\.gz"):
        data.files("train")
    chosen = OASSTDataModule(data_dir=str(tmp_path), file="b.jsonl.gz")
    assert [record.id for record in found(chosen)[0]] == ["b", "b-again"]
    with pytest.raises(FileNotFoundError, match=r"must have c\.jsonl"):
        OASSTDataModule(data_dir=str(tmp_path), file="c.jsonl").files("train")
    with pytest.raises(ValueError, match="needs data_dir"):
        OASSTDataModule(file="c.jsonl")


def test_the_hub_has_splits_and_a_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(name, **settings):
        asked.append((name, settings["revision"], settings["split"]))
        return flat([tree()])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = OASSTDataModule()
    assert data.sources == ("train", "test") and data.splits == ("train", "validation", "test")
    (first, second), errors = found(data)[0][:2], found(data)[1]
    assert (first.id, second.id, errors) == ("t", "t-again", [])
    assert {split for *_, split in asked} == {"train", "validation"}
    assert {entry[:2] for entry in asked} == {
        ("OpenAssistant/oasst1", "fdf72ae0827c1cda404aff25b6603abec9e3399b")
    }
    assert data.settings()["hub"] == "OpenAssistant/oasst1@fdf72ae0827c1cda404aff25b6603abec9e3399b"


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared OASST sample is not beside this checkout")
def test_real_file():
    """Ranked sets and ordered pairs are those that ten lines of plain Python count."""
    with gzip.open(REAL / "en_100_tree.jsonl.gz", "rt", encoding="utf-8") as stream:
        trees = [json.loads(line) for line in stream]
    sets, pairs, unranked, waiting = 0, Counter(), 0, [one["prompt"] for one in trees]
    while waiting:
        replies = waiting.pop().get("replies") or []
        waiting += replies
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        sets, unranked = sets + bool(ranked), unranked + (len(replies) - len(ranked)) * bool(ranked)
        pairs.update(
            (a["text"].strip(), b["text"].strip()) for a in ranked for b in ranked if a["rank"] < b["rank"]
        )
    assert (len(trees), sets, pairs.total(), unranked) == (77, 165, 567, 1)

    data = OASSTDataModule(data_dir=str(REAL))
    records, errors = found(data)
    assert [error.reason for error in errors] == ["no rank"]
    assert len(records) == len({record.id for record in records}) == 165
    assert (
        Counter(
            (r.responses[c.chosen].text, r.responses[c.rejected].text) for r in records for c in r.comparisons
        )
        == pairs
    )
    assert {c.preference for record in records for c in record.comparisons} == {1.0}
    assert Counter(len(record.prompt) for record in records) == {1: 76, 3: 87, 5: 2}
    assert {record.prompt[0].content for record in records} <= {
        one["prompt"]["text"].strip() for one in trees
    }

    data.setup()
    assert sum(report.comparisons for report in data.reports.values()) == 567
