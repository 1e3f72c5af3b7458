"""UltraFeedback: ratings as text, N/A, faulty overall scores, all pairs; and binarised pairs; invented rows, real schema."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import Message, RecordError, UltraFeedbackDataModule
from pluralign.datamodules.datasets.ultrafeedback import ASPECTS, SUBSETS

RAW = "openbmb/UltraFeedback@40b436560ca83a8dba36114c22ab3c66e43f6d5e"
BINARIZED = "HuggingFaceH4/ultrafeedback_binarized@3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"


def completion(response="Water.", ratings=("4", "5", "4", "5"), overall=7.5, **changes):
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "model": "m",
        "principle": "honesty",
        "custom_system_prompt": "Be honest.",
        "response": response,
        "critique": "Fine.",
        "overall_score": overall,
        "fine-grained_score": 4.5,
        "annotations": {
            name: {"Rating": rating, "Rationale": "So."} for name, rating in zip(names, ratings, strict=True)
        },
        **changes,
    }


COMPLETIONS = (
    completion(),
    completion("Wet.", ("2", "3", "N/A", "4"), 8.5),
    completion("Sky.", ("N/A",) * 4, 5.0),
    completion("Drops.", ("3", "3", "3", "3"), 7.5),
)


def row(instruction="What is rain?", completions=COMPLETIONS, source="flan", **changes):
    return {
        "source": source,
        "instruction": instruction,
        "models": ["m"] * 4,
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
        **changes,
    }


def write(folder, rows):
    for subset in SUBSETS:
        lines = [json.dumps(found) for found in rows if found.get("source") == subset]
        (folder / f"{subset}.jsonl").write_text("\n".join(lines) + "\n")
    odd = [json.dumps(found) for found in rows if found.get("source") not in SUBSETS]
    with (folder / "flan.jsonl").open("a") as stream:
        stream.write("\n".join(odd))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(f"What is rain, {i}?", source=SUBSETS[i % 6]) for i in range(60)]
    return UltraFeedbackDataModule(data_dir=write(folder, rows + [row(completions=[])] * bad), **settings)


def examples(folder, rows, **settings):
    data = UltraFeedbackDataModule(data_dir=write(folder, rows), **settings)
    return [
        found if isinstance(found, RecordError) else data.to_example(found)
        for source in data.sources
        for found in data.load(source)
    ]


def said(comparison):
    return comparison.chosen, comparison.rejected, comparison.preference, comparison.strength


@pytest.mark.parametrize(
    ("score", "scores", "expected"),
    [
        ("mean", (4.5, 3.0, None, 3.0), [(0, 1, 1.0, 1.5), (0, 3, 1.0, 1.5), (1, 3, 0.5, 0.0)]),
        ("helpfulness", (4.0, 2.0, None, 3.0), [(0, 1, 1.0, 2.0), (0, 3, 1.0, 1.0), (3, 1, 1.0, 1.0)]),
        ("instruction_following", (4.0, None, None, 3.0), [(0, 3, 1.0, 1.0)]),
        (
            "overall",
            (7.5, 8.5, 5.0, 7.5),
            [
                (1, 0, 1.0, 1.0),
                (0, 2, 1.0, 2.5),
                (0, 3, 0.5, 0.0),
                (1, 2, 1.0, 3.5),
                (1, 3, 1.0, 1.0),
                (3, 2, 1.0, 2.5),
            ],
        ),
    ],
)
def test_completions_with_a_score_are_compared(tmp_path, score, scores, expected):
    (record,) = examples(tmp_path, [row()], score=score)
    assert (record.id, record.prompt, record.group) == ("flan:1", "What is rain?", "What is rain?")
    assert [response.text for response in record.responses] == ["Water.", "Wet.", "Sky.", "Drops."]
    assert tuple(response.score for response in record.responses) == scores
    assert [said(comparison) for comparison in record.comparisons] == expected
    assert {comparison.user for comparison in record.comparisons} == {None}


def test_the_aspects_are_those_of_the_release():
    assert set(ASPECTS) == set(completion()["annotations"])


def test_a_10_that_the_ratings_deny_is_refused_or_mended_never_read(tmp_path):
    faulty = row(completions=[completion("A", ("1", "2", "N/A", "3"), 10), completion("B", overall=6)])
    with pytest.raises(RecordError, match=r"mean is 2; faulty_scores: mend reads it as 1") as caught:
        examples(tmp_path, [faulty], score="overall")
    assert (caught.value.reason, caught.value.field) == ("faulty score", "completions[0].overall_score")
    (record,) = examples(tmp_path, [faulty], score="overall", faulty_scores="mend")
    assert [response.score for response in record.responses] == [1.0, 6.0]
    assert said(record.comparisons[0]) == (1, 0, 1.0, 5.0)
    fine = row(completions=[completion("A", ("2", "2", "2", "3"), 10), completion("B", ("N/A",) * 4, 10)])
    (record,) = examples(tmp_path, [fine], score="overall")
    assert [response.score for response in record.responses] == [10.0, 10.0]
    (record,) = examples(tmp_path, [faulty])  # the ratings have no such fault
    assert [response.score for response in record.responses] == [2.0, 4.5]
    rows = [faulty, *(row(f"Q{i}?") for i in range(40))]
    data = UltraFeedbackDataModule(data_dir=write(tmp_path, rows), score="overall")
    data.setup()
    assert [report.invalid for report in data.reports.values() if report.invalid] == [{"faulty score": 1}]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"completions": []}, "wrong length", "completions"),
        ({"completions": ["A"]}, "wrong type", "completions[0]"),
        ({"completions": [completion(" ")]}, "empty response", "responses[0].text"),
        ({"completions": [completion(None)]}, "missing field", "completions[0].response"),
        (
            {"completions": [completion(ratings=("4", "6", "4", "4"))]},
            "out of range",
            "completions[0].annotations.honesty.Rating",
        ),
        (
            {"completions": [completion(ratings=(4, "5", "4", "4"))]},
            "wrong type",
            "completions[0].annotations.helpfulness.Rating",
        ),
        (
            {"completions": [completion(annotations={})]},
            "missing field",
            "completions[0].annotations.helpfulness.Rating",
        ),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(tmp_path, [row(**change)])
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("overall", [11, "7", None])
def test_malformed_overall_scores(tmp_path, overall):
    rows = [row(completions=[completion(overall=overall)])]
    with pytest.raises(RecordError) as caught:
        examples(tmp_path, rows, score="overall")
    assert caught.value.field == "completions[0].overall_score"
    assert len(examples(tmp_path, rows)) == 1


def test_subsets_are_chosen_and_rows_named_by_theirs(tmp_path):
    rows = [row(f"Q{i}?", source=SUBSETS[i % 6]) for i in range(12)]
    names = sorted(record.id for record in examples(tmp_path, rows, subsets=("sharegpt", "flan")))
    assert names == ["flan:1", "flan:2", "sharegpt:1", "sharegpt:2"]
    assert len(examples(tmp_path, rows)) == 12
    (tmp_path / "truthful_qa.jsonl").unlink()
    assert len(examples(tmp_path, rows, subsets=("flan",))) == 2
    errors = [found for found in examples(tmp_path, [row(source="mine")]) if isinstance(found, RecordError)]
    assert [(error.field, error.reason) for error in errors] == [("source", "out of range")]


# Pairs -------------------------------------------------------------------------------------------------


def talk(*texts):
    return [{"content": text, "role": "assistant" if i % 2 else "user"} for i, text in enumerate(texts)]


def pair(
    prompt="Rain?", chosen=("Rain?", "Water."), rejected=("Rain?", "Wet."), scores=(8.5, 6.0), **changes
):
    return {
        "prompt": prompt,
        "prompt_id": "086b",
        "chosen": talk(*chosen),
        "rejected": talk(*rejected),
        "messages": talk(*chosen),
        "score_chosen": scores[0],
        "score_rejected": scores[1],
        **changes,
    }


def pairs(folder, rows, parquet=False, **settings):
    for split, content in (
        ("train_prefs", rows),
        ("test_prefs", [pair("Fog?", ("Fog?", "A"), ("Fog?", "B"))]),
    ):
        if parquet:
            path = folder / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(content), path)
        else:
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return UltraFeedbackDataModule(release="binarized", data_dir=str(folder), **settings)


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize(
    ("scores", "expected"), [((8.5, 6.0), (0, 1, 1.0, 2.5)), ((8.5, 8.5), (0, 1, 0.5, 0.0))]
)
def test_a_pair_loses_the_prompt_that_its_sides_repeat(tmp_path, parquet, scores, expected):
    data = pairs(tmp_path, [pair(scores=scores)], parquet)
    (found,) = data.load("train")
    record = data.to_example(found)
    assert (record.id, record.prompt, record.group) == ("train_prefs:1", "Rain?", "Rain?")
    assert [response.text for response in record.responses] == ["Water.", "Wet."]
    assert said(record.comparisons[0]) == expected
    assert [row.fields["id"] for row in data.load("test")] == ["test_prefs:1"]


def test_a_pair_of_several_turns_keeps_them(tmp_path):
    long = pair("Rain?", ("Rain?", "Hm.", "And?", "Water."), ("Rain?", "Hm.", "And?", "Wet."))
    data = pairs(tmp_path, [long])
    (found,) = data.load("train")
    record = data.to_example(found)
    assert record.prompt == (Message("user", "Rain?"), Message("assistant", "Hm."), Message("user", "And?"))
    assert [response.text for response in record.responses] == ["Water.", "Wet."]


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (pair(scores=(6.0, 8.5)), "rejected scores higher", "score_rejected"),
        (pair("Sun?"), "another prompt", "chosen"),
        (pair(rejected=("Snow?", "Wet.")), "no common prompt", "prompt"),
        (pair(rejected=("Rain?", " ")), "empty response", "responses[1].text"),
        (pair(score_chosen=None), "missing field", "score_chosen"),
        (pair(chosen=()), "missing answer", "chosen"),
        (pair(prompt=3), "wrong type", "prompt"),
    ],
)
def test_malformed_pairs(tmp_path, row, reason, field):
    data = pairs(tmp_path, [row])
    (found,) = data.load("train")
    with pytest.raises(RecordError) as caught:
        data.to_example(found)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_pairs_have_a_test_split_and_hold_out_validation(tmp_path):
    rows = [pair(f"Rain {i}?", (f"Rain {i}?", "A"), (f"Rain {i}?", "B")) for i in range(60)]
    data = pairs(tmp_path, rows, validation_share=0.3)
    data.setup()
    reports = data.reports
    assert (reports["test"].records, reports["validation"].in_train) == (1, 0)
    assert reports["train"].rows + reports["validation"].rows == 60


def test_settings_that_say_nothing_are_refused():
    assert UltraFeedbackDataModule().settings()["hub"] == RAW
    assert UltraFeedbackDataModule(release="binarized").settings()["hub"] == BINARIZED
    with pytest.raises(ValueError, match="score must be one of mean, overall, helpfulness"):
        UltraFeedbackDataModule(score="best")
    with pytest.raises(ValueError, match="score and subsets must not be given for release='binarized'"):
        UltraFeedbackDataModule(release="binarized", score="overall")
    with pytest.raises(ValueError, match="score and subsets must not be given for release='binarized'"):
        UltraFeedbackDataModule(release="binarized", subsets=("flan",))
    with pytest.raises(ValueError, match="faulty_scores='mend' needs release='raw' and score='overall'"):
        UltraFeedbackDataModule(faulty_scores="mend")
    with pytest.raises(ValueError, match="subsets must be one or more of evol_instruct"):
        UltraFeedbackDataModule(subsets=("mine",))


def test_the_hub_gives_the_same_records(tmp_path, from_hub):
    rows = [row(source="flan"), row("What is fog?", source="ultrachat")]
    expected = examples(tmp_path, rows)
    asked = from_hub(rows)
    data = UltraFeedbackDataModule()
    assert [data.to_example(found) for source in data.sources for found in data.load(source)] == expected
    assert asked == [(*RAW.split("@"), "train", None)] * 2
    asked = from_hub([pair()])
    data = UltraFeedbackDataModule(release="binarized")
    assert [found.fields["id"] for source in data.sources for found in data.load(source)] == [
        "train_prefs:1",
        "test_prefs:1",
    ]
    assert asked == [(*BINARIZED.split("@"), split, None) for split in ("train_prefs", "test_prefs")]
