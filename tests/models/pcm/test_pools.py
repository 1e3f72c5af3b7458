"""Pools from a configuration: what is loaded, what is refused, and what tells experts' files apart."""

import shutil

import pytest
import torch

from pluralign.models import BackboneConfig
from pluralign.models.pcm import BASE, AdapterExperts, ExpertsConfig, ModelExperts
from pluralign.models.pcm.pools import digests, load_pool

from .conftest import network, save_adapter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two whole models in folders, and an adapter of the first."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("first", "second")):
        network("llama", seed).save_pretrained(root / name)
    save_adapter(network("llama"), root / "adapter", 0)
    return {name: str(root / name) for name in ("first", "second", "adapter")}


def words(folder, vocabulary):
    """A tokenizer of whole words beside a model."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    numbers = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)


def test_adapters_over_a_base_of_their_own_or_a_given_one(folders):
    adapters = {"tone.warm": folders["adapter"]}
    ids = torch.arange(4)[None].repeat(2, 1)
    said = []
    for config, base in (
        (ExpertsConfig(base=BackboneConfig(name=folders["first"]), adapters=adapters), None),
        (ExpertsConfig(adapters=adapters, decoding="mixed"), network("llama")),
    ):
        pool = load_pool(config, base)
        assert isinstance(pool, AdapterExperts) and pool.has_base and pool.host is pool.network
        assert pool.decoding == config.decoding and "tone.warm" in pool.digests
        said.append(pool.begin(ids, torch.ones_like(ids), torch.tensor([0, BASE])).log_probs)
    torch.testing.assert_close(said[0], said[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"need a network beneath them: set experts.base"):
        load_pool(ExpertsConfig(adapters=adapters))


def test_whole_models_and_their_tokenizers(folders, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(folders[name], tmp_path / name)
    config = ExpertsConfig(models={"a": str(tmp_path / "first"), "b": str(tmp_path / "second")})
    pool = load_pool(config)
    assert isinstance(pool, ModelExperts) and pool.names == ("a", "b") and not pool.has_base
    assert pool.host is pool.networks[0] and len(list(pool.parameters())) == len(set(pool.parameters()))
    words(tmp_path / "first", ["?", "one", "two"])
    words(tmp_path / "second", ["?", "one", "two"])
    load_pool(config)
    words(tmp_path / "second", ["?", "two", "one"])
    with pytest.raises(
        ValueError, match=r"must have one tokenizer, and a .* and b .* number tokens differently"
    ):
        load_pool(config)
    with pytest.raises(ValueError, match=r"there are no experts"):
        load_pool(ExpertsConfig())


def test_digests_follow_content(folders, tmp_path):
    copied = str(shutil.copytree(folders["adapter"], tmp_path / "elsewhere"))
    first = digests(ExpertsConfig(adapters={"a": folders["adapter"]}))
    assert first["a"] == digests(ExpertsConfig(adapters={"a": copied}))["a"]
    models = digests(ExpertsConfig(models={"a": folders["first"], "b": folders["second"]}))
    assert models["a"] != models["b"]
