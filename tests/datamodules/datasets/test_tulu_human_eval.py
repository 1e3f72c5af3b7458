"""Tulu human evaluation: five levels, named evaluators; invented rows in the real schema, and the real file."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.datasets.tulu_human_eval import ACCEPTABILITY, TuluHumanEvalDataModule

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "tulu-human-eval"
NAME = "eval_annotations_tulu_1"


def row(preference="a-is-better", number=7, prompt="Name a fruit.\n", evaluator="ann", **changes):
    return {
        "id": number,
        "instance_index": 0,
        "instance_id": f"task_{number}",
        "prompt": prompt,
        "model_a": "large",
        "model_b": "small",
        "completion_a": "Apple.",
        "completion_b": "Chair.",
        "completion_a_is_acceptable": "yes",
        "completion_b_is_acceptable": "no",
        "preference": preference,
        "instance_quality": None,
        "comment": None,
        "evaluator": evaluator,
        **changes,
    }


def module(folder, rows, kind="jsonl", **settings):
    path = folder / f"{NAME}.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return TuluHumanEvalDataModule(data_dir=str(folder), **settings)


def examples(data):
    return [data.to_example(row) for source in data.sources for row in data.load(source)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [row(number=i, prompt=f"Name fruit {i % 50}.", evaluator=f"e{i % 3}") for i in range(60)]
    return module(folder, rows + [row("a-wins", 60)] * bad, **settings)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ("a-is-better", (0, 1, 1.0, 2.0)),
        ("a-is-slightly-better", (0, 1, 1.0, 1.0)),
        ("tie", (0, 1, 0.5, 0.0)),
        ("b-is-slightly-better", (1, 0, 1.0, 1.0)),
        ("b-is-better", (1, 0, 1.0, 2.0)),
    ],
)
def test_five_levels(tmp_path, preference, expected, kind):
    (record,) = examples(module(tmp_path, [row(preference)], kind))
    assert (record.id, record.prompt) == (f"{NAME}:7", "Name a fruit.")
    assert [(r.text, r.votes) for r in record.responses] == [("Apple.", None), ("Chair.", None)]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference, comparison.strength) == expected
    assert comparison.user == "ann"


def test_acceptability_is_a_vote_on_each_response(tmp_path):
    (record,) = examples(module(tmp_path, [row()], acceptability=True))
    assert ACCEPTABILITY == ("unacceptable", "acceptable")
    assert [response.votes for response in record.responses] == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"preference": "better"}, "out of range", "preference"),
        ({"preference": None}, "missing field", "preference"),
        ({"evaluator": ""}, "missing field", "evaluator"),
        ({"id": None}, "missing field", "id"),
        ({"completion_b": "  "}, "empty response", "responses[1].text"),
        ({"completion_b_is_acceptable": "maybe"}, "out of range", "completion_b_is_acceptable"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(module(tmp_path, [row(**change)], acceptability=True))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_judgements_given_again_are_kept_and_counted(tmp_path):
    rows = [row(number=i, prompt=f"Name fruit {i // 2}.") for i in range(80)]
    data = module(tmp_path, rows)
    data.setup()
    reports = data.reports.values()
    assert sum(report.comparisons for report in reports) == 80
    assert sum(report.repeated for report in reports) == 40
    assert data.users == ["ann"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared Tulu sample is not beside this checkout")
def test_real_file():
    """Levels and evaluators are those that ten lines of plain Python count."""
    with gzip.open(REAL / f"{NAME}.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    won = Counter()
    for one in rows:
        side, _, level = one["preference"].partition("-is-")
        winner = {"a": one["completion_a"], "b": one["completion_b"], "tie": ""}[side].strip()
        won[winner, {"": 0.0, "slightly-better": 1.0, "better": 2.0}[level], one["evaluator"]] += 1
    assert (len(rows), len({one["evaluator"] for one in rows})) == (903, 16)

    data = TuluHumanEvalDataModule(data_dir=str(REAL))
    records = examples(data)
    found = Counter()
    for record in records:
        (comparison,) = record.comparisons
        tie = comparison.preference == 0.5
        winner = "" if tie else record.responses[comparison.chosen].text
        found[winner, comparison.strength, comparison.user] += 1
    assert found == won
    ties = sum(count for (winner, *_), count in found.items() if not winner)
    assert (len(records), ties) == (903, 285)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared Tulu sample is not beside this checkout")
def test_real_file_in_the_cache():
    data = TuluHumanEvalDataModule(data_dir=str(REAL))
    data.setup()
    reports = data.reports.values()
    assert sum(report.rows for report in reports) == 903
    identical = "comparison of identical responses"
    assert (sum(r.comparisons for r in reports), sum(r.dropped.get(identical, 0) for r in reports)) == (
        873,
        30,
    )
    assert len(data.users) == 16
