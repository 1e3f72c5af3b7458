"""A byte of a checkpoint that a disk or a copy has changed: torch loads it; here it is an error, and `last` passes over it."""

from pathlib import Path

import pytest
import torch

import pluralign
from pluralign.callbacks import AtomicCheckpointIO
from pluralign.commands import checkpoints
from pluralign.commands.checkpoints import TRAINING
from pluralign.datamodules.untrusted import check_bytes
from pluralign.models import PAL, restored_module

SAVED = Path(__file__).parents[1] / "saved" / "pal" / "last.ckpt"
CHANGED = r"its bytes are not those that were written \(the checksum of .*data/\d+ differs\)"


def flipped(path, state):
    """The file with one bit of its largest tensor changed."""
    tensor = max((value for value in state.values() if torch.is_tensor(value)), key=torch.numel)
    content = bytearray(path.read_bytes())
    place = content.find(tensor.contiguous().numpy().tobytes())
    assert place > 0
    content[place + 3] ^= 4
    path.write_bytes(content)
    return tensor


@pytest.fixture
def changed(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(SAVED.read_bytes())
    check_bytes(path)
    flipped(path, torch.load(path, weights_only=True)["state_dict"])
    return path


def test_torch_reads_it_all_the_same(changed):
    found, wanted = (torch.load(path, weights_only=True)["state_dict"] for path in (changed, SAVED))
    assert not all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_changed_byte_is_an_error_wherever_weights_are_read(changed):
    with pytest.raises(
        ValueError, match=rf"last\.ckpt is no checkpoint that a run can start from: {CHANGED}"
    ):
        AtomicCheckpointIO().load_checkpoint(changed)
    with pytest.raises(ValueError, match=CHANGED):
        restored_module(changed)
    with pytest.raises(ValueError, match=CHANGED):
        pluralign.load(changed, device="cpu")
    with pytest.raises(ValueError, match=CHANGED):
        PAL.load_from_checkpoint(changed, weights_only=True)


def test_a_checkpoint_that_was_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.ones(9)}}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert found["state_dict"]["weight"].tolist() == [1.0] * 9


@pytest.mark.parametrize("how", ["changed", "cut"])
def test_a_best_one_that_is_not_whole_is_named(how, tmp_path):
    path, state = tmp_path / "best.ckpt", {"weight": torch.randn(500)}
    torch.save({"state_dict": state, "global_step": 4, "epoch": 0}, path)
    assert checkpoints._whole(path)["global_step"] == 4
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        flipped(path, state)
    told = "it ends in the middle" if how == "cut" else CHANGED
    with pytest.raises(ValueError, match=rf"best\.ckpt is no checkpoint that a run can start from: {told}"):
        checkpoints._whole(path)


def test_last_passes_over_it(tmp_path, capsys):
    recipe = {"seed_everything": 0, "model": {}, "data": {}, "trainer": dict.fromkeys(TRAINING)}
    state = {"weight": torch.randn(500)}
    for step in (4, 8):
        content = {
            "state_dict": state,
            "global_step": step,
            "optimizer_states": [],
            "pluralign": {"recipe": recipe},
        }
        torch.save(content, tmp_path / f"step={step}.ckpt")
    (tmp_path / "run.json").write_text("{}")
    flipped(tmp_path / "step=8.ckpt", state)
    search = checkpoints._Search([tmp_path])
    path, content = next(checkpoints._candidates(search, recipe, fitting=True))
    assert path.name == "step=4.ckpt" and content["global_step"] == 4 and search.unreadable == 1
    assert "passed over" in capsys.readouterr().out
