#!/usr/bin/env bash
# rewardbench 0.1.4: in the subset Ties of RewardBench 2, right answers with equal rewards score less than nearly equal ones.
#
# The subset asks that answers which are equally right get rewards that differ little among themselves and much from wrong
# ones. Its last term, 0.01 tanh(gap / spread - 1), grows as the spread of the right ones falls; but process_single_model() leaves
# prompts with a spread of exactly 0 out of that mean, and where all are so the term is 0. So the best model there can be, and
# any whose rewards are rounded (bfloat16), loses what one with a tiny spread gets. In the repository (05a9005efb60, not released)
# division by 0 gives tanh(inf) = 1 instead. A published number needs the version beside it.
#
# Seen:  right answers 1.00 and 1.00, wrong 0 -> 1.0;  right answers 1.01 and 1.00, wrong 0 -> 1.01
# Fails if that changes. PYTHON names the interpreter (3.11), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "rewardbench==${VERSION:-0.1.4}" "transformers==4.51.0" \
  "trl==0.17.0" "datasets==3.6.0" "torch==2.13.0"

cat > "$work/seen.py" <<'PYTHON'
from datasets import Dataset
from rewardbench.utils import process_single_model


def score(first, second):
    prompts = [
        {"id": "tied:1", "scores": [first, second, 0.0], "num_correct": 2},
        {"id": "ref:1", "scores": [second, 0.0], "num_correct": 1},
    ]
    return round(float(process_single_model(Dataset.from_list(prompts))[1]), 6)


equal, unequal = score(1.0, 1.0), score(1.01, 1.0)
print(f"equal right answers: {equal}; nearly equal ones: {unequal}")
assert (equal, unequal) == (1.0, 1.01)
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore "$work/seen.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
