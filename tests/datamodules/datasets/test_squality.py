"""SQuALITY: ratings become votes, score and comparisons; whole passages held out; invented reviews, real schema."""

import copy
import gzip
import json
from hashlib import sha1
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, RecordError
from pluralign.datamodules.datasets.squality import LABELS, SQuALITYDataModule
from pluralign.datamodules.records import ordered_split

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "squality-human-eval"

RATINGS = {"bart": (10, 0, 45), "bart-dpr": (5, 0, 50), "human": (100, 95, 90)}


def review(worker, rating):
    names = {f"{name}-rating": rating for name in ("overall", "correctness", "selection")}
    return {"annotations": [], "system": "any", "worker_id": worker, **names, "overall-rank": 1}


def systems(ratings=RATINGS):
    return {
        name: {
            "response": f"{name} says: they left.",
            "reviews": [review(str(i), value) for i, value in enumerate(values, 2)],
            "overall": {"overall-rating": sum(values) / 3},
        }
        for name, values in ratings.items()
    }


def passage(name, questions=None):
    return {"passage-id": name, "questions": questions or {"0": systems(), "1": systems()}}


def texts(name):
    questions = [{"question_text": f"What of {name}, {i}?", "question_number": i} for i in (1, 2)]
    return {"metadata": {"passage_id": name}, "split": "test", "questions": questions}


NAMES = ["11", "12", "13"]


def module(
    folder, passages=None, questions=None, layout=("all-responses.jsonl", "questions.jsonl"), **kwargs
):
    passages = [passage(name) for name in NAMES] if passages is None else passages
    questions = [texts(name) for name in NAMES] if questions is None else questions
    for name, rows in zip(layout, (passages, questions), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = "\n".join(map(json.dumps, rows)).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return SQuALITYDataModule(data_dir=str(folder), **kwargs)


def examples(data, source=None):
    sources = data.sources if source is None else (source,)
    return [data.to_example(row) for name in sources for row in data.load(name)]


def broken(change):
    """Three passages, of which the one in training is changed."""
    passages = {name: copy.deepcopy(passage(name)) for name in NAMES}
    (name,) = [
        name for name, source in ordered_split(NAMES, one_in=8, what="passages").items() if source == "train"
    ]
    change(passages[name]["questions"]["0"]["bart"])
    return list(passages.values())


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    names = [str(i) for i in range(10, 26)]
    passages = [passage(name) for name in names] + [{"passage-id": "9", "questions": [1]}] * bad
    return module(folder, passages, [texts(name) for name in names], **settings)


@pytest.mark.parametrize(
    "layout",
    [
        ("all-responses.jsonl", "questions.jsonl"),
        ("all-responses.jsonl.gz", "questions.jsonl.gz"),
        ("human-eval/all-responses.jsonl", "v1-3/txt/test.jsonl"),
    ],
)
def test_a_question_is_one_record(tmp_path, layout):
    records = {record.id: record for record in examples(module(tmp_path, layout=layout))}
    assert sorted(records) == ["11/0", "11/1", "12/0", "12/1", "13/0", "13/1"]
    record = records["11/1"]
    assert (record.prompt, record.group) == ("What of 11, 2?", "11")
    assert [response.text for response in record.responses] == [
        f"{name} says: they left." for name in RATINGS
    ]
    assert [response.score for response in record.responses] == pytest.approx([55 / 300, 55 / 300, 0.95])
    assert LABELS == ("low", "high")
    for response, high in zip(record.responses, (0.55, 0.55, 2.85), strict=True):
        assert response.votes == pytest.approx((3 - high, high))


def test_comparisons_are_the_signs_of_each_reviewers_differences(tmp_path):
    record = examples(module(tmp_path))[0]
    found = [(c.chosen, c.rejected, c.votes, c.preference) for c in record.comparisons]
    assert found == [(0, 1, (1, 1, 1), 0.5), (2, 0, (3, 0, 0), 1.0), (2, 1, (3, 0, 0), 1.0)]
    assert examples(module(tmp_path, comparisons=False))[0].comparisons == ()


def test_only_common_reviewers_count(tmp_path):
    questions = systems()
    questions["bart"]["reviews"].pop(0)
    questions["human"]["reviews"] = [review("9", 100)]
    record = examples(module(tmp_path, [passage(name, {"0": questions}) for name in NAMES]))[0]
    found = [(c.chosen, c.rejected, c.votes, c.preference) for c in record.comparisons]
    assert found == [(1, 0, (1, 1, 0), 0.75)]
    assert [sum(response.votes) for response in record.responses] == pytest.approx([2, 3, 1])


@pytest.mark.parametrize(
    ("num_bins", "expected"),
    [(2, (3, 2)), (5, (2, 0, 2, 0, 1)), (10, (1, 1, 0, 0, 1, 1, 0, 0, 0, 1))],
)
def test_bins(tmp_path, num_bins, expected):
    questions = {"0": systems({"human": (0, 19, 49, 50, 100)})}
    passages = [passage(name, questions) for name in NAMES]
    record = examples(module(tmp_path, passages, votes="bins", num_bins=num_bins))[0]
    assert record.responses[0].votes == expected


def test_criteria_are_read_apart(tmp_path):
    questions = systems()
    for each in questions["bart"]["reviews"]:
        each.update({"correctness-rating": 40, "selection-rating": 80})
    passages = [passage(name, {"0": questions}) for name in NAMES]
    scores = {}
    for criterion in ("overall", "correctness", "selection"):
        record = examples(module(tmp_path, passages, criterion=criterion))[0]
        scores[criterion] = record.responses[0].score
    assert scores == pytest.approx({"overall": 55 / 300, "correctness": 0.4, "selection": 0.8})


def test_a_batch_holds_votes_scores_and_comparisons(tmp_path):
    data = module(tmp_path, loader=LoaderConfig(batch_size=2, max_tokens=None))
    data.setup("test")
    (batch,) = data.test_dataloader()
    votes = [[2.45, 0.55], [2.45, 0.55], [0.15, 2.85]]
    torch.testing.assert_close(batch["votes"], torch.tensor(votes * 2))
    torch.testing.assert_close(batch["score"], torch.tensor([55 / 300, 55 / 300, 0.95] * 2))
    torch.testing.assert_close(
        batch["comparison_votes"], torch.tensor([[1.0, 1, 1], [3, 0, 0], [3, 0, 0]] * 2)
    )
    assert batch["comparisons"].tolist() == [[0, 1], [2, 0], [2, 1], [3, 4], [5, 3], [5, 4]]


def test_whole_passages_are_held_out(tmp_path):
    names = [str(i) for i in range(100, 116)]
    data = module(tmp_path, [passage(name) for name in names], [texts(name) for name in names])
    groups = {source: {record.group for record in examples(data, source)} for source in data.sources}
    assert [len(found) for found in groups.values()] == [12, 2, 2]
    order = sorted(names, key=lambda name: sha1(name.encode()).hexdigest())
    assert (groups["test"], groups["validation"]) == (set(order[:2]), set(order[2:4]))
    data.setup()
    assert [data.reports[source].records for source in data.sources] == [24, 4, 4]
    assert data.reports["test"].in_train == data.reports["validation"].in_train == 0


def test_too_few_passages(tmp_path):
    with pytest.raises(
        ValueError, match=r"at least 3 passages of .* are needed to hold some out; there are 2"
    ):
        examples(module(tmp_path, [passage("11"), passage("12")]))


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (lambda bart: bart.update(response=4), "wrong type", "response"),
        (lambda bart: bart.update(response=" "), "empty response", None),
        (lambda bart: bart.update(reviews=[]), "wrong length", "reviews"),
        (lambda bart: bart.update(reviews=[3]), "wrong type", "reviews[0]"),
        (lambda bart: bart["reviews"][1].pop("overall-rating"), "missing field", "reviews[1].overall-rating"),
        (
            lambda bart: bart["reviews"][1].update({"overall-rating": "10"}),
            "wrong type",
            "reviews[1].overall-rating",
        ),
        (
            lambda bart: bart["reviews"][1].update({"overall-rating": True}),
            "wrong type",
            "reviews[1].overall-rating",
        ),
        (
            lambda bart: bart["reviews"][2].update({"overall-rating": 101}),
            "out of range",
            "reviews[2].overall-rating",
        ),
        (
            lambda bart: bart["reviews"][2].update({"overall-rating": float("nan")}),
            "not finite",
            "reviews[2].overall-rating",
        ),
        (lambda bart: bart["reviews"][0].pop("worker_id"), "missing field", "reviews[0].worker_id"),
        (lambda bart: bart["reviews"][1].update(worker_id="2"), "duplicate worker", "reviews[1].worker_id"),
    ],
)
def test_malformed_questions(tmp_path, change, reason, field):
    data = module(tmp_path, broken(change))
    with pytest.raises(RecordError) as caught:
        examples(data, "train")
    name = next(
        name for name, source in ordered_split(NAMES, one_in=8, what="passages").items() if source == "train"
    )
    assert caught.value.reason == reason
    assert caught.value.field == (f"{name}/0.bart.{field}" if field else "responses[0].text")
    assert len(examples(data, "test")) == 2


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"passage-id": "11"}, "missing field", "questions"),
        ({"passage-id": "11", "questions": [1]}, "wrong type", "questions"),
        ({"questions": {}}, "missing field", "passage-id"),
        ([1], "wrong type", "line"),
    ],
)
def test_a_malformed_passage_is_an_error_of_training(tmp_path, row, reason, field):
    data = module(tmp_path, [*(passage(name) for name in NAMES), row])
    errors = {s: [e for e in data.load(s) if isinstance(e, RecordError)] for s in data.sources}
    assert [len(found) for found in errors.values()] == [1, 0, 0]
    (error,) = errors["train"]
    assert (error.reason, error.field, error.line) == (reason, field, 4)
    assert error.file.endswith("all-responses.jsonl")


@pytest.mark.parametrize("key", ["2", "first"])
def test_a_question_without_a_text(tmp_path, key):
    data = module(tmp_path, [passage(name, {key: systems()}) for name in NAMES])
    with pytest.raises(RecordError, match=rf"no question text: .*'1\d/{key}'"):
        examples(data)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"questions": []}, "metadata"),
        ({"metadata": {"passage_id": 11}, "questions": []}, "metadata.passage_id"),
        (
            {"metadata": {"passage_id": "11"}, "questions": [{"question_text": "What?"}]},
            "questions[0].question_number",
        ),
        ({"metadata": {"passage_id": "11"}, "questions": [3]}, "questions[0]"),
        (3, "line"),
    ],
)
def test_malformed_files_of_questions(tmp_path, row, field):
    data = module(tmp_path, questions=[*(texts(name) for name in NAMES), row])
    with pytest.raises(RecordError, match=r"questions\.jsonl:4: ") as caught:
        examples(data)
    assert caught.value.field == field


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"github\.com/nyu-mll/SQuALITY.*dc08d4f57463.*CC-BY-4\.0"):
        SQuALITYDataModule()
    for name, value in {"criterion": "taste", "votes": "mean", "num_bins": 1}.items():
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            SQuALITYDataModule(data_dir="x", **{name: value})
    with pytest.raises(FileNotFoundError, match=r"all-responses\.jsonl, human-eval/all-responses\.jsonl"):
        SQuALITYDataModule(data_dir=str(tmp_path)).files("train")
    assert SQuALITYDataModule(data_dir="x", votes="bins").settings() == {
        "criterion": "overall",
        "votes": "bins",
        "num_bins": 5,
        "comparisons": True,
    }


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared SQuALITY sample is not beside this checkout")
def test_real_files():
    data = SQuALITYDataModule(data_dir=str(REAL))
    records = {source: examples(data, source) for source in data.sources}
    assert [len({r.group for r in found}) for found in records.values()] == [12, 2, 2]
    assert [len(found) for found in records.values()] == [60, 10, 10]
    everything = [record for found in records.values() for record in found]
    assert {len(record.responses) for record in everything} == {3}
    assert all(sum(r.votes) == pytest.approx(3) for record in everything for r in record.responses)
    comparisons = [c for record in everything for c in record.comparisons]
    assert len(comparisons) == 240
    assert {sum(c.votes) for c in comparisons} == {3}
    assert all({c.chosen, c.rejected} <= {0, 1, 2} for c in comparisons)
