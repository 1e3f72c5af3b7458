"""A real disk that is full, nearly full or read-only, under everything that writes.

Promise: one error that names the place and what to do; what was there before stays to the byte; nothing unfinished is left; and
once there is room the same call ends as if nothing had happened.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch import distributed

from pluralign.callbacks import AtomicCheckpointIO, RunLogger
from pluralign.callbacks.pictures import save_picture
from pluralign.callbacks.prediction_lines import PredictionLines
from pluralign.commands.failures import short_failure
from pluralign.datamodules import SyntheticDataModule
from pluralign.datamodules.batches.features import FeatureWriter
from pluralign.datamodules.records.copies import RemoteFiles
from pluralign.datamodules.votes import VoteFolder, VoteShard, VoteSource
from pluralign.datamodules.whole_files import appended_whole, written_whole
from pluralign.inference.exporting import folder_written_whole
from pluralign.inference.responding import ResponseFile
from pluralign.models.rollouts import ReferenceAnswer, RolloutStore
from pluralign.models.sharding import ShardedCheckpoint
from pluralign.train import main

SIZE = 1 << 20
"""Bytes of the disk."""
PAGE = 4096
VOTED = {"parts": {"local": {"sources": {"train": [["a.jsonl", "12ab"]]}}}, "text": {"vocabulary": 259}}
NO_DISK = "a disk of its own needs Linux, root and the right to mount"


class Disk:
    """A file system in memory, of a megabyte."""

    def __init__(self, path):
        self.path = path

    def _mount(self, *options):
        words = ["mount", "-t", "tmpfs", *options, "faults", str(self.path)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def made(self):
        return sys.platform == "linux" and bool(shutil.which("mount")) and self._mount("-o", f"size={SIZE}")

    def fill(self, *, free):
        """Leave so many bytes."""
        with suppress_full(), (self.path / "filler").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(PAGE))
        os.truncate(self.path / "filler", (self.path / "filler").stat().st_size - free)

    def make_room(self):
        (self.path / "filler").unlink()

    def remount(self, mode):
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)

    def gone(self):
        subprocess.run(["umount", "-l", str(self.path)], check=True)


class suppress_full:
    """What a full disk says, and nothing else."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return isinstance(error, OSError) and error.errno == errno.ENOSPC


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    disk = Disk(path)
    if not disk.made():
        pytest.skip(NO_DISK)
    yield disk
    disk.gone()


def held(folder):
    """Every file by its bytes, but for the filler and what only keeps others out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("filler", "lock")
    }


# What writes: each takes a folder and a turn, and writes some 20 KB that differ from turn to turn ------------------


def numbers(turn):
    return torch.randn(8, 1000, generator=torch.Generator().manual_seed(turn))


def text(turn):
    return f"turn {turn} " * 3000


def whole_file(folder, turn):
    with written_whole(folder / "there" / "whole.txt") as stream:
        stream.write(text(turn).encode())


def appended_file(folder, turn):
    with appended_whole(folder / "there" / "lines.txt") as stream:
        stream.write(text(turn).encode())


def two_files(folder, turn):
    with written_whole(folder / "a.txt") as first, written_whole(folder / "b.txt") as second:
        first.write(text(turn).encode())
        second.write(text(turn + 1).encode())


def checkpoint(folder, turn):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": numbers(turn)}}, folder / "last.ckpt")


def log(folder, turn):
    logger = RunLogger(save_dir=str(folder), name=None, version="run", tensorboard=False)
    logger.log_metrics({f"train/a_rather_long_name_{i}": float(i + turn) for i in range(4000)}, turn)
    logger.save()


def picture(folder, turn):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot(numbers(turn)[0].tolist())
    save_picture(figure, folder / "pictures" / "curve", ("png",))


def predictions(folder, turn):
    lines = PredictionLines(folder / "predictions.jsonl")
    try:
        lines.open()
        lines.add(
            {"id": [str(i) for i in range(400)], "text": [f"turn {turn} of {i}" * 5 for i in range(400)]}
        )
        lines.finish((), lambda record, line: line)
    except OSError:
        lines.abandon()
        with suppress(OSError):
            lines.partial.unlink()  # what it keeps is told, and for the user to use
        raise


def responses(folder, turn):
    told = {"prompt": "p", "preference": [], "source": "s", "response": text(turn)}
    ResponseFile(folder / "responses.jsonl", "s").add([{"id": str(turn), "sample": 0, **told}])


def references(folder, turn):
    answers = {
        key: ReferenceAnswer(f"answer {key * turn}", (key, turn, 2), True, {"kind": float(key)})
        for key in range(1, 900)
    }
    RolloutStore(folder, {"temperature": 1.0}).add_references(turn, 0, answers)


def votes(folder, turn):
    source = VoteSource(VOTED, "ab12", 4, "bootstrap")
    kept = VoteFolder(folder / "votes", source, {"train": 2000}, shard_records=1000)
    draws = np.random.default_rng(turn).normal(size=(1000, 4)).astype(np.float32)
    kept.write("train", turn, VoteShard(np.arange(*kept.span("train", turn)), np.zeros(1000, int), draws))
    if turn == 1:
        kept.finish()


def features(folder, turn):
    writer = FeatureWriter(
        folder / "store",
        backbone={"name": "b"},
        text_format={"tokenizer_digest": "t"},
        hidden_size=1000,
        dtype="float32",
    )
    writer.add(range(8 * turn, 8 * turn + 8), numbers(turn))
    writer.flush()


def token_cache(folder, turn):
    sizes = {"num_train": 100 + turn, "num_validation": 2, "num_test": 2, "num_predict": 2}
    SyntheticDataModule(**sizes, cache_dir=str(folder)).prepare_data()


def export(folder, turn):
    with folder_written_whole(folder / "exported") as part:
        (part / "weights").write_bytes(text(turn).encode())


def copies(folder, turn):
    store = fsspec.filesystem("memory")
    if not store.exists(f"/faults/{turn}.jsonl"):  # a store that has it anew says so, and has it copied anew
        store.pipe_file(f"/faults/{turn}.jsonl", text(turn).encode())
    given = RemoteFiles(f"memory://faults/{turn}.jsonl")
    for name in given.names():
        given.copied(name, folder)


def shards(folder, turn):
    """As a run of one rank writes them."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        ShardedCheckpoint(folder / "last.ckpt").write({"state_dict": {"w": numbers(turn)}, "epoch": turn})
    finally:
        distributed.destroy_process_group()


WRITERS = [whole_file, appended_file, two_files, checkpoint, shards, log, picture, predictions, responses, references, votes,
           features, token_cache, export, copies]  # fmt: skip
FAULTS = ["full", "nearly full", "read-only"]


@pytest.mark.parametrize(("write", "fault"), [*itertools.product(WRITERS, FAULTS)])
def test_a_disk_that_takes_no_more_loses_nothing_and_says_what_to_do(write, fault, disk, tmp_path):
    folder, control = disk.path, tmp_path / "control"
    control.mkdir()
    for turn in (0, 1):
        write(control, turn)
    write(folder, 0)
    before = held(folder)
    if fault == "read-only":
        disk.remount("ro")
    else:
        disk.fill(free=0 if fault == "full" else 2 * PAGE)
    with pytest.raises(OSError) as caught:
        write(folder, 1)
    assert caught.value.errno in (errno.EROFS if fault == "read-only" else errno.ENOSPC, None)
    told = short_failure(caught.value)
    assert str(folder) in told and len(told.splitlines()) == 1
    assert ("Read-only file system" if fault == "read-only" else "No space left on device") in told
    assert any(advice in told for advice in ("et --", "et cache_dir"))
    assert held(folder) == before
    if fault == "read-only":
        disk.remount("rw")
    else:
        disk.make_room()
    write(folder, 1)
    assert held(folder).keys() == held(control).keys()
    if write not in (votes, features):  # which name the process or the time
        assert held(folder) == held(control)


# A run ---------------------------------------------------------------------------------------------------


def fit(folder, *words):
    conf = str(Path(__file__).parents[1] / "conf" / "bradley_terry_synthetic.yaml")
    quiet = [
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger.tensorboard=false",
    ]
    main(["fit", "--config", conf, *quiet, "--trainer.default_root_dir", str(folder), *words])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_that_met_a_full_disk_is_still_that_run(disk, tmp_path):
    fit(disk.path, "--trainer.max_epochs=1")
    run = disk.path / "lightning_logs" / "version_0"
    before = held(run)
    assert json.loads(before["run.json"])["status"] == "finished" and before["config.yaml"]
    disk.fill(free=0)
    with pytest.raises(OSError, match=r"could not write .*No space left on device .*Make room") as caught:
        fit(disk.path, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert str(run) in short_failure(caught.value)
    assert held(run) == before
    disk.make_room()
    fit(disk.path, "--trainer.max_epochs=2", "--ckpt_path=last")
    fit(tmp_path / "control", "--trainer.max_epochs=2")
    found, wanted = (
        torch.load(next(folder.rglob("*step=12.ckpt")), weights_only=True)["state_dict"]
        for folder in (run, tmp_path / "control")
    )
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
