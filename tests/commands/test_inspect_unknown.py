"""``pluralign data inspect FILE``: data without a configuration are read, or what is open is said and nothing chosen."""

import csv
import json
import tempfile
from pathlib import Path

import datasets
import pytest
import yaml
from datasets.exceptions import DatasetNotFoundError

from pluralign.train import main

MODEL = {
    "class_path": "BradleyTerryRM",
    "init_args": {
        "backbone": {
            "config": {
                "model_type": "llama",
                "vocab_size": 259,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
        }
    },
}
WINDS = ("mistral", "bora", "foehn", "levante", "tramontana")


def pair(i, **others):
    wind = WINDS[i % len(WINDS)]
    return {
        "question": f"What is the wind called {wind}, and when does it blow, on day {i}?",
        "answer_a": f"The {wind} is a wind of {i} hours that blows from the hills.",
        "answer_b": f"A {wind} is a kind of {i} soups.",
        **others,
    }


def judged(i):
    return pair(i, winner=("A", "B", "tie")[i % 3], annotator=f"person {i % 4}")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def blocks(text):
    """Every ``data:`` part of a configuration that stands in a text."""
    found = []
    for part in text.split("\ndata:\n")[1:]:
        lines = part.splitlines()
        end = next((i for i, line in enumerate(lines) if not line.startswith("  ")), len(lines))
        found.append(yaml.safe_load("data:\n" + "\n".join(lines[:end])))
    return found


def counts(text):
    """Cells of the table of counts, by their title."""
    lines = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {title.strip(): value.strip() for title, value in lines if title.strip()}


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the verb, and gives what it printed and its exit status; nothing may be left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path / "cache"))

    def call(*words):
        status = 0
        try:
            main(["data", "inspect", *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        assert list(scratch.iterdir()) == []
        assert not (tmp_path / "cache").exists()
        return capsys.readouterr().out, status

    return call


def test_a_file_that_is_told_by_its_rows(run, tmp_path):
    path = written(tmp_path / "winds.jsonl", [judged(i) for i in range(30)])
    text, status = run(path)
    assert status == 0
    (block,) = blocks(text)
    assert block["data"] == {
        "class_path": "LocalDataModule",
        "init_args": {
            "train": str(path),
            "columns": {
                "first": "answer_a",
                "second": "answer_b",
                "prompt": "question",
                "user": "annotator",
            },
        },
    }
    table = counts(text)
    assert table["rows"] == "30"
    assert (
        table["the first (answer_a) wins"]
        == table["ties"]
        == table["the second (answer_b) wins"]
        == "10  33.3%"
    )
    assert table["users"].startswith("4: person 0 8, person 1 8, person 2 7")
    assert table["lost and why"] == "nothing"
    assert "-> answer_a wins over answer_b, user person 0" in text
    assert "-> answer_b wins over answer_a, user person 1" in text
    assert "-> a tie, user person 2" in text
    assert max(map(len, text.splitlines())) <= 80 or str(path) in text


def test_what_it_prints_to_paste_trains(run, tmp_path, capsys):
    """The part of a configuration that it prints, with a tiny model, goes through fit and data inspect."""
    text, _ = run(written(tmp_path / "winds.jsonl", [judged(i) for i in range(30)]))
    (block,) = blocks(text)
    quiet = {"accelerator": "cpu", "max_steps": 2, "log_every_n_steps": 1, "enable_progress_bar": False}
    (tmp_path / "model.yaml").write_text(
        yaml.safe_dump({"model": MODEL, "trainer": {**quiet, "default_root_dir": str(tmp_path)}})
    )
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(block))
    options = ["--config", str(tmp_path / "model.yaml"), "--config", str(tmp_path / "data.yaml")]
    options += [f"--data.cache_dir={tmp_path / 'tokens'}", "--data.loader.batch_size=4"]
    main(["data", "inspect", *options])
    assert "judgements" in capsys.readouterr().out
    main(["fit", *options])
    assert list(tmp_path.rglob("*.ckpt"))


def test_two_readings_are_both_printed_and_none_is_chosen(run, tmp_path):
    path = written(tmp_path / "winds.jsonl", [pair(i, label=int(i % 3 == 0)) for i in range(30)])
    text, status = run(path)
    assert status == 2
    assert "Not chosen: who won." in text
    one, other = (block["data"]["init_args"] for block in blocks(text))
    assert one["columns"]["winner"] == other["columns"]["winner"] == "label"
    assert (one["codes"], other["codes"]) == ({"0": "second", "1": "first"}, {"0": "first", "1": "second"})
    assert "in all the first wins 10, ties 0, the second wins 20" in " ".join(text.split())
    assert "in all the first wins 20, ties 0, the second wins 10" in " ".join(text.split())

    text, status = run(path, "--codes", '{"0": second, "1": first}')
    assert status == 2  # which column they are of is still open to whoever reads the command later
    text, status = run(path, "--columns", "{winner: label}", "--codes", '{"0": second, "1": first}')
    assert status == 0
    assert counts(text)["the first (answer_a) wins"] == "10  33.3%"
    assert blocks(text)[0]["data"]["init_args"] == one


def test_a_signed_number_needs_its_sense(run, tmp_path):
    path = written(tmp_path / "winds.jsonl", [pair(i, strength=(-2, 1, 0)[i % 3]) for i in range(30)])
    text, status = run(path)
    assert status == 2
    assert [block["data"]["init_args"]["positive"] for block in blocks(text)] == ["first", "second"]
    text, status = run(path, "--positive", "second", "--columns", "{strength: strength}")
    assert status == 0
    assert blocks(text)[0]["data"]["init_args"]["positive"] == "second"


def test_data_that_hold_no_judgement(run, tmp_path):
    text, status = run(written(tmp_path / "winds.jsonl", [{"wind": "bora", "hours": i} for i in range(3)]))
    assert status == 2
    assert "nothing in these columns looks like answers" in " ".join(text.split())
    assert "wind: 'bora'" in text
    assert blocks(text) == []


def test_a_table_of_text_cells(run, tmp_path):
    path = tmp_path / "winds.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = [pair(i, score_a=i % 3, score_b=1) for i in range(30)]
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    text, status = run(path)
    assert status == 0
    columns = blocks(text)[0]["data"]["init_args"]["columns"]
    assert (columns["first_score"], columns["second_score"]) == ("score_a", "score_b")
    assert counts(text)["ties"] == "10  33.3%"


def test_shards_by_pattern_folder_and_name(run, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    files = [written(folder / f"part-{n}.jsonl", [judged(i + 10 * n) for i in range(10)]) for n in range(2)]
    for words, train in (
        ([folder / "part-*.jsonl"], str(folder / "part-*.jsonl")),
        ([folder], str(folder)),
        (files, list(map(str, files))),
    ):
        text, status = run(*words)
        assert status == 0
        assert "looked at 20 rows" in text
        assert blocks(text)[0]["data"]["init_args"]["train"] == train
    assert "looked at the first 15 rows" in run(folder, "--rows", "15")[0]


def test_rows_that_are_lost_are_said(run, tmp_path):
    rows = [judged(i) for i in range(30)]
    rows[7]["winner"] = "neither of them, nor me"
    rows[9]["answer_a"] = "  "
    path = written(tmp_path / "winds.jsonl", rows)
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"question": \n')
    text, status = run(path, "--columns", "{winner: winner}", "--codes", "{A: first}")
    assert status == 0
    assert "looked at 31 rows, 1 of which cannot be read" in text
    assert f"{path}:8: unknown code" in text.replace("\n", "")
    assert "1 unknown code" in text and "1 empty response" in text and "1 not JSON" in text
    (block,) = blocks(text)
    assert block["data"]["init_args"]["on_invalid"] == "skip"  # without it these rows would stop a run


def test_rows_that_nobody_judged_are_to_be_scored(run, tmp_path):
    rows = [
        {"prompt": pair(i)["question"], "completion": pair(i)["answer_a"], "label": i % 2 == 0}
        for i in range(9)
    ]
    path = written(tmp_path / "winds.jsonl", rows)
    text, status = run(path)
    assert status == 0
    assert "nothing can be learnt from them" in " ".join(text.split())
    assert blocks(text)[0]["data"]["init_args"] == {
        "predict": str(path),
        "columns": {"response": "completion"},
    }
    assert "pluralign predict" in text and "pluralign fit" not in text


def test_votes_are_shown(run, tmp_path):
    rows = [
        {"prompt": pair(i)["question"], "response": pair(i)["answer_a"], "votes": [i, 1, 2]} for i in range(9)
    ]
    text, status = run(written(tmp_path / "winds.jsonl", rows))
    assert status == 0
    assert counts(text)["votes"] == "on 9, by label: 36, 9, 18"
    assert "response 0 (votes 0, 1, 2)" in text
    assert "configs/dprm_local.yaml" in text
    text, _ = run(written(tmp_path / "pairs.jsonl", [pair(i, votes=[3, 0, 1]) for i in range(9)]))
    assert "-> answer_a wins over answer_b, share 0.75, votes 3, 0, 1" in text


def test_rows_of_which_nothing_is_left(run, tmp_path):
    rows = [
        {"prompt": pair(i)["question"], "chosen": pair(i)["answer_a"], "rejected": pair(i)["answer_a"]}
        for i in range(9)
    ]
    text, status = run(written(tmp_path / "winds.jsonl", rows))
    assert status == 2
    assert "9 comparison of identical responses" in text and "nothing is left of these rows" in text
    assert blocks(text) == []


def test_no_rows_are_asked_for(run, tmp_path):
    path = written(tmp_path / "winds.jsonl", [judged(0)])
    assert run(path, "--rows", "0")[1] == 2


def test_two_open_things_are_settled_together(run, tmp_path):
    rows = [{"frage": row["question"], **row} for row in (pair(i, label=i % 2) for i in range(30))]
    for row in rows:
        del row["question"]
    text, status = run(written(tmp_path / "winds.jsonl", rows))
    assert status == 2
    assert "2 things are open, and each reading settles one of them" in " ".join(text.split())
    words = ("--columns", "{winner: label, prompt: frage}", "--codes", "{0: second, 1: first}")
    text, status = run(tmp_path / "winds.jsonl", *words)
    assert status == 0
    assert blocks(text)[0]["data"]["init_args"]["codes"] == {"0": "second", "1": "first"}


def test_a_public_data_set_is_named(run, tmp_path):
    def row(i):
        return {
            "idx": i,
            "motivation_app": "Almanac",
            "cmp_key": "oak_elm",
            "instruction": pair(i)["question"],
            "input": "",
            "response1": pair(i)["answer_a"],
            "response2": pair(i)["answer_b"],
            **{f"annotator{n}": (i + n) % 3 for n in (1, 2, 3)},
        }

    path = tmp_path / "testset-v1.json"
    path.write_text(json.dumps([row(i) for i in range(30)]))
    text, status = run(path)
    assert status == 0
    assert "a table that PandaLMDataModule reads" in text
    assert blocks(text)[0]["data"] == {
        "class_path": "PandaLMDataModule",
        "init_args": {"data_dir": str(tmp_path)},
    }
    assert "docs/data_sets/pandalm.md" in text
    assert "pluralign fit --config configs/dprm_pandalm.yaml --config data.yaml" in text
    text, status = run(
        path, "--judges", "[annotator1, annotator2, annotator3]", "--codes", "{1: first, 2: second, 0: tie}"
    )
    assert status == 0
    assert blocks(text)[0]["data"]["class_path"] == "LocalDataModule"

    text, status = run(path.rename(tmp_path / "mine.json"))
    assert status == 2  # its data module wants another name, and 0 may be a tie or nobody
    assert "it cannot be read so" in text
    assert "Not chosen: who won" in text


@pytest.fixture
def hub(monkeypatch):
    """A hub of one dataset; what was asked of it."""
    asked = []

    def load_dataset(*names, revision=None, split=None, streaming=False):
        asked.append((*names, revision, split, streaming))
        if names[0] != "winds/mine":
            raise DatasetNotFoundError(
                f"Dataset {names[0]!r} doesn't exist on the Hub or cannot be accessed."
            )
        rows = [{**judged(i), "note": None} for i in range(30)]
        return {"test": rows[:2], "train": rows} if split is None else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_dataset_on_the_hub(run, hub):
    text, status = run("winds/mine")
    assert status == 0
    assert hub == [("winds/mine", None, None, True)]
    assert "save_to_disk" in text
    assert blocks(text)[0]["data"]["init_args"]["train"] == "mine"
    run("hub:winds/mine@v2:plain/test")
    assert hub[1] == ("winds/mine", "plain", "v2", "test", True)


def test_a_dataset_that_is_not_on_the_hub(run, hub):
    with pytest.raises(ValueError, match=r"winds/other: unreadable dataset.*check its name"):
        run("winds/other")


def test_a_file_that_is_not_there(run, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no_such\.jsonl"):
        run(tmp_path / "no_such.jsonl")
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    with pytest.raises(FileNotFoundError, match="here/other"):  # no name of the hub: the folder is here
        run("here/other")
    (tmp_path / "blank.jsonl").write_text("\nnothing\n")
    with pytest.raises(
        ValueError, match=r"no row that can be read; the first says: .*blank\.jsonl:2: not JSON"
    ):
        run(tmp_path / "blank.jsonl")


def test_answers_that_nobody_compared_are_to_be_scored(run, tmp_path):
    rows = [
        {"question": pair(i)["question"], "answer": pair(i)["answer_a"], "rating": i % 5} for i in range(30)
    ]
    path = written(tmp_path / "winds.jsonl", rows)
    text, status = run(path)
    assert status == 0
    (block,) = blocks(text)
    columns = {"response": "answer", "score": "rating", "prompt": "question"}
    assert block["data"]["init_args"] == {"predict": str(path), "columns": columns}
    assert "pluralign predict" in text
    assert counts(text)["lost and why"] == "nothing"
