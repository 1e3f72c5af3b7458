"""DSP: five responses a query, one record; scored pairs; invented rows in the real schema."""

import json
import math
from collections import Counter

import pytest
import torch

from pluralign.datamodules import DSPDataModule, Message, RecordError
from pluralign.metrics import PreferenceMetrics

NAMES = ("academy", "business", "entertainment", "literature", "normal")


def query(text="What is rain?", **changes):
    return {"query": text, "responses": {**{name: f"{name} says: water." for name in NAMES}, **changes}}


def pair(first="Wet.", second="Dry.", scores=(1.0, 0.0), form="\n\nHuman: Rain?\n\nAssistant: {}"):
    return {"text": [form.format(first), form.format(second)], "score": list(scores)}


WEBGPT = "## Human:\nRain?\n\n\n\n## Assistant:\n{}"


def module(tmp_path, rows, file="domain_specific_preference", **kwargs):
    for source in ("train", "test"):
        (tmp_path / f"{file}.{source}.json").write_text(json.dumps(rows))
    return DSPDataModule(data_dir=str(tmp_path), **kwargs)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    data = module(
        folder, [query(f"What is rain, {i}?") for i in range(40)] + [query(normal=4)] * bad, **settings
    )
    (folder / "domain_specific_preference.test.json").write_text(json.dumps([query("What is fog?")]))
    return data


def example(*args, **kwargs):
    data = module(*args, **kwargs)
    return data.to_example(next(data.load("train")))


def test_a_query_is_one_record_and_each_domain_prefers_its_own(tmp_path):
    record = example(tmp_path, [query()])
    assert (record.id, record.prompt, len(record.responses)) == ("domain/train:1", "What is rain?", 5)
    assert len(record.comparisons) == 20
    for i, name in enumerate(NAMES):
        mine = [comparison for comparison in record.comparisons if comparison.domain == name]
        assert {comparison.chosen for comparison in mine} == {i}
        assert {comparison.rejected for comparison in mine} == set(range(5)) - {i}
        assert record.responses[i].text == f"{name} says: water."


def test_one_domain_keeps_all_responses(tmp_path):
    record = example(tmp_path, [query()], domains=("business",))
    assert len(record.responses) == 5
    assert [(c.chosen, c.rejected, c.domain) for c in record.comparisons] == [
        (1, other, "business") for other in (0, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"query": "Q"}, "missing field", "responses"),
        ({"query": "Q", "responses": ["a"]}, "wrong type", "responses"),
        ({"query": "Q", "responses": {"academy": "a"}}, "missing field", "responses.business"),
        (query(business=4), "wrong type", "responses.business"),
        (query(**dict.fromkeys(NAMES, " ")), "empty response", "responses"),
        ({"responses": query()["responses"]}, "missing field", "query"),
    ],
)
def test_malformed_queries(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, [row])
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_scored_pairs(tmp_path):
    record = example(tmp_path, [pair()], "helpful", subset="helpful")
    assert record.prompt == (Message("user", "Rain?"),)
    assert [response.text for response in record.responses] == ["Wet.", "Dry."]
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.rejected, comparison.preference) == (0, 1, 1.0)
    assert (comparison.strength, comparison.margin, comparison.domain) == (1.0, None, "helpful")
    assert [response.score for response in record.responses] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "chosen", "preference", "gap"),
    [((0.5, 1.5), 1, 1.0, 1.0), ((1.0, 1.0), 0, 0.5, 0.0), ((2, 0), 0, 1.0, 2.0)],
)
def test_degrees_and_ties_of_webgpt(tmp_path, scores, chosen, preference, gap):
    row = pair(scores=scores, form=WEBGPT)
    record = example(tmp_path, [row], "webgpt", subset="webgpt", margins=True, ties="keep")
    assert record.prompt == (Message("user", "Rain?"),)
    (comparison,) = record.comparisons
    assert (comparison.chosen, comparison.preference) == (chosen, preference)
    assert comparison.strength == comparison.margin == gap


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"text": ["a", "b"]}, "missing field", "score"),
        (pair(scores=(1,)), "wrong length", "score"),
        ({"text": ["a"], "score": [1]}, "wrong length", "text"),
        ({"text": ["\n\nHuman: a", "\n\nHuman: b"], "score": [1, 0]}, "no common prompt", "text"),
        (pair("", " "), "empty response", "text"),
        (pair(scores=(1, "0")), "wrong type", "score[1]"),
        (pair(scores=(1, math.nan)), "not finite", "score[1]"),
        ({"text": "ab", "score": [1, 0]}, "wrong type", "text"),
        ({"text": ["\n\nHuman: a", 3], "score": [1, 0]}, "wrong type", "text[1]"),
        ({"text": ["a", "b"], "score": [1, 0]}, "not a dialogue", "text[0]"),
    ],
)
def test_malformed_pairs(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, [row], "harmless", subset="harmless")
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_wrong_arguments(tmp_path):
    with pytest.raises(
        ValueError, match=r"github\.com/Linear95/DSP.*ec099cf332cfdac0d1b0d644844ba60459144092"
    ):
        DSPDataModule()
    with pytest.raises(ValueError, match="subset must be one of domain"):
        DSPDataModule(data_dir="x", subset="all")
    with pytest.raises(ValueError, match="domains must be one or more of academy"):
        DSPDataModule(data_dir="x", domains=("law",))
    with pytest.raises(
        ValueError, match=r"losers must be all with subset=.webgpt., got .normal.*only the files"
    ):
        DSPDataModule(data_dir="x", subset="webgpt", losers="normal")
    with pytest.raises(ValueError, match=r"losers must be all or domains .*: nothing is left to lose"):
        DSPDataModule(data_dir="x", domains=("normal",), losers="normal")
    with pytest.raises(ValueError, match="ties must be one of leave_out, keep; got 'drop'"):
        DSPDataModule(data_dir="x", ties="drop")
    with pytest.raises(FileNotFoundError, match=r"dsp_law_pairs|dsp_business_pairs\.train\.json"):
        DSPDataModule(data_dir=str(tmp_path), subset="converted", domains=("business",)).files("train")
    with pytest.raises(FileNotFoundError, match=r"helpful\.train\.json"):
        DSPDataModule(data_dir=str(tmp_path), subset="helpful").files("train")


# What is no comparison --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losers", "domains", "texts", "pairs"),
    [
        ("all", ("business",), NAMES, [(1, 0), (1, 2), (1, 3), (1, 4)]),
        ("domains", ("business",), NAMES[:4], [(1, 0), (1, 2), (1, 3)]),
        ("normal", ("business",), ("business", "normal"), [(0, 1)]),
        ("normal", NAMES, NAMES, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ("domains", ("normal",), NAMES, [(4, 0), (4, 1), (4, 2), (4, 3)]),
    ],
)
def test_losers(tmp_path, losers, domains, texts, pairs):
    record = example(tmp_path, [query()], losers=losers, domains=domains)
    assert [response.system for response in record.responses] == list(texts), "who wrote each"
    assert [(c.chosen, c.rejected) for c in record.comparisons] == pairs


def test_an_empty_answer_takes_its_own_pairs_alone(tmp_path):
    record = example(tmp_path, [query(business=" \n")])
    assert [response.system for response in record.responses] == [n for n in NAMES if n != "business"]
    assert len(record.comparisons) == 12
    assert record.left_out == {"comparison of an empty response": 8}
    assert {c.domain for c in record.comparisons} == set(NAMES) - {"business"}
    third = pair("Wet.", " ", scores=(2, 1))
    third["text"].append("\n\nHuman: Rain?\n\nAssistant: Damp.")
    third["score"].append(0.5)
    record = example(tmp_path, [third], "gpt4llm", subset="gpt4llm")
    assert [(response.text, response.score) for response in record.responses] == [("Wet.", 2), ("Damp.", 0.5)]
    assert [(c.chosen, c.rejected, c.strength) for c in record.comparisons] == [(0, 1, 1.5)]
    assert record.left_out == {"comparison of an empty response": 2}


def reports(tmp_path, rows, **settings):
    """Reports of test rows, tokenised."""
    file = settings.pop("file", "domain_specific_preference")
    fill = (
        [query("What is fog?")]
        if file == "domain_specific_preference"
        else [pair("Grey.", "Blue.", form="\n\nHuman: Fog?\n\nAssistant: {}")]
    )
    data = module(tmp_path, fill, file, **settings)
    (tmp_path / f"{file}.test.json").write_text(json.dumps(rows))
    data.setup("test")
    return data, data.reports["test"]


def test_defect_12_identical_and_empty_answers_are_left_out_and_counted(tmp_path):
    rows = [query(academy="Same.", normal=" Same.\n"), query("What is snow?", normal="")]
    data, report = reports(tmp_path, rows)
    assert (report.records, report.responses, report.comparisons) == (2, 9, 18 + 12)
    assert report.dropped == {"comparison of identical responses": 2, "comparison of an empty response": 8}
    assert not report.invalid, "neither is an error"
    assert "8 comparison of an empty response, 2 comparison of identical responses" in str(report)
    (batch,) = data.batches("test")
    names = [data.names["system"][i] for i in batch["system_id"].tolist()]
    assert sorted(names) == sorted([*NAMES, *NAMES[:4]]), "equal answers of two systems stay two"


def test_defect_10_ties_are_no_comparison_and_no_record(tmp_path):
    rows = [
        pair(scores=(1.0, 1.0), form=WEBGPT),
        pair(scores=(0.5, 1.5), form=WEBGPT.replace("Rain", "Hail")),
    ]
    data, report = reports(tmp_path, rows, file="webgpt", subset="webgpt")
    assert (report.rows, report.records, report.comparisons) == (2, 1, 1)
    tied = "comparison of tied scores, which ties: keep would keep"
    assert report.dropped == {tied: 1, "record without a judgement": 1}
    (batch,) = data.batches("test")
    assert batch["score"].tolist() == [0.5, 1.5] and batch["comparisons"].tolist() == [[1, 0]]
    kept, report = reports(tmp_path, rows, file="webgpt", subset="webgpt", ties="keep")
    assert (report.records, report.comparisons, report.dropped) == (2, 2, {})
    (batch,) = kept.batches("test")
    assert sorted(batch["preference"].tolist()) == [0.5, 1.0]
    with pytest.raises(
        ValueError, match=r"nothing is left of the test split.*1 comparison of tied scores, which ties: keep"
    ):
        reports(tmp_path, rows[:1], file="webgpt", subset="webgpt")


@pytest.mark.parametrize(
    ("scores", "pairs"),
    [
        ((-1, -3), [(0, 1, 2)]),
        ((-2, -1, -2), [(1, 0, 1), (1, 2, 1)]),
        ((9, 7.5, 0), [(0, 1, 1.5), (0, 2, 9), (1, 2, 7.5)]),
        ((0, 0.25, 0.25, -4), [(1, 0, 0.25), (2, 0, 0.25), (0, 3, 4), (1, 3, 4.25), (2, 3, 4.25)]),
    ],
)
def test_defects_3_and_4_lists_of_any_length_and_scores_of_any_sign(tmp_path, scores, pairs):
    row = {
        "text": [f"## Human:\nRain?\n\n## Assistant:\nWord {i}." for i in range(len(scores))],
        "score": scores,
    }
    data, report = reports(tmp_path, [row], file="gpt4llm", subset="gpt4llm")
    record = data.to_example(next(data.load("test")))
    assert [(c.chosen, c.rejected, c.strength) for c in record.comparisons] == pairs
    assert all(c.preference == 1 and c.domain == "gpt4llm" for c in record.comparisons)
    assert sum(record.left_out.values()) == len(scores) * (len(scores) - 1) // 2 - len(pairs)
    assert (report.records, report.responses) == (1, len(scores)), "a response is scored once"
    (batch,) = data.batches("test")
    assert batch["score"].tolist() == list(scores)


def test_oracle_6_scores_are_those_of_the_file_and_normalise_as_the_original_does(tmp_path):
    """s / (max s + 1e-5), of which a share of the best is imitated."""
    expected = {
        (1, 0): (0.99999, 0),
        (1.5, 0.5): (0.9999933, 0.3333311),
        (2, 0): (0.999995, 0),
        (5, 4.25): (0.999998, 0.8499983),
        (5, 4.3): (0.999998, 0.8599983),
    }
    for scores, normalised in expected.items():
        record = example(tmp_path, [pair(scores=scores)], "helpful", subset="helpful")
        found = [response.score for response in record.responses]
        assert found == list(scores)
        assert [score / (max(found) + 1e-5) for score in found] == pytest.approx(normalised, abs=1e-7)


# Converted files ----------------------------------------------------------------------------------------------


def converted(row, domain, *, to_pairs):
    """What the original makes of a query: its template, scores divided by the greatest plus 1e-5."""
    text = {name: f"## Human:\n{row['query']}\n\n## Assistant:\n{row['responses'][name]}" for name in NAMES}
    others = [name for name in NAMES if name != domain]
    best = 1 / (1 + 1e-5)
    if to_pairs:
        return [{"text": [text[domain], text[name]], "score": [best, 0.0]} for name in others]
    return [
        {"text": [text[domain], *(text[name] for name in others[::-1])], "score": [best, 0.0, 0.0, 0.0, 0.0]}
    ]


def judged(data, source="test"):
    """Query, winner, loser and domain of all comparisons."""
    return Counter(
        (record.prompt, record.responses[c.chosen].text, record.responses[c.rejected].text, c.domain)
        for record in map(data.to_example, data.load(source))
        for c in record.comparisons
    )


@pytest.mark.parametrize(("to_pairs", "file"), [(True, "dsp_{}_pairs"), (False, "dsp_{}")])
def test_converted_files_say_what_the_release_says(tmp_path, to_pairs, file):
    rows = [query(), query("What is snow?", literature="business says: water."), query("Hail?", normal="")]
    for domain in ("business", "normal"):
        found = [new for row in rows for new in converted(row, domain, to_pairs=to_pairs)]
        for source in ("train", "test"):
            (tmp_path / f"{file.format(domain)}.{source}.json").write_text(json.dumps(found))
    other = json.dumps(converted(query("What is fog?"), "business", to_pairs=to_pairs))
    (tmp_path / f"{file.format('business')}.train.json").write_text(other)
    release = module(tmp_path, rows, domains=("business", "normal"))
    data = DSPDataModule(data_dir=str(tmp_path), subset="converted", domains=("business", "normal"))
    records = list(map(data.to_example, data.load("test")))
    assert judged(data) == judged(release)
    assert [len(record.responses) for record in records] == [5, 5, 4] * 2
    assert [record.responses[0].system for record in records] == ["business"] * 3 + ["normal"] * 2 + [None]
    assert {response.score for response in records[0].responses} == {1 / (1 + 1e-5), 0.0}
    keys = {record.split_key for record in records}
    assert keys == {record.split_key for record in map(release.to_example, release.load("test"))}
    business = DSPDataModule(data_dir=str(tmp_path), subset="converted", domains=("business",))
    business.setup("test")
    report = business.reports["test"]
    assert (report.records, report.responses, report.comparisons) == (3, 14, 4 + 3 + 3)
    assert report.dropped == {"comparison of identical responses": 1, "comparison of an empty response": 1}


def test_converted_rows_that_are_malformed(tmp_path):
    rows = [*converted(query(), "academy", to_pairs=True), {"text": ["a"]}, {"text": 3, "score": [1, 0]}, "x"]
    data = module(tmp_path, rows, "dsp_academy_pairs", subset="converted", domains=("academy",))
    found, *wrong = data.load("test")
    assert len(data.to_example(found).comparisons) == 4
    assert isinstance(wrong[-1], RecordError) and wrong[-1].line == 7
    for row, field in zip(wrong[:2], ("score", "text"), strict=True):
        with pytest.raises(RecordError, match=f"'{field}'|a list of two or more"):
            data.to_example(row)


# Accuracy -----------------------------------------------------------------------------------------------------


def metrics(batches, reward):
    """Metrics of a reward over batches."""
    metric = PreferenceMetrics()
    for batch in batches:
        rewards = reward(batch)
        chosen, rejected = rewards[batch["comparisons"]].unbind(dim=1)
        metric.update({"chosen": chosen, "rejected": rejected, "reward": rewards}, batch)
    return {name: float(value) for name, value in metric.compute().items()}


def test_oracle_2_and_defect_1_a_constant_model_has_no_accuracy(tmp_path):
    data, _ = reports(tmp_path, [query(f"What is rain, {i}?") for i in range(6)], domains=("academy",))
    found = metrics(data.batches("test"), lambda batch: torch.zeros(len(batch["response_row"])))
    assert (found["accuracy"], found["tied_scores"]) == (0.0, 1.0), "the original says 0.5 and 1"
    assert found["log_loss"] == pytest.approx(0.6931472)
    assert found["accuracy"] + found["tied_scores"] / 2 == 0.5, "with ties a half each"


def test_oracle_9_four_pairs_a_query_the_winner_first(tmp_path):
    data = module(tmp_path, [query(f"What is rain, {i}?") for i in range(7)], domains=("literature",))
    records = list(map(data.to_example, data.load("test")))
    assert sum(len(record.comparisons) for record in records) == 28
    winners = {record.responses[c.chosen].system for record in records for c in record.comparisons}
    assert winners == {"literature"} and 661 * 4 == 2644


def test_oracle_10_ceilings_and_denominators(tmp_path):
    shares = {44: 99.168, 43: 99.187, 29: 99.452, 28: 99.470}  # identical pairs of the released test file
    assert {same: round(100 * (1 - same / 2 / 2644), 3) for same in shares} == shares
    rows = [
        query(f"What is rain, {i}?", **({"normal": "academy says: water."} if i < 2 else {}))
        for i in range(5)
    ]
    data, report = reports(tmp_path, rows, domains=("academy",))
    assert (report.comparisons, report.dropped["comparison of identical responses"]) == (18, 2)
    academy = data.names["system"].index("academy")
    found = metrics(data.batches("test"), lambda batch: (batch["system_id"] == academy).float())
    assert (found["accuracy"], found["tied_scores"]) == (1.0, 0.0), "a perfect model is perfect"
    webgpt = [
        pair(str(i), "x", (1.0, 1.0) if i % 3 else (2.0, 0.0), WEBGPT.replace("Rain", f"Rain {i}"))
        for i in range(9)
    ]
    for ties, tied in (("leave_out", 0.0), ("keep", 6 / 9)):
        data, report = reports(tmp_path, webgpt, file="webgpt", subset="webgpt", ties=ties)
        found = metrics(data.batches("test"), lambda batch: batch["score"])
        assert found["accuracy"] == 1.0, "over the three that are decided"
        assert found["tied_labels"] == pytest.approx(tied)


def test_defect_11_a_development_split_out_of_train(tmp_path):
    data = module(tmp_path, [query(f"What is rain, {i % 30}?") for i in range(60)], validation_share=0.3)
    sides = {"train": set(), "validation": set()}
    for record in map(data.to_example, data.load("train")):
        sides[data.route(record, "train")].add(record.prompt)
    assert all(sides.values()) and not sides["train"] & sides["validation"]
    assert {data.route(record, "test") for record in map(data.to_example, data.load("test"))} == {"test"}
