#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1: a column of numbers and words comes back from Parquet with quotes around the words.
#
# A column whose values are of several types (1, 2, "tie") is a Json feature. to_parquet and save_to_disk write it as the
# extension type arrow.json, which load_dataset decodes; pyarrow itself gives its text: '1' and '"tie"'. Whoever compares a
# winner column with "tie" finds no tie, and messages' objects are text.
#
# Seen, of the values 1, "tie":  datasets: 1, 'tie';  pyarrow.parquet: '1', '"tie"'
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release of datasets.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==${VERSION:-5.2.0}" "pyarrow==26.0.1"

cat > "$work/seen.py" <<'PYTHON'
import json
import sys

import pyarrow.parquet
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
folder = sys.argv[1]
with open(f"{folder}/rows.jsonl", "w") as stream:
    stream.writelines(json.dumps({"winner": winner}) + "\n" for winner in (1, "tie"))
rows = load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train", cache_dir=f"{folder}/cache")
rows.to_parquet(f"{folder}/rows.parquet")
again = load_dataset("parquet", data_files=f"{folder}/rows.parquet", split="train", cache_dir=f"{folder}/cache")
seen = {
    "datasets": again["winner"][:],
    "pyarrow": pyarrow.parquet.read_table(f"{folder}/rows.parquet")["winner"].to_pylist(),
}
print(seen)
assert seen["datasets"] == [1, "tie"]
assert seen["pyarrow"] == ["1", '"tie"']
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py" "$work"
