"""One board from the command line: what it says, what it writes, what it refuses, and where it goes on."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import whole_files
from pluralign.inference.board import Board
from pluralign.train import main

SAVED = Path(__file__).parents[1] / "saved"
PAL, DPRM = str(SAVED / "pal" / "last.ckpt"), str(SAVED / "dprm" / "last.ckpt")
FRUITS = ("fig", "plum", "pear", "quince", "melon", "cherry")


def rows(number=30, **others):
    draw = random.Random(5)
    for i in range(number):
        first, second = draw.sample(FRUITS, 2)
        row = {
            "id": f"q{i}",
            "prompt": f"Fruit {i % 9}?",
            "chosen": f"A {first}",
            "rejected": f"A ripe {second}",
        }
        yield row | {"preference": (1.0, 0.8, 0.5)[i % 3], "user": ("ann", "bob", "cy")[i % 3]} | others


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "fruits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return str(path)


def run(folder, *words, models=(f"votes={DPRM}", f"users={PAL}")):
    main(["evaluate", *models, *words, "-o", str(folder), "--device", "cpu", "--num_resamples", "200"])
    return Board.read(folder / "board.json")


def test_two_models_on_own_pairs(tmp_path, pairs, capsys):
    board = run(tmp_path / "out", "--local", pairs)
    assert [one.name for one in board.models] == ["votes", "users"]
    assert [one.method for one in board.models] == ["DPRM", "PAL"]
    (data,) = board.data
    assert (data.name, data.split, data.comparisons, data.ties, data.users) == ("fruits", "test", 30, 10, 3)
    shown = capsys.readouterr().out
    assert (
        "fruits" in shown
        and "votes" in shown
        and "fruits: " in shown
        and " against" in shown
        and "Holm" in shown
    )

    json.loads((tmp_path / "out" / "board.json").read_text(), parse_constant=pytest.fail)  # no NaN
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert len(items) == 60 and {row["model"] for row in items} == {"votes", "users"}
    right = [row["right"] for row in items if row["model"] == "votes" and row["right"] is not None]
    accuracy = board.cell("votes", "fruits").measures["accuracy"].value
    assert accuracy == pytest.approx(sum(right) / len(right)) and len(right) == 20
    responses = pq.read_table(tmp_path / "out" / "responses.parquet").to_pylist()
    assert len(responses) == 120 and all(row["reward"] is not None for row in responses)


def test_data_sets_of_a_file_and_a_name_for_each(tmp_path, pairs):
    listed = tmp_path / "data.yaml"
    listed.write_text(
        "fruit:\n"
        "  class_path: pluralign.datamodules.LocalDataModule\n"
        f"  init_args: {{validation: {pairs}}}\n"
        "made up:\n"
        "  class_path: SyntheticDataModule\n"
        "  init_args: {num_validation: 12}\n"
        "  split: validation\n"
    )
    board = run(tmp_path / "out", "--data", str(listed), models=(DPRM,))
    assert [(one.name, one.split) for one in board.data] == [
        ("fruit", "validation"),
        ("made up", "validation"),
    ]
    assert [cell.standing for cell in board.cells] == ["alone", "alone"] and not board.paired


def test_a_second_evaluation_reads_what_is_kept_and_scores_what_is_new(tmp_path, pairs, monkeypatch):
    from pluralign.inference.board import evaluation

    first = run(tmp_path / "out", "--local", pairs, models=(f"votes={DPRM}",))
    asked = []
    score = evaluation.score_data
    monkeypatch.setattr(
        evaluation,
        "score_data",
        lambda reward, data, **rest: asked.append(reward) or score(reward, data, **rest),
    )
    with pytest.raises(FileExistsError, match="--resume"):
        run(tmp_path / "out", "--local", pairs)
    second = run(tmp_path / "out", "--local", pairs, "--resume")
    assert [type(one.module).__name__ for one in asked] == ["PAL"]
    one, two = first.cell("votes", "fruits"), second.cell("votes", "fruits")
    assert one.measures == two.measures and two.seconds is None and one.seconds is not None

    whole = run(tmp_path / "whole", "--local", pairs)
    assert [cell.measures for cell in whole.cells] == [cell.measures for cell in second.cells]
    # Another text is other data: nothing of it is kept.
    Path(pairs).write_text("".join(json.dumps(row) + "\n" for row in rows(prompt="Which?")))
    asked.clear()
    run(tmp_path / "out", "--local", pairs, "--resume")
    assert len(asked) == 2


def test_killed_midway_loses_the_model_that_was_being_scored(tmp_path, pairs, monkeypatch):
    from pluralign.inference.board import evaluation

    score = evaluation.score_data

    def killed(reward, data, **rest):
        if type(reward.module).__name__ == "PAL":
            raise KeyboardInterrupt
        return score(reward, data, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score_data", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", "--local", pairs)
    assert not (tmp_path / "out" / "board.json").exists()
    board = run(tmp_path / "out", "--local", pairs, "--resume")
    assert board.cell("votes", "fruits").seconds is None and board.cell("users", "fruits").seconds is not None


def test_two_processes_do_not_write_one_board(tmp_path, pairs):
    other = (
        "import sys, time\nfrom pathlib import Path\nfrom pluralign.datamodules.whole_files import locked_folder\n"
        "lock = locked_folder(Path(sys.argv[1]), busy='')\nprint('has it', flush=True)\nsys.stdin.read()\n"
    )
    folder = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", other, str(folder / "scores")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"has it\n"
        with pytest.raises(FileExistsError, match=r"another process is writing a board into .*out just now"):
            run(folder, "--local", pairs)
        process.stdin.close()
    assert not (folder / "board.json").exists()
    run(folder, "--local", pairs, models=(f"votes={DPRM}",))  # whoever waited may go on


def test_a_board_that_another_process_has_written_meanwhile_stays(tmp_path, pairs, monkeypatch):
    folder = tmp_path / "out"

    def ended(*words, **settings):
        folder.mkdir()
        (folder / "board.json").write_text("theirs")
        return whole_files.locked_folder(*words, **settings)

    monkeypatch.setattr("pluralign.commands.evaluate.locked_folder", ended)
    with pytest.raises(FileExistsError, match=r"board\.json is there already: give --resume"):
        run(folder, "--local", pairs)
    assert (folder / "board.json").read_text() == "theirs"


def test_a_full_disk_names_the_verbs_own_option(tmp_path, pairs, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_files.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*\.npz: No space left.*let --output name a folder"):
        run(tmp_path / "out", "--local", pairs, models=(f"votes={DPRM}",))


@pytest.mark.parametrize(
    "words, message",
    [
        (["gone.ckpt", "--local", "PAIRS"], "no such checkpoint, run or exported folder"),
        ([f"a={DPRM}", f"a={PAL}", "--local", "PAIRS"], "called a, too: write NAME="),
        ([DPRM], "name data sets in a file, --data FILE, or own pairs, --local FILE"),
        ([DPRM, "--data", "gone.yaml"], "names a YAML file of data sets"),
        ([DPRM, "--local", "PAIRS", "--local", "PAIRS"], "write NAME="),
        ([DPRM, "--local", "PAIRS", "--num_resamples", "10"], "num_resamples"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_scored(tmp_path, pairs, words, message):
    words = [pairs if word == "PAIRS" else word for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["evaluate", *words, "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ("- 3\n", "must name data sets"),
        ("a: {init_args: {}}\n", "a must have class_path"),
        (
            "a: {class_path: LocalDataModule, spilt: test}\n",
            "a has spilt; a data set has class_path, init_args, split",
        ),
        (
            "a: {class_path: LocalDataModule, split: dev}\n",
            "a.split must be one of train, validation, test, predict",
        ),
        ("a: {class_path: GoneDataModule}\n", "GoneDataModule"),
        (
            "a: {class_path: LocalDataModule, init_args: {train: PAIRS}, split: test}\n",
            "LocalDataModule has train, validation",
        ),
        (
            "a: {class_path: LocalDataModule, init_args: {predict: PAIRS}}\n",
            "neither a test nor a validation split, only predict",
        ),
    ],
)
def test_a_file_of_data_sets_with_a_mistake(tmp_path, pairs, content, message):
    listed = tmp_path / "data.yaml"
    listed.write_text(content.replace("PAIRS", pairs))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", "--data", str(listed))


def test_nothing_that_was_judged(tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(chosen="A fig", rejected="A fig")))
    with pytest.raises(
        ValueError, match="nothing in the test split was judged: 30 records with 30 comparisons of"
    ):
        run(tmp_path / "out", "--local", str(path))
