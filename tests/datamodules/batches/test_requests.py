"""Whose reward is asked for: a response is scored once, for however many users, and everybody's request points at it."""

import json
import pickle

import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.datamodules.batches import FeatureWriter, RequestView, requests
from pluralign.datamodules.columns import take_responses, with_requests
from pluralign.inference.embedding import embed_features

pytestmark = pytest.mark.filterwarnings("ignore:local validation. .* records share a prompt")

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
TRAIN = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "user": user, "domain": "d"} for user in ("zed", "bob")
]
NEW = [
    {"id": "1", "prompt": "why", "response": "so", "user": "ann"},
    {"id": "2", "prompt": "how", "response": "ab", "user": "bob", "domain": "d"},
    {"id": "3", "prompt": "why", "response": "so", "user": "bob"},
    {"id": "4", "prompt": "why", "response": "so"},
    {
        "id": "5",
        "prompt": "who",
        "responses": [{"text": "b", "user": "cy"}, "me", "b"],
        "user": "ann",
        "comparisons": [[1, 2]],
    },
]


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ready(folder, rows=NEW, train=TRAIN, stage="predict", **loader):
    loader = LoaderConfig(**{"batch_size": 10, **loader})
    files = {"predict": save(folder / "new.jsonl", rows)} if rows else {}
    if train:
        files["train"] = files["validation"] = save(folder / "train.jsonl", train)
    data = LocalDataModule(**files, text=TEXT, loader=loader)
    data.setup(stage)
    return data


def asked(data, batch):
    """User, domain and index of the scored response of each request, by record and place."""
    columns = zip(
        batch["request_prompt"].tolist(),
        batch["request_index"].tolist(),
        batch["request_user_id"].tolist(),
        batch["request_domain_id"].tolist(),
        batch["request_response"].tolist(),
        strict=True,
    )
    return {
        (batch["id"][n], place): (
            None if user < 0 else data.users[user],
            None if domain < 0 else data.domains[domain],
            response,
        )
        for n, place, user, domain, response in columns
    }


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_equal_responses_are_scored_once_for_everybody(tmp_path, layout):
    data = ready(tmp_path, layout=layout)
    (batch,) = data.predict_dataloader()
    requests = asked(data, batch)
    assert {name: both[:2] for name, both in requests.items()} == {
        ("1", 0): ("ann", None),
        ("2", 0): ("bob", "d"),
        ("3", 0): ("bob", None),
        ("4", 0): (None, None),
        ("5", 0): ("cy", None),
        ("5", 1): ("ann", None),
        ("5", 2): ("ann", None),
    }
    assert len(batch["response_row"]) == 4, "why-so, how-ab, who-b, who-me"
    assert requests["1", 0][2] == requests["3", 0][2] == requests["4", 0][2] != requests["2", 0][2]
    assert requests["5", 0][2] == requests["5", 2][2] != requests["5", 1][2]
    (pair,), (record,) = batch["comparisons"].tolist(), batch["comparison_prompt"].tolist()
    assert pair == [requests["5", 1][2], requests["5", 2][2]] and batch["id"][record] == "5"
    for key in ("response_prompt", "request_prompt", "response_row"):
        assert batch[key].tolist() == sorted(batch[key].tolist()), key
    assert all(
        torch.equal(batch[key], other)
        for key, other in pickle.loads(pickle.dumps(dict(batch))).items()
        if isinstance(other, torch.Tensor)
    )


def test_everything_asked_for_comes_once_whatever_the_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "LARGEST", 3)
    rows = [
        {"id": f"{i}-{j}", "prompt": "why" * (1 + i % 2), "response": f"answer {i}", "user": f"u{j}"}
        for j in range(7)
        for i in range(5)
    ]
    rows.append({"id": "domain", "prompt": "who", "response": "me", "domain": "d"})
    data = ready(tmp_path, rows, batch_size=2)
    batches = list(data.predict_dataloader())
    found = {}
    for batch in batches:
        found |= asked(data, batch)
        assert len(batch["response_row"]) <= 2 and len(batch["id"]) <= 2 * 3
    assert found.pop(("domain", 0))[:2] == (None, "d")
    assert found.keys() == {(row["id"], 0) for row in rows[:-1]}
    assert {name: user for (name, _), (user, _, _) in found.items()} == {
        row["id"]: row["user"] for row in rows[:-1]
    }
    assert sum(len(batch["response_row"]) for batch in batches) <= 5 * 3 + 1
    assert len(data.rows("predict")) == 5 * 3 + 1, "seven are two of three and one"


def test_features_are_merged_as_tokens_are(tmp_path):
    data = ready(tmp_path)
    writer = FeatureWriter(
        tmp_path / "store", backbone={}, text_format=data.text_format(), hidden_size=2, prompts=True
    )
    encode = lambda batch: torch.arange(2.0 * len(batch["response_row"])).view(-1, 2)
    list(embed_features(data, encode, writer, layout="shared"))
    (tokens,) = data.predict_dataloader()
    (features,) = ready(tmp_path, features=str(tmp_path / "store")).predict_dataloader()
    for key in ("response_prompt", "request_response", "request_prompt", "request_index", "comparisons"):
        assert torch.equal(tokens[key], features[key]), key
    assert features["features"].shape == (4, 2) and features["prompt_features"].shape == (5, 2)


def test_judged_responses_stay_apart(tmp_path):
    rows = [{**row, "score": i} for i, row in enumerate(NEW[:4])]
    (batch,) = ready(tmp_path, rows).predict_dataloader()
    assert len(batch["response_row"]) == 4
    assert sorted(batch["score"].tolist()) == [0, 1, 2, 3]


def test_only_the_predict_split_asks(tmp_path):
    rated = [{"prompt": "q", "response": "a", "score": 1, "user": "eve"}]
    data = ready(tmp_path, train=[*TRAIN, *rated], stage="fit")
    data.setup("predict")
    assert data.users[: data.num_training_users] == ["bob", "zed"], "a rating's user trains nobody"
    assert data.users == ["bob", "zed", "ann", "cy"] and data.requested_users("predict") == [
        "ann",
        "bob",
        "cy",
    ]
    assert "1 user or domain of a response, which the predict split alone reads" in str(data.reports["train"])
    assert data.requested_users("train") == []
    (batch,) = data.train_dataloader()
    assert not [key for key in batch if key.startswith("request")] and "comparison_prompt" not in batch
    assert isinstance(data.rows("predict"), RequestView) and not isinstance(data.rows("train"), RequestView)


def test_without_users_nothing_is_asked(tmp_path):
    rows = [
        {key: value for key, value in row.items() if key in ("id", "prompt", "response")} for row in NEW[:4]
    ]
    data = ready(tmp_path, rows, train=None)
    (batch,) = data.predict_dataloader()
    assert not [key for key in batch if key.startswith("request")] and len(batch["response_row"]) == 4
    assert data.requested_users("predict") == []
    asking = with_requests(batch)
    assert asking["request_response"].tolist() == [0, 1, 2, 3] and with_requests(asking) is asking
    assert torch.equal(asking["request_prompt"], batch["response_prompt"]) and "request_prompt" not in batch
    nameless = {"features": torch.zeros(2, 2)}
    assert with_requests(nameless) is nameless


def test_requests_go_with_their_response(tmp_path):
    data = ready(tmp_path)
    (batch,) = data.predict_dataloader()
    before = asked(data, batch)
    gone = before["1", 0][2]
    kept = take_responses(batch, torch.arange(4) != gone)
    after = asked(data, kept)
    assert after.keys() == before.keys() - {("1", 0), ("3", 0), ("4", 0)}
    for name, (user, domain, response) in after.items():
        old = before[name]
        assert (user, domain) == old[:2] and response == old[2] - (old[2] > gone)


def test_given_is_what_the_file_says_in_its_order(tmp_path):
    broken = {"id": "x", "prompt": "p"}
    path = save(tmp_path / "new.jsonl", [NEW[4], broken, NEW[1]])
    data = LocalDataModule(predict=path, text=TEXT, on_invalid="skip")
    data.setup("predict")
    last, first = data.given("predict")
    assert (last.id, first.id) == ("5", "2") and first.place.endswith("new.jsonl:3")
    assert [tuple(response) for response in last.responses] == [
        ("b", "cy", None),
        ("me", "ann", None),
        ("b", "ann", None),
    ]
    assert [tuple(response) for response in first.responses] == [("ab", "bob", "d")]
    assert last.judges == [("ann", None)] and first.judges == [] and first.prompt == "how"


@pytest.mark.parametrize(
    "change", [{"user": 1.5}, {"responses": [{"text": "a", "user": ["b"]}], "response": None}]
)
def test_a_user_that_is_no_name_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match=r"new\.jsonl:1: wrong type: field '(responses\[0\]\.)?user' is"):
        ready(tmp_path, [{**NEW[0], **change}])
