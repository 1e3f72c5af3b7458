"""Arena: four releases, winner codes, ties, judges, turns as messages, parts or JSON text; invented rows in the real schemas."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import ArenaDataModule, Message, RecordError
from pluralign.datamodules.records import SourceRow

REVISIONS = {
    "33k": "lmsys/chatbot_arena_conversations@1b6335d42a1d2c7e34870c905d03ab964f7f2bd8",
    "55k": "lmarena-ai/arena-human-preference-55k@18c298340948c0e7f7727399fd459cca6ce0ca6f",
    "100k": "lmarena-ai/arena-human-preference-100k@72e85b3ddc9c81bf7b659d6b03d4126dfd8fb34a",
    "140k": "lmarena-ai/arena-human-preference-140k@6322995ab34d7c2693e3f47dd13fa5caa0789a74",
}
FILES = {
    "33k": "data/train-00000-of-00001-cced8514.parquet",
    "100k": "data/arena-explorer-preference-100k.parquet",
    "140k": "data/train-00000-of-00001.parquet",
}


def talk(*texts, parts=False):
    said = (
        [[{"type": "text", "text": text, "image": None, "mimeType": None}] for text in texts]
        if parts
        else texts
    )
    return [{"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(said)]


def row33(first="Hi", winner="model_a", judge="arena_user_7", a=("Hello.",), b=("Yo.",), **changes):
    return {
        "question_id": "q",
        "model_a": "m1",
        "model_b": "m2",
        "winner": winner,
        "judge": judge,
        "conversation_a": talk(first, *a),
        "conversation_b": talk(first, *b),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.5,
        "openai_moderation": {"flagged": False, "categories": {"hate": False}},
        **changes,
    }


def row100(first="Hi", **changes):
    row = {**row33(first), "judge_hash": "f00", "is_refusal": False, **changes}
    del row["judge"], row["openai_moderation"]
    for side in ("conversation_a", "conversation_b"):
        row[side] = [{**turn, "num_tokens": 3} for turn in row[side]]
    return row


def row140(first="Hi", winner="model_b", session="s1", order=1, a=("Hello.",), b=("Yo.",), **changes):
    return {
        "id": "0a1b",
        "model_a": "m1",
        "model_b": "m2",
        "winner": winner,
        "evaluation_session_id": session,
        "evaluation_order": order,
        "conversation_a": talk(first, *a, parts=True),
        "conversation_b": talk(first, *b, parts=True),
        "full_conversation": [{"user": talk(first, parts=True)[0]}],
        "language": "en",
        "is_code": False,
        **changes,
    }


def row55(prompt=("Hi",), a=("Hello.",), b=("Yo.",), flags=(1, 0, 0), **changes):
    return {
        "id": 30192,
        "model_a": "m1",
        "model_b": "m2",
        "prompt": json.dumps(list(prompt)),
        "response_a": json.dumps(list(a)),
        "response_b": json.dumps(list(b)),
        **dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), flags, strict=True)),
        **changes,
    }


def write(folder, rows, release="33k"):
    if release == "55k":
        with (folder / "train.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path = folder / FILES[release]
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row33(f"Hi {i}", judge=f"arena_user_{i % 5}") for i in range(40)] + [row33(winner="c")] * bad
    return ArenaDataModule(data_dir=write(folder, rows), **settings)


def examples(folder, rows, release="33k", **settings):
    data = ArenaDataModule(data_dir=write(folder, rows, release), release=release, **settings)
    return [
        found if isinstance(found, RecordError) else data.to_example(found)
        for source in data.sources
        for found in data.load(source)
    ]


def said(comparison):
    pair = comparison.chosen, comparison.rejected
    return *pair, comparison.preference, comparison.user, comparison.strength


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("model_a", (0, 1, 1.0)),
        ("model_b", (1, 0, 1.0)),
        ("tie", (0, 1, 0.5)),
        ("tie (bothbad)", (0, 1, 0.5)),
        ("both_bad", (0, 1, 0.5)),
    ],
)
def test_winners_and_ties(tmp_path, winner, expected):
    for release, row in (("33k", row33), ("100k", row100), ("140k", row140)):
        (tmp_path / release).mkdir()
        (record,) = examples(tmp_path / release, [row(winner=winner)], release)
        assert said(record.comparisons[0])[:3] == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((1, 0, 0), (0, 1, 1.0)), ((0, 1, 0), (1, 0, 1.0)), ((0, 0, 1), (0, 1, 0.5))],
)
def test_winners_of_55k_are_flags(tmp_path, flags, expected):
    (record,) = examples(tmp_path, [row55(flags=flags)], "55k")
    assert (record.id, record.prompt, record.group) == ("55k:1", (Message("user", "Hi"),), "Hi")
    assert [response.text for response in record.responses] == ["Hello.", "Yo."]
    assert said(record.comparisons[0]) == (*expected, None, None)
    data = ArenaDataModule(release="55k")
    fields = {**row55(flags=flags), "id": "55k:1", "group": "Hi"}  # from the hub flags are numbers
    assert data.to_example(SourceRow("hub", 1, fields)) == record


@pytest.mark.parametrize(
    ("release", "row", "user"),
    [("33k", row33, "arena_user_7"), ("100k", row100, "f00"), ("140k", row140, None)],
)
def test_judges_and_conversations(tmp_path, release, row, user):
    (record,) = examples(tmp_path, [row()], release)
    assert (record.id, record.prompt) == (f"{release}:1", (Message("user", "Hi"),))
    assert [(response.text, response.messages) for response in record.responses] == [
        ("Hello.", None),
        ("Yo.", None),
    ]
    assert record.comparisons[0].user == user
    assert record.prompt[0].others == {}


@pytest.mark.parametrize("release", ["33k", "140k"])
def test_what_follows_the_shared_beginning_is_judged(tmp_path, release):
    row = row33 if release == "33k" else row140
    longer = row(a=("Hello.", "Rain?", "Water."), b=("Yo.", "Rain?", "Weather."))
    (record,) = examples(tmp_path, [longer], release)
    assert record.prompt == (Message("user", "Hi"),)
    assert [[turn.role for turn in response.messages] for response in record.responses] == [
        ["assistant", "user", "assistant"]
    ] * 2
    assert record.responses[1].messages[-1] == Message("assistant", "Weather.")
    same = row(a=("Hello.", "Rain?", "Water."), b=("Hello.", "Rain?", "Weather."))
    (record,) = examples(tmp_path, [same], release)
    assert [turn.content for turn in record.prompt] == ["Hi", "Hello.", "Rain?"]
    assert [response.text for response in record.responses] == ["Water.", "Weather."]
    assert record.group.endswith("s1" if release == "140k" else "Hi")


def test_turns_of_55k_go_in_turn(tmp_path):
    (record,) = examples(tmp_path, [row55(("Hi", "Rain?"), ("A.", 'B, "b".'), ("C.", "D\u2028."))], "55k")
    assert [turn.content for turn in record.responses[0].messages] == ["A.", "Rain?", 'B, "b".']
    assert record.responses[1].messages[-1].content == "D\u2028."


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (row55(a=(None,)), "missing turn", "response_a[0]"),
        (row55(("Hi", None), ("A.", "B."), ("C.", "D.")), "missing turn", "prompt[1]"),
        (row55(b=("Yo.", "Yo.")), "wrong length", "response_b"),
        (row55(response_a="Hello."), "wrong type", "response_a"),
        (row55(response_a='["\\ud83d"]'), "not UTF-8", "response_a[0]"),
        (row55(flags=(1, 1, 0)), "out of range", "winner_model_a, winner_model_b, winner_tie"),
        (row55(flags=(0, 0, 0)), "out of range", "winner_model_a, winner_model_b, winner_tie"),
        (row55(flags=("yes", 0, 0)), "wrong type", "winner_model_a"),
        (row55(b=(" ",)), "empty response", "responses[1].text"),
    ],
)
def test_malformed_rows_of_55k(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        for found in examples(tmp_path, [row], "55k"):
            raise found
    assert (caught.value.reason, caught.value.field) == (reason, field)


IMAGE = {"type": "image", "text": None, "image": "a.png", "mimeType": "image/png"}


@pytest.mark.parametrize(
    ("release", "row", "reason", "field"),
    [
        ("33k", row33(winner="draw"), "out of range", "winner"),
        ("33k", row33(winner=None), "missing field", "winner"),
        ("33k", row33(judge=" "), "missing field", "judge"),
        ("33k", row33(conversation_b=talk("Ho", "Yo.")), "no common prompt", "prompt"),
        ("33k", row33(conversation_b=talk("Hi")), "missing answer", "conversation_b"),
        ("33k", row33(conversation_a=[{"role": "user", "content": None}]), "missing field", "conversation_a[0].content"),
        ("33k", row33(a=(" ",)), "empty response", "responses[0].text"),
        ("100k", row100(judge_hash=None), "missing field", "judge_hash"),
        ("140k", row140(conversation_b=[*talk("Hi", parts=True), {"role": "assistant", "content": [IMAGE]}]), "not text",
         "conversation_b[1].content[0].image"),
    ],
)  # fmt: skip
def test_malformed_rows(tmp_path, release, row, reason, field):
    good = {"33k": row33, "100k": row100, "140k": row140}[release]
    with pytest.raises(RecordError) as caught:
        for found in examples(tmp_path, [row, good()], release):
            if isinstance(found, RecordError):
                raise found
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_sessions_stay_on_one_side_and_so_do_equal_beginnings(tmp_path):
    rows = [
        row140(f"Prompt {i % 150}", session=f"s{i // 2}", order=1 + i % 2, a=(f"{i}.",)) for i in range(300)
    ]
    data = ArenaDataModule(release="140k", data_dir=write(tmp_path, rows, "140k"), validation_share=0.2)
    found = {source: list(data.load(source)) for source in data.sources}
    assert len(found["train"]) + len(found["test"]) == 300 and found["test"]
    for what in (lambda row: row.text("evaluation_session_id"), lambda row: row.text("group")):
        sides = [{what(row) for row in found[source]} for source in data.sources]
        assert not sides[0] & sides[1]
    groups = {row.text("evaluation_session_id"): row.text("group") for rows in found.values() for row in rows}
    # Rows i and i + 150 begin alike: sessions j and j + 75 belong together, and nothing else does.
    assert len(set(groups.values())) == 75
    assert all(groups[f"s{j}"] == groups[f"s{j + 75}"] for j in range(75))
    data.setup()
    assert data.reports["validation"].in_train == 0 and data.reports["validation"].rows > 0


def test_a_vote_without_a_session_is_an_error_of_training(tmp_path):
    rows = [row140(), row140("Ho", session=None)]
    data = ArenaDataModule(release="140k", data_dir=write(tmp_path, rows, "140k"))
    errors = [found for found in data.load("train") if isinstance(found, RecordError)]
    assert [(error.field, error.reason, error.line) for error in errors] == [
        ("evaluation_session_id", "missing field", 2)
    ]


def test_longer_and_flagged_conversations_can_be_left_out(tmp_path):
    rows = [
        row33("One"),
        row33("Two", a=("A.", "B?", "C."), b=("D.", "B?", "E.")),
        row33("Three", openai_moderation={"flagged": True, "categories": {"hate": True}}),
        row33("Four", openai_moderation=None),
    ]

    def left(**settings):
        found = examples(tmp_path, rows, **settings)
        return sorted(item.reason if isinstance(item, RecordError) else item.group for item in found)

    assert left() == ["Four", "One", "Three", "Two"]
    assert left(turns="one") == ["Four", "One", "Three"]
    assert left(flagged=False) == ["One", "Two", "missing field"]


def test_parts_of_a_release_are_numbered_through(tmp_path):
    write(tmp_path, [row140("A"), row140("B", session="s2")], "140k")
    parts = tmp_path / "data"
    (parts / "train-00000-of-00001.parquet").rename(parts / "train-00000-of-00002.parquet")
    rows = [row140("C", session="s3"), row140("D", session="s4", winner="no")]
    pq.write_table(pa.Table.from_pylist(rows), parts / "train-00001-of-00002.parquet")
    data = ArenaDataModule(release="140k", data_dir=str(tmp_path))
    assert [path.name for path in data.files("test")] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    found = [row for source in data.sources for row in data.load(source)]
    assert sorted(row.text("id") for row in found) == [f"140k:{i}" for i in range(1, 5)]
    last = next(row for row in found if row.text("id") == "140k:4")
    assert (last.line, last.file.endswith("train-00001-of-00002.parquet")) == (2, True)


def test_settings_and_sources(tmp_path):
    for release, hub in REVISIONS.items():
        assert ArenaDataModule(release=release).settings()["hub"] == hub
    with pytest.raises(ValueError, match="release must be one of 33k, 55k, 100k, 140k"):
        ArenaDataModule(release="1M")
    with pytest.raises(ValueError, match="flagged=False needs release='33k', got '55k'"):
        ArenaDataModule(release="55k", flagged=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other.parquet").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"has no train-\*\.parquet, nor has data in it; there: .*other\.parquet"
    ):
        ArenaDataModule(data_dir=str(tmp_path)).files("train")


@pytest.mark.parametrize("release", REVISIONS)
def test_the_hub_gives_the_same_records(tmp_path, from_hub, release):
    row = {"33k": row33, "55k": row55, "100k": row100, "140k": row140}[release]
    rows = [row(), row(("Ho",) if release == "55k" else "Ho")]
    expected = examples(tmp_path, rows, release)
    asked = from_hub(rows)
    data = ArenaDataModule(release=release)
    assert [data.to_example(found) for source in data.sources for found in data.load(source)] == expected
    assert set(asked) == {(*REVISIONS[release].split("@"), "train", None)}
