"""HHH alignment: dialogue and response out of a judge's prompt; invented rows in the real schema."""

import gzip
import json
from pathlib import Path

import pytest

from pluralign.datamodules import HHHDataModule, Message, RecordError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "hhh-alignment"


def judged(dialogue, response):
    return (
        "###Task Description:\nJudge.\n\n"
        f"###The instruction to evaluate:\n{dialogue}\n\n"
        f"###Response to evaluate:\n{response}\n\n"
        "###Score Rubrics:\n[Is it kind?]\nScore 1: no.\nScore 5: yes.\n\n###Feedback: "
    )


def row(dialogue="Is it cold?", chosen="Yes, take a coat.", rejected="No.", source="helpful", **changes):
    return {
        "source": source,
        "chosen_instruction": judged(dialogue, chosen),
        "rejected_instruction": judged(dialogue, rejected),
        **changes,
    }


def write(folder, rows, packed=False):
    content = json.dumps(rows).encode()
    name = "hhh_alignment_eval.json.gz" if packed else "hhh_alignment_eval.json"
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    names = ("harmless", "helpful", "honest", "other")
    rows = [row(f"Is it cold, {i}?", source=name) for name in names for i in range(2)]
    return HHHDataModule(data_dir=write(folder, rows + [row(source="kind")] * bad), **settings)


def records(folder, *rows, **settings):
    return list(HHHDataModule(data_dir=write(folder, rows), **settings).records("test"))


@pytest.mark.parametrize("packed", [False, True])
def test_the_rubric_is_left_out(tmp_path, packed):
    data = HHHDataModule(data_dir=write(tmp_path, [row(rejected="No.\n\nReally.")], packed))
    (record,) = data.records("test")
    assert (record.id, record.prompt) == ("hhh:1", "Is it cold?")
    assert [one.text for one in record.responses] == ["Yes, take a coat.", "No.\n\nReally."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.domain) == (0, 1, "helpful")


def test_a_dialogue_of_several_turns_is_messages(tmp_path):
    (record,) = records(tmp_path, row("Hi.\n\nIs it cold?\n\nAssistant:  Where?\n\nHuman: In May: here."))
    assert record.prompt == (
        Message("user", "Hi.\n\nIs it cold?"),
        Message("assistant", "Where?"),
        Message("user", "In May: here."),
    )


def test_sources_and_all_pairs(tmp_path):
    rows = [row(source="honest"), row(source="honest"), row(source="other")]
    data = HHHDataModule(data_dir=write(tmp_path, rows))
    scores = data.official_scores(list(data.records("test")), [[1, 0], [0, 0], [0, 1]])
    assert scores.numbers == pytest.approx({"honest": 0.5, "other": 0.0, "Average": 1 / 3})
    assert [item["score"] for item in scores.items] == [1, 0, 0]


def test_domains_are_chosen(tmp_path):
    rows = [row(source="honest"), row(source="other")]
    assert [record.id for record in records(tmp_path, *rows, domains=("other",))] == ["hhh:2"]


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"source": "kind"}, "out of range", "source"),
        ({"chosen_instruction": "Is it cold?"}, "another form", "chosen_instruction"),
        ({"rejected_instruction": judged("Is it hot?", "No.")}, "another prompt", "rejected_instruction"),
        ({"rejected": " "}, "empty response", "responses[1].text"),
        ({"dialogue": "Hi.\n\nAssistant: Hello."}, "out of range", "prompt[1].role"),
    ],
)
def test_malformed_rows(tmp_path, changes, reason, field):
    with pytest.raises(RecordError) as caught:
        records(tmp_path, row(**changes))
    assert (caught.value.reason, caught.value.field, caught.value.line) == (reason, field, 1)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared HHH sample is not beside this checkout")
def test_real_files():
    data = HHHDataModule(data_dir=str(REAL))
    found = list(data.records("test"))
    domains = [record.comparisons[0].domain for record in found]
    counts = {name: domains.count(name) for name in ("harmless", "helpful", "honest", "other")}
    assert counts == {"harmless": 39, "helpful": 36, "honest": 47, "other": 24}
    dialogues = [record.prompt for record in found if not isinstance(record.prompt, str)]
    assert {tuple(turn.role for turn in turns) for turns in dialogues} == {("user", "assistant", "user")}
    assert len(dialogues) == 31
    assert not any("###" in response.text for record in found for response in record.responses)
    equal = data.official_scores(found, [[0.0, 0.0]] * len(found))
    assert set(equal.numbers.values()) == {0.0}
    longer = data.official_scores(found, [[len(one.text) for one in record.responses] for record in found])
    assert longer.numbers["Average"] == pytest.approx(91 / 146)
