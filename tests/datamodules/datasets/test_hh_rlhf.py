"""HH-RLHF: dialogues become messages and responses; pinned source; invented rows in the real schema."""

import gzip
import json
from pathlib import Path

import pytest

from pluralign.datamodules import HHRLHFDataModule, Message, PreferenceRecord, RecordError
from pluralign.datamodules.datasets.hh_rlhf import parse_dialogue, split_dialogues

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "hh-rlhf"

PAIR = {
    "chosen": "\n\nHuman: Where do owls sleep?\n\nAssistant: Ask me why.\n\nHuman: Why?\n\nAssistant: In trees.",
    "rejected": "\n\nHuman: Where do owls sleep?\n\nAssistant: Ask me why.\n\nHuman: Why?\n\nAssistant: No idea.\n\nSorry.",
}


def dialogue(*turns):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def write(folder, rows, subset="helpful-base", **others):
    for name, content in {"train": rows, "test": rows[:1], **others}.items():
        (folder / subset).mkdir(exist_ok=True)
        lines = "\n".join(map(json.dumps, content)).encode()
        (folder / subset / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    asked = [
        {
            side: dialogue(f"Sky {i // 2}?", *["Why?", "So."] * (i % 2), side)
            for side in ("chosen", "rejected")
        }
        for i in range(80)
    ]
    write(folder, asked[2:] + [{**asked[2], "rejected": "Blue."}] * bad, test=asked[:1])
    return HHRLHFDataModule(subsets=("helpful-base",), data_dir=str(folder), **settings)


def examples(module, source="train"):
    return [module.to_example(row) for row in module.load(source)]


def test_shared_turns_are_the_prompt(tmp_path):
    module = HHRLHFDataModule(subsets=("helpful-base",), data_dir=write(tmp_path, [PAIR]))
    (record,) = examples(module)
    assert isinstance(record, PreferenceRecord)
    assert record.id == "helpful-base/train:1"
    assert record.prompt == (
        Message("user", "Where do owls sleep?"),
        Message("assistant", "Ask me why."),
        Message("user", "Why?"),
    )
    assert [response.text for response in record.responses] == ["In trees.", "No idea.\n\nSorry."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference) == (0, 1, 1.0)
    assert comparison.domain == "helpful-base"
    assert record.group == "Where do owls sleep?"


def test_dialogues_that_part_early_keep_the_rest_as_plain_text():
    first = parse_dialogue("chosen", dialogue("A?", "Yes.", "B?", "Sure."))
    second = parse_dialogue("rejected", dialogue("A?", "No.", "C?", "Hm."))
    prompt, *rests = split_dialogues(first, second)
    assert prompt == (Message("user", "A?"),)
    assert rests == ["Yes.\n\nHuman: B?\n\nAssistant: Sure.", "No.\n\nHuman: C?\n\nAssistant: Hm."]


def test_a_dialogue_that_goes_on_after_the_answer():
    first = parse_dialogue("chosen", dialogue("A?", "Yes."))
    second = parse_dialogue("rejected", dialogue("A?", "Yes.", "Thanks."))
    assert split_dialogues(first, second)[1:] == ("Yes.", "Yes.\n\nHuman: Thanks.")


def test_two_turns_of_one_speaker_are_one():
    messages = parse_dialogue("chosen", "\n\nHuman: A?\n\nAssistant: One.\n\nAssistant:  Two.\n\nHuman:")
    assert messages == (Message("user", "A?"), Message("assistant", "One.\n\nTwo."), Message("user", ""))


@pytest.mark.parametrize("text", ["", "Hello", "Well.\n\nHuman: Hi", "Human Hi"])
def test_text_that_is_no_dialogue(text):
    with pytest.raises(RecordError, match="not a dialogue"):
        parse_dialogue("chosen", text)


def test_dialogues_without_a_common_turn():
    first, second = (parse_dialogue("chosen", dialogue(turn, "Yes.")) for turn in ("A?", "B?"))
    with pytest.raises(RecordError, match="no common prompt"):
        split_dialogues(first, second)


def test_identical_pairs_are_dropped_and_blank_answers_skipped(tmp_path):
    same = {"chosen": dialogue("A?", "Yes."), "rejected": dialogue("A?", "Yes.")}
    blank = {"chosen": dialogue("A?", "Yes."), "rejected": dialogue("A?", "")}
    other = {"chosen": dialogue("B?", "Yes."), "rejected": dialogue("B?", "No.")}
    folder = write(tmp_path, [other], test=[PAIR, same, blank, {"chosen": "x"}])
    module = HHRLHFDataModule(subsets=("helpful-base",), data_dir=folder)
    module.setup("test")
    report = module.reports["test"]
    assert (report.rows, report.records) == (4, 1)
    assert report.invalid == {"empty response": 1, "not a dialogue": 1}
    assert report.dropped["comparison of identical responses"] == 1
    strict = HHRLHFDataModule(subsets=("helpful-base",), data_dir=folder, on_invalid="error")
    with pytest.raises(RecordError, match=r"test\.jsonl\.gz:3: empty response"):
        strict.setup("test")


def test_the_plain_format_gives_the_source_back(tmp_path):
    module = HHRLHFDataModule(subsets=("helpful-base",), data_dir=write(tmp_path, [PAIR]))
    _, *rendered = module.tokenizer.render(examples(module)[0])
    assert rendered == [PAIR["chosen"], PAIR["rejected"]]


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        return [PAIR]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    module = HHRLHFDataModule(subsets=("harmless-base", "helpful-online"))
    records = examples(module, "test")
    assert [record.id for record in records] == ["harmless-base/test:1", "helpful-online/test:1"]
    assert [record.comparisons[0].domain for record in records] == ["harmless-base", "helpful-online"]
    revision = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
    assert asked == [
        ("Anthropic/hh-rlhf", {"revision": revision, "split": "test", "data_dir": subset})
        for subset in ("harmless-base", "helpful-online")
    ]
    assert module.files("test") == []
    assert revision in str(module.settings()["hub"])


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="subsets must be one or more of helpful-base"):
        HHRLHFDataModule(subsets=("helpful",))
    with pytest.raises(ValueError, match="subsets"):
        HHRLHFDataModule(subsets=())
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl"):
        HHRLHFDataModule(data_dir=str(tmp_path)).files("train")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared HH-RLHF sample is not beside this checkout")
def test_real_files():
    module = HHRLHFDataModule(data_dir=str(REAL))
    kept, blank, same = 0, 0, 0
    for source in module.sources:
        for row in module.load(source):
            try:
                record = module.to_example(row)
            except RecordError as error:
                assert error.reason == "empty response"
                blank += 1
                continue
            kept += 1
            same += record.responses[0] == record.responses[1]
            assert record.prompt[-1].role == "user"
    assert (kept, blank, same) == (6796, 7, 28)
