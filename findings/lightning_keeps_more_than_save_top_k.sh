#!/usr/bin/env bash
# lightning 2.6.6: a run that is killed and goes on keeps more checkpoints than `save_top_k`, and nothing ever removes them.
#
# ModelCheckpoint forgets the best checkpoint of before, writes the new one, then removes the old. A process that dies in between
# leaves both; the new one, from which the run goes on, no longer knows of the old. And the checkpoint that a run went on from is
# never removed either, by intent, also when a better one takes its place. So each such kill costs up to two files of
# the size of a checkpoint, and whoever counts on `save_top_k` for the room on a disk counts too low.
#
# Seen:  killed: step=1.ckpt step=2.ckpt;  at the end, with save_top_k=1: step=1.ckpt step=2.ckpt step=6.ckpt
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "lightning==${VERSION:-2.6.6}" numpy

cat > "$work/seen.py" <<'PYTHON'
import logging
import os
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Falling(L.LightningModule):
    """Every step is better than all before."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.log("loss", -float(self.global_step))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Dies(TorchCheckpointIO):
    """The machine is gone when the first old checkpoint is about to be removed."""

    def remove_checkpoint(self, path):
        os._exit(0)


folder = Path("checkpoints")
again = sys.argv[1] == "again"
keep = ModelCheckpoint(folder, "{step}", monitor="loss", save_top_k=1, every_n_train_steps=1)
trainer = L.Trainer(
    accelerator="cpu", max_steps=6, callbacks=[keep], plugins=[] if again else [Dies()], logger=False,
    enable_progress_bar=False, enable_model_summary=False,
)
newest = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns) if again else None
trainer.fit(Falling(), torch.utils.data.DataLoader(torch.zeros(6, 1)), ckpt_path=newest, weights_only=True)
PYTHON
cd "$work"
"$work/venv/bin/python" seen.py first >/dev/null 2>&1
killed="$(ls checkpoints | xargs)"
"$work/venv/bin/python" seen.py again >/dev/null 2>&1
ended="$(ls checkpoints | xargs)"
echo "killed: $killed"
echo "at the end, with save_top_k=1: $ended"
[ "$killed" = "step=1.ckpt step=2.ckpt" ]
[ "$ended" = "step=1.ckpt step=2.ckpt step=6.ckpt" ]
