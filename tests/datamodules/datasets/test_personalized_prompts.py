"""Prompts of your own files: every form of a row, every setting, and what is wrong said once."""

import csv
import json
from pathlib import Path

import datasets
import pytest

from pluralign.datamodules import PersonalizedPromptsDataModule, RecordError
from pluralign.datamodules.records import Message

KOALA = Path(__file__).resolve().parents[4] / "shared" / "data" / "koala-test-set" / "koala_test_set.jsonl.gz"
TONE = {"tone": {"kind": "Be kind.", "rude": "Be rude."}}
ASK = {"role": "user", "content": "Name a fruit."}


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def read(folder, rows, **settings):
    """Prompts of rows, or the first error."""
    data = PersonalizedPromptsDataModule(test=write(folder, rows), **{"axes": TONE, **settings})
    found = []
    for row in data.load("test"):
        if isinstance(row, RecordError):
            raise row
        found.append(data.to_prompt(row))
    return found


def test_prompts_are_text_or_messages(tmp_path):
    turns = (Message("system", "Be brief."), Message("user", "Name a fruit."))
    rows = [
        {"prompt": "Name a fruit."},
        {"prompt": [{"role": "system", "content": "Be brief."}, ASK]},
        {"prompt": json.dumps([ASK])},
        {"prompt": ASK},
    ]
    assert [one.prompt for one in read(tmp_path, rows)] == ["Name a fruit.", turns, turns[1:], turns[1:]]


def test_a_row_may_name_itself_and_what_it_asks_for(tmp_path):
    row = {"id": 7, "prompt": "Why?", "preference": ["tone.rude"], "user": "ann", "age": 3, "note": None}
    first, second = read(tmp_path, [row, {"prompt": "Why?", "preference": []}])
    assert (first.id, first.preference, dict(first.columns)) == (
        "7",
        ("tone.rude",),
        {"user": "ann", "age": 3, "note": None},
    )
    assert (len(second.id), second.preference, dict(second.columns)) == (16, (), {})
    assert read(tmp_path, [{"prompt": "Why?"}])[0].preference is None


def test_ids_follow_content(tmp_path):
    rows = [
        {"prompt": "Why?"},
        {"prompt": "How?"},
        {"prompt": "Why?"},
        {"prompt": "Why?", "preference": ["tone.kind"]},
    ]
    why, how, again, kind = (one.id for one in read(tmp_path, rows))
    assert again == f"{why}:2" and len({why, how, kind}) == 3
    assert [one.id for one in read(tmp_path, [{"prompt": "New"}, *rows])][1:] == [why, how, again, kind]
    named = [{"prompt": "Why?", "user": "ann", "id": ""}]
    assert read(tmp_path, named)[0].id == why, "neither other columns nor an empty id matter"


def test_columns_have_other_names(tmp_path):
    rows = [{"number": 3, "ask": {"text": "Why?"}, "style": ["tone.kind"], "input": "x"}]
    (one,) = read(tmp_path, rows, columns={"id": "number", "prompt": "ask.text", "preference": "style"})
    assert (one.id, one.prompt, one.preference) == ("3", "Why?", ("tone.kind",))
    assert one.columns["input"] == "x", "which is read where columns names it alone"
    rows = [
        {"instruction": "Add.", "input": "2, 3"},
        {"instruction": "Rest.", "input": ""},
        {"instruction": "Go."},
    ]
    found = read(tmp_path, rows, columns={"prompt": "instruction", "input": "input"})
    assert [one.prompt for one in found] == ["Add.\n2, 3", "Rest.", "Go."]
    assert not any(one.columns for one in found)


def test_csv_and_parquet(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [
                ["id", "prompt", "preference", "user"],
                ["1", "Why?", '["tone.rude"]', "ann"],
                ["2", "How?", "", ""],
            ]
        )
    rows = [{"id": "1", "prompt": "Why?", "preference": ["tone.rude"], "user": "ann"},
            {"id": "2", "prompt": "How?", "preference": None, "user": None}]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("rows.csv", "rows.parquet"):
        data = PersonalizedPromptsDataModule(predict=str(tmp_path / name), axes=TONE)
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        items = dict(zip(batch["id"], batch["columns"]["user"], strict=True))
        assert items == {"1 (tone.rude)": "ann", "2 (tone.kind)": None, "2 (tone.rude)": None}


def test_several_files_are_one_split(tmp_path):
    for number in range(2):
        write(tmp_path, [{"prompt": f"Why {number}?"}], f"part-{number}-of-2.jsonl")
    data = PersonalizedPromptsDataModule(
        test=[str(tmp_path / "part-0-of-2.jsonl"), str(tmp_path / "part-1-of-2.jsonl")]
    )
    assert len(list(data.load("test"))) == 2
    data = PersonalizedPromptsDataModule(test=str(tmp_path / "part-*.jsonl"))
    assert len(list(data.load("test"))) == 2


def test_a_data_set_on_the_hub(monkeypatch):
    asked = []

    def load_dataset(*names, **settings):
        asked.append((*names, settings["revision"], settings["split"]))
        return datasets.Dataset.from_list([{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": "How?"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = PersonalizedPromptsDataModule(
        test="hub:org/prompts@0123abc:english/eval", predict="hub:org/prompts@0123abc", axes={}
    )
    data.prepare_data()
    data.setup("test")
    assert [batch["id"] for batch in data.test_dataloader()] == [["a", "b"]]
    assert set(asked) == {("org/prompts", "english", "0123abc", "eval"), ("org/prompts", "0123abc", "train")}
    for name in ("hub:org/prompts", "hub:prompts@0123abc"):
        with pytest.raises(
            ValueError, match=r"must name a data set on the hub and a revision.*hub:org/name@COMMIT"
        ):
            PersonalizedPromptsDataModule(test=name)


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"question": "Why?"}, "missing field", r"field 'prompt' is None; allowed: text or messages: columns: {prompt: question}"),
        ({"prompt": None}, "missing field", "field 'prompt'"),
        ({"prompt": 3}, "wrong type", "field 'prompt' is 3"),
        ({"prompt": []}, "wrong length", "field 'prompt'"),
        ({"prompt": " "}, "blank prompt", "text that is not blank"),
        ({"prompt": [ASK, {"role": "assistant", "content": "Apple."}]}, "out of range", "the assistant's turn is the response"),
        ({"prompt": "Why?", "preference": ["tone.odd"]}, "unknown dimension", "'tone.odd'; allowed: .*tone.kind, tone.rude"),
        ({"prompt": "Why?", "preference": "tone.kind"}, "wrong type", "a list of dimensions"),
        ({"prompt": "Why?", "preference": ["tone.kind", "tone.rude"]}, "two poles of an axis", "one pole an axis"),
        ({"prompt": "Why?", "id": [1]}, "wrong type", "field 'id'"),
    ],
)  # fmt: skip
def test_rows_that_are_wrong(tmp_path, row, reason, message):
    rows = [{"prompt": "Fine?"}, row]
    data = PersonalizedPromptsDataModule(test=write(tmp_path, rows), axes=TONE)
    with pytest.raises(RecordError, match=message) as caught:
        data.setup("test")
    error = caught.value
    assert (error.reason, error.file, error.line) == (reason, str(tmp_path / "rows.jsonl"), 2)
    lenient = PersonalizedPromptsDataModule(test=write(tmp_path, rows), axes=TONE, on_invalid="skip")
    lenient.setup("test")
    assert (lenient.reports["test"].prompts, dict(lenient.reports["test"].invalid)) == (1, {reason: 1})


def test_duplicate_ids_and_lines_that_are_no_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "prompt": "Why?"}\n{"id": "a", "prompt": "How?"}\n{"id": "b", \n')
    data = PersonalizedPromptsDataModule(test=str(path), on_invalid="skip")
    data.setup("test")
    assert data.reports["test"].prompts == 1 and data.reports["test"].rows == 3
    assert data.reports["test"].invalid["duplicate id"] == 1
    assert data.reports["test"].first_errors[0].startswith(f"{path}:2: duplicate id: field 'id' is 'a'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "has no prompts: give at least one of train, validation, test, predict"),
        ({"train": ""}, "train must name a file, got ''"),
        ({"train": []}, r"train must name a file, got \[\]"),
        ({"train": "a.jsonl", "columns": {"text": "prompt"}}, "columns maps unknown fields text; allowed: id, prompt, input, preference"),
        ({"train": "a.jsonl", "preferences": [["tone.sweet"]]}, "'tone.sweet'; allowed: .*tone.friendly, tone.unfriendly"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        PersonalizedPromptsDataModule(**settings)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test='.*nothing\.jsonl' is not a file"):
        PersonalizedPromptsDataModule(test=str(tmp_path / "nothing.jsonl")).prepare_data()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises((RecordError, ValueError), match=r"empty|nothing is left"):
        PersonalizedPromptsDataModule(test=str(tmp_path / "empty.jsonl")).setup("test")


def test_the_axes_that_stand_where_none_are_given():
    space = PersonalizedPromptsDataModule(test="a.jsonl").space
    assert (len(space.dimensions), len(space.combinations)) == (6, 8)
    assert list(space.axes) == ["expertise", "length", "tone"]
    assert PersonalizedPromptsDataModule(test="a.jsonl", axes={}).dimensions == ()


@pytest.mark.skipif(not KOALA.is_file(), reason="the prompts of Koala are not beside this checkout")
def test_the_prompts_of_koala():
    data = PersonalizedPromptsDataModule(test=str(KOALA))
    data.setup("test")
    report = data.reports["test"]
    assert (report.rows, report.prompts, report.items, report.preferences) == (180, 180, 1440, 8)
    assert not report.invalid and not report.dropped
    batch = next(iter(data.test_dataloader()))
    assert batch["wanted"].sum(1).tolist() == [3] * 16
    assert len({*data.space.sentences}) == 6
