"""Little data, and a module with the tiny network."""

import lightning as L
import pytest
import torch

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


class HandMade(L.LightningDataModule):
    """Batches made by hand, one rank after the other; it answers as every data source does."""

    name, domains, splits, features = "hand-made", (), ("train", "validation", "test"), None

    def __init__(self, batches, users=()):
        super().__init__()
        self.hand_made, self.users = batches, list(users)
        self.training_users, self.num_training_users = self.users, len(self.users)

    def loader(self):
        shown = self.hand_made[self.trainer.global_rank :: self.trainer.world_size]
        return torch.utils.data.DataLoader(shown, batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = loader

    @property
    def extents(self):
        return {}

    @property
    def names(self):
        return {"user": self.users, "domain": list(self.domains)}

    def user_groups(self):
        return {}

    @property
    def training_domains(self):
        return list(self.domains)

    def judgements_of_users(self):
        return {}

    def text_format(self):
        return {}

    def mean_votes(self, name):
        return None

    def check_judged(self, name):
        pass

    def loader_names(self, split):
        return ()

    def texts(self, split, responses):
        return [("", "")] * len(responses)

    def given(self, split):
        return []

    def requested_users(self, split):
        return []

    def batches(self, split, **settings):
        return self.hand_made
