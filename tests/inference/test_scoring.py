"""A file of scores holds what the scorer says, in the file's order, and is finished by whoever goes on with it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

import pluralign
from pluralign.commands.score import score
from pluralign.datamodules.tokens import byte_tokenizer
from pluralign.inference import ScoredParts, scoring

MODEL = str(Path(__file__).parents[1] / "saved" / "pal" / "last.ckpt")
WORDS = ["-m", MODEL, "--device", "cpu", "--chunk", "4"]


@pytest.fixture
def rows(tmp_path):
    """A file of prompts with one to three responses, some for a user."""
    user = pluralign.load(MODEL).users[0]
    content = [
        {
            "id": f"q{i}",
            "prompt": f"Question {i % 4}?",
            "responses": [f"Answer {j} of {i}" for j in range(1 + i % 3)],
        }
        | ({"user": user} if i % 2 else {})
        for i in range(10)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path, content


def test_every_response_is_there_once_in_order(rows, tmp_path, capsys):
    path, content = rows
    score([str(path), *WORDS, "-o", str(tmp_path / "scores.parquet"), "--members"])
    found = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    expected = [(row["id"], j, text) for row in content for j, text in enumerate(row["responses"])]
    assert [(row["id"], row["response_index"], row["response"]) for row in found] == expected
    scorer = pluralign.load(MODEL, device="cpu")
    own = scorer(
        [row["prompt"] for row in found],
        [row["response"] for row in found],
        {"user": [row["user"] for row in found]},
    )
    assert [row["reward"] for row in found] == pytest.approx(own.tolist(), abs=1e-5)
    assert all(len(row["members"]) == scorer.module.table.num_prototypes for row in found)
    assert f"{len(expected)} responses scored" in capsys.readouterr().out
    assert not (tmp_path / "scores.parquet.parts").exists()


def test_what_was_scored_is_not_scored_again(rows, tmp_path, monkeypatch, capsys):
    path, content = rows
    output = tmp_path / "scores.jsonl"
    whole, calls = scoring._scored, []

    def stopped(scorer, records, **settings):
        calls.append([record.id for record in records])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(scorer, records, **settings)

    monkeypatch.setattr(scoring, "_scored", stopped)
    with pytest.raises(KeyboardInterrupt):
        score([str(path), *WORDS, "-o", str(output)])
    assert not output.exists() and [len(call) for call in calls] == [4, 4]
    score([str(path), *WORDS, "-o", str(output)])
    assert "4 records were scored before" in capsys.readouterr().out
    assert calls[2:] == [[f"q{i}" for i in range(4, 8)], ["q8", "q9"]]
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in found] == [row["id"] for row in content for _ in row["responses"]]
    with pytest.raises(FileExistsError, match="is there already: name another file, or add --overwrite"):
        score([str(path), *WORDS, "-o", str(output)])


def test_parts_of_other_scores_are_not_mixed(rows, tmp_path):
    output = tmp_path / "scores.parquet"
    ScoredParts(output, {"model": "one"}).add(pa.table({"id": ["q0"]}))
    with pytest.raises(FileExistsError, match="by another model, from other data or with other options"):
        score([str(rows[0]), *WORDS, "-o", str(output)])
    score([str(rows[0]), *WORDS, "-o", str(output), "--overwrite"])
    assert output.exists()


def test_parts_of_another_text_format_are_not_mixed(rows, tmp_path, tiny, monkeypatch):
    fields = {
        name: value for name, value in tiny(num_labels=1, pad_token_id=0).items() if name != "model_type"
    }
    LlamaForSequenceClassification(LlamaConfig(**fields)).save_pretrained(tmp_path / "rm")
    words, output = byte_tokenizer(), tmp_path / "scores.jsonl"
    whole = scoring._scored

    def stopped(scorer, records, **settings):
        if records[0].id != "q0":
            raise KeyboardInterrupt
        return whole(scorer, records, **settings)

    def run():
        words.save_pretrained(tmp_path / "rm")
        score(
            [str(rows[0]), "-m", str(tmp_path / "rm"), "--device", "cpu", "--chunk", "4", "-o", str(output)]
        )

    words.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    monkeypatch.setattr(scoring, "_scored", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    words.chat_template = "{% for m in messages %}({{ m.content }}){% endfor %}"  # no setting of the module
    with pytest.raises(FileExistsError, match="by another model"):
        run()


def test_what_cannot_be_read_is_an_error_or_has_no_reward(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": "a", "question": "Fruit?", "response": "A fig."},
        {"id": "b", "question": "Fruit?", "response": "A fig " * 9999},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(path), *WORDS, "--columns", "prompt=question", "-o", str(tmp_path / "scores.jsonl")]
    with pytest.raises(ValueError, match=r"\(item b\) is longer than the text format's max_length"):
        score(words)
    with pytest.warns(UserWarning, match="longer than the text format"):
        score([*words, "--unread", "null", "--overwrite"])
    first, second = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert first["unread"] is None and second["reward"] is None and "longer" in second["unread"]
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.jsonl"):
        score([*words[:-1], str(tmp_path / "scores.txt")])
    with pytest.raises(ValueError, match="--columns must be FIELD=COLUMN"):
        score([*words, "--columns", "prompt"])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="predicts no labels"):
        score([*words[:-1], str(tmp_path / "labels.jsonl"), "--labels", "--unread", "null"])


def test_parts_behind_a_gap_are_scored_anew(tmp_path):
    output, made_by = tmp_path / "scores.jsonl", {"model": "a"}
    tables = [pa.table({"id": [f"q{number}"]}) for number in range(3)]
    parts = ScoredParts(output, made_by)
    for table in tables:
        parts.add(table)
    parts._unlock()
    (parts.folder / "part-000000.parquet").unlink()  # killed while it removed them
    again = ScoredParts(output, made_by)
    assert not again.parts
    for table in tables:
        again.add(table)
    assert again.finish() == 3
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["q0", "q1", "q2"]


def test_a_full_disk_keeps_what_was_scored(tmp_path):
    resource = pytest.importorskip("resource", reason="the system bounds no files")
    parts = ScoredParts(tmp_path / "scores.jsonl", {"model": "a"})
    parts.add(pa.table({"id": ["a longer name than fits"]}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        for write in (lambda: parts.add(pa.table({"id": ["q1"]})), parts.finish):
            with pytest.raises(OSError, match=r"File too large.* let --output name a folder on another disk"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not parts.output.exists() and len(parts.parts) == 1
    assert parts.finish() == 1 and json.loads(parts.output.read_text()) == {"id": "a longer name than fits"}


def test_two_processes_do_not_score_into_one_file(tmp_path):
    output = tmp_path / "scores.jsonl"
    other = (
        "import sys\nfrom pathlib import Path\nfrom pluralign.inference.scoring import ScoredParts\n"
        "try:\n    ScoredParts(Path(sys.argv[1]), {'model': 'a'})\n"
        "except FileExistsError as error:\n    print(error)\n"
    )
    parts = ScoredParts(output, {"model": "a"})
    found = subprocess.run(
        [sys.executable, "-c", other, str(output)], capture_output=True, text=True, check=True
    )
    assert "another process is scoring" in found.stdout, found.stderr
    assert parts.folder.is_dir()


def test_a_beginning_without_scores_is_no_hindrance(tmp_path):
    output = tmp_path / "scores.jsonl"
    ScoredParts(output, {"model": "a"})  # such as of a file that could not be read
    assert not ScoredParts(output, {"model": "b"}).parts
