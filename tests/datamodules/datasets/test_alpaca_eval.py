"""AlpacaEval: a code from 1 to 2 is never a share; judges are users; invented rows in the real schema, and real files."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.datasets.alpaca_eval import AlpacaEvalDataModule

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "alpaca-eval" / "results"


def row(preference=1.25, instruction="Name a fruit.", model="small", judge="strict", **changes):
    return {
        "instruction": instruction,
        "output_1": "Apple.",
        "generator_1": "baseline",
        "dataset": "garden",
        "output_2": f"{model}: Pear.",
        "generator_2": model,
        "annotator": judge,
        "preference": preference,
        "price_per_example": 0.01,
        "time_per_example": None,
        **changes,
    }


def module(folder, rows, *, model="small", judge="strict", packed=False, **settings):
    path = folder / model / judge / ("annotations.json.gz" if packed else "annotations.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    return AlpacaEvalDataModule(data_dir=str(folder), **settings)


def examples(data):
    return [data.to_example(row) for source in data.sources for row in data.load(source)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [row(1 + i % 3 / 2, f"Name fruit {i}.") for i in range(60)]
    return module(folder, rows + [row(3.0, "Name fruit 0.")] * bad, **settings)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (1.0, (0, 1, 1.0)),
        (1, (0, 1, 1.0)),
        (2.0, (1, 0, 1.0)),
        (1.25, (0, 1, 0.75)),
        (1.75, (1, 0, 0.75)),
        (1.5, (0, 1, 0.5)),
        (0, (0, 1, 0.5)),
        (0.0, (0, 1, 0.5)),
    ],
)
def test_one_is_the_baseline_and_two_the_model(tmp_path, preference, expected, packed):
    (record,) = examples(module(tmp_path, [row(preference)], packed=packed))
    assert (record.id, record.prompt) == ("small/strict:1", "Name a fruit.")
    assert [response.text for response in record.responses] == ["Apple.", "small: Pear."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference) == expected
    assert (comparison.user, comparison.domain) == ("strict", "garden")
    assert (comparison.strength, comparison.votes) == (None, None)


def test_rows_without_a_part_of_the_set_have_no_domain(tmp_path):
    (record,) = examples(module(tmp_path, [row(dataset=None)]))
    assert record.comparisons[0].domain is None


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"preference": None}, "no judgement", "preference"),
        ({"preference": float("nan")}, "no judgement", "preference"),
        ({"preference": 2.5}, "out of range", "preference"),
        ({"preference": 0.5}, "out of range", "preference"),
        ({"preference": -1}, "out of range", "preference"),
        ({"preference": float("inf")}, "not finite", "preference"),
        ({"preference": "1"}, "wrong type", "preference"),
        ({"annotator": " "}, "missing field", "annotator"),
        ({"output_1": ""}, "empty response", "responses[0].text"),
        ({"output_2": None}, "missing field", "output_2"),
        ({"dataset": 3}, "wrong type", "dataset"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(module(tmp_path, [row(**change)]))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_what_was_not_parsed_is_dropped_and_counted(tmp_path):
    rows = [row(1.0, f"Name fruit {i}.") for i in range(60)]
    rows += [row(None, "Name fruit 0."), row(float("nan"), "Name fruit 0."), row(instruction=None)]
    data = module(tmp_path, rows)
    data.setup()
    counted = sum((Counter(report.invalid) for report in data.reports.values()), Counter())
    assert counted == {"no judgement": 2, "missing field": 1}
    assert sum(report.comparisons for report in data.reports.values()) == 60


def test_several_judges_of_a_pair_are_users_of_one_record(tmp_path):
    module(tmp_path, [row(1.2, f"Name fruit {i}.") for i in range(60)])
    lenient = [row(1.9, f"Name fruit {i}.", judge="lenient") for i in range(60)]
    data = module(tmp_path, lenient, judge="lenient")
    data.setup("fit")
    assert sorted(data.users) == ["lenient", "strict"]
    report = data.reports["train"]
    assert 2 * report.records == report.rows == report.comparisons
    for batch in data.batches("train"):
        assert len(batch["response_row"]) == len(batch["comparisons"])


def test_models_and_judges_are_chosen_by_their_folders(tmp_path):
    for model, judge in (("small", "strict"), ("large", "strict"), ("large", "lenient")):
        module(tmp_path, [row(model=model, judge=judge)], model=model, judge=judge)

    def ids(**settings):
        return sorted(
            record.id for record in examples(AlpacaEvalDataModule(data_dir=str(tmp_path), **settings))
        )

    assert ids() == ["large/lenient:1", "large/strict:1", "small/strict:1"]
    assert ids(models=("large",)) == ["large/lenient:1", "large/strict:1"]
    assert ids(judges=("strict",)) == ["large/strict:1", "small/strict:1"]
    assert ids(models=("large",), judges=("strict",)) == ["large/strict:1"]
    chosen = AlpacaEvalDataModule(data_dir=str(tmp_path), judges=("strict",))
    assert chosen.settings() == {"places": ["large/strict", "small/strict"]}
    with pytest.raises(FileNotFoundError, match=r"nothing for models huge; there are large, small"):
        ids(models=("large", "huge"))
    with pytest.raises(FileNotFoundError, match=r"nothing for judges lenient; there are strict"):
        ids(models=("small",), judges=("lenient",))
    with pytest.raises(ValueError, match="judges must name one at least"):
        ids(judges=())


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared AlpacaEval sample is not beside this checkout")
def test_real_files():
    """Every row is read or counted; who won is told by ten lines of plain Python."""
    rows = [
        row
        for path in sorted(REAL.glob("*/*/*.gz"))
        for row in json.loads(gzip.decompress(path.read_bytes()))
    ]
    blank = [row for row in rows if not (row["output_1"].strip() and row["output_2"].strip())]
    wins = Counter()
    for one in rows:
        if one not in blank:
            code = one["preference"]
            winner = "tie" if code in (0, 1.5) else "baseline" if code < 1.5 else "model"
            wins[winner, one["annotator"]] += 1
    assert len(rows) == 7_964 and sum(one["preference"] == 1.0 for one in rows) == 2_457

    data = AlpacaEvalDataModule(data_dir=str(REAL))
    found, errors = Counter(), Counter()
    for one in (row for source in data.sources for row in data.load(source)):
        try:
            (comparison,) = data.to_example(one).comparisons
        except RecordError as error:
            errors[error.reason] += 1
            continue
        tie = comparison.preference == 0.5
        found["tie" if tie else ("baseline", "model")[comparison.chosen], comparison.user] += 1
        assert comparison.preference >= 0.5
    assert found == wins
    assert errors == {"empty response": len(blank)} == {"empty response": 18}
    assert {user for _, user in found} == {row["annotator"] for row in rows}


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared AlpacaEval sample is not beside this checkout")
def test_real_files_in_the_cache():
    data = AlpacaEvalDataModule(data_dir=str(REAL))
    data.setup()
    reports = data.reports.values()
    counted = Counter()
    for report in reports:
        counted.update(report.invalid)
        counted.update(report.dropped)
        counted.update(rows=report.rows, comparisons=report.comparisons)
    assert counted == {
        "rows": 7_964,
        "comparisons": 7_964 - 18 - 15,
        "empty response": 18,
        "comparison of identical responses": 15,
        "record without a judgement": 15,
    }
    assert len(data.users) == 3


def test_systems_are_groups_where_no_judgement_is_needed(tmp_path):
    """Three systems and two judges over 30 instructions: one group each, the baseline's answer once, and who wrote what."""
    from pluralign.datamodules import LoaderConfig, MixtureDataModule, SyntheticDataModule

    questions = [f"Name fruit {i}." for i in range(30)]
    for model, judge in (("small", "strict"), ("small", "kind"), ("large", "strict"), ("other", "strict")):
        rows = [row(None if judge == "kind" else 1.25, text, model, judge) for text in questions]
        module(tmp_path, rows, model=model, judge=judge)
    rows = [row(1.5, text, "echo", output_2="Apple.") for text in questions]
    answers = module(tmp_path, rows, model="echo", models=("small", "large", "echo"))
    data = MixtureDataModule(
        sources={"judged": SyntheticDataModule(num_train=8, num_validation=4), "policy": answers},
        unlabelled=["policy"],
        loader=LoaderConfig(batch_size=8),
    )
    data.setup("fit")
    report, groups = data.reports["unlabelled"], data.table("unlabelled")
    assert not report.invalid and not report.dropped, "a judgement that was not parsed is none that is missed"
    assert 10 < len(groups) < 30 and set(groups.sizes[:, 0].tolist()) == {4}
    (batch, *_) = data.batches("unlabelled")
    systems = [data.names["system"][i] for i in batch["system_id"].tolist()]
    assert all(systems[i : i + 4].count("baseline") == 1 for i in range(0, len(systems), 4))
    assert set(systems) == {"baseline", "small", "large", "echo"} and not set(data.users) & {"strict", "kind"}
    texts = data.texts(
        "unlabelled", [(batch["id"][0], place) for place in batch["response_index"][:4].tolist()]
    )
    assert sorted(text for _, text in texts) == ["Apple.", "Apple.", "large: Pear.", "small: Pear."]
