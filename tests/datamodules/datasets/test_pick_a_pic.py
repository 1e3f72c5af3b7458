"""Pick-a-Pic: a prompt's pictures are one record, vectors are stored once under their names; invented vectors."""

import hashlib
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pluralign.datamodules import Comparison, LoaderConfig, RecordError, Response, TextConfig
from pluralign.datamodules.batches.features import FeatureStore, FeatureWriter
from pluralign.datamodules.datasets.pick_a_pic.module import WEIGHTS, PickAPicDataModule
from pluralign.models import BackboneConfig, BradleyTerryRM

SIZE = 4
VECTORS = {
    name: [float(number) for number in numbers]
    for name, numbers in {
        "a red fox": (1, 0, 0, 0),
        "a blue hen": (0, 1, 0, 0),
        "fox-1": (0, 0, 1, 0.5),
        "fox-2": (0, 0, -1, 0.25),
        "fox-3": (0.125, 0, 0, 2),
        "hen-1": (3, 1, 0, 0),
        "hen-2": (0, -3, 0, 1),
    }.items()
}


def judgement(prompt="a red fox", first="fox-1", second="fox-2", label=1.0, user=7, **changes):
    row = {"user_id": user, "prompt": prompt, "label": label}
    row["text_embedding"] = VECTORS.get(prompt, VECTORS["a red fox"])
    for i, image in enumerate((first, second)):
        row |= {f"image_{i}": image, f"image_{i}_embedding": VECTORS[image]}
    return {name: value for name, value in (row | changes).items() if value is not ...}


ROWS = [
    judgement(),
    judgement("a blue hen", "hen-1", "hen-2", 0.5, "ann"),
    judgement("a red fox", "fox-1", "fox-3", 0, 8),
    judgement("a red fox", "fox-3", "fox-2", 0.75, 7),
]


def write(folder, rows, name="train.jsonl"):
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def module(*, hidden_size=SIZE, **settings):
    return PickAPicDataModule(hidden_size=hidden_size, **settings)


def examples(data, source="train"):
    return [row if isinstance(row, RecordError) else data.to_example(row) for row in data.load(source)]


def both(folder, **settings):
    """Training and test split, prepared."""
    data = module(test=write(folder, ROWS), train=write(folder, ROWS, "same.jsonl"), validation=write(folder, ROWS[:1], "v.jsonl"), **settings)  # fmt: skip
    with pytest.warns(UserWarning, match="share a prompt"):
        data.setup()
    return data


# Records -------------------------------------------------------------------------------------------------


def content_name(prompt, **more):
    return hashlib.sha1(json.dumps({"prompt": prompt, **more}, sort_keys=True).encode()).hexdigest()[:16]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [judgement(f"fox {i}") for i in range(40)] + [judgement("fox 0", label=2)] * bad
    return module(train=write(folder, rows), test=write(folder, ROWS, "test.jsonl"), **settings)


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_prompt_with_its_pictures_is_a_record(tmp_path, name):
    rows = [{**row, "user_id": str(row["user_id"]), "label": float(row["label"])} for row in ROWS]
    fox, hen = examples(module(train=write(tmp_path, rows, name)))
    assert (fox.prompt, hen.prompt) == ("a red fox", "a blue hen")
    assert (fox.id, hen.id) == (f"train:{content_name('a red fox')}", f"train:{content_name('a blue hen')}")
    before = [judgement(user="eve"), *rows]
    assert [record.id for record in examples(module(train=write(tmp_path, before, name)))] == [fox.id, hen.id]
    assert fox.responses == (Response("fox-1"), Response("fox-2"), Response("fox-3"))
    assert fox.comparisons == (
        Comparison(0, 1, 1.0, user="7"),
        Comparison(2, 0, 1.0, user="8"),
        Comparison(2, 1, 0.75, user="7"),
    )
    assert hen.responses == (Response("hen-1"), Response("hen-2"))
    assert hen.comparisons == (Comparison(0, 1, 0.5, user="ann"),)


def test_columns_and_names_that_are_numbers(tmp_path):
    row = judgement(image_0=11, image_1=12, prompt=5, user_id=3)
    row["caption"], row["best"] = row.pop("prompt"), row.pop("label")
    path = write(tmp_path, [row | {"jpg_0": "not read"}], "train.parquet")
    (record,) = examples(module(train=path, columns={"prompt": "caption", "label": "best"}))
    assert (record.prompt, record.responses) == ("5", (Response("11"), Response("12")))
    assert record.comparisons == (Comparison(0, 1, user="3"),)


def test_pictures_to_score_need_no_judgement_and_are_records_of_their_own(tmp_path):
    alone = judgement(user=..., label=..., image_1=..., image_1_embedding=...)
    both = judgement(user=..., label=...)
    one, two, three = examples(module(predict=write(tmp_path, [alone, both, both])), "predict")
    name = f"predict:{content_name('a red fox', images=['fox-1', 'fox-2'])}"
    assert (two.id, three.id) == (name, f"{name}:2")
    assert one.responses == (Response("fox-1"),) and two.responses == (Response("fox-1"), Response("fox-2"))
    assert one.comparisons == two.comparisons == ()


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"text_embedding": [1.0, 2.0]}, "text_embedding", "wrong length"),
        ({"image_0_embedding": [0.0, math.nan, 0.0, 0.0]}, "image_0_embedding[1]", "not finite"),
        ({"image_1_embedding": [0.0, 0.0, -math.inf, 0.0]}, "image_1_embedding[2]", "not finite"),
        ({"image_1_embedding": [0.0, 0.0, 0.0, 7e4]}, "image_1_embedding[3]", "out of range"),
        ({"image_1_embedding": "1 2 3 4"}, "image_1_embedding", "wrong type"),
        ({"image_1_embedding": ["1", "2", "3", "4"]}, "image_1_embedding", "wrong type"),
        ({"image_1_embedding": [[1.0], [2.0], [3.0], [4.0]]}, "image_1_embedding", "wrong type"),
        ({"image_0_embedding": ...}, "image_0_embedding", "missing field"),
        ({"text_embedding": ...}, "text_embedding", "missing field"),
        ({"prompt": ...}, "prompt", "missing field"),
        ({"image_1": ...}, "image_1", "missing field"),
        ({"image_1": "fox-1", "image_1_embedding": VECTORS["fox-1"]}, "image_1", "identical images"),
        ({"user_id": ...}, "user_id", "missing field"),
        ({"label": ...}, "label", "missing field"),
        ({"label": -1.0}, "label", "out of range"),
        ({"label": "left"}, "label", "wrong type"),
    ],
)
def test_rows_that_are_wrong_say_where(tmp_path, name, changes, field, reason):
    wrong = {key: value for key, value in {**judgement(), **changes}.items() if value is not ...}
    path = write(tmp_path, [wrong], name)
    (error,) = examples(module(train=path))
    assert (error.field, error.reason, error.file, error.line) == (field, reason, path, 1)


def test_a_null_among_the_numbers(tmp_path):
    wrong = judgement(text_embedding=[1.0, None, 0.0, 0.0])
    for name, field, reason in (
        ("train.jsonl", "text_embedding", "wrong type"),
        ("train.parquet", "text_embedding[1]", "not finite"),
    ):
        (error,) = examples(module(train=write(tmp_path, [wrong], name)))
        assert (error.field, error.reason) == (field, reason)


def test_lists_of_several_lengths_are_no_vector(tmp_path):
    wrong = judgement(text_embedding=[[1.0], [1.0, 2.0], [], []])
    (error,) = examples(module(train=write(tmp_path, [wrong])))
    assert (error.field, error.reason) == ("text_embedding", "wrong type")


def test_a_name_that_is_no_text(tmp_path):
    (error,) = examples(module(train=write(tmp_path, [judgement(image_0="\ud800")])))
    assert (error.field, error.reason) == ("image_0", "not UTF-8")


def test_two_vectors_of_one_name(tmp_path):
    rounded = [1.001 * number for number in VECTORS["fox-1"]]
    other = [1.02 * number for number in VECTORS["fox-1"]]
    rows = [judgement(), judgement(image_0_embedding=rounded), judgement(image_0_embedding=other)]
    first, second = examples(module(train=write(tmp_path, rows)))
    assert (first.field, first.reason, first.line) == ("image_0_embedding", "two vectors of one name", 3)
    assert "the image 'fox-1' had before, within 1% of its length" in str(first)
    assert len(second.comparisons) == 2, "the rounded one is the same picture"
    prompts = [judgement(), judgement(text_embedding=VECTORS["hen-1"])]
    error, _ = examples(module(train=write(tmp_path, prompts)))
    assert (error.field, error.line) == ("text_embedding", 2)


def test_a_prompt_and_a_picture_may_have_one_name(tmp_path):
    rows = [judgement(image_0="a red fox"), judgement("a blue hen", "hen-1", "hen-2")]
    data = module(train=write(tmp_path, rows))
    assert [len(record.responses) for record in examples(data)] == [2, 2]


# Vectors -------------------------------------------------------------------------------------------------


def test_batches_hold_the_vectors_of_their_names(tmp_path):
    data = both(tmp_path)
    (batch,) = data.test_dataloader()
    assert batch["id"] == [f"test:{content_name(prompt)}" for prompt in ("a red fox", "a blue hen")]
    names = ["fox-1", "fox-2", "fox-3", "hen-1", "hen-2"]
    expected = torch.tensor([VECTORS[name] for name in names], dtype=torch.float16)
    assert torch.equal(batch["features"], expected)
    assert batch["prompt_features"].tolist() == [VECTORS["a red fox"], VECTORS["a blue hen"]]
    assert batch["comparisons"].tolist() == [[0, 1], [2, 0], [2, 1], [3, 4]]
    assert batch["preference"].tolist() == [1.0, 1.0, 0.75, 0.5]
    assert [data.users[i] for i in batch["user_id"].tolist()] == ["7", "8", "7", "ann"]
    assert "input_ids" not in batch


def test_every_vector_is_stored_once(tmp_path):
    data = both(tmp_path)
    assert len(data.features) == len(VECTORS)
    assert data.reports["train"].comparisons == data.reports["test"].comparisons == 4
    store = FeatureStore(data.store_folder())
    assert (store.hidden_size, store.dtype, store.has_prompts) == (SIZE, "float16", True)
    store.check_backbone(BackboneConfig(name=WEIGHTS, frozen=True).description())
    store.check_tokenizer(data.text_format())


def test_vectors_may_be_left_out_where_they_were_given_before(tmp_path):
    bare = {name: value for name, value in judgement(label=0.0).items() if not name.endswith("_embedding")}
    data = module(train=write(tmp_path, [*ROWS, bare]), validation=write(tmp_path, [bare], "v.parquet"))
    with pytest.warns(UserWarning, match="share a prompt"):
        data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch["features"].tolist() == [VECTORS["fox-1"], VECTORS["fox-2"]]
    assert batch["comparisons"].tolist() == [[1, 0]]
    (error,) = examples(module(train=write(tmp_path, [bare])))
    assert (error.field, error.reason) == ("text_embedding", "missing field")
    assert "4 numbers in the first row that has the prompt 'a red fox'" in str(error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes(tmp_path, dtype):
    row = judgement(text_embedding=[1e5, 0.0, 0.0, 1.0])
    data = module(test=write(tmp_path, [row]), dtype=dtype)
    data.setup("test")
    (batch,) = data.test_dataloader()
    expected = torch.tensor([[1e5, 0, 0, 1]]).to(getattr(torch, dtype))
    assert torch.equal(batch["prompt_features"], expected)


def test_long_prompts_are_told_apart_to_their_first_letter(tmp_path):
    long = "y" * 3000
    rows = [judgement(prompt="x" + long), judgement(prompt="z" + long, text_embedding=VECTORS["hen-1"])]
    data = module(test=write(tmp_path, rows), text=TextConfig(max_length=16))
    data.setup("test")
    assert data.reports["test"].cut_prompts == 0
    (batch,) = data.test_dataloader()
    assert batch["prompt_features"].tolist() == [VECTORS["a red fox"], VECTORS["hen-1"]]


def test_wrong_rows_stop_or_are_counted(tmp_path):
    rows = [*ROWS, judgement(label=2.0), judgement(image_0_embedding=[1.0])]
    path = write(tmp_path, rows)
    with pytest.raises(RecordError, match=rf"{path}:5: out of range: field 'label' is 2.0"):
        module(test=path).setup("test")
    assert not list((tmp_path / "cache").iterdir()), "nothing is left behind"
    data = module(test=path, on_invalid="skip")
    data.setup("test")
    assert data.reports["test"].invalid == {"out of range": 1, "wrong length": 1}
    assert (data.reports["test"].records, data.reports["test"].comparisons) == (2, 4)


def test_an_interrupted_store_is_made_anew(tmp_path, monkeypatch):
    path = write(tmp_path, ROWS)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "flush", killed)
        data = module(test=path)
        with pytest.raises(KeyboardInterrupt):
            data.prepare_data()
    assert (data.cache_folder() / "meta.json").is_file() and not data.store_folder().exists()
    assert not list(data.cache_folder().glob("*.partial"))
    data.setup("test")
    assert len(data.features) == len(VECTORS)


def test_a_store_that_lost_its_description_is_made_anew(tmp_path):
    path = write(tmp_path, ROWS)
    data = module(test=path)
    data.prepare_data()
    (data.store_folder() / "meta.json").unlink()
    again = module(test=path)
    again.setup("test")
    assert len(again.features) == len(VECTORS)


def test_a_second_run_reads_nothing(tmp_path, monkeypatch):
    path = write(tmp_path, ROWS)
    module(test=path).prepare_data()
    monkeypatch.setattr(PickAPicDataModule, "load", lambda *_: pytest.fail("the rows were read again"))
    data = module(test=path)
    data.setup("test")
    assert data.table("test").rows and len(data.features) == len(VECTORS)


def test_other_settings_have_another_cache(tmp_path):
    path = write(tmp_path, ROWS)
    folders = {
        module(test=path, **settings).cache_folder()
        for settings in ({}, {"dtype": "float32"}, {"weights": "other"}, {"columns": {"prompt": "caption"}})
    }
    assert len(folders) == 4


# Models --------------------------------------------------------------------------------------------------


def test_a_model_trains_from_the_store_without_a_network(tmp_path, trainer):
    rows = [judgement("a blue hen", "hen-1", "hen-2"), *ROWS]
    data = module(
        train=write(tmp_path, rows),
        validation=write(tmp_path, [judgement("another")], "v.jsonl"),
        loader=LoaderConfig(batch_size=1, max_tokens=None),
    )
    model = BradleyTerryRM(
        BackboneConfig(name=WEIGHTS, frozen=True), optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    trainer(max_steps=2).fit(model, datamodule=data)
    assert type(model.backbone).__name__ == "StoredFeatures" and model.global_step == 2
    output = model(next(iter(data.val_dataloader())))
    weight = model.head.weight.detach().squeeze(0)
    expected = torch.tensor([VECTORS["fox-1"], VECTORS["fox-2"]]) @ weight
    assert torch.allclose(output["reward"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "other/network"}, "weights: the store has 'laion/CLIP-ViT-H-14"),
        ({"name": WEIGHTS, "dtype": "bfloat16"}, "dtype: the store has 'float32', the model 'bfloat16'"),
    ],
)
def test_another_network_is_refused(tmp_path, trainer, settings, message):
    data = module(train=write(tmp_path, ROWS), validation=write(tmp_path, ROWS[1:2], "v.jsonl"))
    model = BradleyTerryRM(BackboneConfig(**settings, frozen=True))
    with pytest.warns(UserWarning, match="share a prompt"), pytest.raises(ValueError, match=message):
        trainer(max_steps=2).fit(model, datamodule=data)


# Settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": None}, "no file: give at least one of train, validation, test, predict"),
        ({"columns": {"picture": "x"}}, "unknown fields picture; allowed: user_id, prompt, image_0"),
        ({"hidden_size": 0}, "hidden_size must be finite and >= 1; got 0"),
        ({"dtype": "float64"}, "dtype must be one of float32, float16, bfloat16; got 'float64'"),
        ({"text": TextConfig(tokenizer="gpt2")}, "text.tokenizer must be 'byte', .* got 'gpt2'"),
        ({"loader": LoaderConfig(features="store")}, "loader.features must be null, got 'store'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**{"train": "rows.jsonl", **settings})


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "gone.parquet"
    with pytest.raises(FileNotFoundError, match=rf"train='{path}' is not a file"):
        module(train=str(path)).prepare_data()


def test_the_loader_reads_responses_alone():
    data = module(train="rows.jsonl", loader=LoaderConfig(batch_size=3))
    assert (data.loader.items, data.loader.batch_size, data.loader.features) == ("response", 3, None)
