"""DSP: the real files, a sample of them that lies beside some checkouts: what is identical, empty, tied or merely longer."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from pluralign.datamodules import DSPDataModule

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "dsp"
NAMES = ("academy", "business", "entertainment", "literature", "normal")

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the shared DSP sample is not beside this checkout")


def pairs_of(domain, losers):
    """Winner and loser of the sample's pairs, as the data module has their texts, and what it left out."""
    data = DSPDataModule(data_dir=str(REAL), domains=(domain,), losers=losers)
    found, left_out = [], Counter()
    for source in data.sources:
        for record in map(data.to_example, data.load(source)):
            found += [
                (record.responses[c.chosen].text, record.responses[c.rejected].text)
                for c in record.comparisons
            ]
            left_out.update(record.left_out)
    return found, left_out


def test_real_files_identical_and_empty_answers():
    """The shared sample, 520 of the release's 661 test queries."""
    counts = {"academy": (38, 30), "business": (37, 29), "entertainment": (25, 22), "literature": (24, 21)}
    for domain, (among_all, among_domains) in counts.items():
        found, left_out = pairs_of(domain, "all")
        assert (len(found), sum(first == second for first, second in found)) == (520 * 4 - 1, among_all)
        assert left_out == {"comparison of an empty response": 1}
        found, left_out = pairs_of(domain, "domains")
        assert (len(found), sum(first == second for first, second in found)) == (520 * 3, among_domains)
        assert not left_out, "the empty answer is a normal one"


def test_real_files_longer_wins():
    """Length alone, in characters, equal lengths a half: what every accuracy is to be read beside."""
    baselines = {
        "academy": (66.3, 58.5),
        "business": (59.3, 49.6),
        "entertainment": (54.2, 43.0),
        "literature": (59.1, 48.9),
    }
    for domain, expected in baselines.items():
        for losers, percent in zip(("all", "domains"), expected, strict=True):
            found, _ = pairs_of(domain, losers)
            wins = sum((len(a) > len(b)) + (len(a) == len(b)) / 2 for a, b in found)
            assert 100 * wins / len(found) == pytest.approx(percent, abs=0.05), (domain, losers)


def test_real_files_tokenised():
    data = DSPDataModule(data_dir=str(REAL), domains=("academy",))
    data.setup()
    found = [report.dropped["comparison of identical responses"] for report in data.reports.values()]
    assert sum(found) == 38
    assert data.reports["test"].dropped["comparison of an empty response"] == 1
    assert not any(report.invalid for report in data.reports.values())
    assert data.names["system"] == list(NAMES)


@pytest.mark.parametrize(
    ("subset", "records", "comparisons", "left_out"),
    [
        ("domain", 520, 10392, 8),
        ("helpful", 1893, 1891, 2),
        ("harmless", 1827, 1824, 3),
        ("webgpt", 702, 505, 197),
    ],
)
def test_real_files(subset, records, comparisons, left_out):
    data = DSPDataModule(data_dir=str(REAL), subset=subset)
    kept = [data.to_example(row) for source in data.sources for row in data.load(source)]
    assert len(kept) == records
    assert sum(len(record.comparisons) for record in kept) == comparisons
    assert sum(sum(record.left_out.values()) for record in kept) == left_out


@pytest.mark.parametrize("source", ["train", "test"])
def test_real_webgpt_scores_counted_by_hand(source):
    with gzip.open(REAL / f"webgpt.{source}.json.gz") as stream:
        rows = json.load(stream)
    expected = Counter()
    for row in rows:
        first, second = row["score"]
        kind = "tie" if first == second else "first" if first > second else "second"
        expected[kind, abs(first - second)] += 1

    for ties in ("keep", "leave_out"):
        data, found = DSPDataModule(data_dir=str(REAL), subset="webgpt", ties=ties), Counter()
        for record in map(data.to_example, data.load(source)):
            for comparison in record.comparisons:
                winner = "second" if comparison.chosen else "first"
                found["tie" if comparison.preference == 0.5 else winner, comparison.strength] += 1
                assert comparison.preference in (0.5, 1.0)
            found["tie", 0.0] += sum(record.left_out.values())
        assert found == expected
    ties = sum(count for (kind, _), count in found.items() if kind == "tie")
    assert (sum(found.values()), ties) == {"train": (518, 142), "test": (184, 55)}[source]
