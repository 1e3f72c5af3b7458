"""Processes that make batches: one that is killed, and one that hangs, end a run by name and lose no batch."""

import json
import os
import signal
import sys
import time

import pytest
import torch

from pluralign.commands.failures import short_failure
from pluralign.datamodules import LoaderConfig, SyntheticDataModule

from .killing import finished

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def loader(**settings):
    sizes = {"num_train": 48, "num_validation": 2, "num_test": 2, "num_predict": 2}
    data = SyntheticDataModule(**sizes, loader=LoaderConfig(batch_size=4, **settings))
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


def in_a_process(action, folder):
    """What a function returns in a process of its own: where a worker dies torch's handler of signals raises anywhere in its parent."""
    told = folder / "told.json"
    finished(lambda: told.write_text(json.dumps(action())), folder, folder / "printed.txt")
    return json.loads(told.read_text())


def test_a_killed_worker_is_named_and_the_batches_that_were_seen_are_known(tmp_path):
    whole = [batch["id"] for batch in loader()]

    def run():
        killed, seen = loader(num_workers=1), []
        try:
            for batch in killed:
                seen.append(batch["id"])
                if len(seen) == 3:
                    os.kill(killed._iterator._workers[0].pid, signal.SIGKILL)
        except RuntimeError as error:
            return short_failure(error), seen, killed.state_dict()
        return "no error", seen, {}

    told, seen, state = in_a_process(run, tmp_path)
    assert told.startswith("a process that makes batches ended before its time (worker (pid")
    assert "data.loader.num_workers" in told and "--ckpt_path last" in told
    assert 3 <= len(seen) < 12 and seen == whole[: len(seen)]
    again = loader(num_workers=1)
    again.load_state_dict(state)
    assert seen + [batch["id"] for batch in again] == whole


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset by peer"), EOFError(), FileNotFoundError("a socket")]
)
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_named_and_the_living_are_not(error, tmp_path):
    def run():
        broken = loader(num_workers=1)
        batches = iter(broken)
        next(batches)
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(broken._iterator), "_next_data", torn)
            for kill in (False, True):
                try:
                    if kill:
                        batches = iter(broken)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as if torch had not heard of it yet
                        os.kill(broken._iterator._workers[0].pid, signal.SIGKILL)
                    next(batches)
                except (OSError, EOFError, RuntimeError) as caught:
                    found.append([type(caught).__name__, str(caught), short_failure(caught)])
        return found

    def torn(self):
        raise error

    living, dead = in_a_process(run, tmp_path)
    assert living[:2] == [type(error).__name__, str(error)]
    assert dead[2].startswith("a process that makes batches ended before its time (worker (pid(s) ")


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
