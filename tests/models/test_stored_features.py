"""Stored features in a model's place of a network, and what tells one network from another."""

import pickle
from dataclasses import asdict, replace

import lightning as L
import numpy as np
import pytest
import torch

from pluralign.datamodules import SyntheticDataModule
from pluralign.datamodules.base import LoaderConfig
from pluralign.datamodules.batches.collate import PreferenceCollator
from pluralign.datamodules.batches.features import FeatureStore, FeatureWriter
from pluralign.inference import embed_features
from pluralign.models import Backbone, BackboneConfig, BradleyTerryRM, RewardHead, StoredFeatures

LLAMA = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny networks on disk, by name."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(1)
    for name, network in (
        ("llama", LlamaModel(LlamaConfig(**LLAMA))),
        ("other", LlamaModel(LlamaConfig(**LLAMA))),
        ("bert", BertModel(BertConfig(**LLAMA, max_position_embeddings=128))),
    ):
        network.save_pretrained(root / name)
    return root


def config(folder, **settings):
    return BackboneConfig(**{"name": str(folder), "tokenizer": "byte", "frozen": True, **settings})


def synthetic(**loader):
    return SyntheticDataModule(
        num_train=12,
        num_validation=4,
        num_test=4,
        num_predict=4,
        loader=LoaderConfig(**{"batch_size": 4, **loader}),
    )


def embed(folder, backbone_config, *, dtype="float32", prompts=False, **loader):
    data = synthetic(**loader)
    backbone = Backbone(backbone_config)
    writer = FeatureWriter(
        folder, backbone=backbone_config.description(), text_format=data.text_format(),
        hidden_size=backbone.hidden_size, dtype=dtype, prompts=prompts,
    )  # fmt: skip
    for _ in embed_features(data, backbone, writer, layout=backbone.layout):
        pass
    return backbone


def trainer(**settings):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=2,
        **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


# StoredFeatures ------------------------------------------------------------------------------------------


def test_features_pass_through_as_stored():
    module = StoredFeatures(4)
    features = torch.randn(3, 4, dtype=torch.float16)
    assert module({"features": features}) is features
    assert (module.layout, module.frozen, module.hidden_size) == ("separate", True, 4)
    assert not module.state_dict() and not list(module.parameters())
    assert pickle.loads(pickle.dumps(module)).hidden_size == 4


def test_tokens_are_refused_with_a_way_out(batch):
    with pytest.raises(
        ValueError, match=r"built for stored features and has no network .* without loader\.features"
    ):
        StoredFeatures(4)(batch())


def test_a_network_takes_features_if_it_is_frozen(folders):
    features = torch.randn(3, 16)
    assert Backbone(config(folders / "llama"))({"features": features}) is features
    with pytest.raises(
        ValueError, match=r"this backbone is trained: set backbone\.frozen=true, or loader\.features=null"
    ):
        Backbone(config(folders / "llama", frozen=False))({"features": features})


@pytest.mark.parametrize("network", ["llama", "bert"])
@pytest.mark.parametrize("pooling", ["auto", "mean", "cls", "last"])
def test_stored_states_are_those_of_the_tokens(folders, tmp_path, network, pooling):
    own = config(folders / network, pooling=pooling)
    backbone = embed(tmp_path / "s", own, prompts=True)
    for layout in ("shared", "separate"):
        tokens, features = (
            synthetic(layout=layout, shuffle=False, prompts=True, **more)
            for more in ({}, {"features": str(tmp_path / "s")})
        )
        for data in (tokens, features):
            data.setup("fit")
        for with_tokens in tokens.train_dataloader():
            rows = features.rows("train")
            places = {row.id: i for i, row in enumerate(rows[list(range(len(rows)))])}
            with_features = features.collator()(rows[[places[name] for name in with_tokens["id"]]])
            with torch.no_grad():
                expected = backbone(with_tokens)
                prompts = backbone(with_tokens["prompts"])
            torch.testing.assert_close(with_features["features"], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(with_features["prompt_features"], prompts, atol=1e-5, rtol=1e-5)


def test_prompt_states_come_from_either(folders, tmp_path):
    own = config(folders / "llama")
    embed(tmp_path / "s", own, prompts=True)
    embed(tmp_path / "bare", own)
    module = BradleyTerryRM(own)
    module.configure_model()
    batches = {}
    for name, loader in (
        ("tokens", {"prompts": True}),
        ("stored", {"features": str(tmp_path / "s")}),
        ("neither", {}),
        ("bare", {"features": str(tmp_path / "bare")}),
    ):
        data = synthetic(**loader)
        data.setup("validate")
        (batches[name],) = data.val_dataloader()
    states, stored = (
        dict(zip(batches[name]["id"], module.prompt_states(batches[name]), strict=True))
        for name in ("tokens", "stored")
    )
    assert len(states) == 4 and states.keys() == stored.keys()
    for name, state in states.items():
        torch.testing.assert_close(stored[name], state, atol=1e-5, rtol=1e-5)
    for name in ("neither", "bare"):
        with pytest.raises(
            ValueError,
            match=r"BradleyTerryRM reads prompts apart, .* loader\.prompts=true, or .*embed --prompts",
        ):
            module.prompt_states(batches[name])


@pytest.mark.parametrize("network", ["llama", "bert"])
def test_scores_do_not_depend_on_the_batch(folders, tmp_path, network):
    embed(tmp_path / "s", config(folders / network), dtype="float16")
    module = BradleyTerryRM(config(folders / network))
    module.backbone, module.head = StoredFeatures(16), RewardHead(16)
    scores = []
    for size in (1, 3, 4):
        data = synthetic(batch_size=size, features=str(tmp_path / "s"))
        data.setup("predict")
        scores.append({})
        for batch in data.predict_dataloader():
            names = [batch["id"][i] for i in batch["response_prompt"].tolist()]
            places = zip(names, batch["response_index"].tolist(), strict=True)
            scores[-1] |= dict(zip(places, module(batch)["reward"].tolist(), strict=True))
    assert len(scores[0]) == 16
    assert scores[1] == pytest.approx(scores[0], abs=1e-6) and scores[2] == pytest.approx(scores[0], abs=1e-6)


# Fit and reload ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fit_from_features_loads_no_network(folders, tmp_path, dtype, monkeypatch):
    own = config(folders / "llama")
    embed(tmp_path / "s", own, dtype=dtype)
    monkeypatch.setattr("pluralign.models.backbone.network.load_network", None)
    module = BradleyTerryRM(own, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer().fit(module, synthetic(features=str(tmp_path / "s")))
    assert isinstance(module.backbone, StoredFeatures)
    assert module.head.weight.dtype == torch.float32
    assert [name for name, _ in module.named_parameters()] == ["head.weight"]


def test_features_and_text_give_the_same_run_and_either_checkpoint_scores_both(folders, tmp_path):
    own = config(folders / "llama")
    embed(tmp_path / "s", own)
    features = {"features": str(tmp_path / "s")}
    # The same batches need the same bounds: records, not tokens.
    found = {}
    for name, loader in (("text", {}), ("features", features)):
        torch.manual_seed(0)
        module = BradleyTerryRM(own, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        data = synthetic(batch_size=12, max_tokens=None, **loader)
        run = trainer(enable_checkpointing=True, default_root_dir=tmp_path / name)
        run.fit(module, data)
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
        found[name] = module.head.weight.detach()
    torch.testing.assert_close(found["text"], found["features"], atol=1e-6, rtol=1e-5)
    (tmp_path / "s").rename(tmp_path / "gone")
    scores = []
    for name in ("text", "features"):
        for loader in ({}, {"features": str(tmp_path / "gone")}):
            again = BradleyTerryRM.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
            scores.append({})
            for part in trainer().predict(again, synthetic(**loader)):
                names = [part["id"][i] for i in part["response_prompt"].tolist()]
                places = zip(names, part["response_index"].tolist(), strict=True)
                scores[-1] |= dict(zip(places, part["reward"].tolist(), strict=True))
    assert len(set(scores[0].values())) > 8
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-5)
    kept = torch.load(tmp_path / "features.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == {"head.weight"}
    assert kept["hyper_parameters"]["backbone"] == asdict(own)


def test_another_networks_store_is_refused_before_anything_runs(folders, tmp_path):
    own = config(folders / "llama")
    embed(tmp_path / "s", own)
    data = synthetic(features=str(tmp_path / "s"))
    for other, message in (
        (config(folders / "other"), r"weights: the store has '[0-9a-f]{16}', the model '[0-9a-f]{16}'"),
        (replace(own, dtype="bfloat16"), "dtype: the store has 'float32', the model 'bfloat16'"),
        (replace(own, pooling="mean"), "pooling: the store has 'auto', the model 'mean'"),
        (
            replace(own, config={"rms_norm_eps": 0.5}),
            r"config: the store has \{\}, the model \{'rms_norm_eps': 0.5\}",
        ),
        (replace(own, frozen=False), r"belong to a frozen, pretrained backbone: .*now frozen=False"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer().fit(BradleyTerryRM(other), data)
    nameless = BackboneConfig(config={"model_type": "llama", **LLAMA}, frozen=True)
    with pytest.raises(
        ValueError, match=r"backbone\.name \(now frozen=True, name=None\), or train from text"
    ):
        trainer().fit(BradleyTerryRM(nameless), data)


def test_a_network_that_was_loaded_before_is_compared_too(folders, tmp_path):
    embed(tmp_path / "s", config(folders / "llama"))
    module = BradleyTerryRM(config(folders / "other"))
    module.configure_model()
    assert isinstance(module.backbone, Backbone)
    with pytest.raises(ValueError, match="of another backbone"):
        trainer().predict(module, synthetic(features=str(tmp_path / "s")))


def test_what_was_built_for_features_says_so_when_it_gets_text(folders, tmp_path):
    embed(tmp_path / "s", config(folders / "llama"))
    module = BradleyTerryRM(config(folders / "llama"))
    trainer().fit(module, synthetic(features=str(tmp_path / "s")))
    with pytest.raises(ValueError, match="has no network to read tokens with"):
        trainer().predict(module, synthetic())


# Descriptions --------------------------------------------------------------------------------------------


def test_descriptions_tell_networks_apart(folders, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    first = config(folders / "llama").description()
    assert set(first) == {"weights", "revision", "config", "dtype", "pooling", "quantization"}
    shutil.copytree(folders / "llama", tmp_path / "moved")
    assert config(tmp_path / "moved").description() == first, "wherever it lies"
    assert config(folders / "other").description()["weights"] != first["weights"]
    path = tmp_path / "moved" / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        changed = {**weights, name: weights[name].clone()}
        changed[name].view(-1)[0] += 1
        save_file(changed, path, metadata={"format": "pt"})
        assert config(tmp_path / "moved").description()["weights"] != first["weights"], name
    assert BackboneConfig(name="team/net", revision="a1", frozen=True).description()["weights"] == "team/net"


def test_a_small_change_in_a_large_file_shows(tmp_path):
    """A norm of a few numbers among tensors of megabytes lies between any evenly spaced samples."""
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    found = set()
    for value in (0.0, 1.0):
        tensors = {"a": torch.zeros(3_000_017), "norm": torch.full((4,), value), "z": torch.zeros(3_000_011)}
        save_file(tensors, tmp_path / "model.safetensors")
        found.add(config(tmp_path).description()["weights"])
    assert len(found) == 2


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without config\.json, so it holds no network"):
        config(tmp_path).description()


def test_collated_features_are_owned(folders, tmp_path):
    """Views of a read-only memory map would warn when a tensor is made of them."""
    embed(tmp_path / "s", config(folders / "llama"))
    data = synthetic(features=str(tmp_path / "s"))
    data.setup("fit")
    rows = data.rows("train")
    batch = PreferenceCollator(store=data.features)(rows[[0, 3]])
    batch["features"].add_(1)
    assert not torch.equal(
        batch["features"], PreferenceCollator(store=FeatureStore(tmp_path / "s"))(rows[[0, 3]])["features"]
    )
    assert isinstance(rows[[0]][0].places, np.ndarray)
