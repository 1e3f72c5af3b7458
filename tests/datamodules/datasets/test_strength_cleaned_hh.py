"""HH-RLHF with strengths: lists of texts without speakers, signed strengths, three kinds of labels; invented rows, real schema."""

import gzip
import json

import pytest

from pluralign.datamodules import Message, RecordError
from pluralign.datamodules.datasets.strength_cleaned_hh import StrengthCleanedHHDataModule

UP, DOWN = [2.0] * 7 + [1.0] * 3, [1.0] * 6 + [1.5, 1.0, 2.0, 3.0]
"""Scores of ten models: seven prefer the first, one neither, two the second."""


def row(history=("Name a fruit.",), answers=("Apple.", "Chair."), mean=0.5, **changes):
    return {
        "chosen": [*history, answers[0]],
        "rejected": [*history, answers[1]],
        "chosen_score_list": UP,
        "rejected_score_list": DOWN,
        "mean preference difference": mean,
        "std preference difference": 0.25,
        **changes,
    }


def module(folder, rows, held_out=None, ending="json", **settings):
    for name, content in (("train", rows), ("valid", [row()] if held_out is None else held_out)):
        path = folder / f"{name}.{ending}"
        text = "\n".join(map(json.dumps, content)) if ".jsonl" in path.name else json.dumps(content)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    return StrengthCleanedHHDataModule(data_dir=str(folder), **settings)


def examples(data, source="train"):
    return [data.to_example(row) for row in data.load(source)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [row((f"Name fruit {i}.",), mean=i / 20 - 1) for i in range(40)]
    return module(folder, rows + [row(mean="much")] * bad, **settings)


@pytest.mark.parametrize("ending", ["json", "json.gz", "jsonl", "jsonl.gz"])
def test_the_history_is_the_prompt_and_turns_are_counted_from_the_answer(tmp_path, ending):
    rows = [row(), row(("Name a fruit.", "Pear. ", "Another?")), row(("Pear.", "Another?"))]
    first, second, cut = examples(module(tmp_path, rows, ending=ending))
    assert (first.id, first.prompt) == ("train:1", (Message("user", "Name a fruit."),))
    assert second.prompt == (
        Message("user", "Name a fruit."),
        Message("assistant", "Pear."),
        Message("user", "Another?"),
    )
    assert cut.prompt == (Message("assistant", "Pear."), Message("user", "Another?"))
    for record in (first, second, cut):
        assert [response.text for response in record.responses] == ["Apple.", "Chair."]
    assert [record.group for record in (first, second, cut)] == ["Name a fruit.", "Name a fruit.", "Pear."]


@pytest.mark.parametrize("mean", [0.5, -0.75, 0.0])
@pytest.mark.parametrize(("strength", "factor"), [("difference", 1), ("standardised", 4)])
def test_the_human_label_stays_and_doubt_is_a_negative_strength(tmp_path, mean, strength, factor):
    ((comparison,),) = (
        r.comparisons for r in examples(module(tmp_path, [row(mean=mean)], strength=strength))
    )
    assert (comparison.chosen, comparison.rejected, comparison.preference) == (0, 1, 1.0)
    assert (comparison.strength, comparison.votes, comparison.user) == (mean * factor, None, None)


def test_the_models_vote(tmp_path):
    rows = [row(), row(mean=-0.5, chosen_score_list=DOWN, rejected_score_list=UP)]
    agreed, doubted = (r.comparisons[0] for r in examples(module(tmp_path, rows, labels="models")))
    assert (agreed.chosen, agreed.rejected, agreed.votes) == (0, 1, (7, 1, 2))
    assert (agreed.preference, agreed.strength) == (0.75, 0.5)
    assert (doubted.chosen, doubted.rejected, doubted.votes) == (1, 0, (7, 1, 2))
    assert (doubted.preference, doubted.strength) == (0.75, 0.5)


def test_scores_under_names_with_spaces_are_the_same(tmp_path):
    spaced = {name.replace("_", " "): value for name, value in row().items()}
    assert "chosen score list" in spaced and "chosen_score_list" not in spaced
    first, second = (r.comparisons[0] for r in examples(module(tmp_path, [row(), spaced], labels="models")))
    assert first == second and second.votes == (7, 1, 2)
    with pytest.raises(RecordError, match="wrong length: field 'rejected score list'"):
        examples(module(tmp_path, [{**spaced, "rejected score list": [1.0]}], labels="models"))


@pytest.mark.parametrize(("label", "expected"), [(1, (0, 1, 0.5)), (0, (1, 0, -0.5))])
def test_labels_of_gpt4_are_for_the_test_split(tmp_path, label, expected):
    data = module(tmp_path, [row()], [row(**{"GPT4 label": label})], test_labels="gpt4")
    (comparison,) = examples(data, "test")[0].comparisons
    assert (comparison.chosen, comparison.rejected, comparison.strength) == expected
    assert comparison.preference == 1.0
    assert examples(data)[0].comparisons[0].chosen == 0
    same = module(tmp_path, [row()], [row(**{"GPT4 label": label})])
    assert examples(same, "test")[0].comparisons[0].chosen == 0


def test_pairs_that_gpt4_did_not_label_are_counted(tmp_path):
    held_out = [row((f"Name tree {i}.",), **{"GPT4 label": i - 1}) for i in range(3)]
    data = module(tmp_path, [row((f"Name fruit {i}.",)) for i in range(30)], held_out, test_labels="gpt4")
    data.setup()
    assert dict(data.reports["test"].invalid) == {"no judgement": 1}
    assert data.reports["test"].comparisons == 2


@pytest.mark.parametrize(
    ("change", "settings", "reason", "field"),
    [
        ({"chosen": "Apple."}, {}, "wrong type", "chosen"),
        ({"chosen": []}, {}, "wrong length", "chosen"),
        ({"rejected": ["Name a fruit.", 3]}, {}, "wrong type", "rejected[1]"),
        ({"rejected": ["Name a fruit.", " "]}, {}, "empty response", "responses[1].text"),
        ({"chosen": ["Apple."], "rejected": ["Chair."]}, {}, "no common prompt", "prompt"),
        ({"mean preference difference": None}, {}, "missing field", "mean preference difference"),
        ({"mean preference difference": float("nan")}, {}, "not finite", "mean preference difference"),
        (
            {"std preference difference": 0},
            {"strength": "standardised"},
            "out of range",
            "std preference difference",
        ),
        ({"rejected_score_list": [1.0]}, {"labels": "models"}, "wrong length", "rejected_score_list"),
        ({"chosen_score_list": ["1"] * 10}, {"labels": "models"}, "wrong type", "chosen_score_list[0]"),
    ],
)
def test_malformed_rows(tmp_path, change, settings, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(module(tmp_path, [row(**change)], **settings))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("label", "reason"), [(None, "missing field"), (2, "out of range"), ("1", "wrong type")]
)
def test_malformed_labels(tmp_path, label, reason):
    data = module(tmp_path, [row()], [row(**{"GPT4 label": label})], test_labels="gpt4")
    with pytest.raises(RecordError, match=f"{reason}: field 'GPT4 label'"):
        examples(data, "test")


def test_identical_answers_are_dropped_and_prompts_in_training_counted(tmp_path):
    rows = [
        row((f"Name fruit {i}.",), ("Same.", "Same.") if i == 5 else ("Apple.", "Chair.")) for i in range(40)
    ]
    data = module(tmp_path, rows, [row((f"Name fruit {i}.",)) for i in range(40)], validation_share=0.3)
    with pytest.warns(UserWarning, match="test: 30 records share a prompt with the training split"):
        data.setup()
    reports = data.reports
    assert reports["train"].comparisons + reports["validation"].comparisons == 39
    assert (reports["validation"].in_train, reports["test"].in_train) == (0, 30)


def test_the_hub_is_pinned(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda name, **how: asked.append((name, how["revision"], how["split"])) or [row()],
    )
    data = StrengthCleanedHHDataModule()
    assert [examples(data, source)[0].id for source in data.sources] == ["train:1", "valid:1"]
    revision = "bca492d5b414ce1e67a499b30470e2376b8a7d7f"
    assert asked == [("fnlp/hh-rlhf-strength-cleaned", revision, split) for split in ("train", "validation")]
    assert data.settings()["hub"] == f"fnlp/hh-rlhf-strength-cleaned@{revision}"
