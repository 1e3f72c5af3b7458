"""``pluralign data inspect`` says how far annotators agree, and what a reward can reach."""

import io
import json

import pytest
from rich.console import Console

from pluralign.commands.agreement import judgements
from pluralign.commands.inspect import print_inspection
from pluralign.datamodules import LocalDataModule


def shown(path, rows, width=250, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = io.StringIO()
    data = LocalDataModule(test=str(path), cache_dir=str(path.parent / "cache"), **settings)
    print_inspection(data, console=Console(file=stream, width=width), examples=0)
    return data, stream.getvalue()


def cells(text, title):
    """Cells of the first row under a table's head, by the head."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if title in line)
    names = [name.strip() for name in lines[head].strip("┃ ").split("┃")]
    return dict(zip(names, (v.strip() for v in lines[head + 2].strip("│ ").split("│")), strict=True))


def measures(text):
    """Names of the splits under "agreement", and the first split's values by the measure."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if "┃ agreement" in line)
    table = {}
    for line in lines[head + 2 :]:
        if not line.startswith("│"):
            break
        name, value, *_ = (cell.strip() for cell in line.strip("│ ").split("│"))
        table[name] = value
    return [name.strip() for name in lines[head].strip("┃ ").split("┃")][1:], table


CROWD = {
    "prompt": "Which soup?",
    "responses": ["Leek.", "Pea.", "Stone."],
    "comparisons": [
        {"chosen": 0, "rejected": 1, "user": "ada"},
        {"chosen": 0, "rejected": 1, "user": "ada"},
        {"chosen": 1, "rejected": 0, "user": "bob"},
        {"chosen": 0, "rejected": 2, "user": "bob"},
        {"chosen": 2, "rejected": 0, "user": "bob"},
        {"chosen": 0, "rejected": 2, "user": "cy"},
        {"chosen": 1, "rejected": 2, "preference": 0.5, "user": "cy"},
    ],
}


def test_agreement_of_a_crowd(tmp_path):
    data, text = shown(tmp_path / "crowd.jsonl", [CROWD, {**CROWD, "prompt": "And tomorrow?"}])
    splits, table = measures(text)
    assert splits == ["test"]
    assert (table["judgements"], table["ties"], table["pairs"]) == ("14", "2", "4")
    assert (table["judged again"], table["disputed"], table["two agree"]) == ("4", "4", "33.3%")
    assert table["one reward reaches at most"] == "66.7%"  # Ada and Cy's side of both pairs
    assert table["a reward per user at most"] == "83.3%"  # Bob contradicts himself once a record
    assert "test: users judged a pair again the same way 2 times, and 2 pairs both ways" in text
    users = cells(text, "least judgements")
    assert (users["users"], users["most"], users["fewer than 5"]) == ("3", "6", "2")
    record, comparisons, share, user = judgements(data.table("test"))
    assert record.tolist() == [0] * 7 + [1] * 7
    assert user.tolist() == [0, 0, 1, 1, 1, 2, 2] * 2
    assert share.tolist()[6] == 0.5
    assert comparisons.shape == (14, 2)


def test_agreement_is_whole_in_a_terminal_of_the_usual_width(tmp_path):
    _, text = shown(tmp_path / "crowd.jsonl", [CROWD], width=80)
    _, table = measures(text)
    assert (table["one reward reaches at most"], table["a reward per user at most"]) == ("66.7%", "83.3%")


@pytest.mark.parametrize(
    ("row", "wanted"), [({}, "nothing in these judgements tells"), ({"preference": 0.75}, "25.0%")]
)
def test_pairs_that_were_judged_once(tmp_path, row, wanted):
    pair = {"prompt": "Name a hat.", "chosen": "Bowler.", "rejected": "Shoe."}
    _, text = shown(tmp_path / "pairs.jsonl", [{**pair, **row}])
    assert wanted in text
    assert measures(text)[1]["a reward per user at most"] == "-"
    assert "least judgements" not in text


def test_votes_of_responses_and_of_pairs(tmp_path):
    rows = [
        {"prompt": "Name a hat.", "response": "Bowler.", "votes": [3, 1]},
        {"prompt": "Name a coat.", "response": "Parka.", "votes": [0, 2]},
        {"prompt": "Name a shoe.", "response": "Clog.", "votes": [0, 1]},
    ]
    _, text = shown(tmp_path / "votes.jsonl", rows)
    table = cells(text, "votes on")
    assert (table["votes on"], table["items"], table["voted again"], table["unanimous"]) == (
        "responses", "3", "2", "1",
    )  # fmt: skip
    assert (table["two agree"], table["one label can reach"]) == ("75.0%", "87.5%")
    assert "disputed" not in text
