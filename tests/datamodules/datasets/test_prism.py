"""PRISM: a turn is one record; choices, ratings, later turns, splits; invented conversations in the real schema."""

import gzip
import json
import math

import pytest

from pluralign.datamodules import LoaderConfig, Message, RecordError
from pluralign.datamodules.datasets.prism import PRISMDataModule
from pluralign.datamodules.records import PERCENT, hash_split


def utterance(place=0, response="Tea.", score=80, chosen=False, conversation="c0", turn=0, **changes):
    return {
        "utterance_id": "ut0",
        "interaction_id": "int0",
        "conversation_id": conversation,
        "user_id": "user0",
        "turn": turn,
        "within_turn_id": place,
        "conversation_type": "unguided",
        "user_prompt": "What should I drink?" if turn == 0 else f"And then, {turn}?",
        "model_response": response,
        "model_name": "m",
        "model_provider": "p",
        "score": score,
        "if_chosen": chosen,
    } | changes


OPENING = [
    utterance(0, "Tea.", 70),
    utterance(1, " Coffee.\n", 90, True),
    utterance(2, "Water.", 70),
    utterance(3, "Milk.", 95),
]
LATER = [
    utterance(0, "Cake.", 40, turn=1),
    utterance(1, "Bread.", 60, True, turn=1),
    utterance(1, "Nap.", 10, turn=2),
    utterance(0, "Walk.", 100, True, turn=2),
]


def write(folder, rows):
    (folder / "utterances.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def module(folder, **kwargs):
    return PRISMDataModule(data_dir=str(folder), **kwargs)


def rows(data, source="train"):
    return [row if isinstance(row, RecordError) else data.to_example(row) for row in data.load(source)]


def pairs(record):
    return [(c.chosen, c.rejected, c.preference, c.strength) for c in record.comparisons]


@pytest.fixture
def all_train(monkeypatch):
    monkeypatch.setattr("pluralign.datamodules.datasets.prism.hash_split", lambda *key: "train")


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [one | {"conversation_id": f"c{i}", "user_prompt": f"Q{i}?"} for i in range(60) for one in OPENING]
    return module(write(folder, rows + [utterance(9, score=101)] * bad), **settings)


@pytest.mark.usefixtures("all_train")
def test_an_opening_is_one_record(tmp_path):
    (record,) = rows(module(write(tmp_path, OPENING[::-1] + LATER)))
    assert (record.id, record.group) == ("c0:0", "What should I drink?")
    assert record.prompt == (Message("user", "What should I drink?"),)
    assert [(one.text, one.score) for one in record.responses] == [
        ("Tea.", 0.7),
        ("Coffee.", 0.9),
        ("Water.", 0.7),
        ("Milk.", 0.95),
    ]
    assert pairs(record) == [(1, 0, 1.0, 0.2), (1, 2, 1.0, 0.2), (1, 3, 1.0, -0.05)]
    assert {(c.user, c.domain) for c in record.comparisons} == {("user0", "unguided")}


@pytest.mark.usefixtures("all_train")
def test_every_two_responses_by_score(tmp_path):
    (record,) = rows(module(write(tmp_path, OPENING), pairs="scores"))
    assert pairs(record) == [
        (3, 1, 1.0, 0.05),
        (3, 0, 1.0, 0.25),
        (3, 2, 1.0, 0.25),
        (1, 0, 1.0, 0.2),
        (1, 2, 1.0, 0.2),
        (0, 2, 0.5, 0.0),
    ]


@pytest.mark.usefixtures("all_train")
def test_later_turns_follow_what_was_chosen(tmp_path):
    first, second, third = rows(module(write(tmp_path, OPENING + LATER), turns="all"))
    assert len(first.prompt) == 1
    assert second.id == "c0:1"
    assert second.prompt == (
        Message("user", "What should I drink?"),
        Message("assistant", "Coffee."),
        Message("user", "And then, 1?"),
    )
    assert [response.text for response in second.responses] == ["Cake.", "Bread."]
    assert pairs(second) == [(1, 0, 1.0, 0.2)]
    assert third.prompt[3:] == (Message("assistant", "Bread."), Message("user", "And then, 2?"))
    assert [response.text for response in third.responses] == ["Walk.", "Nap."]
    assert {record.group for record in (first, second, third)} == {"What should I drink?"}


@pytest.mark.usefixtures("all_train")
def test_two_chosen_responses_of_the_same_text(tmp_path):
    same = [utterance(0, "Yes.", 50, True), utterance(1, "Yes.", 50, True), utterance(2, "No.", 20)]
    (record,) = rows(module(write(tmp_path, same)))
    assert pairs(record) == [(0, 1, 1.0, 0.0), (0, 2, 1.0, 0.3)]
    folder = write(
        tmp_path,
        [*same, utterance(0, conversation="c1", chosen=True), utterance(1, "B", 1, conversation="c1")],
    )
    tokenised = module(folder).tokenizer([record])[0]
    assert tokenised.dropped == {"comparison of identical responses": 1}


@pytest.mark.usefixtures("all_train")
def test_a_single_response_is_a_rating_alone(tmp_path):
    (record,) = rows(module(write(tmp_path, [utterance(chosen=True)])))
    assert (record.responses[0].score, record.comparisons) == (0.8, ())


@pytest.mark.usefixtures("all_train")
def test_users_may_be_numbers_or_any_text(tmp_path):
    names = ["ann.b", "ünï ✓", 7, "None"]
    found = [
        utterance(place, f"{place}", 9, place == 0, conversation=f"c{i}", user_id=name)
        for i, name in enumerate(names)
        for place in range(2)
    ]
    assert [record.comparisons[0].user for record in rows(module(write(tmp_path, found)))] == [
        *map(str, names)
    ]


def test_equal_openings_stay_together(tmp_path):
    found = [
        utterance(place, f"{place}", 9, place == 0, f"c{i}", user_prompt=f"Q{i % 100}?", user_id=f"u{i % 9}")
        for i in range(200)
        for place in range(2)
    ]
    data = module(write(tmp_path, found))
    records = {source: rows(data, source) for source in data.sources}
    assert {source: len(of) for source, of in records.items()} == {"train": 160, "validation": 24, "test": 16}
    assert all(hash_split(record.group, PERCENT) == source for source, of in records.items() for record in of)
    data.setup()
    assert data.reports["test"].in_train == data.reports["validation"].in_train == 0
    assert data.users == [f"u{i}" for i in range(9)]


def test_batches_name_users_and_kinds(tmp_path):
    prompts = {}
    for i in range(100):
        prompts.setdefault(hash_split(f"Q{i}?", PERCENT), f"Q{i}?")
    kinds = {"train": "unguided", "validation": "values guided", "test": "unguided"}
    found = [
        one
        | {
            "conversation_id": source,
            "user_prompt": prompt,
            "conversation_type": kinds[source],
            "user_id": user,
        }
        for (source, prompt), user in zip(sorted(prompts.items()), ("new", "ann", "new"), strict=True)
        for one in OPENING
    ]
    assert [one["conversation_id"] for one in found[::4]] == ["test", "train", "validation"]
    data = module(write(tmp_path, found), pairs="scores", loader=LoaderConfig(shuffle=False))
    data.setup()
    assert (data.users, data.num_training_users, data.domains) == (["ann", "new"], 1, ["unguided"])
    (train,), (test,) = data.train_dataloader(), data.test_dataloader()
    (validation,) = data.val_dataloader()
    assert train["comparisons"].tolist() == [[3, 1], [3, 0], [3, 2], [1, 0], [1, 2], [0, 2]]
    assert train["preference"].tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    assert train["user_id"].tolist() == [0] * 6
    assert test["user_id"].tolist() == [1] * 6
    assert (test["domain_id"].tolist(), validation["domain_id"].tolist()) == ([0] * 6, [-1] * 6)
    assert train["score"].tolist() == pytest.approx([0.7, 0.9, 0.7, 0.95])
    assert train["strength"].tolist() == pytest.approx([0.05, 0.25, 0.25, 0.2, 0.2, 0.0])


# Errors -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_train")
@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"model_response": "EMPTY STRING"}, "empty response", "model_response"),
        ({"model_response": " "}, "empty response", "model_response"),
        ({"model_response": None}, "missing field", "model_response"),
        ({"user_prompt": "EMPTY STRING"}, "empty prompt", "user_prompt"),
        ({"user_prompt": 3}, "wrong type", "user_prompt"),
        ({"score": 0}, "out of range", "score"),
        ({"score": 101}, "out of range", "score"),
        ({"score": math.nan}, "not finite", "score"),
        ({"score": "80"}, "wrong type", "score"),
        ({"if_chosen": 1}, "wrong type", "if_chosen"),
        ({"turn": -1}, "out of range", "turn"),
        ({"turn": 0.5}, "wrong type", "turn"),
        ({"within_turn_id": None}, "missing field", "within_turn_id"),
        ({"user_id": None}, "missing field", "user_id"),
        ({"user_id": True}, "wrong type", "user_id"),
        ({"user_id": ""}, "missing field", "user_id"),
        ({"conversation_id": None}, "missing field", "conversation_id"),
        ({"conversation_type": None}, "missing field", "conversation_type"),
    ],
)
def test_a_malformed_utterance_is_named_and_the_others_stay(tmp_path, changes, reason, field):
    data = module(write(tmp_path, [OPENING[0] | changes, *OPENING[1:]]))
    error, record = rows(data)
    assert (error.reason, error.field, error.line) == (reason, field, 1)
    assert error.file.endswith("utterances.jsonl")
    assert [response.text for response in record.responses] == ["Coffee.", "Water.", "Milk."]


def test_errors_are_named_once(tmp_path):
    data = module(write(tmp_path, [OPENING[0] | {"score": 0}, {"turn": 0}, *OPENING[1:]]))
    errors = [row for source in data.sources for row in rows(data, source) if isinstance(row, RecordError)]
    assert [(error.reason, error.field) for error in errors] == [
        ("out of range", "score"),
        ("missing field", "user_prompt"),
    ]


@pytest.mark.usefixtures("all_train")
@pytest.mark.parametrize(
    ("number", "changes", "reason", "field"),
    [
        (1, {"if_chosen": False}, "no single choice", "if_chosen"),
        (0, {"if_chosen": True}, "no single choice", "if_chosen"),
        (2, {"user_prompt": "Else?"}, "turn of two prompts", "user_prompt"),
        (2, {"within_turn_id": 0}, "duplicate response", "within_turn_id"),
        (2, {"user_id": "other"}, "conversation of two users", "user_id"),
    ],
)
def test_nothing_follows_a_malformed_turn(tmp_path, number, changes, reason, field):
    opening = [one | changes if i == number else one for i, one in enumerate(OPENING)]
    errors = rows(module(write(tmp_path, opening + LATER), turns="all"))
    assert [(error.reason, error.field, error.line) for error in errors] == [
        (reason, field, 1),
        ("broken conversation", "turn", 5),
        ("broken conversation", "turn", 8),
    ]


@pytest.mark.usefixtures("all_train")
def test_turns_without_a_choice_still_have_scores(tmp_path):
    nobody = [one | {"if_chosen": False} for one in OPENING]
    record, *errors = rows(module(write(tmp_path, nobody + LATER), turns="all", pairs="scores"))
    assert len(record.comparisons) == 6
    assert [error.reason for error in errors] == ["broken conversation"] * 2


@pytest.mark.usefixtures("all_train")
def test_a_turn_that_is_missing(tmp_path):
    first, error = rows(module(write(tmp_path, OPENING + LATER[2:]), turns="all"))
    assert first.id == "c0:0"
    assert (error.reason, error.value, error.line) == ("broken conversation", 2, 6)
    assert rows(module(write(tmp_path, LATER), turns="first")) == []
    assert [row.reason for row in rows(module(tmp_path, turns="all"))] == ["broken conversation"] * 2


def test_wrong_arguments(tmp_path):
    for name in ("turns", "pairs"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'x'"):
            module(tmp_path, **{name: "x"})
    with pytest.raises(ValueError, match="on_invalid"):
        module(tmp_path, on_invalid="x")
    with pytest.raises(FileNotFoundError, match=r"utterances\.jsonl"):
        module(tmp_path).files("train")


@pytest.mark.usefixtures("all_train")
def test_the_file_may_be_compressed(tmp_path):
    path = tmp_path / "utterances.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, OPENING)).encode()))
    assert module(tmp_path).files("test") == [path]
    assert len(rows(module(tmp_path))) == 1


@pytest.mark.usefixtures("all_train")
def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [*OPENING, utterance(score=None)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = PRISMDataModule()
    error, record = rows(data)
    assert len(record.comparisons) == 3
    revision = "18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6"
    assert (error.file, error.line) == ("HannahRoseKirk/prism-alignment@18ab5cfb3745/utterances[train]", 5)
    assert asked == [
        (
            ("HannahRoseKirk/prism-alignment", "utterances"),
            {"revision": revision, "split": "train", "data_dir": None},
        )
    ]
    assert data.files("train") == []
    assert data.settings() == {
        "hub": f"HannahRoseKirk/prism-alignment@{revision}",
        "turns": "first",
        "pairs": "chosen",
    }
