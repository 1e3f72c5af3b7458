"""Processes that make batches: one that is killed, and one that hangs, end a run by name and lose no batch."""

import os
import signal
import sys
import time

import pytest
import torch

from pluralign.commands.failures import short_failure
from pluralign.datamodules import LoaderConfig, SyntheticDataModule

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def loader(**settings):
    sizes = {"num_train": 48, "num_validation": 2, "num_test": 2, "num_predict": 2}
    data = SyntheticDataModule(**sizes, loader=LoaderConfig(batch_size=4, **settings))
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


def test_a_killed_worker_is_named_and_the_batches_that_were_seen_are_known():
    whole = [batch["id"] for batch in loader()]
    killed, seen = loader(num_workers=1), []
    with pytest.raises(RuntimeError) as caught:
        for batch in killed:
            seen.append(batch["id"])
            if len(seen) == 3:
                os.kill(killed._iterator._workers[0].pid, signal.SIGKILL)
    told = short_failure(caught.value)
    assert told.startswith("a process that makes batches ended before its time (worker (pid")
    assert "data.loader.num_workers" in told and "--ckpt_path last" in told
    assert 3 <= len(seen) < 12 and seen == whole[: len(seen)]
    again = loader(num_workers=1)
    again.load_state_dict(killed.state_dict())
    assert seen + [batch["id"] for batch in again] == whole


def test_a_worker_that_hangs_ends_the_run_after_the_timeout():
    hanging, collate = loader(num_workers=1, worker_timeout=1), None
    collate = hanging.collate_fn

    def slow(rows):
        time.sleep(4)
        return collate(rows)

    hanging.collate_fn = slow
    with pytest.raises(RuntimeError) as caught:
        next(iter(hanging))
    told = short_failure(caught.value)
    assert told.startswith(
        "no batch came within data.loader.worker_timeout (1 s): a process that makes batches hangs"
    )


def test_words_of_torch_for_both_ways_to_die():
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that")
    assert "(worker (pid 12), by a signal: Bus error)" in short_failure(killed)
    gone = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    assert "(worker (pid(s) 12, 13))" in short_failure(gone)
    assert short_failure(RuntimeError("DataLoader is a word")) is None


def test_the_timeout_is_a_number_of_seconds_and_needs_workers():
    with pytest.raises(ValueError, match=r"loader\.worker_timeout must be finite and >= 0; got -1"):
        LoaderConfig(worker_timeout=-1)
    assert loader(worker_timeout=5).timeout == 0 and torch.is_tensor(next(iter(loader()))["response_row"])
