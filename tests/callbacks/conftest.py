"""A tiny network, little data and a quiet trainer."""

import lightning as L
import pytest

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM

TINY = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip


@pytest.fixture
def data():
    def build(**settings):
        sizes = {"num_train": 24, "num_validation": 9, "num_test": 4, "num_predict": 5}
        return SyntheticDataModule(**{**sizes, "loader": LoaderConfig(batch_size=4), **settings})

    return build


@pytest.fixture
def module():
    def build(cls=BradleyTerryRM):
        return cls(BackboneConfig(config=TINY))

    return build


@pytest.fixture
def trainer(tmp_path):
    def build(*callbacks, **settings):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        some = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "log_every_n_steps": 1}
        return L.Trainer(
            default_root_dir=tmp_path, callbacks=list(callbacks), **{**quiet, **some, **settings}
        )

    return build
