"""What files claim is looked at before it is believed."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from pluralign.datamodules import untrusted


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "an object of JSON, got list"), ("{", "Expecting"), ('{"a":' * 3000, "nested too deeply")],
)
def test_what_is_no_object_of_json(tmp_path, text, message):
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        untrusted.json_object(path)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "", None, 3, "a\0b", "C:\\x", "..\\x", "\\\\host\\share\\x"]
)
def test_paths_out_of_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match="it names"):
        untrusted.path_inside(tmp_path, name)


def test_links_out_of_a_folder(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("x")
    (folder / "link").symlink_to(outside)
    (folder / "whole").write_text("x")
    (folder / "other").symlink_to(folder / "whole")
    assert untrusted.path_inside(folder, "link") == folder / "link"
    assert untrusted.path_inside(folder, "other", links=False) == folder / "other"
    with pytest.raises(ValueError, match="a link out of its folder"):
        untrusted.path_inside(folder, "link", links=False)


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays(tmp_path, mapped):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(untrusted.read_array(path, mapped=mapped), np.arange(6).reshape(2, 3))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    path.write_bytes(head.getvalue() + bytes(16))
    with pytest.raises(ValueError, match=r"its header says \(1099511627776,\) float32, and 16 bytes follow"):
        untrusted.read_array(path, mapped=mapped)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="it holds Python objects"):
        untrusted.read_array(path, mapped=mapped)


def test_archives(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"w": torch.zeros(1000)}, path)
    untrusted.check_archive(path)
    with zipfile.ZipFile(path) as old:
        members = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    with pytest.raises(ValueError, match="is packed"):
        untrusted.check_archive(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no whole archive"):
        untrusted.check_archive(path)
    path.write_bytes(b"something else")
    untrusted.check_archive(path)


def test_tensors_that_repeat_a_number(tmp_path):
    path = tmp_path / "x.ckpt"
    held = {"a": [torch.zeros(1).expand(10**12)]}
    torch.save(held, path)
    content = torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"a tensor of \(1000000000000,\)"):
        untrusted.check_claims(content, path.stat().st_size)
    itself = [torch.zeros(2)]
    itself.append(itself)
    untrusted.check_claims(itself, 8)


def test_rows():
    untrusted.check_rows(10_000_000, 12, 1 << 20)
    with pytest.raises(ValueError, match="it claims 1,000,000,000,000 rows of 3 columns in 1,048,576 bytes"):
        untrusted.check_rows(10**12, 3, 1 << 20)


def header(path, content, size=None):
    text = json.dumps(content).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + bytes(16))


def test_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    good = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "__metadata__": {"a": "b"}}
    header(path, good)
    assert untrusted.safetensors_header(path) == good
    header(path, good, 2**63)
    with pytest.raises(ValueError, match="its header claims 9,223,372,036,854,775,808 bytes"):
        untrusted.safetensors_header(path)
    for places in ([0, 17], [-1, 3], [8, 4], [0], None, [0, 1e9], "ab"):
        header(path, {"w": {"data_offsets": places}})
        with pytest.raises(ValueError, match="outside of its"):
            untrusted.safetensors_header(path)
    header(path, [1])
    with pytest.raises(ValueError, match="got list"):
        untrusted.safetensors_header(path)
