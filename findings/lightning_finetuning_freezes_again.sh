#!/usr/bin/env bash
# lightning 2.6.6: a run with BackboneFinetuning that goes on from a checkpoint trains its backbone no more.
#
# setup freezes the backbone at every start. The callback's own state brings the optimiser's parameter groups back, with
# the backbone among them, but not requires_grad, and the epoch at which it unfreezes is over: no gradient reaches the
# backbone for the rest of the run, and nothing is said. Loss goes down, since the head still learns.
#
# Seen, by how far three more epochs move the backbone:  uninterrupted: more than 0;  gone on: 0.0
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "lightning==${VERSION:-2.6.6}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import logging
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint

folder = sys.argv[1]
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Two(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return (self.head(self.backbone(batch[0])) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.01)

    def train_dataloader(self):
        rows = torch.linspace(-1, 1, 32).reshape(8, 4)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=4)


def trained(epochs, checkpoint=None):
    module, quiet = Two(), {"enable_progress_bar": False, "enable_model_summary": False}
    savers = [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    tune = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[tune, *savers], **quiet)
    trainer.fit(module, ckpt_path=checkpoint)
    return module.backbone.weight.detach()


whole = trained(6)
before = torch.load(f"{folder}/epoch=2.ckpt", weights_only=True)["state_dict"]["backbone.weight"]
again = trained(6, f"{folder}/epoch=2.ckpt")
uninterrupted, gone_on = (float((weight - before).abs().max()) for weight in (whole, again))
print("uninterrupted:", uninterrupted, " gone on:", gone_on)
assert uninterrupted > 0 and gone_on == 0.0
PYTHON
"$work/venv/bin/python" "$work/seen.py" "$work"
