"""What a process that is killed while it writes leaves behind, before each of its changes: the old or the new, and nothing else."""

import sys
from pathlib import Path

import pytest
import torch

from pluralign.callbacks import AtomicCheckpointIO
from pluralign.datamodules import FeatureStore, SyntheticDataModule
from pluralign.datamodules.batches.features import FeatureWriter
from pluralign.inference.exporting.whole_folder import folder_written_whole, put_back

from .killing import content, finished, killed_at, spread

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be forked"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork"),
]


def folders(action, tmp_path, begin=lambda folder: None, most=100):
    """A folder for each change that something makes (for so many of them), in which it was killed just before it."""
    whole = tmp_path / "whole"
    whole.mkdir()
    begin(whole)
    number = len(finished(action, whole, tmp_path / "whole.txt"))
    assert number > 1, "it changes something"
    for change in spread(number, most):
        folder = tmp_path / f"killed-{change}"
        folder.mkdir()
        begin(folder)
        assert killed_at(change, action, folder, tmp_path / f"{change}.txt")
        yield folder, whole


def test_a_checkpoint_is_the_old_or_the_new_one(tmp_path):
    writer = AtomicCheckpointIO()

    def write(step):
        writer.save_checkpoint({"state_dict": {"weight": torch.full((4,), step)}, "step": step}, "last.ckpt")

    def begin(folder):
        finished(lambda: write(1), folder, tmp_path / "begin.txt")

    found = set()
    for folder, _ in folders(lambda: write(2), tmp_path, begin):
        loaded = torch.load(folder / "last.ckpt", weights_only=True)
        assert loaded["state_dict"]["weight"].unique().tolist() == [loaded["step"]]
        found.add(loaded["step"])
        finished(lambda: write(3), folder, tmp_path / "again.txt")
        assert torch.load(folder / "last.ckpt", weights_only=True)["step"] == 3
        assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert found == {1}, "it takes its place with the last change"


def test_a_token_cache_is_there_whole_or_not_at_all(tmp_path):
    def prepare():
        SyntheticDataModule(
            num_train=12, num_validation=4, num_test=4, num_predict=4, cache_dir="cache"
        ).setup("fit")

    for folder, whole in folders(prepare, tmp_path, most=4):
        caches = [path for path in folder.glob("cache/**/meta.json") if ".partial" not in str(path)]
        assert not caches, "it takes its name with the last change"
        finished(prepare, folder, tmp_path / "again.txt")
        assert content(folder) == content(whole)


def test_a_feature_store_keeps_whole_shards_and_nothing_twice(tmp_path):
    vectors = torch.randn(7, 3)

    def embed():
        store = FeatureWriter(
            "store",
            backbone={"weights": "tiny"},
            text_format={"tokenizer": "byte", "tokenizer_digest": "d1"},
            hidden_size=3,
            dtype="float32",
            shard_size=3,
        )
        for key, vector in enumerate(vectors):
            if key not in store:
                store.add([key], vector[None])
        store.flush()

    kept = set()
    for folder, whole in folders(embed, tmp_path):
        if (folder / "store" / "meta.json").exists():
            kept.add(len(FeatureStore(folder / "store")))
        finished(embed, folder, tmp_path / "again.txt")
        store = FeatureStore(folder / "store")
        assert sorted(store.keys().tolist()) == [*range(7)]
        assert torch.equal(store.take(store.find(store.keys())), vectors[store.keys().astype(int)])
        assert content(folder) == content(whole)
    assert kept == {0, 3, 6}


def test_an_exported_folder_is_the_old_or_the_new_one(tmp_path):
    def export():
        put_back(Path("out").absolute())
        with folder_written_whole(Path("out")) as part:
            (part / "config.json").write_text("new")
            (part / "weights").write_text("new")

    def begin(folder):
        (folder / "out").mkdir()
        for name in ("config.json", "weights", "more"):
            (folder / "out" / name).write_text("old")

    for folder, whole in folders(export, tmp_path, begin):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len({path.read_text() for path in files if path.parent == folder / "out"}) <= 1
        put_back(folder / "out")
        texts = [path.read_text() for path in (folder / "out").iterdir()]
        assert texts in (["old"] * 3, ["new"] * 2)
        finished(export, folder, tmp_path / "again.txt")
        assert content(folder) == content(whole)
