"""TL;DR comparisons: a post is one record; choices, length labels, splits; invented rows in the real schema."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import LoaderConfig, RecordError, SummarizeFromFeedbackDataModule
from pluralign.datamodules.datasets.summarize_from_feedback.workers import (
    held_out,
    preferred_length,
    rank_unseen_workers,
    rank_workers,
    shot_rows,
)
from pluralign.datamodules.records import PERCENT, hash_split

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "summarize-from-feedback"


def row(post="My cat naps all day.", summaries=(" Cat naps.", " A cat."), choice=0, worker="w.1", **changes):
    policies = changes.pop("policies", ("sup1", "sup2_t.7"))
    info = {"id": "t3_a", "post": post, "title": "Cat", "subreddit": "cats"} | changes.pop("info", {})
    return {
        "info": info,
        "split": "train",
        "summaries": [
            {"text": text, "policy": policy, "note": None}
            for text, policy in zip(summaries, policies, strict=True)
        ],
        "choice": choice,
        "worker": worker,
        "batch": "batch0",
        "extra": {"confidence": 7 if choice else 2},
    } | changes


def write(folder, rows, name="batch0.json"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def module(folder, **kwargs):
    return SummarizeFromFeedbackDataModule(data_dir=str(folder), **kwargs)


def records(data, source="train"):
    return [data.to_example(found) for found in data.load(source)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(f"Cat {i} naps.") for i in range(40)] + [row("Cat 0 naps.", choice=2, extra={})] * bad
    return module(write(folder, [*rows, row("A dog naps.", split="valid1")]), **settings)


def pairs(record):
    return [(c.chosen, c.rejected, c.user, c.strength) for c in record.comparisons]


def test_a_post_is_one_record(tmp_path):
    rows = [
        row(),
        row(summaries=(" A cat.", " It sleeps. "), choice=1, worker="ünï"),
        row(summaries=(" It sleeps.", " Cat naps."), worker=7, extra={}),
        row("Other post.", ("One.", "Two."), info={"id": "t3_b", "subreddit": None}),
    ]
    first, second = records(module(write(tmp_path, rows)))
    assert re.fullmatch(r"t3_a-[0-9a-f]{12}", first.id) and first.id != second.id
    assert (first.prompt, first.group) == ("My cat naps all day.",) * 2
    assert [response.text for response in first.responses] == ["Cat naps.", "A cat.", "It sleeps."]
    assert pairs(first) == [(0, 1, "w.1", 3.0), (2, 1, "ünï", 2.0), (2, 0, "7", None)]
    assert {c.domain for c in first.comparisons} == {"cats"}
    assert {c.preference for c in first.comparisons} == {1.0}
    assert [c.domain for c in second.comparisons] == [None]


@pytest.mark.parametrize(
    ("choice", "confidence", "strength"), [(0, 1, 4), (0, 4, 1), (1, 6, 1), (1, 9, 4), (0, 5, 0), (1, 3, -2)]
)
def test_confidence_is_a_place_between_the_summaries(tmp_path, choice, confidence, strength):
    (record,) = records(module(write(tmp_path, [row(choice=choice, extra={"confidence": confidence})])))
    assert pairs(record) == [(choice, 1 - choice, "w.1", strength)]


def test_posts_without_an_id_join_those_with_the_same_text(tmp_path):
    rows = [
        row(info={"id": None, "subreddit": "r/cats"}, worker="a"),
        row(" My cat naps all day.\n", worker="b"),
        row("Lone."),
    ]
    del rows[0]["info"]["id"], rows[2]["info"]["id"]
    first, second = records(module(write(tmp_path, rows)))
    assert first.id.startswith("t3_a-") and second.id.startswith("post-")
    assert [c.user for c in first.comparisons] == ["a", "b"]
    assert {c.domain for c in first.comparisons} == {"cats"}


def test_identical_summaries_are_dropped_and_counted(tmp_path):
    rows = [row(), row(summaries=("A cat.", " A cat."), worker="b")]
    rows += [row(f"Post {i}.", info={"id": f"t3_{i}"}) for i in range(40)] + [
        row("Held out.", split="valid1")
    ]
    data = module(write(tmp_path, rows), validation_share=0.3)
    data.setup()
    dropped = sum((data.reports[split].dropped for split in ("train", "validation")), Counter())
    assert dropped == {"comparison of identical responses": 1}
    assert sum(data.reports[split].comparisons for split in ("train", "validation")) == 41
    assert data.reports["test"].comparisons == 1
    assert data.reports["validation"].in_train == 0


def test_released_splits(tmp_path):
    rows = [row(f"Post {split}.", split=split) for split in ("valid2", "train", "valid1")]
    data = module(write(tmp_path, rows))
    assert data.sources == ("train", "test") and data.splits == ("train", "validation", "test")
    assert [record.prompt for record in records(data)] == ["Post train."]
    assert [record.prompt for record in records(data, "test")] == ["Post valid2.", "Post valid1."]
    write(tmp_path, rows[:1])
    with pytest.raises(ValueError, match="no usable row is marked train; use split='posts'"):
        records(data)


def test_posts_are_split_by_their_text(tmp_path):
    rows = [row(f"Post {i}.", worker=f"w{i % 3}", split="valid1") for i in range(200)]
    data = module(write(tmp_path, rows * 2), split="posts")
    assert data.sources == ("train", "validation", "test")
    found = {source: records(data, source) for source in data.sources}
    assert {source: len(of) for source, of in found.items()} == {"train": 164, "validation": 14, "test": 22}
    assert all(hash_split(record.prompt, PERCENT) == source for source, of in found.items() for record in of)
    assert {len(record.comparisons) for of in found.values() for record in of} == {2}


def test_batches_name_workers_and_subreddits(tmp_path):
    rows = [row(f"{post} {i}.", worker=f"w{i}") for post in ("Post", "Note") for i in range(3)]
    rows += [
        row("Held out.", (" One.", " Two."), 1, "w2", split="valid1"),
        row("Held out.", (" Two.", " Three."), 0, "new", split="valid1"),
    ]
    data = module(write(tmp_path, rows), loader=LoaderConfig(shuffle=False), validation_share=0.0001)
    data.setup("test")
    assert (data.users, data.num_training_users, data.domains) == (["w0", "w1", "w2", "new"], 3, ["cats"])
    (batch,) = data.test_dataloader()
    assert batch["comparisons"].tolist() == [[1, 0], [1, 2]]
    assert batch["preference"].tolist() == [1.0, 1.0]
    assert batch["user_id"].tolist() == [2, 3]
    assert batch["domain_id"].tolist() == [0, 0]
    assert batch["strength"].tolist() == [2.0, 3.0]


def test_the_whole_prompt(tmp_path):
    folder = write(tmp_path, [row(info={"subreddit": "r/cats"}), row("No title.", info={"title": None})])
    data = module(folder, prompt="tldr")
    good, bad = data.load("train")
    assert data.to_example(good).prompt == (
        "SUBREDDIT: r/cats\n\nTITLE: Cat\n\nPOST: My cat naps all day.\n\nTL;DR:"
    )
    with pytest.raises(RecordError, match=r"missing field: field 'info\.title'"):
        data.to_example(bad)


# Length -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("summaries", "majority", "minority"),
    [(("long one", "short"), 0, 1), (("short", "long one"), 1, 0), (("same", "size"), 1, 1)],
)
def test_groups_prefer_opposite_lengths_and_the_second_of_equals(summaries, majority, minority):
    assert preferred_length(summaries, "majority") == majority
    assert preferred_length(summaries, "minority") == minority


def crowd():
    """Eleven workers w00..w10 with 20, 19, ..., 10 training rows, and three test rows each."""
    rows = []
    for number in range(11):
        for i in range(20 - number + 3):
            summaries = (" Longer one.", " Short.") if i % 2 else (" Short.", " Longer one.")
            rows.append(
                row(
                    f"Post {number} {i}.",
                    summaries,
                    i % 2,
                    f"w{number:02d}",
                    split="valid1" if i < 3 else "train",
                )
            )
    return rows


def test_workers_are_ranked_by_rows_then_by_name():
    workers = [f"w{number:02d}" for number in range(11) for _ in range(20 - number)]
    groups = rank_workers(workers)
    assert list(groups) == [f"w{number:02d}" for number in range(10)]
    assert [worker for worker, group in groups.items() if group == "minority"] == ["w03", "w04", "w05"]
    assert list(rank_workers(list("jihgfedcba"))) == list("abcdefghij")
    with pytest.raises(ValueError, match=r"needs at least 10 workers .* found 9"):
        rank_workers(list("abcdefghi"))


@pytest.mark.parametrize(("count", "expected"), [(100, 10), (101, 11), (109, 11), (23_299, 2_330), (30, 3)])
def test_a_tenth_is_held_out_rounded_up_and_stratified(count, expected):
    workers = [f"w{i % 7}" for i in range(count)]
    positions = held_out(workers)
    assert len(positions) == len(set(positions)) == expected
    assert positions == held_out(workers) == sorted(positions)
    shares = Counter(workers[i] for i in positions)
    for worker, total in Counter(workers).items():
        assert abs(shares[worker] - total / 10) < 1


def test_length_labels(tmp_path):
    rows = crowd()
    data = module(write(tmp_path, rows), labels="length")
    found = {source: records(data, source) for source in data.sources}
    counts = {source: sum(len(record.comparisons) for record in of) for source, of in found.items()}
    assert counts == {"train": 139, "validation": 16, "test": 30}
    groups = data.user_groups()
    assert list(groups.values()) == ["majority"] * 3 + ["minority"] * 3 + ["majority"] * 4
    for record in (record for of in found.values() for record in of):
        for comparison in record.comparisons:
            preferred = record.responses[comparison.chosen].text
            expected = "Short." if groups[comparison.user] == "minority" else "Longer one."
            assert (preferred, comparison.strength) == (expected, None)
    assert {c.user for record in found["validation"] for c in record.comparisons} == set(groups)
    posts = [record.prompt for of in found.values() for record in of]
    assert len(posts) == len(set(posts)) == 185


# Unseen workers ------------------------------------------------------------------------------------------


def with_newcomers(*counts):
    """The crowd, and workers of whom each has so many test rows; the last is named first."""
    rows = crowd()
    for number, count in enumerate(counts):
        for i in range(count):
            summaries = (" Longer one.", " Short.") if i % 2 else (" Short.", " Longer one.")
            worker = f"n{len(counts) - number}"
            rows.append(row(f"New {number} {i}.", summaries, i % 2, worker, split=f"valid{1 + i % 2}"))
    return rows


def test_unseen_workers_are_ranked_like_the_others():
    """As many of them are minority as the official list has: 9 of 31."""
    workers = (
        [f"n{number:02d}" for number in range(31) for _ in range(130 - number)] + ["few"] * 99 + ["w"] * 500
    )
    groups = rank_unseen_workers(workers, {"w"})
    assert len(groups) == 31 and Counter(groups.values()) == {"majority": 22, "minority": 9}
    minority = [name for name, group in groups.items() if group == "minority"]
    assert minority == [f"n{number:02d}" for number in (3, 4, 5, 13, 14, 15, 23, 24, 25)]
    with pytest.raises(ValueError, match=r"no worker outside the ten has 100 test rows .*; the most are 99"):
        rank_unseen_workers(["few"] * 99 + ["w"] * 500, {"w"})


def test_a_hundred_rows_to_fit_and_all_others_to_measure(tmp_path):
    data = module(
        write(tmp_path, with_newcomers(250, 101, 100, 99)),
        labels="length",
        unseen_workers=True,
        cache_dir=str(tmp_path / "cache"),
    )
    counts = {
        source: Counter(c.user for record in records(data, source) for c in record.comparisons)
        for source in data.sources
    }
    newcomers = {"n4": (100, 150), "n3": (100, 1), "n2": (99, 1)}
    for name, (support, query) in newcomers.items():
        assert (counts["train"][name], counts["validation"][name], counts["test"][name]) == (
            support,
            0,
            query,
        )
    assert not any("n1" in of for of in counts.values()), "too few rows"
    plain = module(tmp_path, labels="length")
    for source, of in counts.items():
        seen = Counter(c.user for record in records(plain, source) for c in record.comparisons)
        assert {name: number for name, number in of.items() if name not in newcomers} == seen
    assert data.held_back_users() == list(newcomers)
    assert data.user_groups() == {**plain.user_groups(), **dict.fromkeys(newcomers, "majority")}
    data.verify_sizes({"train": 139, "validation": 16, "test": 30})
    workers = ["a"] * 300 + ["b"] * 101
    assert shot_rows(workers) == shot_rows(workers) and len(set(shot_rows(workers))) == 200


def test_a_fit_leaves_unseen_workers_out(tmp_path):
    data = module(
        write(tmp_path, with_newcomers(120)),
        labels="length",
        unseen_workers=True,
        cache_dir=str(tmp_path / "cache"),
        loader=LoaderConfig(batch_size=16),
    )
    data.setup("fit")
    data.setup("test")
    assert data.divided_users()[1] == ["n1"] and "n1" not in data.training_users
    number = {name: i for i, name in enumerate(data.users)}["n1"]
    for split in ("train", "validation", "test"):
        judges = [user for batch in data.batches(split) for user in batch["user_id"].tolist()]
        assert judges and number not in judges
    for split, count in (("train", 100), ("test", 20)):
        judges = [user for batch in data.batches(split, users="unseen") for user in batch["user_id"].tolist()]
        assert judges == [number] * count


def test_unseen_workers_are_those_of_the_length_variant(tmp_path):
    for settings in ({"labels": "choice"}, {"labels": "length", "split": "posts"}):
        with pytest.raises(
            ValueError, match="unseen_workers needs labels='length' and split='released'; got"
        ):
            module(tmp_path, unseen_workers=True, **settings)


def test_only_supervised_policies_have_length_labels(tmp_path):
    rows = crowd()
    extra = [
        row("P.", policies=policies, worker="w00")
        for policies in (("sup4_ppo_rm4", "sup1"), ("sup1", "ref"), ("ref", "human"))
    ]
    data = module(write(tmp_path, rows + extra), labels="length")
    assert "P." not in [record.prompt for source in data.sources for record in records(data, source)]
    assert len(records(module(tmp_path), "train")) == sum(r["split"] == "train" for r in rows) + 1


def test_sizes_are_verified_on_request(tmp_path):
    data = module(write(tmp_path, crowd()), labels="length")
    data.verify_sizes({"train": 139, "validation": 16, "test": 30})
    message = (
        r"labels='length', split='released': found 139 train / 16 validation / 30 test judgements; "
        r"expected 20,969 train / 2,330 validation / 4,921 test"
    )
    with pytest.raises(ValueError, match=message):
        data.verify_sizes()


def test_length_labels_of_posts(tmp_path):
    rows = [one | {"split": "valid2"} for one in crowd()]
    data = module(write(tmp_path, rows), labels="length", split="posts")
    found = {source: {record.prompt for record in records(data, source)} for source in data.sources}
    assert all(hash_split(post, PERCENT) == source for source, posts in found.items() for post in posts)
    with pytest.raises(ValueError, match="use split='posts'"):
        records(module(tmp_path, labels="length"))
    assert module(tmp_path).user_groups() == {}


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"info": {"post": None, "article": "News."}}, "news article", "info.post"),
        ({"info": {"post": None}}, "missing field", "info.post"),
        ({"info": {"post": "  "}}, "empty post", "info.post"),
        ({"info": {"post": 3}}, "wrong type", "info.post"),
        ({"info": {"id": 3}}, "wrong type", "info.id"),
        ({"split": "test"}, "out of range", "split"),
        ({"split": None}, "missing field", "split"),
        ({"summaries": ("a", " ")}, "empty response", "summaries[1].text"),
        ({"summaries": (None, "b")}, "missing field", "summaries[0].text"),
        ({"policies": ("sup", 3)}, "wrong type", "summaries[1].policy"),
        ({"choice": 2, "extra": {}}, "out of range", "choice"),
        ({"choice": True}, "wrong type", "choice"),
        ({"choice": "0"}, "wrong type", "choice"),
        ({"worker": None}, "missing field", "worker"),
        ({"worker": False}, "wrong type", "worker"),
        ({"worker": " "}, "missing field", "worker"),
        ({"extra": {"confidence": 10}}, "out of range", "extra.confidence"),
        ({"extra": {"confidence": 2.5}}, "wrong type", "extra.confidence"),
        ({"extra": [1]}, "wrong type", "extra"),
    ],
)
def test_malformed_rows_are_named_once_and_the_others_stay(tmp_path, changes, reason, field):
    data = module(write(tmp_path, [row(worker="a"), row(**changes), row(worker="b")]))
    error, found = data.load("train")
    assert isinstance(error, RecordError)
    assert (error.reason, error.field, error.line) == (reason, field, 2)
    assert error.file.endswith("batch0.json")
    assert [c.user for c in data.to_example(found).comparisons] == ["a", "b"]
    assert not list(data.load("test"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"summaries": "ab"}, "summaries"), ({"summaries": [3, 4]}, "summaries[0]"), ({"info": "x"}, "info")],
)
def test_malformed_structures(tmp_path, changes, field):
    error = next(module(write(tmp_path, [row() | changes, row()])).load("train"))
    assert (error.reason, error.field) == ("wrong type", field)


def test_rows_about_news_are_counted(tmp_path):
    rows = [row(f"Post {i}.") for i in range(40)] + [row(info={"post": None, "article": "News."})]
    rows.append(row("Held out.", split="valid1"))
    data = module(write(tmp_path, rows), validation_share=0.3)
    data.setup("fit")
    assert data.reports["train"].invalid == {"news article": 1}
    with pytest.raises(RecordError, match=r"batch0\.json:41: news article"):
        module(tmp_path, on_invalid="error").setup("fit")


def test_wrong_arguments(tmp_path):
    for name in ("labels", "split", "prompt"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'x'"):
            module(tmp_path, **{name: "x"})
    with pytest.raises(
        FileNotFoundError, match=r"holds no \.json or \.json\.gz files, nor a folder comparisons"
    ):
        module(tmp_path).files("train")


def test_a_folder_that_holds_comparisons_compressed(tmp_path):
    (tmp_path / "comparisons").mkdir()
    for name in ("batch2", "batch1"):
        lines = json.dumps(row(f"Post of {name}.")).encode()
        (tmp_path / "comparisons" / f"{name}.json.gz").write_bytes(gzip.compress(lines))
    assert [record.prompt for record in records(module(tmp_path))] == ["Post of batch1.", "Post of batch2."]


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        split = kwargs["split"]
        info = {"id": None, "site": None, "article": None}
        return [row(f"Post {split}.", info=info, split="train" if split == "train" else "valid2")]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = SummarizeFromFeedbackDataModule()
    assert [record.prompt for record in records(data, "test")] == ["Post validation."]
    revision = "195fc27ff714b2aff32ab8aba9bbee1d35663700"
    assert asked == [
        (
            "openai/summarize_from_feedback",
            {"revision": revision, "split": split, "data_dir": "comparisons"},
        )
        for split in ("train", "validation")
    ]
    assert data.files("train") == []
    assert data.settings() == {
        "hub": f"openai/summarize_from_feedback@{revision}",
        "labels": "choice",
        "split": "released",
        "prompt": "post",
    }


needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the shared summarize-from-feedback sample is not beside this checkout"
)


@needs_real
def test_real_files():
    data = module(REAL, split="posts")
    found = {source: records(data, source) for source in data.sources}
    counts = {
        source: (len(of), sum(len(r.responses) for r in of), sum(len(r.comparisons) for r in of))
        for source, of in found.items()
    }
    assert counts == {"train": (678, 1510, 1192), "validation": (99, 222, 172), "test": (73, 152, 97)}
    users = Counter(c.user for of in found.values() for record in of for c in record.comparisons)
    assert (len(users), sum(count >= 30 for count in users.values()), max(users.values())) == (31, 19, 144)
    strengths = {c.strength for of in found.values() for record in of for c in record.comparisons}
    assert strengths == {1.0, 2.0, 3.0, 4.0}


@needs_real
def test_real_files_by_length():
    data = module(REAL, split="posts", labels="length")
    data.verify_sizes({"train": 211, "validation": 30, "test": 6})
    assert Counter(data.user_groups().values()) == {"majority": 7, "minority": 3}
    groups = data.user_groups()
    for record in records(data):
        for comparison in record.comparisons:
            preferred, other = (
                len(record.responses[i].text) for i in (comparison.chosen, comparison.rejected)
            )
            assert abs(preferred - other) <= 1 or (preferred < other) == (
                groups[comparison.user] == "minority"
            )
