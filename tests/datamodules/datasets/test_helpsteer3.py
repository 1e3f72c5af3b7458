"""HelpSteer3: signed preferences (below 0 the first), votes of up to three people, domains; invented rows, real schema."""

import gzip
import json

import pytest

from pluralign.datamodules import HelpSteer3DataModule, Message, RecordError

REVISION = "f6d145777bcbde96137596340fab89793acd1031"


def individual(*scores):
    return [
        {"score": score, "reasoning": "Shorter.", "feedback1": "Fine.", "feedback2": "Long."}
        for score in scores
    ]


def row(question="What is rain?", overall=-2, scores=(-3, -1, 1), domain="general", **changes):
    return {
        "domain": domain,
        "language": "english",
        "context": [{"role": "user", "content": question}],
        "response1": "Water.",
        "response2": "Weather.",
        "overall_preference": overall,
        "individual_preference": individual(*scores),
        **changes,
    }


def write(folder, rows, held_out=None, packed=False):
    (folder / "preference").mkdir(exist_ok=True)
    for name, content in (("train", rows), ("validation", held_out or [row("What is fog?")])):
        lines = "\n".join(map(json.dumps, content)).encode()
        path = folder / "preference" / f"{name}.jsonl{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(lines) if packed else lines)
    return str(folder)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [row(f"What is rain, {i}?") for i in range(40)] + [row(overall="2")] * bad
    return HelpSteer3DataModule(data_dir=write(folder, rows), **settings)


def example(folder, *rows, **settings):
    data = HelpSteer3DataModule(data_dir=write(folder, rows), **settings)
    (found,) = data.load("train")
    return data.to_example(found)


def said(comparison):
    return comparison.chosen, comparison.rejected, comparison.preference, comparison.strength


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_a_record_in_its_domain(tmp_path, packed):
    data = HelpSteer3DataModule(data_dir=write(tmp_path, [row(domain="code")], packed=packed))
    (found,) = data.load("train")
    record = data.to_example(found)
    assert (record.id, record.prompt) == ("train:1", (Message("user", "What is rain?"),))
    assert [response.text for response in record.responses] == ["Water.", "Weather."]
    (comparison,) = record.comparisons
    assert (comparison.domain, comparison.user, comparison.votes) == ("code", None, None)


@pytest.mark.parametrize(
    ("overall", "expected"),
    [
        (-3, (0, 1, 1.0, 3.0)),
        (-1, (0, 1, 1.0, 1.0)),
        (0, (0, 1, 0.5, 0.0)),
        (1, (1, 0, 1.0, 1.0)),
        (3, (1, 0, 1.0, 3.0)),
    ],
)
def test_below_zero_the_first_wins_above_zero_the_second(tmp_path, overall, expected):
    (comparison,) = example(tmp_path, row(overall=overall)).comparisons
    assert said(comparison) == expected


@pytest.mark.parametrize(
    ("scores", "expected", "votes"),
    [
        ((-3, -1, 1), (0, 1, 2 / 3, 1.0), (2, 0, 1)),
        ((2, 0, 3), (1, 0, 5 / 6, 5 / 3), (2, 1, 0)),
        ((0,), (0, 1, 0.5, 0.0), (0, 1, 0)),
        ((1, 1, -3), (1, 0, 2 / 3, -1 / 3), (2, 0, 1)),
    ],
)
def test_annotators_vote(tmp_path, scores, expected, votes):
    (comparison,) = example(tmp_path, row(scores=scores), judgements="annotators").comparisons
    assert said(comparison) == pytest.approx(expected)
    assert (comparison.votes, comparison.domain) == (votes, "general")


@pytest.mark.parametrize("missing", [None, []])
def test_a_row_without_annotators_is_counted(tmp_path, missing):
    bare = row(individual_preference=missing)
    with pytest.raises(RecordError) as caught:
        example(tmp_path, bare, judgements="annotators")
    assert caught.value.reason == "no individual preferences"
    assert said(example(tmp_path, bare).comparisons[0]) == (0, 1, 1.0, 2.0)


def test_conversations_with_one_beginning_stay_on_one_side(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Rain?"},
    ]
    record = example(tmp_path, row(context=turns))
    assert [turn.role for turn in record.prompt] == ["system", "user", "assistant", "user"]
    assert record.group == "Hi"


def test_domains_are_chosen_and_unknown_ones_named(tmp_path):
    rows = [row(domain="code"), row("B", domain="stem"), row("C", domain="law"), row("D", domain="stem")]
    data = HelpSteer3DataModule(domains=("stem",), data_dir=write(tmp_path, rows))
    found = list(data.load("train"))
    assert [item.fields["id"] for item in found] == ["train:2", "train:3", "train:4"]
    with pytest.raises(RecordError, match=r"'domain' is 'law'; allowed: general \| stem"):
        data.to_example(found[1])


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"overall": 4}, "out of range", "overall_preference"),
        ({"overall": -1.5}, "wrong type", "overall_preference"),
        ({"overall": None}, "missing field", "overall_preference"),
        ({"context": []}, "empty prompt", "context"),
        ({"context": "What?"}, "wrong type", "context"),
        ({"context": [{"role": "user"}]}, "missing field", "context[0].content"),
        (
            {"context": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]},
            "out of range",
            "prompt[1].role",
        ),
        ({"response1": " "}, "empty response", "responses[0].text"),
        ({"response2": None}, "missing field", "response2"),
    ],
)
def test_malformed_rows(tmp_path, change, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, row(**change))
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_malformed_annotators(tmp_path):
    for scores, reason in (((-100,), "out of range"), ((None,), "missing field")):
        with pytest.raises(RecordError) as caught:
            example(tmp_path, row(scores=scores), judgements="annotators")
        assert (caught.value.reason, caught.value.field) == (reason, "individual_preference[0].score")


def test_the_released_validation_is_the_test(tmp_path):
    data = HelpSteer3DataModule(data_dir=write(tmp_path, [row(f"Q{i}?") for i in range(60)]))
    assert [found.fields["id"] for found in data.load("test")] == ["validation:1"]
    data.setup()
    assert (data.reports["test"].records, data.reports["validation"].in_train) == (1, 0)
    assert data.domains == ["general"]


def test_settings_and_source():
    assert HelpSteer3DataModule().settings()["hub"] == f"nvidia/HelpSteer3@{REVISION}"
    with pytest.raises(ValueError, match="judgements must be one of final, annotators"):
        HelpSteer3DataModule(judgements="crowd")


def test_the_hub_gives_the_same_records(tmp_path, from_hub):
    expected = example(tmp_path, row())
    asked = from_hub([row()])
    data = HelpSteer3DataModule()
    assert [data.to_example(found) for found in data.load("train")] == [expected]
    assert [found.fields["id"] for found in data.load("test")] == ["validation:1"]
    place = ("nvidia/HelpSteer3", "preference", REVISION)
    assert asked == [(*place, "train", None), (*place, "validation", None)]
