"""Whether a process is there."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pluralign.datamodules import whole_files


def test_a_process_is_there_until_it_has_ended(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert whole_files.is_alive(os.getpid()) and not whole_files.is_alive(ended.pid)
    monkeypatch.setattr(whole_files, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("Ctrl-C"))
    assert whole_files.is_alive(ended.pid)
