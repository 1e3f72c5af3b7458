"""What runs keep of their configuration has no keys, tokens or passwords in it."""

from pathlib import Path

import pytest
import torch
import yaml

from pluralign.commands.saved_settings import without_credentials
from pluralign.inference.private import is_credential, without_login
from pluralign.train import main

LLAMA = {
    "model_type": "llama", "vocab_size": 259, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "apikey",
        "API_KEY",
        "wandb_api_key",
        "token",
        "hf_token",
        "password",
        "secret_key",
        "account_key",
        "sas_token",
        "aws_session_token",
        "private_key",
    ],
)
def test_credentials(name):
    assert is_credential(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "eos_token", "tokenizer", "max_tokens", "key", "token_ids", "monkey", "end_token"]
)
def test_what_is_none(name):
    assert not is_credential(name)


def test_addresses():
    assert (
        without_login("https://ann:pw@host/x and s3://bucket/a:b@c")
        == "https://***@host/x and s3://bucket/a:b@c"
    )


def test_signatures_in_addresses():
    signed = "https://h/a.jsonl?sv=1&sig=ab%2Bc&se=2 s3://b/c?X-Amz-Signature=f00&X-Amz-Security-Token=t"
    assert (
        without_login(signed)
        == "https://h/a.jsonl?sv=1&sig=***&se=2 s3://b/c?X-Amz-Signature=***&X-Amz-Security-Token=***"
    )
    for plain in ("https://h/a?max_tokens=3&design=4", "what is this? token=5", "{token: x?sig=3}"):
        assert without_login(plain) == plain


def test_nested_settings():
    found = []
    settings = {"a": [{"api_key": "k", "n": 3}], "url": "http://u:p@h", "token": None, "pad_token": "<pad>"}
    kept = without_credentials(settings, found)
    assert kept == {
        "a": [{"api_key": "***", "n": 3}],
        "url": "http://***@h",
        "token": None,
        "pad_token": "<pad>",
    }
    assert found == ["a.api_key", "url"]
    assert without_credentials({"a": ("x", "http://u:p@h", ("y",))}, []) == {
        "a": ("x", "http://***@h", ("y",))
    }


def test_a_run_keeps_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = {
        "class_path": "pluralign.tests.commands.with_secret.Reporter",
        "init_args": {"api_key": "sk-deep-secret"},
    }
    recipe = {
        "model": {"class_path": "BradleyTerryRM", "init_args": {"backbone": {"config": LLAMA}}},
        "data": {
            "class_path": "SyntheticDataModule",
            "init_args": {"num_train": 4, "num_validation": 2, "num_test": 2, "num_predict": 2, "loader": {"batch_size": 4}},
        },
        "trainer": {
            "max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1,
            "callbacks": [callback, {"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}],
        },
    }  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.warns(UserWarning, match=r"api_key: the run's config.yaml has \*\*\* in place of a secret"):
        main(["fit", "--config", "recipe.yaml"])
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert {"config.yaml", "run.json", "last.ckpt"} <= {path.name for path in files}
    assert not [path for path in files if b"sk-deep-secret" in path.read_bytes()]
    (config,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["trainer"]["callbacks"][0]["init_args"]["api_key"] == "***"
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 1
