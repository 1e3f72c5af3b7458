#!/usr/bin/env bash
# lightning 2.6.6: a checkpoint that replaces another is written into it, byte by byte, if TMPDIR is on another file system.
#
# TorchCheckpointIO writes to the temporary folder and moves the file. Within one file system that renames, and whoever
# reads the name finds the old file or the new one, whole. Between two (a run on a network disk, TMPDIR in memory or on
# the node, as clusters have it) the move is a copy onto the old file, which is cut before the first new byte: while it
# lasts there is no whole checkpoint under that name, and a process that ends then leaves none.
#
# Seen, by the number of the file that the name stands for:  same file system: another file;  other: the same file
# Fails if that changes. Needs two file systems: OTHER is a folder on one that $PWD is not on (default /dev/shm).
# PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
other="${OTHER:-/dev/shm}"
if [ "$(stat -c %d "$PWD")" = "$(stat -c %d "$other")" ]; then
    echo "$other is on the file system of $PWD: name a folder on another one by OTHER" >&2
    exit 2
fi
work="$(mktemp -d)"
runs="$(mktemp -d -p "$PWD")"
far="$(mktemp -d -p "$other")"
trap 'rm -rf "$work" "$runs" "$far"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "lightning==${VERSION:-2.6.6}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import sys
import tempfile
from pathlib import Path

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

runs, far = map(Path, sys.argv[1:])


def replaced(temporary):
    """Whether a second checkpoint under a name is another file."""
    tempfile.tempdir = str(temporary)
    path = runs / "last.ckpt"
    path.unlink(missing_ok=True)
    for step in range(2):
        TorchCheckpointIO().save_checkpoint({"step": step, "weight": torch.ones(1000)}, str(path))
        numbers = [path.stat().st_ino] if step == 0 else [*numbers, path.stat().st_ino]
    assert torch.load(path, weights_only=True)["step"] == 1
    return numbers[0] != numbers[1]


near, away = replaced(runs), replaced(far)
print("same file system:", "another file" if near else "the same file")
print("other file system:", "another file" if away else "the same file")
assert near and not away
PYTHON
"$work/venv/bin/python" "$work/seen.py" "$runs" "$far"
