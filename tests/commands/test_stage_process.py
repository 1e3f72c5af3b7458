"""The process of a stage: its status, and what it is told of what this process is told."""

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from pluralign.commands import stage_process
from pluralign.commands.stage_process import run_process

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals are others there"),
    pytest.mark.skipif(
        threading.current_thread() is not threading.main_thread(),
        reason="signals reach the first thread alone",
    ),
]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A shell script in the place of Python; in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def written(*lines):
        path = tmp_path / "program"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(stage_process.sys, "executable", str(path))

    return written


def send(number):
    """Send this process a signal once the other one is ready."""

    def wait():
        while not Path("ready").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


UNTIL_TOLD = ("echo > ready", "while true; do sleep 0.01; done")


def test_a_verb_runs_with_its_words_and_environment(program):
    program('echo "$@" "$MARK" > words', "exit 3")
    assert run_process(["fit", "--config", "x.yaml"], {"MARK": "here", "PATH": os.environ["PATH"]}) == 3
    assert Path("words").read_text() == "-m pluralign.train fit --config x.yaml here\n"


def test_files_stay_open_in_it(program):
    reading, writing = os.pipe()
    program(f"echo here > /dev/fd/{writing}")
    assert run_process([], os.environ, [writing]) == 0
    assert os.read(reading, 5) == b"here\n"
    os.close(reading)
    os.close(writing)


def test_a_process_that_is_killed_has_the_status_that_shells_give(program):
    program("kill -9 $$")
    assert run_process([], os.environ) == 137


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_to_be_told_to_end_is_handed_on(program, number, status):
    program('trap "echo told > told; exit 0" TERM USR1', *UNTIL_TOLD)
    before = signal.getsignal(number)
    thread = send(number)
    assert run_process([], os.environ) == status, "whatever the process made of it"
    thread.join()
    assert Path("told").exists()
    assert signal.getsignal(number) is before


def test_an_interruption_is_handed_on_and_raised(program, monkeypatch):
    program('trap "echo told > told; exit 1" INT', *UNTIL_TOLD)
    monkeypatch.setattr(stage_process, "_at_terminal", lambda: False)
    thread = send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_process([], os.environ)
    thread.join()
    assert Path("told").exists()
