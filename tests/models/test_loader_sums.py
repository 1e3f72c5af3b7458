"""Several loaders of a stage: each is measured by itself, and all of them together."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import CombinedLoader

from pluralign.callbacks import CrowdCalibration, RecoveryReport, RewardWriter, UserMetrics
from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM


@pytest.fixture
def sources():
    """Two data modules that differ in size and content, set up for everything."""
    opened = []
    for seed, size in ((0, 5), (1, 12)):
        data = SyntheticDataModule(
            num_train=8, num_validation=size, num_test=size, num_predict=size, seed=seed
        )
        data.loader = replace(LoaderConfig(), batch_size=4)
        for stage in ("fit", "test", "predict"):
            data.setup(stage)
        opened.append(data)
    return opened


@pytest.fixture
def module(tiny):
    def build(**settings):
        return BradleyTerryRM(BackboneConfig(config=tiny()), **settings)

    return build


@pytest.mark.parametrize(("stage", "verb"), [("val", "validate"), ("test", "test")])
def test_each_loader_has_the_numbers_that_it_has_alone(sources, module, trainer, stage, verb):
    model = module()
    loaders = [getattr(data, f"{stage}_dataloader")() for data in sources]
    together = getattr(trainer(), verb)(model, loaders, verbose=False)[0]
    alone = [getattr(trainer(), verb)(model, loader, verbose=False)[0] for loader in loaders]
    for number, values in enumerate(alone):
        assert f"{stage}/loss" in values
        for name, value in values.items():
            assert together[f"{name}/loader_{number}"] == pytest.approx(value, abs=1e-6), name
    # All of them together are as if their judgements came from one.
    joined = [batch for loader in loaders for batch in loader]
    whole = getattr(trainer(), verb)(
        model, torch.utils.data.DataLoader(joined, batch_size=None), verbose=False
    )[0]
    assert not any("loader" in name for name in whole)
    for name, value in whole.items():
        assert together[name] == pytest.approx(value, abs=1e-6), name
    assert alone[0][f"{stage}/loss"] != alone[1][f"{stage}/loss"]


def test_a_fit_watches_one_of_its_loaders(sources, module, trainer):
    stop = EarlyStopping("val/loss/loader_1", patience=5)
    ran = trainer(stop, max_epochs=2)
    ran.fit(module(), sources[0].train_dataloader(), [data.val_dataloader() for data in sources])
    found = ran.callback_metrics
    assert float(stop.best_score) >= float(found["val/loss/loader_1"]) - 1e-6
    assert {"val/accuracy", "val/accuracy/loader_0", "val/accuracy/loader_1"} <= set(found)


def test_a_module_can_be_fitted_after_it_was_validated(sources, module, trainer):
    model = module()
    trainer().validate(model, sources[0].val_dataloader(), verbose=False)
    ran = trainer()
    ran.fit(model, sources[0].train_dataloader(), sources[0].val_dataloader())
    assert float(ran.callback_metrics["val/loss"]) > 0


def test_predictions_of_several_loaders_come_apart(sources, module, trainer):
    model = module()
    loaders = [data.predict_dataloader() for data in sources]
    found = trainer().predict(model, loaders)
    assert [len(part) for part in found] == [len(loader) for loader in loaders]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("where", ["train", "validation"])
def test_loaders_side_by_side_are_refused(sources, module, trainer, where):
    both = CombinedLoader([data.val_dataloader() for data in sources], "min_size")
    one = sources[0].train_dataloader()
    with pytest.raises(TypeError, match=r"one batch at a time.*mode='sequential'"):
        trainer().fit(module(), *((both, None) if where == "train" else (one, both)))


@pytest.mark.parametrize("report", [CrowdCalibration, RecoveryReport, UserMetrics])
def test_reports_refuse_several_loaders(sources, module, trainer, report):
    loaders = [data.val_dataloader() for data in sources]
    with pytest.raises(ValueError, match=rf"{report.__name__} reports on one validation loader, .* are 2"):
        trainer(report()).validate(module(), loaders, verbose=False)
    with pytest.raises(ValueError, match=rf"{report.__name__} reports on one validation loader"):
        trainer(report()).fit(module(), sources[0].train_dataloader(), loaders)


def test_reports_on_tests_refuse_several_loaders(sources, module, trainer):
    with pytest.raises(ValueError, match="UserMetrics reports on one test loader"):
        trainer(UserMetrics()).test(module(), [data.test_dataloader() for data in sources], verbose=False)


def test_the_writer_refuses_several_loaders(sources, module, trainer, tmp_path):
    writer = RewardWriter(str(tmp_path / "rewards.jsonl"))
    with pytest.raises(ValueError, match="RewardWriter reports on one predict loader"):
        trainer(writer).predict(module(), [data.predict_dataloader() for data in sources])
    assert not list(tmp_path.glob("rewards*"))
