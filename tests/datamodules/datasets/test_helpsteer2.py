"""HelpSteer2: two rows are one record; final and individual ratings; pinned source; invented rows, real schema."""

import gzip
import json

import pytest
import torch

from pluralign.datamodules import LoaderConfig, Message, RecordError
from pluralign.datamodules.datasets.helpsteer2 import ATTRIBUTES, HelpSteer2DataModule, parse_prompt

REVISION = "990b2711a36180dd19d9c94b8627844866f8982a"


def row(prompt="Name a fruit.", response="Apple.", ratings=(4, 3, 4, 1, 0)):
    return {"prompt": prompt, "response": response, **dict(zip(ATTRIBUTES, ratings, strict=True))}


def single(prompt="Name a fruit.", response="Apple.", ratings=(3, 4, 4)):
    return row(prompt, response, [list(ratings), [3, 3], [4, 4], [1, 1], [0, 2]])


ROWS = [row(), row(response="Chair.", ratings=(1, 3, 2, 2, 4))]
SINGLES = [single(), single(response="Chair.", ratings=(1, 0))]


def write(folder, rows, held_out=None, individual=None, packed=False):
    files = {"train": rows, "validation": ROWS if held_out is None else held_out}
    if individual is not None:
        files["disagreements/disagreements"] = individual
    for name, content in files.items():
        lines = "\n".join(map(json.dumps, content)).encode()
        path = folder / f"{name}.jsonl{'.gz' if packed else ''}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(lines) if packed else lines)
    return str(folder)


def examples(data, source="train"):
    return [
        found if isinstance(found, RecordError) else data.to_example(found) for found in data.load(source)
    ]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [
        row(f"Name fruit {i}.", *said)
        for i in range(40)
        for said in (("Apple.",), ("Chair.", (1, 3, 2, 2, 4)))
    ]
    return HelpSteer2DataModule(data_dir=write(folder, rows + [row(response=3)] * bad), **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_two_rows_of_a_prompt_are_one_record(tmp_path, packed):
    (record,) = examples(HelpSteer2DataModule(data_dir=write(tmp_path, ROWS, packed=packed)))
    assert (record.id, record.prompt, record.group) == ("train:1", "Name a fruit.", "Name a fruit.")
    assert [(r.text, r.score, r.votes) for r in record.responses] == [
        ("Apple.", 4.0, (0, 0, 0, 0, 1)),
        ("Chair.", 1.0, (0, 1, 0, 0, 0)),
    ]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference) == (0, 1, 1.0)
    assert (comparison.strength, comparison.votes) == (3.0, None)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [("correctness", (0, 1, 0.5, 0.0)), ("coherence", (0, 1, 1.0, 2.0)), ("verbosity", (1, 0, 1.0, 4.0))],
)
def test_attributes(tmp_path, attribute, expected):
    (record,) = examples(HelpSteer2DataModule(attribute=attribute, data_dir=write(tmp_path, ROWS)))
    (comparison,) = record.comparisons
    found = (comparison.chosen, comparison.rejected, comparison.preference, comparison.strength)
    assert found == expected


def test_rows_are_paired_in_order_and_a_lone_row_is_a_record(tmp_path):
    rows = [row("A"), row("B"), row("B", "Two."), row("B", "Three."), row("B", "Four."), row("C")]
    records = examples(HelpSteer2DataModule(data_dir=write(tmp_path, rows)))
    assert [(r.id, len(r.responses), len(r.comparisons)) for r in records] == [
        ("train:1", 1, 0),
        ("train:2", 2, 1),
        ("train:4", 2, 1),
        ("train:6", 1, 0),
    ]


def test_a_line_that_is_no_row_leaves_its_partner_alone(tmp_path):
    folder = write(tmp_path, ROWS)
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{{\n{json.dumps(ROWS[1])}\n")
    error, record = examples(HelpSteer2DataModule(data_dir=folder))
    assert (error.reason, error.line) == ("not JSON", 2)
    assert len(record.responses) == 2


def test_individual_ratings_are_the_votes(tmp_path):
    folder = write(tmp_path, ROWS, individual=[*SINGLES, single("Another prompt.")])
    (record,) = examples(HelpSteer2DataModule(judgements="annotators", data_dir=folder))
    assert [(r.score, r.votes) for r in record.responses] == [(4.0, (0, 0, 0, 1, 2)), (1.0, (1, 1, 0, 0, 0))]
    assert record.comparisons[0].preference == 1.0
    verbose = HelpSteer2DataModule(judgements="annotators", attribute="verbosity", data_dir=folder)
    assert examples(verbose)[0].responses[0].votes == (1, 0, 1, 0, 0)


def test_ratings_in_several_rows_add_up_unless_a_row_is_given_twice(tmp_path):
    individual = [*SINGLES, *SINGLES, single(ratings=(2,))]
    data = HelpSteer2DataModule(
        judgements="annotators", data_dir=write(tmp_path, ROWS, individual=individual)
    )
    assert [r.votes for r in examples(data)[0].responses] == [(0, 0, 1, 1, 2), (1, 1, 0, 0, 0)]


def test_a_response_without_individual_ratings_is_skipped_and_counted(tmp_path):
    held_out = [*ROWS, row("Name a tree."), row("Name a tree.", "Oak.")]
    folder = write(tmp_path, [row("A"), row("A", "Two.")], held_out, SINGLES)
    data = HelpSteer2DataModule(judgements="annotators", data_dir=folder)
    with pytest.raises(RecordError, match=r"train\.jsonl:1: no individual ratings: .*'Apple\.'"):
        examples(data)
    assert [found.fields["id"] for found in data.load("test")] == ["validation:1", "validation:3"]
    with pytest.raises(RecordError, match=r"validation\.jsonl:3: no individual ratings"):
        examples(data, "test")


def test_malformed_individual_ratings_are_errors_of_training(tmp_path):
    wrong = {**single(), "coherence": [4, 5]}
    short = {**single(), "verbosity": 2}
    folder = write(tmp_path, ROWS, individual=[*SINGLES, wrong, short, {"prompt": "A"}, 3])
    data = HelpSteer2DataModule(judgements="annotators", data_dir=folder)
    *errors, record = examples(data)
    found = [(error.reason, error.field, error.line) for error in errors]
    assert found == [
        ("out of range", "coherence[1]", 3),
        ("wrong type", "verbosity", 4),
        ("missing field", "helpfulness", 5),
        ("wrong type", "line", 6),
    ]
    assert len(record.responses) == 2
    assert all(error.file.endswith("disagreements.jsonl") for error in errors)
    assert len(examples(data, "test")) == 1


def test_prompts_of_several_turns_are_messages():
    text = "Hi\n<extra_id_1>Assistant\nHello!\n\nYou?\n<extra_id_1>User\nFine."
    assert parse_prompt(text) == (
        Message("user", "Hi"),
        Message("assistant", "Hello!\n\nYou?"),
        Message("user", "Fine."),
    )


@pytest.mark.parametrize(
    "text",
    [
        "Hi",
        "",
        "Hi\n<extra_id_1>Assistant\nHello!",
        "Hi\n<extra_id_1>User\nHello!\n<extra_id_1>Assistant\nFine.",
        "What does <extra_id_1>User mean?",
    ],
)
def test_other_prompts_stay_texts(text):
    assert parse_prompt(text) == text


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"helpfulness": 5}, "out of range", "helpfulness"),
        ({"helpfulness": 3.5}, "wrong type", "helpfulness"),
        ({"helpfulness": None}, "missing field", "helpfulness"),
        ({"response": 3}, "wrong type", "response"),
        ({"prompt": 3}, "wrong type", "prompt"),
        ({"response": " "}, "empty response", "responses[0].text"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    folder = write(tmp_path, [{**row(), **change}])
    with pytest.raises(RecordError) as caught:
        examples(HelpSteer2DataModule(data_dir=folder))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_prompts_stay_on_one_side_and_the_released_validation_is_the_test(tmp_path):
    rows = [row(f"Q{i}?", f"{j}.") for _ in range(2) for i in range(100) for j in range(2)]
    folder = write(tmp_path, rows)
    data = HelpSteer2DataModule(data_dir=folder, validation_share=0.3)
    data.setup()
    assert data.splits == ("train", "validation", "test")
    reports = data.reports
    assert reports["train"].rows + reports["validation"].rows == 200
    assert reports["validation"].rows > 30 and reports["validation"].rows % 2 == 0
    assert all(2 * report.records == report.rows for report in (reports["train"], reports["validation"]))
    assert (reports["validation"].in_train, reports["test"].records) == (0, 1)


def test_a_batch_holds_votes_and_scores(tmp_path):
    folder = write(tmp_path, [row("A")], [*ROWS, row("B", ratings=(0, 0, 0, 0, 0))], [*SINGLES, single("B")])
    data = HelpSteer2DataModule(
        judgements="annotators", data_dir=folder, loader=LoaderConfig(batch_size=2), on_invalid="skip"
    )
    data.setup("test")
    (batch,) = data.test_dataloader()
    by_id = {name: i for i, name in enumerate(batch["id"])}
    pair = batch["response_prompt"] == by_id["validation:1"]
    torch.testing.assert_close(batch["votes"][pair], torch.tensor([[0.0, 0, 0, 1, 2], [1, 1, 0, 0, 0]]))
    torch.testing.assert_close(batch["score"][pair], torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(batch["votes"][~pair], torch.tensor([[0.0, 0, 0, 1, 2]]))
    torch.testing.assert_close(batch["preference"], torch.tensor([1.0]))
    torch.testing.assert_close(batch["strength"], torch.tensor([3.0]))
    assert "comparison_votes" not in batch


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        return SINGLES if kwargs["data_dir"] else ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = HelpSteer2DataModule(judgements="annotators")
    assert [record.id for record in examples(data, "test")] == ["validation:1"]
    assert asked == [
        ("nvidia/HelpSteer2", {"revision": REVISION, "split": "train", "data_dir": "disagreements"}),
        ("nvidia/HelpSteer2", {"revision": REVISION, "split": "validation", "data_dir": None}),
    ]
    asked.clear()
    assert [record.id for record in examples(HelpSteer2DataModule())] == ["train:1"]
    assert asked == [("nvidia/HelpSteer2", {"revision": REVISION, "split": "train", "data_dir": None})]
    assert data.files("train") == []
    assert data.settings() == {
        "hub": f"nvidia/HelpSteer2@{REVISION}",
        "attribute": "helpfulness",
        "judgements": "annotators",
    }


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"attribute must be one of helpfulness, .*; got 'humour'"):
        HelpSteer2DataModule(attribute="humour")
    with pytest.raises(
        ValueError, match=r"judgements must be one of final, annotators, preference, .*; got 'crowd'"
    ):
        HelpSteer2DataModule(judgements="crowd")
    with pytest.raises(FileNotFoundError, match=r"validation\.jsonl"):
        HelpSteer2DataModule(data_dir=str(tmp_path)).files("test")
    with pytest.raises(FileNotFoundError, match=r"disagreements\.jsonl"):
        HelpSteer2DataModule(data_dir=write(tmp_path, ROWS), judgements="annotators").files("train")


# Preferences -------------------------------------------------------------------------------------------


def preference(strength=-2, individual=(-3, -2, -1), split="train", **changes):
    return {
        "split": split,
        "prompt": "Name a fruit.",
        "response_1": "Apple.",
        "response_2": "Chair.",
        "preference_strength": strength,
        "preference_statement": "@Response 1 is better.",
        "preference_elaboration": "It is a fruit.",
        "three_most_similar_preferences": [{"statement": "Fruit.", "elaboration": "Yes.", "strength": -2}]
        * 3,
        "all_preferences_unprocessed": [{"strength": one, "justification": "So."} for one in individual],
        **changes,
    }


def compared(folder, *rows, source="train", judgements="preference"):
    path = folder / "preference" / "preference.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return examples(HelpSteer2DataModule(judgements=judgements, data_dir=str(folder)), source)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (-3, (0, 1, 1.0, 3.0)),
        (-1, (0, 1, 1.0, 1.0)),
        (0, (0, 1, 0.5, 0.0)),
        (1, (1, 0, 1.0, 1.0)),
        (3, (1, 0, 1.0, 3.0)),
    ],
)
def test_a_preference_below_zero_is_for_the_first(tmp_path, strength, expected):
    (record,) = compared(tmp_path, preference(strength))
    assert (record.id, record.prompt, record.group) == ("preference:1", "Name a fruit.", "Name a fruit.")
    assert [(r.text, r.score, r.votes) for r in record.responses] == [
        ("Apple.", None, None),
        ("Chair.", None, None),
    ]
    (comparison,) = record.comparisons
    assert (comparison.votes, comparison.user) == (None, None)
    found = comparison.chosen, comparison.rejected, comparison.preference, comparison.strength
    assert found == expected


@pytest.mark.parametrize(
    ("individual", "expected", "votes"),
    [
        ((-3, -2, -1), (0, 1, 1.0, 2.0), (3, 0, 0)),
        ((2, 3, -1, 0), (1, 0, 0.625, 1.0), (2, 1, 1)),
        ((-100, -2, 1, -1), (0, 1, 0.625, 0.5), (2, 1, 1)),
        ((-100, -100, -100), (0, 1, 0.5, 0.0), (0, 3, 0)),
    ],
)
def test_annotators_vote_on_preferences(tmp_path, individual, expected, votes):
    row = preference(individual=individual)
    as_text = preference(all_preferences_unprocessed=json.dumps(row["all_preferences_unprocessed"]))
    for record in compared(tmp_path, row, as_text, judgements="preference_annotators"):
        (comparison,) = record.comparisons
        found = comparison.chosen, comparison.rejected, comparison.preference, comparison.strength
        assert (found, comparison.votes) == (expected, votes)


def test_the_column_split_divides_the_one_file(tmp_path):
    rows = [
        preference(),
        preference(split="val"),
        preference(split="test"),
        preference(split="val", strength=9),
    ]
    train, error = compared(tmp_path, *rows)
    assert (train.id, error.reason, error.field, error.line) == ("preference:1", "out of range", "split", 3)
    data = HelpSteer2DataModule(judgements="preference", data_dir=str(tmp_path))
    assert [row.fields["id"] for row in data.load("test")] == ["preference:2", "preference:4"]
    assert [path.name for path in data.files("test")] == ["preference.jsonl.gz"]


@pytest.mark.parametrize(
    ("change", "judgements", "reason", "field"),
    [
        ({"strength": 4}, "preference", "out of range", "preference_strength"),
        ({"strength": -100}, "preference", "out of range", "preference_strength"),
        ({"strength": None}, "preference", "missing field", "preference_strength"),
        ({"response_2": " "}, "preference", "empty response", "responses[1].text"),
        (
            {"individual": (-4,)},
            "preference_annotators",
            "out of range",
            "all_preferences_unprocessed[0].strength",
        ),
        ({"individual": ()}, "preference_annotators", "wrong length", "all_preferences_unprocessed"),
        (
            {"all_preferences_unprocessed": "[{'strength': 1, 'justification': 'So.'}]"},
            "preference_annotators",
            "wrong type",
            "all_preferences_unprocessed",
        ),
    ],
)
def test_malformed_preferences(tmp_path, change, judgements, reason, field):
    with pytest.raises(RecordError) as caught:
        compared(tmp_path, preference(**change), judgements=judgements)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_preferences_have_no_attribute():
    with pytest.raises(
        ValueError, match="attribute must not be given for judgements='preference', got 'verbosity'"
    ):
        HelpSteer2DataModule(attribute="verbosity", judgements="preference")


def test_preferences_come_from_their_folder_on_the_hub(tmp_path, monkeypatch):
    expected = compared(tmp_path, preference(), preference(split="val"))
    asked = []

    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        return [preference(), preference(split="val")]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = HelpSteer2DataModule(judgements="preference")
    assert examples(data) == expected
    assert asked == [
        ("nvidia/HelpSteer2", {"revision": REVISION, "split": "train", "data_dir": "preference"})
    ]
