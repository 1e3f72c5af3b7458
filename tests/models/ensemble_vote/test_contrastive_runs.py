"""ContrastiveRM under a Trainer: what is logged and kept, runs that go on, two processes, stored features, the truth."""

import os
import pathlib
import socket
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import multiprocessing
from torch.utils.data import DataLoader

from pluralign.datamodules import LoaderConfig, SyntheticDataModule, TextConfig
from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.batches.features import FeatureWriter
from pluralign.inference import embed_features
from pluralign.models import Backbone, BackboneConfig, BradleyTerryRM, ContrastiveRM

SWAV = {"contrast": "swav", "views": "differences", "num_prototypes": 4}
fast = partial(torch.optim.AdamW, lr=1e-2)


def data(**settings):
    sizes = {"num_train": 12, "num_validation": 4, "num_test": 4, "num_predict": 4}
    return SyntheticDataModule(**{**sizes, "loader": LoaderConfig(batch_size=4), **settings})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_terms_are_logged_in_training_and_validation_ranks_alone(trainer, tiny, precision):
    module = ContrastiveRM(BackboneConfig(config=tiny()), **SWAV, optimizer=fast)
    run = trainer(precision=precision, accumulate_grad_batches=2, max_epochs=2)
    run.fit(module, data())
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    assert values["train/loss"] == pytest.approx(
        values["train/ranking"] + values["train/contrastive"], rel=1e-4
    )
    assert values["train/contrastive"] > 0
    assert values["val/loss"] == pytest.approx(values["val/ranking"])
    assert "val/contrastive" not in values
    assert bool(module.contrastive.queue_filled.all())


def test_a_checkpoint_has_the_dropout_the_prototypes_and_the_queue(trainer, tiny, tmp_path):
    module, source = ContrastiveRM(BackboneConfig(config=tiny()), **SWAV, optimizer=fast), data()
    run = trainer()
    run.fit(module, source)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = ContrastiveRM.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    assert again.backbone.model.config.attention_dropout == 0.05
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    plain = BradleyTerryRM(
        BackboneConfig(config=tiny()), init_from=str(tmp_path / "run.ckpt"), init_may_differ=["contrastive"]
    )
    plain.configure_model()
    batch = next(iter(source.val_dataloader()))
    assert torch.equal(plain.eval()(batch)["reward"], again.eval()(batch)["reward"])


def test_a_run_that_goes_on_ends_as_the_whole_one(trainer, tiny, tmp_path):
    def fit(folder, checkpoint=None):
        L.seed_everything(0, verbose=False)
        module = ContrastiveRM(BackboneConfig(config=tiny()), **SWAV, optimizer=fast)
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(saver, enable_checkpointing=True, max_epochs=2)
        run.fit(module, data(), ckpt_path=checkpoint, weights_only=True)
        return module.state_dict()

    whole = fit("whole")
    for step in (2, 4):
        found = fit(f"again_{step}", tmp_path / "whole" / f"step={step}.ckpt")
        for name, value in whole.items():
            assert torch.equal(found[name], value), (step, name)


def test_stored_features_get_views_from_their_own_dropout(trainer, tmp_path):
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(tmp_path / "network")
    config = BackboneConfig(name=str(tmp_path / "network"), tokenizer="byte", frozen=True)
    backbone, source = Backbone(config), data()
    writer = FeatureWriter(
        tmp_path / "store", backbone=config.description(), text_format=source.text_format(), hidden_size=16
    )  # fmt: skip
    for _ in embed_features(source, backbone, writer, layout=backbone.layout):
        pass
    module = ContrastiveRM(config, feature_dropout=0.1, optimizer=fast)
    stored = data(loader=LoaderConfig(batch_size=4, features=str(tmp_path / "store")))
    run = trainer()
    run.fit(module, stored)
    assert float(run.callback_metrics["train/contrastive"]) > 0


# Processes ---------------------------------------------------------------------------------------------


class SteadyViews(ContrastiveRM):
    """Views that differ by a fixed mask, so that processes can be compared."""

    def _view_states(self, batch):
        states = self.built_backbone()(batch).float()
        kept = (torch.arange(states.shape[1]) % 5 != 0) * 1.25
        return torch.stack([states, states * kept])


def steady_module(contrast, config):
    torch.manual_seed(3)
    settings = {"num_prototypes": 8, "queue_size": 12} if contrast == "swav" else {}
    module = SteadyViews(
        config, contrast=contrast, view_dropout=None, feature_dropout=0.1, temperature=0.5, **settings,
        optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-2),
    )  # fmt: skip
    module.configure_model()
    return module


def fitted(module, batches, **settings):
    run = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **settings,
    )  # fmt: skip
    run.fit(module, DataLoader(batches, batch_size=None))
    return module.state_dict()


def _on_two_ranks(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    folder = pathlib.Path(folder)
    config, steps = torch.load(folder / "steps.pt", weights_only=False)
    for contrast in ("simcse", "swav"):
        state = fitted(
            steady_module(contrast, config), [step[rank] for step in steps], devices=2, strategy="ddp"
        )
        torch.save(state, folder / f"{contrast}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:No device id is provided")
def test_two_processes_train_as_one(llama, rows, tmp_path, monkeypatch):
    """SimCSE as one process that accumulates both batches, SwAV as one that has them as one batch."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[3])
    collate, seeds = PreferenceCollator(layout="shared"), [(0, 1), (2, 3), (4, 5)]
    records = [(rows((2, 3, 2), seed=one), rows((2, 4), seed=other)) for one, other in seeds]
    steps = [[collate(each) for each in step] for step in records]
    for step in steps:
        step[0]["weight"], step[1]["weight"] = torch.rand(4), torch.tensor([1.0, 0.0, 2.0, 0.5])
    torch.save((llama(), steps), tmp_path / "steps.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_on_two_ranks, args=(str(tmp_path), port), nprocs=2)
    joined = [collate([*one, *other]) for one, other in records]
    for batch, step in zip(joined, steps, strict=True):
        batch["weight"] = torch.cat([each["weight"] for each in step])
    single = {
        "simcse": fitted(
            steady_module("simcse", llama()), [batch for step in steps for batch in step], accumulate_grad_batches=2
        ),
        "swav": fitted(steady_module("swav", llama()), joined),
    }  # fmt: skip
    for contrast, wanted in single.items():
        first, second = (torch.load(tmp_path / f"{contrast}_{rank}.pt") for rank in (0, 1))
        for name, value in wanted.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, atol=2e-6, rtol=1e-4, msg=f"{contrast} {name}")
    assert bool(wanted["contrastive.queue_filled"].all())


@pytest.mark.slow
def test_spawned_processes_train_and_hand_everything_back(trainer, tiny):
    module = ContrastiveRM(BackboneConfig(config=tiny()), **SWAV, optimizer=fast)
    trainer(strategy="ddp_spawn", devices=2).fit(module, data(loader=LoaderConfig(batch_size=2)))
    assert bool(module.contrastive.queue_filled.all())


# Science -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("contrast", "views"), [("simcse", "pairs"), ("swav", "differences")])
def test_it_beats_the_majority_vote(trainer, tiny, contrast, views):
    """Accuracy on unseen pairs of a crowd: at least 0.25 above what the majority of judgements says of the places of answers."""
    torch.set_num_threads(1)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    epochs, size = 4, 768
    source = SyntheticDataModule(
        judgements="crowd", num_train=size, num_validation=192, text=TextConfig(max_length=256),
        loader=LoaderConfig(batch_size=16, max_tokens=None),
    )  # fmt: skip
    module = ContrastiveRM(
        BackboneConfig(config=tiny(**sizes)), contrast=contrast, views=views,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-3, total_steps=size // 16 * epochs, pct_start=0.1
        ),
    )  # fmt: skip
    run = trainer(max_epochs=epochs, check_val_every_n_epoch=epochs, num_sanity_val_steps=0)
    run.fit(module, source)
    later = []  # whether the answer that stands later in its record is preferred
    for batch in source.val_dataloader():
        places = batch["response_index"][batch["comparisons"]]
        decided = batch["preference"] != 0.5
        later.append((places[:, 0] > places[:, 1])[decided] ^ (batch["preference"] < 0.5)[decided])
    share = float(torch.cat(later).float().mean())
    majority = max(share, 1 - share)
    found = float(run.callback_metrics["val/accuracy"])
    print(f"{contrast} {views}: accuracy {found:.3f}, majority {majority:.3f}")
    assert found > majority + 0.25
