"""One file of metrics for a run, whatever interrupted it."""

import csv
import errno
import os
from pathlib import Path

import pytest

from pluralign.callbacks import RunLogger


def logger(tmp_path):
    return RunLogger(str(tmp_path), name="", version="run")


def log(writer, *rows):
    for step, values in rows:
        writer.log_metrics(values, step)
        writer.save()


def read(tmp_path):
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        return [
            (int(row["step"]), {k: float(v) for k, v in row.items() if v and k != "step"})
            for row in csv.DictReader(file)
        ]


ROWS = [
    (0, {"train/loss": 1.0, "train/pairs/s": 9.0}),
    (1, {"train/loss": 2.0}),
    (1, {"val/loss": 3.0, "epoch": 0.0}),
    (1, {"train/accuracy": 0.5, "epoch": 0.0}),
    (2, {"train/loss": 4.0}),
    (3, {"train/loss": 5.0}),
]


def test_rows_stand_in_order_whatever_their_columns(tmp_path):
    log(logger(tmp_path), *ROWS)
    assert read(tmp_path) == ROWS


@pytest.mark.parametrize("resumed", range(6), ids=lambda place: f"after row {place}")
def test_a_run_that_goes_on_has_every_row_once(tmp_path, resumed):
    log(logger(tmp_path), *ROWS)
    later = [(step, {name: value + 10 for name, value in values.items()}) for step, values in ROWS[resumed:]]
    log(logger(tmp_path), *later)
    assert read(tmp_path) == ROWS[:resumed] + later


def test_a_row_takes_the_place_of_one_that_shares_a_metric(tmp_path):
    log(logger(tmp_path), *ROWS[:3])
    log(logger(tmp_path), (1, {"train/loss": 7.0, "epoch": 0.0}))
    assert read(tmp_path) == [ROWS[0], ROWS[2], (1, {"train/loss": 7.0, "epoch": 0.0})]


def test_half_a_line_of_a_killed_writer_is_left_out(tmp_path):
    log(logger(tmp_path), *ROWS)
    path = tmp_path / "run" / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-3])
    log(logger(tmp_path), (4, {"train/loss": 6.0}))
    assert read(tmp_path) == [*ROWS[:-1], (4, {"train/loss": 6.0})]


def test_nothing_logged_leaves_the_file_alone(tmp_path):
    log(logger(tmp_path), *ROWS)
    again = logger(tmp_path)
    assert again.experiment is again.experiment
    again.finalize("success")
    assert read(tmp_path) == ROWS


def test_runs_stand_side_by_side_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        writer = RunLogger()
        writer.log_hyperparams({"rank": 16})
        assert Path(writer.log_dir) == Path("runs", "lightning_logs", f"version_{number}")
        assert (Path(writer.log_dir) / "hparams.yaml").read_text() == "rank: 16\n"


@pytest.mark.parametrize("rows", [0, 2], ids=["a new file", "another row"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, rows):
    writer = logger(tmp_path)
    log(writer, *[(step, {"train/loss": 1.0}) for step in range(rows)])
    writer.log_metrics({"train/loss": 1.0}, 2)

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda *arguments, **keywords: Full())
    with pytest.raises(OSError, match=r"could not write .*metrics\.csv: No space left on device .*Make room"):
        writer.save()
