"""MixtureDataModule: amounts of an epoch, one source by itself, names, people, votes, side tables, stored features, errors."""

import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn

import pluralign
from pluralign.datamodules import (
    Comparison,
    CrowdConfig,
    FeatureStore,
    LoaderConfig,
    MixtureDataModule,
    PreferenceDataModule,
    PreferenceRecord,
    Response,
    TextConfig,
)
from pluralign.datamodules.batches import FeatureWriter, UserProtocol, prompt_key, response_keys
from pluralign.datamodules.joins import SideTable, batch_items
from pluralign.datamodules.mixture.amounts import Amounts
from pluralign.datamodules.records import SourceRow
from pluralign.train import main

TEXT = TextConfig(prompt_format="{text}|", response_format="{text}")
LOADER = LoaderConfig(batch_size=8)
MIXTURE = "general", "domain"


class Invented(PreferenceDataModule):
    """Prompts with as many responses as comparisons and one more, the first preferred to each other one."""

    name = "invented"

    def __init__(self, rows, **settings):
        """``rows``: of each split a list of (prompt, comparisons, columns of them)."""
        super().__init__(**settings)
        self.rows_of, self.sources = rows, tuple(rows)

    def load(self, source):
        for line, fields in enumerate(self.rows_of[source], 1):
            yield SourceRow(f"{source}.jsonl", line, fields)

    def settings(self):
        return {"rows": self.rows_of}

    def to_example(self, row):
        fields = row.fields
        number = fields["pairs"]
        users, votes = fields.get("users", [None] * number), fields.get("votes", [None] * (number + 1))
        return PreferenceRecord(
            id=fields["id"],
            prompt=f"{fields['id']} asks",
            responses=tuple(
                Response(f"{fields['id']} says {'well ' * i}", votes=votes[i]) for i in range(number + 1)
            ),
            comparisons=tuple(
                Comparison(0, i + 1, user=users[i], domain=fields.get("domain")) for i in range(number)
            ),
            source=fields.get("source"),
        )


def rows(number, pairs=1, first=0, **more):
    """Records of so many comparisons each; ids are numbers, columns what is given."""
    counts = [pairs] * number if isinstance(pairs, int) else pairs
    return [{"id": f"{first + i}", "pairs": count, **more} for i, count in enumerate(counts)]


def splits(train, evaluated=3, pairs=1, **more):
    return {
        "train": rows(train, pairs, **more),
        "validation": rows(evaluated, first=1000, **more),
        "test": rows(evaluated + 1, first=2000, **more),
    }


def mixture(general, domain, **settings):
    sources = {
        source: part if isinstance(part, PreferenceDataModule) else Invented(part)
        for source, part in zip(MIXTURE, (general, domain), strict=True)
    }
    return MixtureDataModule(sources=sources, **{"text": TEXT, "loader": LOADER, **settings})


def fitted(*args, **settings):
    data = mixture(*args, **settings)
    data.setup("fit")
    return data


def epoch(data, number=0):
    """Ids, and comparisons of each source, of an epoch."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    ids, comparisons = [], Counter()
    for batch in loader:
        ids += batch["id"]
        sources = batch["source_id"][batch["response_prompt"][batch["comparisons"][:, 0]]]
        comparisons.update(data.names["source"][i] for i in sources.tolist())
    return ids, dict(comparisons)


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first.nan_to_num(-7), second.nan_to_num(-7))
    return first == second


# Amounts -----------------------------------------------------------------------------------------------


def test_weights_are_comparisons_and_no_epoch_repeats_a_record():
    """Four comparisons in a record of the domain, one in a general one: a quarter as many comparisons are as many records."""
    data = fitted(splits(50), splits(10, pairs=4), weights={"general": 0.25, "domain": 1})
    seen = Counter()
    for number in range(5):
        ids, comparisons = epoch(data, number)
        assert comparisons == {"general": 10, "domain": 40} and len(set(ids)) == len(ids) == 20
        seen.update(name for name in ids if name.startswith("general/"))
    assert set(seen.values()) == {1} and len(seen) == 50, "five epochs of ten go through fifty"


def test_what_an_epoch_takes_is_said(caplog):
    with caplog.at_level("INFO"):
        fitted(splits(1000), splits(10, pairs=4), weights={"general": 0.25, "domain": 1})
    assert (
        "mixture: an epoch takes 10 of 1,000 comparisons of general, 40 of 40 comparisons of domain"
        in caplog.messages
    )


def test_weights_of_records():
    data = fitted(splits(50), splits(10, pairs=4), weights={"general": 0.5, "domain": 1}, unit="records")
    assert epoch(data)[1] == {"general": 5, "domain": 40}


def test_a_large_weight_makes_the_other_source_the_part():
    data = fitted(splits(12), splits(10, pairs=4), weights={"general": 3, "domain": 5})
    assert epoch(data)[1] == {"general": 12, "domain": 20}


def test_temperature():
    sizes = {"a": 900, "b": 100}
    assert Amounts(None, 1.0, None, "comparisons").per_epoch(sizes) == sizes
    assert Amounts(None, 2.0, None, "comparisons").per_epoch(sizes) == {"a": 300, "b": 100}
    # 900^(1/4) : 100^(1/4) = 5.4772 : 3.1623
    assert Amounts(None, 4.0, None, "comparisons").per_epoch(sizes) == {"a": 173, "b": 100}
    assert Amounts(None, 1e9, None, "comparisons").per_epoch(sizes) == {"a": 100, "b": 100}
    # Below 1 the larger source is favoured: 900^2 : 100^2 = 81 : 1, and of the larger one all is taken.
    assert Amounts(None, 0.5, None, "comparisons").per_epoch(sizes) == {"a": 900, "b": 11}
    assert epoch(fitted(splits(90), splits(10), temperature=2.0))[1] == {"general": 30, "domain": 10}


def test_counts():
    data = fitted(splits(50), splits(10, pairs=4), counts={"general": 7, "domain": 12})
    assert [epoch(data, number)[1] for number in range(3)] == [{"general": 7, "domain": 12}] * 3
    data = fitted(splits(50), splits(10, pairs=4), counts={"general": 7, "domain": 3}, unit="records")
    assert epoch(data)[1] == {"general": 7, "domain": 12}


def test_records_that_hold_different_numbers_of_comparisons():
    pairs = [1, 3, 2, 1, 4, 1, 1, 2, 5, 1]  # 21
    data = fitted(splits(10, pairs=pairs), splits(6), counts={"general": 7, "domain": 6})
    taken = [epoch(data, number) for number in range(6)]  # 42: twice around
    assert all(abs(comparisons["general"] - 7) < 5 for _, comparisons in taken)
    seen = Counter(name for ids, _ in taken for name in ids if name.startswith("general/"))
    assert set(seen.values()) == {2} and len(seen) == 10
    assert len({len(data.train_dataloader())}) == 1


def test_without_amounts_all_sources_are_whole():
    ids, comparisons = epoch(fitted(splits(50), splits(10, pairs=4)))
    assert comparisons == {"general": 50, "domain": 40} and len(set(ids)) == 60


def test_sources_are_mixed_within_batches():
    data = fitted(splits(40), splits(40))
    kinds = [len(set(batch["source_id"].tolist())) for batch in data.train_dataloader()]
    assert sum(kind == 2 for kind in kinds) >= 8 and len(kinds) == 10


@pytest.mark.parametrize(
    "amounts", [{"weights": {"general": 0, "domain": 1}}, {"counts": {"general": 0, "domain": 40}}]
)
def test_nothing_is_trained_on_of_a_source_of_weight_0(amounts):
    data = fitted(splits(50, users=["ann"]), splits(10, pairs=4, users=["bob"] * 4), **amounts)
    assert epoch(data)[1] == {"domain": 40}
    assert data.loader_names("validation") == MIXTURE and len(data.val_dataloader()) == 2
    assert {name for batch in data.batches("train") for name in batch["id"]} == set(epoch(data)[0])
    assert (data.users, data.training_users, data.num_training_users) == (["bob", "ann"], ["bob"], 1)
    assert data.judgements_of_users() == {"bob": 40}


def test_a_source_without_a_training_split_needs_a_weight_of_0():
    only = {name: part for name, part in splits(5).items() if name == "test"}
    for amounts in ({}, {"weights": {"general": 1, "domain": 1}}, {"temperature": 1.0}):
        with pytest.raises(
            ValueError, match=r"sources\.general has no training split; it has test: give it a weight"
        ):
            mixture(Invented(only), splits(5), **amounts).setup("fit")
    data = fitted(Invented(only), splits(5), weights={"general": 0, "domain": 1})
    assert data.loader_names("validation") == ("domain",) and len(data.val_dataloader()) == 1
    data.setup("test")
    assert data.loader_names("test") == MIXTURE and len(data.test_dataloader()) == 2


@pytest.mark.parametrize("setting", [{"weights": {"a": 1e-6, "b": 1}}, {"temperature": 1e-3}])
def test_a_share_of_less_than_one_is_no_amount(setting):
    amounts = Amounts(**{"weights": None, "temperature": None, "counts": None, "unit": "records", **setting})
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name}(\.a)? leaves less than one of a's 10 records to an epoch"):
        amounts.per_epoch({"a": 10, "b": 100})


# One source, several processes, resuming -----------------------------------------------------------------


def test_a_single_source_gives_the_batches_that_it_gives_alone():
    alone = Invented(splits(40, pairs=2), text=TEXT, loader=LOADER)
    mixed = MixtureDataModule(sources={"only": Invented(splits(40, pairs=2))}, text=TEXT, loader=LOADER)
    for data in (alone, mixed):
        data.setup("fit")
    (validation,) = mixed.val_dataloader()
    for loaders in (
        (alone.train_dataloader(), mixed.train_dataloader()),
        (alone.val_dataloader(), validation),
    ):
        for first, second in zip(*loaders, strict=True):
            assert second.pop("source_id").tolist() == [0] * len(first["id"])
            assert [f"only/{name}" for name in first["id"]] == second["id"]
            first["id"] = second["id"]
            assert first.keys() == second.keys()
            assert all(equal(first[key], second[key]) for key in first)


def test_every_source_keeps_the_cache_that_it_has_alone(tmp_path):
    alone = [Invented(part, text=TEXT) for part in (splits(5), splits(6))]
    for data in alone:
        data.prepare_data()
    data = mixture(splits(5), splits(6))
    assert list(data.cache_folders().values()) == [each.cache_folder() for each in alone]
    before = sorted((tmp_path / "cache").iterdir())
    data.setup("fit")
    assert sorted((tmp_path / "cache").iterdir()) == before
    with pytest.raises(TypeError, match=r"cache_folders\(\) has those of its sources"):
        data.cache_folder()


def test_ranks_share_an_epoch():
    data = fitted(splits(50), splits(11, pairs=4), weights={"general": 0.5, "domain": 1})
    ranks = []
    for rank in range(2):
        data._rank = lambda rank=rank: (rank, 2)
        ranks.append((epoch(data, 3)[0], len(data.train_dataloader())))
    (first, length), (second, other) = ranks
    assert length == other and not set(first) & set(second)
    assert sum(name.startswith("general/") for name in first + second) == 22 and len(first + second) == 33


def test_an_epoch_goes_on_in_the_middle():
    def loader():
        made = fitted(
            splits(50), splits(20, pairs=4), weights={"general": 0.5, "domain": 1}
        ).train_dataloader()
        made.sampler.set_epoch(2)
        return made

    whole = [batch["id"] for batch in loader()]
    first = loader()
    seen = [batch["id"] for batch in islice(first, 3)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = loader()
    again.load_state_dict(state)
    assert len(again) == len(whole) and seen + [batch["id"] for batch in again] == whole


# Names -------------------------------------------------------------------------------------------------


def test_source_is_a_column_in_the_order_of_the_sources():
    data = fitted(
        splits(3, source="web"), splits(3)
    )  # of one source of its own, which the mixture's name stands for
    assert data.names["source"] == list(MIXTURE)
    for split in ("train", "validation"):
        for batch in data.batches(split):
            assert [data.names["source"][i] for i in batch["source_id"]] == [
                name.split("/")[0] for name in batch["id"]
            ]


def test_sources_of_a_source_would_be_hidden():
    several = {
        "train": [*rows(3, source="web"), *rows(3, first=9, source="books")],
        "validation": rows(2, first=50),
    }
    with pytest.raises(
        ValueError, match=r"records of general name 2 sources of their own \(books, web, \.\.\.\)"
    ):
        fitted(Invented(several), splits(3))


def test_domains_are_those_of_all_sources():
    data = fitted(splits(3, domain="law"), splits(3, domain="art"), weights={"general": 0, "domain": 1})
    assert data.domains == ["art", "law"], "what is trained on comes first"
    named = {data.domains[i] for batch in data.val_dataloader()[0] for i in batch["domain_id"].tolist()}
    assert named == {"law"}


def test_a_name_of_a_user_in_two_sources():
    parts = splits(6, users=["ann"]), splits(4, users=["ann"], pairs=1)
    with pytest.raises(
        ValueError, match=r"1 users of several sources have the same name \(first: ann\): set shared_users"
    ):
        fitted(*parts)
    same, apart = (fitted(*parts, shared_users=setting) for setting in ("same", "apart"))
    assert same.users == ["ann"] and same.judgements_of_users() == {"ann": 10}
    assert apart.users == ["general/ann", "domain/ann"]
    assert apart.judgements_of_users() == {"general/ann": 6, "domain/ann": 4}
    for batch in apart.batches("train"):
        assert torch.equal(batch["user_id"], batch["source_id"])


def crowd_of(names, first=0):
    return {
        split: [
            {"id": f"{start + first + i}", "pairs": 1, "users": [name]} for i, name in enumerate(names * 2)
        ]
        for split, start in (("train", 0), ("validation", 1000), ("test", 2000))
    }


@pytest.mark.parametrize("shared_users", ["refuse", "same", "apart"])
def test_unseen_users_are_those_of_each_source_alone(shared_users):
    names = [f"user{i}" for i in range(8)], [f"judge{i}" for i in range(12)]
    loader = replace(LOADER, users=UserProtocol(unseen_share=0.25))
    alone = []
    for each in names:
        data = Invented(crowd_of(each), text=TEXT, loader=loader)
        data.setup("fit")
        alone.append(data.divided_users())
    data = fitted(*(Invented(crowd_of(each)) for each in names), loader=loader, shared_users=shared_users)
    seen, unseen = data.divided_users()
    assert len(unseen) == 5 and len(seen) == 15
    if shared_users != "same":  # where all users are one crowd, a quarter of all of them is drawn

        def called(group):
            apart = shared_users == "apart"
            return [
                f"{source}/{user}" if apart else user
                for source, of in zip(MIXTURE, alone, strict=True)
                for user in of[group]
            ]

        assert (seen, unseen) == (called(0), called(1))
    assert data.training_users == seen
    assert epoch(data)[1] == {"general": 12, "domain": 18} or shared_users == "same"
    adapted = {
        data.users[i] for batch in data.batches("train", users="unseen") for i in batch["user_id"].tolist()
    }
    assert adapted == set(unseen)


def test_users_named_as_unseen():
    users = [f"user{i}" for i in range(4)], [f"judge{i}" for i in range(4)]

    def divided(*unseen):
        loader = replace(LOADER, users=UserProtocol(unseen=unseen))
        return fitted(*(Invented(crowd_of(each)) for each in users), loader=loader).divided_users()[1]

    assert divided("judge1", "user2") == ["user2", "judge1"]
    with pytest.raises(ValueError, match=r"loader.users.unseen names \['nobody'\], who have no judgements"):
        divided("nobody", "user2")
    with pytest.raises(
        ValueError, match=r"sources\.general: loader.users.unseen_share: 0\.01 of 4 users is less than half"
    ):
        fitted(
            *(Invented(crowd_of(each)) for each in users),
            loader=replace(LOADER, users=UserProtocol(unseen_share=0.01)),
        )


def test_amounts_count_the_judgements_that_are_shown():
    users = [f"user{i}" for i in range(8)], [f"judge{i}" for i in range(8)]
    loader = replace(LOADER, users=UserProtocol(unseen=("user1", "judge2", "judge3", "judge4")))
    data = fitted(
        *(Invented(crowd_of(each)) for each in users), loader=loader, weights={"general": 0.5, "domain": 1}
    )
    assert epoch(data)[1] == {"general": 5, "domain": 10}


def test_groups_of_users():
    class Grouped(Invented):
        group = ""

        def user_groups(self):
            return {"ann": self.group}

    first, second = Grouped(splits(3, users=["ann"])), Grouped(splits(3, users=["ann"]))
    first.group, second.group = "old", "young"
    data = fitted(first, second, shared_users="apart")
    assert data.user_groups() == {"general/ann": "old", "domain/ann": "young"}
    data = fitted(Grouped(splits(3, users=["ann"])), Grouped(splits(3, users=["ann"])), shared_users="same")
    assert data.user_groups() == {"ann": ""}
    data.parts["domain"].group = "young"
    with pytest.raises(ValueError, match="user 'ann' is of group '' in one source and of 'young' in domain"):
        data.user_groups()


def test_texts_and_records_as_given():
    data = mixture(splits(3), {**splits(3), "predict": rows(2, first=3000)})
    data.setup()
    assert data.splits == ("train", "validation", "test", "predict")
    wanted = [("domain/1001", 1), ("general/1001", 0), ("general/1", 0), ("1001", 0)]
    assert data.texts("validation", wanted) == [
        ("1001 asks|", "1001 says well"),
        ("1001 asks|", "1001 says"),
        ("", ""),
        ("", ""),
    ]
    assert [record.id for record in data.given("validation")] == [
        f"{source}/{1000 + i}" for source in MIXTURE for i in range(3)
    ]
    (batch,) = data.predict_dataloader()
    assert (
        sorted(batch["id"])
        == [record.id for record in data.given("predict")]
        == ["domain/3000", "domain/3001"]
    )
    assert data.loader_names("predict") == data.loader_names("train") == ()
    assert data.extents.keys() == set(data.splits)


# Votes -------------------------------------------------------------------------------------------------


def voted(votes, **more):
    return {name: [{**row, "votes": votes} for row in part] for name, part in splits(4, **more).items()}


def test_votes_of_different_categories():
    with pytest.raises(
        ValueError, match="votes of general have 3 categories, those of domain 2: sources whose votes"
    ):
        fitted(Invented(voted([(1, 2, 0)] * 2)), Invented(voted([(1, 2)] * 2)))


def test_the_mean_prior_is_each_sources_own():
    loader = replace(LOADER, crowd=CrowdConfig(prior="mean", prior_strength=4.0))
    parts = voted([(3, 1), (0, 0)]), voted([(0, 2), (0, 0)])
    data = fitted(*map(Invented, parts), loader=loader)
    data.check_judged("votes")
    (general,), (domain,) = data.val_dataloader()
    unvoted = general["votes"].sum(1) == 0
    torch.testing.assert_close(general["target"][unvoted], torch.tensor([[0.75, 0.25]] * 3))
    sure = torch.tensor([[0.001, 1.0]] * 3) / 1.001  # no label of a prior is less likely than a thousandth
    torch.testing.assert_close(domain["target"][domain["votes"].sum(1) == 0], sure)
    assert data.mean_votes("votes") == pytest.approx([0.375, 0.625])
    copied = pickle.loads(pickle.dumps(data.collator()))(data.rows("validation")[[0, 4]])
    assert equal(copied["target"], data.collator()(data.rows("validation")[[0, 4]])["target"])


def test_a_file_of_priors_names_records_as_the_sources_do(tmp_path):
    path, loader = (
        tmp_path / "priors.jsonl",
        replace(LOADER, crowd=CrowdConfig(prior=str(tmp_path / "priors.jsonl"))),
    )
    first = voted([(1, 1), (0, 0)])
    second = {name: [{**row, "id": f"x{row['id']}"} for row in part] for name, part in first.items()}
    numbers = [row["id"] for part in first.values() for row in part]
    lines = [{"id": name, "prior": [0.5, 0.5]} for name in numbers]
    lines += [{"id": f"x{name}", "prior": [0.25, 0.75]} for name in numbers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = fitted(Invented(first), Invented(second), loader=loader)
    data.check_judged("votes")
    for batches, prior in zip(data.val_dataloader(), ([0.5, 0.5], [0.25, 0.75]), strict=True):
        for batch in batches:
            unvoted = batch["votes"].sum(1) == 0
            assert batch["target"][unvoted].tolist() == [prior] * 3
    with pytest.raises(
        ValueError, match=r"has a prior of record '0', which general and domain both have, and 10 more"
    ):
        fitted(Invented(first), Invented(first), loader=loader).collator()


def test_what_nobody_voted_on_is_named_with_its_source():
    data = fitted(Invented(voted([(1, 1), (1, 1)])), Invented(voted([(1, 1), (0, 0)])))
    with pytest.raises(
        ValueError, match="mixture domain train: item 1 of record '0' has no votes and no prior"
    ):
        data.check_judged("votes")
    with pytest.raises(ValueError, match="mixture domain has no votes"):
        fitted(Invented(voted([(1, 1)] * 2)), splits(3)).check_judged("votes")


# Side tables and stored features --------------------------------------------------------------------------


class Other(Invented):
    name = "other"


def test_a_side_table_of_one_source_keeps_fitting(tmp_path):
    alone = Invented(splits(5, pairs=2), text=TEXT, loader=LOADER)
    alone.setup("fit")
    keys, places = zip(*(batch_items(batch, "comparison") for batch in alone.batches("train")), strict=True)
    keys, places = torch.cat(keys).numpy(), torch.cat(places).numpy()
    SideTable("strength", keys, places, np.arange(10, dtype=np.float32)).save(tmp_path / "strength.parquet")
    loader = replace(LOADER, joins=(str(tmp_path / "strength.parquet"),))
    data = fitted(splits(5, pairs=2), Other(splits(5, pairs=2)), loader=loader)
    strengths = {"general": [], "domain": []}
    for batch in data.batches("train"):
        of = batch["source_id"][batch["response_prompt"][batch["comparisons"][:, 0]]]
        for i, source in enumerate(MIXTURE):
            strengths[source] += batch["strength"][of == i].tolist()
    assert sorted(strengths["general"]) == list(range(10)) and np.isnan(strengths["domain"]).all()
    with pytest.raises(
        ValueError, match=r"strength.parquet: record_key -?\d+ is of records of both general and domain"
    ):
        fitted(splits(5, pairs=2), Invented(splits(7)), loader=loader)


def test_one_feature_store_serves_all_sources(tmp_path):
    data = mixture(splits(6), Other(splits(5, pairs=2)))
    data.setup()
    writer = FeatureWriter(
        tmp_path / "store", backbone={}, text_format=data.text_format(), hidden_size=3, prompts=True
    )
    for split in data.splits:
        for row in data.table(split).rows():
            keys = [*response_keys(row).tolist(), prompt_key(row)]
            writer.add(keys, torch.tensor([[float(key % 97)] * 3 for key in keys]))
    writer.flush()
    stored = fitted(
        splits(6),
        Other(splits(5, pairs=2)),
        loader=replace(LOADER, features=str(tmp_path / "store")),
        weights={"general": 0.5, "domain": 1},
    )
    assert isinstance(stored.features, FeatureStore)
    ids, comparisons = epoch(stored)
    assert comparisons == {"general": 5, "domain": 10} and len(ids) == 10
    (batch,) = stored.val_dataloader()[1]
    assert batch["features"].shape == (6, 3) and batch["prompt_features"].shape == (3, 3)
    places = [batch["id"].index(f"domain/{1000 + i}") for i in range(3)]
    values = batch["prompt_features"][places, 0].tolist()
    tables = data.table("validation").parts["domain"].table
    assert values == [float(prompt_key(row) % 97) for row in tables.rows()]


def test_records_are_given_in_the_order_asked_for():
    data = mixture(splits(5), splits(4))
    data.setup()
    table = data.table("train")
    assert [row.id for row in table[[7, 0, 4, 5]]] == ["domain/2", "general/0", "general/4", "domain/0"]
    assert [row.id for row in table.rows()] == table.column("id").to_pylist()
    assert [row.columns["source"] for row in table.without_tokens().rows()] == table.column(
        "source"
    ).to_pylist()


def test_rows_of_equal_prompts_keep_naming_their_own(tmp_path):
    from pluralign.datamodules import LocalDataModule

    lines = [
        {"id": f"{i}", "prompt": "why", "chosen": f"good {i}", "rejected": "bad", "user": "ann"}
        for i in range(3)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in [*lines, *({**x, "id": f"v{x['id']}", "prompt": "how"} for x in lines)]
        )
    )
    data = MixtureDataModule(
        sources={"mine": LocalDataModule(train=str(path))}, shared_users="apart", text=TEXT, loader=LOADER
    )
    data.setup()
    (row,) = data.table("train")[[0]]
    assert (
        row.origins.ids == [f"mine/{name.removeprefix('mine/')}" for name in row.origins.ids]
        and len(row.origins.ids) == 3
    )
    assert data.table("train").column("merged_id").to_pylist()[0] == row.origins.ids
    assert data.table("train").column("user").to_pylist()[0] == ["mine/ann"] * 3


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"general": 1, "domain": 1}, "temperature": 2.0}, "give one of weights, temperature and counts, not weights and temperature"),
        ({"temperature": 1.0, "counts": {"general": 1, "domain": 1}}, "not temperature and counts"),
        ({"temperature": 0.0}, "temperature must be finite and > 0; got 0.0"),
        ({"temperature": float("inf")}, "temperature must be finite"),
        ({"weights": {"general": 1, "domian": 1}}, "weights names domian, but sources are general, domain"),
        ({"counts": {"general": 1}}, "counts has nothing for domain: give a number, 0 for validation"),
        ({"weights": {"general": -1, "domain": 1}}, "weights.general must be finite and >= 0; got -1"),
        ({"weights": {"general": float("nan"), "domain": 1}}, "weights.general must be finite"),
        ({"weights": {"general": 0, "domain": 0}}, "weights are all 0, so that there is nothing to train on"),
        ({"unit": "tokens"}, "unit must be one of comparisons, records; got 'tokens'"),
        ({"shared_users": "maybe"}, "shared_users must be one of refuse, same, apart; got 'maybe'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(splits(3), splits(3), **settings)


@pytest.mark.parametrize("name", ["", "a/b", "test", " a"])
def test_names_that_sources_cannot_have(name):
    with pytest.raises(
        ValueError, match=f"a source cannot be called {name!r}: ids and metrics are named by it"
    ):
        MixtureDataModule(sources={name: Invented(splits(3))})


def test_sources_that_cannot_be_mixed():
    with pytest.raises(ValueError, match="sources is empty: name at least one data module"):
        MixtureDataModule(sources={})
    with pytest.raises(TypeError, match=r"sources\.a must be a PreferenceDataModule, got a dict"):
        MixtureDataModule(sources={"a": {}})
    with pytest.raises(TypeError, match=r"sources\.a is a mixture itself: name its sources here instead"):
        MixtureDataModule(sources={"a": mixture(splits(3), splits(3))})
    pictures = pluralign.PickAPicDataModule(train="nowhere.parquet")
    with pytest.raises(ValueError, match=r"sources\.a: PickAPicDataModule brings stored vectors of its own"):
        MixtureDataModule(sources={"a": pictures})


def test_settings_of_all_are_not_those_of_one():
    own = TextConfig(max_length=99)
    with pytest.raises(
        ValueError,
        match=r"sources\.general sets text for itself, .* \(one says max_length=99, the other max_length=None\)",
    ):
        MixtureDataModule(sources={"general": Invented(splits(3), text=own)})
    with pytest.raises(ValueError, match=r"sets merged_tokens for itself.*\(one says 0, the other 4096\)"):
        MixtureDataModule(sources={"general": Invented(splits(3), merged_tokens=0)})
    part = Invented(splits(3), text=own)  # the same as the mixture's is no contradiction
    assert (
        MixtureDataModule(sources={"general": part}, text=own, cache_dir="here").parts["general"].cache_dir
        == "here"
    )


def test_a_source_with_less_than_its_count_or_nothing(monkeypatch):
    with pytest.raises(ValueError, match=r"counts\.general=4 comparisons, but its training split has 3"):
        fitted(splits(3), splits(3), counts={"general": 4, "domain": 3})
    unjudged = {
        name: [{**row, "pairs": 0, "votes": [(1, 1)]} for row in part] for name, part in splits(3).items()
    }
    with pytest.raises(
        ValueError,
        match=r"sources\.domain is empty: no comparisons to train on are left of it.*unit to records",
    ):
        fitted(splits(3), unjudged)
    assert len(epoch(fitted(splits(3), unjudged, unit="records"))[0]) == 6
    with pytest.raises(ValueError, match="mixture domain: nothing is left of the train split"):
        fitted(splits(3), {**splits(3), "train": []})


def test_what_a_mixture_does_not_have():
    data = mixture(splits(3), splits(3))
    for read in (data.load, data.to_example):
        with pytest.raises(TypeError, match="a mixture has no rows of its own"):
            read("train")
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        data.divided_users()
    data.setup("fit")
    with pytest.raises(
        ValueError, match="MixtureDataModule has no predict split; it has train, validation, test"
    ):
        data.predict_dataloader()


# The command line ----------------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = {"model_type": "llama", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32}
    sizes = {"num_train": 24, "num_validation": 8, "num_test": 4, "num_predict": 2}
    content = {
        "model": {
            "class_path": "BradleyTerryRM",
            "init_args": {"backbone": {"config": {**backbone, "num_hidden_layers": 1, "num_attention_heads": 2}}},
        },
        "data": {
            "class_path": "MixtureDataModule",
            "init_args": {
                "sources": {
                    source: {"class_path": "SyntheticDataModule", "init_args": {**sizes, "seed": seed}}
                    for seed, source in enumerate(MIXTURE)
                },
                "weights": {"general": 0.5, "domain": 1},
                "shared_users": "same",
                "loader": {"batch_size": 4},
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 6, "save_top_k": -1}}],
        },
    }  # fmt: skip
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ["--config", "conf.yaml"]


def test_a_run_on_a_mixture_logs_each_source_and_goes_on_in_the_middle(conf):
    main(["fit", *conf])
    logged = next(Path("runs").rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {f"val/{name}{of}" for name in ("accuracy", "loss") for of in ("", "/general", "/domain")} <= set(
        logged
    )
    middle, end = (next(Path("runs").rglob(f"*step={step}.ckpt")) for step in (12, 18))
    states = torch.load(middle, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert (states[0]["epoch"], states[0]["position"]) == (1, 3)
    whole = torch.load(end, weights_only=True)["state_dict"]

    main(["fit", *conf, "--ckpt_path", str(middle)])
    (resumed,) = (path for path in Path("runs").rglob("*step=18.ckpt") if path != end)
    for name, value in torch.load(resumed, weights_only=True)["state_dict"].items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.slow
def test_every_verb_reads_a_mixture(conf, capsys):
    main(["fit", *conf, "--trainer.max_steps=6"])
    checkpoint = str(next(Path("runs").rglob("*step=6.ckpt")))
    main(["test", *conf, "--ckpt_path", checkpoint])
    shown = capsys.readouterr().out
    assert "test/accuracy" in shown and "test/loss/domain" in shown
    writer = {"class_path": "RewardWriter", "init_args": {"path": "rewards.jsonl"}}
    main(["predict", *conf, "--ckpt_path", checkpoint, f"--trainer.callbacks+={json.dumps(writer)}"])
    lines = [json.loads(line) for line in Path("rewards.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {f"{source}/predict:{i}" for source in MIXTURE for i in (1, 2)}
    main(["data", "inspect", *conf])
    shown = capsys.readouterr().out
    assert shown.count("token cache  ") == 2 and "general/train:1" in shown


def test_a_run_goes_on_with_the_same_sources_and_amounts_alone():
    def resumed(data, state):
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
        data.load_state_dict(state)

    parts = splits(8), splits(4)
    state = json.loads(json.dumps(fitted(*parts, temperature=2.0).state_dict()))
    resumed(fitted(*parts, temperature=2.0), state)
    for other, message in (
        (fitted(*parts, temperature=3.0), "amounts.temperature was 2.0, is 3.0"),
        (fitted(splits(9), parts[1], temperature=2.0), "general.settings.rows.train"),
        (fitted(*parts[::-1], temperature=2.0), "domain.settings.rows"),
    ):
        with pytest.raises(
            ValueError, match=f"a run cannot go on with other data than it was trained with: {message}"
        ):
            resumed(other, state)
    sources = {source: Invented(part) for source, part in zip(MIXTURE[::-1], parts[::-1], strict=True)}
    turned = MixtureDataModule(sources=sources, temperature=2.0, text=TEXT, loader=LOADER)
    turned.setup("fit")
    with pytest.raises(ValueError, match=r"order was \['general', 'domain'\], is \['domain', 'general'\]"):
        resumed(turned, state)
