"""A run whose rewards, loss or weights are no longer finite stops, and says where and why."""

import os
import pathlib
import socket

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import multiprocessing

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.losses import argument_checks
from pluralign.models import DPRM, BradleyTerryRM, reward
from pluralign.models._finite import BatchName, Finding, FiniteWatch, message

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


def data(**settings):
    sizes = {"num_train": 24, "num_validation": 4, "num_test": 4, "num_predict": 4}
    return SyntheticDataModule(**{**sizes, **settings}, loader=LoaderConfig(batch_size=2))


class Watched(BradleyTerryRM):
    """Remembers the records of each training batch, and makes one of them go wrong."""

    def __init__(self, *, wrong_at=None, wrong="reward", lr=0.0):
        super().__init__(
            {"config": TINY}, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr), init_from=None
        )
        self.wrong_at, self.wrong, self.seen = wrong_at, wrong, []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["id"])
        return super().training_step(batch, batch_idx)

    def forward(self, batch):
        output = super().forward(batch)
        if self.training and len(self.seen) - 1 == self.wrong_at and self.wrong == "reward":
            output["reward"] = output["reward"] / 0
            output["chosen"] = output["chosen"] / 0
        return output

    def compute_loss(self, output, batch):
        loss = super().compute_loss(output, batch)
        wrong = self.training and len(self.seen) - 1 == self.wrong_at and self.wrong == "loss"
        return loss * torch.inf if wrong else loss


@pytest.fixture
def on_a_device(monkeypatch):
    """As on a GPU: nothing is read in a step, and losses check no values."""
    monkeypatch.setattr(reward, "reads_freely", lambda output: False)
    with argument_checks("never"):
        yield


def test_an_overflow_is_named_with_step_records_and_rate(trainer):
    module = Watched(lr=1e30)
    with pytest.raises(RuntimeError) as caught:
        trainer().fit(module, data())
    first, second = module.seen[-1]
    assert len(module.seen) == 2
    assert str(caught.value).startswith(
        f"rewards are NaN or infinite at step 1 (epoch 0, batch 1), records '{first}', '{second}'. Likely causes: an "
        "update before was too large: lower the learning rate (now 1e+30), warm it up, or set trainer.gradient_clip_val"
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("reward", "rewards are NaN or infinite at step 3"),
        ("loss", "the loss is NaN or infinite, and the rewards are finite, at step 3"),
    ],
)
def test_what_went_wrong_is_told_apart(trainer, wrong, says):
    module = Watched(wrong_at=3, wrong=wrong)
    with pytest.raises(RuntimeError, match=says) as caught:
        trainer().fit(module, data())
    assert len(module.seen) == 4 and all(repr(name) in str(caught.value) for name in module.seen[3])


@pytest.mark.parametrize("wrong", ["reward", "loss"])
def test_on_a_device_the_first_bad_step_is_told_where_the_trainer_logs(trainer, on_a_device, wrong):
    module = Watched(wrong_at=3, wrong=wrong)
    with pytest.raises(RuntimeError, match=r"infinite.*at step 3 \(epoch 0, batch 3\)") as caught:
        trainer(log_every_n_steps=5).fit(module, data())
    assert len(module.seen) == 5, "found at the next look, and no later"
    assert all(repr(name) in str(caught.value) for name in module.seen[3])


def test_an_epoch_ends_with_a_look(trainer, on_a_device):
    module = Watched(wrong_at=9, wrong="loss")
    with pytest.raises(RuntimeError, match="step 9"):
        trainer(log_every_n_steps=50).fit(module, data())
    assert len(module.seen) == 12


class Breaks(L.Callback):
    """A weight that no batch reads goes wrong."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            with torch.no_grad():
                pl_module.backbone.model.embed_tokens.weight[258] = torch.nan


def test_no_checkpoint_has_weights_that_are_not_finite(trainer, tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(
        RuntimeError,
        match=r"trained weights are NaN or infinite after step 2 .*: backbone\.model\.embed_tokens\.weight\. Likely",
    ):
        trainer(Breaks(), saved, enable_checkpointing=True, log_every_n_steps=50).fit(Watched(), data())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_labels_are_looked_at_too(trainer):
    module = DPRM(
        {"config": TINY},
        labels=["a", "b", "c"],
        rewards=[1.0, 0.0, -1.0],
        cost="index",
        judged="comparisons",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30),
    )
    with pytest.raises(
        RuntimeError, match=r"rewards are NaN or infinite at step 1 .*lower the learning rate"
    ):
        trainer().fit(module, data(judgements="crowd"))


def test_a_run_goes_on_after_a_fit_and_names_are_bounded(trainer):
    module = Watched()
    trainer(max_epochs=2).fit(module, data())
    trainer().validate(module, data(), verbose=False)
    assert str(BatchName("step 1", [str(i) for i in range(20)])).endswith("'6', '7' and 12 more")
    assert str(BatchName("step 1", [])) == "step 1, whose batch names no records"


def test_the_precision_is_among_the_causes():
    finding = Finding("rewards", "step 4", [])
    assert "16-mixed holds no number above 65,504: use bf16-mixed" in message(
        finding, precision="16-mixed", rate=0.1
    )
    assert "65,504" not in message(finding, precision="bf16-mixed", rate=None)


def test_a_watch_remembers_as_many_batches_as_come_between_two_looks():
    watch, module = FiniteWatch(4), torch.nn.Linear(1, 1)
    for i in range(7):
        value = torch.tensor([torch.nan if i in (4, 6) else 1.0])
        watch.note({"reward": value}, value.sum(), BatchName(f"step {i}", [f"r{i}"]))
    assert watch.look(module, 1) == Finding("rewards", "step 4, records 'r4'", [])


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    reward.reads_freely = lambda output: False
    argument_checks("never")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    module = Watched(wrong_at=2 if rank == 1 else None, wrong="loss")
    run = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, log_every_n_steps=4, **quiet
    )
    try:
        run.fit(module, data(cache_dir=folder))
    except RuntimeError as error:
        pathlib.Path(folder, f"{rank}.txt").write_text(f"{error}\n{module.seen[2]}\n{len(module.seen)}")


@pytest.mark.slow
def test_every_rank_names_the_rank_where_it_began(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[2]
    )  # the spawned processes find this module by name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_two_ranks, args=(str(tmp_path), port), nprocs=2)
    (first, _, steps), (second, names, _) = (
        (tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)
    )
    assert first == second and steps == "4"
    listed = names.strip("[]")
    assert f"step 2 (epoch 0, batch 2), records {listed}, on rank 1, " in first
    assert "on rank 0" not in first
