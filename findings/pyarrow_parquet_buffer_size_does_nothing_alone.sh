#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile(buffer_size=...) has no effect unless pre_buffer=False is given as well.
#
# iter_batches(batch_size=100) gives small batches, but holds the column chunks of a whole row group. buffer_size, "read
# buffering when deserializing individual column chunks", is the setting against that; yet chunks are also coalesced and
# fetched ahead (pre_buffer, true by default), which reads them whole before buffer_size is looked at. pre_buffer=False alone
# reads them whole, too. No error, no warning.
#
# Seen, of a row group of 61 MB in batches of 100 rows, MB that pyarrow held at most:
#   as by default  above 60    buffer_size alone  above 60    pre_buffer=False alone  above 60    both  below 10
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "pyarrow==${VERSION:-26.0.1}"

cat > "$work/seen.py" <<'PYTHON'
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
settings = eval(sys.argv[2])
if not os.path.exists(path):
    texts = [os.urandom(500).hex() for _ in range(60_000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=60_000)
    sys.exit()
held = 0
for batch in pq.ParquetFile(path, **settings).iter_batches(batch_size=100):
    held = max(held, pa.total_allocated_bytes())
print(sys.argv[2], held // 10**6, "MB")
assert (held < 10e6) == (len(settings) == 2) and (held > 60e6) == (len(settings) < 2)
PYTHON
run() { "$work/venv/bin/python" "$work/seen.py" "$work/rows.parquet" "$1"; }
run "{}" # writes the file
run "{}"
run "{'buffer_size': 1 << 20}"
run "{'pre_buffer': False}"
run "{'buffer_size': 1 << 20, 'pre_buffer': False}"
