"""Batches of items: padding, order, ranks, epochs, draws, resuming."""

import pickle
from collections import Counter
from itertools import chain

import pytest
import torch

from pluralign.datamodules import PromptLoaderConfig
from pluralign.datamodules.prompts.loader import PreferenceDraws

ONE = {"id": "q", "prompt": "Why?"}


def opened(data):
    data.setup()
    return data


def rows_of(ids, mask):
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def of_text(data, text):
    return data.tokenizer.encode.whole([f"\n\nHuman: {text}\n\nAssistant:"])[0]


def test_exact_rows_of_a_batch(invented):
    rows = [
        {**ONE, "preference": ["length.long", "tone.kind"], "user": "ann"},
        {"id": "r", "prompt": "How so?", "preference": ["tone.rude"]},
        {"id": "s", "prompt": "What?", "preference": [], "user": "bob", "age": 3},
    ]
    data = opened(invented({"predict": rows}))
    (batch,) = data.predict_dataloader()
    assert set(batch) == {"id", "item_key", "prompt", "preference", "wanted", "columns", "input_ids", "attention_mask",
                          "plain_ids", "plain_mask", "own_ids", "own_mask"}  # fmt: skip
    order = [batch["id"].index(name) for name in ("q (tone.kind, length.long)", "r (tone.rude)", "s")]
    assert [batch["prompt"][i] for i in order] == ["Why?", "How so?", "What?"]
    assert [batch["preference"][i] for i in order] == [("tone.kind", "length.long"), ("tone.rude",), ()]
    assert batch["wanted"][order].tolist() == [
        [True, False, False, True], [False, True, False, False], [False] * 4
    ]  # fmt: skip
    assert {name: [values[i] for i in order] for name, values in batch["columns"].items()} == {
        "user": ["ann", None, "bob"],
        "age": [None, None, 3],
    }
    for key in ("input_ids", "attention_mask", "plain_ids", "plain_mask", "own_ids", "own_mask", "item_key"):
        assert batch[key].dtype == torch.int64
    whole = rows_of(batch["input_ids"], batch["attention_mask"])
    texts = ["Why? Be kind. Say all.", "How so? Be rude.", "What?"]
    assert [whole[i] for i in order] == [of_text(data, text) for text in texts]
    plain = rows_of(batch["plain_ids"], batch["plain_mask"])
    assert [plain[i] for i in order] == [of_text(data, text) for text in ("Why?", "How so?", "What?")]
    own = [rows_of(batch["own_ids"][i], batch["own_mask"][i]) for i in order]
    assert own == [
        [of_text(data, "Why? Be kind."), [], [], of_text(data, "Why? Say all.")],
        [[], of_text(data, "How so? Be rude."), [], []],
        [[]] * 4,
    ]
    assert batch["attention_mask"][:, -1].tolist() == [1] * 3, "padded on the left"
    assert (batch["input_ids"][batch["attention_mask"] == 0] == data.pad_id).all()
    assert (batch["own_ids"][batch["own_mask"] == 0] == data.pad_id).all()
    assert (batch["plain_mask"].diff(dim=1) >= 0).all() and (batch["own_mask"].diff(dim=2) >= 0).all()


def test_prompts_without_preferences(invented):
    data = opened(invented({"predict": [ONE]}, axes={}))
    (batch,) = data.batches("predict")
    assert (batch["id"], batch["preference"]) == (["q"], [()])
    assert batch["wanted"].shape == (1, 0) and batch["own_ids"].shape == batch["own_mask"].shape == (1, 0, 0)
    assert torch.equal(batch["input_ids"], batch["plain_ids"])


def test_every_combination_is_an_item(invented):
    data = opened(invented(20, validation_share=0.2, loader=PromptLoaderConfig(batch_size=7)))
    seen = [item for batch in data.train_dataloader() for item in batch["id"]]
    assert len(seen) == len(set(seen)) == 4 * data.reports["train"].prompts
    assert len(data.train_dataloader()) == -(-len(seen) // 7)
    keys = torch.cat([batch["item_key"] for batch in data.batches("train")])
    assert len(keys.unique()) == len(seen)


@pytest.mark.parametrize("preferences", ["all", "draw"])
def test_ranks_get_equally_many_batches_in_training_and_share_out_evaluation(invented, preferences):
    rows = {"train": [{"id": f"q{i}", "prompt": f"Why {i}?"} for i in range(9)],
            "validation": [{"id": f"v{i}", "prompt": f"Who {i}?"} for i in range(5)]}  # fmt: skip
    for split, prompts in (("train", 9), ("validation", 5)):
        data = opened(invented(rows, preferences=preferences, loader=PromptLoaderConfig(batch_size=2)))
        items = prompts * (4 if preferences == "all" else 1)
        ranks = []
        for rank in range(3):
            settings = {"shuffle": True, "even": True} if split == "train" else {}
            loader = data._loader(split, data.loader, rank=(rank, 3), **settings)
            ranks.append([batch["id"] for batch in loader])
            assert len(loader) == len(ranks[-1])
        seen = Counter(item for batches in ranks for batch in batches for item in batch)
        assert len(seen) == items
        if split == "train":
            assert len({len(batches) for batches in ranks}) == 1
        else:
            assert set(seen.values()) == {1}


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return [batch["id"] for batch in loader]


def test_epochs_shuffle_by_seed_and_number(invented):
    def loader(seed=0):
        return opened(invented(30, loader=PromptLoaderConfig(batch_size=4, seed=seed))).train_dataloader()

    first = loader()
    zero, one = epoch(first, 0), epoch(first, 1)
    assert zero != one and sorted(chain(*zero)) == sorted(chain(*one))
    again = loader()
    assert (epoch(again, 1), epoch(again, 0)) == (one, zero)
    assert epoch(loader(seed=1), 0) != zero
    fixed = opened(invented(30, loader=PromptLoaderConfig(batch_size=4, shuffle=False))).train_dataloader()
    assert epoch(fixed, 0) == epoch(fixed, 1)


def test_one_preference_is_drawn_for_each_prompt_and_epoch(invented):
    data = opened(invented(40, preferences="draw", held_out=[["tone.kind", "length.long"]], test_share=0.2))
    loader = data.train_dataloader()
    prompts = data.reports["train"].prompts
    drawn = Counter()
    for number in range(30):
        items = list(chain(*epoch(loader, number)))
        names = [item.partition(" ")[0] for item in items]
        assert len(names) == len(set(names)) == prompts
        drawn.update(item.partition(" ")[2] for item in items)
    assert len(drawn) == 3 and "(tone.kind, length.long)" not in drawn
    assert all(abs(count / (30 * prompts) - 1 / 3) < 0.06 for count in drawn.values())
    assert epoch(loader, 3) == epoch(data.train_dataloader(), 3)
    fixed = [[item for batch in data.val_dataloader() for item in batch["id"]] for _ in range(2)]
    assert fixed[0] == fixed[1] and len(fixed[0]) == data.reports["validation"].prompts
    assert {batch["preference"][0] for batch in data.test_dataloader()} == {("tone.kind", "length.long")}


def test_draws_are_places_of_each_prompts_items():
    starts = torch.tensor([0, 2, 3, 7]).numpy()
    draws = PreferenceDraws(starts, seed=5)
    for number in range(20):
        places = draws.records(number)
        assert ((starts[:-1] <= places) & (places < starts[1:])).all()
    assert draws.records(4).tolist() == draws.records(4).tolist()


def test_a_loader_goes_on_where_its_state_was_taken(invented):
    def loader():
        data = opened(invented(30, preferences="draw", loader=PromptLoaderConfig(batch_size=4)))
        return data.train_dataloader()

    whole = epoch(loader(), 2)
    first = loader()
    first.sampler.set_epoch(2)
    batches = iter(first)
    head = [next(batches)["id"] for _ in range(3)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert head + [batch["id"] for batch in second] == whole
    other = opened(
        invented(30, preferences="draw", loader=PromptLoaderConfig(batch_size=5))
    ).train_dataloader()
    with pytest.raises(ValueError, match="cannot go on in the middle of an epoch with other batches"):
        other.load_state_dict(first.state_dict())


def test_collator_and_items_pickle(invented):
    data = opened(invented({"predict": [ONE]}))
    loader = data.predict_dataloader()
    copy = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    table, collate = copy
    again, batch = collate(table[[0, 2]]), loader.collate_fn(loader.dataset[[0, 2]])
    assert again["id"] == batch["id"] and torch.equal(again["own_ids"], batch["own_ids"])


@pytest.mark.parametrize("setting", ["batch_size", "mega_batch"])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=f"loader.{setting} must be finite and >= 1; got 0"):
        PromptLoaderConfig(**{setting: 0})
