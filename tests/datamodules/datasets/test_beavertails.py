"""BeaverTails: rows of one answer are its votes; safe or unsafe, and single harms; pinned source; invented rows, real schema."""

import gzip
import json

import pytest

from pluralign.datamodules import RecordError
from pluralign.datamodules.datasets.beavertails import HARMS, LABELS, BeaverTailsDataModule


def row(safe=True, prompt="How do I open a door?", response="Turn the handle.", harms=(), **changes):
    category = {name: name in harms for name in HARMS.values()}
    return {"prompt": prompt, "response": response, "category": category, "is_safe": safe, **changes}


def module(folder, rows, held_out=None, subset="330k", packed=False, **settings):
    (folder / subset).mkdir(exist_ok=True)
    for name, content in (("train", rows), ("test", [row()] if held_out is None else held_out)):
        text = "\n".join(map(json.dumps, content)).encode()
        path = folder / subset / f"{name}.jsonl{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(text) if packed else text)
    return BeaverTailsDataModule(data_dir=str(folder), subset=subset, **settings)


def found(data, source="train"):
    return [item if isinstance(item, RecordError) else data.to_example(item) for item in data.load(source)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [row(i % 3 > 0, f"Question {i // 2}?", f"Answer {i}.") for i in range(80)]
    return module(folder, rows + [row("yes", "Question 0?")] * bad, **settings)


@pytest.mark.parametrize(("subset", "packed"), [("330k", False), ("30k", True)])
def test_rows_of_one_answer_are_its_votes(tmp_path, subset, packed):
    rows = [
        row(),
        row(False, response="Kick it."),
        row(response="Turn the handle. "),
        row(False),
        row(prompt="Another?"),
    ]
    records = found(module(tmp_path, rows, subset=subset, packed=packed))
    assert LABELS == ("safe", "unsafe")
    assert [(r.id, r.prompt, r.responses[0].text, r.responses[0].votes) for r in records] == [
        (f"{subset}/train:1", "How do I open a door?", "Turn the handle.", (2, 1)),
        (f"{subset}/train:2", "How do I open a door?", "Kick it.", (0, 1)),
        (f"{subset}/train:5", "Another?", "Turn the handle.", (1, 0)),
    ]
    assert all(r.comparisons == () and r.responses[0].score is None for r in records)


@pytest.mark.parametrize("harm", HARMS)
def test_a_harm_has_votes_of_its_own(tmp_path, harm):
    others = tuple(name for key, name in HARMS.items() if key != harm)
    rows = [row(False, harms=(HARMS[harm],)), row(False, harms=others), row(harms=())]
    (record,) = found(module(tmp_path, rows, harm=harm))
    assert record.responses[0].votes == (2, 1)


@pytest.mark.parametrize(
    ("change", "settings", "reason", "field"),
    [
        ({"is_safe": None}, {}, "missing field", "is_safe"),
        ({"is_safe": 1}, {}, "wrong type", "is_safe"),
        ({"prompt": 3}, {}, "wrong type", "prompt"),
        ({"response": None}, {}, "missing field", "response"),
        (
            {"category": {}},
            {"harm": "violence"},
            "missing field",
            "category.violence,aiding_and_abetting,incitement",
        ),
        ({"category": "violence"}, {"harm": "violence"}, "wrong type", "category"),
    ],
)
def test_a_malformed_vote_is_an_error_and_the_others_stay(tmp_path, change, settings, reason, field):
    rows = [row(**change), row()]
    error, record = found(module(tmp_path, rows, **settings))
    assert (error.reason, error.field, error.line) == (reason, field, 1)
    assert error.file.endswith("train.jsonl")
    assert (record.id, record.responses[0].votes) == ("330k/train:2", (1, 0))


def test_blank_answers_are_errors(tmp_path):
    with pytest.raises(RecordError, match="empty response"):
        found(module(tmp_path, [row(response=" ")]))


def test_answers_to_a_prompt_share_it(tmp_path):
    rows = [row(i % 2 == 0, f"Question {i // 4}? " * 9, f"Answer {i % 4}.") for i in range(160)]
    data = module(tmp_path, rows)
    data.setup("fit")
    assert data.reports["train"].rows + data.reports["validation"].rows == 160
    batch = next(iter(data.batches("train")))
    assert len(batch["id"]) < len(batch["votes"]) == len(batch["response_row"])
    assert batch["votes"].sum(1).tolist() == [1.0] * len(batch["votes"])


def test_the_hub_is_pinned(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda name, **how: asked.append((name, how["revision"], how["split"])) or [row()],
    )
    data = BeaverTailsDataModule(subset="30k")
    assert [found(data, source)[0].id for source in data.sources] == ["30k/train:1", "30k/test:1"]
    revision = "8401fe609d288129cc684a9b3be6a93e41cfe678"
    assert set(asked) == {
        ("PKU-Alignment/BeaverTails", revision, f"30k_{split}") for split in ("train", "test")
    }
    assert data.settings() == {"hub": f"PKU-Alignment/BeaverTails@{revision}", "subset": "30k", "harm": None}


def test_wrong_settings():
    with pytest.raises(ValueError, match="subset must be one of 330k, 30k; got '300k'"):
        BeaverTailsDataModule(subset="300k")
    with pytest.raises(
        ValueError, match=r"harm must be one of animal_abuse, .*, violence, null; got 'politics'"
    ):
        BeaverTailsDataModule(harm="politics")
