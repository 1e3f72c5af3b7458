"""``pluralign data update`` as a user would run it; what an update computes is tested with its data."""

import json

import pytest

from pluralign.train import main

PRIOR = [0.1, 0.2, 0.3, 0.2, 0.1, 0.1]


@pytest.fixture
def files(tmp_path):
    """Two records of three responses, and ten votes on the first response."""
    stored, votes = tmp_path / "stored.jsonl", tmp_path / "new.jsonl"
    records = [
        {"id": "q1", "prompt": "Who?", "responses": ["I.", "You."], "prior": [PRIOR, PRIOR], "votes": [[], []],
         "target": [PRIOR, PRIOR]},
        {"id": "q2", "prompt": "Where?", "responses": ["Here."], "votes": [[]], "target": [None]},
    ]  # fmt: skip
    stored.write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [{"id": "q1", "response": 0, "persona": f"p{i}", "label": 0} for i in range(10)]
    votes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(stored), str(votes)]


def test_an_update_prints_what_changed(files, tmp_path, capsys):
    main(["data", "update", *files, "--prior-strength", "10"])
    assert capsys.readouterr().out.splitlines() == [
        "records                     2",
        "records voted on            1",
        "votes added                 10",
        "duplicates skipped          0 (0 with another label)",
        "targets                     2 (0 new, 1 missing)",
        "mean total variation moved  0.2250",
        "largest                     0.4500",
    ]
    target = json.loads((tmp_path / "stored.jsonl").read_text().splitlines()[0])["target"][0]
    assert target == pytest.approx([(10 + 1) / 20, *(share / 2 for share in PRIOR[1:])])
    with pytest.raises(SystemExit, match=r"pluralign data update: error: .*new\.jsonl:1: duplicate vote"):
        main(["data", "update", *files])
    main(["data", "update", *files, "--on-duplicate", "skip", "--output", str(tmp_path / "out.jsonl")])
    assert "duplicates skipped          10 (0 with another label)" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").is_file()


def test_what_it_refuses(files, capsys):
    with pytest.raises(SystemExit, match="error: votes_file='nowhere' is not a file"):
        main(["data", "update", files[0], "nowhere"])
    with pytest.raises(SystemExit) as stop:
        main(["data", "update", *files, "--forgeting", "0.9"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --forgeting" in capsys.readouterr().err
