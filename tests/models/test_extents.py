"""A text's length and token ids against the network's: settled before it is tokenised, checked before the first step."""

import json
from dataclasses import replace

import lightning as L
import pytest
import torch

from pluralign.datamodules import LoaderConfig, LocalDataModule, TextConfig
from pluralign.models import BackboneConfig, BradleyTerryRM
from pluralign.models._extents import batch_extents, check_extents
from pluralign.models.backbone import Backbone, configured_positions

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
BERT = {**TINY, "model_type": "bert", "vocab_size": 259, "max_position_embeddings": 64}


def module(**config):
    return BradleyTerryRM(BackboneConfig(config={**BERT, **config}))


def data(folder, *lengths, text=TEXT, **splits):
    """Pairs whose longest side has so many bytes; the last split is the test split."""
    for split, some in {"train": lengths, "validation": (20,), **splits}.items():
        prompts = [f"{split} {number} ".ljust(length - 3, "p") for number, length in enumerate(some)]
        rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", *splits)}
    return LocalDataModule(**paths, text=text, loader=LoaderConfig(batch_size=2))


def fit(model, source):
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=source)
    return source


def test_a_setting_above_the_positions_is_fine_where_all_rows_fit(tmp_path):
    source = fit(module(), data(tmp_path, 20, 61, text=replace(TEXT, max_length=1024)))
    assert source.extents["train"].longest == 61


def test_without_a_setting_the_positions_are_the_limit(tmp_path):
    source = fit(module(), data(tmp_path, 20, 90))
    assert source.text.max_length is None and source.text_format()["max_length"] == 64
    assert source.extents["train"].longest == 64 and source.reports["train"].cut_prompts == 1
    model = module()
    apart = data(tmp_path, 20, 90)
    apart.network = model
    assert apart.text_format()["max_length"] == 64 and model.backbone is None, "no weights were made for it"
    assert apart.cache_folder() == source.cache_folder()
    unbound = data(tmp_path, 20, 90)
    unbound.setup("fit")
    assert unbound.text_format()["max_length"] is None and unbound.extents["train"].longest == 90
    assert data(tmp_path, 20).extents == {}


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_the_longest_row_of_any_split_is_compared_before_the_first_step(tmp_path, stage):
    source = data(tmp_path, *[20] * 40, text=replace(TEXT, max_length=1024), test=(20, 70))
    model = module()
    model.on_train_batch_start = lambda *_: pytest.fail("a step was made")
    message = r"^responses of the test split have up to 70 tokens with their prompt, but the backbone has 64 positions"
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with pytest.raises(ValueError, match=message):
        getattr(trainer, stage)(model, datamodule=source)


def test_an_unknown_token_of_a_late_row_is_found_before_the_first_step(tmp_path):
    known = data(tmp_path, *[20] * 40)
    known.setup("fit")
    size = 1 + max(extent.largest_token for extent in known.extents.values())
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"prompt": "late", "chosen": "\x7f", "rejected": "b"}))
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    model = module(vocab_size=size)
    model.on_train_batch_start = lambda *_: pytest.fail("a step was made")
    with pytest.raises(ValueError, match=rf"^token id \d+ of the train split is outside .* of {size}"):
        fit(model, LocalDataModule(**paths, text=TEXT))


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (BERT, 64),
        ({**BERT, "model_type": "roberta"}, 62),
        ({**TINY, "model_type": "llama", "max_position_embeddings": 99}, 99),
        ({"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    ],
)
def test_positions_are_known_before_the_weights(config, positions):
    settings = BackboneConfig(config={**config, "vocab_size": 259})
    assert configured_positions(settings) == positions
    assert Backbone(settings).max_positions == positions


def test_a_network_that_is_not_there_has_no_known_positions(tmp_path):
    assert configured_positions(BackboneConfig(name=str(tmp_path / "nothing"))) is None


def test_what_names_no_bound_reads_all():
    class Free:
        vocab_size = max_positions = None

    batch = {"input_ids": torch.tensor([[5, 9]]), "position_ids": torch.tensor([[0, 1]])}
    assert batch_extents(batch) == {"a batch": (2, 9)} and batch_extents({"features": batch}) == {}
    check_extents(Free(), batch_extents(batch))
    Free.max_positions = 1
    with pytest.raises(
        ValueError, match=r"responses of a batch have up to 2 tokens .* the backbone has 1 pos"
    ):
        check_extents(Free(), batch_extents(batch))
