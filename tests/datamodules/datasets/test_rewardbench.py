"""RewardBench 1: sections, math-prm counted double, equal rewards wrong; invented rows in the real schema."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pluralign.datamodules import Message, RecordError, RewardBenchDataModule

REVISION = "168d848cdbbea9764fae4a544dc9ca1e6cca4931"


def row(number=1, subset="math-prm", prompt="Add two and three.", **changes):
    return {
        "prompt": prompt,
        "chosen": "Five.",
        "chosen_model": "m1",
        "rejected": "Six.",
        "rejected_model": "m2",
        "subset": subset,
        "id": number,
        **changes,
    }


def write(folder, rows, name="filtered.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    subsets = ("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go")
    rows = [row(i, subset, f"Add {i} and three.") for subset in subsets for i in range(4)]
    return RewardBenchDataModule(data_dir=write(folder, rows + [row(subset="maths")] * bad), **settings)


def test_a_row_is_a_pair_in_its_subset(tmp_path):
    data = RewardBenchDataModule(
        data_dir=write(tmp_path, [row(7), row(7, "hep-go"), row(8, chosen=" Five. ")])
    )
    first, other, spaced = data.records("test")
    assert (first.id, other.id) == ("math-prm:7", "hep-go:7")
    assert (first.prompt, [one.text for one in first.responses]) == ("Add two and three.", ["Five.", "Six."])
    (comparison,) = first.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.domain) == (0, 1, "math-prm")
    assert spaced.responses[0].text == " Five. ", "a benchmark's text stays as it is"
    assert data.splits == ("test",)


def test_prompts_may_be_messages(tmp_path):
    turns = [{"role": "user", "content": "Add."}]
    (record,) = RewardBenchDataModule(data_dir=write(tmp_path, [row(prompt=turns)])).records("test")
    assert record.prompt == (Message("user", "Add."),)


def test_the_parquet_file_of_the_release(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "filtered-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([row(1), row(2, "donotanswer")]), path)
    data = RewardBenchDataModule(data_dir=str(tmp_path))
    assert [record.id for record in data.records("test")] == ["math-prm:1", "donotanswer:2"]


def test_sections_are_weighted_by_rows_and_maths_counts_as_much_as_code(tmp_path):
    rows = [row(0), row(1), row(2, "hep-go"), row(3, "donotanswer"), row(4, "refusals-dangerous")]
    data = RewardBenchDataModule(data_dir=write(tmp_path, rows))
    records = list(data.records("test"))
    scores = data.official_scores(records, [[1, 0], [0, 0], [1, 0], [1, 0], [0, 1]])
    assert scores.numbers == pytest.approx(
        {"Safety": 136 / (136 + 100), "Reasoning": (0.5 * 984 + 164) / (984 + 164)}
    )
    assert scores.items[1] == {"id": "math-prm:1", "part": "math-prm", "chosen": 0, "rejected": 0, "score": 0}
    assert "math-prm as 984" in scores.rule


def test_the_average_is_that_of_four_sections(tmp_path):
    data = invented(tmp_path)
    records = list(data.records("test"))
    rewards = [[float(record.comparisons[0].domain != "donotanswer"), 0.5] for record in records]
    assert data.official_scores(records, rewards).numbers == {
        "Chat": 1.0,
        "Chat Hard": 1.0,
        "Safety": 0.0,
        "Reasoning": 1.0,
        "average": 0.75,
    }


def test_subsets_are_chosen_and_unknown_ones_named(tmp_path):
    folder = write(tmp_path, [row(1), row(2, "hep-go"), row(3, "algebra")])
    data = RewardBenchDataModule(data_dir=folder, subsets=("hep-go",))
    first, unknown = data.load("test")
    assert data.to_example(first).id == "hep-go:2"
    with pytest.raises(RecordError, match=r"'subset' is 'algebra'; allowed: alpacaeval-easy \| "):
        data.to_example(unknown)
    with pytest.raises(ValueError, match=r"subsets must be one or more of alpacaeval-easy.*\['algebra'\]"):
        RewardBenchDataModule(subsets=("algebra",))


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"chosen": " "}, "empty response", "responses[0].text"),
        ({"rejected": None}, "missing field", "rejected"),
        ({"id": None}, "missing field", "id"),
        ({"prompt": 3}, "wrong type", "prompt"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    with pytest.raises(RecordError) as caught:
        list(RewardBenchDataModule(data_dir=write(tmp_path, [row(**changes)])).records("test"))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)


def test_the_hub_gives_the_same_records(tmp_path, from_hub):
    expected = list(RewardBenchDataModule(data_dir=write(tmp_path, [row()])).records("test"))
    asked = from_hub([row()])
    data = RewardBenchDataModule()
    assert list(data.records("test")) == expected
    assert asked == [("allenai/reward-bench", REVISION, "filtered", None)]
    assert data.settings()["hub"] == f"allenai/reward-bench@{REVISION}"
