"""The work of ``pluralign embed`` without its command line."""

import pytest
import torch

from pluralign.datamodules import FeatureStore, SyntheticDataModule
from pluralign.datamodules.batches.features import response_keys
from pluralign.inference import Embedder
from pluralign.models import BradleyTerryRM


@pytest.fixture
def network(tmp_path):
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(tmp_path / "llama")
    return {"name": str(tmp_path / "llama"), "tokenizer": "byte", "frozen": True}


@pytest.fixture
def data():
    return SyntheticDataModule(num_train=6, num_validation=2, num_test=2, num_predict=3)


def test_every_text_once_and_what_is_there_stays(network, data, tmp_path):
    embedder = Embedder(BradleyTerryRM(network), data, tmp_path / "store", dtype="float32", shard_size=10)
    steps = list(embedder.run(max_tokens=300))
    last = {split: (done, total) for split, done, total in steps}
    assert set(last) == set(data.splits)
    assert all(done == total for done, total in last.values())
    assert (
        sum(total for _, total in last.values())
        == len(embedder.writer)
        == len(FeatureStore(tmp_path / "store"))
    )

    again = Embedder(BradleyTerryRM(network), data, tmp_path / "store", dtype="float32", prompts=True)
    before = len(again.writer)
    assert before == len(embedder.writer)
    list(again.run())
    assert len(again.writer) == before + 13, "the prompts alone"


def test_a_vector_is_what_the_network_says_of_the_text(network, data, tmp_path):
    embedder = Embedder(BradleyTerryRM(network), data, tmp_path / "store", dtype="float32")
    list(embedder.run())
    store = FeatureStore(tmp_path / "store")
    (batch,) = data.test_dataloader()
    keys = {row.id: response_keys(row) for row in data.table("test").rows()}
    stored = torch.cat([store.take(store.find(keys[name])) for name in batch["id"]])
    torch.testing.assert_close(stored, embedder.backbone(batch), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_kept_is_refused(network, data, tmp_path):
    with pytest.raises(ValueError, match=r"set backbone\.frozen=true"):
        Embedder(BradleyTerryRM({**network, "frozen": False}), data, tmp_path / "store")
    with pytest.raises(ValueError, match="shard_size must be finite and >= 1; got 0"):
        Embedder(BradleyTerryRM(network), data, tmp_path / "store", shard_size=0)
    assert not (tmp_path / "store").exists()
