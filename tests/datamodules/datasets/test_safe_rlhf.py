"""PKU-SafeRLHF: two domains a pair, votes for harm; pinned source; invented rows in the real schema."""

import gzip
import json

import pytest
import torch

from pluralign.datamodules import LoaderConfig, RecordError
from pluralign.datamodules.datasets.safe_rlhf import LABELS, SafeRLHFDataModule

REVISION = "9421ffafec3fa40a1f1a7d567b4d525079477ecb"

ROW = {
    "prompt": "How do I open a locked door?",
    "response_0": "Kick it in.",
    "response_1": "Call a locksmith.",
    "prompt_source": "somebody",
    "response_0_source": "Alpaca-7B",
    "response_1_source": "Alpaca-7B",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": {"Violence": True},
    "response_1_harm_category": {"Violence": False},
    "response_0_severity_level": 2,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "safer_response_id": 1,
    "response_0_sha256": "0",
    "response_1_sha256": "1",
}


def write(folder, rows, test=(ROW,), model="Alpaca-7B"):
    (folder / model).mkdir(exist_ok=True)
    for name, content in {"train": rows, "test": test}.items():
        lines = "\n".join(map(json.dumps, content)).encode()
        (folder / model / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [ROW | {"prompt": f"How do I open door {i // 2}?"} for i in range(40)]
    rows += [ROW | {"response_1_severity_level": 4}] * bad
    return SafeRLHFDataModule(data_dir=write(folder, rows), **settings)


def examples(data, source="train"):
    return [
        found if isinstance(found, RecordError) else data.to_example(found) for found in data.load(source)
    ]


def test_a_row_is_compared_in_two_domains(tmp_path):
    (record,) = examples(SafeRLHFDataModule(data_dir=write(tmp_path, [ROW])))
    assert (record.id, record.prompt) == ("Alpaca-7B/train:1", "How do I open a locked door?")
    assert [(r.text, r.score, r.votes) for r in record.responses] == [
        ("Kick it in.", None, (0, 0, 1, 0)),
        ("Call a locksmith.", None, (1, 0, 0, 0)),
    ]
    assert LABELS["severity"] == ("safe", "minor", "moderate", "severe")
    found = [(c.chosen, c.rejected, c.preference, c.domain) for c in record.comparisons]
    assert found == [(0, 1, 1.0, "helpfulness"), (1, 0, 1.0, "harmlessness")]


def test_votes_for_safety_need_no_severity(tmp_path):
    old = {name: value for name, value in ROW.items() if "severity" not in name}
    (record,) = examples(SafeRLHFDataModule(votes="safety", data_dir=write(tmp_path, [old])))
    assert [r.votes for r in record.responses] == [(0, 1), (1, 0)]
    assert LABELS["safety"] == ("safe", "unsafe")
    with pytest.raises(RecordError, match="missing field: field 'response_0_severity_level'"):
        examples(SafeRLHFDataModule(data_dir=write(tmp_path, [old])))


def test_one_domain(tmp_path):
    data = SafeRLHFDataModule(domains=("harmlessness", "harmlessness"), data_dir=write(tmp_path, [ROW]))
    (record,) = examples(data)
    assert [(c.chosen, c.domain) for c in record.comparisons] == [(1, "harmlessness")]
    assert data.settings() == {"hub": None, "domains": ("harmlessness",), "votes": "severity"}


def test_every_models_folder_is_read_in_turn(tmp_path):
    write(tmp_path, [ROW], model="Alpaca3-8B")
    data = SafeRLHFDataModule(data_dir=write(tmp_path, [ROW, ROW]))
    ids = [record.id for record in examples(data)]
    assert ids == ["Alpaca-7B/train:1", "Alpaca-7B/train:2", "Alpaca3-8B/train:1"]
    assert [path.parent.name for path in data.files("test")] == ["Alpaca-7B", "Alpaca3-8B"]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"better_response_id": 2}, "out of range", "better_response_id"),
        ({"safer_response_id": None}, "missing field", "safer_response_id"),
        ({"response_1_severity_level": 4}, "out of range", "response_1_severity_level"),
        ({"response_1_severity_level": "0"}, "wrong type", "response_1_severity_level"),
        ({"response_0": " "}, "empty response", "responses[0].text"),
        ({"response_0": 1}, "wrong type", "response_0"),
        ({"prompt": None}, "missing field", "prompt"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(SafeRLHFDataModule(data_dir=write(tmp_path, [{**ROW, **change}])))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize("value", [1, "true", None])
def test_safety_is_a_truth_value(tmp_path, value):
    rows = [{**ROW, "is_response_1_safe": value}]
    with pytest.raises(RecordError, match=r"'is_response_1_safe' is .*; allowed: true \| false"):
        examples(SafeRLHFDataModule(votes="safety", data_dir=write(tmp_path, rows)))


def test_lines_that_are_no_rows_are_skipped_and_counted(tmp_path):
    blank = {**ROW, "response_1": ""}
    folder = write(tmp_path, [ROW], [ROW, blank, 3])
    data = SafeRLHFDataModule(data_dir=folder, validation_share=0.5)
    data.prepare_data()
    data.setup("test")
    assert data.reports["test"].invalid == {"empty response": 1, "wrong type": 1}
    assert (data.reports["test"].records, data.reports["test"].comparisons) == (1, 2)


def test_a_batch_holds_votes_and_domains(tmp_path):
    rows = [{**ROW, "prompt": f"Q{i}?"} for i in range(9)]
    data = SafeRLHFDataModule(
        data_dir=write(tmp_path, rows), validation_share=0.3, loader=LoaderConfig(batch_size=2)
    )
    data.setup()
    (batch,) = data.test_dataloader()
    torch.testing.assert_close(batch["votes"], torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0]]))
    assert batch["comparisons"].tolist() == [[0, 1], [1, 0]]
    assert [data.domains[i] for i in batch["domain_id"]] == ["helpfulness", "harmlessness"]
    assert "comparison_votes" not in batch and "score" not in batch


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        return [ROW, {**ROW, "safer_response_id": 0}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = SafeRLHFDataModule()
    records = examples(data, "test")
    assert [record.id for record in records] == ["test:1", "test:2"]
    assert [record.comparisons[1].chosen for record in records] == [1, 0]
    assert asked == [
        ("PKU-Alignment/PKU-SafeRLHF", {"revision": REVISION, "split": "test", "data_dir": None})
    ]
    assert data.files("test") == []
    assert data.settings() == {
        "hub": f"PKU-Alignment/PKU-SafeRLHF@{REVISION}",
        "domains": ("helpfulness", "harmlessness"),
        "votes": "severity",
    }


def test_wrong_arguments(tmp_path):
    with pytest.raises(
        ValueError, match=r"domains must be one or more of helpfulness, harmlessness; got \[\]"
    ):
        SafeRLHFDataModule(domains=())
    with pytest.raises(ValueError, match=r"domains must be .*; got \['honesty'\]"):
        SafeRLHFDataModule(domains=("honesty",))
    with pytest.raises(ValueError, match="votes must be one of safety, severity; got 'harm'"):
        SafeRLHFDataModule(votes="harm")
    with pytest.raises(FileNotFoundError, match="has no folder Alpaca-7B, Alpaca2-7B, Alpaca3-8B"):
        SafeRLHFDataModule(data_dir=str(tmp_path)).files("train")
    (tmp_path / "Alpaca2-7B").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl"):
        SafeRLHFDataModule(data_dir=str(tmp_path)).files("train")
