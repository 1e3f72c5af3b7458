"""MultiPref: four annotators with names on five levels, by aspect, or as a crowd; invented rows in the real schema."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import MultiPrefDataModule, RecordError

REVISION = "12910233a0238a997ebe425656e9dfed7b0ff031"


def annotation(evaluator="Mia", overall="A-is-clearly-better", **others):
    prefs = {
        "overall": overall,
        "helpful": "Tie",
        "truthful": "Tie",
        "harmless": "B-is-slightly-better",
        **others,
    }
    fields = {"evaluator": evaluator, "time_spent": 31, "timestamp": "2024-05-01T10:00:00"}
    for aspect, level in prefs.items():
        fields |= {f"{aspect}_pref": level, f"{aspect}_confidence": "fairly-confident"}
    return fields


def row(text="Name a fruit.", normal=None, expert=None, **changes):
    return {
        "comparison_id": "c1",
        "prompt_id": "p1",
        "text": text,
        "category": "Brainstorm",
        "source": "somewhere",
        "completion_a": "Apple.",
        "completion_b": "Chair.",
        "model_a": "m1",
        "model_b": "m2",
        "normal_worker_annotations": normal or [annotation(), annotation("Tom", "B-is-slightly-better")],
        "expert_worker_annotations": expert
        or [annotation("Zoe", "A-is-slightly-better"), annotation("Kai", "Tie")],
        **changes,
    }


def write(folder, rows, parquet=False):
    if parquet:
        (folder / "data").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    else:
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(f"Name fruit {i}.") for i in range(40)] + [row(completion_a=3)] * bad
    return MultiPrefDataModule(data_dir=write(folder, rows), **settings)


def examples(folder, rows, parquet=False, **settings):
    data = MultiPrefDataModule(data_dir=write(folder, rows, parquet), **settings)
    return [
        found if isinstance(found, RecordError) else data.to_example(found)
        for source in data.sources
        for found in data.load(source)
    ]


def said(comparison):
    pair = comparison.chosen, comparison.rejected
    return *pair, comparison.preference, comparison.strength, comparison.user, comparison.group


@pytest.mark.parametrize("parquet", [False, True])
def test_every_annotation_is_a_comparison_of_a_named_judge(tmp_path, parquet):
    (record,) = examples(tmp_path, [row()], parquet)
    assert (record.id, record.prompt, record.group) == ("train:1", "Name a fruit.", "Name a fruit.")
    assert [response.text for response in record.responses] == ["Apple.", "Chair."]
    assert record.aspect == "overall"
    assert [said(comparison) for comparison in record.comparisons] == [
        (0, 1, 1.0, 2.0, "Mia", "normal"),
        (1, 0, 1.0, 1.0, "Tom", "normal"),
        (0, 1, 1.0, 1.0, "Zoe", "expert"),
        (0, 1, 0.5, 0.0, "Kai", "expert"),
    ]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("A-is-clearly-better", (0, 1, 1.0, 2.0)),
        ("A-is-slightly-better", (0, 1, 1.0, 1.0)),
        ("Tie", (0, 1, 0.5, 0.0)),
        ("B-is-slightly-better", (1, 0, 1.0, 1.0)),
        ("B-is-clearly-better", (1, 0, 1.0, 2.0)),
    ],
)
def test_levels(tmp_path, level, expected):
    (record,) = examples(tmp_path, [row(normal=[annotation(overall=level)])], pools=("normal",))
    (comparison,) = record.comparisons
    assert said(comparison)[:4] == expected


def test_aspects_and_pools(tmp_path):
    normal = [annotation(harmless="B-is-clearly-better"), annotation("Tom", truthful="A-is-slightly-better")]
    rows = [row(normal=normal)]
    (record,) = examples(tmp_path, rows, aspect="harmless", pools=("normal",))
    assert record.aspect == "harmless"
    assert [said(comparison) for comparison in record.comparisons] == [
        (1, 0, 1.0, 2.0, "Mia", "normal"),
        (1, 0, 1.0, 1.0, "Tom", "normal"),
    ]
    (record,) = examples(tmp_path, rows, aspect="truthful", pools=("normal",))
    assert [said(comparison)[2:5] for comparison in record.comparisons] == [
        (0.5, 0.0, "Mia"),
        (1.0, 1.0, "Tom"),
    ]


def test_a_crowd_has_votes_and_their_mean_strength(tmp_path):
    (record,) = examples(tmp_path, [row()], judgements="crowd")
    (comparison,) = record.comparisons
    assert said(comparison) == (0, 1, 0.625, 0.5, None, None)
    assert comparison.votes == (2, 1, 1)
    against = [annotation(overall="B-is-clearly-better"), annotation("Tom", "B-is-clearly-better")]
    (record,) = examples(tmp_path, [row(normal=against)], judgements="crowd")
    (comparison,) = record.comparisons
    assert said(comparison)[:4] == (1, 0, 0.625, 0.75)
    assert comparison.votes == (2, 1, 1)


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"normal": [annotation(overall="A")]}, "out of range", "normal_worker_annotations[0].overall_pref"),
        (
            {"expert": [annotation(overall=None)]},
            "missing field",
            "expert_worker_annotations[0].overall_pref",
        ),
        ({"normal": [annotation(" ")]}, "missing field", "normal_worker_annotations[0].evaluator"),
        ({"normal": ["Tie"]}, "wrong type", "normal_worker_annotations[0]"),
        ({"expert_worker_annotations": []}, "wrong length", "expert_worker_annotations"),
        ({"completion_b": " "}, "empty response", "responses[1].text"),
        ({"completion_a": None}, "missing field", "completion_a"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(tmp_path, [row(**change)])
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_a_row_without_a_prompt_is_an_error_of_training(tmp_path):
    data = MultiPrefDataModule(data_dir=write(tmp_path, [row(), row(text=None)]))
    errors = {source: [e for e in data.load(source) if isinstance(e, RecordError)] for source in data.sources}
    assert [(error.reason, error.field, error.line) for error in errors["train"]] == [
        ("missing field", "text", 2)
    ]
    assert errors["test"] == []


def test_a_tenth_of_the_prompts_is_held_out_with_all_their_rows(tmp_path):
    rows = [row(f"Fruit {i}?", completion_b=f"{j}.") for j in range(2) for i in range(400)]
    data = MultiPrefDataModule(data_dir=write(tmp_path, rows), validation_share=0.2)
    sides = {source: [found.text("text") for found in data.load(source)] for source in data.sources}
    assert not set(sides["train"]) & set(sides["test"])
    assert 60 <= len(sides["test"]) <= 100 and len(sides["train"]) + len(sides["test"]) == 800
    data.setup()
    assert data.reports["validation"].in_train == 0
    assert 100 <= data.reports["validation"].rows <= 190
    assert data.users == ["Kai", "Mia", "Tom", "Zoe"]
    assert data.user_groups() == {"Kai": "expert", "Mia": "normal", "Tom": "normal", "Zoe": "expert"}


def test_settings_and_source():
    data = MultiPrefDataModule()
    assert data.settings()["hub"] == f"allenai/multipref@{REVISION}"
    assert data.files("train") == []
    with pytest.raises(ValueError, match="aspect must be one of overall, helpful, truthful, harmless"):
        MultiPrefDataModule(aspect="honest")
    with pytest.raises(ValueError, match="pools must be one or more of normal, expert"):
        MultiPrefDataModule(pools=("lay",))


def test_the_hub_gives_the_same_records(tmp_path, from_hub):
    rows = [row(), row("Name a tree.")]
    expected = examples(tmp_path, rows)
    asked = from_hub(rows)
    data = MultiPrefDataModule()
    assert [data.to_example(found) for source in data.sources for found in data.load(source)] == expected
    assert asked == [("allenai/multipref", "default", REVISION, "train", None)] * 2
