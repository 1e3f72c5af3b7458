"""``pluralign embed`` as a user would run it, and runs that read what it wrote."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pluralign.datamodules import FeatureStore
from pluralign.datamodules.batches.features import FeatureWriter
from pluralign.train import main

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A tiny causal and a tiny bidirectional network; the latter with a tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(1)
    LlamaModel(LlamaConfig(vocab_size=259, **SMALL)).save_pretrained(root / "llama")
    LlamaModel(LlamaConfig(vocab_size=259, **SMALL)).save_pretrained(root / "other")
    LlamaModel(LlamaConfig(vocab_size=100, **SMALL)).save_pretrained(root / "narrow")
    BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **SMALL)).save_pretrained(root / "bert")
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(33, 127))]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(root / "bert")
    return root


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def conf(name="conf.yaml", *, network, model="BradleyTerryRM", judgements="users", settings=None, **backbone):
    """Write a configuration; returns the words that name it."""
    own = {
        "name": str(network),
        "frozen": True,
        **({} if network.name == "bert" else {"tokenizer": "byte"}),
        **backbone,
    }
    sizes = {"num_train": 12, "num_validation": 4, "num_test": 4, "num_predict": 5}
    text = {"max_length": 60}
    Path(name).write_text(
        yaml.safe_dump(
            {
                "model": {
                    "class_path": model,
                    "init_args": {
                        "backbone": own,
                        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
                        **(settings or {}),
                    },
                },
                "data": {
                    "class_path": "SyntheticDataModule",
                    "init_args": {
                        **sizes,
                        "judgements": judgements,
                        "text": text,
                        "loader": {"batch_size": 12},
                    },
                },
                "trainer": {"log_every_n_steps": 1, "max_steps": 2},
            }
        )
    )
    return ["--config", name]


def fit(*words):
    main(["fit", *words, *QUIET])
    return max(Path("runs").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def rewards(checkpoint, *words):
    out = Path("rewards.jsonl")
    out.unlink(missing_ok=True)
    writer = f'--trainer.callbacks+={{"class_path": "RewardWriter", "init_args": {{"path": "{out}"}}}}'
    main(["predict", *words, *QUIET, "--ckpt_path", str(checkpoint), writer])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {(line["id"], line["response"]): line["reward"] for line in lines}


DPRM = {"labels": list("abcde"), "rewards": [-1.0, -0.5, 0.0, 0.5, 1.0], "cost": "index"}


@pytest.mark.parametrize(
    ("network", "model", "judgements", "settings"),
    [
        ("llama", "BradleyTerryRM", "users", {}),
        pytest.param("bert", "DPRM", "ratings", DPRM, marks=pytest.mark.slow),
    ],
)
def test_a_run_from_the_store_is_the_run_from_text(networks, network, model, judgements, settings, capsys):
    words = conf(network=networks / network, model=model, judgements=judgements, settings=settings)
    main(["embed", *words, *QUIET, "--output", "store", "--dtype", "float32"])
    printed = capsys.readouterr().out
    store = FeatureStore("store")
    assert f"{len(store)} vectors of 16 numbers added to store, {len(store)} in all" in printed
    assert 60 < len(store) <= 25 * 4 and not store.has_prompts
    features = "--data.loader.features=store"
    text, stored = fit(*words), fit(*words, features)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (text, stored)]
    assert set(states[0]) == set(states[1]) and not any(name.startswith("backbone") for name in states[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4)
    expected = rewards(text, *words)
    assert len(expected) == 20 and len(set(expected.values())) > 10
    assert rewards(text, *words, features) == pytest.approx(expected, abs=1e-5)
    main(["test", *words, *QUIET, features, "--ckpt_path", str(text)])
    Path("store").rename("gone")
    assert rewards(stored, *words) == pytest.approx(expected, abs=1e-5), (
        "the store is not needed to score text"
    )


def test_nothing_is_embedded_twice_and_the_folder_may_stand_in_the_configuration(networks, capsys):
    words = [*conf(network=networks / "llama"), "--data.loader.features=store"]
    main(["embed", *words, *QUIET])
    first = FeatureStore("store")
    assert first.dtype == "float16" and "added to store" in capsys.readouterr().out
    main(["embed", *words, *QUIET, "--prompts", "--max_tokens=100"])
    prompts = FeatureStore("store")
    assert f"25 vectors of 16 numbers added to store, {len(first) + 25} in all" in capsys.readouterr().out
    assert prompts.has_prompts
    main(["embed", *words, *QUIET])
    assert f"0 vectors of 16 numbers added to store, {len(prompts)} in all" in capsys.readouterr().out
    fit(*words)
    main(["embed", *words, *QUIET, "--data.num_train=14"])
    grown = FeatureStore("store")
    assert len(prompts) + 4 < len(grown) <= len(prompts) + 2 * 5 + 1


def test_a_killed_run_goes_on(networks, monkeypatch):
    words = [*conf(network=networks / "llama"), "--output", "store", "--max_tokens=300", "--shard_size=10"]
    main(["embed", *words[:-4], "--output", "whole", *QUIET, "--dtype=float32"])
    flush, flushed = FeatureWriter.flush, []

    def dies(self):
        if len(flushed) == 3:
            raise SystemExit("killed")
        flushed.append(self._waiting)
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "flush", dies)
        with pytest.raises(SystemExit):
            main(["embed", *words, *QUIET, "--dtype=float32"])
    assert len(FeatureStore("store")) == sum(flushed) >= 30
    main(["embed", *words, *QUIET, "--dtype=float32"])
    stores = [FeatureStore(name) for name in ("whole", "store")]
    assert stores[0].keys().tolist() == stores[1].keys().tolist()
    vectors = [store.take(store.find(store.keys())) for store in stores]
    torch.testing.assert_close(*vectors, atol=1e-5, rtol=1e-5)


def test_what_has_no_features_to_keep_is_refused(networks, capsys):
    words = [*conf(network=networks / "llama"), *QUIET, "--output=store"]
    network = {"name": None, "config": {"model_type": "llama", **SMALL}}
    Path("nameless.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": network}}}))
    with pytest.raises(ValueError, match=r"set backbone\.frozen=true and backbone\.name \(now frozen=False"):
        main(["embed", *words, "--model.backbone.frozen=false"])
    with pytest.raises(ValueError, match=r"now frozen=True, name=None"):
        main(["embed", *words, "--config", "nameless.yaml"])
    with pytest.raises(SystemExit):
        main(["embed", *words[:-1]])
    assert "name the folder: --output, or loader.features in the configuration" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["embed", *words, "--dtype=int8"])
    with pytest.raises(ValueError, match="shard_size must be finite and >= 1; got 0"):
        main(["embed", *words, "--shard_size=0"])
    assert not Path("store").exists()


def test_a_store_of_something_else_is_refused(networks):
    words = [*conf(network=networks / "llama"), *QUIET]
    main(["embed", *words, "--output=store"])
    with pytest.raises(ValueError, match="holds vectors of dtype float16, not float32"):
        main(["embed", *words, "--output=store", "--dtype=float32"])
    for change, message in (
        (f"--model.backbone.name={networks / 'other'}", "weights: the store has"),
        ("--model.backbone.dtype=bfloat16", "dtype: the store has 'float32', the model 'bfloat16'"),
        ("--model.backbone.pooling=mean", "pooling: the store has 'auto', the model 'mean'"),
        (
            f"--model.backbone.tokenizer={networks / 'bert'}",
            "made with the tokenizer 'byte', the data use '.*bert'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            main(["embed", *words, "--output=store", change])
        with pytest.raises(ValueError, match=message):
            fit(*words, "--data.loader.features=store", change)
    with pytest.raises(
        ValueError, match=r"of 16 responses of the validation split have no features in store"
    ):
        fit(*words, "--data.loader.features=store", "--data.text.max_length=30")
    with pytest.raises(FileNotFoundError, match=r"loader\.features='nowhere' holds no feature store"):
        fit(*words, "--data.loader.features=nowhere")


def test_a_network_that_cannot_read_the_tokens_is_refused(networks):
    """On a GPU, an embedding beyond its table or its positions takes the whole process down."""
    words = [*conf(network=networks / "narrow"), *QUIET, "--output=store"]
    with pytest.raises(
        ValueError, match=r"token id \d+ of the .* split is outside the backbone's vocabulary of 100"
    ):
        main(["embed", *words])
    words = [*conf(network=networks / "llama"), *QUIET, "--output=store", "--data.text.max_length=80"]
    words.append('--model.backbone.config={"max_position_embeddings": 40}')
    with pytest.raises(
        ValueError, match=r"the backbone has 40 positions: set data\.text\.max_length to at most 40"
    ):
        main(["embed", *words])


def test_responses_alone_and_prompts_apart(networks):
    words = [*conf(network=networks / "llama"), *QUIET, "--data.loader.items=response"]
    main(["embed", *words, "--output=store", "--prompts", "--dtype=float32"])
    features = "--data.loader.features=store"
    checkpoints = [fit(*words), fit(*words, features)]
    expected = rewards(checkpoints[0], *words)
    assert rewards(checkpoints[1], *words, features) == pytest.approx(expected, abs=1e-5)
    conversation = [word for word in words if "items" not in word]
    with pytest.raises(ValueError, match="items: trained with 'response', now None"):
        rewards(checkpoints[0], *conversation)
    with pytest.raises(ValueError, match=r"16 of 16 responses of the validation split have no features"):
        fit(*conversation, features)


def test_local_data(networks):
    rows = [
        {"prompt": f"Name {i} fruits.", "chosen": "Apple" * (1 + i % 3), "rejected": "Chair", "user": "ann"}
        for i in range(6)
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("new.jsonl").write_text(json.dumps({"prompt": "Name 9 fruits.", "response": "Pear"}) + "\n")
    words = conf(network=networks / "llama")
    settings = yaml.safe_load(Path("conf.yaml").read_text())
    settings["data"] = {
        "class_path": "LocalDataModule",
        "init_args": {"train": "train.jsonl", "validation": "train.jsonl", "predict": "new.jsonl"},
    }
    Path("conf.yaml").write_text(yaml.safe_dump(settings))
    words += QUIET
    with pytest.warns(UserWarning, match="share a prompt"):
        main(["embed", *words, "--output=store", "--dtype=float32"])
    assert len(FeatureStore("store")) == 13
    with pytest.warns(UserWarning, match="share a prompt"):
        checkpoint = fit(*words, "--data.loader.features=store")
    (score,) = rewards(checkpoint, *words, "--data.loader.features=store").values()
    assert list(rewards(checkpoint, *words).values()) == pytest.approx([score], abs=1e-5)


def test_help_names_the_options_of_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    printed = capsys.readouterr().out
    for option in ("--output", "--dtype", "--prompts", "--shard_size", "--max_tokens"):
        assert option in printed
