"""Two processes are one: MetaRM's ascent and descent under DDP and under fully sharded weights (FSDP2)."""

import os
import pathlib
import socket

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.models import MetaRM

TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2}  # fmt: skip
LABELLED = ((2, 3), (2,), (2,), (2, 2, 4), (3,), (2, 2))
"""Responses of each prompt, batch by batch, alternately of the two ranks."""
GROUPED = ((3,), (2, 4, 2), (2, 1), (3,), (4, 2), (2,))
BUILD = {"config": TINY, "length_chunks": False, "attention": "sdpa"}
SETTINGS = {"meta_rate": 0.5, "check_every": 2, "reward_centering": 0.1}
JOBS = {
    "ddp": ({}, {}),
    "accumulated": ({}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.01}),
    "normalized": ({"normalized": True}, {}),
    "second_order": ({"second_order": True}, {"accumulate_grad_batches": 2}),
    "second_order_normalized": ({"second_order": True, "normalized": True}, {}),
    "static_graph": ({}, {"options": {"static_graph": True}}),
    "views_of_buckets": ({}, {"options": {"gradient_as_bucket_view": True}, "accumulate_grad_batches": 2}),
    "unused": ({}, {"options": {"find_unused_parameters": True}}),
    "sharded": ({}, {"sharded": True}),
    "sharded_kept": ({}, {"sharded": True, "kept": True, "val_check_interval": 1}),
    "sharded_normalized": ({"normalized": True}, {"sharded": True, "accumulate_grad_batches": 2}),
    "sharded_recomputed": ({"backbone": {"gradient_checkpointing": True}}, {"sharded": True, "gradient_clip_val": 0.01}),
}  # fmt: skip


class Sharded(MetaRM):
    """Layers, head and the rest in shards of two ranks."""

    kept = False
    """Whether whole weights are kept after a pass."""

    def configure_model(self):
        if self.backbone is not None:
            return
        super().configure_model()
        mesh, keep = self.device_mesh["data_parallel"], {"reshard_after_forward": not self.kept}
        for part in [*self.backbone.model.layers, self.head, self.backbone]:
            fully_shard(part, mesh=mesh, **keep)


class Kept(Sharded):
    kept = True


class Recorder(L.Callback):
    """What each step was made of: gradients, weights after it, and what was logged."""

    def __init__(self):
        self.steps, self.rises, self.validated = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append({name: whole(weight.grad) for name, weight in pl_module.named_parameters()})

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(float(trainer.callback_metrics["val/loss"]))

    def on_train_batch_end(self, trainer, pl_module, *others):
        self.weights = {name: whole(weight) for name, weight in pl_module.named_parameters()}
        if (rise := trainer.logged_metrics.get("train/objective_rise")) is not None:
            self.rises.append(float(rise))


def whole(value):
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).double().clone()


def run(settings, how, batches, ranks=1):
    """Gradients of each step, weights after the last, and rises."""
    torch.manual_seed(0)
    how, settings = dict(how), {**SETTINGS, **settings}
    sharded, kept, options = how.pop("sharded", False), how.pop("kept", False), how.pop("options", {})
    strategy, kind = "auto", MetaRM
    if ranks > 1:
        strategy = DDPStrategy(**options)
        if sharded:
            strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
            kind = Kept if kept else Sharded
    backbone = {**BUILD, **settings.pop("backbone", {})}
    module = kind(backbone, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1), **settings)
    seen = Recorder()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        logger=False,
        max_epochs=1,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=[seen],
        **quiet,
        **how,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    # A pass without gradients leaves whole weights where they are kept.
    trainer.fit(module, loader, loader if "val_check_interval" in how else None)
    return {name: getattr(seen, name) for name in ("steps", "weights", "rises", "validated")}


def collated(labelled, grouped):
    batch = PreferenceCollator()(labelled)
    batch["unlabelled"] = PreferenceCollator()(grouped)
    return batch


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    data = torch.load(pathlib.Path(folder) / "data.pt", weights_only=False)
    found = {name: run(*JOBS[name], data[rank::2], ranks=2) for name in JOBS}
    torch.save(found, pathlib.Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def distance(mine, other):
    gap = sum((mine[name] - other[name]).square().sum() for name in other).sqrt()
    return float(gap / sum(value.square().sum() for value in other.values()).sqrt())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")
def test_two_ranks_are_one(rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        pathlib.Path(__file__).parents[3]
    )  # the spawned processes find this module by name
    labelled = [rows(counts, seed=i) for i, counts in enumerate(LABELLED)]
    grouped = [rows(counts, seed=50 + i, pairs=False) for i, counts in enumerate(GROUPED)]
    torch.save([collated(*both) for both in zip(labelled, grouped, strict=True)], tmp_path / "data.pt")
    unions = [collated(labelled[i] + labelled[i + 1], grouped[i] + grouped[i + 1]) for i in (0, 2, 4)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_two_ranks, args=(str(tmp_path), port), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    plain = run({"meta_rate": 0.0}, {}, unions)
    for name, (settings, how) in JOBS.items():
        alone = {key: value for key, value in how.items() if key not in ("sharded", "kept", "options")}
        expected = run(settings, alone, unions)
        assert distance(plain["weights"], expected["weights"]) > 1e-4, "the ascent makes a difference"
        for found in (rank[name] for rank in ranks):
            pairs = zip(found["steps"], expected["steps"], strict=True)
            assert max(distance(*pair) for pair in pairs) < 1e-5, name
            assert distance(found["weights"], expected["weights"]) < 1e-6, name
            assert found["validated"] == pytest.approx(expected["validated"], rel=1e-5), name
            assert found["rises"] == pytest.approx(expected["rises"], rel=1e-3), name
            assert min(found["rises"]) > 0
