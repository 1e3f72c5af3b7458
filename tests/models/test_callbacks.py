"""Lightning's own callbacks: they find weights in their setup, or are refused by name with what to use."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from transformers import LlamaConfig, LlamaModel

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import DPRM, PAL, BackboneConfig, BradleyTerryRM, LoRAConfig
from pluralign.models._callbacks import check_deepspeed, refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method`:DeprecationWarning"  # peft, when it is first imported
)


@pytest.fixture
def folder(tmp_path, tiny):
    """A pretrained network."""
    path = tmp_path / "network"
    LlamaModel(LlamaConfig(**{k: v for k, v in tiny().items() if k != "model_type"})).save_pretrained(path)
    return str(path)


@pytest.fixture
def module(folder, tiny):
    """A module from a seed, with a network of a configuration, or what the pretrained one is given with."""

    def build(mode="config", method=BradleyTerryRM, rate=1e-2, **settings):
        L.seed_everything(0, verbose=False)
        backbone = {
            "config": {"config": tiny(attention_dropout=0.2)},
            "all": {"name": folder},
            "lora": {"name": folder, "lora": LoRAConfig(rank=2)},
            "frozen": {"name": folder, "frozen": True},
        }[mode]
        if method is PAL:
            settings = {"num_prototypes": 2, "preference_size": 4, "projector": "linear", **settings}
        if method is DPRM:
            settings = {"labels": list("12345"), "rewards": [1, 2, 3, 4, 5], **settings}
        return method(BackboneConfig(**backbone), optimizer=partial(torch.optim.AdamW, lr=rate), **settings)

    return build


@pytest.fixture
def data():
    def build(method=BradleyTerryRM, **settings):
        judgements = {"judgements": "ratings"} if method is DPRM else {}
        sizes = {"num_train": 16, "num_validation": 4, "num_test": 4, "num_predict": 4}
        return SyntheticDataModule(
            **{**sizes, **judgements, "loader": LoaderConfig(batch_size=4), **settings}
        )

    return build


def equal(module, other):
    states = module.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Order(L.Callback):
    """Keeps the records of every batch, and the rate of its step."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append((batch["id"], trainer.optimizers[0].param_groups[0]["lr"]))


# Weights in setup ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [BradleyTerryRM, PAL, DPRM])
def test_setup_of_callbacks_finds_the_weights(module, data, trainer, method):
    counts = {}

    def look(trainer, module, stage):
        counts[stage] = sum(each.numel() for each in module.parameters())

    model, source = module(method=method), data(method)
    trainer(LambdaCallback(setup=look)).validate(model, source, verbose=False)
    trainer(LambdaCallback(setup=look)).fit(module(method=method), source)
    number = sum(each.numel() for each in model.parameters())
    assert counts == {"validate": number, "fit": number}
    assert number > 5000


def test_weights_are_those_of_a_run_without_callbacks(module, data, trainer):
    plain = module()
    trainer().fit(plain, data())
    watched = module()
    trainer(LambdaCallback(setup=lambda trainer, module, stage: None)).fit(watched, data())
    assert equal(plain, watched)


def test_a_setting_is_refused_before_anything_is_built(module, data, trainer):
    model = module()
    with pytest.raises(ValueError, match="bf16-true"):
        trainer(precision="bf16-true").fit(model, data())
    assert model.backbone is None


def test_a_module_with_callbacks_of_its_own_calls_the_base_class(module, data, trainer):
    class Hasty(BradleyTerryRM):
        def configure_callbacks(self):
            return [LambdaCallback()]

    class Careful(BradleyTerryRM):
        def configure_callbacks(self):
            return [*super().configure_callbacks(), LambdaCallback()]

    with pytest.raises(RuntimeError, match=r"Hasty.configure_callbacks does not call"):
        trainer().fit(module(method=Hasty), data())
    ran = trainer()
    for _ in range(2):  # the same trainer again
        ran.fit(module(method=Careful), data())
    kinds = [type(each).__name__ for each in ran.callbacks]
    assert kinds.count("Groundwork") == 1 and "LambdaCallback" in kinds


# What only looks -----------------------------------------------------------------------------------------


def number_of_pairs(batch):
    return len(batch["comparisons"])


def number_of_tokens(batch):
    return sum(batch["row_lengths"])


QUICK = ("EarlyStopping", "SpikeDetection", "ThroughputMonitor")
WATCHERS = {
    "DeviceStatsMonitor": DeviceStatsMonitor,
    "EarlyStopping": lambda: EarlyStopping("val/loss"),
    "LearningRateMonitor": LearningRateMonitor,
    "ModelSummary": ModelSummary,
    "OnExceptionCheckpoint": lambda: OnExceptionCheckpoint("."),
    "SpikeDetection": SpikeDetection,
    "ThroughputMonitor": lambda: ThroughputMonitor(number_of_pairs, number_of_tokens, window_size=2),
    "Timer": lambda: Timer(duration="00:01:00:00"),
}


@pytest.mark.filterwarnings(
    "ignore:When using the `ThroughputMonitor`, you need to define a `flops_per_batch`"
)
@pytest.mark.filterwarnings(
    "ignore:`.fit.ckpt_path=None.` was called without a model"
)  # OnExceptionCheckpoint
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no last checkpoint")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WATCHERS],
)
def test_what_only_looks_changes_nothing(module, data, trainer, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    callback, plain = WATCHERS[name](), module("lora")
    saving = {"enable_checkpointing": True} if name == "OnExceptionCheckpoint" else {}
    trainer(max_epochs=2, log_every_n_steps=2).fit(plain, data())
    logger, watched = CSVLogger(tmp_path), module("lora")
    trainer(callback, max_epochs=2, log_every_n_steps=2, logger=logger, **saving).fit(watched, data())
    assert equal(plain, watched)


@pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model")
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no last checkpoint")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_an_exception_can_be_gone_on_from(module, data, trainer, tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                raise RuntimeError("stopped")

    whole = module("lora")
    trainer(max_epochs=2).fit(whole, data())
    keep = OnExceptionCheckpoint(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(keep, Stop(), enable_checkpointing=True, max_epochs=2).fit(module("lora"), data())
    again = module("lora")
    trainer(max_epochs=2).fit(
        again, data(), ckpt_path=tmp_path / "saved" / "on_exception.ckpt", weights_only=True
    )
    assert equal(whole, again)


# Pruning and fine-tuning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [BradleyTerryRM, pytest.param(DPRM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"make_pruning_permanent": False}, {"save_weights_only": True}])
def test_pruned_weights_are_saved_as_they_are(module, data, trainer, tmp_path, method, settings):
    settings = dict(settings)
    alone = settings.pop("save_weights_only", False)
    prune = ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False, **settings)
    saver = ModelCheckpoint(tmp_path / "saved", filename="all", save_weights_only=alone)
    model = module("all", method)
    trainer(prune, saver, enable_checkpointing=True).fit(model, data(method))
    loaded = method.load_from_checkpoint(tmp_path / "saved" / "all.ckpt", weights_only=True)
    weights = [each for name, each in loaded.named_parameters() if not name.endswith("bias")]
    zeros = sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)
    assert zeros == pytest.approx(0.5, abs=0.02)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_with_pruning_does_not_go_on(module, data, trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", filename="all")
    trainer(ModelPruning("l1_unstructured"), saver, enable_checkpointing=True).fit(module(), data())
    with pytest.raises(ValueError, match=r"ModelPruning cannot go on from a checkpoint.*model.init_from"):
        trainer(ModelPruning("l1_unstructured"), max_epochs=2).fit(
            module(), data(), ckpt_path=tmp_path / "saved" / "all.ckpt", weights_only=True
        )


@pytest.mark.parametrize(
    ("method", "saved"),
    [
        (BradleyTerryRM, (2, 6)),
        pytest.param(PAL, (3, 4, 5, 8, 10), marks=pytest.mark.slow),
        pytest.param(BradleyTerryRM, (1, 3, 4, 5, 7, 8, 9, 10, 11), marks=pytest.mark.slow),
    ],
)
def test_what_was_unfrozen_stays_so_in_a_run_that_goes_on(module, data, trainer, tmp_path, method, saved):
    """Lightning alone freezes the backbone again, and says nothing."""

    def fit(checkpoint=None):
        saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        tune = BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.5)
        model = module("all", method)
        trainer(tune, saver, enable_checkpointing=True, max_epochs=3).fit(
            model, data(method), ckpt_path=checkpoint, weights_only=True
        )
        return model

    whole = fit()
    assert all(each.requires_grad for each in whole.backbone.parameters())
    for step in saved:
        assert equal(whole, fit(tmp_path / "saved" / f"step={step}.ckpt")), step
    # What was saved while the backbone was frozen is whole, too.
    early = method.load_from_checkpoint(tmp_path / "saved" / "step=2.ckpt", weights_only=True)
    start = module("all", method)
    start.configure_model()
    assert equal(early.backbone, start.backbone)


def test_adapters_can_be_unfrozen_later(module, data, trainer):
    class Adapters(BaseFinetuning):
        def freeze_before_training(self, module):
            self.names = [name for name, each in module.named_parameters() if "lora_" in name]
            for name in self.names:
                module.get_parameter(name).requires_grad_(False)

        def finetune_function(self, module, epoch, optimizer):
            if epoch == 1:
                parameters = [module.get_parameter(name).requires_grad_(True) for name in self.names]
                optimizer.add_param_group({"params": parameters})

    tune, order = Adapters(), Order()
    model = module("lora")
    trainer(tune, order, max_epochs=2).fit(model, data())
    assert any(bool(model.get_parameter(name).any()) for name in tune.names if "lora_B" in name)


@pytest.mark.slow
def test_accumulation_by_epoch_goes_on(module, data, trainer, tmp_path):
    def fit(checkpoint=None):
        saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        model = module("lora")
        trainer(
            GradientAccumulationScheduler({0: 2, 1: 4, 2: 1}), saver, enable_checkpointing=True, max_epochs=3
        ).fit(model, data(), ckpt_path=checkpoint, weights_only=True)
        return model

    whole = fit()
    saved = sorted((tmp_path / "saved").glob("step=*.ckpt"))
    assert len(saved) == 7  # 2 + 1 + 4 steps
    for checkpoint in (saved[0], saved[-2]):
        assert equal(whole, fit(checkpoint)), checkpoint


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "mode", "method", "advice"),
    [
        (lambda: ModelPruning("l1_unstructured"), "lora", BradleyTerryRM, "train all of the network"),
        (lambda: ModelPruning("l1_unstructured"), "frozen", PAL, "train all of the network"),
        (lambda: ModelPruning("l1_unstructured"), "config", PAL, "leave ModelPruning out"),
        (BackboneFinetuning, "frozen", BradleyTerryRM, "set backbone.frozen=false"),
        (BackboneFinetuning, "lora", DPRM, "derive from BaseFinetuning"),
        (BatchSizeFinder, "config", BradleyTerryRM, "loader.max_tokens"),
        (BatchSizeFinder, "lora", PAL, "loader.max_tokens"),
    ],
)
def test_what_cannot_work_is_refused_by_name(module, data, trainer, callback, mode, method, advice):
    made, model = callback(), module(mode, method)
    with pytest.raises(ValueError, match=rf"{type(made).__name__} cannot be used here: .*{advice}"):
        trainer(made).fit(model, data(method))
    assert model.backbone is None


@pytest.mark.parametrize(
    "callback",
    [
        WeightAveraging,
        lambda: StochasticWeightAveraging(1e-2),
        lambda: ModelPruning("l1_unstructured"),
        BackboneFinetuning,
    ],
)
def test_whole_weights_are_not_looked_at_where_they_are_sharded(module, callback):
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, strategy=ModelParallelStrategy())
    reason = refusal(callback(), trainer, module())
    assert "ModelParallelStrategy gives each rank a part of them" in reason
    assert refusal(LearningRateMonitor(), trainer, module()) is None


def test_several_processes_unfreeze_nothing(module):
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    assert "set trainer.devices=1" in refusal(BackboneFinetuning(), trainer, module())
    assert refusal(WeightAveraging(), trainer, module()) is None


# Tuners ----------------------------------------------------------------------------------------------------


def warmed_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))


@pytest.mark.parametrize(
    ("mode", "scheduler"),
    [
        ("frozen", None),
        *(pytest.param(mode, warmed_up, marks=pytest.mark.slow) for mode in ("lora", "config")),
    ],
)
def test_a_rate_that_was_found_is_as_if_it_had_been_set(module, data, trainer, mode, scheduler):
    finder, order = LearningRateFinder(min_lr=1e-5, max_lr=0.1, num_training_steps=24), Order()
    model = module(mode, rate=1e-3, lr_scheduler=scheduler)
    sizes = {"num_train": 64}
    trainer(finder, order, max_epochs=2).fit(model, data(**sizes))
    found = finder.optimal_lr.suggestion()
    assert model.learning_rate == found != 1e-3
    expected, reference = Order(), module(mode, rate=found, lr_scheduler=scheduler)
    trainer(expected, max_epochs=2).fit(reference, data(**sizes))
    assert order.batches == expected.batches
    assert equal(model, reference)


def test_the_tuner_finds_a_rate_for_later(module, data, trainer):
    model = module("lora", rate=1e-3)
    ran = trainer(max_epochs=2)
    finder = Tuner(ran).lr_find(model, datamodule=data(num_train=64), num_training=24, max_lr=0.01)
    assert model.learning_rate == finder.suggestion()
    ran.fit(model, data(num_train=64))
    assert ran.optimizers[0].param_groups[0]["lr"] == finder.suggestion()


def test_one_rate_is_not_given_to_groups_that_have_several(module, data, trainer):
    settings = {"num_training_steps": 16, "max_lr": 0.1}
    with pytest.raises(ValueError, match=r"LearningRateFinder would give one rate.*update_attr=false"):
        trainer(LearningRateFinder(**settings)).fit(module(method=PAL), data())
    finder = LearningRateFinder(**settings, update_attr=False)
    model = module(method=PAL)
    trainer(finder).fit(model, data(num_train=64))
    plain = module(method=PAL)
    trainer().fit(plain, data(num_train=64))
    assert finder.optimal_lr.suggestion() > 0
    assert equal(plain, model)


def test_a_rate_far_too_high_says_what_to_lower(module, data, trainer):
    finder = LearningRateFinder(max_lr=1e30, num_training_steps=20, early_stop_threshold=None)
    with pytest.raises(RuntimeError, match="lower max_lr of LearningRateFinder"):
        trainer(finder, max_epochs=5).fit(module(), data())


class Own(L.LightningDataModule):
    """Data of somebody's own with a batch size, which a tuner may change."""

    def __init__(self, source, batch_size):
        super().__init__()
        self.source, self.batch_size = source, batch_size

    def setup(self, stage):
        self.source.setup(stage)

    def train_dataloader(self):
        self.source.loader = replace(self.source.loader, batch_size=self.batch_size, max_tokens=None)
        return self.source.train_dataloader()

    def val_dataloader(self):
        return self.source.val_dataloader()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_batch_size_is_found_for_data_that_have_one(module, data, trainer):
    own, model = Own(data(num_train=64), 2), module("lora")
    finder = BatchSizeFinder(max_val=16)
    trainer(finder).fit(model, own)
    assert own.batch_size == finder.optimal_batch_size == 16
    reference = module("lora")
    trainer().fit(reference, Own(data(num_train=64), 16))
    assert equal(model, reference)


def test_deepspeed_has_to_be_told_a_batch_size_and_its_checkpoints_hold_no_weights(tiny):
    strategy = object.__new__(DeepSpeedStrategy)  # which would look for the package
    strategy.config = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r"logging_batch_size_per_gpu: 1}}, or to fsdp2"):
        check_deepspeed(SimpleNamespace(strategy=strategy))
    strategy.config["train_micro_batch_size_per_gpu"] = 1
    check_deepspeed(SimpleNamespace(strategy=strategy))
    with pytest.raises(ValueError, match=r"one of DeepSpeed's.*zero_to_fp32.py"):
        BradleyTerryRM(BackboneConfig(config=tiny())).on_load_checkpoint({"epoch": 1, "global_step": 6})
