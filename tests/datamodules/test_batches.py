"""``batches``: what the loaders give for the same settings, without a setting being edited; and the data's contract."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from pluralign.commands.inspect import print_inspection
from pluralign.datamodules import (
    LoaderConfig,
    LocalDataModule,
    PreferenceDataModule,
    SyntheticDataModule,
    TextConfig,
)
from pluralign.datamodules.batch import DataSource
from pluralign.datamodules.batches.features import FeatureStore, FeatureWriter
from pluralign.datamodules.batches.users import UserProtocol
from pluralign.inference import embed_features

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")


def synthetic(**loader):
    users = UserProtocol(unseen=("user1", "user4"), show=loader.pop("show", "seen"))
    data = SyntheticDataModule(
        num_users=6, num_train=30, num_validation=8, num_test=9, loader=LoaderConfig(users=users, **loader)
    )
    return data


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(-7), other[key].nan_to_num(-7)), key
            elif key == "prompts":
                same([value, value], [other[key]] * 2)
            else:
                assert value == other[key], key


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data, folder = synthetic(), tmp_path_factory.mktemp("store")
    data.setup()
    writer = FeatureWriter(
        folder, backbone={}, text_format=data.text_format(), hidden_size=2, dtype="float32", prompts=True
    )
    for _ in embed_features(
        data, lambda batch: batch["response_length"][:, None] * torch.ones(1, 2), writer, layout="shared"
    ):
        pass
    return str(folder)


@pytest.mark.parametrize("users", ["seen", "unseen", "all"])
@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("max_tokens", [40, 400])
def test_batches_are_those_of_the_loaders(store, users, features, max_tokens):
    wanted = synthetic(show=users, features=store if features else None, max_tokens=max_tokens)
    data = synthetic(features=store, max_tokens=8192)
    before = data.loader
    for one in (wanted, data):
        one.setup("fit")
        one.setup("test")
    asked = {"users": users, "features": features, "max_tokens": max_tokens}
    with pytest.warns() if max_tokens == 40 and not features else torch.no_grad():
        same(wanted.train_dataloader(), data.batches("train", shuffle=True, **asked))
        same(wanted.val_dataloader(), data.batches("validation", **asked))
        same(wanted.test_dataloader(), data.batches("test", **asked))
    assert data.loader == before
    assert ("features" in next(iter(data.train_dataloader()))) and data.features is not None


def test_prompts_layouts_and_ranks(store):
    data = synthetic(max_tokens=400)
    data.setup("test")
    for asked in ({"layout": "separate"}, {"prompts": True}, {"prompts": True, "layout": "separate"}):
        wanted = synthetic(max_tokens=400, **asked)
        wanted.setup("test")
        same(wanted.test_dataloader(), data.batches("test", **asked))
    halves = [list(data.batches("test", rank=(rank, 2))) for rank in (0, 1)]
    names = [name for half in halves for batch in half for name in batch["id"]]
    whole = [name for batch in data.batches("test") for name in batch["id"]]
    assert sorted(names) == sorted(whole) and len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"features=True needs loader\.features"):
        data.batches("test", features=True)
    with pytest.raises(RuntimeError, match="the train split is not open"):
        data.batches("train")
    loader = data.batches("test")
    assert len(loader) == len(list(loader)) == len(list(loader)), "as often as one iterates"


def test_tokens_need_no_store(tmp_path):
    data = synthetic(features=str(tmp_path / "nothing"))
    data.setup()
    assert "input_ids" in next(iter(data.batches("train", features=False)))
    print_inspection(data, console=Console(file=io.StringIO()))
    writer = FeatureWriter(tmp_path / "new", backbone={}, text_format=data.text_format(), hidden_size=2)
    encode = lambda batch: torch.ones(len(batch["response_row"]), 2)
    assert {split for split, _, _ in embed_features(data, encode, writer, layout="shared")} == set(
        data.splits
    )
    for ask in (
        lambda: data.features,
        lambda: data.batches("train"),
        lambda: synthetic(features="nothing").setup("fit"),
    ):
        with pytest.raises(FileNotFoundError, match="holds no feature store"):
            ask()


def test_the_store_follows_the_setting(store):
    data = synthetic(features=store)
    assert isinstance(data.features, FeatureStore) and data.features is data.features
    data.loader = replace(data.loader, features=None)
    assert data.features is None


def test_data_modules_answer_the_contract():
    data = synthetic()
    assert isinstance(data, PreferenceDataModule) and isinstance(data, DataSource)
    assert set(data.user_groups()) == {f"user{i}" for i in range(6)}
    assert not isinstance(torch.nn.Identity(), DataSource)


def test_texts(tmp_path):
    rows = [
        {"id": "r0", "prompt": "why?", "responses": ["so it is", "so", "never"], "comparisons": [[0, 1]]},
        {"id": "r1", "prompt": "", "chosen": "same start", "rejected": "same end"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = LocalDataModule(test=str(tmp_path / "test.jsonl"), text=TEXT)
    with pytest.raises(RuntimeError, match="not open"):
        data.texts("test", [("r0", 0)])
    data.setup("test")
    asked = [("r1", 1), ("r0", 2), ("r0", 0), ("r0", 9), ("r7", 0), ("r0", 2)]
    assert data.texts("test", asked) == [
        ("", "same end"),
        ("why?|", "never"),
        ("why?|", "so it is"),
        ("", ""),
        ("", ""),
        ("why?|", "never"),
    ]
    assert data.user_groups() == {}


class Rank:
    """What a data module asks of a trainer with two processes."""

    overfit_batches, lightning_module, world_size, global_rank = 0, None, 2, 1


def test_a_split_with_fewer_records_than_ranks_is_an_error_that_says_what_to_change():
    data = SyntheticDataModule(num_train=2, num_validation=1, num_test=1, num_predict=1)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    data.trainer = Rank()
    for split in ("validation", "test", "predict"):
        loader = getattr(data, f"{'val' if split == 'validation' else split}_dataloader")
        with pytest.raises(
            ValueError,
            match=f"{split}: 1 record cannot be divided among 2 ranks.*trainer.devices to at most 1",
        ):
            loader()
    assert [len(batch["id"]) for batch in data.train_dataloader()] == [1]
    assert list(data.batches("test", rank=(1, 2))) == [], "loops of one's own may do without"
