"""Damaged files of every reader: an error that names the file, or a skip that is counted; never a loss, a hang or a library's own error."""

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
QUICK = {"token cache": 4, "rows into tokens": 4, "run's folder": 6}
"""Cases of readers that take longer."""
SLOW = ("data set", "exported", "configuration")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules, which are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("bad_inputs"), importlib.import_module("bad_inputs_readers")
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def known(bench):
    return {reader.name: reader for reader in bench[1].readers()}


NAMES = [
    *(f"rows of {kind}" for kind in ("jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "arrow", "feather", "saved")),
    *("rows into tokens", "checkpoint, restored", "checkpoint, loaded", "checkpoint, gone on from", "token cache"),
    *("feature store", "rollouts", "votes", "side table", "priors", "adapter", "kept scores", "board", "run's folder"),
    *("members.json", "complete.json", "responses"),
]  # fmt: skip


def faults(bench, reader, folder, numbers):
    trial = bench[0].Trial(reader, folder / "trial")
    outcomes = {number: trial.case(number) for number in numbers}
    assert not [*(folder / "trial").glob("case*")], "a case leaves nothing behind"
    return {number: outcome for number, outcome in outcomes.items() if outcome.kind in bench[0].FAULTS}


def test_every_reader_is_tried(known):
    assert [name for name in known if not name.startswith(SLOW)] == NAMES


@pytest.mark.filterwarnings("ignore")  # what is said of damaged files is another test's affair
@pytest.mark.parametrize("name", NAMES)
def test_a_few_damaged_files(bench, known, tmp_path, caplog, name):
    caplog.set_level(logging.CRITICAL)
    assert not faults(bench, known[name], tmp_path, range(QUICK.get(name, 10)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_data_sets_and_what_takes_long(bench, known, tmp_path):
    others = [name for name in known if name.startswith(SLOW)]
    assert len(others) > 35
    found = {}
    for place, name in enumerate(others):
        (tmp_path / str(place)).mkdir()
        found |= {name: faults(bench, known[name], tmp_path / str(place), range(100, 105))}
    assert not {name: each for name, each in found.items() if each}


def test_what_gets_through_is_seen(bench, tmp_path):
    """A reader that raises a library's error, one that names no file, and one that loses a row."""
    trials, readers = bench
    reads = iter([None, KeyError("x"), ValueError("something is wrong"), readers.Counted(3, 2, 0)])

    def read(folder, made):
        one = next(reads)
        if isinstance(one, Exception):
            raise one
        return one

    def make(folder):
        (folder / "rows.jsonl").write_text("{}\n" * 3)

    trial = trials.Trial(readers.Reader("made up", "none", make, read), tmp_path / "trial")
    assert [trial.case(number).kind for number in range(3)] == ["unnamed", "unnamed", "lost"]


def test_a_case_is_decided_by_its_number(bench, known, tmp_path):
    said = []
    for folder in ("one", "two"):
        trial = bench[0].Trial(known["rows of jsonl"], tmp_path / folder)
        said.append([trial.case(number)[:2] for number in range(6)])
    assert said[0] == said[1] and len({damage for _, damage in said[0]}) > 1


@pytest.mark.slow
def test_the_recorded_run_in_small(tmp_path):
    words = [sys.executable, FOLDER / "bad_inputs.py", "--number", "60", "--output", tmp_path / "out.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["cases"] == 60 and json.loads(done.stdout.splitlines()[-1]) == result
