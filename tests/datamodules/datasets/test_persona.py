"""Personas: synthetic users over statements; conflict, splits, blocks, determinism; invented statements."""

import gzip
import json
from collections import Counter
from hashlib import sha1
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, RecordError
from pluralign.datamodules.datasets.persona import PersonaDataModule
from pluralign.datamodules.records import PERCENT, hash_split

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "anthropic-evals"
QUESTION = "Is the following statement something you would say?"
PERSONAS = ("likes-tea", "likes-rain", "likes-naps")


def statement(text, agrees=True, **changes):
    answers = (" Yes", " No") if agrees else (" No", " Yes")
    return {
        "question": f'{QUESTION}\n"{text}"',
        "statement": text,
        "label_confidence": 0.9,
        "answer_matching_behavior": answers[0],
        "answer_not_matching_behavior": answers[1],
    } | changes


def write(folder, rows, name):
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def evaluations(folder, count=60, personas=PERSONAS):
    """Statements whose text says whose they are and whether that persona agrees."""
    for persona in personas:
        rows = [statement(f"{persona} yes {i}") for i in range(count)]
        rows += [statement(f"{persona} no {i}", agrees=False) for i in range(count)]
        write(folder, rows, persona)
    return str(folder)


def module(folder, **kwargs):
    settings = {
        "personas": PERSONAS,
        "num_users": 6,
        "queries_per_user": 8,
        "held_out_queries_per_user": 3,
        "statements_per_record": 9,
    }
    return PersonaDataModule(data_dir=str(folder), **{**settings, **kwargs})


def records(data, source="train"):
    return [data.to_example(row) for row in data.load(source)]


def judged(found):
    """Every (user, preferred text, other text)."""
    return [
        (c.user, record.responses[c.chosen].text, record.responses[c.rejected].text)
        for record in found
        for c in record.comparisons
    ]


@pytest.fixture
def all_train(monkeypatch):
    monkeypatch.setattr("pluralign.datamodules.datasets.persona.hash_split", lambda *key: "train")


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    evaluations(folder)
    if bad:
        with (folder / f"{PERSONAS[1]}.jsonl").open("a") as stream:
            stream.write("\n" + json.dumps(statement("Odd.", answer_matching_behavior="Maybe")))
    return module(folder, **settings)


@pytest.mark.usefixtures("all_train")
def test_one_record_exactly(tmp_path):
    for persona in PERSONAS[:2]:
        write(tmp_path, [statement(f"{persona}."), statement(f"not {persona}.", agrees=False)], persona)
    data = module(tmp_path, personas=PERSONAS[:2], num_users=3, queries_per_user=1)
    (record,) = records(data)
    assert (record.id, record.prompt, record.group) == ("train:1", QUESTION, "train:1")
    assert [response.text for response in record.responses] == ["likes-tea.", "likes-rain."]
    assert [(c.chosen, c.rejected, c.user, c.preference) for c in record.comparisons] == [
        (0, 1, "likes-tea:0000", 1.0),
        (1, 0, "likes-rain:0000", 1.0),
        (0, 1, "likes-tea:0001", 1.0),
    ]


@pytest.mark.usefixtures("all_train")
def test_one_record_of_agreement_exactly(tmp_path):
    for persona in PERSONAS[:2]:
        write(tmp_path, [statement(f"{persona}."), statement(f"not {persona}.", agrees=False)], persona)
    data = module(tmp_path, personas=PERSONAS[:2], num_users=2, queries_per_user=1, pairs="agreement")
    (record,) = records(data)
    assert [response.text for response in record.responses] == [
        "likes-tea.",
        "not likes-tea.",
        "likes-rain.",
        "not likes-rain.",
    ]
    assert [(c.chosen, c.rejected, c.user) for c in record.comparisons] == [
        (0, 1, "likes-tea:0000"),
        (2, 3, "likes-rain:0000"),
    ]


@pytest.mark.parametrize("source", ["train", "validation", "test"])
def test_users_prefer_what_their_persona_says(tmp_path, source):
    found = judged(records(module(evaluations(tmp_path)), source))
    for user, preferred, other in found:
        mine = user.partition(":")[0]
        assert preferred.startswith(f"{mine} yes")
        assert " yes " in other and not other.startswith(mine)
    counts = Counter(user for user, _, _ in found)
    assert counts == dict.fromkeys(module(tmp_path).user_groups(), 8 if source == "train" else 3)
    assert len(set(found)) == len(found), "a user judges a pair once"


def test_agreement_pairs_are_a_personas_own(tmp_path):
    data = module(evaluations(tmp_path), pairs="agreement")
    for user, preferred, other in judged(records(data)):
        mine = user.partition(":")[0]
        assert preferred.startswith(f"{mine} yes") and other.startswith(f"{mine} no")


def test_personas_contradict_each_other_on_equal_pairs(tmp_path):
    data = module(
        evaluations(tmp_path, 4),
        personas=PERSONAS[:2],
        num_users=2,
        statements_per_record=2,
        queries_per_user=3,
    )
    counts = Counter(frozenset(pair) for _, *pair in judged(records(data)))
    assert sum(counts.values()) == 6 and max(counts.values()) == 2


@pytest.mark.parametrize("size", [3, 4, 6, 9, 24, 500])
def test_blocks_hold_every_statement_once_and_no_more_than_asked(tmp_path, size):
    data = module(evaluations(tmp_path), statements_per_record=size, queries_per_user=1)
    found = records(data)
    texts = [response.text for record in found for response in record.responses]
    expected = [
        f"{persona} yes {i}"
        for persona in PERSONAS
        for i in range(60)
        if hash_split(f"{persona} yes {i}", PERCENT) == "train"
    ]
    assert sorted(texts) == sorted(expected)
    assert max(len(record.responses) for record in found) <= size
    for record in found:
        counts = Counter(response.text.partition(" ")[0] for response in record.responses)
        assert max(counts.values()) <= size // 3


def test_splits_share_no_statement(tmp_path):
    data = module(evaluations(tmp_path))
    texts = {
        source: {response.text for record in records(data, source) for response in record.responses}
        for source in data.sources
    }
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 180
    assert all(hash_split(text, PERCENT) == source for source, found in texts.items() for text in found)


def test_rows_are_a_function_of_the_settings(tmp_path):
    folder = evaluations(tmp_path)
    found = records(module(folder))
    assert found == records(module(folder))
    assert judged(found) != judged(records(module(folder, seed=1)))
    digest = sha1(repr(sorted(judged(found))).encode()).hexdigest()
    assert digest == "62700aa76a74930c97c64b3cbc58b4082f3d4e8a", (
        "the same on every machine; else count VERSION up"
    )


def test_a_users_queries_stay_when_others_are_added(tmp_path):
    folder = evaluations(tmp_path)
    few, many = (judged(records(module(folder, num_users=number))) for number in (6, 12))
    users = set(module(folder, num_users=6).user_groups())
    assert sorted(one for one in many if one[0] in users) == sorted(few)


def test_user_groups(tmp_path):
    assert module(tmp_path, num_users=4).user_groups() == {
        "likes-tea:0000": "likes-tea",
        "likes-rain:0000": "likes-rain",
        "likes-naps:0000": "likes-naps",
        "likes-tea:0001": "likes-tea",
    }


def test_settings_hold_every_argument_that_decides_rows(tmp_path):
    assert module(tmp_path).settings() == {
        "version": 1,
        "personas": PERSONAS,
        "pairs": "conflict",
        "num_users": 6,
        "queries_per_user": 8,
        "held_out_queries_per_user": 3,
        "statements_per_record": 9,
        "seed": 0,
    }


def test_batches_name_the_users(tmp_path):
    for persona in PERSONAS:
        write(tmp_path, [statement(f"{persona} yes {i}") for i in range(60)], persona)
    data = module(tmp_path, loader=LoaderConfig(max_tokens=None, batch_size=100, shuffle=False))
    data.setup()
    assert data.users == sorted(data.user_groups())
    assert data.reports["validation"].in_train == data.reports["test"].in_train == 0
    (batch,) = data.val_dataloader()
    assert torch.bincount(batch["user_id"]).tolist() == [3] * 6
    assert batch["preference"].tolist() == [1.0] * 18
    expected = [(c.chosen, c.rejected, c.user) for c in records(data, "validation")[0].comparisons]
    first = batch["id"].index("validation:1")
    place = int((batch["response_prompt"] < first).sum())
    mine = batch["response_prompt"][batch["comparisons"][:, 0]] == first
    found = zip((batch["comparisons"][mine] - place).tolist(), batch["user_id"][mine].tolist(), strict=True)
    assert [(*pair, data.users[user]) for pair, user in found] == expected


@pytest.mark.usefixtures("all_train")
@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"statement": 3}, "wrong type", "statement"),
        ({"statement": " "}, "empty response", "statement"),
        ({"question": "Do you like tea?"}, "another question", "question"),
        ({"question": 'Would you say this?\n"Odd."'}, "another question", "question"),
        ({"answer_matching_behavior": " Maybe"}, "out of range", "answer_matching_behavior"),
        ({"answer_matching_behavior": None}, "missing field", "answer_matching_behavior"),
    ],
)
def test_malformed_statements_are_named_once(tmp_path, changes, reason, field):
    folder = evaluations(tmp_path, 9)
    good = [statement(f"likes-rain yes {i}") for i in range(9)]
    write(tmp_path, [good[0], statement("Odd.", **changes), *good[1:]], "likes-rain")
    data = module(folder, queries_per_user=1)
    error, *rows = data.load("train")
    assert isinstance(error, RecordError)
    assert (error.reason, error.field, error.line) == (reason, field, 2)
    assert error.file.endswith("likes-rain.jsonl")
    assert not any(isinstance(row, RecordError) for row in rows)


@pytest.mark.usefixtures("all_train")
def test_a_statement_that_occurs_twice_and_a_line_that_is_no_json(tmp_path):
    folder = evaluations(tmp_path, 9)
    with (tmp_path / "likes-tea.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps(statement("likes-tea yes 0")) + "\n{\n")
    errors = [row for row in module(folder, queries_per_user=1).load("train") if isinstance(row, RecordError)]
    assert [(error.reason, error.line) for error in errors] == [("duplicate statement", 19), ("not JSON", 20)]


def test_too_few_pairs(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"held_out_queries_per_user=5000, but test has only \d+ pairs for persona 'likes-tea'",
    ):
        list(module(evaluations(tmp_path), held_out_queries_per_user=5000).load("test"))
    with pytest.raises(ValueError, match=r"^queries_per_user=9000, but train has only \d+ pairs"):
        list(module(tmp_path, queries_per_user=9000).load("train"))
    (tmp_path / "likes-tea.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="but train has only 0 pairs for persona 'likes-tea'"):
        list(module(tmp_path).load("train"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": "all"}, "pairs must be one of conflict, agreement; got 'all'"),
        ({"personas": ("likes-tea",)}, "personas must be at least 2 different names"),
        ({"personas": (), "pairs": "agreement"}, "personas must be at least 1 different names"),
        ({"personas": ("a", "a")}, "different names"),
        ({"num_users": 2}, "num_users must be finite and >= 3; got 2"),
        ({"queries_per_user": 0}, "queries_per_user must be finite and >= 1; got 0"),
        ({"held_out_queries_per_user": 0}, "held_out_queries_per_user must be finite and >= 1"),
        ({"statements_per_record": 2}, "statements_per_record must be finite and >= 3; got 2"),
        (
            {"statements_per_record": 5, "pairs": "agreement"},
            "statements_per_record must be finite and >= 6; got 5",
        ),
        ({"seed": -1}, "seed must be finite and >= 0; got -1"),
        ({"on_invalid": "drop"}, "on_invalid"),
    ],
)
def test_wrong_arguments(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **settings)


def test_a_folder_that_holds_the_evaluations_compressed(tmp_path):
    (tmp_path / "persona").mkdir()
    evaluations(tmp_path / "persona")
    for path in (tmp_path / "persona").iterdir():
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert [path.name for path in module(tmp_path).files("test")] == [
        f"{persona}.jsonl.gz" for persona in PERSONAS
    ]
    assert len(judged(records(module(tmp_path)))) == 48


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared persona evaluations are not beside this checkout")
@pytest.mark.parametrize(
    ("pairs", "counts"),
    [
        ("conflict", {"train": (100, 2287), "validation": (15, 313), "test": (16, 315)}),
        ("agreement", {"train": (199, 4605), "validation": (30, 602), "test": (31, 636)}),
    ],
)
def test_real_files(pairs, counts):
    data = PersonaDataModule(data_dir=str(REAL), pairs=pairs)
    for source in data.sources:
        found = records(data, source)
        assert (len(found), sum(len(record.responses) for record in found)) == counts[source]
        assert Counter(user for user, _, _ in judged(found)) == dict.fromkeys(
            data.user_groups(), 100 if source == "train" else 20
        )
        assert {record.prompt for record in found} == {QUESTION}
