#!/usr/bin/env bash
# `pluralign fit` by torchrun: a process for each GPU, on one machine or, called on each of them, on several.
#
#   configs/cluster/torchrun.sh --config configs/pal_arena.yaml --config configs/cluster/pal.yaml [options of fit]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first configs/cluster/torchrun.sh ...      # on the first of two machines
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=first configs/cluster/torchrun.sh ...      # on the second
#
# The words are those after `pluralign fit`. Set by environment, with defaults:
#   NPROC (every GPU)  NNODES (1)  NODE_RANK (0)  MASTER_ADDR (127.0.0.1)  MASTER_PORT (29500)
#   RUNS      folder of the run, which all machines see (runs/torchrun)
#   RESTARTS  how often the run goes on from its last checkpoint after a failure (0); all machines alike
#   GRACE     seconds that processes have to write a checkpoint when this script is told to end (120; an older torchrun gives 30)
#   PYTHON    interpreter that has pluralign and torch (python)
set -euo pipefail

runs=${RUNS:-runs/torchrun}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-120}
devices=${NPROC:-auto}
launcher=(
    "${PYTHON:-python}" -m torch.distributed.run
    --nnodes="${NNODES:-1}" --nproc-per-node="${NPROC:-gpu}" --node-rank="${NODE_RANK:-0}"
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${MASTER_PORT:-29500}"
)
child= told=
# SIGTERM and USR1 are handed on as SIGTERM, which torchrun knows in every version.
trap 'told=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM USR1

for ((attempt = 0; ; attempt++)); do
    words=("$@" --trainer.num_nodes="${NNODES:-1}" --trainer.devices="$devices" --trainer.default_root_dir="$runs")
    if [[ -n $(find "$runs" -name '*.ckpt' -print -quit 2>/dev/null) ]]; then
        words+=(--ckpt_path last)
    fi
    "${launcher[@]}" --module pluralign.train fit "${words[@]}" &
    child=$! status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends the waiting, not the run
        status=0
        wait "$child" || status=$?
    done
    [[ -z $told ]] || exit 143
    [[ $status != 0 && $attempt -lt ${RESTARTS:-0} ]] || exit "$status"
done
