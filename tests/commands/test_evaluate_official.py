"""Official numbers of benchmarks on a board: the rule's, beside accuracy; none of a model that could not read every text."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pluralign.inference.board import Board
from pluralign.train import main

SAVED = Path(__file__).parents[1] / "saved"
MODELS = [f"votes={SAVED / 'dprm' / 'last.ckpt'}", f"users={SAVED / 'pal' / 'last.ckpt'}"]


def board(folder, rows):
    (folder / "Natural").mkdir()
    (folder / "Natural" / "dataset.json").write_text(json.dumps(rows))
    listed = folder / "data.yaml"
    init_args = f"{{data_dir: {folder}, subsets: [Natural]}}"
    listed.write_text(f"llmbar:\n  class_path: LLMBarDataModule\n  init_args: {init_args}\n")
    words = ["--data", str(listed), "-o", str(folder / "out"), "--device", "cpu", "--num_resamples", "100"]
    main(["evaluate", *MODELS, *words])
    return Board.read(folder / "out" / "board.json")


def row(i, length=1):
    return {
        "input": f"Fruit {i}?",
        "output_1": f"Fig {i}. " * length,
        "output_2": "A chair.",
        "label": 1 + i % 2,
    }


def test_the_board_has_the_numbers_of_the_rule(tmp_path, capsys):
    (table,) = board(tmp_path, [row(i) for i in range(12)]).official
    assert table.data == "llmbar" and "equal rewards count 0.5" in table.rule and not table.reasons
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    for model, numbers in table.numbers.items():
        right = [item["right"] for item in items if item["model"] == model]
        assert numbers == {"Natural": pytest.approx(sum(right) / 12)}
    assert "llmbar by its own rule" in capsys.readouterr().out


def test_a_model_that_could_not_read_all_has_none_and_the_board_says_why(tmp_path, capsys):
    (table,) = board(tmp_path, [row(i, 1 + 400 * (i == 3)) for i in range(12)]).official
    assert not table.numbers and "LLMBar" in table.rule
    reason = "1 responses have no reward, and the rule needs all"
    assert table.reasons == {"votes": reason, "users": reason}
    shown = " ".join(capsys.readouterr().out.split())
    assert "llmbar by its own rule" in shown and "votes: 1 responses have no reward" in shown
