#!/usr/bin/env bash
# datasets 5.2.0: in a column of mixed types, text that happens to be JSON becomes the value it spells.
#
# A column of several types (a side that is text in one row and messages in the next) gets the feature Json, by itself in
# load_dataset("json"), by features=, or by on_mixed_types="use_json". On encoding, text that json.loads accepts is kept as
# it is, and not written as JSON text; on decoding it is what it spells. An answer "7" is the number 7, "null" and "NaN" are
# None, and "true" is a bool. No error, no warning; a column of text alone keeps its text.
#
# Seen, of "seven" "7" "null" "true" '"q"' '[1]' beside a list:   seven  7 (int)  None  True  q  [1] (list)
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==${VERSION:-5.2.0}" "pyarrow==26.0.1"

cat > "$work/seen.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()
texts = ["seven", "7", "null", "true", '"q"', "[1]"]
rows = [{"side": value} for value in [*texts, [{"role": "user"}]]]
file = Path(sys.argv[1], "rows.jsonl")
file.write_text("".join(json.dumps(row) + "\n" for row in rows))
loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=sys.argv[1])
built = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
alone = datasets.Dataset.from_list(rows[:-1])
seen = [list(data["side"]) for data in (loaded, built, alone)]
print(*seen, sep="\n")
assert seen[0] == seen[1] == ["seven", 7, None, True, "q", [1], [{"role": "user"}]]
assert seen[2] == texts
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py" "$work"
