"""Treated batches: the training split's alone, from strengths of any kind, under every view of the data."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from pluralign.datamodules import FeatureStore, LoaderConfig, LocalDataModule, MixtureDataModule
from pluralign.datamodules.batches import FeatureWriter, UserProtocol, response_keys
from pluralign.datamodules.joins import SideTable, batch_items
from pluralign.datamodules.treatments import TreatedView

FLIP = [{"high": 0.25, "label": "flip", "margin": 1.0}]


def labels(batches):
    """``{(record id, comparison): (response preferred, the other one, strength, margin)}``."""
    out = {}
    for batch in batches:
        names = [batch["id"][row] for row in batch["response_prompt"].tolist()]
        places = batch["response_index"].tolist()
        margins = batch["margin"].tolist() if "margin" in batch else [0.0] * len(batch["comparisons"])
        for (first, second), index, *numbers in zip(
            batch["comparisons"].tolist(),
            batch["comparison_index"].tolist(),
            batch["strength"].tolist(),
            margins,
            strict=True,
        ):
            assert names[first] == names[second]
            out[names[first], index] = (places[first], places[second], *(round(n, 4) for n in numbers))
    return out


def held_out(records):
    """The same under other prompts."""
    return [{**record, "prompt": f"held out {record['prompt']}"} for record in records]


@pytest.fixture
def eight(pair):
    """Strengths -0.3 to 0.4 in an order of their own."""
    return [pair(i, round((i * 5 % 8) / 10 - 0.3, 1)) for i in range(8)]


def test_labels_of_the_training_split_alone_are_treated(build, eight):
    bare = build(eight, validation=held_out(eight))
    bare.setup("fit")
    tokens = bare.cache_folder() / "train.arrow"
    before = tokens.stat().st_mtime_ns
    data = build(eight, FLIP, validation=held_out(eight))
    data.setup("fit")
    assert data.cache_folder() == bare.cache_folder() and tokens.stat().st_mtime_ns == before
    strengths = {(f"r{i}", 0): round((i * 5 % 8) / 10 - 0.3, 1) for i in range(8)}
    expected = {
        name: (1, 0, -strength, -strength) if strength < -0.15 else (0, 1, strength, 0.0)
        for name, strength in strengths.items()
    }
    assert labels(data.train_dataloader()) == expected
    assert sum(first for first, *_ in expected.values()) == 2
    untreated = {name: (0, 1, strength, 0.0) for name, strength in strengths.items()}
    assert labels(data.val_dataloader()) == labels(bare.train_dataloader()) == untreated
    assert labels(data.batches("train")) == untreated, "what votes, embeds or adapts reads labels as they are"


def test_dropped_comparisons_are_not_read(build, pair):
    several = [
        {
            "id": f"m{i}",
            "prompt": f"several {i}",
            "responses": ["a", "b", "c"],
            "comparisons": [
                {"chosen": 0, "rejected": 1, "strength": 0.1 * i},
                {"chosen": 2, "rejected": 1, "strength": 5.0, "weight": 7 + i},
            ],
        }
        for i in range(3)
    ]
    rated = [{"id": "rated", "prompt": "alone", "responses": ["x", "y"], "scores": [1, 2]}]
    records = several + [pair(i, i / 10) for i in range(10)] + rated
    rules = [{"high": 1.0, "label": "drop"}]
    data = build(records, rules, by="value", loader={"max_tokens": None, "batch_size": 1})
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 4, "three of which one comparison is left, and one that never had any"
    batches = list(loader)
    assert sorted(batch["id"][0] for batch in batches) == ["m0", "m1", "m2", "rated"]
    assert labels(batches) == {(f"m{i}", 1): (2, 1, 5.0, 0.0) for i in range(3)}
    assert sorted(weight for batch in batches for weight in batch["weight"].tolist()) == [7, 8, 9]
    report = data.decisions.report
    assert (report.comparisons, report.records, report.dropped_records) == (16, 14, 10)
    assert report.rules[0].comparisons == 13


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_and_pickles(build, eight, num_workers):
    data = build(eight, FLIP, loader={"num_workers": num_workers})
    data.setup("fit")
    plain = build(eight, FLIP)
    plain.setup("fit")
    assert labels(data.train_dataloader()) == labels(plain.train_dataloader())
    view, collate = pickle.loads(pickle.dumps((data.rows("train"), data.collator(treated=True))))
    assert isinstance(view, TreatedView)
    assert labels([collate(view[list(range(8))])]) == labels(data.train_dataloader())


def test_side_tables_of_strengths_and_margins(build, pair, tmp_path):
    plain = build([pair(i) for i in range(8)])
    plain.setup("fit")
    keys, places = plain.table("train").named_items("comparison")
    SideTable("strength", keys, places, np.arange(8) / 2 - 2).save(tmp_path / "strength.parquet")
    joins = {"joins": (str(tmp_path / "strength.parquet"),)}
    data = build([pair(i) for i in range(8)], FLIP, loader=joins)
    data.setup("fit")
    found = labels(data.train_dataloader())
    assert found["r0", 0] == (1, 0, 2.0, 2.0) and found["r1", 0] == (1, 0, 1.5, 1.5)
    assert found["r7", 0] == (0, 1, 1.5, 0.0)
    assert data.decisions.report.source == str(tmp_path / "strength.parquet")
    SideTable("margin", keys, places, np.full(8, 0.25)).save(tmp_path / "margin.parquet")
    joins = {"joins": (*joins["joins"], str(tmp_path / "margin.parquet"))}
    with pytest.raises(
        ValueError, match=r"rules of loader\.treatments give margins, and .*margin\.parquet have margins"
    ):
        build([pair(i) for i in range(8)], FLIP, loader=joins).setup("fit")
    data = build([pair(i) for i in range(8)], FLIP, loader=joins, margins="add")
    data.setup("fit")
    found = labels(data.train_dataloader())
    assert found["r0", 0] == (1, 0, 2.0, 1.75) and found["r7", 0] == (0, 1, 1.5, 0.25)


def test_margins_of_the_data_are_in_the_way(build, pair):
    records = [pair(i, i / 10, margin=1.0) for i in range(4)]
    with pytest.raises(
        ValueError, match=r"and the data have margins already: set loader\.treatments\.margins"
    ):
        build(records, FLIP).setup("fit")
    data = build(records, FLIP, margins="replace")
    data.setup("fit")
    assert labels(data.train_dataloader())["r3", 0][3] == 1.0
    build(records, [{"high": 0.25, "label": "flip"}]).setup("fit")  # none of its own


# Votes ---------------------------------------------------------------------------------------------------


def voted(build, cast, records, votes, folder, rules=FLIP, **settings):
    """A data module of records that is treated by votes on them."""
    plain = build(records)
    plain.setup("fit")
    cast(plain, folder, votes)
    return build(records, rules, votes=str(folder), **settings)


def test_votes_go_before_the_strengths_of_the_data(build, cast, pair, tmp_path):
    """Four scores of chosen and rejected: a mean of 0.55, a deviation of 0.6946222 (divisor M)."""
    votes = [[0.8, 0.3, -0.4, 1.5], [-1.0, -2.0, -3.0, -4.0], [2.0] * 4, [1.0] * 4]
    data = voted(build, cast, [pair(i, 9.0) for i in range(4)], votes, tmp_path / "votes")
    data.setup("fit")
    found = labels(data.train_dataloader())
    assert found["r0", 0] == (0, 1, 0.55, 0.0) and found["r1", 0] == (1, 0, 2.5, 2.5)
    report = data.decisions.report
    assert report.uncovered.std == pytest.approx(0.6946222 / 3, rel=1e-6)
    assert report.rules[0].std == pytest.approx(np.std([1, 2, 3, 4])) and report.source == str(
        tmp_path / "votes"
    )


def test_votes_on_merged_rows(build, cast, tmp_path):
    records = [
        {
            "id": f"r{i}",
            "prompt": "the same" if i % 2 else f"p{i}",
            "chosen": f"good {i}",
            "rejected": f"bad {i % 3}",
        }
        for i in range(12)
    ]
    strengths = np.linspace(-1, 1, 12)
    plain = build(records)
    plain.setup("fit")
    assert len(plain.table("train")) == 7
    keys, _ = plain.table("train").named_items("comparison")
    of = {}
    for batch in plain.batches("train"):
        pairs = zip(*batch_items(batch, "comparison"), batch["comparisons"].tolist(), strict=True)
        texts = zip(batch["response_prompt"].tolist(), batch["response_index"].tolist(), strict=True)
        names = [(batch["id"][row], place) for row, place in texts]
        for key, place, (first, _) in pairs:
            (said,) = plain.texts("train", [names[first]])
            of[int(key), int(place)] = int(said[1].removeprefix("good "))
    votes = [[strengths[of[key, 0]]] * 3 for key in keys.tolist()]
    cast(plain, tmp_path / "votes", votes)
    data = build(records, FLIP, votes=str(tmp_path / "votes"))
    data.setup("fit")
    flipped = []
    for batch in data.train_dataloader():
        for key, first, strength in zip(
            batch["comparison_key"].tolist(),
            batch["comparisons"][:, 0].tolist(),
            batch["strength"],
            strict=True,
        ):
            name = batch["id"][batch["response_prompt"][first]], int(batch["response_index"][first])
            said = data.texts("train", [name])[0][1]
            if said.startswith("bad"):
                flipped.append(of[key, 0])
            expected = strengths[of[key, 0]] * (-1 if said.startswith("bad") else 1)
            assert float(strength) == pytest.approx(expected, abs=1e-6)
    assert sorted(flipped) == [0, 1, 2]


def test_votes_that_do_not_fit(build, cast, pair, tmp_path):
    records = [pair(i) for i in range(6)]
    votes = [[0.1 * i, 0.2, 0.3] for i in range(6)]
    lacking = [None if i in (1, 4) else vote for i, vote in enumerate(votes)]
    with pytest.raises(
        ValueError, match=r"2 of 6 comparisons have no strength in .*short .*'r1', 0 of record 'r4'\)"
    ):
        voted(build, cast, records, lacking, tmp_path / "short").setup("fit")
    nobody = [[np.nan] * 3 if i == 2 else vote for i, vote in enumerate(votes)]
    data = voted(build, cast, records, nobody, tmp_path / "nobody", missing="keep")
    data.setup("fit")
    assert data.decisions.report.missing == 1
    with pytest.raises(
        ValueError, match=r"the votes in .*nobody are of other data \(.*vote on these with `pluralign vote`"
    ):
        build([pair(i + 100) for i in range(6)], FLIP, votes=str(tmp_path / "nobody")).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no votes"):
        build(records, FLIP, votes=str(tmp_path / "nowhere")).setup("fit")


def test_votes_of_mixed_members_are_refused(build, cast, pair, tmp_path):
    plain = build([pair(i) for i in range(6)])
    plain.setup("fit")
    for name in ("one", "other"):
        cast(plain, tmp_path / name, [[0.1, 0.2, 0.3]] * 6, members=name)
    (tmp_path / "other" / "train-00000.parquet").replace(tmp_path / "one" / "train-00000.parquet")
    with pytest.raises(ValueError, match="members"):
        build([pair(i) for i in range(6)], FLIP, votes=str(tmp_path / "one")).setup("fit")


def test_votes_on_one_source_do_not_count_for_another_of_the_same_ids(build, cast, pair, tmp_path):
    """Record keys are of kind of data and id: both sources call their records r0 to r5."""
    parts = {}
    for source in ("ours", "theirs"):
        folder = tmp_path / source
        folder.mkdir()
        for split, prefix in {"train": source, "validation": f"held out {source}"}.items():
            records = [{**pair(i), "prompt": f"{prefix} {i}"} for i in range(6)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        parts[source] = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    alone = LocalDataModule(**parts["ours"])
    alone.setup("fit")
    cast(alone, tmp_path / "votes", [[0.1 * i] * 3 for i in range(6)])
    treatments = build([], FLIP, votes=str(tmp_path / "votes"), missing="keep").loader.treatments
    mixture = MixtureDataModule(
        sources={name: LocalDataModule(**part) for name, part in parts.items()},
        loader=LoaderConfig(batch_size=2, treatments=treatments),
    )
    with pytest.raises(
        ValueError,
        match=r"mixture train: 6 comparisons have the name of another \(comparison 0 of record 'ours/r\d' that of 0 of record "
        r"'theirs/r\d'\).*other ids",
    ):
        mixture.setup("fit")


# Views ---------------------------------------------------------------------------------------------------


def test_stored_features(build, eight, tmp_path):
    plain = build(eight)
    plain.setup("fit")
    settings = {"backbone": {}, "text_format": plain.text_format(), "hidden_size": 3, "dtype": "float32"}
    writer = FeatureWriter(tmp_path / "store", **settings)
    for split in ("train", "validation"):
        for row in plain.table(split).rows():
            keys = response_keys(row)
            writer.add(keys, torch.randn(len(keys), 3))
    writer.flush()
    assert len(FeatureStore(tmp_path / "store")) == 18
    rules = [*FLIP, {"low": 0.5, "label": "drop"}]
    data = build(eight, rules, loader={"features": str(tmp_path / "store")})
    data.setup("fit")
    tokens = build(eight, rules)
    tokens.setup("fit")
    batches = list(data.train_dataloader())
    assert "features" in batches[0] and labels(batches) == labels(tokens.train_dataloader())
    assert len(labels(batches)) == 4


def test_users_and_their_numbers_of_judgements(build, pair):
    records = [pair(i, i / 10, user="ann" if i % 2 else "bob") for i in range(8)] + [
        pair(8, 0.05, user="eve")
    ]
    loader = {"users": UserProtocol(unseen=("eve",))}
    data = build(records, [{"high": 0.3, "label": "drop"}], loader=loader, by="value")
    data.setup("fit")
    assert data.judgements_of_users() == {"bob": 2, "ann": 3}
    shown = [name for batch in data.train_dataloader() for name in batch["id"]]
    assert sorted(shown) == ["r3", "r4", "r5", "r6", "r7"]
    assert sorted(name for batch in data.batches("train", users="unseen") for name in batch["id"]) == ["r8"]
    other = build(records, [{"high": 0.3, "label": "drop"}], loader=loader, by="value")
    other.setup("validate")
    assert other.judgements_of_users() == {"bob": 4, "ann": 4}


def test_a_mixture_takes_its_amounts_of_what_is_left(tmp_path, build, cast, pair):
    parts = {}
    for source, number in {"general": 8, "domain": 4}.items():
        folder = tmp_path / source
        folder.mkdir()
        records = [pair(f"{source}{i}", i / 10) for i in range(number)]
        for split, lines in {"train": records, "validation": held_out(records)}.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        parts[source] = LocalDataModule(
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
        )
    rules = [{"high": 0.2, "label": "drop"}, {"low": 0.7, "label": "flip"}]
    loader = LoaderConfig(batch_size=2)
    mixture = MixtureDataModule(sources=parts, loader=loader, weights={"general": 1, "domain": 0.5})
    mixture.setup("fit")
    votes = [[i / 10] * 3 for i in (*range(8), *range(4))]
    cast(mixture, tmp_path / "votes", votes)
    for part in parts.values():
        part.loader = LoaderConfig()
    treated = replace(
        loader, treatments=build([], rules, by="value", votes=str(tmp_path / "votes")).loader.treatments
    )
    data = MixtureDataModule(sources=parts, loader=treated, weights={"general": 1, "domain": 0.5})
    data.setup("fit")
    assert data.decisions.report.rules[0].comparisons == 4 and data.decisions.report.rules[1].comparisons == 1
    found = labels(data.train_dataloader())
    sources = [name.split("/")[0] for name, _ in found]
    assert (sources.count("domain"), sources.count("general")) == (2, 4), "of 2 and 6 that are left"
    assert {value[2] for name, value in found.items()} <= {0.2, 0.3, 0.4, 0.5, 0.6, -0.7}
    shuffled = [labels(data.train_dataloader()) for _ in range(2)]
    flipped = [value for each in (found, *shuffled) for value in each.values() if value[0] == 1]
    assert {value[2] for value in flipped} <= {-0.7}


def test_prepared_for_other_stages_nothing_is_treated(build, eight, tmp_path):
    data = build(eight, FLIP, votes=str(tmp_path / "nowhere"), validation=held_out(eight))
    data.setup("validate")
    assert len(labels(data.val_dataloader())) == 8
    data.setup()  # as `pluralign data inspect` has it
