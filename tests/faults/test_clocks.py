"""Clocks that are put back, that run ahead, or that are another machine's: they decide nothing that steps can decide."""

import json
import os
import time

import pytest
import torch

from pluralign.commands.newest import left_behind, newest_first
from pluralign.commands.run_folders import read_run

NOW = time.time()
HOUR = 3600.0


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of a step and an age in seconds; with ``run.json`` beside their folder if they are a run's."""

    def save(name, files, *, run=True):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        if run:
            (folder.parent / "run.json").write_text("{}")
        for file, step, age in files:
            torch.save({"state_dict": {}, "global_step": step}, folder / file)
            os.utime(folder / file, (NOW - age, NOW - age))
        return folder

    return save


def names(tmp_path):
    return [f"{path.parents[1].name}/{path.name}" for path in newest_first([tmp_path])]


def test_of_one_run_the_furthest_is_the_newest_though_the_clock_was_put_back(saved, tmp_path):
    saved("a", [("step=4.ckpt", 4, HOUR), ("step=8.ckpt", 8, 2 * HOUR), ("last.ckpt", 9, 3 * HOUR)])
    assert names(tmp_path) == ["a/last.ckpt", "a/step=8.ckpt", "a/step=4.ckpt"]


def test_what_cannot_be_read_may_have_been_the_furthest(saved, tmp_path):
    folder = saved("a", [("step=4.ckpt", 4, HOUR), ("last.ckpt", 9, 2 * HOUR)])
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-50])
    assert names(tmp_path) == ["a/last.ckpt", "a/step=4.ckpt"]


def test_what_a_run_has_left_behind_comes_after_what_it_has_written_since(saved, tmp_path):
    folder = saved("a", [("old.ckpt", 900, HOUR), ("last.ckpt", 900, HOUR), ("step=4.ckpt", 4, 2 * HOUR)])
    behind = left_behind(folder.parent, 0)
    assert behind.keys() == {"checkpoints/old.ckpt", "checkpoints/last.ckpt", "checkpoints/step=4.ckpt"}
    assert left_behind(folder.parent, 4).keys() == {"checkpoints/old.ckpt", "checkpoints/last.ckpt"}
    record = {"version": 1, "sessions": [{}], "left_behind": behind}
    (folder.parent / "run.json").write_text(json.dumps(record))
    torch.save(
        {"state_dict": {}, "global_step": 7}, folder / "last.ckpt"
    )  # of the same name, by a clock put back
    os.utime(folder / "last.ckpt", (NOW - 9 * HOUR, NOW - 9 * HOUR))
    assert names(tmp_path) == ["a/last.ckpt", "a/old.ckpt", "a/step=4.ckpt"]


def test_the_newest_run_is_not_the_longest_one(saved, tmp_path):
    saved("long", [("last.ckpt", 900, 5 * HOUR), ("step=450.ckpt", 450, 6 * HOUR)])
    saved("new", [("last.ckpt", 30, HOUR), ("step=20.ckpt", 20, 2 * HOUR)])
    assert names(tmp_path) == ["new/last.ckpt", "new/step=20.ckpt", "long/last.ckpt", "long/step=450.ckpt"]


def test_a_run_from_the_future_is_older_than_those_of_today(saved, tmp_path):
    saved("ahead", [("last.ckpt", 5, -400 * 24 * HOUR)])
    saved("today", [("last.ckpt", 3, HOUR)])
    saved("a_minute_ahead", [("last.ckpt", 4, -60.0)])
    assert names(tmp_path) == ["a_minute_ahead/last.ckpt", "today/last.ckpt", "ahead/last.ckpt"]


def test_files_that_are_no_runs_are_ordered_by_time(saved, tmp_path):
    saved("mine", [("one.ckpt", 90, 2 * HOUR), ("two.ckpt", 10, HOUR)], run=False)
    assert names(tmp_path) == ["mine/two.ckpt", "mine/one.ckpt"]


def test_a_session_in_which_the_clock_was_put_back_takes_no_time_away(tmp_path):
    sessions = [
        {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:01:00+00:00"},
        {"started": "2026-01-01T12:00:00+00:00", "ended": "2026-01-01T09:00:00+00:00"},
    ]
    record = {"sessions": sessions, "numbers": {}, "checkpoints": {}, "method": "PAL", "data": {"class": "X"}}
    record |= {"status": "finished", "updated": "2026-01-01T09:00:00+00:00", "step": 3, "monitor": None}
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **record}))
    run = read_run(tmp_path, tmp_path)
    assert run is not None and run.seconds == 60.0 and run.steps == 3
