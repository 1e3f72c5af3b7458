#!/usr/bin/env bash
# torch 2.13.0: a checkpoint of which one bit has changed is loaded without a word, though the file says that it has.
#
# torch.save writes a zip archive, and with every tensor a CRC-32 (torch.serialization.set_crc32_options, on by default).
# torch.load compares none of them, mapped or not: a bit that a disk, a cable or a copy has turned becomes a weight. Python's
# zipfile.testzip() tells at once, in one pass over the file.
#
# Seen:  loaded: other weights;  loaded mapped: other weights;  zipfile: data/0 of the archive is damaged
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==${VERSION:-2.13.0}" numpy

cat > "$work/seen.py" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

import torch

path, weight = Path(sys.argv[1]), torch.arange(1000.0)
torch.save({"weight": weight}, path)
content = bytearray(path.read_bytes())
content[content.find(weight.numpy().tobytes()) + 403] ^= 64
path.write_bytes(content)

for how in ("loaded", "loaded mapped"):
    found = torch.load(path, weights_only=True, mmap=how == "loaded mapped")["weight"]
    print(f"{how}:", "the same weights" if torch.equal(found, weight) else "other weights")
    assert not torch.equal(found, weight)
damaged = zipfile.ZipFile(path).testzip()
print("zipfile:", damaged)
assert damaged is not None
PYTHON
"$work/venv/bin/python" "$work/seen.py" "$work/weights.pt"
