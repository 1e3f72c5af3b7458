"""Filling a feature store: every text once, whatever happens on the way."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pluralign.datamodules import FeatureStore, LocalDataModule, TextConfig
from pluralign.datamodules.base import LoaderConfig
from pluralign.datamodules.batches.features import FeatureTable, FeatureWriter, response_keys
from pluralign.datamodules.tokens.rows import prompt_alone, without_prompt
from pluralign.inference.embedding import embed_features

pytestmark = pytest.mark.filterwarnings("ignore:local .* records share a prompt")

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
TRAIN = [
    {"id": "1", "prompt": "why", "responses": ["a", "bb", "ccc"], "comparisons": [[0, 1], [1, 2]]},
    {"id": "2", "prompt": "why", "responses": ["bb", "dddd"], "comparisons": [[0, 1]]},
    {"id": "3", "prompt": "how", "responses": ["a", "ab", "a long answer"], "comparisons": [[0, 1]]},
    {"id": "4", "prompt": "", "responses": ["a", "bb"], "comparisons": [[0, 1]]},
]
TEST = [{"id": "5", "prompt": "how", "responses": ["a", "new"], "comparisons": [[0, 1]]}]
DISTINCT = 3 + 1 + 3 + 2 + 1
OF_RESPONSES = 6 + 1  # without their prompts: a, bb, ccc, dddd, a long answer, new; and ab


class Network:
    """Its state of a sequence: a sum that depends on the order of its tokens, its length and its last token."""

    def __init__(self, fail_at=None):
        self.seen, self.batches, self.cells, self.fail_at = Counter(), 0, 0, fail_at

    def __call__(self, batch):
        self.batches += 1
        if self.batches == self.fail_at:
            raise KeyboardInterrupt
        self.cells = max(self.cells, batch["input_ids"].numel())
        out = []
        for line, end in zip(batch["response_row"].tolist(), batch["response_end"].tolist(), strict=True):
            segments = batch["segment_ids"][line]
            mine = (segments == 0) | (segments == segments[end])
            tokens = batch["input_ids"][line][mine].tolist()
            assert batch["position_ids"][line][mine].tolist() == list(range(len(tokens)))
            self.seen[tuple(tokens)] += 1
            out.append(state(tokens))
        assert "comparisons" not in batch
        return torch.stack(out)


def state(tokens):
    ids = torch.tensor(tokens, dtype=torch.float64)
    return torch.stack(
        [(ids * torch.arange(1, len(ids) + 1)).sum() / 1e3, ids.new_tensor(len(ids)), ids[-1]]
    ).float()


@pytest.fixture
def module(tmp_path):
    for name, rows in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(text=TEXT, **loader):
        paths = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        return LocalDataModule(
            **paths,
            validation=paths["test"],
            text=text,
            loader=LoaderConfig(**{"max_tokens": 64, **loader}),
            merged_tokens=0,
        )

    return build


def embed(data, folder, network=None, *, layout="shared", max_tokens=64, prompts=False, **options):
    network = network or Network()
    data.setup()
    settings = {
        "backbone": {"weights": "w"},
        "text_format": data.text_format(),
        "hidden_size": 3,
        "dtype": "float32",
    }
    writer = FeatureWriter(folder, prompts=prompts, **{**settings, **options})
    progress = list(embed_features(data, network, writer, layout=layout, max_tokens=max_tokens))
    return network, progress


def check(data, store, items="conversation"):
    """Every response of every split has the state of its tokens."""
    for split in data.splits:
        table = FeatureTable(data.table(split), store, split, items=items)
        for row, entry in zip(data.table(split).rows(), table[list(range(len(table)))], strict=True):
            text = without_prompt(row) if items == "response" else row
            ends = np.cumsum(text.lengths)
            prefix = text.tokens[: ends[0]].tolist()
            own = [text.tokens[a:b].tolist() for a, b in pairwise(ends)]
            torch.testing.assert_close(
                store.take(entry.places).float(), torch.stack([state(prefix + part) for part in own])
            )
            if store.has_prompts:
                (found,) = store.take(np.asarray([entry.prompt_place])).float()
                torch.testing.assert_close(found, state(prompt_alone(row).tokens.tolist()))


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_every_text_is_embedded_once(module, tmp_path, layout, max_tokens):
    data = module()
    network, progress = embed(data, tmp_path / "s", layout=layout, max_tokens=max_tokens)
    assert len(network.seen) == DISTINCT and set(network.seen.values()) == {1}
    store = FeatureStore(tmp_path / "s")
    assert len(store) == DISTINCT
    check(data, store)
    assert network.cells <= max(max_tokens, 24)
    done = {split: (number, total) for split, number, total in progress}
    assert done == {"train": (9, 9), "validation": (1, 1)}, "the test split has nothing new"
    again, progress = embed(data, tmp_path / "s", layout=layout)
    assert not again.seen and not progress and len(FeatureStore(tmp_path / "s")) == DISTINCT


def test_separate_rows_run_beside_their_like(module, tmp_path):
    """Each response may then go to a batch of its length, whatever record it is from."""
    network, _ = embed(module(), tmp_path / "s", layout="separate", max_tokens=20)
    assert network.cells <= 20


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_prompts_are_rows_of_their_own(module, tmp_path, layout):
    data = module()
    network, _ = embed(data, tmp_path / "s", prompts=True, layout=layout)
    assert set(network.seen.values()) == {1} and len(network.seen) == DISTINCT + 3, (
        "why|, how| and the empty one"
    )
    assert network.seen[(0,)] == 1
    check(data, FeatureStore(tmp_path / "s"))


def test_prompts_are_added_later(module, tmp_path):
    data = module()
    embed(data, tmp_path / "s")
    network, _ = embed(data, tmp_path / "s", prompts=True)
    assert len(network.seen) == 3
    check(data, FeatureStore(tmp_path / "s"))


@pytest.mark.parametrize("prompts", [False, True])
def test_responses_alone(module, tmp_path, prompts):
    data = module(items="response")
    network, _ = embed(data, tmp_path / "s", prompts=prompts)
    assert len(network.seen) == OF_RESPONSES + 3 * prompts and set(network.seen.values()) == {1}
    store = FeatureStore(tmp_path / "s")
    check(data, store, "response")
    rows = list(data.table("train").rows())
    whole, alone = (
        [response_keys(f(row)).tolist() for row in rows] for f in (lambda row: row, without_prompt)
    )
    assert whole[3] == alone[3] and not {key for keys in whole[:3] for key in keys} & {
        k for keys in alone for k in keys
    }
    both, _ = embed(module(), tmp_path / "s", prompts=prompts)
    assert len(both.seen) == DISTINCT - 2, "those of the empty prompt are there"
    check(data, FeatureStore(tmp_path / "s"), "response")
    check(data, FeatureStore(tmp_path / "s"))


def test_other_truncation_adds_what_it_changes(module, tmp_path):
    embed(module(), tmp_path / "s")
    short = module(replace(TEXT, max_length=15))
    short.setup()
    store = FeatureStore(tmp_path / "s")
    with pytest.raises(
        ValueError, match=r"3 of 10 responses of the train split have no features.*first: of record '3'"
    ):
        FeatureTable(short.table("train"), store, "train")
    network, _ = embed(short, tmp_path / "s")
    assert len(network.seen) == 3
    check(short, FeatureStore(tmp_path / "s"))
    check(module_ready(module()), FeatureStore(tmp_path / "s"))


def module_ready(data):
    data.setup()
    return data


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_an_interrupted_run_goes_on(module, tmp_path, layout, fail_at):
    data = module()
    first = Network(fail_at)
    with pytest.raises(KeyboardInterrupt):
        embed(data, tmp_path / "s", first, layout=layout, max_tokens=24)
    kept = len(FeatureStore(tmp_path / "s"))
    assert kept == len(first.seen) and (kept > 0) == (fail_at > 1)
    second, _ = embed(data, tmp_path / "s", layout=layout, max_tokens=24)
    assert not first.seen.keys() & second.seen.keys() and len(first.seen | second.seen) == DISTINCT
    check(data, FeatureStore(tmp_path / "s"))
    embed(data, tmp_path / "whole", layout=layout, max_tokens=24)
    stores = [FeatureStore(tmp_path / name) for name in ("s", "whole")]
    assert np.array_equal(stores[0].keys(), stores[1].keys())
    assert torch.equal(*(store.take(store.find(store.keys())) for store in stores))


def test_a_killed_run_loses_its_last_shard_at_most(module, tmp_path, monkeypatch):
    data, killed = module(), Network(4)
    with monkeypatch.context() as patch:
        flush = FeatureWriter.flush
        patch.setattr(FeatureWriter, "flush", lambda self: flush(self) if self._waiting >= 2 else None)
        with pytest.raises(KeyboardInterrupt):
            embed(data, tmp_path / "s", killed, layout="separate", max_tokens=12, shard_size=2)
    kept = len(FeatureStore(tmp_path / "s"))
    assert len(killed.seen) - 1 <= kept <= len(killed.seen) and kept >= 2
    embed(data, tmp_path / "s", layout="separate", shard_size=2)
    assert len(FeatureStore(tmp_path / "s")) == DISTINCT
    check(data, FeatureStore(tmp_path / "s"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(module, tmp_path, dtype):
    data = module()
    embed(data, tmp_path / "s", lambda batch: Network()(batch).sign(), dtype=dtype)
    data.loader = replace(data.loader, features=str(tmp_path / "s"))
    for batch in data.train_dataloader():
        assert batch["features"].dtype == getattr(torch, dtype) and batch["features"].eq(1).all()


def test_memory_holds_no_tokens(module, tmp_path):
    """What is planned are numbers of records; rows are read when their turn comes."""
    from pluralign.inference import embedding

    data = module_ready(module())
    writer = FeatureWriter(tmp_path, backbone={}, text_format=data.text_format(), hidden_size=3)
    plan = embedding._plan(data, "train", writer, set(), "shared")
    assert plan.rows == [0, 1, 2, 3] and plan.kept == [[0, 1, 2], [1], [0, 1, 2], [0, 1]]
    assert plan.sizes.tolist() == [[3, 4, 9, 4], [1, 4, 5, 5], [3, 5, 16, 13], [2, 0, 5, 3]]
