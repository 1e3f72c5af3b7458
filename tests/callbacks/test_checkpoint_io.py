"""Checkpoints that are there whole or not at all, and what is said of those that cannot be read or written."""

import errno
import os
import pickle
import resource

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from pluralign.callbacks import AtomicCheckpointIO

OLD, NEW = {"state_dict": {"a": torch.zeros(3)}, "global_step": 1}, {"state_dict": {"a": torch.ones(1000)}}


@pytest.fixture
def path(tmp_path):
    """A checkpoint that stands already."""
    AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def test_a_checkpoint_is_replaced_and_nothing_is_left_beside_it(path):
    AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert torch.equal(
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["state_dict"]["a"], torch.ones(1000)
    )
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_link_is_replaced_and_not_what_it_points_at(path):
    link = path.with_name("other.ckpt")
    link.symlink_to(path.name)
    AtomicCheckpointIO().save_checkpoint(NEW, link)
    assert not link.is_symlink()
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_what_killed_processes_left_is_removed_and_living_ones_are_let_be(path):
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    host = os.uname().nodename
    dead, alive, elsewhere = (
        path.with_name(f".last.ckpt.{name}.part")
        for name in (f"{host}.{process}", f"{host}.{os.getppid()}", "far.1")
    )
    for left in (dead, alive, elsewhere):
        left.write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert (dead.exists(), alive.exists(), elsewhere.exists()) == (False, True, True)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "Make room"), (errno.EROFS, "a folder that you may write to")]
)
def test_a_disk_that_takes_no_more_is_named_and_the_old_file_stays(path, monkeypatch, number, advice):
    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=rf"could not write .*last\.ckpt: {os.strerror(number)} .*GiB are free.*{advice}"
    ) as raised:
        AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert raised.value.errno == number and "the file that was there before is as it was" in str(raised.value)
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_the_systems_error_is_found_under_that_of_torch(path):
    """A file may not grow beyond a limit: torch raises an error of its own over the system's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*last\.ckpt: File too large"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.randn(10_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"could not write .*file/run/last\.ckpt: Not a directory"):
        AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "file" / "run" / "last.ckpt")


class Foreign:
    """Nothing that is loaded without trust."""


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "it ends in the middle, after 700 bytes"),
        (lambda path: path.write_text("text"), "no file that torch.save has written"),
        (lambda path: path.write_text("not found"), "no file that torch.save has written"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "no file that torch.save has written"),
        (lambda path: torch.save([1, 2], path), "it holds no state_dict"),
        (
            lambda path: torch.save({"state_dict": Foreign()}, path),
            r"more than plain values \(.*Foreign\); with --weights_only",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(path, spoil, problem):
    spoil(path)
    with pytest.raises(ValueError, match=problem) as raised:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    message = str(raised.value)
    assert message.startswith(str(path)) and "--ckpt_path last" in message and "\n" not in message


def test_a_missing_file_names_those_like_it(path):
    reader = AtomicCheckpointIO()
    with pytest.raises(FileNotFoundError, match=r"lst\.ckpt; did you mean .*last\.ckpt\?"):
        reader.load_checkpoint(path.with_name("lst.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*; there is last\.ckpt"):
        reader.load_checkpoint(path.with_name("quite_another"))
    with pytest.raises(FileNotFoundError, match=r"is a folder and no checkpoint; there is last\.ckpt"):
        reader.load_checkpoint(path.parent)
    with pytest.raises(FileNotFoundError, match=r"nor a folder .*elsewhere; `--ckpt_path last`"):
        reader.load_checkpoint(path.parents[1] / "elsewhere" / "x.ckpt")


def test_weights_that_a_spawned_process_hands_back_are_no_checkpoint_and_are_read(tmp_path):
    handed, weights = tmp_path / ".temp.ckpt", {"weight": torch.ones(2)}
    AtomicCheckpointIO().save_checkpoint(weights, handed)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(handed)["weight"], weights["weight"])


def test_other_file_systems_are_lightnings_affair():
    writer, address = AtomicCheckpointIO(), "memory://run/last.ckpt"
    writer.save_checkpoint(OLD, address)
    assert writer.load_checkpoint(address, weights_only=True)["global_step"] == 1
    writer.remove_checkpoint(address)
    with pytest.raises(FileNotFoundError):
        writer.load_checkpoint(address)


def test_it_serves_a_trainer_and_the_asynchronous_plugin(trainer, tmp_path):
    for plugin in (AtomicCheckpointIO(), AsyncCheckpointIO(AtomicCheckpointIO())):
        run = trainer(plugins=[plugin])
        assert run.strategy.checkpoint_io is plugin
        plugin.save_checkpoint(OLD, tmp_path / "a.ckpt")
        plugin.teardown()
        assert TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1
