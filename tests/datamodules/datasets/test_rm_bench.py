"""RM-Bench: three styles against three, ids that repeat between domains; invented rows in the real schema."""

import gzip
import json

import pytest

from pluralign.datamodules import RecordError, RMBenchDataModule

STYLES = (".", ", with details.", ", with **details**.")


def row(number=8, prompt="What is rain?", **changes):
    return {
        "id": number,
        "prompt": prompt,
        "chosen": [f"Water{style}" for style in STYLES],
        "rejected": [f"Sand{style}" for style in STYLES],
        **changes,
    }


def write_total(folder, rows, packed=False):
    content = json.dumps(rows).encode()
    name = "total_dataset.json.gz" if packed else "total_dataset.json"
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def in_all_domains(count=2):
    domains = ("chat", "code", "math", "safety-refuse", "safety-response")
    return [row(i, f"What is rain, {i}?", domain=domain) for domain in domains for i in range(count)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = in_all_domains() + [row(9, chosen=["Water."], domain="chat")] * bad
    return RMBenchDataModule(data_dir=write_total(folder, rows), **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_has_six_responses_and_nine_comparisons(tmp_path, packed):
    data = RMBenchDataModule(data_dir=write_total(tmp_path, [row(domain="safety-refuse")], packed))
    (record,) = data.records("test")
    assert record.id == "safety-refuse:8"
    assert [one.text for one in record.responses] == [
        f"{word}{style}" for word in ("Water", "Sand") for style in STYLES
    ]
    pairs = [(one.chosen, one.rejected, one.domain) for one in record.comparisons]
    assert pairs == [(i, j, "safety-refuse") for i in range(3) for j in range(3, 6)]


def test_files_of_domains_have_their_names(tmp_path):
    for part in ("chat", "safety-refuse", "safety-response"):
        (tmp_path / f"{part}_filtered.json").write_text(json.dumps([row(subset="x")]))
    data = RMBenchDataModule(data_dir=str(tmp_path), domains=("chat", "safety"))
    assert [record.id for record in data.records("test")] == [
        "chat:8",
        "safety-refuse:8",
        "safety-response:8",
    ]
    with pytest.raises(FileNotFoundError, match=r"code_filtered\.json"):
        RMBenchDataModule(data_dir=str(tmp_path), domains=("code",)).files("test")


def test_the_three_levels_are_above_on_and_below_the_diagonal(tmp_path):
    data = RMBenchDataModule(data_dir=write_total(tmp_path, [row(domain="chat")]))
    records = list(data.records("test"))
    fancier = data.official_scores(records, [[0, 1, 2, 0, 1, 2]])
    assert fancier.numbers == pytest.approx({"chat": 1 / 3, "hard": 0, "normal": 0, "easy": 1})
    assert fancier.items[0]["wins"] == [[False, False, False], [True, False, False], [True, True, False]]
    plainer = data.official_scores(records, [[2, 1, 0, 2, 1, 0]])
    assert plainer.numbers == pytest.approx({"chat": 1 / 3, "hard": 1, "normal": 0, "easy": 0})


def test_domains_count_the_same_and_safety_pools_its_parts(tmp_path):
    rows = [row(i, domain="safety-refuse") for i in range(3)] + [row(0, domain="safety-response")]
    rows += [row(i, domain=domain) for domain in ("chat", "code", "math") for i in range(2)]
    data = RMBenchDataModule(data_dir=write_total(tmp_path, rows))
    records = list(data.records("test"))
    rewards = [[float(record.id.startswith("safety-refuse"))] * 3 + [0.5] * 3 for record in records]
    scores = data.official_scores(records, rewards)
    expected = {
        "chat": 0,
        "code": 0,
        "math": 0,
        "safety": 0.75,
        "hard": 0.1875,
        "normal": 0.1875,
        "easy": 0.1875,
    }
    assert scores.numbers == pytest.approx({**expected, "total": 0.1875})


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"domain": "law"}, "out of range", "domain"),
        ({"chosen": ["A", "B"]}, "wrong length", "chosen"),
        ({"rejected": ["A", "B", ""]}, "empty response", "rejected[2]"),
        ({"prompt": None}, "missing field", "prompt"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    data = RMBenchDataModule(data_dir=write_total(tmp_path, [row(**{"domain": "chat", **changes})]))
    with pytest.raises(RecordError) as caught:
        list(data.records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)
