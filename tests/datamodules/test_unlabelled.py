"""Sources without judgements: what is kept of them, and the batch of them that stands beside every training batch."""

import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from pluralign.datamodules import (
    LoaderConfig,
    LocalDataModule,
    MixtureDataModule,
    SyntheticDataModule,
    TextConfig,
)
from pluralign.datamodules.batches import FeatureWriter, UserProtocol, response_keys
from pluralign.datamodules.columns import take_comparisons, take_responses

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
LOADER = LoaderConfig(batch_size=4)


def written(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def pairs(number, name="p"):
    return [
        {"id": f"{name}{i}", "prompt": f"question {name} {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(number)
    ]


def groups(number, size=3):
    return [
        {"id": f"g{i}", "prompt": f"asked {i}", "responses": [f"answer {i} {j}" for j in range(size)]}
        for i in range(number)
    ]


@pytest.fixture
def mixed(tmp_path):
    """A mixture of a file of pairs and one of rows without judgements, set up to fit."""

    def make(judged=20, policy=6, *, setup=True, loader=LOADER, **settings):
        judged = pairs(judged) if isinstance(judged, int) else judged
        policy = groups(policy) if isinstance(policy, int) else policy
        data = MixtureDataModule(
            sources={
                "judged": LocalDataModule(
                    train=written(tmp_path / "pairs.jsonl", judged),
                    validation=written(tmp_path / "validation.jsonl", pairs(4, "v")),
                ),
                "policy": LocalDataModule(train=written(tmp_path / "policy.jsonl", policy)),
            },
            **{"unlabelled": ["policy"], "text": TEXT, **settings},
            loader=loader,
        )
        if setup:
            data.setup("fit")
        return data

    return make


def sides(data, *epochs, rank=(0, 1)):
    """Ids of every training batch of some epochs, and of the one beside it."""
    data._rank = lambda: rank
    loader, seen = data.train_dataloader(), []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        seen += [(batch["id"], batch["unlabelled"]["id"]) for batch in loader]
    return seen


# What a batch has ----------------------------------------------------------------------------------------


def test_every_training_batch_has_one_without_judgements_beside_it(mixed):
    data = mixed(unlabelled_prompts=2)
    for batch in data.train_dataloader():
        beside = batch["unlabelled"]
        assert all(name.startswith("judged/") for name in batch["id"]) and "comparisons" in batch
        assert all(name.startswith("policy/") for name in beside["id"]) and len(beside["id"]) <= 2
        assert "comparisons" not in beside and "preference" not in beside
        number = len(beside["id"])
        assert beside["response_prompt"].tolist() == [i for i in range(number) for _ in range(3)]
        assert beside["source_id"].tolist() == [1] * number and data.names["source"] == ["judged", "policy"]
        assert beside["input_ids"].shape[0] == number == len(beside["record_key"])
        assert beside["response_index"].tolist() == [0, 1, 2] * number


def test_tokens_of_the_groups_are_those_of_their_rows(mixed):
    batch = next(iter(mixed(policy=1).train_dataloader()))["unlabelled"]
    ids, decode = batch["input_ids"][0].tolist(), mixed().tokenizer.tokenizer.decode
    assert decode(ids) == "asked 0|answer 0 0</s>1</s>2</s>"
    ends = batch["response_end"].tolist()
    assert [ids[end] for end in ends] == [2, 2, 2]


def test_only_training_batches_have_it(mixed):
    data = mixed()
    assert data.splits == ("train", "validation", "unlabelled")
    assert data.loader_names("validation") == ("judged",) and len(data.val_dataloader()) == 1
    batches = [*data.val_dataloader()[0], *data.batches("train"), *data.batches("unlabelled")]
    assert not any("unlabelled" in batch for batch in batches)
    assert {name for batch in data.batches("unlabelled") for name in batch["id"]} == {
        f"policy/g{i}" for i in range(6)
    }
    assert "comparisons" not in next(iter(data.batches("unlabelled")))
    assert [record.id for record in data.given("unlabelled")] == [f"policy/g{i}" for i in range(6)]
    (text,) = data.texts("unlabelled", [("policy/g3", 1)])
    assert text == ("asked 3|", "answer 3 1")


def test_a_mixture_without_such_sources_is_as_before(mixed):
    data = mixed(policy=pairs(5), unlabelled_prompts=None)
    assert "unlabelled" in next(iter(data.train_dataloader()))
    plain = MixtureDataModule(sources={"judged": data.parts["judged"]}, text=TEXT, loader=LOADER)
    plain.setup("fit")
    assert plain.splits == ("train", "validation")
    assert not any("unlabelled" in batch for batch in plain.train_dataloader())
    assert "unlabelled" not in plain.content()
    # The judged batches and their order are the same.
    assert [ids for ids, _ in sides(data, 0)] == [batch["id"] for batch in plain.train_dataloader()]


def test_filters_keep_the_batch_beside(mixed):
    batch = next(iter(mixed().train_dataloader()))
    fewer = take_comparisons(batch, torch.tensor([0]))
    assert fewer["unlabelled"] is batch["unlabelled"] and len(fewer["comparisons"]) == 1
    keep = torch.ones(len(batch["response_row"]), dtype=torch.bool)
    keep[0] = False
    assert take_responses(batch, keep)["unlabelled"] is batch["unlabelled"]


def test_lightning_moves_the_batch_beside():
    from lightning.fabric.utilities import move_data_to_device

    batch = {"id": ["a"], "unlabelled": {"id": ["b"], "input_ids": torch.zeros(1, 2)}}
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved["unlabelled"]["input_ids"].device.type == "meta" and moved["unlabelled"]["id"] == ["b"]


# Order -------------------------------------------------------------------------------------------------


def test_the_groups_are_walked_through_and_shuffled_anew_each_time(mixed):
    data = mixed(judged=24, policy=6, unlabelled_prompts=1, loader=replace(LOADER, batch_size=2))
    beside = [others[0] for _, others in sides(data, 0, 1, 2)]  # 36 batches: six times around
    rounds = [beside[start : start + 6] for start in range(0, 36, 6)]
    assert all(set(each) == set(beside) for each in rounds) and len(set(beside)) == 6
    assert len({tuple(each) for each in rounds}) > 3, "another order each time"


def test_a_round_goes_on_over_the_end_of_an_epoch(mixed):
    data = mixed(judged=8, policy=12, unlabelled_prompts=1)  # two batches an epoch
    beside = [others[0] for _, others in sides(data, *range(6))]
    assert len(beside) == 12 == len(set(beside))


def test_equally_many_records_do_not_go_in_step(mixed):
    data = mixed(judged=40, policy=40, unlabelled_prompts=4)
    numbers = [
        ([re.sub(r"\D", "", name) for name in ids], [re.sub(r"\D", "", name) for name in others])
        for ids, others in sides(data, 0)
    ]
    assert any(set(ids) != set(others) for ids, others in numbers)


def test_an_epoch_goes_on_in_the_middle_with_the_same_batches_side_by_side(mixed):
    whole = sides(mixed(), 3)
    first = mixed().train_dataloader()
    first.sampler.set_epoch(3)
    seen = [(batch["id"], batch["unlabelled"]["id"]) for batch in islice(first, 2)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = mixed().train_dataloader()
    again.load_state_dict(state)
    rest = [(batch["id"], batch["unlabelled"]["id"]) for batch in again]
    assert seen + rest == whole and len(rest) == 3
    again.sampler.set_epoch(4)
    assert [(batch["id"], batch["unlabelled"]["id"]) for batch in again] == sides(mixed(), 4)
    with pytest.raises(ValueError, match=r"in the middle of an epoch .*unlabelled_batches was 2, is 6"):
        mixed(unlabelled_prompts=1).train_dataloader().load_state_dict(state)


def test_without_shuffling_every_epoch_has_the_same_pairs(mixed):
    data = mixed(unlabelled_prompts=1, loader=replace(LOADER, shuffle=False))
    assert sides(data, 0) == sides(data, 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same(mixed, workers):
    alone = sides(mixed(judged=8), 0)
    assert sides(mixed(judged=8, loader=replace(LOADER, num_workers=workers)), 0) == alone


def test_ranks_share_the_groups(mixed):
    data = mixed(judged=24, policy=12, unlabelled_prompts=2, loader=replace(LOADER, batch_size=2))
    first, second = (sides(data, 0, rank=(rank, 2)) for rank in range(2))
    assert len(first) == len(second) == 6
    for start in (0, 3):  # six batches of two groups: three for each rank
        mine, others = (
            [name for _, ids in each[start : start + 3] for name in ids] for each in (first, second)
        )
        assert not set(mine) & set(others) and len({*mine, *others}) == 12


def test_the_bound_on_tokens_holds_for_both(mixed):
    data = mixed(policy=10, loader=LoaderConfig(max_tokens=100))
    for batch in data.train_dataloader():
        for each in (batch, batch["unlabelled"]):
            assert each["input_ids"].numel() <= 100
    assert 1 < len(sides(data, 0)[0][1]) < 10


def test_layout_and_prompts_are_those_of_the_loader(mixed):
    loader = replace(LOADER, layout="separate", prompts=True)
    beside = next(iter(mixed(loader=loader).train_dataloader()))["unlabelled"]
    assert len(beside["input_ids"]) == 3 * len(beside["id"])
    assert len(beside["prompts"]["input_ids"]) == len(beside["id"])


def test_stored_features_serve_the_groups(mixed, tmp_path):
    data = mixed(setup=False)
    data.setup()
    writer = FeatureWriter(
        tmp_path / "store", backbone={}, text_format=data.text_format(), hidden_size=2, prompts=False
    )
    for split in data.splits:
        for row in data.table(split).rows():
            keys = response_keys(row).tolist()
            writer.add(keys, torch.tensor([[float(key % 97)] * 2 for key in keys]))
    writer.flush()
    stored = mixed(loader=replace(LOADER, features=str(tmp_path / "store")), unlabelled_prompts=6)
    beside = next(iter(stored.train_dataloader()))["unlabelled"]
    assert beside["features"].shape == (18, 2) and "input_ids" not in beside
    rows = {f"{row.id}": row for row in data.table("unlabelled").rows()}
    expected = [float(key % 97) for name in beside["id"] for key in response_keys(rows[name]).tolist()]
    assert beside["features"][:, 0].tolist() == expected


def test_users_are_divided_among_the_judged_alone(mixed):
    rows = [{**row, "user": f"u{i % 4}"} for i, row in enumerate(pairs(20))]
    loader = replace(LOADER, users=UserProtocol(unseen_share=0.25, show="unseen"))
    data = mixed(judged=rows, policy=[{**row, "user": "zoe"} for row in pairs(3)], loader=loader)
    assert "zoe" not in data.users
    assert all(len(others) == 3 for _, others in sides(data, 0))


# What is kept of the rows ------------------------------------------------------------------------------


def test_records_need_a_judgement_elsewhere(tmp_path):
    data = LocalDataModule(train=written(tmp_path / "policy.jsonl", groups(4)), text=TEXT)
    message = (
        r"nothing is left of the train split.*record without a judgement\. .*a mixture's `unlabelled` names"
    )
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    data = LocalDataModule(train=data.paths["train"], text=TEXT)
    data.needs_judgement = False
    data.setup("fit")
    assert data.splits == ("train",) and len(data.table("train")) == 4
    assert all(len(batch["comparisons"]) == 0 for batch in data.batches("train") if "comparisons" in batch)


def test_judgements_of_unlabelled_rows_are_counted_and_left_out(mixed):
    rows = [
        {"prompt": "a", "chosen": "one", "rejected": "two", "user": "ann", "margin": 2.0},
        {"prompt": "b", "responses": ["x", "y"], "scores": [1, 2], "comparisons": [[0, 1], [1, 0]]},
    ]
    data = mixed(policy=rows)
    report = data.reports["unlabelled"]
    assert report.dropped == {"judgement of records that are read without": 1 + 2 + 2}
    assert (report.records, report.responses, report.comparisons) == (2, 4, 0)
    assert data.users == [] and not {"score", "margin"} & next(iter(data.train_dataloader())).keys()


def test_rows_of_one_response_are_merged_by_prompt_whatever_it_saves(mixed):
    texts = ["a long answer that has no word in common with others", "nothing alike is said in this", "third"]
    rows = [
        {"prompt": prompt, "response": text}
        for prompt, several in (("q", [*texts, texts[0]]), ("other", texts[:2]))
        for text in several
    ]
    data = mixed(policy=rows)
    sizes = data.table("unlabelled").sizes[:, 0].tolist()
    assert sizes == [3, 2], "equal responses of nobody in particular are one"


def test_systems_tell_who_wrote_what(mixed, tmp_path):
    rows = [
        {"prompt": "q", "responses": ["base", answer], "systems": ["baseline", system]}
        for answer, system in (("one", "a"), ("two", "b"), ("base", "c"))
    ]
    data = mixed(policy=rows)
    beside = next(iter(data.train_dataloader()))["unlabelled"]
    systems = [data.names["system"][i] for i in beside["system_id"].tolist()]
    assert systems == ["baseline", "a", "b", "c"], "the baseline once; c wrote the same text"
    assert beside["response_prompt"].tolist() == [0, 0, 0, 0] and len(beside["response_key"]) == 4


def test_groups_in_which_nothing_differs_are_dropped_and_counted(mixed):
    rows = [
        {"id": "single", "prompt": "a", "response": "one"},
        {"id": "equal", "prompt": "b", "responses": ["same", "same"]},
        {"id": "kept", "prompt": "c", "responses": ["same", "other", "same"]},
    ]
    data = mixed(policy=rows)
    report = data.reports["unlabelled"]
    assert report.dropped == {"record of fewer than 2 different responses": 2}
    assert (report.records, report.responses) == (1, 3)
    assert [row.id for row in data.table("unlabelled").rows()] == ["policy/kept"]
    assert report.longest == int(data.table("unlabelled").sizes[0, [1, 3]].sum())
    with pytest.raises(
        ValueError, match=r"mixture policy: nothing is left of the unlabelled split.*fewer than 2 different"
    ):
        mixed(policy=rows[:2])


def test_duplicate_ids_and_equal_groups_together(mixed, tmp_path):
    rows = [*groups(3), groups(1)[0], {"id": "e", "prompt": "x", "responses": ["s", "s"]}]
    data = mixed(policy=groups(3), setup=False)
    part = LocalDataModule(train=written(tmp_path / "twice.jsonl", rows), on_invalid="skip")
    data = MixtureDataModule(
        sources={"judged": data.parts["judged"], "policy": part},
        unlabelled=["policy"],
        text=TEXT,
        loader=LOADER,
    )
    data.setup("fit")
    assert [row.id for row in data.table("unlabelled").rows()] == [f"policy/g{i}" for i in range(3)]
    assert data.reports["unlabelled"].records == 3


def test_it_is_part_of_what_decides_a_token_cache(mixed):
    data = mixed(policy=pairs(6))
    part = data.parts["policy"]
    folder, content = part.cache_folder(), part.content()
    assert content["needs_judgement"] is False and list(content["sources"]) == ["train"]
    part.needs_judgement = True
    assert part.cache_folder() != folder and "needs_judgement" not in part.content()


def test_nothing_of_it_is_held_out(mixed):
    assert len(mixed(policy=40).table("unlabelled")) == 40


def test_a_synthetic_crowd_without_judgements():
    data = MixtureDataModule(
        sources={
            "judged": SyntheticDataModule(num_train=8, num_validation=4),
            "policy": SyntheticDataModule(num_train=5, num_responses=3, seed=1),
        },
        unlabelled=("policy",),
        loader=LOADER,
    )
    data.setup("fit")
    assert len(data.table("unlabelled")) == 5 and not any(name.startswith("policy") for name in data.users)
    sizes = Counter(next(iter(data.train_dataloader()))["unlabelled"]["response_prompt"].tolist())
    assert set(sizes.values()) == {3}


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabelled": ["policy", "judged"]}, "unlabelled names all sources (policy, judged), so that there is no judgement"),
        ({"unlabelled": ["polcy"]}, "unlabelled names polcy, but sources are judged, policy: name those"),
        ({"unlabelled": ["policy", "policy"]}, "unlabelled names a source twice"),
        ({"weights": {"judged": 1, "policy": 1}}, "weights names policy, which unlabelled names as well"),
        ({"counts": {"judged": 1, "policy": 0}}, "leave them out of counts, and set how many come beside"),
        ({"unlabelled_prompts": 0}, "unlabelled_prompts must be finite and >= 1; got 0"),
        ({"unlabelled": [], "unlabelled_prompts": 2}, "unlabelled_prompts=2 needs unlabelled"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(mixed, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixed(setup=False, **settings)


def test_a_name_is_no_list(mixed):
    with pytest.raises(TypeError, match="unlabelled must be a list of sources, got 'policy'"):
        mixed(setup=False, unlabelled="policy")


def test_amounts_are_those_of_the_judged(mixed):
    assert len(sides(mixed(counts={"judged": 8}), 0)) == 2


def test_an_unlabelled_source_needs_a_training_split(mixed, tmp_path):
    data = mixed(setup=False)
    part = LocalDataModule(test=written(tmp_path / "test.jsonl", groups(3)))
    data = MixtureDataModule(
        sources={"judged": data.parts["judged"], "policy": part},
        unlabelled=["policy"],
        text=TEXT,
        loader=LOADER,
    )
    with pytest.raises(
        ValueError,
        match=r"sources\.policy has no training split, and nothing else.*it has test: name its rows",
    ):
        data.setup("fit")


def test_fewer_groups_than_ranks(mixed):
    data = mixed(policy=1)
    with pytest.raises(ValueError, match=r"mixture unlabelled: 1 record cannot be divided among 2 ranks"):
        sides(data, 0, rank=(0, 2))
