"""JudgeBench: labels A>B and B>A, sources pooled by their beginning; invented rows in the real schema."""

import json

import pytest

from pluralign.datamodules import JudgeBenchDataModule, RecordError

MODELS = ("gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620")


def row(name="p1", label="A>B", source="mmlu-pro-law", **changes):
    return {
        "pair_id": name,
        "original_id": "1",
        "source": source,
        "question": f"Which letter is {name}?",
        "response_model": "m",
        "response_A": "It is A.",
        "response_B": "It is B.",
        "label": label,
        **changes,
    }


def write(folder, *rows):
    for model, content in zip(MODELS, rows, strict=True):
        name = f"dataset=judgebench,response_model={model}.jsonl"
        (folder / name).write_text("\n".join(map(json.dumps, content)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [[row(f"{model}{i}") for i in range(4)] for model in "gc"]
    return JudgeBenchDataModule(
        data_dir=write(folder, rows[0] + [row(label="A=B")] * bad, rows[1]), **settings
    )


def test_a_label_names_the_correct_answer(tmp_path):
    folder = write(tmp_path, [row(), row("p2", "B>A", "livebench-math")], [row("p3")])
    data = JudgeBenchDataModule(data_dir=folder)
    first, second, third = data.records("test")
    assert (first.id, second.id, third.id) == ("p1", "p2", "p3")
    pairs = [(r.comparisons[0].chosen, r.comparisons[0].domain) for r in (first, second)]
    assert pairs == [(0, "mmlu-pro"), (1, "livebench-math")]
    assert [one.text for one in second.responses] == ["It is A.", "It is B."]
    alone = JudgeBenchDataModule(data_dir=folder, answered_by=MODELS[1:])
    assert [record.id for record in alone.records("test")] == ["p3"]


def test_sources_and_all_pairs(tmp_path):
    rows = [row("1"), row("2", "B>A", "mmlu-pro-math"), row("3", source="livecodebench")]
    data = JudgeBenchDataModule(data_dir=write(tmp_path, rows, [row("4")]))
    scores = data.official_scores(list(data.records("test")), [[1, 0], [0, 1], [0, 0], [0, 1]])
    assert scores.numbers == pytest.approx({"mmlu-pro": 2 / 3, "livecodebench": 0, "Overall": 0.5})


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"label": "A=B"}, "out of range", "label"),
        ({"source": "trivia"}, "out of range", "source"),
        ({"response_A": " "}, "empty response", "responses[0].text"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    data = JudgeBenchDataModule(data_dir=write(tmp_path, [row(**changes)], [row("2")]))
    with pytest.raises(RecordError) as caught:
        list(data.records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)
