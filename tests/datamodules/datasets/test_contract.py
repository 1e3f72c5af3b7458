"""What every dataset promises, each on the rows that its own test file invents in the original's schema.

A test file ``test_<dataset>.py`` has a function ``invented(folder, *, bad, **settings)``: a data module over a handful of
rows, one of them malformed if ``bad`` (None where rows cannot be).
"""

import importlib.util
import json
import math
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import pluralign.datamodules
from pluralign.datamodules import (
    LoaderConfig,
    MixtureDataModule,
    PreferenceBatch,
    PreferenceDataModule,
    RecordError,
)

DATASETS = [
    member
    for member in map(pluralign.datamodules.__dict__.get, pluralign.datamodules.__all__)
    if isinstance(member, type)
    and issubclass(member, PreferenceDataModule)
    and member not in (PreferenceDataModule, MixtureDataModule)  # a mixture has no rows of its own
]
LOADER = LoaderConfig(batch_size=8)

every_dataset = pytest.mark.parametrize("dataset", DATASETS)


@cache
def own_tests(dataset):
    """The dataset's own test file, as a module."""
    name = dataset.__module__.split(".")[3]  # of its file, or of its folder
    spec = importlib.util.spec_from_file_location(
        f"rows_of_{name}", Path(__file__).with_name(f"test_{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(dataset, folder, **settings):
    if not dataset.sources or "validation" not in dataset.sources:
        settings["validation_share"] = 0.3
    folder.mkdir()
    return own_tests(dataset).invented(folder, loader=LOADER, **settings)


def records(data):
    """Records of each split."""
    found = {split: [] for split in data.splits}
    for source in data.sources:
        for row in data.load(source):
            record = data.to_example(row)
            found[data.route(record, source)].append(record)
    return found


def equal(first, second):
    if isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())  # NaN is unknown
    return first == second


@every_dataset
def test_splits_share_nothing_and_batches_hold_known_keys(dataset, tmp_path):
    data = build(dataset, tmp_path / "rows")
    data.setup()
    by_split = records(data)
    for split, found in by_split.items():
        assert data.reports[split].rows == len(found) >= data.reports[split].records > 0
        assert [record.id for record in data.given(split)] == [record.id for record in found]
    ids = [record.id for found in by_split.values() for record in found]
    assert len(set(ids)) == len(ids)
    # Whoever releases a test split may have put a training prompt into it; what we divide is disjoint.
    ours = ("train", "validation", "test") if "validation" in dataset.sources else ("train", "validation")
    keys = [{record.split_key for record in by_split.get(split, ())} for split in ours]
    assert sum(map(len, keys)) == len(set.union(*keys))

    seen = []
    judged = [split for split in ("train", "validation", "test") if split in data.splits]
    for split in judged:
        for batch in data.batches(split):
            assert batch.keys() <= PreferenceBatch.__annotations__.keys()
            assert set(batch["id"]) <= set(ids)
        for row in data.table(split).rows():
            seen += [row.id] if row.origins is None else row.origins.ids
    assert sorted(seen) == sorted(record.id for split in judged for record in by_split[split])
    copied = pickle.loads(pickle.dumps(data.collator()))
    rows = data.rows(judged[0])[[0, 1]]
    first, second = data.collator()(rows), copied(rows)
    assert first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)


@every_dataset
def test_equal_rows_have_equal_fingerprints_and_batches(dataset, tmp_path):
    runs = [build(dataset, tmp_path / name, cache_dir=str(tmp_path / f"cache-{name}")) for name in ("a", "b")]
    for data in runs:
        data.setup("fit" if "train" in data.splits else "test")
    assert runs[0].cache_folder() != runs[1].cache_folder()
    assert runs[0].cache_folder().name == runs[1].cache_folder().name
    loaders = [data.train_dataloader() if "train" in data.splits else data.test_dataloader() for data in runs]
    for first, second in zip(*loaders, strict=True):
        assert first.keys() == second.keys()
        assert all(equal(first[key], second[key]) for key in first)


@every_dataset
def test_a_malformed_row_is_named_or_counted(dataset, tmp_path):
    strict = build(dataset, tmp_path / "strict", bad=True, on_invalid="error")
    if strict is None:
        pytest.skip("its rows cannot be malformed")
    with pytest.raises(RecordError, match=r":\d+: .*: field '.+' is .*; allowed: .") as caught:
        strict.prepare_data()
    error = caught.value
    assert error.file.startswith(str(tmp_path)) and error.line > 0 and error.value is not None
    lenient = build(dataset, tmp_path / "lenient", bad=True, on_invalid="skip")
    lenient.setup()
    whole = build(dataset, tmp_path / "whole")
    whole.setup()
    reasons = [dict(report.invalid) for report in lenient.reports.values() if report.invalid]
    assert reasons == [{error.reason: 1}]
    assert not any(report.invalid for report in whole.reports.values())
    counts = [
        {split: report.comparisons for split, report in data.reports.items()} for data in (lenient, whole)
    ]
    assert counts[0] == counts[1]


@every_dataset
def test_data_that_are_not_there(dataset, tmp_path):
    if hasattr(dataset, "where_to_get"):
        with pytest.raises(
            ValueError, match=f"{dataset.__name__} needs data_dir: .*{re.escape(dataset.where_to_get)}"
        ):
            dataset()
        commands = r"`(git clone https://.*git -C .* checkout [0-9a-f]{12}|curl .*https://).* give data_dir="
        assert re.search(commands, dataset.where_to_get)
    data = build(dataset, tmp_path / "rows")
    files = [path for path in (tmp_path / "rows").rglob("*") if path.is_file()]
    assert {path for source in data.sources for path in data.files(source)} <= set(files)
    for path in files:
        path.unlink()
    if files:
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            data.prepare_data()


SYSTEMS = {
    "AlpacaEvalDataModule": ["baseline", "small"],
    "ArenaDataModule": ["m1", "m2"],
    "DSPDataModule": ["academy", "business", "entertainment", "literature", "normal"],
    "GPT4LLMDataModule": ["gpt4", "icm-1.3b", "text-davinci-003"],
    "MultiPrefDataModule": ["m1", "m2"],
    "PRISMDataModule": ["m"],
    "SQuALITYDataModule": ["bart", "bart-dpr", "human"],
    "TuluHumanEvalDataModule": ["large", "small"],
    "UltraFeedbackDataModule": ["m"],
}
"""Who wrote the invented responses, of the datasets that say it."""


@every_dataset
def test_who_wrote_the_responses(dataset, tmp_path):
    data = build(dataset, tmp_path / "rows")
    data.setup()
    assert data.names["system"] == SYSTEMS.get(dataset.__name__, [])
    batch = next(iter(data.batches(data.splits[0])))
    assert ("system_id" in batch) == (dataset.__name__ in SYSTEMS)
    if "system_id" in batch:
        assert len(batch["system_id"]) == len(batch["response_index"])


EQUAL = {"LLMBarDataModule": 0.5, "RewardBench2DataModule": 0.25}
"""What a benchmark gives a model with one reward for every text, where that is not 0."""
BENCHMARKS = [
    dataset for dataset in DATASETS if dataset.official_scores is not PreferenceDataModule.official_scores
]


def test_benchmarks_are_those_with_a_rule():
    assert {dataset.__name__ for dataset in BENCHMARKS} == {
        "HHHDataModule",
        "JudgeBenchDataModule",
        "LLMBarDataModule",
        "PersonalRewardBenchDataModule",
        "PersonalizedRewardBenchDataModule",
        "RMBenchDataModule",
        "RewardBench2DataModule",
        "RewardBenchDataModule",
    }


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_a_benchmark_scores_what_is_right_wrong_and_equal(dataset, tmp_path):
    data = build(dataset, tmp_path / "rows")
    found = list(data.records("test"))
    right = [
        [float(any(one.chosen == i for one in record.comparisons)) for i in range(len(record.responses))]
        for record in found
    ]
    wrong, equal = [[1 - reward for reward in rewards] for rewards in right], [[0.5] * len(r) for r in right]
    best, worst, tied = (data.official_scores(found, rewards) for rewards in (right, wrong, equal))
    numbers = {name: value for name, value in best.numbers.items() if not name.endswith("ties")}
    assert numbers and all(1 <= value <= 1.01 for value in numbers.values())
    assert all(-0.01 <= value <= 0 for value in worst.numbers.values())
    parts = {name: value for name, value in tied.numbers.items() if name in numbers and name != "average"}
    assert parts.pop("Ties", 0) == 0 and set(parts.values()) == {EQUAL.get(dataset.__name__, 0)}
    assert best.numbers.keys() == worst.numbers.keys() == tied.numbers.keys()
    assert [item["id"] for item in best.items] == [record.id for record in found]
    assert best.rule and json.dumps(best._asdict())
    assert data.official_scores([], []) == ({}, [], best.rule)
    with pytest.raises(ValueError, match=re.escape(f"record {found[0].id!r} must be finite")):
        data.official_scores(found, [[math.nan] * len(right[0]), *right[1:]])
    with pytest.raises(ValueError, match="must be one for each of its"):
        data.official_scores(found, [[1.0], *right[1:]])
    with pytest.raises(ValueError, match="one list for each"):
        data.official_scores(found, right[1:])


def test_the_page_on_benchmarks_says_what_equal_rewards_get():
    text = (Path(__file__).parents[3] / "docs" / "concepts" / "benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^]]+\]\(\.\./data_sets/(\w+)\.md\) .*\| ([\d.]+) \|$", text, re.MULTILINE)
    names = {dataset.__module__.split(".")[3]: dataset.__name__ for dataset in BENCHMARKS}
    assert {names[page]: float(value) for page, value in rows} == {
        name: EQUAL.get(name, 0) for name in names.values()
    }
