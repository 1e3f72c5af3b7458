"""Records as tables: batches are those of the collator to the bit, tables are made once, and vectors are held where they fit."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pluralign.datamodules import LocalDataModule, SyntheticDataModule, TextConfig, TreatmentConfig
from pluralign.datamodules.batches import (
    FeatureTable,
    FeatureWriter,
    IndexedRows,
    LoaderConfig,
    PreferenceCollator,
    UserProtocol,
    prompt_key,
    response_keys,
)
from pluralign.datamodules.crowd import CrowdConfig

BACKBONE = {"weights": "invented"}
SIZE = 5


def stored(data, folder, *, dtype="float32", prompts=True):
    """The data with random vectors of everything, open."""
    loader = data.loader
    data.loader = replace(loader, features=None)
    data.prepare_data()
    data.setup()
    writer = FeatureWriter(
        folder, backbone=BACKBONE, text_format=data.text_format(), hidden_size=SIZE, dtype=dtype, prompts=prompts,
        shard_size=7,
    )  # fmt: skip
    for split in data.splits:
        for row in data.table(split).rows():
            keys = [*response_keys(row).tolist(), *([prompt_key(row)] if prompts else [])]
            writer.add(keys, torch.randn(len(keys), SIZE))
    writer.flush()
    data.loader = replace(loader, features=str(folder))
    return data


def synthetic(**settings):
    loader = {"batch_size": 4, **settings.pop("loader", {})}
    sizes = {"num_train": 30, "num_validation": 4, "num_test": 4, "num_predict": 4}
    return SyntheticDataModule(**sizes, **settings, loader=LoaderConfig(**loader))


def local(tmp_path, rows, **loader):
    for split, some in (("train", rows), ("validation", rows[:3])):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    return LocalDataModule(
        train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl"), text=TextConfig(),
        loader=LoaderConfig(**{"batch_size": 4, **loader}),
    )  # fmt: skip


def ragged(number=21):
    """Records of one to four responses, some without comparisons, each with some of the columns."""
    rows = []
    for i in range(number):
        count = 1 + i % 4
        row = {"id": f"r{i}", "prompt": f"prompt {i}", "responses": [f"answer {i} {j}" for j in range(count)]}
        if count > 1:
            pairs = [[j, j - 1] for j in range(1, count)]
            row["comparisons"] = [
                {
                    "chosen": a,
                    "rejected": b,
                    "user": f"u{(i + a) % 5}",
                    "domain": "xy"[a % 2],
                    "strength": i - 9.5,
                }
                for a, b in pairs
            ]
        if i % 3:
            row["scores"] = [float(j) for j in range(count)]
        rows.append(row)
    return rows


def votes(number=15):
    return [
        {
            "id": f"r{i}", "prompt": f"prompt {i}", "responses": [f"a {i}", f"b {i}", f"c {i}"][: 1 + i % 3],
            "votes": [[i % 3 + 1, j, 2] for j in range(1 + i % 3)],
        }
        for i in range(number)
    ]  # fmt: skip


def assert_equal(ours, expected):
    assert list(ours) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert torch.equal(ours[name].nan_to_num(-7.5), value.nan_to_num(-7.5)), name
        else:
            assert ours[name] == value, name


def make(kind, tmp_path):
    rule = {"label": "flip", "high": 0.0}
    return {
        "users": lambda: synthetic(judgements="users", num_domains=2),
        "seen users": lambda: synthetic(
            judgements="users", loader={"users": UserProtocol(unseen_share=0.4, show="unseen")}
        ),
        "crowd": lambda: synthetic(judgements="crowd"),
        "ratings with a prior": lambda: synthetic(
            judgements="ratings", loader={"crowd": CrowdConfig(prior="mean", smoothing=0.1)}
        ),
        "ragged": lambda: local(tmp_path, ragged()),
        "votes": lambda: local(tmp_path, votes()),
        "merged": lambda: local(
            tmp_path, [{**row, "prompt": f"prompt {i // 3}"} for i, row in enumerate(ragged())]
        ),
        "treated": lambda: local(tmp_path, ragged(), treatments=TreatmentConfig(rules=[rule], by="value")),
    }[kind]()


@pytest.mark.filterwarnings("ignore:.*share a prompt", "ignore:.*less than half")
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    "kind", ["users", "seen users", "crowd", "ratings with a prior", "ragged", "votes", "merged", "treated"]
)
def test_batches_are_those_of_the_collator_to_the_bit(tmp_path, kind, held):
    data = stored(make(kind, tmp_path), tmp_path / "s")
    data.loader = replace(data.loader, features_memory=100 if held else 0)
    rows, collate = data.rows("train"), data._collator("train", data.loader)
    assert isinstance(rows, FeatureTable)
    loader = data.train_dataloader()
    indexed = loader.dataset
    assert isinstance(indexed, IndexedRows) and indexed.held is held and len(indexed) == len(rows)
    batches = list(loader)
    assert len(batches) > 1
    for places, batch in zip(loader.sampler, batches, strict=True):
        assert_equal(batch, collate(rows[places]))
    for places in ([0], [1, 1], list(range(len(rows)))[::-1]):
        assert_equal(indexed[places], collate(rows[places]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("memory", [0, 1])
def test_vectors_come_in_the_dtype_of_the_store(tmp_path, dtype, memory):
    data = stored(synthetic(loader={"features_memory": memory}), tmp_path / "s", dtype=dtype, prompts=False)
    batch = next(iter(data.train_dataloader()))
    assert batch["features"].dtype == getattr(torch, dtype) and "prompt_features" not in batch


def test_tables_are_made_once_and_nothing_is_done_by_record_in_an_epoch(tmp_path, monkeypatch):
    data = stored(synthetic(), tmp_path / "s")
    calls = Counter()

    def counted(owner, name):
        function = getattr(owner, name)

        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        monkeypatch.setattr(owner, name, call)

    counted(PreferenceCollator, "__call__")
    counted(FeatureTable, "__getitem__")
    loader = data.train_dataloader()
    assert calls == {"__call__": 1, "__getitem__": 1}  # 30 records, of which 1024 are read at a time
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert sum(len(batch["id"]) for batch in loader) == 30
    data.train_dataloader()
    data.batches("train", max_tokens=100)
    assert calls == {"__call__": 1, "__getitem__": 1}
    data.setup("fit")  # names may have changed
    data.train_dataloader()
    assert calls["__call__"] == 2


def test_a_copy_in_another_process_reads_the_vectors_anew(tmp_path):
    data = stored(synthetic(), tmp_path / "s")
    indexed = data.train_dataloader().dataset
    packed = pickle.dumps(indexed)
    again = pickle.loads(packed)
    assert_equal(again[[3, 1]], indexed[[3, 1]])
    vectors = indexed._vectors
    assert vectors.nbytes and vectors.numpy().tobytes()[:64] not in packed


def test_equal_responses_are_held_once_and_the_bound_is_exact(tmp_path):
    rows = [
        {"id": f"r{i}", "prompt": f"prompt {i % 3}", "responses": ["yes", "no"], "comparisons": [[0, 1]]}
        for i in range(9)
    ]
    data = local(tmp_path, rows)
    data.merged_tokens = 0
    with pytest.warns(UserWarning, match="share a prompt"):
        data = stored(data, tmp_path / "s", prompts=False)
    indexed = data.train_dataloader().dataset
    assert len(indexed) == 9 and len(indexed._vectors) == 6
    table, collate = data.rows("train"), data.collator()
    size = 6 * SIZE * 4
    for memory, held in ((size / 2**20, True), ((size - 1) / 2**20, False)):
        assert IndexedRows(table, collate, memory=memory).held is held


def test_the_bound_is_checked():
    with pytest.raises(ValueError, match=r"loader\.features_memory must be finite and >= 0; got -1"):
        LoaderConfig(features_memory=-1)
