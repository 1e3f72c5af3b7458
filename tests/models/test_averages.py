"""Lightning's averages of weights: taken, saved and gone on with, whatever of the network is trained."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from transformers import LlamaConfig, LlamaModel

from pluralign.callbacks import UserMetrics
from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import DPRM, PAL, BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.models._averages import _average_of_different

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback",  # lightning: with any module that has configure_model
    "ignore:`torch.jit.script_method`:DeprecationWarning",  # peft, when it is first imported
)

MODES = ("config", "lora", "frozen")
AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "ema of epochs": lambda: EMAWeightAveraging(
        decay=0.9, update_every_n_steps=0, update_starting_at_epoch=0
    ),
    "late ema": lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=6),
    "equal": lambda: WeightAveraging(),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=1, annealing_epochs=3),
}


@pytest.fixture
def folder(tmp_path, tiny):
    """A pretrained network."""
    path = tmp_path / "network"
    settings = tiny(attention_dropout=0.2)
    LlamaModel(LlamaConfig(**{k: v for k, v in settings.items() if k != "model_type"})).save_pretrained(path)
    return str(path)


@pytest.fixture
def module(folder, tiny):
    """A module from a seed: of a configuration, with adapters, or with its head alone to train."""

    def build(mode="lora", method=BradleyTerryRM, **network):
        L.seed_everything(0, verbose=False)
        backbone = {
            "config": {"config": tiny(attention_dropout=0.2)},
            "lora": {"name": folder, "lora": LoRAConfig(rank=2, dropout=0.2)},
            "frozen": {"name": folder, "frozen": True},
        }[mode] | network
        settings = {
            PAL: {"num_prototypes": 2, "preference_size": 4, "projector": "linear"},
            DPRM: {"labels": list("12345"), "rewards": [1, 2, 3, 4, 5]},
        }.get(method, {})
        return method(BackboneConfig(**backbone), optimizer=partial(torch.optim.AdamW, lr=1e-2), **settings)

    return build


@pytest.fixture
def data():
    def build(method=BradleyTerryRM):
        judgements = {"judgements": "ratings"} if method is DPRM else {}
        return SyntheticDataModule(
            num_train=16,
            num_validation=4,
            num_test=4,
            num_predict=4,
            loader=LoaderConfig(batch_size=4),
            **judgements,
        )

    return build


class Recorder(L.Callback):
    """Keeps the weights that are trained after every step, and at the start of every epoch."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: value.clone() for name, value in module.named_parameters()})

    def on_train_epoch_start(self, trainer, module):
        self.epochs.append({name: value.clone() for name, value in module.named_parameters()})


# What an average is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_exponential_average_is_that_of_what_is_trained(module, data, trainer, mode):
    recorder, fitted = Recorder(), module(mode)
    trainer(EMAWeightAveraging(decay=0.7), recorder, max_epochs=2).fit(fitted, data())
    assert len(recorder.steps) == 8
    for name, value in fitted.named_parameters():
        series = [step[name].double() for step in recorder.steps]
        if not value.requires_grad:
            assert torch.equal(value, recorder.steps[0][name]), name
            continue
        average = series[0]
        for weights in series[1:]:
            average = 0.7 * average + 0.3 * weights
        assert torch.allclose(value.double(), average, atol=1e-6), name
        assert not torch.allclose(value.double(), series[-1], atol=1e-6), name


@pytest.mark.parametrize("mode", ["config", "lora"])
def test_stochastic_weight_averaging_averages_every_weight(module, data, trainer, mode):
    recorder, fitted = Recorder(), module(mode)
    average = AVERAGES["swa"]()
    trainer(average, recorder, max_epochs=3).fit(fitted, data())
    counts = [sum(each.numel() for each in part.parameters()) for part in (fitted, average._average_model)]
    assert counts[0] == counts[1] > 1000
    for name, value in fitted.named_parameters():
        mean = torch.stack([epoch[name].double() for epoch in recorder.epochs]).mean(0)
        assert torch.allclose(value.double(), mean, atol=1e-6), name


def test_what_is_saved_at_the_very_end_has_the_average(module, data, trainer, tmp_path):
    class Last(L.Callback):
        def on_train_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    fitted = module("lora")
    trainer(Last(), AVERAGES["swa"](), max_epochs=2).fit(fitted, data())
    loaded = BradleyTerryRM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for name, value in fitted.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_frozen_base_has_no_second_copy(module, data, trainer):
    average, fitted = EMAWeightAveraging(decay=0.9), module("lora")
    places = []

    class Look(L.Callback):
        def on_train_start(self, trainer, module):
            copies = average._average_model.module.named_parameters()
            places.extend(
                (own.requires_grad, own.data_ptr() == copy.data_ptr())
                for own, (_, copy) in zip(module.parameters(), copies, strict=True)
            )

    trainer(average, Look()).fit(fitted, data())
    assert {shared for trained, shared in places if trained} == {False}
    assert {shared for trained, shared in places if not trained} == {True}


@pytest.mark.parametrize("kind", ["ema", "equal"])
def test_what_counts_or_points_is_not_averaged(data, trainer, kind):
    """An average of whole numbers, cut to one, would move a BERT's positions."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = {"model_type": "bert", "vocab_size": 259, **sizes}
    fitted = BradleyTerryRM(BackboneConfig(config=network), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    trainer(AVERAGES[kind](), max_epochs=3).fit(fitted, data())
    positions = fitted.backbone.model.embeddings.position_ids
    assert torch.equal(positions, torch.arange(512)[None])


def test_an_average_of_equal_numbers_is_that_number():
    """A weight that is not shared with its average, such as a frozen one beside a finetuning callback, stays to the bit."""
    averaged, current = torch.linspace(0.1, 9, 1000), torch.linspace(0.1, 9, 1000)
    current[0] = 3.0
    drifting = lambda average, value, number: 0.9 * average + 0.1 * value
    assert not torch.equal(drifting(averaged, current, 1)[1:], averaged[1:])
    found = _average_of_different(drifting, averaged, current, 1)
    assert torch.equal(found[1:], averaged[1:]) and float(found[0]) == pytest.approx(0.39)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_base_does_not_drift(module, data, trainer, dtype):
    fitted = module("frozen", dtype=dtype)
    trainer(AVERAGES["ema"](), max_epochs=2).fit(fitted, data())
    reference = module("frozen", dtype=dtype)
    reference.configure_model()
    for name, value in reference.backbone.state_dict().items():
        assert torch.equal(fitted.backbone.state_dict()[name], value), name


def test_until_it_begins_an_average_is_the_weights_of_now(module, data, trainer):
    """Lightning alone would validate, and in the end keep, the weights that training began with."""
    plain = trainer(max_epochs=2)
    wanted = module("config")
    plain.fit(wanted, data())
    late = trainer(EMAWeightAveraging(decay=0.9, update_starting_at_step=100), max_epochs=2)
    fitted = module("config")
    late.fit(fitted, data())
    assert late.callback_metrics["val/loss"] == plain.callback_metrics["val/loss"]
    for name, value in wanted.state_dict().items():
        assert torch.equal(fitted.state_dict()[name], value), name


def test_reports_are_made_while_the_averages_are_in_place(module, data, trainer):
    average, report = AVERAGES["ema"](), UserMetrics()
    seen = {}

    class Look(UserMetrics):
        def judge(self, trainer, module, stage, columns):
            seen["head"] = module.head.weight.clone()
            seen["average"] = average._average_model.module.head.weight.clone()

    fitted = module("config")
    ran = trainer(average, Look(), report)
    ran.fit(fitted, data())
    # Weights and their average have changed places; in the end the average is what is left.
    assert torch.equal(seen["head"], fitted.head.weight)
    assert not torch.equal(seen["head"], seen["average"])


# Checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_checkpoints_hold_averages_without_the_base(module, data, trainer, tmp_path, kind):
    saver = ModelCheckpoint(tmp_path / "saved", filename="all")
    trainer(AVERAGES[kind](), saver, enable_checkpointing=True).fit(module("lora"), data())
    content = torch.load(tmp_path / "saved" / "all.ckpt", weights_only=True)
    states = [content["state_dict"]]
    if kind == "ema":
        states.append(content["current_model_state"])
    else:
        states += [
            each["average_model_state"]
            for each in content["callbacks"].values()
            if "average_model_state" in each
        ]
    assert len(states) == 2
    for state in states:
        assert {"head.weight"} < set(state)
        assert all("lora" in name or name == "head.weight" for name in state), list(state)


@pytest.mark.parametrize("weights_alone", [False, True])
@pytest.mark.parametrize("mode", ["config", "lora"])
def test_a_saved_average_is_what_was_validated(module, data, trainer, tmp_path, mode, weights_alone):
    saver = ModelCheckpoint(
        tmp_path / "saved", filename="best", monitor="val/loss", save_weights_only=weights_alone
    )
    ran = trainer(AVERAGES["ema"](), saver, enable_checkpointing=True)
    ran.fit(module(mode), data())
    loaded = BradleyTerryRM.load_from_checkpoint(tmp_path / "saved" / "best.ckpt", weights_only=True)
    again = trainer().validate(loaded, data(), verbose=False)[0]
    assert again["val/loss"] == pytest.approx(float(ran.callback_metrics["val/loss"]), abs=1e-7)


@pytest.fixture
def run(module, data, tmp_path):
    """A fit that saves after every step, every epoch and every validation."""

    def fit(folder, kind, mode, method=BradleyTerryRM, checkpoint=None):
        place = tmp_path / folder
        savers = [
            ModelCheckpoint(place, filename="step-{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(place, filename="val-{step}", monitor="val/loss", save_top_k=-1),
            ModelCheckpoint(
                place, filename="epoch-{step}", save_on_train_epoch_end=True, every_n_epochs=1, save_top_k=-1
            ),
        ]
        fitted = module(mode, method)
        trainer = L.Trainer(
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[AVERAGES[kind](), *savers],
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            max_epochs=3,
            log_every_n_steps=1,
        )
        trainer.fit(fitted, data(method), ckpt_path=checkpoint, weights_only=True)
        return trainer, fitted

    return fit


FEW = ("step-step=6", "epoch-step=8")
EVERY = tuple(
    f"{kind}-step={step}"
    for kind in ("step", "val", "epoch")
    for step in range(1, 12)
    if kind == "step" or not step % 4
)


@pytest.mark.parametrize(
    ("kind", "mode", "method", "saved"),
    [
        ("ema", "lora", BradleyTerryRM, FEW),
        ("ema of epochs", "frozen", BradleyTerryRM, FEW[1:]),
        ("swa", "lora", BradleyTerryRM, FEW[:1]),
        *(
            pytest.param(kind, mode, method, EVERY, marks=pytest.mark.slow)
            for kind in ("ema", "swa")
            for mode in MODES
            for method in (BradleyTerryRM, PAL, DPRM)
        ),
        *(
            pytest.param(kind, mode, BradleyTerryRM, EVERY, marks=pytest.mark.slow)
            for kind in ("ema of epochs", "late ema", "equal")
            for mode in MODES
        ),
    ],
)
def test_a_run_with_an_average_ends_alike_wherever_it_was_interrupted(
    run, tmp_path, kind, mode, method, saved
):
    whole, wanted = run("whole", kind, mode, method)
    for name in saved:
        trainer, fitted = run("again", kind, mode, method, tmp_path / "whole" / f"{name}.ckpt")
        for key, value in wanted.state_dict().items():
            assert torch.equal(fitted.state_dict()[key], value), (name, key)
        states = [each.optimizers[0].state_dict() for each in (whole, trainer)]
        assert str(states[0]) == str(states[1]), name
        assert whole.callback_metrics["val/loss"] == trainer.callback_metrics["val/loss"], name
