"""WebGPT comparisons: signed scores that sum to 0, ties, both forms of a row; invented rows in the real schema."""

import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import RecordError, WebGPTDataModule


def question(text="Why is the sky blue?"):
    return {"dataset": "eli5", "id": "q1", "full_text": text}


def row(text="Why is the sky blue?", score=0.5, **changes):
    side = {"title": ["Sky (example.org)"], "extract": ["Light scatters."]}
    tokens = {"prefix": [1, 2], "completion": [3]}
    return {
        "question": question(text),
        **{f"quotes_{i}": side for i in range(2)},
        **{f"tokens_{i}": tokens for i in range(2)},
        "answer_0": "Scattering [1].",
        "answer_1": "Paint [1].",
        "score_0": score,
        "score_1": -score,
        **changes,
    }


def pair(**settings):
    """The same row as the file has it: a list of two objects."""
    whole = row(**settings)
    return [
        {
            "question": whole["question"],
            **{name: whole[f"{name}_{i}"] for name in ("quotes", "answer", "tokens", "score")},
        }
        for i in range(2)
    ]


def write(folder, rows, packed=False):
    lines = "\n".join(map(json.dumps, rows)).encode()
    name = f"comparisons.jsonl{'.gz' if packed else ''}"
    (folder / name).write_bytes(gzip.compress(lines) if packed else lines)
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [pair(text=f"Why is sky {i} blue?") for i in range(40)] + [pair(answer_0=3)] * bad
    return WebGPTDataModule(data_dir=write(folder, rows), **settings)


def records(data):
    return [data.to_example(found) for source in data.sources for found in data.load(source)]


def example(folder, content):
    (record,) = records(WebGPTDataModule(data_dir=write(folder, [content])))
    return record


def said(comparison):
    return comparison.chosen, comparison.rejected, comparison.preference, comparison.strength


@pytest.mark.parametrize("form", [row, pair])
@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (1.0, (0, 1, 1.0, 1.0)),
        (0.25, (0, 1, 1.0, 0.25)),
        (0.0, (0, 1, 0.5, 0.0)),
        (0, (0, 1, 0.5, 0.0)),
        (-0.75, (1, 0, 1.0, 0.75)),
    ],
)
def test_the_greater_score_wins_and_equal_ones_are_a_tie(tmp_path, form, score, expected):
    record = example(tmp_path, form(score=score))
    assert (record.id, record.prompt) == ("comparisons:1", "Why is the sky blue?")
    assert [response.text for response in record.responses] == ["Scattering [1].", "Paint [1]."]
    (comparison,) = record.comparisons
    assert said(comparison) == expected
    assert (comparison.user, comparison.votes, comparison.margin) == (None, None, None)


def test_the_same_rows_from_parquet_and_packed_lines(tmp_path):
    rows = [row(f"Why {i}?", score) for i, score in enumerate((1.0, -0.5, 0.0))]
    lines = records(WebGPTDataModule(data_dir=write(tmp_path, rows, packed=True)))
    (tmp_path / "comparisons.jsonl.gz").unlink()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0000.parquet")
    assert records(WebGPTDataModule(data_dir=str(tmp_path))) == lines
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("content", "reason", "field"),
    [
        (row(score_1=0.5), "scores do not sum to 0", "score_1"),
        (row(score=1.5), "out of range", "score_0"),
        (row(score_0="0.5"), "wrong type", "score_0"),
        (row(score_0=math.nan), "not finite", "score_0"),
        (row(answer_1=" "), "empty response", "responses[1].text"),
        (row(answer_0=None), "missing field", "answer_0"),
        ([{"question": question(), "answer": "A"}] * 2, "missing field", "score_0"),
    ],
)
def test_malformed_rows(tmp_path, content, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, content)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_lines_that_are_no_pair_are_errors_of_training(tmp_path):
    other = pair()
    other[1] = {**other[1], "question": question("Why?")}
    rows = [[*pair(), *pair()], other, [1, 2], 3, row(question={"id": "q"}), pair()]
    data = WebGPTDataModule(data_dir=write(tmp_path, rows))
    errors = [found for found in data.load("train") if isinstance(found, RecordError)]
    assert [(error.line, error.reason, error.field) for error in errors] == [
        (1, "wrong length", "line"),
        (2, "pair of two questions", "line[1].question"),
        (3, "wrong type", "line[0]"),
        (4, "wrong type", "line"),
        (5, "missing field", "question.full_text"),
    ]
    assert not any(isinstance(found, RecordError) for found in data.load("test"))


def test_questions_stay_on_one_side(tmp_path):
    rows = [row(f"Why {i}?", answer_0=f"{j}.") for j in range(3) for i in range(200)]
    data = WebGPTDataModule(data_dir=write(tmp_path, rows), validation_share=0.2)
    sides = {source: {found.text("group") for found in data.load(source)} for source in data.sources}
    assert not sides["train"] & sides["test"] and len(sides["train"] | sides["test"]) == 200
    data.setup()
    assert data.reports["validation"].in_train == data.reports["test"].in_train == 0


def test_where_to_get_them():
    with pytest.raises(
        ValueError, match=r"WebGPTDataModule needs data_dir: .*webgpt-answer-viewer/comparisons\.jsonl"
    ):
        WebGPTDataModule()
