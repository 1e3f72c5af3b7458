"""A rehearsal leaves no trace, and says what a step takes."""

import csv
import logging
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from pluralign.callbacks import LongestBatch
from pluralign.datamodules import LoaderConfig
from pluralign.models import BackboneConfig, BradleyTerryRM
from pluralign.models import _rehearsal as rehearsals

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def make(tiny):
    """A module with dropout in its network and an optimiser that keeps something."""

    def build():
        torch.manual_seed(0)
        network = tiny(model_type="gpt2", n_inner=32, resid_pdrop=0.2, embd_pdrop=0.1, attn_pdrop=0.0)
        network |= {"bos_token_id": None, "eos_token_id": None}
        del network["intermediate_size"]
        return BradleyTerryRM(
            BackboneConfig(config=network), optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-2)
        )

    return build


def fit(module, data, folder, *callbacks, ckpt_path=None, **settings):
    trainer = L.Trainer(
        **{"max_epochs": 2, "log_every_n_steps": 1, **QUIET, **settings},
        logger=CSVLogger(folder, name="", version=""),
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    L.seed_everything(3, verbose=False)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def logged(folder):
    with (Path(folder) / "metrics.csv").open() as stream:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(stream)]


def test_the_run_is_the_same_bit_for_bit(make, data, tmp_path, caplog):
    runs = {}
    with caplog.at_level(logging.INFO):
        for name, callbacks in (("plain", []), ("rehearsed", [LongestBatch()])):
            module = make()
            trainer = fit(
                module, data(), tmp_path / name, *callbacks, enable_checkpointing=False, num_sanity_val_steps=0,
                accumulate_grad_batches=2,
            )  # fmt: skip
            runs[name] = module, trainer.optimizers[0].state_dict()["state"], torch.get_rng_state()
    for one, other in zip(*(run[0].state_dict().values() for run in runs.values()), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(run[1].values() for run in runs.values()), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(runs["plain"][2], runs["rehearsed"][2])
    assert logged(tmp_path / "plain") == logged(tmp_path / "rehearsed") != []
    (said,) = [line for line in caplog.messages if line.startswith("longest batch")]
    trained = sum(each.numel() for each in runs["plain"][0].parameters())
    assert f"{8 * trained / 1e9:.3g} GB of it the optimiser's state" in said


def test_a_run_that_goes_on_is_the_same_too(make, data, tmp_path):
    whole = make()
    fit(whole, data(), tmp_path / "whole", enable_checkpointing=False, max_steps=8)
    first = make()
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(first, data(), tmp_path / "first", keeper, max_steps=3)
    second = make()
    fit(
        second,
        data(),
        tmp_path / "second",
        LongestBatch(),
        keeper,
        max_steps=8,
        ckpt_path=tmp_path / "step=3.ckpt",
    )
    for one, other in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_it_may_be_all(make, data, tmp_path):
    module = make()
    trainer = fit(module, data(), tmp_path, LongestBatch(stop=True))
    fresh = make()
    fresh.configure_model()
    for one, other in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert one.shape == other.shape
    assert trainer.global_step == 0 and not trainer.optimizers[0].state
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_does_not_fit_is_said_before_the_first_step(make, data, tmp_path, monkeypatch):
    def full(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(BradleyTerryRM, "training_step", full)
    with pytest.raises(
        RuntimeError, match=r"longest batch does not fit .* lower data\.loader\.max_tokens"
    ) as caught:
        fit(make(), data(), tmp_path, LongestBatch(), enable_checkpointing=False)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_weights_in_shards_are_not_rehearsed(make, data, tmp_path):
    trainer = L.Trainer(**QUIET, logger=False, devices=1, strategy=ModelParallelStrategy())
    with pytest.raises(
        ValueError, match=r"divides weights over ranks.* the number that `pluralign plan` says"
    ):
        rehearsals.rehearse(trainer, make(), None)


def test_the_heaviest_batch_is_the_loader_s(data):
    made = data(loader=LoaderConfig(max_tokens=400))
    made.setup("fit")
    loader = made.batches("train", shuffle=True)
    batch, tokens = loader.heaviest()
    sums = [sum(each["row_lengths"]) for each in loader]
    assert tokens == sum(batch["row_lengths"]) == max(sums) and len(sums) == len(loader)


# The budget ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "per_token", "best"),
    [(0.0, 1e-4, 10_000), (0.3, 1e-5, 70_000), (0.99, 1e-5, 1_000), (0.0, 1e-9, 262_144), (0.5, 4e-3, 125)],
)
def test_budget_from_a_line(fixed, per_token, best):
    tried = []

    def trial(budget):
        tried.append(budget)
        return budget, fixed + per_token * budget

    budget, share = rehearsals.settled_budget(trial, rehearsals.MOST)
    assert best / 2 <= budget <= best and share <= 1
    assert len(tried) <= rehearsals.TRIALS and max(tried) <= 2 * max(best, rehearsals.FIRST)


def test_budget_where_trials_end_without_memory_or_records():
    def bounded(budget):
        return (0, float("inf")) if budget > 3000 else (budget, budget / 1e5)

    budget, _ = rehearsals.settled_budget(bounded, rehearsals.MOST)
    assert 1024 <= budget <= 3000
    assert rehearsals.settled_budget(lambda budget: (min(budget, 1500), 0.1), 50_000)[0] <= 2048
    with pytest.raises(RuntimeError, match="finds no batch that there is memory for"):
        rehearsals.settled_budget(lambda budget: (budget, 2.0), rehearsals.MOST)
    for share in (lambda budget: 1.05, lambda budget: 1.02 + budget / 1e6):  # a long record; the state alone
        with pytest.raises(RuntimeError, match="auto finds no batch that there is memory for"):
            rehearsals.settled_budget(lambda budget, share=share: (2000, share(budget)), rehearsals.MOST)
    slow = rehearsals.settled_budget(lambda budget: (budget, 0.98 + budget / 25_600), rehearsals.MOST)
    assert 384 <= slow[0] <= 512


def test_max_tokens_auto_is_found_kept_and_used_again(make, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rehearsals, "room", lambda device, processes=1: 3_000_000)
    monkeypatch.setattr(rehearsals, "FIRST", 128)
    auto = {"num_train": 240, "loader": LoaderConfig(max_tokens="auto")}
    keeper = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    module = make()
    with caplog.at_level(logging.INFO):
        trainer = fit(module, data(**auto), tmp_path / "first", keeper, max_steps=10)
    budget = module.max_tokens
    assert budget % 64 == 0 and 128 <= budget < 8192
    assert re.search(r"a step of which takes (7|8|90?)\d*% of the free memory", caplog.text)
    assert any(f"auto found {budget:,} tokens" in line for line in caplog.messages)
    assert trainer.train_dataloader.sampler.max_tokens == budget
    # A run with that number is the same.
    named = make()
    fit(named, data(num_train=240, loader=LoaderConfig(max_tokens=budget)), tmp_path / "named", max_steps=10,
        enable_checkpointing=False)  # fmt: skip
    for one, other in zip(module.state_dict().values(), named.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    # With more memory, a run that goes on keeps its batches; so does what is measured later.
    monkeypatch.setattr(rehearsals, "room", lambda device, processes=1: 1 << 40)
    path = tmp_path / "step=5.ckpt"
    assert torch.load(path, weights_only=True)["pluralign"]["max_tokens"] == budget
    resumed = make()
    fit(resumed, data(**auto), tmp_path / "second", keeper, max_steps=10, ckpt_path=path)
    assert resumed.max_tokens == budget
    for one, other in zip(module.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    loaded = BradleyTerryRM.load_from_checkpoint(path)
    tester = L.Trainer(**QUIET, logger=False)
    tester.test(loaded, data(**auto), verbose=False)
    assert tester.test_dataloaders.sampler.max_tokens == budget


def test_max_tokens_auto_without_a_fit_is_the_default(data):
    made = data(loader=LoaderConfig(max_tokens="auto"))
    made.setup("fit")
    assert made.batches("train").sampler.max_tokens == 8192
    with pytest.raises(ValueError, match=r"loader\.max_tokens must be .*; got 'most'"):
        LoaderConfig(max_tokens="most")


@pytest.mark.slow
def test_two_ranks_rehearse_alike_and_train_the_same(module, data, tmp_path):
    """The smallest of both budgets is taken, and no gradient of the rehearsal is reduced."""
    runs = {}
    for name, tokens, callbacks in (("auto", "auto", [LongestBatch()]), ("named", None, [])):
        loader = LoaderConfig(max_tokens=tokens or runs["auto"]["pluralign"]["max_tokens"])
        keeper = ModelCheckpoint(tmp_path / name, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        torch.manual_seed(0)
        fit(module(), data(num_train=240, loader=loader), tmp_path / name, keeper, *callbacks, max_steps=2,
            strategy="ddp_spawn", devices=2, use_distributed_sampler=False)  # fmt: skip
        runs[name] = torch.load(tmp_path / name / "step=2.ckpt", weights_only=True)
    assert runs["auto"]["pluralign"]["max_tokens"] >= 1024
    for name, value in runs["named"]["state_dict"].items():
        assert torch.equal(runs["auto"]["state_dict"][name], value), name
