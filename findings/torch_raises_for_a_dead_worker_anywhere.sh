#!/usr/bin/env bash
# torch 2.13.0: that a worker of a DataLoader has died is raised by whatever line its parent happens to be at.
#
# The loader installs a handler of SIGCHLD which raises a RuntimeError in the main thread. So it is not the loader's next batch that
# fails, but a sleep, an evaluation, a test's own cleaning up; and an `except RuntimeError` around something else, such as one
# that halves a batch when memory is full, takes the death of a worker for its own. What comes after is another error, without
# the signal, from the loader. A worker that dies while it hands a batch over may break a socket first: then it is a
# ConnectionResetError. Whoever wants to know asks for the sentinels of the workers' processes.
#
# Seen:  raised by a sleep: RuntimeError: DataLoader worker (pid N) is killed by signal: Killed.
#        then by the loader: RuntimeError: DataLoader worker (pid(s) N) exited unexpectedly
# Fails if that changes. Linux and macOS. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==${VERSION:-2.13.0}" numpy

cat > "$work/seen.py" <<'PYTHON'
import os
import re
import signal
import time

import torch
from torch.utils.data import DataLoader


def told(error):
    return f"{type(error).__name__}: {re.sub(r'[0-9]+', 'N', str(error)).strip()}"


if __name__ == "__main__":
    batches = iter(DataLoader(torch.arange(100.0), batch_size=10, num_workers=1))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    try:
        time.sleep(30)
        elsewhere = "nothing"
    except RuntimeError as error:
        elsewhere = told(error)
    print("raised by a sleep:", elsewhere)
    try:
        number = len(list(batches))
        later = f"nothing, {number} batches"
    except RuntimeError as error:
        later = told(error)
    print("then by the loader:", later)
    assert elsewhere.startswith("RuntimeError: DataLoader worker (pid N) is killed by signal: Killed")
    assert later.startswith("RuntimeError: DataLoader worker (pid(s) N) exited unexpectedly")
PYTHON
"$work/venv/bin/python" "$work/seen.py"
