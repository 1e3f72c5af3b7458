"""The progress bar: the time left, and how seldom values are read."""

import pytest

from pluralign.callbacks import RunProgress
from pluralign.callbacks import run_progress as file


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(file, "time", clock)
    return clock


class Watched(RunProgress):
    """Lets a batch take 2 s, and notes what is shown after it."""

    def __init__(self, clock, **settings):
        super().__init__(**settings)
        self.clock, self.shown = clock, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.clock.now += 2
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.shown.append(dict(self._shown))


def lefts(bar):
    return [shown.get("left") for shown in bar.shown]


def test_the_time_left_is_that_of_the_whole_run(trainer, module, data, clock):
    bar = Watched(clock)
    fit = trainer(bar, max_epochs=2, enable_progress_bar=True)
    fit.fit(module(), data())
    assert len(bar.shown) == 12
    assert lefts(bar) == [None, *(f"0:00:{2 * (12 - done):02}" for done in range(2, 13))]
    assert "loss" in bar.shown[-1] and "v_num" not in bar.shown[-1]


def test_steps_end_a_run_too(trainer, module, data, clock):
    bar = Watched(clock)
    trainer(bar, max_epochs=-1, max_steps=4, enable_progress_bar=True).fit(module(), data())
    assert lefts(bar) == [None, "0:00:04", "0:00:02", "0:00:00"]


def test_values_are_read_once_in_a_while(trainer, module, data, clock, monkeypatch):
    readings = []
    get_metrics = file.RichProgressBar.get_metrics

    def counted(self, trainer, pl_module):
        readings.append(trainer.global_step)
        return get_metrics(self, trainer, pl_module)

    monkeypatch.setattr(file.RichProgressBar, "get_metrics", counted)
    trainer(Watched(clock, seconds=5), max_epochs=1, enable_progress_bar=True).fit(module(), data())
    assert len(readings) <= 4, "after 2, 8 and 14 seconds, and at the end of the epoch"


def test_large_numbers_have_no_decimals():
    assert file._short(38638.441) == "38,638" and file._short(0.25) == 0.25 and file._short("1:00") == "1:00"


def test_the_interval_is_positive():
    with pytest.raises(ValueError, match="seconds must be finite and > 0; got 0"):
        RunProgress(seconds=0)
