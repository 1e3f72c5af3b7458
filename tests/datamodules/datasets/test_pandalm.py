"""PandaLM: rows of a prompt are one record; three annotators; invented rows in the real schema."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, RecordError
from pluralign.datamodules.datasets.pandalm import PandaLMDataModule
from pluralign.datamodules.records import PER_10_000, hash_split

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "pandalm"


def row(first="Apple.", second="Chair.", values=(1, 1, 0), instruction="Name a fruit.", given="", **changes):
    return {
        "idx": 0,
        "motivation_app": "Garden",
        "cmp_key": "one_two",
        "instruction": instruction,
        "input": given,
        "response1": first,
        "response2": second,
        **{f"annotator{i}": value for i, value in enumerate(values, 1)},
        **changes,
    }


def module(folder, rows, packed=False, **kwargs):
    content = json.dumps(rows).encode()
    name = "testset-v1.json.gz" if packed else "testset-v1.json"
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return PandaLMDataModule(data_dir=str(folder), **kwargs)


def examples(data, source=None):
    sources = data.sources if source is None else (source,)
    rows = [row for name in sources for row in data.load(name)]
    return [found if isinstance(found, RecordError) else data.to_example(found) for found in rows]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(instruction=f"Name fruit {i}.") for i in range(60)]
    return module(folder, rows + [row(instruction="Name fruit 0.", values=(1, 1, 3))] * bad, **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_a_prompt_are_one_record(tmp_path, packed):
    rows = [
        row(),
        row("Chair.", "Pear.", (2, 2, 2)),
        row("Pear.", "Apple.", (2, 0, 0)),
        row("Apple.", "Pear.", (1, 2, 0), motivation_app="Kitchen"),
    ]
    (record,) = examples(module(tmp_path, rows, packed))
    assert (record.id, record.prompt) == ("testset-v1:1", "Name a fruit.")
    assert [response.text for response in record.responses] == ["Apple.", "Chair.", "Pear."]
    found = [(c.chosen, c.rejected, c.votes, c.domain, c.user) for c in record.comparisons]
    assert found == [
        (0, 1, (2, 1, 0), "Garden", None),
        (2, 1, (3, 0, 0), "Garden", None),
        (0, 2, (1, 2, 0), "Garden", None),
        (0, 2, (1, 1, 1), "Kitchen", None),
    ]
    assert [c.preference for c in record.comparisons] == pytest.approx([5 / 6, 1.0, 2 / 3, 0.5])
    assert all(r.votes is None and r.score is None for r in record.responses)


def test_each_annotator_judges_one_comparison(tmp_path):
    (record,) = examples(module(tmp_path, [row(values=(1, 0, 2))], judgements="annotators"))
    found = [(c.chosen, c.rejected, c.preference, c.user, c.votes) for c in record.comparisons]
    assert found == [
        (0, 1, 1.0, "annotator1", None),
        (0, 1, 0.5, "annotator2", None),
        (1, 0, 1.0, "annotator3", None),
    ]


def test_an_input_follows_its_instruction(tmp_path):
    rows = [row(given="Green, please."), row(given=" ")]
    prompts = {record.prompt for record in examples(module(tmp_path, rows))}
    assert prompts == {"Name a fruit.", "Name a fruit.\n\nGreen, please."}


def test_truth_values_are_read_as_words(tmp_path):
    (record,) = examples(module(tmp_path, [row(True, False)]))
    assert [response.text for response in record.responses] == ["True", "False"]


def test_a_pair_of_identical_answers_is_kept_for_the_report(tmp_path):
    (record,) = examples(module(tmp_path, [row(), row("Apple.", "Apple.", (0, 0, 0))]))
    assert [response.text for response in record.responses] == ["Apple.", "Chair.", "Apple."]
    assert [(c.chosen, c.rejected) for c in record.comparisons] == [(0, 1), (0, 2)]


def test_prompts_are_on_one_side(tmp_path):
    rows = [row(instruction=f"Name {i}.", given=str(i)) for i in range(200)] * 2
    data = module(tmp_path, rows)
    prompts = {source: {record.prompt for record in examples(data, source)} for source in data.sources}
    assert {
        source: {hash_split(prompt, PER_10_000) for prompt in found} for source, found in prompts.items()
    } == {source: {source} for source in data.sources}
    sizes = [len(found) for found in prompts.values()]
    assert sum(sizes) == 200 and 140 < sizes[0] < 180 and min(sizes) >= 10
    data.setup()
    assert sum(report.comparisons for report in data.reports.values()) == 400
    assert data.reports["validation"].in_train == data.reports["test"].in_train == 0
    again = module(tmp_path, rows[::-1])
    assert {
        source: {record.prompt for record in examples(again, source)} for source in again.sources
    } == prompts


def test_a_batch_holds_votes_and_domains(tmp_path):
    train = [f"Name {i}." for i in range(40) if hash_split(f"Name {i}.", PER_10_000) == "train"]
    test = next(f"Name {i}." for i in range(200) if hash_split(f"Name {i}.", PER_10_000) == "test")
    rows = [row(instruction=prompt) for prompt in train]
    rows += [row(instruction=test), row("Chair.", "Pear.", (2, 0, 2), test, motivation_app="Kitchen")]
    data = module(tmp_path, rows, loader=LoaderConfig(batch_size=4))
    data.setup("test")
    (batch,) = data.test_dataloader()
    torch.testing.assert_close(batch["comparison_votes"], torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    torch.testing.assert_close(batch["preference"], torch.tensor([5 / 6, 5 / 6]))
    assert batch["comparisons"].tolist() == [[0, 1], [2, 1]]
    assert data.domains == ["Garden"] and batch["domain_id"].tolist() == [0, -1]
    assert "user_id" not in batch and "votes" not in batch


def test_blank_answers_are_skipped_and_counted(tmp_path):
    train = [f"Name {i}." for i in range(60) if hash_split(f"Name {i}.", PER_10_000) == "train"]
    rows = [row(instruction=prompt) for prompt in train]
    rows += [row(second=" ", instruction=train[0]), row(first="", instruction=train[1])]
    rows += [row(instruction=f"Name {i}.") for i in range(60) if f"Name {i}." not in train]
    data = module(tmp_path, rows)
    data.setup("fit")
    report = data.reports["train"]
    assert (report.records, report.comparisons) == (len(train), len(train))
    assert report.invalid == {"empty response": 2}
    strict = module(tmp_path, rows, on_invalid="error")
    with pytest.raises(RecordError, match=rf"testset-v1\.json:{len(train) + 1}: empty response.*'response2'"):
        strict.setup("fit")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"response1": 3}, "wrong type", "response1"),
        ({"response2": ""}, "empty response", "response2"),
        ({"annotator2": 3}, "out of range", "annotator2"),
        ({"annotator2": -1}, "out of range", "annotator2"),
        ({"annotator3": "1"}, "wrong type", "annotator3"),
        ({"annotator3": True}, "wrong type", "annotator3"),
        ({"motivation_app": None}, "missing field", "motivation_app"),
    ],
)
def test_a_malformed_row_is_named_once_and_the_others_stay(tmp_path, changes, reason, field):
    error, record = sorted(
        examples(module(tmp_path, [row(), row(**changes)])), key=lambda e: not isinstance(e, RecordError)
    )
    assert (error.reason, error.field, error.line) == (reason, field, 2)
    assert error.file.endswith("testset-v1.json")
    assert len(record.comparisons) == 1


@pytest.mark.parametrize(("broken", "field"), [({"input": ""}, "instruction"), (3, "line")])
def test_a_row_without_a_prompt_is_an_error_of_training(tmp_path, broken, field):
    data = module(tmp_path, [row(), broken])
    errors = {s: [e for e in examples(data, s) if isinstance(e, RecordError)] for s in data.sources}
    assert [len(found) for found in errors.values()] == [1, 0, 0]
    assert (errors["train"][0].field, errors["train"][0].line) == (field, 2)


def test_a_missing_column(tmp_path):
    short = {name: value for name, value in row().items() if name != "annotator3"}
    (error,) = examples(module(tmp_path, [short]))
    assert (error.reason, error.field) == ("missing field", "annotator3")


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"github\.com/WeOpenML/PandaLM.*3871806e72b4.*Apache-2\.0"):
        PandaLMDataModule()
    with pytest.raises(ValueError, match="judgements must be one of crowd, annotators; got 'workers'"):
        PandaLMDataModule(data_dir="x", judgements="workers")
    with pytest.raises(FileNotFoundError, match=r"testset-v1\.json"):
        PandaLMDataModule(data_dir=str(tmp_path)).files("train")
    assert PandaLMDataModule(data_dir="x").settings() == {"judgements": "crowd"}


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared PandaLM sample is not beside this checkout")
def test_real_files():
    data = PandaLMDataModule(data_dir=str(REAL))
    found = {source: examples(data, source) for source in data.sources}
    errors = [error for rows in found.values() for error in rows if isinstance(error, RecordError)]
    assert [error.reason for error in errors] == ["empty response"] * 54
    records = {s: [r for r in rows if not isinstance(r, RecordError)] for s, rows in found.items()}
    assert [len(rows) for rows in records.values()] == [120, 12, 11]
    assert [sum(len(r.responses) for r in rows) for rows in records.values()] == [512, 48, 48]
    comparisons = [c for rows in records.values() for r in rows for c in r.comparisons]
    assert len(comparisons) == 820
    assert {sum(c.votes) for c in comparisons} == {3}
