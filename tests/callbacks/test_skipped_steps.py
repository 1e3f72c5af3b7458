"""Steps whose gradients are not finite: nothing of them stays, they are counted, and too many of them end the run."""

import copy
import functools
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import multiprocessing

from pluralign.callbacks import SkippedSteps
from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BradleyTerryRM
from pluralign.train import main

ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3)
TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


class Breaking(BradleyTerryRM):
    """Some of its batches have a loss, or a gradient, that is not finite."""

    def __init__(self, batches=(), *, loss=(), value=torch.nan, optimizer=ADAMW, **settings):
        super().__init__({"config": TINY}, optimizer=optimizer, **settings)
        self.bad, self.bad_loss, self.value = set(batches), set(loss), value

    def on_after_backward(self):
        if self.trainer.fit_loop.total_batch_idx in self.bad:
            self.head.weight.grad[0, 0] = self.value

    def compute_loss(self, output, batch):
        loss = super().compute_loss(output, batch)
        bad = self.training and self.trainer.fit_loop.total_batch_idx in self.bad_loss
        return loss * torch.nan if bad else loss


class Notes(L.Callback):
    """What weights and optimiser were after each batch."""

    def __init__(self):
        self.states, self.rates, self.shown = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states.append(
            copy.deepcopy((dict(pl_module.named_parameters()), trainer.optimizers[0].state_dict()))
        )
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.shown.append(float(trainer.callback_metrics["train/skipped_steps"]))


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def data(**settings):
    sizes = {"num_train": 24, "num_validation": 4, "num_test": 4, "num_predict": 4}
    return SyntheticDataModule(**{**sizes, **settings}, loader=LoaderConfig(batch_size=4))


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
@pytest.mark.parametrize(
    ("optimizer", "value"),
    [
        (ADAMW, torch.nan),
        (functools.partial(torch.optim.AdamW, lr=1e-3, fused=True), torch.inf),
        (functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1), -torch.inf),
        (functools.partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5), torch.nan),
    ],
)
def test_a_step_that_is_left_out_leaves_no_trace(trainer, optimizer, value):
    notes, skipped = Notes(), SkippedSteps()
    run = trainer(skipped, notes, gradient_clip_val=1.0)
    run.fit(Breaking({2, 3}, value=value, optimizer=optimizer), data())
    assert [equal(*pair) for pair in zip(notes.states, notes.states[1:], strict=False)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert notes.shown == [0, 0, 1, 2, 2, 2] and (skipped.total, skipped.in_a_row) == (2, 0)
    assert run.global_step == 6, "it counts as a step"


def test_the_learning_rate_follows_its_schedule(trainer):
    notes = Notes()
    module = Breaking(
        {1}, lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    )
    with pytest.warns(UserWarning, match="the gradient is NaN or infinite"):
        trainer(SkippedSteps(), notes).fit(module, data())
    assert notes.rates == [1e-3 / 2 ** (i + 1) for i in range(6)]


def test_the_first_one_is_named_with_its_records(trainer):
    module, loaded = Breaking({2}), []
    module.on_train_batch_start = lambda batch, batch_idx: loaded.append(batch["id"])
    with pytest.warns(UserWarning) as caught:
        trainer(SkippedSteps()).fit(module, data())
    (told,) = [str(each.message) for each in caught if "gradient" in str(each.message)]
    records = ", ".join(map(repr, loaded[2]))
    assert told == (
        f"the gradient is NaN or infinite at step 2 (epoch 0, batch 2), records {records}, of head.weight: the step is left "
        "out; train/skipped_steps counts on"
    )


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
def test_a_loss_that_is_not_finite_is_passed_over_and_no_metric_counts_it(trainer):
    run, module = trainer(SkippedSteps()), Breaking(loss={4})
    run.fit(module, data())
    assert bool(torch.isfinite(run.callback_metrics["train/log_loss"]))
    assert bool(torch.isfinite(run.callback_metrics["val/loss"]))
    with pytest.raises(RuntimeError, match="the loss is NaN or infinite"):  # it holds for that run alone
        trainer().fit(Breaking(loss={4}), data())
    assert not module.passes_over


def test_weights_that_are_not_finite_end_a_run_all_the_same(trainer):
    class Ruined(Notes):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                torch.nn.init.constant_(pl_module.head.weight, torch.nan)

    with pytest.raises(RuntimeError, match=r"rewards are NaN or infinite at step 2 .*weights head\.weight"):
        trainer(SkippedSteps(), Ruined()).fit(Breaking(), data())


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
@pytest.mark.parametrize(
    ("patience", "says"),
    [
        (0, r"infinite at step 1 \(epoch 0, batch 1\), records .*, of head\.weight; the weights are as"),
        (2, r"infinite in 3 steps in a row, the last of them at step 3 .*learning rate \(now 0\.001\)"),
    ],
)
def test_too_many_in_a_row_end_the_run_with_the_weights_of_before(trainer, patience, says):
    notes, module = Notes(), Breaking({1, 2, 3, 4})
    with pytest.raises(RuntimeError, match=says):
        trainer(SkippedSteps(patience), notes).fit(module, data())
    assert len(notes.states) == patience + 1
    assert equal(notes.states[0][0], dict(module.named_parameters()))
    assert not module.passes_over


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
def test_with_accumulation_the_whole_step_is_left_out(trainer):
    notes, skipped = Notes(), SkippedSteps()
    run = trainer(skipped, notes, accumulate_grad_batches=2)
    run.fit(Breaking({2}), data())
    same = [equal(*pair) for pair in zip(notes.states, notes.states[1:], strict=False)]
    assert same == [False, True, True, True, False] and skipped.total == 1 and run.global_step == 3


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite", "ignore:Detected call of")
def test_the_scaler_of_float16_finds_its_scale(trainer):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    notes, skipped = Notes(), SkippedSteps(patience=1)
    with pytest.raises(RuntimeError, match="in 2 steps in a row, the last of them at step 4"):
        trainer(skipped, notes, plugins=[plugin]).fit(Breaking(range(6), loss=range(6)), data())
    # Left out at scales of 8, 4 and 2, and then at 1, where it counts.
    assert skipped.total == 5 and skipped.in_a_row == 2 and scaler.get_scale() == 0.5
    assert all(equal(notes.states[0], state) for state in notes.states[1:])


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
def test_a_run_that_goes_on_counts_on(trainer, tmp_path):
    first = trainer(SkippedSteps(patience=1))
    first.fit(Breaking({1, 5}), data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    skipped = SkippedSteps(patience=1)
    run = trainer(skipped, max_epochs=2)
    with pytest.raises(RuntimeError, match="in 2 steps in a row, the last of them at step 6"):
        run.fit(Breaking({6}), data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert (skipped.total, skipped.in_a_row) == (3, 2)


def test_what_steps_by_itself_is_refused(trainer):
    class Engine(SingleDeviceStrategy):
        handles_gradient_accumulation = True

    strategy = Engine(torch.device("cpu"))
    with pytest.raises(ValueError, match="SkippedSteps sees no gradients under Engine"):
        trainer(SkippedSteps(), strategy=strategy).fit(Breaking(), data())
    with pytest.raises(ValueError, match=r"patience must be finite and >= 0; got -1"):
        SkippedSteps(-1)


@pytest.mark.filterwarnings("ignore:the gradient is NaN or infinite")
def test_the_run_tells_how_many(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BradleyTerryRM, "on_after_backward", Breaking.on_after_backward)
    monkeypatch.setattr(BradleyTerryRM, "bad", {0, 2}, raising=False)
    monkeypatch.setattr(BradleyTerryRM, "value", torch.nan, raising=False)
    conf = str(Path(__file__).parents[1] / "conf" / "bradley_terry_synthetic.yaml")
    words = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config", conf, *words, "--trainer.callbacks+=SkippedSteps", "--trainer.callbacks.patience=3"])  # fmt: skip
    folder = Path("runs/lightning_logs/version_0")
    assert json.loads((folder / "run.json").read_text())["skipped_steps"] == 2
    capsys.readouterr()
    main(["runs", "show", str(folder)])
    assert "2 of 6 optimiser steps left out" in " ".join(capsys.readouterr().out.split())


# Two ranks ---------------------------------------------------------------------------------------------


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _gradients_of_shards(rank, folder, port):
    """A gradient that is not finite in the shard of one rank alone: both leave the step out."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    module = torch.nn.Linear(
        3, 1
    )  # the weight of one row is all the first rank's: the other has an empty shard
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module.device = torch.device("cpu")
    skipped = SkippedSteps()
    progress = {"global_step": 7, "current_epoch": 0, "fit_loop": SimpleNamespace(batch_idx=7)}
    run = SimpleNamespace(world_size=2, precision_plugin=None, **progress)
    taken = []
    for bad in (False, True, False):
        optimizer.zero_grad()
        module(torch.ones(2, 3)).sum().backward()
        if bad and rank == 0:
            module.weight.grad.to_local()[0, 1] = torch.nan
        before = {name: value.to_local().clone() for name, value in module.named_parameters()}
        skipped.on_before_optimizer_step(run, module, optimizer)
        optimizer.step()
        taken.append(not all(torch.equal(before[n], p.to_local()) for n, p in module.named_parameters()))
    Path(folder, f"{rank}.json").write_text(json.dumps([taken, skipped.total]))
    distributed.destroy_process_group()


def _one_rank_breaks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    L.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    module, notes, skipped = Breaking(loss={2} if rank == 1 else ()), Notes(), SkippedSteps()
    run = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, callbacks=[skipped, notes],
        log_every_n_steps=1, **quiet,
    )  # fmt: skip
    run.fit(module, data(cache_dir=folder))
    same = [equal(*pair) for pair in zip(notes.states, notes.states[1:], strict=False)]
    accuracy = float(run.callback_metrics["train/log_loss"])
    total = sum(float(value.sum()) for value in module.state_dict().values() if value.is_floating_point())
    Path(folder, f"{rank}.json").write_text(json.dumps([same, skipped.total, accuracy, total]))


@pytest.mark.slow
@pytest.mark.parametrize("work", [_gradients_of_shards, _one_rank_breaks])
def test_all_ranks_leave_out_the_same_steps(tmp_path, monkeypatch, work):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the spawned processes find this module by name
    multiprocessing.spawn(work, args=(str(tmp_path), _free_port()), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    if work is _one_rank_breaks:
        assert first == second and first[:2] == [[False, True, False, False, False], 1]
    else:
        assert first == [[True, False, True], 1], "the bias"
        assert second == [[False, False, False], 1], "which has none of the rows"
