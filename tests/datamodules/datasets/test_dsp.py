"""DSP: five responses a query, one record; scored pairs; invented rows in the real schema."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import DSPDataModule, Message, RecordError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "dsp"
NAMES = ("academy", "business", "entertainment", "literature", "normal")


def query(text="What is rain?", **changes):
    return {"query": text, "responses": {**{name: f"{name} says: water." for name in NAMES}, **changes}}


def pair(first="Wet.", second="Dry.", scores=(1.0, 0.0), form="\n\nHuman: Rain?\n\nAssistant: {}"):
    return {"text": [form.format(first), form.format(second)], "score": list(scores)}


WEBGPT = "## Human:\nRain?\n\n\n\n## Assistant:\n{}"


def module(tmp_path, rows, file="domain_specific_preference", **kwargs):
    for source in ("train", "test"):
        (tmp_path / f"{file}.{source}.json").write_text(json.dumps(rows))
    return DSPDataModule(data_dir=str(tmp_path), **kwargs)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    data = module(
        folder, [query(f"What is rain, {i}?") for i in range(40)] + [query(normal=4)] * bad, **settings
    )
    (folder / "domain_specific_preference.test.json").write_text(json.dumps([query("What is fog?")]))
    return data


def example(*args, **kwargs):
    data = module(*args, **kwargs)
    return data.to_example(next(data.load("train")))


def test_a_query_is_one_record_and_each_domain_prefers_its_own(tmp_path):
    record = example(tmp_path, [query()])
    assert (record.id, record.prompt, len(record.responses)) == ("domain/train:1", "What is rain?", 5)
    assert len(record.comparisons) == 20
    for i, name in enumerate(NAMES):
        mine = [comparison for comparison in record.comparisons if comparison.domain == name]
        assert {comparison.chosen for comparison in mine} == {i}
        assert {comparison.rejected for comparison in mine} == set(range(5)) - {i}
        assert record.responses[i].text == f"{name} says: water."


def test_one_domain_keeps_all_responses(tmp_path):
    record = example(tmp_path, [query()], domains=("business",))
    assert len(record.responses) == 5
    assert [(c.chosen, c.rejected, c.domain) for c in record.comparisons] == [
        (1, other, "business") for other in (0, 2, 3, 4)
    ]


def test_identical_responses_are_dropped_and_counted(tmp_path):
    data = module(tmp_path, [query(academy="Same.", normal="Same.")])
    (tmp_path / "domain_specific_preference.train.json").write_text(json.dumps([query("What is fog?")]))
    data.setup("test")
    report = data.reports["test"]
    assert (report.responses, report.comparisons) == (5, 18)
    assert report.dropped == {"comparison of identical responses": 2}


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"query": "Q"}, "missing field", "responses"),
        ({"query": "Q", "responses": ["a"]}, "wrong type", "responses"),
        ({"query": "Q", "responses": {"academy": "a"}}, "missing field", "responses.business"),
        (query(business=4), "wrong type", "responses.business"),
        (query(business=" "), "empty response", "responses[1].text"),
        ({"responses": query()["responses"]}, "missing field", "query"),
    ],
)
def test_malformed_queries(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, [row])
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_scored_pairs(tmp_path):
    record = example(tmp_path, [pair()], "helpful", subset="helpful")
    assert record.prompt == (Message("user", "Rain?"),)
    assert [response.text for response in record.responses] == ["Wet.", "Dry."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference) == (0, 1, 1.0)
    assert (comparison.strength, comparison.margin, comparison.domain) == (1.0, None, "helpful")


@pytest.mark.parametrize(
    ("scores", "chosen", "preference", "gap"),
    [((0.5, 1.5), 1, 1.0, 1.0), ((1.0, 1.0), 0, 0.5, 0.0), ((2, 0), 0, 1.0, 2.0)],
)
def test_degrees_and_ties_of_webgpt(tmp_path, scores, chosen, preference, gap):
    row = pair(scores=scores, form=WEBGPT)
    record = example(tmp_path, [row], "webgpt", subset="webgpt", margins=True)
    assert record.prompt == (Message("user", "Rain?"),)
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.preference) == (chosen, preference)
    assert comparison.strength == comparison.margin == gap


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"text": ["a", "b"]}, "missing field", "score"),
        (pair(scores=(1,)), "wrong length", "score"),
        (pair(scores=(1, "0")), "wrong type", "score[1]"),
        (pair(scores=(1, math.nan)), "not finite", "score[1]"),
        ({"text": "ab", "score": [1, 0]}, "wrong type", "text"),
        ({"text": ["\n\nHuman: a", 3], "score": [1, 0]}, "wrong type", "text[1]"),
        ({"text": ["a", "b"], "score": [1, 0]}, "not a dialogue", "text[0]"),
    ],
)
def test_malformed_pairs(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, [row], "harmless", subset="harmless")
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_wrong_arguments(tmp_path):
    with pytest.raises(
        ValueError, match=r"github\.com/Linear95/DSP.*ec099cf332cfdac0d1b0d644844ba60459144092"
    ):
        DSPDataModule()
    with pytest.raises(ValueError, match="subset must be one of domain"):
        DSPDataModule(data_dir="x", subset="all")
    with pytest.raises(ValueError, match="domains must be one or more of academy"):
        DSPDataModule(data_dir="x", domains=("law",))
    with pytest.raises(FileNotFoundError, match=r"helpful\.train\.json"):
        DSPDataModule(data_dir=str(tmp_path), subset="helpful").files("train")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared DSP sample is not beside this checkout")
@pytest.mark.parametrize(
    ("subset", "records", "comparisons", "blank"),
    [
        ("domain", 519, 10380, 1),
        ("helpful", 1891, 1891, 2),
        ("harmless", 1824, 1824, 3),
        ("webgpt", 702, 702, 0),
    ],
)
def test_real_files(subset, records, comparisons, blank):
    data = DSPDataModule(data_dir=str(REAL), subset=subset)
    kept, errors = [], []
    for source in data.sources:
        for row in data.load(source):
            try:
                kept.append(data.to_example(row))
            except RecordError as error:
                errors.append(error.reason)
    assert len(kept) == records
    assert sum(len(record.comparisons) for record in kept) == comparisons
    assert errors == ["empty response"] * blank


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared DSP sample is not beside this checkout")
@pytest.mark.parametrize("source", ["train", "test"])
def test_real_webgpt_scores_counted_by_hand(source):
    with gzip.open(REAL / f"webgpt.{source}.json.gz") as stream:
        rows = json.load(stream)
    expected = Counter()
    for row in rows:
        first, second = row["score"]
        kind = "tie" if first == second else "first" if first > second else "second"
        expected[kind, abs(first - second)] += 1

    data, found = DSPDataModule(data_dir=str(REAL), subset="webgpt"), Counter()
    for row in data.load(source):
        (comparison,) = data.to_example(row).comparisons
        winner = "second" if comparison.chosen else "first"
        found["tie" if comparison.preference == 0.5 else winner, comparison.strength] += 1
        assert comparison.preference in (0.5, 1.0)
    assert found == expected
    ties = sum(count for (kind, _), count in found.items() if kind == "tie")
    assert (sum(found.values()), ties) == {"train": (518, 142), "test": (184, 55)}[source]
