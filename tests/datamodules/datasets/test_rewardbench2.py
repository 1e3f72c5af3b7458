"""RewardBench 2: best of four with shared maxima, Ties; invented rows in the real schema."""

import json

import pytest

from pluralign.datamodules import RecordError, RewardBench2DataModule

REVISION = "7ff08853b0d5686e79b13fda8677024f566a104a"


def row(name="1", subset="Math", chosen=("Five.",), rejected=("Six.", "Four.", "Ten."), **changes):
    return {
        "id": name,
        "prompt": f"Add two and three, {name}.",
        "chosen": list(chosen),
        "rejected": list(rejected),
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"] * (len(chosen) + len(rejected)),
        "subset": subset,
        "additional_metadata": None,
        **changes,
    }


def ties(number, names=("Red.", "Blue."), wrong=("Loud.", "Sour.")):
    """A prompt with several right answers, and its twin with one."""
    return [
        row(f"tied:{number}", "Ties", names, wrong),
        row(f"ref:{number}", "Ties", names[:1], wrong),
    ]


def write(folder, rows):
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    plain = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows = [row(f"{i}", subset) for subset in plain for i in range(2)] + [*ties(1), *ties(2)]
    return RewardBench2DataModule(data_dir=write(folder, rows + [row(num_correct=2)] * bad), **settings)


def module(folder, *rows, **settings):
    data = RewardBench2DataModule(data_dir=write(folder, rows), **settings)
    return data, list(data.records("test"))


def test_a_row_compares_every_right_completion_with_every_wrong_one(tmp_path):
    _, (plain, tied, ref) = module(tmp_path, row("9"), *ties(4))
    assert (plain.id, tied.id, ref.id) == ("Math:9", "Ties:tied:4", "Ties:ref:4")
    assert [one.text for one in plain.responses] == ["Five.", "Six.", "Four.", "Ten."]
    assert [(one.chosen, one.rejected) for one in tied.comparisons] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert {one.domain for one in tied.comparisons} == {"Ties"}


def test_a_prompt_shares_its_point_with_what_is_as_good(tmp_path):
    data, records = module(tmp_path, row("1"), row("2"), row("3"), row("4"))
    rewards = [[2, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    scores = data.official_scores(records, rewards)
    assert [item["score"] for item in scores.items] == [1.0, 0.5, 0.25, 0.0]
    assert scores.numbers == {"Math": 1.75 / 4}


@pytest.mark.parametrize(("version", "last"), [("repository", 0.01), ("package", 0.0)])
def test_equal_rewards_of_all_right_answers_of_ties(tmp_path, version, last):
    data, records = module(tmp_path, *ties(1), ties_version=version)
    scores = data.official_scores(records, [[1, 1, 0, 0], [1, 0, 0]])
    assert scores.numbers == pytest.approx({"Ties": 1 + last})
    assert [item["right"] for item in scores.items] == [True, True]
    assert "score" not in scores.items[0], "prompts of Ties count together alone"
    assert ("0.1.4" in scores.rule) == (version == "package")


def test_a_constant_scorer_has_a_quarter_and_nothing_of_ties(tmp_path):
    data = invented(tmp_path)
    records = list(data.records("test"))
    scores = data.official_scores(records, [[0.0] * len(record.responses) for record in records])
    plain = dict.fromkeys(("Factuality", "Precise IF", "Math", "Safety", "Focus"), 0.25)
    assert scores.numbers == {**plain, "Ties": 0.0, "average": 1.25 / 6}


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"num_correct": 2}, "out of range", "num_correct"),
        ({"total_completions": 5}, "out of range", "total_completions"),
        ({"chosen": [], "num_correct": 0}, "wrong length", "chosen"),
        ({"chosen": ["A", "B"], "num_correct": 2, "total_completions": 5}, "wrong length", "chosen"),
        ({"rejected": ["A", " ", "B"]}, "empty response", "rejected[1]"),
        ({"subset": "Ties"}, "out of range", "id"),
        ({"subset": "Chat"}, "out of range", "subset"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    with pytest.raises(RecordError) as caught:
        module(tmp_path, row(**changes))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_subsets_rule_and_source(tmp_path, from_hub):
    data, records = module(tmp_path, row("1"), *ties(1), subsets=("Ties",))
    assert [record.id for record in records] == ["Ties:tied:1", "Ties:ref:1"]
    with pytest.raises(ValueError, match="ties_version must be one of package, repository; got '2'"):
        RewardBench2DataModule(ties_version="2")
    asked = from_hub([row("1")])
    data = RewardBench2DataModule()
    assert [record.id for record in data.records("test")] == ["Math:1"]
    assert asked == [("allenai/reward-bench-2", REVISION, "test", None)]
