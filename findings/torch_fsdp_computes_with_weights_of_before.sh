#!/usr/bin/env bash
# torch 2.13.0: fully_shard computes with weights of before, after a pass without gradients and a change of the shards.
#
# The outermost fully_shard module keeps its gathered weights after a forward pass (others with reshard_after_forward=False),
# until a backward pass is over. After a pass without gradients, such as a validation, there is none. Shards that are
# changed in place then, by whoever took them before (an average, a perturbation of the weights, a step of an optimiser whose
# gradients were there already), are not looked at: the next pass computes with the weights of before, and gives no error.
# What is more, module.parameters() gives the gathered weights meanwhile, not the shards. module.reshard() helps with both.
#
# Seen, of a layer of ones on four ones, one process, gloo, shards doubled after a pass without gradients:
#        4 at the next pass (8 is right), 8 after reshard(); type of the parameter: not DTensor before, DTensor after it
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==${VERSION:-2.13.0}" numpy

cat > "$work/seen.py" <<'PYTHON'
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
mesh, x = init_device_mesh("cpu", (1,)), torch.ones(1, 4)


layer = nn.Linear(4, 1, bias=False)
nn.init.ones_(layer.weight)
fully_shard(layer, mesh=mesh)
(shard,) = layer.parameters()
seen, kinds = [], []
with torch.no_grad():
    layer(x)
    shard.mul_(2)
    seen.append(float(layer(x)))
    kinds.append(isinstance(next(layer.parameters()), DTensor))
    layer.reshard()
    kinds.append(isinstance(next(layer.parameters()), DTensor))
    seen.append(float(layer(x)))
print("doubled:", seen[0], "at the next pass,", seen[1], "after reshard(); shards listed:", kinds)

distributed.destroy_process_group()
assert seen == [4.0, 8.0], seen
assert kinds == [False, True], kinds
PYTHON
"$work/venv/bin/python" "$work/seen.py" "$work"
