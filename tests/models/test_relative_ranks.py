"""Rounds on two ranks that have unequal numbers of items: they take equally many steps, each on the mean over all items."""

import os
import pathlib
import socket

import lightning as L
import pytest
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader

from pluralign.losses import rebel_loss
from pluralign.models.relative import steps_of
from pluralign.models.rollouts import RolloutStore

from .test_relative import REWARDS, Prompts, Table

SETTINGS = {"reference": "none", "num_epochs": 2, "batch_size": 3, "max_grad_norm": None, "max_new_tokens": 6}
ITEMS = ([0, 1, 2, 3], [4])
ETA = 2.0


def table(**settings):
    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.5)

    return Table(
        {"config": {"model_type": "llama"}}, rewards=REWARDS, optimizer=optimizer, **SETTINGS, **settings
    )


def data_of(rank):
    data = Prompts()
    data.train_dataloader = lambda: DataLoader(ITEMS[rank], batch_size=4, collate_fn=data.batch)
    return data


def _on_rank(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    policy = table(eta=ETA, rollout_dir=f"{folder}/rounds")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(policy, datamodule=data_of(rank))
    seen = {"logits": policy.logits.detach(), "spread": policy.spread, "steps": trainer.global_step}
    torch.save({**seen, "reward": trainer.callback_metrics["train/reward"]}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def stored(folder, description):
    """What each rank has written, with its items."""
    weights = description.pop("weights")
    store = RolloutStore(folder / "rounds", description)
    batches = [data_of(rank).batch(items) for rank, items in enumerate(ITEMS)]
    return [store.read(0, rank, batch, weights=weights) for rank, batch in enumerate(batches)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_learn_from_the_mean_over_all_items(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[2]
    )  # spawned processes find this module by name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_rank, args=(str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["logits"], second["logits"]) and first["steps"] == second["steps"] == 4
    assert torch.equal(first["spread"], second["spread"]) and torch.equal(first["reward"], second["reward"])

    policy = table(eta=ETA)
    policy.configure_model()
    rollouts = stored(tmp_path, {**policy.description(), "weights": policy.policy_digest()})
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    sizes, seed = [len(items) for items in ITEMS], policy.seed_of(0, -1)
    passes = []
    for rank in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        passes.append([step for _ in range(2) for step in steps_of(sizes, rank, 3, generator)])
    for both in zip(*passes, strict=True):
        errors = []
        for (items, weight), whole in zip(both, rollouts, strict=True):
            part = whole.part(items)
            ratio = (policy.log_probs(part) - part.log_prob).sum(1)
            pairs = ratio[::2], ratio[1::2], part.reward[::2], part.reward[1::2]
            if weight:
                errors.append(rebel_loss(*pairs, eta=ETA, scaling="log_ratio", reduction="none"))
        optimizer.zero_grad()
        torch.cat(errors).mean().backward()
        optimizer.step()
    torch.testing.assert_close(first["logits"], policy.logits.detach(), rtol=0, atol=1e-6)
    gaps = torch.cat([each.reward[::2] - each.reward[1::2] for each in rollouts])
    torch.testing.assert_close(first["spread"], gaps.square().mean().sqrt())


def test_ranks_take_equally_many_steps_and_every_item_once():
    sizes = [7, 2, 4]
    passes = [[*steps_of(sizes, rank, 3, torch.Generator().manual_seed(rank))] for rank in range(3)]
    assert [len(steps) for steps in passes] == [3, 3, 3]
    for size, steps in zip(sizes, passes, strict=True):
        assert sorted(i for items, weight in steps if weight for i in items) == list(range(size))
        assert max(len(items) for items, _ in steps) <= 3
    for step in zip(*passes, strict=True):
        counted = [len(items) if weight else 0 for items, weight in step]
        assert [weight for _, weight in step] == [count * 3 / sum(counted) for count in counted]
