"""Every test runs offline, seeded, on the CPU, with a cache folder of its own; a tiny network and a quiet trainer."""

import os
import socket

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # several processes share the cores, and start more of their own
# lightning 2.6 calls what jsonargparse 4.49 renames (hence the <5 in pyproject.toml).
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

import lightning as L
import pytest


@pytest.fixture(autouse=True)
def _seeded():
    L.seed_everything(0, verbose=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def guarded(self, address):
        local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "localhost", "::1")
        if not local:
            raise RuntimeError(f"tests run offline, but something connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def tiny():
    """Configuration of a tiny Llama that reads bytes, with changes."""

    def build(**changes):
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return {"model_type": "llama", "vocab_size": 259, **sizes, **changes}

    return build


@pytest.fixture
def trainer(tmp_path):
    """One silent epoch on the CPU."""

    def build(*callbacks, **settings):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        short = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "log_every_n_steps": 1}
        return L.Trainer(
            default_root_dir=tmp_path, callbacks=list(callbacks), **{**quiet, **short, **settings}
        )

    return build
