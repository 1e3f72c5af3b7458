"""Personalized RewardBench: profile as context, rubric and narrative unread, ties apart; invented rows in the real schema."""

import json

import pytest

from pluralign.datamodules import PersonalizedRewardBenchDataModule, RecordError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SUBSETS = ("Art_and_Entertainment", "Lifestyle_and_Personal_Development", "Society_and_Culture")


def row(name="q1", **changes):
    return {
        "id": name,
        "question": f"What should I plant, {name}?",
        "profile": [
            {"id": "a", "category": "Garden", "text": "How much sun do roses want?"},
            {"id": "b", "category": "Home", "text": "Can I paint a fence blue?"},
        ],
        "rubric_aspects": [{"aspect": "secret aspect", "evidence": "secret evidence", "reason": "secret"}],
        "narrative": "secret narrative",
        "category": "Garden",
        "chosen": "Blue roses.",
        "rejected": "Potatoes.",
        **changes,
    }


def write(folder, rows):
    for subset in SUBSETS:
        (folder / subset).mkdir()
        (folder / subset / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    folder_name = write(folder, [row(f"q{i}") for i in range(3)])
    if bad:
        path = folder / SUBSETS[0] / "test.jsonl"
        path.write_text(path.read_text() + "\n" + json.dumps(row(chosen=3)))
    return PersonalizedRewardBenchDataModule(data_dir=folder_name, **settings)


def module(folder, *rows, **settings):
    return PersonalizedRewardBenchDataModule(data_dir=write(folder, rows), subsets=SUBSETS[2:], **settings)


def test_a_row_is_a_person_and_a_pair(tmp_path):
    (record,) = module(tmp_path, row()).records("test")
    assert record.id == "Society_and_Culture:q1"
    assert record.prompt == "What should I plant, q1?"
    assert [one.text for one in record.responses] == ["Blue roses.", "Potatoes."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.user, comparison.domain) == (0, None, "Society_and_Culture")


@pytest.mark.parametrize("posts", [0, 1, 5])
def test_earlier_posts_stand_before_the_question(tmp_path, posts):
    (record,) = module(tmp_path, row(), profile_posts=posts).records("test")
    texts = [
        "Post 1 (Category: Garden):\nHow much sun do roses want?",
        "Post 2 (Category: Home):\nCan I paint a fence blue?",
    ]
    before = "\n".join(texts[:posts])
    assert record.prompt == (before and f"{before}\n\n") + "What should I plant, q1?"


@pytest.mark.parametrize("source", ["files", "hub"])
@pytest.mark.parametrize("posts", [0, 5])
def test_what_gives_the_answer_away_is_never_read(tmp_path, from_hub, source, posts):
    if source == "hub":
        from_hub([row()])
        data = PersonalizedRewardBenchDataModule(revision=COMMIT, profile_posts=posts)
    else:
        data = module(tmp_path, row(), profile_posts=posts)
    for loaded in data.load("test"):
        assert "secret" not in json.dumps(loaded.fields)
        assert "secret" not in repr(data.to_example(loaded))


def test_ties_are_counted_apart(tmp_path):
    data = PersonalizedRewardBenchDataModule(data_dir=write(tmp_path, [row("1"), row("2")]))
    scores = data.official_scores(
        list(data.records("test")), [[1, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]]
    )
    assert scores.numbers == {
        **dict(zip(SUBSETS, (0.5, 0.5, 1.0), strict=True)),
        "average": 2 / 3,
        **dict(zip((f"{subset} ties" for subset in SUBSETS), (0.5, 0.0, 0.0), strict=True)),
    }


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"question": None}, "missing field", "question"),
        ({"chosen": " "}, "empty response", "responses[0].text"),
        ({"profile": None}, "missing field", "profile"),
        ({"profile": [{"text": "?"}]}, "missing field", "profile[0].category"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    with pytest.raises(RecordError) as caught:
        list(module(tmp_path, row(**changes), profile_posts=1).records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)


def test_the_hub_needs_a_commit(from_hub):
    asked = from_hub([row()])
    data = PersonalizedRewardBenchDataModule(revision=COMMIT, subsets=SUBSETS[:1])
    assert [record.id for record in data.records("test")] == ["Art_and_Entertainment:q1"]
    assert asked == [("QiyaoMa/Personalized-RewardBench", SUBSETS[0], COMMIT, "test", None)]
    with pytest.raises(ValueError, match="revision must be a commit"):
        PersonalizedRewardBenchDataModule(revision="v1")
