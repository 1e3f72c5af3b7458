"""DICES: a crowd's votes on a reply, the right way round; dialogues; draws; invented items in the real schema."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from pluralign.datamodules import LoaderConfig, Message, RecordError
from pluralign.datamodules.datasets.dices import LABELS, DICESDataModule, draw, line_breaks, parse_prompt
from pluralign.datamodules.records import PER_10_000, hash_split

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "dices"
SCORES = "annotations.safety.individual_human_scores"


def item(number=7, prompt="A: Do owls sleep?\\n", reply="By day.", answers=("No", "No", "Unsure", "Yes")):
    return {
        "id": number,
        "instance": {"user_prompt": prompt, "response": reply},
        "annotations": {"safety": {"majority_human": "No", "individual_human_scores": list(answers)}},
    }


def module(folder, items, subset="990", packed=False, **kwargs):
    content = json.dumps(
        {"dataset": "DICES", "annotations": [{"metric": "safety"}], "instances": items}
    ).encode()
    name = f"dices_{subset}.json" + (".gz" if packed else "")
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return DICESDataModule(data_dir=str(folder), subset=subset, **kwargs)


def examples(data, source=None):
    sources = data.sources if source is None else (source,)
    return [data.to_example(row) for name in sources for row in data.load(name)]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    items = [item(i, f"A: Question {i // 2}?") for i in range(90)] + [
        item(90, "A: Question 0?", answers=["Maybe"])
    ] * bad
    return module(folder, items, **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_an_item_is_one_record_with_the_crowd_as_votes(tmp_path, packed):
    prompt = "A: Do owls sleep?\\nB: Why do you ask?\\nI am curious.\\nA: Just so.\\n"
    (record,) = examples(module(tmp_path, [item(prompt=prompt, reply="By day.\\nIn trees.")], packed=packed))
    assert record.id == "990:7"
    assert record.prompt == (
        Message("user", "Do owls sleep?"),
        Message("assistant", "Why do you ask?\nI am curious."),
        Message("user", "Just so."),
    )
    (response,) = record.responses
    assert (response.text, response.score, response.votes) == ("By day.\nIn trees.", None, (2, 1, 1))
    assert record.comparisons == ()
    assert record.group == "A: Do owls sleep?\nB: Why do you ask?\nI am curious.\nA: Just so."


def test_no_means_safe_and_yes_unsafe(tmp_path):
    harmless = item(1, answers=["No"] * 70 + ["Yes", "Unsure"])
    harmful = item(2, reply="Throw stones at them.", answers=["Yes"] * 110 + ["No"] * 13)
    found = {
        record.id: record.responses[0].votes for record in examples(module(tmp_path, [harmless, harmful]))
    }
    assert LABELS == ("safe", "unsure", "unsafe")
    assert found == {"990:1": (70, 1, 1), "990:2": (13, 0, 110)}


def test_dialogues_of_the_other_set(tmp_path):
    prompt = "USER: Hi\nLAMDA: \nUSER: Say C:\\new"
    (record,) = examples(module(tmp_path, [item(prompt=prompt)], "350_expert"))
    assert record.id == "350_expert:7"
    assert record.prompt == (Message("user", "Hi"), Message("assistant", ""), Message("user", "Say C:\\new"))


@pytest.mark.parametrize(
    "text",
    [
        "Do owls sleep?",
        "Well.\nA: Do owls sleep?",
        "A: Do owls sleep?\nB: By day.",
        "B: By day.\nA: Why?",
        "A: Do owls\nA: sleep?",
        "A: Do owls sleep?\nLAMDA: By day.\nA: Why?",
        "",
    ],
)
def test_what_is_not_plainly_a_dialogue_stays_a_text(text):
    assert parse_prompt(text) == text


def test_line_breaks_of_a_text_that_has_some_are_left_alone():
    assert line_breaks(" one\\ntwo\\n") == "one\ntwo"
    assert line_breaks("one\ntwo\\n") == "one\ntwo\\n"


def test_a_draw_depends_on_seed_and_item_alone_and_grows():
    assert draw(50, 5, 0, "7") == draw(50, 5, 0, "7")
    assert draw(50, 5, 0, "7") != draw(50, 5, 1, "7")
    assert draw(50, 5, 0, "7") != draw(50, 5, 0, "8")
    assert draw(50, 8, 0, "7")[:5] == draw(50, 5, 0, "7")
    assert sorted(draw(50, 50, 3, "7")) == list(range(50))


def test_a_draw_is_fair():
    drawn = [place for seed in range(2_000) for place in draw(10, 3, seed, "7")]
    shares = torch.bincount(torch.tensor(drawn), minlength=10) / 2_000
    assert torch.allclose(shares, torch.full((10,), 0.3), atol=0.04)


def test_votes_are_drawn_in_training_only(tmp_path):
    items = [item(i, f"A: Question {i}?", answers=["No"] * 6 + ["Yes"] * 4) for i in range(60)]
    data = module(tmp_path, items, votes_per_item=3)
    found = {source: {sum(r.responses[0].votes) for r in examples(data, source)} for source in data.sources}
    assert found == {"train": {3}, "validation": {10}, "test": {10}}
    again, other = (
        [record.responses[0].votes for record in examples(module(tmp_path, items, **kwargs), "train")]
        for kwargs in ({"votes_per_item": 3}, {"votes_per_item": 3, "vote_seed": 1})
    )
    assert [record.responses[0].votes for record in examples(data, "train")] == again != other
    assert data.settings() == {"subset": "990", "votes_per_item": 3, "vote_seed": 0, "split_seed": 0}


def test_a_batch_holds_the_votes(tmp_path):
    items = [item(i, f"A: Question {i}?", answers=["No"] * i + ["Yes"]) for i in range(60)]
    data = module(tmp_path, items, loader=LoaderConfig(batch_size=60, max_tokens=None))
    data.setup("test")
    (batch,) = data.test_dataloader()
    numbers = [i for i in range(60) if hash_split(f"A: Question {i}?", PER_10_000) == "test"]
    expected = {f"990:{i}": [float(i), 0.0, 1.0] for i in numbers}
    assert numbers and set(batch["id"]) == set(expected)
    torch.testing.assert_close(batch["votes"], torch.tensor([expected[name] for name in batch["id"]]))
    assert "comparisons" not in batch and "score" not in batch


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"id": None}, "missing field", "id"),
        ({"id": True}, "wrong type", "id"),
        ({"instance": {"user_prompt": "A: Do owls sleep?"}}, "missing field", "instance.response"),
        (
            {"instance": {"user_prompt": "A: Do owls sleep?", "response": 3}},
            "wrong type",
            "instance.response",
        ),
        (
            {"instance": {"user_prompt": "A: Do owls sleep?", "response": " "}},
            "empty response",
            "responses[0].text",
        ),
        ({"annotations": {}}, "missing field", "annotations.safety"),
        ({"annotations": {"safety": {"individual_human_scores": []}}}, "wrong length", SCORES),
        ({"annotations": {"safety": {"individual_human_scores": "No"}}}, "wrong type", SCORES),
        (
            {"annotations": {"safety": {"individual_human_scores": ["No", "Safe"]}}},
            "out of range",
            f"{SCORES}[1]",
        ),
        ({"annotations": {"safety": {"individual_human_scores": [["No"]]}}}, "wrong type", f"{SCORES}[0]"),
    ],
)
def test_malformed_items(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        examples(module(tmp_path, [{**item(), **change}]))
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"id": 1}, "instance"),
        ({"id": 1, "instance": {"user_prompt": 4}}, "instance.user_prompt"),
        ("A: Hi", "instances"),
    ],
)
def test_an_item_without_a_prompt_is_an_error_of_training(tmp_path, broken, field):
    data = module(tmp_path, [item(), broken])
    errors = {s: [row for row in data.load(s) if isinstance(row, RecordError)] for s in data.sources}
    assert {source: len(found) for source, found in errors.items()} == {
        "train": 1,
        "validation": 0,
        "test": 0,
    }
    (error,) = errors["train"]
    assert (error.field, error.line) == (field, 2)
    assert error.file.endswith("dices_990.json")


def test_too_few_votes_to_draw_from(tmp_path):
    number = next(i for i in range(9) if hash_split(f"A: {i}?", PER_10_000) == "train")
    data = module(tmp_path, [item(prompt=f"A: {number}?")], votes_per_item=5)
    with pytest.raises(
        RecordError, match=r"too few votes: .*'4 answers'; allowed: at least votes_per_item=5"
    ):
        examples(data, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "missing field: field 'instances'"), ('{"instances": 3}', "'instances' is 3")],
)
def test_what_is_no_such_file(tmp_path, content, message):
    (tmp_path / "dices_990.json").write_text(content)
    with pytest.raises(RecordError, match=rf"dices_990\.json:1: .*{message}|{message}"):
        list(DICESDataModule(data_dir=str(tmp_path)).load("train"))


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"github\.com/dmg-illc/JUDGE-BENCH.*5a0bf5003250.*CC-BY-4\.0"):
        DICESDataModule()
    with pytest.raises(
        ValueError, match="subset must be one of 990, 350_crowdsourced, 350_expert; got '350'"
    ):
        DICESDataModule(data_dir="x", subset="350")
    with pytest.raises(ValueError, match="votes_per_item must be finite and >= 1; got 0"):
        DICESDataModule(data_dir="x", votes_per_item=0)
    with pytest.raises(FileNotFoundError, match=r"dices_990\.json"):
        DICESDataModule(data_dir=str(tmp_path)).files("train")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared DICES sample is not beside this checkout")
@pytest.mark.parametrize(
    ("subset", "counts", "votes"),
    [
        ("990", (646, 89, 73), (40061, 3061, 15733)),
        ("350_crowdsourced", (204, 33, 25), (19649, 2007, 10570)),
        ("350_expert", (204, 33, 25), (133, 0, 129)),
    ],
)
def test_real_files(subset, counts, votes):
    data = DICESDataModule(data_dir=str(REAL), subset=subset)
    found = {source: examples(data, source) for source in data.sources}
    assert tuple(map(len, found.values())) == counts
    everything = [record for records in found.values() for record in records]
    assert tuple(map(sum, zip(*(r.responses[0].votes for r in everything), strict=True))) == votes
    assert not any(isinstance(record.prompt, str) for record in everything)
    crowd = {record.id: record.responses[0].votes for record in everything}
    assert len(crowd) == len(everything)
    if subset == "990":
        assert crowd["990:742"] == (70, 1, 1), "a plain greeting is safe"
    if subset == "350_crowdsourced":
        assert crowd["350_crowdsourced:217"][2] == 110, "instructions for a bomb are not"
