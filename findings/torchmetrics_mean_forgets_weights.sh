#!/usr/bin/env bash
# torchmetrics 1.9.0: MeanMetric(nan_strategy="disable") takes weights and counts every value once.
#
# The setting is said to leave out the search for NaN, which makes the host wait for the device at every update. In that
# branch BaseAggregator._cast_and_nan_check_input puts ones in the place of the weights it was given. No error, no
# warning: the mean of batches of unequal size is their mean of means.
#
# Seen, of the values 1 and 3 with weights 3 and 1:  ignore, warn, error, 0.0: 1.5;  disable: 2.0
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torchmetrics==${VERSION:-1.9.0}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import torch
from torchmetrics import MeanMetric


def mean(strategy):
    metric = MeanMetric(nan_strategy=strategy)
    metric.update(torch.tensor(1.0), weight=torch.tensor(3.0))
    metric.update(torch.tensor(3.0), weight=torch.tensor(1.0))
    return float(metric.compute())


seen = {strategy: mean(strategy) for strategy in ("ignore", "warn", "error", 0.0, "disable")}
print(seen)
assert [seen[strategy] for strategy in ("ignore", "warn", "error", 0.0)] == [1.5] * 4
assert seen["disable"] == 2.0
PYTHON
"$work/venv/bin/python" "$work/seen.py"
