"""Little data, and a module with the tiny network."""

import pytest

from pluralign.datamodules import LoaderConfig, SyntheticDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM


@pytest.fixture
def data():
    def build(**settings):
        sizes = {"num_train": 24, "num_validation": 9, "num_test": 4, "num_predict": 5}
        return SyntheticDataModule(**{**sizes, "loader": LoaderConfig(batch_size=4), **settings})

    return build


@pytest.fixture
def module(tiny):
    def build(cls=BradleyTerryRM):
        return cls(BackboneConfig(config=tiny()))

    return build
