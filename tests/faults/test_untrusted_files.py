"""Files made to do harm: paths that lead out of a folder, sizes that are not there, packed terabytes. Nothing is removed, read or allocated."""

import gzip
import json
import pickle

import numpy as np
import pytest
import torch

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.commands.members_file import read_members
from pluralign.commands.stage_folder import read_completed
from pluralign.datamodules import RecordError
from pluralign.datamodules.records import read_json_lines, reading
from pluralign.datamodules.records.arrow_files import read_saved
from pluralign.datamodules.tokens.integrity import cache_damage, write_meta
from pluralign.datamodules.votes import VoteFolder, VoteShard, VoteSource, VoteTable
from pluralign.models import BradleyTerryRM, restored_module
from pluralign.models.transformers_rm.files import stored_weight

SOURCE = VoteSource({"parts": {"local": {"sources": {}}}, "text": {}}, "ab12", 3, "bootstrap")


class Ran:
    """Something whose unpickling leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.fixture
def votes(tmp_path):
    folder = tmp_path / "votes"
    written = VoteFolder(folder, SOURCE, {"train": 2}, shard_records=2)
    keys = np.arange(2)
    written.write("train", 0, VoteShard(keys, np.zeros_like(keys), np.ones((2, 3), np.float32)))
    written.finish()
    return folder


@pytest.mark.parametrize("name", ["../precious.txt", "ABSOLUTE"])
def test_votes_remove_no_file_of_others(votes, tmp_path, name):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    index = votes / "votes.json"
    content = json.loads(index.read_text())
    content["splits"]["train"]["shards"] = [str(precious) if name == "ABSOLUTE" else name]
    index.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"votes\.json is damaged \(it names '.*precious.txt', which lies outside"
    ):
        VoteTable.load(votes)
    other = VoteSource(SOURCE.data, "cd34", 3, "bootstrap")
    with pytest.raises(ValueError, match="lies outside"):
        VoteFolder(votes, other, {"train": 2})
    VoteFolder(votes, other, {"train": 2}, overwrite=True)
    assert precious.read_text() == "mine"


def test_a_linked_shard_is_not_read(votes, tmp_path):
    shard = votes / "train-00000.parquet"
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match="a link out of its folder"):
        VoteTable.load(votes)


def test_members_and_stages_stay_in_their_folder(tmp_path):
    members = {"version": 1, "members": [{"member": 0, "seed": 0, "checkpoint": "../other/last.ckpt"}]}
    (tmp_path / "members.json").write_text(json.dumps(members))
    with pytest.raises(ValueError, match=r"members.json lists no members: it names '../other/last.ckpt'"):
        read_members(tmp_path)
    kept = {"path": "/etc/hostname", "sha256": "0", "size": 1, "weights": "0"}
    content = {
        "inputs": {},
        "checkpoints": {"last": kept},
        "metrics": {},
        "step": 1,
        "finished": "",
        "validated": 1,
    }
    path = tmp_path / "complete.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"complete.json cannot be read \(it names '/etc/hostname'"):
        read_completed(path)


def test_folders_of_rows_and_weights_stay_in_their_folder(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(RecordError, match=r"state.json: .*it names '../x.arrow'"):
        next(read_saved(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "../x.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"names '../x.safetensors' for w, which is no file of its folder"):
        stored_weight(str(tmp_path), "w", None)


def test_a_cache_names_no_file_of_others(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"x")
    write_meta(folder, {})
    text = (folder / "meta.json").read_text()
    assert cache_damage(folder, every_byte=True) is None
    import zlib

    content = json.loads(text)["content"] | {"files": {"../a.npy": [1, 0]}}
    check = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (folder / "meta.json").write_text(json.dumps({"checksum": check, "content": content}))
    assert "lies outside of its folder" in cache_damage(folder, every_byte=False)


def test_a_packed_file_that_unpacks_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "' + b" " * (8 << 20)))
    with pytest.raises(RecordError, match=r"rows.jsonl.gz: .*more than 200 times its size, .* when unpacked"):
        list(read_json_lines(path))
    rows = b"".join(
        json.dumps({"id": i, "text": f"row {i * 7919 % 1000}"}).encode() + b"\n" for i in range(40_000)
    )
    assert len(rows) > 1 << 20
    path.write_bytes(gzip.compress(rows))
    assert sum(1 for _ in read_json_lines(path)) == 40_000


READERS = {
    "restored_module": restored_module,
    "load_from_checkpoint": BradleyTerryRM.load_from_checkpoint,
    "a run goes on": lambda path: AtomicCheckpointIO().load_checkpoint(path, "cpu", weights_only=True),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_checkpoint_runs_nothing_and_claims_nothing(tmp_path, read):
    path, trace = tmp_path / "last.ckpt", tmp_path / "trace"
    torch.save({"state_dict": {}, "hyper_parameters": {"x": Ran(trace)}}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        read(path)
    path.write_bytes(pickle.dumps(Ran(trace), protocol=2))
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        read(path)
    assert not trace.exists()
    torch.save({"state_dict": {"w": torch.zeros(1).expand(10**12)}}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt.*it holds a tensor of \(1000000000000,\)"):
        read(path)
