#!/usr/bin/env bash
# datasets 5.2.0: the same rows have other tool calls when they come from a list in memory than from a file.
#
# load_dataset("json") keeps objects whose keys differ from row to row as they are (a Json feature); Dataset.from_list
# makes one struct of them, so that each call has the arguments of all others, null. A chat template that
# prints the arguments prints them, too: the model reads calls that nobody made, and two calls become more alike.
#
# Seen, of the calls f(city="Oslo") and f(zone="UTC"):
#   from a file: {'city': 'Oslo'};  from_list: {'city': 'Oslo', 'zone': None}
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==${VERSION:-5.2.0}" "pyarrow==26.0.1"

cat > "$work/seen.py" <<'PYTHON'
import json
import sys

from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()
rows = [
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]}
    for arguments in ({"city": "Oslo"}, {"zone": "UTC"})
]
path = f"{sys.argv[1]}/rows.jsonl"
with open(path, "w") as stream:
    stream.writelines(json.dumps(row) + "\n" for row in rows)


def arguments(dataset):
    return dataset[0]["messages"][0]["tool_calls"][0]["function"]["arguments"]


file = load_dataset("json", data_files=path, split="train", cache_dir=f"{sys.argv[1]}/cache")
seen = {
    "from a file": arguments(file),
    "from_list": arguments(Dataset.from_list(rows)),
}
print(seen)
assert seen["from a file"] == {"city": "Oslo"}
assert seen["from_list"] == {"city": "Oslo", "zone": None}
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py" "$work"
