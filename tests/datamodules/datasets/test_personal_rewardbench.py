"""PersonalRewardBench: files divide users, a column each user's pairs; invented rows in the real schema."""

import json

import pytest

from pluralign.datamodules import Message, PersonalRewardBenchDataModule, RecordError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def row(user="ann", split="test", question="Tea or coffee?", **changes):
    return {
        "conversation_id": "c1",
        "user_id": user,
        "context": [{"role": "user", "content": question}],
        "chosen": {"content": "Tea.", "role": "model"},
        "rejected": {"content": "Coffee.", "role": "model"},
        "split": split,
        "chosen_score": 80,
        "rejected_score": 20,
        "dataset": "prism",
        "agreement": 0.5,
        **changes,
    }


def write(folder, **files):
    for name in ("train", "validation", "test"):
        lines = files.get(name) or [row(f"{name}-user", split) for split in ("train", "val", "test")]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [
        row(user, split, f"{split} {i}, {user}?")
        for user in ("ann", "bob")
        for split in ("train", "val", "test")
        for i in range(4)
    ]
    settings.pop("validation_share", None)
    others = {"validation": [row("cid", "val", "Now, cid?")], "test": [row("eve", "test", "Now, eve?")]}
    folder_name = write(folder, train=rows + [row(split="other")] * bad, **others)
    return PersonalRewardBenchDataModule(data_dir=folder_name, **settings)


def module(folder, *rows, **settings):
    settings = {"user_files": ("test",), **settings}
    return PersonalRewardBenchDataModule(data_dir=write(folder, test=list(rows)), **settings)


def test_a_row_is_a_pair_of_its_user(tmp_path):
    data = module(tmp_path, row(), row(chosen=[{"content": "Milk.", "role": "assistant"}]))
    first, second = data.records("test")
    assert (first.id, second.id) == ("test:1", "test:2")
    assert first.prompt == (Message("user", "Tea or coffee?"),)
    assert [one.text for one in first.responses] == ["Tea.", "Coffee."]
    assert second.responses[0].text == "Milk."
    (comparison,) = first.comparisons
    assert (comparison.chosen, comparison.user, comparison.domain, comparison.strength) == (
        0,
        "ann",
        None,
        None,
    )


def test_the_column_is_the_split_and_the_file_whose_pairs(tmp_path):
    folder = write(tmp_path)
    data = PersonalRewardBenchDataModule(data_dir=folder)
    users = {split: [r.comparisons[0].user for r in data.records(split)] for split in data.splits}
    everybody = ["train-user", "validation-user", "test-user"]
    assert users == {"train": everybody, "validation": everybody, "test": everybody}
    unseen = PersonalRewardBenchDataModule(data_dir=folder, user_files=("test",))
    assert [record.comparisons[0].user for record in unseen.records("train")] == ["test-user"]


def test_equal_is_wrong_and_users_count_the_same(tmp_path):
    data = module(tmp_path, *[row("ann")] * 3, row("bob"))
    records = list(data.records("test"))
    scores = data.official_scores(records, [[1, 0], [1, 0], [0, 0], [0, 1]])
    assert scores.numbers == pytest.approx({"accuracy": 0.5, "user_accuracy": (2 / 3 + 0) / 2})
    assert scores.items[3] == {"id": "test:4", "user": "bob", "chosen": 0, "rejected": 1, "score": 0}


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"context": []}, "empty prompt", "context"),
        ({"user_id": " "}, "missing field", "user_id"),
        ({"chosen": []}, "wrong length", "chosen"),
        ({"rejected": {"content": "", "role": "model"}}, "empty response", "responses[1].text"),
        ({"context": [{"role": "judge", "content": "Hm."}]}, "out of range", "context[0].role"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    with pytest.raises(RecordError) as caught:
        list(module(tmp_path, row(**changes)).records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)


def test_a_row_of_no_split_is_an_error_of_training(tmp_path):
    data = module(tmp_path, row(split="validation"), row())
    assert len(list(data.records("test"))) == 1
    with pytest.raises(RecordError, match=r"'split' is 'validation'; allowed: train \| val \| test"):
        list(data.records("train"))


def test_the_hub_needs_a_commit(tmp_path, from_hub):
    asked = from_hub([row()])
    data = PersonalRewardBenchDataModule(release="chatbot_arena", revision=COMMIT, user_files=("validation",))
    assert [record.id for record in data.records("test")] == ["validation:1"]
    name = "MichaelR207/chatbot_arena_personalized_0125"
    assert asked == [(name, COMMIT, "validation", None)]
    assert data.settings()["hub"] == f"{name}@{COMMIT}"
    with pytest.raises(ValueError, match=r"revision must be a commit of .*prism.*; got 'main'"):
        PersonalRewardBenchDataModule(revision="main")
    with pytest.raises(ValueError, match="two sources, give one"):
        PersonalRewardBenchDataModule(revision=COMMIT, data_dir=str(tmp_path))
