"""SaveOnSignal: a run that is told to end is kept after a whole step, and goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pluralign.callbacks import AtomicCheckpointIO, SaveOnSignal
from pluralign.callbacks.save_on_signal import _status
from pluralign.models import BackboneConfig, BradleyTerryRM

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals are others there"),
    pytest.mark.skipif(
        threading.current_thread() is not threading.main_thread(),
        reason="signals reach the first thread alone",
    ),
]


class Tells(L.Callback):
    """Sends this process a signal during some batch of training, or of a validation."""

    def __init__(self, number=signal.SIGTERM, batch=2, validation=False):
        self.number, self.batch, self.validation = number, batch, validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.validation and batch_idx == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.validation:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def fit(data, tiny, tmp_path):
    """A fit of twelve batches with dropout, kept in a folder; its trainer and module, and how it ended."""

    def run(*callbacks, checkpoint=None, saver=True, **settings):
        L.seed_everything(0, verbose=False)
        module = BradleyTerryRM(
            BackboneConfig(config=tiny(attention_dropout=0.3)), optimizer=partial(torch.optim.AdamW, lr=1e-2)
        )
        savers = [ModelCheckpoint(tmp_path, every_n_train_steps=100, save_top_k=0, save_last=True)]
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[*callbacks, *(savers if saver else [ModelCheckpoint(tmp_path, save_top_k=0)])],
            **{"max_epochs": 2, "num_sanity_val_steps": 0, **settings},
        )
        try:
            trainer.fit(module, data(), ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException as error:
            return trainer, module, error.code
        return trainer, module, None

    return run


@pytest.mark.parametrize(
    ("told", "settings", "step"),
    [
        (Tells(), {}, 3),
        (Tells(signal.SIGUSR1), {"accumulate_grad_batches": 4}, 1),
        (Tells(batch=5), {}, 6),
        (Tells(validation=True), {"val_check_interval": 3}, 4),
    ],
    ids=["sigterm", "sigusr1_within_a_window", "at_the_end_of_an_epoch", "within_a_validation"],
)
def test_a_run_that_was_told_to_end_goes_on_as_if_nothing_had_happened(fit, tmp_path, told, settings, step):
    _, whole, _ = fit(**settings)
    before = signal.getsignal(told.number)
    (tmp_path / "last.ckpt").unlink()
    trainer, _, code = fit(told, SaveOnSignal(), **settings)
    assert (code, trainer.global_step) == (128 + told.number, step)
    assert signal.getsignal(told.number) is before
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == step and not content["pluralign"]["run"]["between_steps"]
    trainer, module, code = fit(SaveOnSignal(), checkpoint=tmp_path / "last.ckpt", **settings)
    assert code is None
    for name, value in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"], "the run overwrites its own"


def test_a_run_with_no_step_left_is_finished(fit, tmp_path):
    trainer, _, code = fit(Tells(), SaveOnSignal(), max_steps=3)
    assert code is None and trainer.state.finished


def test_without_one_who_keeps_the_latest_state_the_run_has_a_file_of_its_own(fit, tmp_path):
    fit(Tells(), SaveOnSignal(), saver=False)
    assert torch.load(tmp_path / "checkpoints" / "stopped.ckpt", weights_only=True)["global_step"] == 3


def test_another_runs_file_is_left_alone(fit, tmp_path):
    (tmp_path / "last.ckpt").write_text("another run's")
    fit(Tells(), SaveOnSignal())
    assert (tmp_path / "last.ckpt").read_text() == "another run's"
    assert torch.load(tmp_path / "last-v1.ckpt", weights_only=True)["global_step"] == 3


SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def test_on_slurm_nothing_is_written_in_the_middle_of_a_step_and_nothing_is_requeued(
    fit, tmp_path, monkeypatch
):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(subprocess, "call", pytest.fail)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", pytest.fail)
    trainer, _, code = fit(Tells(signal.SIGUSR1), SaveOnSignal())
    assert (code, trainer.global_step) == (138, 3)
    assert not list(tmp_path.rglob("hpc_ckpt_*")) and (tmp_path / "last.ckpt").is_file()


def test_processes_that_lightning_started_leave_the_status_to_the_first():
    def trainer(rank, environment):
        strategy = SimpleNamespace(cluster_environment=environment)
        return SimpleNamespace(strategy=strategy, local_rank=rank)

    started = LightningEnvironment()
    assert [_status(trainer(rank, started), 15) for rank in (0, 1)] == [143, 0]
    assert [_status(trainer(rank, None), 10) for rank in (0, 1)] == [138, 138]
