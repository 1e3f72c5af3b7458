"""Two ranks are one process, by DDP and by shards (FSDP2): losses, gradients, weights, checkpoints; one method of each family."""

import os
import pathlib
import socket

import lightning as L
import pytest
import torch
from torch import multiprocessing
from torch.distributed.tensor import DTensor

from pluralign.models import (
    DPRM,
    PAL,
    AutoregressiveRM,
    BradleyTerryRM,
    EnsembleVoteRM,
    LoRAConfig,
    MetaRM,
    consolidate,
)
from pluralign.models.sharding import FullyShardedStrategy, ShardedCheckpoint

from ..ensemble_vote import test_meta_ranks as meta_ranks
from ..test_step_weights import LABELS, RANKED, judged, records

NETWORK = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_inner": 32, "n_layer": 2, "n_head": 2, "n_positions": 256,
           "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
"""Llama's norms and positions are float32 in any precision; in this one all is float64."""
FAMILIES = {
    "reward": (BradleyTerryRM, {"reward_centering": 0.1}),
    "labels": (DPRM, {**LABELS, "judged": "comparisons"}),
    "users": (PAL, {"num_users": 3, "norm_bound": 0.5, "norm_bound_weight": 2.0}),
    "ensemble": (EnsembleVoteRM, {"num_members": 2, "members": "lora", "lora": LoRAConfig(rank=2, last_layers=1)}),
    "generator": (AutoregressiveRM, {}),
    "meta": (MetaRM, {"meta_rate": 0.5, "reward_centering": 0.1}),
}  # fmt: skip
STRATEGIES = ("ddp", "fsdp2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Recorder(L.Callback):
    """Loss and gradients of each step, and weights after the last."""

    def __init__(self):
        self.gradients, self.losses, self.weights = [], [], {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: whole(weight.grad) for name, weight in pl_module.named_parameters()
                               if weight.grad is not None})  # fmt: skip

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module):
        self.weights = {name: whole(weight) for name, weight in pl_module.named_parameters()}


def whole(value):
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).double().clone()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def module_of(family, seed=0):
    torch.manual_seed(seed)
    cls, settings = FAMILIES[family]
    backbone = {"config": NETWORK, "length_chunks": False, "attention": "sdpa"}
    return cls(backbone, optimizer=sgd, **settings)


def run(family, batches, strategy="auto", ranks=1, rank=0, **settings):
    """What a run of some epochs was made of, and its trainer."""
    recorder = Recorder()
    seed, precision = settings.pop("seed", 0), settings.pop("precision", "64-true")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        precision=precision,
        logger=False,
        callbacks=[recorder],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=settings.pop("max_epochs", 1),
        gradient_clip_val=settings.pop("clip", None),
    )
    loader = torch.utils.data.DataLoader(batches[rank::ranks], batch_size=None)
    trainer.fit(module_of(family, seed), loader, loader, weights_only=True, **settings)
    return recorder, trainer


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    folder = pathlib.Path(folder)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    batches, found = torch.load(folder / "data.pt", weights_only=False), {}
    for family in FAMILIES:
        for strategy in STRATEGIES:
            # Ranks begin with weights of their own: those of the first are everybody's.
            seen, trainer = run(family, batches[family], strategy, 2, rank, seed=rank)
            found[family, strategy] = {
                **{name: getattr(seen, name) for name in ("gradients", "losses", "weights")},
                "val": float(trainer.callback_metrics["val/loss"]),
            }
            trainer.save_checkpoint(folder / f"{family}-{strategy}.ckpt")
    # A strategy that is no name is refused float64 by the trainer.
    shards, copies = FullyShardedStrategy(sharded_checkpoints=True), FullyShardedStrategy(shard_size=1)
    data, single = batches["single"], {"precision": "32-true", "clip": 0.1}
    _, trainer = run("reward", data, shards, 2, rank, **single)
    trainer.save_checkpoint(folder / "reward-shards.ckpt")
    for name, path, epochs in (("straight", None, 2), ("resumed", folder / "reward-shards.ckpt", 2)):
        seen, trainer = run("reward", data, "fsdp2", 2, rank, max_epochs=epochs, ckpt_path=path, **single)
        found[name] = seen.weights
    found["copies"] = run("reward", data, copies, 2, rank, **single)[0].weights
    seen, trainer = run("reward", data, "fsdp2", 2, rank, **single)
    found["single"] = seen.weights
    trainer.save_checkpoint(folder / "single.ckpt")
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def distance(mine, other):
    assert mine.keys() == other.keys()
    gap = sum((mine[name] - other[name]).square().sum() for name in other).sqrt()
    return float(gap / sum(value.square().sum() for value in other.values()).sqrt())


@pytest.fixture(scope="module")
def batches():
    """Batches of both ranks by family, and those of one process that sees both at a time; the last ones are short."""
    from ..conftest import make_rows

    groups = records(make_rows, RANKED)
    labelled = [judged(group) for group in groups]
    unions = [judged(groups[i] + groups[i + 1]) for i in range(0, len(groups), 2)]
    pairs = [make_rows(counts, seed=i) for i, counts in enumerate(meta_ranks.LABELLED)]
    sets = [make_rows(counts, seed=50 + i, pairs=False) for i, counts in enumerate(meta_ranks.GROUPED)]
    collated = meta_ranks.collated
    meta = [collated(*both) for both in zip(pairs, sets, strict=True)]
    joined = [collated(pairs[i] + pairs[i + 1], sets[i] + sets[i + 1]) for i in (0, 2, 4)]

    def of(family, plain, other):
        chosen = other if family == "meta" else plain
        return [
            {name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
             for name, value in batch.items()}
            for batch in chosen
        ]  # fmt: skip

    ranks = {family: of(family, labelled, meta) for family in FAMILIES}
    return {**ranks, "single": labelled}, {family: of(family, unions, joined) for family in FAMILIES}


@pytest.fixture(scope="module")
def found(batches, tmp_path_factory):
    """What the ranks have seen, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(batches[0], folder / "data.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pathlib.Path(__file__).parents[3])  # spawned processes find this module by name
        multiprocessing.spawn(_on_two_ranks, args=(str(folder), port), nprocs=2)
    return torch.load(folder / "0.pt", weights_only=False), folder


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_are_one(found, batches, family):
    one, trainer = run(family, batches[1][family])
    for strategy in STRATEGIES:
        two = found[0][family, strategy]
        steps = list(zip(two["gradients"], one.gradients, strict=True))
        assert len(steps) == len(batches[1][family])
        for mine, other in steps:
            assert mine.keys() == other.keys()
            assert max(float((mine[name] - other[name]).abs().max()) for name in other) < 1e-9, strategy
        assert distance(two["weights"], one.weights) < 1e-9, strategy
        assert two["val"] == pytest.approx(float(trainer.callback_metrics["val/loss"]), rel=1e-9), strategy


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_are_ddp_to_the_bit(found, family):
    ddp, shards = (found[0][family, strategy] for strategy in STRATEGIES)
    assert ddp["losses"] == shards["losses"]
    assert all(torch.equal(value, shards["weights"][name]) for name, value in ddp["weights"].items())
    files = [torch.load(found[1] / f"{family}-{each}.ckpt", weights_only=True) for each in STRATEGIES]
    torch.testing.assert_close(*(file["state_dict"] for file in files), rtol=0, atol=0)
    torch.testing.assert_close(*(file["optimizer_states"][0]["state"] for file in files), rtol=0, atol=0)


def test_a_checkpoint_in_shards_is_that_of_a_file_and_goes_on_anywhere(found, batches):
    seen, folder = found
    consolidate(folder / "reward-shards.ckpt", folder / "whole.ckpt")
    both = [
        BradleyTerryRM.load_from_checkpoint(folder / name).eval() for name in ("whole.ckpt", "single.ckpt")
    ]
    with torch.no_grad():
        scores = [module(batches[0]["single"][0])["reward"] for module in both]
    assert torch.equal(*scores)
    assert all(torch.equal(seen["straight"][name], value) for name, value in seen["resumed"].items())
    # The norm by which gradients are clipped is summed in another order.
    assert distance(seen["copies"], seen["single"]) < 1e-6


def _where_one_disk_is_full(rank, folder, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    checkpoint = ShardedCheckpoint(pathlib.Path(folder, "last.ckpt"))
    checkpoint.write({"state_dict": {"w": torch.zeros(3)}})
    before = {path: path.read_bytes() for path in checkpoint.folder.rglob("*.*")}
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(os, "fsync", _full)
        with pytest.raises(OSError, match="could not write" if rank else r"rank 1: .*could not write"):
            checkpoint.write({"state_dict": {"w": torch.ones(3)}})
    torch.distributed.barrier()
    assert before == {path: path.read_bytes() for path in checkpoint.folder.rglob("*.*")}
    torch.distributed.destroy_process_group()


def _full(*ignored):
    raise OSError(28, "No space left on device")


def test_no_rank_waits_for_one_whose_disk_is_full(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pathlib.Path(__file__).parents[3])
        multiprocessing.spawn(_where_one_disk_is_full, args=(str(tmp_path), port), nprocs=2)
    kept = [path.name for path in sorted((tmp_path / "last.ckpt").rglob("*"))]
    assert kept == ["meta.pt", "shards-0", "rank-00000.safetensors", "rank-00001.safetensors"], (
        "both ranks came to an end"
    )
