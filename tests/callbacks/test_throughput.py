"""Speeds against a clock of our own, on real runs."""

import csv

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

from pluralign.callbacks import Throughput
from pluralign.callbacks import throughput as file
from pluralign.datamodules import LoaderConfig

NAMES = ("train/pairs/s", "train/tokens/s", "train/padding")


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(file, "time", clock)
    return clock


class Watch(L.Callback):
    """Let a step take 2 s and a validation 1,000 s, and note batches and what is logged."""

    def __init__(self, clock):
        self.clock, self.batches, self.logged, self.epochs = clock, [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.clock.now += 2

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # runs after Throughput, which stands before it
        self.batches.append(batch)
        logged = trainer._results
        self.logged.append({str(item.meta.name): float(item.value) for item in logged.values()})

    def on_validation_start(self, trainer, pl_module):
        self.clock.now += 1000

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        self.clock.now += 500


def expected(batches, seconds):
    pairs = tokens = cells = 0
    for batch in batches:
        pairs += len(batch["comparisons"])
        for row in batch["segment_ids"].tolist():
            tokens += sum(segment >= 0 for segment in row)
            cells += len(row)
    return {
        "train/pairs/s": pairs / seconds,
        "train/tokens/s": tokens / seconds,
        "train/padding": 1 - tokens / cells,
    }


def run(trainer, module, source, clock, every, **settings):
    watch = Watch(clock)
    fit = trainer(Throughput(every_n_steps=every), watch, **settings)
    fit.fit(module(), source)
    return watch, fit


def values(logged):
    return {name: value for name, value in logged.items() if name in NAMES}


def test_values_count_the_steps_since_the_last_one(trainer, module, data, clock):
    watch, fit = run(trainer, module, data(), clock, 3)
    assert len(watch.batches) == 6
    for step in (2, 5):
        assert values(watch.logged[step]) == pytest.approx(
            expected(watch.batches[step - 2 : step + 1], seconds=6), rel=1e-6
        )
    assert values(watch.logged[0]) == values(watch.logged[1]) == {}
    shown = fit.progress_bar_metrics
    for name, value in values(watch.logged[5]).items():
        assert shown[name] == pytest.approx(value)


def test_validation_within_an_epoch_takes_no_time_and_drops_no_step(trainer, module, data, clock):
    watch, _ = run(trainer, module, data(), clock, 4, val_check_interval=3)
    assert values(watch.logged[3]) == pytest.approx(expected(watch.batches[:4], seconds=8), rel=1e-6)


def test_epochs_shorter_than_the_interval_still_give_values(trainer, module, data, clock):
    watch, _ = run(trainer, module, data(), clock, 10, max_epochs=2)
    assert (watch.epochs, len(watch.batches)) == (2, 12)
    assert values(watch.logged[9]) == pytest.approx(expected(watch.batches[:10], seconds=20), rel=1e-6)


def test_every_value_reaches_a_logger_of_the_same_interval(trainer, module, data, clock, tmp_path):
    run(
        trainer,
        module,
        data(),
        clock,
        4,
        max_epochs=2,
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=4,
    )
    with (tmp_path / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("train/pairs/s")]
    assert [int(row["step"]) for row in rows] == [3, 7, 11]


def test_validation_alone_gives_no_value(trainer, module, data):
    alone = trainer(Throughput(every_n_steps=1))
    alone.validate(module(), data(), verbose=False)
    assert not any(name in alone.callback_metrics for name in NAMES)


def test_responses_count_where_nothing_is_compared(clock):
    class Module:
        logged = None

        def log_dict(self, values, **settings):
            self.logged = values

    callback, module = Throughput(every_n_steps=1), Module()
    callback.on_train_start(None, module)
    clock.now += 2
    callback.on_train_batch_end(None, module, None, {"response_row": [0, 0, 1]}, 0)
    assert module.logged == {"train/pairs/s": 1.5}, "and feature batches have no tokens"


def test_items_count_where_batches_are_prompts(clock):
    class Module:
        logged = None

        def log_dict(self, values, **settings):
            self.logged = values

    callback, module = Throughput(every_n_steps=1), Module()
    callback.on_train_start(None, module)
    clock.now += 2
    prompts = {"id": ["a", "b", "c"], "plain_ids": [[1], [2], [3]]}
    callback.on_train_batch_end(None, module, None, prompts, 0)
    assert module.logged == {"train/items/s": 1.5}


def test_a_second_run_begins_anew(trainer, module, data, clock):
    callback, watch = Throughput(every_n_steps=4), Watch(clock)
    for steps in (3, 4):
        watch.batches.clear()
        trainer(callback, watch, max_epochs=-1, max_steps=steps).fit(module(), data())
    assert values(watch.logged[-1]) == pytest.approx(expected(watch.batches, seconds=8), rel=1e-6)


def test_real_time_is_plausible(trainer, module, data):
    fit = trainer(Throughput(every_n_steps=2))
    fit.fit(module(), data(loader=LoaderConfig(batch_size=2)))
    assert fit.callback_metrics["train/pairs/s"] > 1
    assert fit.callback_metrics["train/tokens/s"] > fit.callback_metrics["train/pairs/s"]
    assert 0 <= fit.callback_metrics["train/padding"] < 1


@pytest.mark.parametrize("wrong", [0, -1])
def test_an_interval_is_at_least_one_step(wrong):
    with pytest.raises(ValueError, match=f"every_n_steps must be finite and >= 1; got {wrong}"):
        Throughput(every_n_steps=wrong)
