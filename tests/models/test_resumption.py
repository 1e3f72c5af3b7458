"""Runs that go on from any of their checkpoints end as the run that was never interrupted: dropout, log, validations."""

import random
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM
from pluralign.models._resumption import random_state, restore_random_state


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


@pytest.fixture
def run(tmp_path, tiny):
    """Fit with dropout, saving after every step and every validation; trainer and module."""

    def fit(folder, checkpoint=None, plateau=False, method=BradleyTerryRM, **settings):
        L.seed_everything(0, verbose=False)

        def scheduler(optimizer):
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)

        module = method(
            BackboneConfig(config=tiny(attention_dropout=0.3)),
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            lr_scheduler=scheduler if plateau else None,
        )
        data = SyntheticDataModule(
            num_train=16, num_validation=4, num_test=4, num_predict=4, loader=LoaderConfig(batch_size=4)
        )
        savers = [
            ModelCheckpoint(tmp_path / folder, filename="steps-{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(tmp_path / folder, filename="val-{step}", monitor="val/loss", save_top_k=-1),
        ]
        trainer = L.Trainer(
            logger=Memory(),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Counted(), *savers],
            **{"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings},
        )
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return trainer, module

    return fit


def check_equal(found, wanted, checkpoint):
    """Same weights and optimiser, and the rows that the checkpoint's run had not logged yet."""
    (trainer, module), (whole, reference) = found, wanted
    for name, value in reference.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    states = [each.optimizers[0].state_dict() for each in (trainer, whole)]
    assert str(states[0]) == str(states[1])
    logged = torch.load(checkpoint, weights_only=True)["rows"]
    assert trainer.logger.rows == whole.logger.rows[logged:]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, (3, 4)),  # within an epoch, at its end
        ({"val_check_interval": 0.5}, (2,)),  # with a validation to follow
        pytest.param({"val_check_interval": 0.5}, (1, 3, 4, 5, 8), marks=pytest.mark.slow),
        ({"check_val_every_n_epoch": 2}, (4,)),  # an end without validation
        pytest.param({"plateau": True, "val_check_interval": 0.5}, (3, 4), marks=pytest.mark.slow),
        pytest.param(
            {"log_every_n_steps": 2, "accumulate_grad_batches": 2}, (1, 2, 3), marks=pytest.mark.slow
        ),
        pytest.param({"max_epochs": -1, "max_steps": 7}, (4, 6), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_run_ends_alike_wherever_it_was_interrupted(run, tmp_path, settings, steps):
    wanted = run("whole", **settings)
    kinds = {f"{kind}-step={step}" for kind in ("steps", "val") for step in steps}
    saved = [path for path in sorted((tmp_path / "whole").glob("*.ckpt")) if path.stem in kinds]
    assert len(saved) > len(steps) / 2
    for checkpoint in saved:
        check_equal(run(f"again_{checkpoint.stem}", checkpoint, **settings), wanted, checkpoint)


def test_without_the_random_state_dropout_would_differ(run, tmp_path, caplog):
    _, reference = run("whole")
    path = tmp_path / "whole" / "steps-step=3.ckpt"
    content = torch.load(path, weights_only=True)
    del content["pluralign"]["run"]
    torch.save(content, tmp_path / "without.ckpt")
    _, module = run("again", tmp_path / "without.ckpt")
    assert not torch.equal(module.head.weight, reference.head.weight)


class Forgetful(BradleyTerryRM):
    """Leaves out what its base class does when training begins."""

    def on_train_start(self):
        pass


def test_a_module_that_leaves_out_what_is_to_be_made_up_is_refused(run, tmp_path):
    run("whole", max_epochs=1)
    with pytest.raises(RuntimeError, match=r"Forgetful.* does not call that of its base class"):
        run("again", tmp_path / "whole" / "steps-step=2.ckpt", method=Forgetful)


def test_a_checkpoint_knows_when_its_metrics_were_measured(run, tmp_path):
    def validated(path):
        return torch.load(path, weights_only=True)["pluralign"]["run"]["validated"]

    settings = {"val_check_interval": 0.5, "num_sanity_val_steps": 1, "max_epochs": 1}
    run("whole", **settings)
    folder = tmp_path / "whole"
    found = {path.stem: validated(path) for path in folder.glob("*.ckpt")}
    steps = {"steps-step=1": None, "steps-step=2": None, "steps-step=3": 2, "steps-step=4": 2}
    assert found == steps | {"val-step=2": 2, "val-step=4": 4}
    run("again", folder / "steps-step=3.ckpt", limit_val_batches=0, **settings)
    assert validated(tmp_path / "again" / "steps-step=4.ckpt") == 2, "as the interrupted run had measured"


def test_another_number_of_processes_is_said(run, tmp_path):
    run("whole", max_epochs=1)
    path = tmp_path / "whole" / "val-step=4.ckpt"
    content = torch.load(path, weights_only=True)
    for name in ("random", "sums"):
        content["pluralign"]["run"][name] *= 2
    torch.save(content, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="random state of 2 processes and there are 1 now"):
        run("again", tmp_path / "two.ckpt")


def test_gradients_that_were_being_gathered_are_said_to_be_lost(run, tmp_path):
    # a validation after the third batch, with the second window of two batches half over
    settings = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 1}
    run("whole", **settings)
    paths = sorted((tmp_path / "whole").glob("val-*.ckpt"))
    states = {path: torch.load(path, weights_only=True)["pluralign"]["run"] for path in paths}
    (between,) = [path for path, state in states.items() if state["between_steps"]]
    with pytest.warns(UserWarning, match="gradients gathered until then are lost"):
        run("again", between, **settings)


def test_a_validation_is_not_made_up_under_another_rule_and_that_is_said(run, tmp_path):
    run("whole", val_check_interval=0.5)
    with pytest.warns(UserWarning, match="a validation was due .* is not made up"):
        run("again", tmp_path / "whole" / "steps-step=2.ckpt", val_check_interval=1.0)


def test_random_numbers_go_on():
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    random.seed(1)
    np.random.seed(2)
    np.random.normal()
    torch.manual_seed(3)
    state = random_state(torch.device("cpu"))
    first = draws()
    draws()
    restore_random_state(state, torch.device("cpu"))
    assert draws() == first


def test_a_state_of_another_device_is_said():
    state = {**random_state(torch.device("cpu")), "cuda": torch.zeros(16, dtype=torch.uint8)}
    with pytest.warns(UserWarning, match="no random state of a device like cpu"):
        restore_random_state(state, torch.device("cpu"))


def test_loaders_leave_the_random_numbers_alone(tmp_path):
    data = SyntheticDataModule(num_train=8, num_validation=4, num_test=4, num_predict=4)
    data.setup("fit")
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_alone_keep_no_state(run, tmp_path):
    trainer, _ = run("whole", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "run" not in torch.load(tmp_path / "weights.ckpt", weights_only=True)["pluralign"]


@pytest.mark.slow
def test_two_processes_go_on_with_their_own_random_numbers_each(trainer, tiny, tmp_path):

    def fit(folder, checkpoint=None):
        L.seed_everything(0, verbose=False)
        module = BradleyTerryRM(BackboneConfig(config=tiny(attention_dropout=0.3)))
        data = SyntheticDataModule(
            num_train=16, num_validation=4, num_test=4, num_predict=4, loader=LoaderConfig(batch_size=2)
        )
        saver = ModelCheckpoint(
            tmp_path / folder, filename="steps-{step}", every_n_train_steps=1, save_top_k=-1
        )
        trainer(
            saver, strategy="ddp_spawn", devices=2, enable_checkpointing=True, val_check_interval=0.5
        ).fit(module, data, ckpt_path=checkpoint, weights_only=True)

    fit("whole")
    path = tmp_path / "whole" / "steps-step=2.ckpt"
    state = torch.load(path, weights_only=True)["pluralign"]["run"]
    assert len(state["random"]) == len(state["sums"]) == 2 and state["validation_due"]
    first, second = state["sums"]  # what is counted, and what waits to be
    assert any(not torch.equal(first[name], second[name]) for name in first.keys() & second.keys())
    fit("again", path)
    ends = [tmp_path / folder / "steps-step=4.ckpt" for folder in ("whole", "again")]
    wanted, found = (torch.load(end, weights_only=True) for end in ends)
    for name, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    for one, other in zip(
        wanted["pluralign"]["run"]["random"], found["pluralign"]["run"]["random"], strict=True
    ):
        assert torch.equal(one["torch"], other["torch"])
