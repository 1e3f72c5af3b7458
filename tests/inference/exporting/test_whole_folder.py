"""A folder is there whole or not at all, and nothing is replaced that an export has not written."""

import errno
import json
import os
import socket
from contextlib import contextmanager

import pytest

from pluralign.inference.exporting import check_target, export_folder, folder_written_whole
from pluralign.models import BradleyTerryRM


def old_folder(place):
    place.mkdir()
    (place / "pluralign.json").write_text("{}")
    (place / "weights").write_text("old")
    return place


def test_a_full_disk_leaves_the_old_folder(opened, tmp_path, monkeypatch):
    place = old_folder(tmp_path / "out")
    from transformers import PreTrainedModel

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(
        OSError,
        match=r"could not write .*out.*No space left.*GiB are free.*the folder that was there before is as it was",
    ):
        export_folder(opened(BradleyTerryRM), place, overwrite=True, check="here")
    assert (place / "weights").read_text() == "old" and [*tmp_path.iterdir()] == [place]


def test_a_full_disk_that_safetensors_meets(opened, tmp_path, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    place = old_folder(tmp_path / "out")
    with pytest.raises(OSError, match="No space left") as raised:
        export_folder(opened(BradleyTerryRM), place, overwrite=True, check="none")
    assert raised.value.errno == errno.ENOSPC
    assert (place / "weights").read_text() == "old" and [*tmp_path.iterdir()] == [place]


@contextmanager
def no_file_beyond(size):
    """Have the system refuse files that are longer, as a full disk does; in bytes."""
    resource = pytest.importorskip("resource", reason="the system bounds no files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "size", [300, 1500, 3000, 40_000]
)  # configuration, tokenizer, card and weights are longer
def test_no_file_that_the_system_refuses_leaves_half_a_folder(opened, tmp_path, size):
    place, model = old_folder(tmp_path / "out"), opened(BradleyTerryRM)
    with no_file_beyond(size), pytest.raises(OSError, match=r"could not write .*File too large") as raised:
        export_folder(model, place, overwrite=True, check="none")
    assert raised.value.errno == errno.EFBIG
    assert (place / "weights").read_text() == "old" and [*tmp_path.iterdir()] == [place]


def test_a_full_disk_that_tokenizers_meet(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, folder_written_whole(tmp_path / "out"):
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002  as theirs is
    assert raised.value.errno == errno.ENOSPC and not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="another"), folder_written_whole(tmp_path / "out"):
        raise ValueError("another")


def test_what_a_killed_export_began_is_removed_whatever_the_folder_is_called(tmp_path):
    left = tmp_path / f".out[1].{socket.gethostname()}.999999999.x.part"
    left.mkdir()
    with folder_written_whole(tmp_path / "out[1]"):
        assert not left.exists()


def test_what_fails_while_it_is_put_in_place_leaves_the_old_folder(tmp_path, monkeypatch):
    place, rename = old_folder(tmp_path / "out"), os.rename

    def failing(self, target):
        if str(self).endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        rename(self, target)
        return target

    monkeypatch.setattr(type(place), "rename", failing)
    with pytest.raises(OSError, match="Input/output error"), folder_written_whole(place) as part:
        (part / "weights").write_text("new")
    assert (place / "weights").read_text() == "old" and [*tmp_path.iterdir()] == [place]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    place = old_folder(tmp_path / "out")
    with folder_written_whole(place) as part:
        (part / "config.json").write_text("new")
        assert (place / "weights").is_file(), "until all is written"
    assert [path.name for path in place.iterdir()] == ["config.json"] and [*tmp_path.iterdir()] == [place]


def test_what_a_killed_export_began_is_removed(tmp_path):
    with folder_written_whole(tmp_path / "out") as part:
        begun = part.name
    process = os.getpid()
    assert f".{process}." in begun
    left = tmp_path / begun.replace(f".{process}.", ".4194304.")  # above the largest process number
    left.mkdir()
    with folder_written_whole(tmp_path / "out"):
        assert not left.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_an_export_that_was_killed_while_it_replaced_loses_no_folder(tmp_path, monkeypatch, replaced):
    target = old_folder(tmp_path / "out")
    monkeypatch.setattr("os.getpid", lambda: 4194304)  # above the largest process number

    class KilledError(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(KilledError), folder_written_whole(target) as part:
        (part / "weights").write_text("new")
        rename, done = type(part).rename, []

        def dies(path, place):
            done.append(rename(path, place))
            if (
                len(done) == 1 + replaced
            ):  # the old one is aside; or the new one is there, and the old one still aside
                raise KilledError

        patch.setattr(type(part), "rename", dies)
    assert target.exists() == replaced and len([*tmp_path.glob(".out.*.before")]) == 1
    with pytest.raises(FileExistsError, match="is there already"):
        check_target(target, overwrite=False, source="elsewhere")
    assert (target / "weights").read_text() == ("new" if replaced else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "and nothing is left over"


def test_places_that_are_refused(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_text("")
    for place in (run, run / "exported", tmp_path):
        with pytest.raises(ValueError, match="where the model is read from"):
            check_target(place, overwrite=True, source=str(run))
    check_target(run / "exported", overwrite=False, source=str(run / "checkpoints" / "last.ckpt"))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(FileExistsError, match="is there already: name another folder, or add --overwrite"):
        check_target(other, overwrite=False, source=str(run))
    check_target(other, overwrite=True, source=str(run))  # it is empty
    (other / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="no folder that `pluralign export` wrote"):
        check_target(other, overwrite=True, source=str(run))
    (other / "pluralign.json").write_text(json.dumps({}))
    check_target(other, overwrite=True, source=str(run))
    check_target(tmp_path / "new", overwrite=False, source="somebody/on-the-hub")
