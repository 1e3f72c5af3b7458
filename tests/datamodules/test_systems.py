"""Who wrote a response: from rows to batches, also where rows are merged, filtered or asked for."""

import json

import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, RecordError, TextConfig
from pluralign.datamodules.columns import column, take_responses

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
WHY = "why is the sea salt and the lake not"


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(chosen, rejected, systems=None, **more):
    written = {} if systems is None else {"systems": systems}
    return {"prompt": WHY, "chosen": chosen, "rejected": rejected, **written, **more}


def ready(folder, rows, split="test", **settings):
    files = {split: save(folder / f"{split}.jsonl", rows)}
    data = LocalDataModule(**files, text=TEXT, loader=LoaderConfig(batch_size=99), **settings)
    data.setup("predict" if split == "predict" else "test")
    return data


def batch_of(data, split="test"):
    (batch,) = data.batches(split)
    return batch


def written(data, batch):
    """Text and system of every response."""
    names = [None if i < 0 else data.names["system"][i] for i in batch["system_id"].tolist()]
    ends = batch["response_end"].tolist()
    starts = [end - length + 1 for end, length in zip(ends, batch["response_length"].tolist(), strict=True)]
    rows = batch["response_row"].tolist()
    texts = [
        data.tokenizer.tokenizer.decode(batch["input_ids"][row, start:end])
        for row, start, end in zip(rows, starts, ends, strict=True)
    ]
    return list(zip(texts, names, strict=True))


ROWS = [
    {"id": "a", "prompt": "p", "responses": ["x", "y", "z"], "systems": ["owl", None, "ann"]},
    {"id": "b", "prompt": "q", "responses": [{"text": "x", "system": "bee"}, "y"]},
    {"id": "c", "prompt": "r", "responses": ["x", "y"]},
]


def test_a_system_for_each_response(tmp_path):
    rows = [{**row, "comparisons": [[0, 1]]} for row in ROWS]
    data = ready(tmp_path, rows)
    assert data.names["system"] == ["ann", "bee", "owl"] and data.state_dict()["names"]["system"]
    batch = batch_of(data)
    order = [
        place for name in "abc" for place in (batch["response_prompt"] == batch["id"].index(name)).nonzero()
    ]
    assert batch["system_id"].dtype == torch.int64
    assert torch.cat(order).tolist() and batch["system_id"][torch.cat(order)].tolist() == [
        2,
        -1,
        0,
        1,
        -1,
        -1,
        -1,
    ]
    keep = batch["system_id"] >= 0
    assert (take_responses(batch, keep)["system_id"] == batch["system_id"][keep]).all()
    assert column("system_id").stored == "system" and column("system_id").item == "response"


def test_indices_keep_their_meaning(tmp_path):
    before = ready(tmp_path, [pair("a", "b", ["owl", "bee"])])
    later = LocalDataModule(test=save(tmp_path / "new.jsonl", [pair("a", "b", ["ant", "owl"])]), text=TEXT)
    later.load_state_dict(before.state_dict())
    later.setup("test")
    assert later.names["system"] == ["bee", "owl", "ant"]
    old = before.state_dict()
    del old["names"]["system"]  # a run from before the column
    restored = LocalDataModule(test=str(tmp_path / "test.jsonl"), text=TEXT)
    restored.load_state_dict(old)
    restored.setup("test")
    assert restored.names["system"] == ["bee", "owl"]


def test_data_without_systems_have_no_column(tmp_path):
    data = ready(tmp_path, [pair("a", "b")])
    assert "system_id" not in batch_of(data) and data.names["system"] == []


@pytest.mark.parametrize(
    ("shape", "judged"),
    [
        ({"chosen": "a", "rejected": "b"}, {}),
        ({"first": "a", "second": "b"}, {"winner": "B"}),
        ({"responses": ["a", "b"]}, {"comparisons": [[0, 1]]}),
    ],
)
def test_both_sides_of_a_pair_in_every_shape(tmp_path, shape, judged):
    data = ready(tmp_path, [{"prompt": "p", **shape, **judged, "systems": ["owl", 7]}])
    assert written(data, batch_of(data)) == [("a", "owl"), ("b", "7")]
    with pytest.raises(RecordError, match=r"'systems'.* allowed: a list of 2"):
        bad = LocalDataModule(
            test=save(tmp_path / "bad.jsonl", [{"prompt": "p", **shape, **judged, "systems": ["owl"]}]),
            text=TEXT,
        )
        bad.setup("test")


def test_the_column_of_one_response_is_named(tmp_path):
    row = {"prompt": "p", "response": "a", "score": 1, "system": "owl"}
    with pytest.warns(UserWarning, match="no field reads these columns .*: system"):
        unread = ready(tmp_path, [row])  # it may well be the system's prompt
    assert "system_id" not in batch_of(unread)
    named = ready(tmp_path, [row], columns={"system": "system"})
    assert written(named, batch_of(named)) == [("a", "owl")]


# Equal texts ---------------------------------------------------------------------------------------------


def test_equal_texts_of_two_systems_stay_two_responses(tmp_path):
    rows = [
        pair("salt rivers", "nobody knows", ["owl", "bee"], user="ann"),
        pair("nobody knows", "salt rivers", ["ant", "owl"], user="bob"),
        pair("nobody knows", "salt rivers", ["bee", "owl"], user="cy"),
        pair("nobody knows", "salt rivers", user="dan"),
    ]
    data = ready(tmp_path, rows)
    batch = batch_of(data)
    assert batch["record_key"].shape == (1,), "one record of one prompt"
    assert written(data, batch) == [
        ("salt rivers", "owl"),
        ("nobody knows", "bee"),
        ("nobody knows", "ant"),
        ("nobody knows", None),
        ("salt rivers", None),
    ]
    assert batch["comparisons"].tolist() == [[0, 1], [2, 0], [1, 0], [3, 4]]


def test_equal_texts_of_nobody_in_particular_become_one(tmp_path):
    rows = [pair("salt rivers", "nobody knows", user="ann"), pair("nobody knows", "salt rivers", user="bob")]
    batch = batch_of(ready(tmp_path, rows))
    assert batch["comparisons"].tolist() == [[0, 1], [1, 0]]


def test_requests_for_equal_texts_of_two_systems(tmp_path):
    def row(user, *systems):
        return {"prompt": "p", "responses": ["same", "same", "other"], "systems": systems, "user": user}

    rows = [row("ann", "owl", "bee", "owl"), row("bob", "owl", "bee", "owl"), row("cy", "owl", "owl", "owl")]
    data = ready(tmp_path, rows, "predict")
    batch = batch_of(data, "predict")
    assert written(data, batch) == [
        ("same", "owl"),
        ("same", "bee"),
        ("other", "owl"),
        ("same", "owl"),
        ("other", "owl"),
    ]
    assert batch["request_response"].tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 4]
