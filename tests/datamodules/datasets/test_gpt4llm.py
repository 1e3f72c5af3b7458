"""GPT-4-LLM: scores become pairs and ties, responses may be missing, both schemas; invented rows in the real schema."""

import gzip
import json

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.datasets.gpt4llm import GPT4LLMDataModule


def scored(*scores, prompt="Name a fruit.", texts=("Apple.", "Chair.", "Pear.")):
    sources = ("gpt4", "text-davinci-003", "icm-1.3b")
    entries = [
        {"response": text, "source": source, "score": score}
        for text, source, score in zip(texts, sources, scores, strict=False)
    ]
    return {"user_input": prompt, "responses_and_scores": entries}


def module(folder, rows, name="comparison_data_v2.json", **settings):
    content = json.dumps(rows).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return GPT4LLMDataModule(data_dir=str(folder), **settings)


def found(data):
    rows = [row for source in data.sources for row in data.load(source)]
    return [row if isinstance(row, RecordError) else data.to_example(row) for row in rows]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [scored(9.0, 7.5, 9.0, prompt=f"Name fruit {i}.") for i in range(60)]
    return module(folder, rows + [{"user_input": 3, "responses_and_scores": []}] * bad, **settings)


@pytest.mark.parametrize("name", ["comparison_data_v2.json", "comparison_data_v2.json.gz"])
def test_the_greater_score_wins_equal_ones_tie_and_the_difference_is_the_strength(tmp_path, name):
    (record,) = found(module(tmp_path, [scored(7.5, 9.0, 7.5)], name))
    assert (record.id, record.prompt) == ("comparison_data_v2:1", "Name a fruit.")
    assert [(r.text, r.score, r.votes) for r in record.responses] == [
        ("Apple.", 7.5, None),
        ("Chair.", 9.0, None),
        ("Pear.", 7.5, None),
    ]
    assert [(c.chosen, c.rejected, c.preference, c.strength, c.user) for c in record.comparisons] == [
        (1, 0, 1.0, 1.5, None),
        (0, 2, 0.5, 0.0, None),
        (1, 2, 1.0, 1.5, None),
    ]


def test_zero_and_ten_are_scores(tmp_path):
    (record,) = found(module(tmp_path, [scored(0, 10)]))
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.strength) == (1, 0, 10.0)


def test_a_prompt_may_lack_responses(tmp_path):
    two, one = found(module(tmp_path, [scored(9.0, 4.0), scored(6.5)]))
    assert [(len(r.responses), len(r.comparisons)) for r in (two, one)] == [(2, 1), (1, 0)]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"response": " "}, "empty response", "response"),
        ({"response": None}, "missing field", "response"),
        ({"score": None}, "missing field", "score"),
        ({"score": "9"}, "wrong type", "score"),
        ({"score": 10.5}, "out of range", "score"),
        ({"score": float("nan")}, "not finite", "score"),
    ],
)
def test_a_response_that_cannot_be_used_is_an_error_and_the_others_stay(tmp_path, change, reason, field):
    row = scored(9.0, 4.0, 6.0)
    row["responses_and_scores"][1].update(change)
    error, record = sorted(found(module(tmp_path, [row])), key=lambda item: not isinstance(item, RecordError))
    assert (error.reason, error.field, error.line) == (reason, f"responses_and_scores[1].{field}", 1)
    assert error.file.endswith("comparison_data_v2.json")
    assert [r.text for r in record.responses] == ["Apple.", "Pear."]
    assert [(c.chosen, c.rejected, c.strength) for c in record.comparisons] == [(0, 1, 3.0)]


def test_the_schema_of_the_readme_names_the_better_one_first(tmp_path):
    row = {"user_input": "Name a fruit. ", "completion_a": "Apple.", "completion_b": "Chair."}
    (record,) = found(module(tmp_path, [row], "comparison_data.json"))
    assert (record.id, record.prompt) == ("comparison_data:1", "Name a fruit.")
    assert [(r.text, r.score) for r in record.responses] == [("Apple.", None), ("Chair.", None)]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.preference, comparison.strength) == (0, 1.0, None)


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"user_input": "A", "completion_a": "Apple."}, "missing field", "completion_b"),
        ({"user_input": "A", "completion_a": "", "completion_b": "B"}, "empty response", "completion_a"),
        ({"user_input": "A", "responses_and_scores": {}}, "wrong type", "responses_and_scores"),
        ({"user_input": "A", "responses_and_scores": []}, "wrong length", "responses_and_scores"),
        ({"user_input": "A", "responses_and_scores": [3]}, "wrong type", "responses_and_scores[0]"),
        ({"responses_and_scores": []}, "missing field", "user_input"),
        ("A", "wrong type", "line"),
    ],
)
def test_rows_of_which_nothing_can_be_used(tmp_path, row, reason, field):
    (error,) = found(module(tmp_path, [row]))
    assert (error.reason, error.field, error.line) == (reason, field, 1)


def test_ties_and_missing_responses_are_counted(tmp_path):
    rows = [scored(9.0, 9.0, 4.0, prompt=f"Name fruit {i}.") for i in range(40)]
    rows[0]["responses_and_scores"][2]["response"] = ""
    data = module(tmp_path, rows)
    data.setup()
    reports = data.reports.values()
    assert sum(report.comparisons for report in reports) == 39 * 3 + 1
    assert [dict(report.invalid) for report in reports if report.invalid] == [{"empty response": 1}]
    shares = [
        share
        for split in data.splits
        for batch in data.batches(split)
        for share in batch["preference"].tolist()
    ]
    assert sorted(shares) == [0.5] * 40 + [1.0] * 78


def test_where_to_get_the_data():
    with pytest.raises(
        ValueError, match=r"GPT-4-LLM checkout 80cda626ea30` and give data_dir=GPT-4-LLM/data"
    ):
        GPT4LLMDataModule()
