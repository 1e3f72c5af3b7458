"""DICES, original tables: raters as users with groups, votes of whom one asks for; invented rows in the real schema."""

import csv
import gzip
import io

import pytest
import torch

from pluralign.datamodules import DICESDataModule, Message, RecordError
from pluralign.datamodules.datasets.dices_raters import DICESRatersDataModule
from pluralign.datamodules.records import PER_10_000, hash_split

CONTEXT = "USER: Do owls sleep?\nLAMDA: Why?\nUSER: Just so."
RATERS = {"1": ("Woman", "gen z"), "2": ("Man", "gen x+"), "3": ("Woman", "gen x+")}


def rating(rater, item, answer, context=CONTEXT, response=None, **changes):
    gender, age = RATERS[rater]
    return {
        "id": 1,
        "rater_id": rater,
        "rater_gender": gender,
        "rater_race": "Multiracial",
        "rater_age": age,
        "rater_education": "",
        "phase": "Phase1",
        "item_id": item,
        "context": context,
        "response": response or f"Reply {item}.",
        "degree_of_harm": "Benign",
        "Q2_harmful_content_overall": "No",
        "Q_overall": answer,
        **changes,
    }


def ratings(context=CONTEXT, first=10):
    """Two replies, rated by three people: 1 finds the second safer, 2 the first, 3 neither; a third reply that 2 did not see."""
    answers = {
        first: ("Yes", "No", "No"),
        first + 1: ("No", "Unsure", "No"),
        first + 2: ("Unsure", None, "Yes"),
    }
    return [
        rating(rater, item, answer, context)
        for item, of_item in answers.items()
        for rater, answer in zip(RATERS, of_item, strict=True)
        if answer
    ]


def module(folder, rows, subset="350", packed=False, **settings):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path = folder / subset / f"diverse_safety_adversarial_dialog_{subset}.csv{'.gz' if packed else ''}"
    path.parent.mkdir(exist_ok=True)
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return DICESRatersDataModule(data_dir=str(folder), subset=subset, **settings)


def found(data):
    rows = [row for source in data.sources for row in data.load(source)]
    return [row if isinstance(row, RecordError) else data.to_example(row) for row in rows]


def invented(folder, *, bad=False, **settings):
    """A data module over invented rows, one of them malformed if ``bad``: for the contract that all data sets share."""
    rows = [row for i in range(40) for row in ratings(f"USER: Question {i}?", 10 * i)]
    return module(folder, rows + [rating("1", 999, "Maybe", "USER: Question 0?")] * bad, **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_raters_are_users_with_groups(tmp_path, packed):
    (record,) = found(module(tmp_path, ratings(), packed=packed, groups="gender"))
    assert (record.id, record.group) == ("350:10", CONTEXT)
    assert record.prompt == (
        Message("user", "Do owls sleep?"),
        Message("assistant", "Why?"),
        Message("user", "Just so."),
    )
    assert [(r.text, r.votes, r.score) for r in record.responses] == [
        ("Reply 10.", (2, 0, 1), None),
        ("Reply 11.", (2, 1, 0), None),
        ("Reply 12.", (0, 1, 1), None),
    ]
    assert [
        (c.chosen, c.rejected, c.preference, c.strength, c.user, c.group) for c in record.comparisons
    ] == [
        (1, 0, 1.0, 2.0, "1", "Woman"),
        (0, 1, 1.0, 1.0, "2", "Man"),
        (0, 1, 0.5, 0.0, "3", "Woman"),
        (2, 0, 1.0, 1.0, "1", "Woman"),
        (0, 2, 1.0, 2.0, "3", "Woman"),
        (1, 2, 1.0, 1.0, "1", "Woman"),
        (1, 2, 1.0, 2.0, "3", "Woman"),
    ]


def test_the_crowd_compares_by_votes(tmp_path):
    (record,) = found(module(tmp_path, ratings(), judgements="crowd"))
    assert [(c.chosen, c.rejected, c.preference, c.votes, c.user) for c in record.comparisons] == [
        (0, 1, 0.5, (1, 1, 1), None),
        (0, 2, 0.5, (1, 0, 1), None),
        (1, 2, 1.0, (2, 0, 0), None),
    ]


def test_users_and_their_groups_reach_the_data_module(tmp_path):
    rows = [row for i in range(60) for row in ratings(f"USER: Question {i}?", 10 * i)]
    data = module(tmp_path, rows, groups="age")
    data.setup("fit")
    assert data.users == ["1", "2", "3"]
    assert data.user_groups() == {"1": "gen z", "2": "gen x+", "3": "gen x+"}
    batch = next(iter(data.batches("train")))
    assert batch["user_id"].unique().tolist() == [0, 1, 2]
    assert batch["votes"].shape[1] == 3 and torch.isin(batch["votes"].sum(1), torch.tensor([2.0, 3.0])).all()


def test_users_may_lack_a_group(tmp_path):
    (record,) = found(module(tmp_path, ratings(), groups="education"))
    assert {c.group for c in record.comparisons} == {None}
    (record,) = found(module(tmp_path, ratings()))
    assert {c.group for c in record.comparisons} == {None}


def test_ratings_of_some_raters(tmp_path):
    (record,) = found(module(tmp_path, ratings(), raters={"gender": "Woman", "age": "gen x+"}))
    assert [r.votes for r in record.responses] == [(1, 0, 0), (1, 0, 0), (0, 0, 1)]
    assert {c.user for c in record.comparisons} == {"3"}
    with pytest.raises(
        ValueError, match=r"raters=\{'gender': 'man'\}: .*dialog_350\.csv has no training rating"
    ):
        list(module(tmp_path, ratings(), raters={"gender": "man"}).load("train"))


def test_a_rater_is_of_one_group(tmp_path):
    rows = [rating("1", 10, "Yes"), rating("1", 11, "No", rater_age="millenial")]
    errors = [item for item in found(module(tmp_path, rows, groups="age")) if isinstance(item, RecordError)]
    assert [(error.reason, error.field, error.line) for error in errors] == [
        ("rater of two groups", "rater_age", 7)
    ]


def test_another_question(tmp_path):
    (record,) = found(module(tmp_path, ratings(), question="Q2_harmful_content_overall"))
    assert [r.votes for r in record.responses] == [(3, 0, 0), (3, 0, 0), (2, 0, 0)]
    errors = found(module(tmp_path, ratings(), question="Q9"))
    assert {(error.reason, error.field) for error in errors} == {("missing field", "Q9")}


def test_the_larger_table_has_locales_and_dialogues_of_its_own(tmp_path):
    rows = [{**row, "rater_locale": "India"} for row in ratings("A: Do owls sleep?")]
    (record,) = found(module(tmp_path, rows, "990", groups="locale"))
    assert record.id == "990:10" and record.prompt == (Message("user", "Do owls sleep?"),)
    assert {c.group for c in record.comparisons} == {"India"}


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"Q_overall": "Maybe"}, "out of range", "Q_overall"),
        ({"Q_overall": ""}, "missing field", "Q_overall"),
        ({"rater_id": ""}, "missing field", "rater_id"),
        ({"item_id": " "}, "missing field", "item_id"),
        ({"response": ""}, "missing field", "response"),
        ({"response": "Another."}, "item of two texts", "response"),
        ({"context": ""}, "missing field", "context"),
        ({"rater_id": "1"}, "duplicate rating", "rater_id"),
    ],
)
def test_a_malformed_rating_is_an_error_and_the_others_stay(tmp_path, change, reason, field):
    rows = [rating("1", 10, "Yes"), rating("2", 10, "No") | change]
    error, record = sorted(found(module(tmp_path, rows)), key=lambda item: not isinstance(item, RecordError))
    assert (error.reason, error.field) == (reason, field)
    assert error.file.endswith("dialog_350.csv") and error.line > 0
    assert [r.votes for r in record.responses] == [(0, 0, 1)]


def test_a_conversation_is_in_the_split_that_the_other_form_has_it_in(tmp_path):
    rows = [row for i in range(60) for row in ratings(f"USER: Question {i}?\\n", 10 * i)]
    data = module(tmp_path, rows)
    for source in data.sources:
        contexts = [row.text("context") for row in data.load(source)]
        assert contexts == [
            f"USER: Question {i}?"
            for i in range(60)
            if hash_split(f"USER: Question {i}?", PER_10_000) == source
        ]
    assert DICESDataModule.sources == DICESRatersDataModule.sources


def test_wrong_settings(tmp_path):
    with pytest.raises(
        ValueError, match=r"groups must be among gender, race, age, education for subset 350; got locale"
    ):
        DICESRatersDataModule(data_dir="x", groups="locale")
    with pytest.raises(
        ValueError, match=r"raters must be among gender, .*, locale for subset 990; got rater_gender"
    ):
        DICESRatersDataModule(data_dir="x", subset="990", raters={"rater_gender": "Man"})
    with pytest.raises(ValueError, match="groups='age' needs judgements='raters'"):
        DICESRatersDataModule(data_dir="x", judgements="crowd", groups="age")
    with pytest.raises(ValueError, match="subset must be one of 990, 350; got '35'"):
        DICESRatersDataModule(data_dir="x", subset="35")
