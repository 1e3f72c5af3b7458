#!/usr/bin/env bash
# trl 1.16.0: extract_prompt() of two texts cuts by characters, so that what two answers begin with is the user's.
#
# Of a pair without a prompt column the longest common beginning becomes the prompt; a single space before the cut is
# spared, and nothing else. Answers that begin with the same letters or digits lose them, and of two equal texts the last
# letter is the answer. No error, no warning. A model trained on such rows learns to score pieces of words.
#
# Seen:  "Name a town. Marseille" / "... Marsala"  -> prompt "Name a town. Mars", answers "eille" and "ala"
#        "Q: 7+8? A: 15" / "... 16"                -> prompt "Q: 7+8? A: 1",      answers "5" and "6"
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "trl==${VERSION:-1.16.0}" "transformers==5.24.0" \
  "datasets==5.2.0" "torch==2.13.0"

cat > "$work/seen.py" <<'PYTHON'
from trl.data_utils import extract_prompt

PAIRS = [
    ("Name a town. Marseille", "Name a town. Marsala", ("Name a town. Mars", "eille", "ala")),
    ("Q: 7+8? A: 15", "Q: 7+8? A: 16", ("Q: 7+8? A: 1", "5", "6")),
]
for chosen, rejected, expected in PAIRS:
    found = extract_prompt({"chosen": chosen, "rejected": rejected})
    print(found)
    assert (found["prompt"], found["chosen"], found["rejected"]) == expected
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py"
