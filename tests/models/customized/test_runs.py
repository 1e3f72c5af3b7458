"""Runs: what is logged, also by a run that goes on; steps put together from uneven batches; ties alone; two loaders."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, CustomizedRM


class Memory(Logger):
    """Keeps the rows that it is given."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *arguments, **keywords):
        pass

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


class Counted(L.Callback):
    """Notes in every checkpoint how many rows the logger had by then."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["rows"] = len(trainer.logger.rows)


def synthetic(seed=0, size=4):
    return SyntheticDataModule(
        num_train=16,
        num_validation=size,
        num_test=size,
        num_predict=4,
        seed=seed,
        loader=LoaderConfig(batch_size=4),
    )


@pytest.fixture
def module(tiny):
    def build(**settings):
        L.seed_everything(0, verbose=False)
        return CustomizedRM(
            BackboneConfig(config=tiny(attention_dropout=0.3)),
            **{"imitation": 0.2, "optimizer": partial(torch.optim.AdamW, lr=1e-2), **settings},
        )

    return build


@pytest.fixture
def run(tmp_path, module):
    """Fit with a pull toward another run, saving after every step; trainer and module."""

    def fit(folder, checkpoint=None, **settings):
        start = tmp_path / "start.ckpt"
        if not start.exists():
            first = module()
            first.configure_model()
            state = {"state_dict": first.state_dict(), "hyper_parameters": {}}
            torch.save(state, start)
        made = module(l2_sp=0.1, init_from=str(start))
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            logger=Memory(),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Counted(), saver],
            **{"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings},
        )
        trainer.fit(made, synthetic(), ckpt_path=checkpoint, weights_only=True)
        return trainer, made

    return fit


@pytest.mark.parametrize("steps", [(3,), pytest.param((1, 4, 6), marks=pytest.mark.slow)])
def test_a_run_that_goes_on_logs_what_the_whole_one_did(run, tmp_path, steps):
    whole, reference = run("whole")
    names = {name for _, row in whole.logger.rows for name in row}
    wanted = {f"train/{name}" for name in ("loss", "ranking", "imitation", "l2_sp")}
    wanted |= {f"val/{name}" for name in ("loss", "ranking", "imitation", "token_nll", "perplexity")}
    assert wanted <= names and "val/l2_sp" not in names
    for step in steps:
        path = tmp_path / "whole" / f"step={step}.ckpt"
        trainer, module = run(f"again-{step}", str(path))
        assert trainer.logger.rows == whole.logger.rows[torch.load(path, weights_only=True)["rows"] :]
        for name, value in reference.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), name


def test_terms_add_up_to_the_loss(run):
    trainer, _ = run("whole", max_epochs=1)
    for _, row in trainer.logger.rows:
        for stage, names in (("train", ("ranking", "imitation", "l2_sp")), ("val", ("ranking", "imitation"))):
            if f"{stage}/loss" in row:
                total = sum(row[f"{stage}/{name}"] for name in names)
                assert row[f"{stage}/loss"] == pytest.approx(total, rel=1e-5)


class TwoParts(SyntheticDataModule):
    """Validates on two parts, which have names."""

    def loader_names(self, split):
        return ("general", "art") if split == "validation" else ()

    def val_dataloader(self):
        parts = [synthetic(seed, size) for seed, size in ((1, 4), (2, 8))]
        for part in parts:
            part.setup("validate")
        return [part.val_dataloader() for part in parts]


def test_each_named_loader_has_every_term(module, trainer):
    data = TwoParts(
        num_train=8, num_validation=4, num_test=4, num_predict=4, loader=LoaderConfig(batch_size=4)
    )
    made = module(perplexity=True)
    found = trainer().validate(made, data, verbose=False)[0]
    for name in ("accuracy", "loss", "ranking", "imitation", "token_nll", "perplexity"):
        assert {f"val/{name}", f"val/{name}/general", f"val/{name}/art"} <= set(found), name
    assert found["val/perplexity/art"] == pytest.approx(torch.tensor(found["val/token_nll/art"]).exp().item())
    assert found["val/perplexity"] == pytest.approx(torch.tensor(found["val/token_nll"]).exp().item())
    assert found["val/token_nll/general"] != found["val/token_nll/art"]


# Ties ------------------------------------------------------------------------------------------------------


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def tied(batch, *, ties=True):
    data = batch((2, 2))
    data["preference"] = torch.full((2,), 0.5 if ties else 1.0)
    return data


quiet = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:The 'train_dataloader' does not"
)


@quiet
@pytest.mark.parametrize("number", [2, 60])
def test_an_epoch_of_ties_alone_is_an_error(llama, batch, trainer, number):
    module = CustomizedRM(llama())
    with pytest.raises(ValueError, match=rf"every comparison of {min(number, 50)} training batches is a tie"):
        trainer(log_every_n_steps=10).fit(module, loader([tied(batch)] * number))


@quiet
def test_ties_that_weigh_nothing_count_as_such(llama, batch, trainer):
    data = tied(batch, ties=False)
    data["weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"or has weight 0, so that there is nothing to learn"):
        trainer().fit(CustomizedRM(llama()), loader([data] * 3))


@quiet
def test_ties_among_others_are_left_out(llama, batch, trainer):
    run = trainer()
    module = CustomizedRM(llama(), optimizer=partial(torch.optim.SGD, lr=0.1), imitation=0.1)
    run.fit(module, loader([tied(batch)] * 2 + [tied(batch, ties=False)]))
    assert float(run.callback_metrics["train/loss"]) > 0
    assert module._ties is None


@quiet
def test_a_loader_of_ties_alone_has_no_loss_and_leaves_that_of_the_others(llama, batch, trainer):
    module = CustomizedRM(llama(), imitation=0.1)
    judged = loader([tied(batch, ties=False)])
    found = trainer().validate(module, [judged, loader([tied(batch)])], verbose=False)[0]
    assert torch.tensor([*found.values()]).isfinite().all()
    assert found["val/loss"] == found["val/loss/loader_0"]
    assert not {f"val/{name}/loader_1" for name in ("loss", "ranking", "token_nll", "perplexity")} & set(
        found
    )
