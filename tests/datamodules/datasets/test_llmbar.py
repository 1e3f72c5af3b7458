"""LLMBar: labels 1 and 2, five subsets, equal rewards count a half; invented rows in the real schema."""

import gzip
import json
from pathlib import Path

import pytest

from pluralign.datamodules import LLMBarDataModule, RecordError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "llmbar"
PLACES = {
    "Natural": "Natural",
    **{name: f"Adversarial/{name}" for name in ("Neighbor", "GPTInst", "GPTOut", "Manual")},
}


def row(label=1, prompt="Name a fruit.", **changes):
    return {"input": prompt, "output_1": "A pear.", "output_2": "A chair.", "label": label, **changes}


def write(folder, rows, packed=False):
    for place in PLACES.values():
        path = folder / place / ("dataset.json.gz" if packed else "dataset.json")
        path.parent.mkdir(parents=True)
        content = json.dumps(rows).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    data = LLMBarDataModule(
        data_dir=write(folder, [row(prompt=f"Name fruit {i}.") for i in range(3)]), **settings
    )
    if bad:
        path = folder / "Natural" / "dataset.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), row(label=3)]))
    return data


@pytest.mark.parametrize("packed", [False, True])
def test_a_label_names_the_better_output(tmp_path, packed):
    data = LLMBarDataModule(data_dir=write(tmp_path, [row(1), row(2)], packed), subsets=("Manual",))
    first, second = data.records("test")
    assert (first.id, second.id, first.prompt) == ("Manual:1", "Manual:2", "Name a fruit.")
    assert [one.text for one in second.responses] == ["A pear.", "A chair."]
    pairs = [
        (r.comparisons[0].chosen, r.comparisons[0].rejected, r.comparisons[0].domain) for r in (first, second)
    ]
    assert pairs == [(0, 1, "Manual"), (1, 0, "Manual")]


def test_subsets_and_their_means(tmp_path):
    data = LLMBarDataModule(data_dir=write(tmp_path, [row(1), row(2)]))
    records = list(data.records("test"))
    rewards = [[1.0, 0.0] if record.id == "Natural:1" else [0.0, 0.0] for record in records]
    scores = data.official_scores(records, rewards)
    plain = dict.fromkeys(("Neighbor", "GPTInst", "GPTOut", "Manual"), 0.5)
    assert scores.numbers == {"Natural": 0.75, **plain, "Adversarial": 0.5, "average": 2.75 / 5}
    some = data.official_scores(records[:2], rewards[:2])
    assert some.numbers == {"Natural": 0.75}
    assert [item["score"] for item in some.items] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"label": 0}, "out of range", "label"),
        ({"label": "1"}, "wrong type", "label"),
        ({"output_2": ""}, "empty response", "responses[1].text"),
        ({"input": None}, "missing field", "input"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    data = LLMBarDataModule(data_dir=write(tmp_path, [row(**changes)]), subsets=("Natural",))
    with pytest.raises(RecordError) as caught:
        list(data.records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared LLMBar sample is not beside this checkout")
def test_real_files():
    data = LLMBarDataModule(data_dir=str(REAL))
    records = list(data.records("test"))
    counts = {subset: sum(r.id.startswith(subset) for r in records) for subset in PLACES}
    assert counts == {"Natural": 73, "Neighbor": 100, "GPTInst": 67, "GPTOut": 33, "Manual": 34}
    equal = data.official_scores(records, [[0.0, 0.0]] * len(records))
    assert set(equal.numbers.values()) == {0.5}
    longer = data.official_scores(records, [[len(one.text) for one in r.responses] for r in records])
    assert longer.numbers["Natural"] == pytest.approx(0.582, abs=1e-3)
    assert longer.numbers["Adversarial"] == pytest.approx(0.220, abs=1e-3), (
        "the longer output is the wrong one"
    )
