#!/usr/bin/env bash
# lightning 2.6.6: EMAWeightAveraging that is told to begin late validates, saves and keeps the weights before training.
#
# The callback copies the module in setup and exchanges the copy for the module in every validation, puts it into every
# checkpoint and copies it back at the end, whether or not anything was averaged yet. With update_starting_at_step beyond
# the run's steps all training is undone; before that step every validation measures the initial weights, and
# ModelCheckpoint keeps them as the best. And whole numbers are averaged like others and cut: buffers such as the position
# ids of BERT, 0 1 2 3 ..., come out one too low in places, since 0.9 * 3 + 0.1 * 3 is below 3 in floating point.
#
# Seen:  moved by 20 steps of training: 0.0 with the late average, more without
#        position ids 0 to 15 after an average of 20 equal copies: others than 0 to 15
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "lightning==${VERSION:-2.6.6}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import logging
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("position_ids", torch.arange(16))

    def training_step(self, batch, batch_idx):
        return (self.weight - batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(20, 1)), batch_size=1)


def trained(*callbacks):
    module = Line()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    L.Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=list(callbacks), **quiet).fit(module)
    return module


plain = float(trained().weight)
late = float(trained(EMAWeightAveraging(decay=0.9, update_starting_at_step=100)).weight)
positions = trained(EMAWeightAveraging(decay=0.9)).position_ids.tolist()
print("moved by 20 steps of training:", round(plain, 3), "without,", late, "with the late average")
print("position ids:", positions)
assert plain > 0.5 and late == 0.0
assert positions != list(range(16))
PYTHON
"$work/venv/bin/python" "$work/seen.py"
