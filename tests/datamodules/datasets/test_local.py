"""Local files: every row shape, every format, column mapping, and errors that say what to change."""

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from pluralign.commands.inspect import print_inspection
from pluralign.datamodules import Comparison, LocalDataModule, Message, RecordError, Response

USER = {"role": "user", "content": "Name a fruit."}
GOOD = {"role": "assistant", "content": "Apple."}
BAD = {"role": "assistant", "content": "Chair."}
PAIR = {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair."}
REAL = Path(__file__).resolve().parents[4] / "shared" / "data"


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all datasets share."""
    rows = [{**PAIR, "prompt": f"Name fruit {i}.", "user": f"u{i % 3}"} for i in range(40)]
    train = write(folder, rows + [{**PAIR, "preference": 2}] * bad)
    return LocalDataModule(train=train, test=write(folder, [PAIR], "test.jsonl"), **settings)


def example(tmp_path, row, **kwargs):
    data = LocalDataModule(test=write(tmp_path, [row]), **kwargs)
    given = next(data.load("test"))
    if isinstance(given, RecordError):
        raise given
    return data.to_example(given)


def test_a_pair_with_a_prompt(tmp_path):
    record = example(tmp_path, PAIR)
    assert (record.id, record.prompt) == ("89ddc182ac37f52e", "Name a fruit.")
    assert record.responses == (Response("Apple."), Response("Chair."))
    assert record.comparisons == (Comparison(0, 1),)


def test_everything_a_pair_may_have(tmp_path):
    extra = {"id": "q1", "preference": 0.8, "user": "ann", "domain": "food", "margin": 0.5, "weight": 2}
    record = example(tmp_path, {**PAIR, **extra, "strength": -1, "votes": [4, 0, 1], "note": "passed over"})
    expected = Comparison(
        0, 1, 0.8, user="ann", domain="food", margin=0.5, weight=2, strength=-1, votes=(4, 0, 1)
    )
    assert (record.id, record.comparisons) == ("q1", (expected,))


@pytest.mark.parametrize(("given", "name"), [(17, "17"), ("17", "17"), (17.0, "17")])
def test_ids_users_and_domains_may_be_whole_numbers(tmp_path, given, name):
    record = example(tmp_path, {**PAIR, "id": given, "user": given, "domain": given})
    assert (record.id, record.comparisons[0].user, record.comparisons[0].domain) == (name, name, name)


def names(tmp_path, rows, name="rows.jsonl", **kwargs):
    data = LocalDataModule(test=write(tmp_path, rows, name), **kwargs)
    return [data.to_example(row).id for row in data.load("test")]


def test_ids_follow_content(tmp_path):
    other = {**PAIR, "rejected": "Table."}
    first, second = names(tmp_path, [PAIR, other])
    assert first != second and len(first) == len(second) == 16
    inserted = [{**PAIR, "prompt": "New"}, {**PAIR, "id": 5}, PAIR, other]
    assert names(tmp_path, inserted)[1:] == ["5", first, second], "rows before a row do not rename it"
    assert names(tmp_path, [PAIR, other, PAIR, PAIR]) == [first, second, f"{first}:2", f"{first}:3"]
    assert names(tmp_path, [PAIR], name="renamed.jsonl") == [first]
    shuffled = {**dict(reversed(PAIR.items())), "user": None, "note": "passed over", "id": ""}
    assert names(tmp_path, [shuffled]) == [first], "neither order, nulls nor further columns matter"
    mapped = {"question": PAIR["prompt"], "chosen": "Apple.", "rejected": "Chair."}
    assert names(tmp_path, [mapped], columns={"prompt": "question"}) == [first]
    numbered = [{**mapped, "number": 9}, mapped]
    assert names(tmp_path, numbered, columns={"prompt": "question", "id": "number"}) == ["9", first]
    assert names(tmp_path, [{**PAIR, "user": "ann"}]) != [first]


@pytest.mark.parametrize("value", [1.5, True, ["ann"]])
def test_users_that_are_none(tmp_path, value):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, {**PAIR, "user": value})
    assert (caught.value.reason, caught.value.field) == ("wrong type", "user")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"messages": [USER], "chosen": "Apple.", "rejected": "Chair."},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: Apple.",
            "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: Chair.",
        },
    ],
)
def test_conversations(tmp_path, row):
    record = example(tmp_path, row)
    assert record.prompt == (Message("user", "Name a fruit."),)
    assert [response.text for response in record.responses] == ["Apple.", "Chair."]


def test_conversations_that_part_early_keep_the_rest_as_text(tmp_path):
    more = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Sweet."}]
    record = example(tmp_path, {"chosen": [USER, GOOD, *more], "rejected": [USER, BAD]})
    assert [response.text for response in record.responses] == [
        "Apple.\n\nHuman: Why?\n\nAssistant: Sweet.",
        "Chair.",
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        ("A fruit? An apple", "A fruit? An apricot", "A fruit?", ["An apple", "An apricot"]),
        ("A fruit:\napple", "A fruit:\nchair", "A fruit:", ["apple", "chair"]),
        ("A fruit: apple", "A fruit: chair", "", ["A fruit: apple", "A fruit: chair"]),
        ("apple", "chair", "", ["apple", "chair"]),
        ("A fruit", "A fruit salad", "", ["A fruit", "A fruit salad"]),
        ("Same text", "Same text", "", ["Same text", "Same text"]),
    ],
)
def test_two_texts_without_a_prompt(tmp_path, chosen, rejected, prompt, responses):
    record = example(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert record.prompt == prompt
    assert [response.text for response in record.responses] == responses


def test_several_responses(tmp_path):
    row = {
        "prompt": "Name a fruit.",
        "responses": ["Apple.", "Pear.", "Chair."],
        "comparisons": [[0, 2], [1, 2, 0.9], {"chosen": 0, "rejected": 1, "preference": 0.5, "user": "bo"}],
        "scores": [4.5, None, 1],
        "votes": [[0, 5], [1, 4], None],
        "user": "ann",
        "weight": 0.5,
    }
    record = example(tmp_path, row)
    assert record.responses == (
        Response("Apple.", 4.5, (0, 5)),
        Response("Pear.", None, (1, 4)),
        Response("Chair.", 1),
    )
    assert record.comparisons == (
        Comparison(0, 2, user="ann", weight=0.5),
        Comparison(1, 2, 0.9, user="ann", weight=0.5),
        Comparison(0, 1, 0.5, user="bo", weight=0.5),
    )


def test_responses_may_be_objects_and_the_prompt_messages(tmp_path):
    row = {"messages": [USER], "responses": [{"text": "Apple.", "score": 2, "votes": [1, 0]}, "Chair."]}
    record = example(tmp_path, row)
    assert record.prompt == (Message("user", "Name a fruit."),)
    assert record.responses == (Response("Apple.", 2, (1, 0)), Response("Chair."))


@pytest.mark.parametrize("extra", [{}, {"score": 4.5}, {"votes": [0, 1, 4]}])
def test_one_response(tmp_path, extra):
    record = example(tmp_path, {"prompt": "Name a fruit.", "response": "Apple.", **extra})
    votes = tuple(extra["votes"]) if "votes" in extra else None
    assert record.responses == (Response("Apple.", extra.get("score"), votes),)


FAULTS = [
    ({"prompt": "x"}, "missing field", "chosen"),
    ({"prompt": "x", "chosen": "a"}, "missing field", "rejected"),
    ({**PAIR, "rejected": None}, "missing field", "rejected"),
    ({"response": "a"}, "missing field", "prompt"),
    ({**PAIR, "prompt": 3}, "wrong type", "prompt"),
    ({**PAIR, "chosen": 3}, "wrong type", "chosen"),
    ({**PAIR, "chosen": [USER]}, "missing answer", "chosen"),
    ({**PAIR, "chosen": [USER, GOOD, USER]}, "wrong type", "chosen[-1].role"),
    ({"chosen": [USER, GOOD], "rejected": "Chair."}, "wrong type", "rejected"),
    ({"chosen": [GOOD], "rejected": [BAD]}, "no common prompt", "prompt"),
    ({**PAIR, "preference": "0.5"}, "wrong type", "preference"),
    ({**PAIR, "preference": 2}, "out of range", "preference"),
    ({**PAIR, "margin": math.nan}, "not finite", "comparisons[0].margin"),
    ({**PAIR, "votes": 3}, "wrong type", "votes"),
    ({**PAIR, "votes": ["3"]}, "wrong type", "comparisons[0].votes[0]"),
    ({"prompt": "x", "response": "a", "score": math.nan}, "not finite", "responses[0].score"),
    ({"prompt": "x", "responses": "ab"}, "wrong type", "responses"),
    ({"prompt": "x", "responses": []}, "missing field", "responses"),
    ({"prompt": "x", "responses": [3]}, "wrong type", "responses[0]"),
    ({"prompt": "x", "responses": [{"txt": "a"}]}, "unknown field", "responses[0].txt"),
    ({"prompt": "x", "responses": ["a"], "scores": [1, 2]}, "wrong length", "scores"),
    ({"prompt": "x", "responses": ["a", "b"], "comparisons": [[0]]}, "wrong type", "comparisons[0]"),
    ({"prompt": "x", "responses": ["a", "b"], "comparisons": [5]}, "wrong type", "comparisons[0]"),
    (
        {"prompt": "x", "responses": ["a", "b"], "comparisons": [[0, 2]]},
        "out of range",
        "comparisons[0].rejected",
    ),
    (
        {"prompt": "x", "responses": ["a", "b"], "comparisons": [{"chosen": 0}]},
        "wrong type",
        "comparisons[0].rejected",
    ),
    (
        {"prompt": "x", "responses": ["a", "b"], "comparisons": [{"chosen": 0, "rejected": 1, "prefer": 1}]},
        "unknown field",
        "comparisons[0].prefer",
    ),
]


@pytest.mark.parametrize(("row", "reason", "field"), FAULTS)
def test_faulty_rows(tmp_path, row, reason, field):
    with pytest.raises(RecordError) as caught:
        example(tmp_path, row)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_csv_cells_become_numbers_and_lists(tmp_path):
    path = tmp_path / "rows.csv"
    header = ["prompt", "chosen", "rejected", "preference", "user", "votes", "responses", "comparisons"]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerow(["007", "12", "[1] b", "0.75", "5", "[3, 0, 1]", "", ""])
        writer.writerow(["Q", "", "", "", "", "", '["a", "b"]', "[[1, 0]]"])
    data = LocalDataModule(test=str(path))
    pair, ranked = map(data.to_example, data.load("test"))
    assert (pair.id, pair.prompt) == ("3662dd83f93f30e4", "007")
    assert pair.responses == (Response("12"), Response("[1] b"))
    assert pair.comparisons == (Comparison(0, 1, 0.75, user="5", votes=(3, 0, 1)),)
    assert ranked.comparisons == (Comparison(1, 0),)


@pytest.mark.parametrize(
    ("column", "cell", "allowed"),
    [
        ("preference", "high", "a number"),
        ("votes", "[1", "JSON in a cell"),
        ("margin", "nan", "a number such as 2"),
    ],
)
def test_csv_cells_that_are_neither(tmp_path, column, cell, allowed):
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,chosen,rejected,{column}\nQ,a,b,{cell}\n")
    data = LocalDataModule(test=str(path))
    with pytest.raises(RecordError, match=rf"rows\.csv:2: .*{column}.*allowed: {allowed}"):
        data.setup("test")


def test_parquet_and_json_give_the_same_records_as_json_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**PAIR, "user": 3, "votes": [1, 0]}, {**PAIR, "user": None, "votes": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    write(tmp_path, rows)
    found = []
    for suffix in ("jsonl", "json", "parquet"):
        data = LocalDataModule(test=str(tmp_path / f"rows.{suffix}"))
        found.append([data.to_example(row).comparisons for row in data.load("test")])
    assert found[0] == found[1] == found[2]
    assert found[0][0][0].user == "3"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_conversations_written_as_json_text(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    row = {"prompt": json.dumps([USER]), "chosen": json.dumps([USER, GOOD]), "rejected": json.dumps(BAD)}
    if suffix == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*row, "responses"])
            writer.writeheader()
            writer.writerow(row)
            writer.writerow(
                {"prompt": row["prompt"], "responses": json.dumps([json.dumps([GOOD]), "Chair."])}
            )
    else:
        more = {"prompt": row["prompt"], "responses": [json.dumps([GOOD]), {"text": "Chair."}]}
        path.write_text(f"{json.dumps(row)}\n{json.dumps(more)}")
    data = LocalDataModule(test=str(path))
    for record in map(data.to_example, data.load("test")):
        assert record.prompt == (Message("user", "Name a fruit."),)
        assert [response.text for response in record.responses] == ["Apple.", "Chair."]


@pytest.mark.parametrize("field", ["prompt", "chosen", "responses"])
def test_conversations_that_python_wrote_are_refused(tmp_path, field):
    row = (
        {"prompt": "x", "responses": [str([GOOD])]} if field == "responses" else {**PAIR, field: str([USER])}
    )
    with pytest.raises(RecordError, match=rf"wrong type: field '{field}.*json\.dumps writes it"):
        example(tmp_path, row)


def test_columns_that_no_field_reads_are_named_once_a_file(tmp_path):
    row = {
        **PAIR,
        "note": "sweet",
        "annotator": 7,
        "length": 12,
        "flag": True,
        "score": 3,
        "tags": ["a"],
        "more": None,
    }
    data = LocalDataModule(test=write(tmp_path, [row, {**row, "id": "b"}]))
    message = (
        r"^local test: no field reads these columns of .*rows\.jsonl: annotator, note, tags; "
        r"columns: \{user: annotator\} would read it as that field$"
    )
    with pytest.warns(UserWarning) as caught:
        data.setup("test")
    assert [str(one.message) for one in caught] and len(caught) == 1
    assert re.match(message, str(caught[0].message)), caught[0].message
    assert data.reports["test"].unread_columns == [
        "annotator",
        "flag",
        "length",
        "more",
        "note",
        "score",
        "tags",
    ]
    with pytest.warns(UserWarning, match="no field reads"):  # from the cache, too
        LocalDataModule(test=data.paths["test"]).setup("test")
    console = Console(record=True, width=250, file=io.StringIO())
    with pytest.warns(UserWarning, match="no field reads"):
        print_inspection(data := LocalDataModule(test=str(data.paths["test"])), console=console)
    assert "not read  test: annotator, flag, length, more, note, score, tags" in console.export_text()


def test_columns_of_numbers_alone_warn_nobody(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected,length,margin\nQ,a,b,12,0.5\n")
    data = LocalDataModule(test=str(path))
    data.setup("test")
    assert data.reports["test"].unread_columns == ["length"] and not data.reports["test"].notes


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"question": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair."}, "question"),
        (
            {"User Input": "Name one.", "chosen": "A fruit:\napple", "rejected": "A fruit:\nchair"},
            "User Input",
        ),
        ({"instruction": [USER], "responses": ["Apple.", "Chair."], "comparisons": [[0, 1]]}, "instruction"),
        ({"Prompt": "Name a fruit.", "response": "Apple.", "score": 1}, "Prompt"),
    ],
)
def test_a_prompt_of_another_name_is_not_passed_over(tmp_path, row, column):
    with pytest.raises(
        RecordError, match=rf"field '{column}' is .*columns: \{{prompt: {column}\}}; or columns"
    ) as caught:
        example(tmp_path, row)
    assert caught.value.reason == "unread prompt"
    assert example(tmp_path, row, columns={"prompt": column}).prompt
    if "chosen" in row:
        record = example(tmp_path, row, columns={"prompt": None})
        assert record.prompt == ("A fruit:" if column == "User Input" else "")


@pytest.mark.parametrize(
    "sides",
    [([USER, GOOD], [USER, BAD]), ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: Go")],
)
def test_sides_that_bring_their_prompt_need_no_other(tmp_path, sides):
    assert example(tmp_path, {"question": "Hi", "chosen": sides[0], "rejected": sides[1]}).prompt


def test_a_split_without_any_prompt_warns_unless_told(tmp_path):
    rows = [{"chosen": "Apple.", "rejected": "Chair."}, {"chosen": "Pear.", "rejected": "Sofa."}]
    path = write(tmp_path, rows)
    with pytest.warns(
        UserWarning, match="local test: none of its 2 records has a prompt: answers are read without"
    ):
        LocalDataModule(test=path).setup("test")
    LocalDataModule(test=path, columns={"prompt": None}).setup("test")
    data = LocalDataModule(test=write(tmp_path, [*rows, PAIR]))
    data.setup("test")
    assert data.reports["test"].without_prompt == 2 and "2 records without a prompt" in str(
        data.reports["test"]
    )


def test_fields_are_switched_off(tmp_path):
    row = {**PAIR, "preference": "a-is-better", "user": "ann", "id": "same"}
    off = {"preference": None, "user": None, "id": None}
    record = example(tmp_path, row, columns=off)
    assert (record.comparisons, record.id) == ((Comparison(0, 1),), "89ddc182ac37f52e")
    LocalDataModule(test=write(tmp_path, [row, {**row, "chosen": "Pear."}]), columns=off).setup("test")
    first = LocalDataModule(test=write(tmp_path, [row])).cache_folder()
    assert LocalDataModule(test=write(tmp_path, [row]), columns=off).cache_folder() != first
    with pytest.raises(ValueError, match="columns switches off unknown fields note; allowed: prompt"):
        LocalDataModule(test="x.jsonl", columns={"note": None})


@pytest.mark.parametrize("name", ["", "  ", "\u00a0", "\u200b", "\u3000\t"])
@pytest.mark.parametrize("field", ["user", "domain", "source", "aspect"])
def test_blank_names_are_nobody(tmp_path, field, name):
    with pytest.raises(RecordError, match=f"missing field: field '.*{field}' is .*a name that is not blank"):
        example(tmp_path, {**PAIR, field: name})


def test_whole_numbers_that_a_float_does_not_hold_are_no_names(tmp_path):
    assert example(tmp_path, {**PAIR, "user": 2**63}).comparisons[0].user == str(2**63)
    with pytest.raises(RecordError, match=r"field 'user' is .*below 2\^53"):
        example(tmp_path, {**PAIR, "user": 2.0**53})


def test_judgements_given_again_count_again_and_are_counted(tmp_path):
    ann = {**PAIR, "user": "ann"}
    turned = {**ann, "chosen": ann["rejected"], "rejected": ann["chosen"], "preference": 0.0}
    ranked = {
        "prompt": "Name a tree.",
        "responses": ["Oak.", "Elm.", "Stone."],
        "comparisons": [
            [0, 2],
            [0, 2],
            [1, 2],
            [0, 2, 0.5],
            {"chosen": 0, "rejected": 2, "user": "bo"},
            [2, 0],
        ],
    }
    rows = [
        PAIR,
        ann,
        {**PAIR, "user": "bo"},
        PAIR,
        turned,
        {**PAIR, "preference": 0.4},
        {**PAIR, "domain": "d"},
        ranked,
    ]
    data = LocalDataModule(test=write(tmp_path, rows))
    data.setup("test")
    report = data.reports["test"]
    assert (report.comparisons, report.repeated) == (13, 3), (
        "PAIR, ann's turned round, and one within the record"
    )
    assert "3 comparisons repeat a judgement" in str(report)


def test_judgements_of_skipped_rows_are_not_counted(tmp_path):
    rows = [{**PAIR, "id": "a"}, {**PAIR, "id": "a"}, {**PAIR, "prompt": "Other?", "id": "a"}]
    data = LocalDataModule(test=write(tmp_path, rows), on_invalid="skip")
    data.setup("test")
    assert (data.reports["test"].records, data.reports["test"].repeated) == (1, 0)


@pytest.mark.parametrize(
    ("weights", "field", "total"),
    [([0, 0], "weight", "0"), ([3e38, 3e38], "weight", r"6e\+38"), ([0, 0.0], "record_weight", "0")],
)
def test_weights_by_which_nothing_is_learned(tmp_path, weights, field, total):
    rows = [{**PAIR, "id": str(i), field: weight} for i, weight in enumerate(weights)]
    with pytest.raises(
        ValueError, match=rf"^test: the sum of {field} must be above 0 and at most 3\.4e\+38 .*, got {total}"
    ):
        LocalDataModule(test=write(tmp_path, rows)).setup("test")
    LocalDataModule(test=write(tmp_path, [*rows[:1], {**PAIR, "id": "last"}])).setup("test")
    LocalDataModule(predict=write(tmp_path, rows)).prepare_data()


def test_columns_are_mapped(tmp_path):
    row = {"question": "Q", "better": "a", "worse": "b", "prompt": "not this"}
    record = example(tmp_path, row, columns={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert (record.prompt, record.responses[1].text) == ("Q", "b")


def test_a_mapped_column_that_no_row_has(tmp_path):
    data = LocalDataModule(test=write(tmp_path, [PAIR]), columns={"user": "anotator"})
    with pytest.raises(
        ValueError, match=r"columns names anotator, which no row of .*rows\.jsonl has; it has prompt"
    ):
        data.setup("test")


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="give at least one of train, validation, test, predict"):
        LocalDataModule()
    with pytest.raises(ValueError, match="columns maps unknown fields question; allowed: prompt"):
        LocalDataModule(train="x.jsonl", columns={"question": "prompt"})
    (tmp_path / "other.csv").write_text("a\n")
    data = LocalDataModule(train=str(tmp_path / "x.jsonl"))
    with pytest.raises(
        FileNotFoundError, match=r"train='.*x\.jsonl' is not a file .*has other\.csv.*change train"
    ):
        data.setup("fit")
    with pytest.raises(ValueError, match="unknown suffix"):
        (tmp_path / "other.csvx").touch()
        LocalDataModule(test=str(tmp_path / "other.csvx")).setup("test")


def test_splits(tmp_path):
    rows = [{**PAIR, "prompt": f"Fruit {i}?"} for i in range(40)]
    data = LocalDataModule(train=write(tmp_path, rows, "a.jsonl"), validation_share=0.25)
    data.setup("fit")
    assert data.splits == ("train", "validation")
    assert data.reports["train"].records + data.reports["validation"].records == 40
    assert data.reports["validation"].records > 2
    with pytest.raises(ValueError, match="no test split"):
        data.test_dataloader()
    given = LocalDataModule(
        train=write(tmp_path, rows[:30], "a.jsonl"), validation=write(tmp_path, rows[30:], "b.jsonl")
    )
    given.setup("fit")
    assert (given.reports["train"].records, given.reports["validation"].records) == (30, 10)


def test_the_cache_follows_content_and_columns(tmp_path):
    path = write(tmp_path, [PAIR])
    first = LocalDataModule(test=path).cache_folder()
    assert LocalDataModule(test=path, columns={"user": "who"}).cache_folder() != first
    write(tmp_path, [PAIR, {**PAIR, "prompt": "Other?"}])
    assert LocalDataModule(test=path).cache_folder() != first


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not beside this checkout")
def test_real_llmbar_by_column_mapping(tmp_path):
    columns = {"prompt": "input", "first": "output_1", "second": "output_2", "winner": "label"}
    path = REAL / "llmbar" / "Natural" / "dataset.json.gz"
    data = LocalDataModule(test=str(path), columns=columns, codes={"1": "first", "2": "second"})
    records = [data.to_example(row) for row in data.load("test")]
    assert len(records) > 50
    assert all(record.prompt for record in records)
    assert {record.comparisons[0].chosen for record in records} == {0, 1}


# Groups of users -----------------------------------------------------------------------------------------


def from_countries(folder, countries, **splits):
    """A row for each (user, country), countries under a name of their own."""
    for split, pairs in {"train": countries, **splits}.items():
        rows = [
            {**PAIR, "prompt": f"Name {split} fruit {i}.", "user": user, "country": country}
            for i, (user, country) in enumerate(pairs)
        ]
        write(folder, rows, f"{split}.jsonl")
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", *splits)}
    data = LocalDataModule(**paths, columns={"group": "country"}, cache_dir=str(folder / "cache"))
    data.setup()
    return data


def test_users_have_groups_from_a_column(tmp_path):
    data = from_countries(
        tmp_path,
        [("ann", "Chad"), ("bob", "Peru"), ("ann", None), (7, "Peru"), ("tim", None), ("ann", "Chad")],
        validation=[("bob", "Peru"), ("zoe", 12)],
    )
    assert data.user_groups() == {"ann": "Chad", "bob": "Peru", "7": "Peru", "zoe": "12"}
    batch = next(iter(data.batches("train")))
    assert "group_id" not in batch, "reports alone ask for it"
    plain = LocalDataModule(train=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert plain.user_groups() == {}, "before setup, too"
    with pytest.warns(UserWarning, match="no field reads these columns .* country"):
        plain.setup()
    assert plain.user_groups() == {}


def test_comparisons_have_users_and_groups_of_their_own(tmp_path):
    row = {
        "prompt": "Name a fruit.",
        "responses": ["Apple.", "Pear.", "Chair."],
        "group": "Peru",
        "comparisons": [
            {"chosen": 0, "rejected": 2, "user": "ann", "group": "Chad"},
            {"chosen": 1, "rejected": 2, "user": "bob"},
            {"chosen": 0, "rejected": 1},
        ],
    }
    path = write(tmp_path, [row, {**PAIR, "prompt": "Another?"}])
    data = LocalDataModule(train=path, validation=path, cache_dir=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="share a prompt"):
        data.setup()
    with pytest.warns(UserWarning, match="local: 2 judgements have a group but no user"):
        assert data.user_groups() == {"ann": "Chad", "bob": "Peru"}


def test_a_user_of_two_groups_is_refused(tmp_path):
    data = from_countries(tmp_path, [("ann", "Chad"), ("bob", "Peru")], validation=[("ann", "Peru")])
    with pytest.raises(
        ValueError, match="validation: user 'ann' is of groups 'Chad' and 'Peru', and a user has one"
    ):
        data.user_groups()


@pytest.mark.parametrize("number", range(2, 8))
def test_of_a_few_prompts_one_at_least_is_held_out(tmp_path, number):
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(number)]
    data = LocalDataModule(train=write(tmp_path, rows * 2, "few.jsonl"), validation_share=0.0001)
    data.setup("fit")
    train, held_out = ({row.id for row in data.table(split).rows()} for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (number - 1, 1)
    assert data.reports["train"].rows == 2 * (number - 1)
    assert not train & held_out


def test_one_prompt_cannot_be_divided(tmp_path):
    row = {"prompt": "Only one?", "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(ValueError, match="nothing is left of the validation split"):
        LocalDataModule(train=write(tmp_path, [row], "one.jsonl")).setup("fit")
