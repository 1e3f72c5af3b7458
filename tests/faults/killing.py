"""Processes that kill themselves just before the n-th time that they change a file."""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import datasets  # noqa: F401  once, and not in every process
import torch

CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "open": 0}
"""Audit events (https://docs.python.org/3/library/audit_events.html) of what changes a folder, and which argument names the file."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Counts the changes that a process makes below a folder, and ends it before one of them."""

    def __init__(self, folder, fatal=None):
        self.folder, self.fatal, self.seen = Path(os.path.realpath(folder)), fatal, []
        self.asleep, self.inside = (
            False,
            threading.local(),
        )  # other threads change files meanwhile, such as TensorBoard's
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event not in CHANGES or self.asleep or getattr(self.inside, "hook", False):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = arguments[CHANGES[event]]
        if isinstance(path, int):
            return
        self.inside.hook = True  # what follows is no change
        whole = Path(os.path.abspath(os.fsdecode(path)))
        if whole.is_relative_to(self.folder):
            if (
                self.fatal is not None and len(self.seen) >= self.fatal
            ):  # another thread may have been in between
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(f"{event} {whole.relative_to(self.folder)}")
        self.inside.hook = False


def forked(action, folder, printed, fatal=None):
    """Run something in a process of its own, in a folder; its number. What it prints goes to a file, with the changes it made."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    status = 1
    try:
        torch.set_num_threads(1)  # a forked process has one thread of those there were
        stream = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout = sys.stderr = open(stream, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        watch = Watch(folder, fatal)
        try:
            action()
            status = 0
        finally:
            if status:
                traceback.print_exc()
        watch.asleep = True
        Path(f"{printed}.changes").write_text("\n".join(watch.seen))
    finally:
        os._exit(status)


def finished(action, folder, printed):
    """Run something in a process of its own to its end; the changes that it made below the folder, in order."""
    status = os.waitpid(forked(action, folder, printed), 0)[1]
    assert status == 0, Path(printed).read_text()[-3000:]
    return Path(f"{printed}.changes").read_text().splitlines()


def killed_at(number, action, folder, printed):
    """Run something in a process that dies before its change of this number; whether it came so far."""
    status = os.waitpid(forked(action, folder, printed, number), 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, Path(printed).read_text()[-3000:]
    return os.WIFSIGNALED(status)


def spread(number, most):
    """So many numbers below another, evenly spread, with the first and the last; all where there are no more."""
    if number <= most:
        return [*range(number)]
    return sorted({round(i * (number - 1) / (most - 1)) for i in range(most)})


def content(folder):
    """Bytes of every file below a folder, by its path; hidden ones, too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
